/* Loaded into the server (LD_PRELOAD): fails one system call on a file of the store with EIO, or ENOSPC.
 *
 * The file that REWINDFS_TEST_FAULT names holds "WHAT N": of the calls of kind WHAT (r: read, w: write, s: sync) on
 * files below journal/, packs/ or index/, or of the writes of RocksDB's tables (n: with ENOSPC), the N-th from now on
 * fails, once. It is looked at with each call; when the call has failed the file is removed, which is how the test
 * learns of it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long seen;
static char order[64];

static int concerns(int fd, char what) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    if (what == 'n') return strstr(path, "/store/index/") && strstr(path, ".sst");
    return strstr(path, "/store/journal/") || strstr(path, "/store/packs/") || strstr(path, "/store/index/");
}

static int fails(int fd, char what) {
    const char *name = getenv("REWINDFS_TEST_FAULT");
    if (!name || access(name, F_OK) || !concerns(fd, what)) return 0;
    int result = 0;
    pthread_mutex_lock(&lock);
    char kind = 0, text[64] = "";
    long at = 0;
    FILE *file = fopen(name, "r");
    if (file && fgets(text, sizeof text, file) && sscanf(text, "%c %ld", &kind, &at) == 2 && kind == what) {
        if (strcmp(text, order)) {
            strcpy(order, text);
            seen = 0;
        }
        if (++seen >= at) {
            unlink(name);
            order[0] = 0;
            result = 1;
        }
    }
    if (file) fclose(file);
    pthread_mutex_unlock(&lock);
    return result;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(fd, what) if (fails(fd, what)) { errno = EIO; return -1; }
#define FAIL_WRITE(fd) FAIL(fd, 'w') if (fails(fd, 'n')) { errno = ENOSPC; return -1; }

ssize_t pread64(int fd, void *to, size_t n, off64_t at) { REAL(pread64); FAIL(fd, 'r') return real(fd, to, n, at); }
ssize_t pread(int fd, void *to, size_t n, off_t at) { REAL(pread); FAIL(fd, 'r') return real(fd, to, n, at); }
ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) { REAL(pwrite64); FAIL_WRITE(fd) return real(fd, from, n, at); }
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { REAL(pwrite); FAIL_WRITE(fd) return real(fd, from, n, at); }
ssize_t write(int fd, const void *from, size_t n) { REAL(write); FAIL_WRITE(fd) return real(fd, from, n); }
int fsync(int fd) { REAL(fsync); FAIL(fd, 's') return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); FAIL(fd, 's') return real(fd); }
