# Takes and gives up locks by commands on standard input: one line each, answered by one line.
import errno, fcntl, os, struct, sys

OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
TYPES = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}
FLOCKS = {"sh": fcntl.LOCK_SH, "ex": fcntl.LOCK_EX, "un": fcntl.LOCK_UN}
LAYOUT = "hhlli4x"
fds = {}


def range_lock(command, fd, kind, start, length):
    asked = struct.pack(LAYOUT, TYPES[kind], os.SEEK_SET, int(start), int(length), 0)
    return struct.unpack(LAYOUT, fcntl.fcntl(fds[fd], command, asked))


def asked_for(command, fd, kind, start, length):
    kind, _, start, length, pid = range_lock(command, fd, kind, start, length)
    if kind == fcntl.F_UNLCK:
        return "free"
    owner = {os.getpid(): "mine", -1: "a descriptor's"}.get(pid, "another's")
    return "%s %d %d %s" % ({v: k for k, v in TYPES.items()}[kind], start, length, owner)


def in_child(*words):
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(send, answer(words).encode())
        os._exit(0)
    os.close(send)
    told = os.read(receive, 1000).decode()
    os.close(receive)
    os.waitpid(pid, 0)
    return told


def act(what, *words):
    fd = words[0] if words else None
    if what == "open":
        flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[words[2]]
        fds[fd] = os.open(words[1], flags)
    elif what == "dup":
        fds[words[1]] = os.dup(fds[fd])
    elif what == "close":
        os.close(fds.pop(fd))
    elif what == "read":
        return os.pread(fds[fd], 100, 0).decode()
    elif what == "write":
        os.pwrite(fds[fd], words[1].encode(), 0)
    elif what in ("flock", "flock-wait"):
        fcntl.flock(fds[fd], FLOCKS[words[1]] | (0 if what == "flock-wait" else fcntl.LOCK_NB))
    elif what in ("posix", "posix-wait"):
        range_lock(fcntl.F_SETLKW if what == "posix-wait" else fcntl.F_SETLK, *words)
    elif what in ("ofd", "ofd-wait"):
        range_lock(OFD_SETLKW if what == "ofd-wait" else OFD_SETLK, *words)
    elif what == "posix-get":
        return asked_for(fcntl.F_GETLK, *words)
    elif what == "ofd-get":
        return asked_for(OFD_GETLK, *words)
    elif what == "child":
        return in_child(*words)
    else:
        return "no such command"
    return "done"


def answer(words):
    try:
        return act(*words)
    except OSError as e:
        return {errno.EDEADLK: "EDEADLK"}.get(e.errno) or errno.errorcode[e.errno]


for line in sys.stdin:
    # Several at once, with nothing in between: "one; two".
    told = [answer(part.split()) for part in line.split(";")]
    print("; ".join(told), flush=True)
