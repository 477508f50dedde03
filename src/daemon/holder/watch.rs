//! A server process as its holder sees it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::channel::{Channel, ToHolder};

/// A running server.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) pid: u32,
    /// Readable once every thread of it has ended (pidfd).
    pub(super) process: OwnedFd,
    pub(super) channel: Arc<Channel>,
    /// Nothing more comes from it.
    pub(super) silent: bool,
    /// None for one that another holder started.
    child: Option<Child>,
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; what it returns is a new descriptor that nobody else knows of.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

impl Watched {
    /// Starts `program`, by default this one, as a server of `store`.
    pub(super) fn spawn(program: Option<&OwnedFd>, store: &Path, foreground: bool) -> io::Result<Watched> {
        let (ours, theirs) = Channel::pair()?;
        // Also when the file was replaced or removed since.
        let path = match program {
            Some(fd) => format!("/proc/self/fd/{}", fd.as_raw_fd()),
            None => "/proc/self/exe".to_owned(),
        };
        let child = Command::new(path)
            .arg0("rewindfs")
            .arg("serve")
            .arg(store)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(if foreground { Stdio::inherit() } else { Stdio::null() })
            .spawn()?;
        let pid = child.id();
        Ok(Watched { pid, process: pidfd(pid)?, channel: Arc::new(ours), silent: false, child: Some(child) })
    }

    /// The server at the other end of `channel`.
    pub(super) fn adopted(channel: Channel, pid: u32) -> io::Result<Watched> {
        Ok(Watched { pid, process: pidfd(pid)?, channel: Arc::new(channel), silent: false, child: None })
    }

    /// The next message, if there is one already.
    pub(super) fn next_message(&mut self) -> Option<(ToHolder, Option<OwnedFd>)> {
        if self.silent {
            return None;
        }
        match self.channel.receive(false) {
            Ok(Some(message)) => return Some(message),
            Ok(None) => self.silent = true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::error!(%error, "the server speaks garbage");
                self.silent = true;
            }
        }
        None
    }

    /// How it ended, once it has, and whether somebody killed it: SIGKILL comes from outside and says nothing
    /// about the server.
    pub(super) fn how(&mut self) -> (String, bool) {
        match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => (status.to_string(), status.signal() == Some(libc::SIGKILL)),
            Some(Err(e)) => (e.to_string(), false),
            None => ("it was another holder's child".to_owned(), false),
        }
    }
}
