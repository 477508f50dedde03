//! The few system calls that neither std nor nix wraps.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Supplementary groups that are asked of a peer; the kernel's own limit (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// How long a server that has unmounted everything may take to end.
pub const END_PATIENCE: Duration = Duration::from_secs(60);

/// The value of an extended attribute of the file that `path` leads to, at most `max` bytes of it.
///
/// # Errors
/// What `getxattr(2)` says; `ENODATA` and `EOPNOTSUPP` where there is none, `ERANGE` for a longer one.
pub fn getxattr(path: &Path, name: &str, max: usize) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    let mut value = vec![0u8; max];
    // SAFETY: both strings end with NUL and `value` has room for the length that is passed.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// The supplementary groups of the process at the other end of a Unix socket, as they were when it
/// connected.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let room = groups.len() * size_of::<libc::gid_t>();
        let mut len = libc::socklen_t::try_from(room).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `groups` has room for `len` bytes and gid_t is a u32.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut len,
            )
        };
        let count = usize::try_from(len).unwrap_or(0) / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel answers how much room it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Closes every descriptor but the standard three: a server outlives its starter and must not keep the
/// starter's pipes and terminals open. Only for the very start of a process, before it has opened anything.
pub fn close_inherited() {
    // SAFETY: no object of this process owns a descriptor above 2 yet. Failing (an old kernel) is harmless.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// A process, told apart from a later one that got the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    start_ticks: u64,
}

impl Process {
    /// The process of that number; None when there is none, or only the remains that its parent has not
    /// collected.
    pub fn find(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold spaces and brackets, so the fields are counted from the last bracket: state is
        // the first of them, the start time the twentieth (proc_pid_stat(5), fields 3 and 22).
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Process { pid, start_ticks: fields.nth(18)?.parse().ok()? })
    }

    /// As [`Process::find`], if it began then; numbers are used again.
    pub fn that_began(pid: u32, start_ticks: u64) -> Option<Process> {
        Process::find(pid).filter(|process| process.start_ticks == start_ticks)
    }

    /// When it began, in clock ticks since the machine did.
    pub fn start_ticks(self) -> u64 {
        self.start_ticks
    }

    /// Whether it still runs.
    pub fn is_running(self) -> bool {
        Process::find(self.pid) == Some(self)
    }

    /// Waits until it has ended, but no longer than `patience`; whether it has.
    pub fn wait(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn own_groups_are_the_peers_groups() {
        let (one, _two) = UnixStream::pair().unwrap();
        let mut theirs = peer_groups(&one).unwrap();
        let mut ours: Vec<u32> = nix::unistd::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(theirs, ours);
    }

    #[test]
    fn processes_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(child.id()).unwrap();
        assert!(process.is_running());
        child.kill().unwrap();
        // A zombie counts as gone, also before it is waited for.
        let gone = process.wait(Duration::from_secs(5));
        assert!(gone);
        child.wait().unwrap();
        assert!(Process::find(std::process::id()).is_some());
    }

    #[test]
    fn missing_attribute_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(getxattr(file.path(), "user.rewindfs.none", 64).is_err());
    }
}
