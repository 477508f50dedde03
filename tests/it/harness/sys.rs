//! System calls that the standard library does not offer, by path and with `io::Result`.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};

/// The user and group `nobody` of Debian.
pub const NOBODY: u32 = 65534;

/// What `lstat` says that does not depend on the moment or on the filesystem's own numbering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length; 0 for directories, whose size is the filesystem's own affair.
    pub size: u64,
    /// Device number of a special file.
    pub rdev: u64,
}

/// The facts of a path, symbolic links not followed.
pub fn facts(path: &Path) -> io::Result<Facts> {
    path.symlink_metadata().map(|m| facts_of(&m))
}

/// The facts in a stat structure.
pub fn facts_of(m: &fs::Metadata) -> Facts {
    let size = if m.is_dir() { 0 } else { m.len() };
    Facts { mode: m.mode(), nlink: m.nlink(), uid: m.uid(), gid: m.gid(), size, rdev: m.rdev() }
}

/// Writes a whole new file with that mode, whatever the umask.
pub fn write_file(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    chmod(path, mode)
}

/// Makes a file that must not exist (`O_EXCL`), with the mode as the umask leaves it.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Opens for reading and writing.
pub fn open_rw(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).open(path)
}

/// `mkdir` with a mode, as the umask leaves it.
pub fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(path)
}

/// `chmod`, all twelve bits.
pub fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// `lchown`.
pub fn chown(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
}

/// Makes a special file.
pub fn special(path: &Path, kind: SFlag, mode: u32, device: u64) -> io::Result<()> {
    Ok(mknod(path, kind, Mode::from_bits_truncate(mode), device)?)
}

/// Sets access and modification time, links not followed; seconds may be negative.
pub fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let [atime, mtime] = [atime, mtime].map(|(secs, nanos)| TimeSpec::new(secs, nanos));
    Ok(utimensat(AT_FDCWD, path, &atime, &mtime, UtimensatFlags::NoFollowSymlink)?)
}

/// The access time, links not followed.
pub fn atime(path: &Path) -> io::Result<(i64, i64)> {
    path.symlink_metadata().map(|m| (m.atime(), m.atime_nsec()))
}

/// The modification time, links not followed.
pub fn mtime(path: &Path) -> io::Result<(i64, i64)> {
    path.symlink_metadata().map(|m| (m.mtime(), m.mtime_nsec()))
}

/// `renameat2`.
pub fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
}

/// `lsetxattr` with `XATTR_CREATE`, `XATTR_REPLACE` or 0.
pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: all pointers are live for the call and the length is the value's.
    let r =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Ok(Errno::result(r).map(drop)?)
}

/// `lgetxattr`.
pub fn get_xattr(path: &Path, name: &[u8]) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: `growing` hands over a buffer with its true size.
    growing(|buf, len| unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buf.cast(), len) })
}

/// `llistxattr`: the names, sorted.
pub fn list_xattrs(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let path = c_path(path)?;
    // SAFETY: `growing` hands over a buffer with its true size.
    let list = growing(|buf, len| unsafe { libc::llistxattr(path.as_ptr(), buf.cast(), len) })?;
    let mut names: Vec<Vec<u8>> =
        list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    names.sort();
    Ok(names)
}

/// `lremovexattr`.
pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: both strings are live for the call.
    Ok(Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)?)
}

/// Asks for the size, then for the bytes.
fn growing(call: impl Fn(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    let size = Errno::result(call(ptr::null_mut(), 0))? as usize;
    let mut buf = vec![0; size];
    let len = Errno::result(call(buf.as_mut_ptr(), size))? as usize;
    buf.truncate(len);
    Ok(buf)
}

/// The byte ranges that hold data, by `SEEK_DATA` and `SEEK_HOLE`.
pub fn data_ranges(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match lseek(file, at, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(ranges),
            found => found?,
        };
        let end = lseek(file, start, Whence::SeekHole)?;
        if end <= start || start < at {
            return Err(io::Error::other(format!("SEEK_DATA from {at} gave {start}, its end is {end}")));
        }
        ranges.push((start as u64, end as u64));
        at = end;
    }
}

/// `fallocate` with any mode, known or not.
pub fn fallocate(file: &File, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: no memory is involved.
    Ok(Errno::result(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)?)
}

/// One `copy_file_range` between two places; the descriptors' own positions stay.
pub fn copy_range(from: &File, at: i64, to: &File, to_at: i64, len: usize) -> io::Result<usize> {
    let (mut at, mut to_at) = (at, to_at);
    raw_copy(from, &mut at, to, &mut to_at, len, 0)
}

/// As [`copy_range`] from and to the descriptors' positions, with flags.
pub fn copy_on(from: &File, to: &File, len: usize, flags: u32) -> io::Result<usize> {
    raw_copy(from, ptr::null_mut(), to, ptr::null_mut(), len, flags)
}

fn raw_copy(
    from: &File,
    at: *mut i64,
    to: &File,
    to_at: *mut i64,
    len: usize,
    flags: u32,
) -> io::Result<usize> {
    // SAFETY: the positions are null or live for the call.
    let copied = unsafe { libc::copy_file_range(from.as_raw_fd(), at, to.as_raw_fd(), to_at, len, flags) };
    Ok(Errno::result(copied)? as usize)
}

/// Bytes of disk that a file is said to take.
pub fn allocated(path: &Path) -> io::Result<u64> {
    path.symlink_metadata().map(|m| m.blocks() * 512)
}

/// The names in a directory, sorted, as one listing gives them (names given twice stay twice).
pub fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let mut names = fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// A file name out of any bytes.
pub fn raw_name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Runs `act` with the rights of another user and group and no further groups, in a thread of its own: the
/// raw system calls change the calling thread only.
pub fn as_user<T: Send>(uid: u32, gid: u32, act: impl FnOnce() -> T + Send) -> T {
    as_member(uid, gid, &[], act)
}

/// As [`as_user`], with further groups.
pub fn as_member<T: Send>(uid: u32, gid: u32, groups: &[u32], act: impl FnOnce() -> T + Send) -> T {
    in_thread(|| {
        // SAFETY: the list lives for the call; the last call gives up the right to undo them.
        let results = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            ]
        };
        assert_eq!(results, [0; 3], "cannot become user {uid}: the tests must run as root");
        act()
    })
}

/// Runs `act` in a thread with a working directory and a umask of its own.
pub fn in_directory<T: Send>(dir: &Path, umask: u32, act: impl FnOnce() -> T + Send) -> T {
    in_thread(|| {
        unshare(CloneFlags::CLONE_FS).expect("a working directory for a thread");
        std::env::set_current_dir(dir).unwrap_or_else(|e| panic!("entering {}: {e}", dir.display()));
        nix::sys::stat::umask(Mode::from_bits_truncate(umask));
        act()
    })
}

fn in_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(act).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A shared, writable mapping of a file's first bytes.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, which must not be 0.
    pub fn shared(file: &File, len: usize) -> io::Result<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: start.cast(), len })
    }

    /// The bytes as they are now.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        let mut out = vec![0; len];
        // SAFETY: inside the mapping, by the assertion; the copy does not overlap it.
        unsafe { ptr::copy_nonoverlapping(self.start.add(at), out.as_mut_ptr(), len) };
        out
    }

    /// Stores bytes through the mapping.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: inside the mapping, by the assertion; nothing holds a reference into it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
    }

    /// `msync(MS_SYNC)` over all of it.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the mapping is live.
        Ok(Errno::result(unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) }).map(drop)?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `shared`, unmapped only here.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
