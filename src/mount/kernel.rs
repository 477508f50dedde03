//! Getting a connected `/dev/fuse` descriptor: mount(2) for root, `fusermount3` for everyone else. fuser
//! would mount by itself, but then also unmounts whatever lies at that path when its session ends, and
//! cannot set the file system's subtype.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// The program that mounts and unmounts for users.
const HELPER: &str = "fusermount3";

/// How the kernel is to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// The first column of `mount`.
    pub fsname: String,
    /// The part of the type behind `fuse.`; empty for a plain `fuse`.
    pub subtype: String,
    /// Others than the mounting user may enter.
    pub allow_other: bool,
    /// The kernel checks modes.
    pub default_permissions: bool,
    /// Flags of mount(2).
    pub flags: MsFlags,
}

/// Backslashes and commas would end an option of `fusermount3`.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

impl KernelOptions {
    /// Mounts at `mountpoint` and returns the connection's descriptor.
    ///
    /// # Errors
    /// From the kernel or the helper.
    pub fn mount(&self, mountpoint: &Path) -> io::Result<OwnedFd> {
        match self.mount_directly(mountpoint) {
            // EACCES: the device may be open to root alone, and the helper may be root.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                self.mount_by_helper(mountpoint)
            }
            result => result,
        }
    }

    fn mount_directly(&self, mountpoint: &Path) -> io::Result<OwnedFd> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let mode = std::fs::metadata(mountpoint)?.permissions().mode();
        let mut data = format!(
            "fd={},rootmode={mode:o},user_id={},group_id={}",
            device.as_raw_fd(),
            nix::unistd::geteuid(),
            nix::unistd::getegid()
        );
        if self.default_permissions {
            data.push_str(",default_permissions");
        }
        if self.allow_other {
            data.push_str(",allow_other");
        }
        let kind = if self.subtype.is_empty() { "fuse".to_owned() } else { format!("fuse.{}", self.subtype) };
        mount(Some(self.fsname.as_str()), mountpoint, Some(kind.as_str()), self.flags, Some(data.as_str()))?;
        Ok(device.into())
    }

    fn helper_options(&self) -> String {
        let mut out = vec![format!("fsname={}", escaped(&self.fsname))];
        if !self.subtype.is_empty() {
            out.push(format!("subtype={}", escaped(&self.subtype)));
        }
        let flags = [
            (MsFlags::MS_RDONLY, "ro"),
            (MsFlags::MS_NOEXEC, "noexec"),
            (MsFlags::MS_NOATIME, "noatime"),
            (MsFlags::MS_SYNCHRONOUS, "sync"),
            (MsFlags::MS_DIRSYNC, "dirsync"),
        ];
        out.extend(flags.iter().filter(|(f, _)| self.flags.contains(*f)).map(|(_, name)| (*name).to_owned()));
        if self.default_permissions {
            out.push("default_permissions".to_owned());
        }
        if self.allow_other {
            out.push("allow_other".to_owned());
        }
        out.join(",")
    }

    /// Asks `fusermount3`, which passes the descriptor through a socket.
    fn mount_by_helper(&self, mountpoint: &Path) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(HELPER);
        command.args(["-o", &self.helper_options(), "--"]).arg(mountpoint);
        command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let inherited = theirs.as_raw_fd();
        // SAFETY: between fork and exec only fcntl(2) is called, which is async-signal-safe, on a descriptor
        // that stays open until the child was waited for.
        unsafe {
            command.pre_exec(move || {
                let fd = std::os::fd::BorrowedFd::borrow_raw(inherited);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(())
            });
        }
        let child = command.spawn().map_err(helper_failed)?;
        drop(theirs);
        let received = receive(&ours);
        let output = child.wait_with_output()?;
        if output.status.success() {
            return received;
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(if text.is_empty() { format!("{HELPER}: {}", output.status) } else { text }))
    }
}

fn helper_failed(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{HELPER} (package fuse3) cannot be run: {error}"))
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(i32);
    let message =
        recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows of it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other(format!("{HELPER} passed no descriptor")))
}

/// Whether something is mounted at exactly that path. Asks the mount table and not the path, which may lead
/// into a mount of this very process.
///
/// # Errors
/// The mount table cannot be read.
pub fn is_mounted(mountpoint: &Path) -> io::Result<bool> {
    Ok(device_of(mountpoint)?.is_some())
}

/// The device number, as `major:minor`, of what is mounted last at exactly that path.
///
/// # Errors
/// The mount table cannot be read.
pub(super) fn device_of(mountpoint: &Path) -> io::Result<Option<String>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let wanted = mountpoint.as_os_str().as_bytes();
    let device = |line: &[u8]| {
        let mut fields = line.split(|&b| b == b' ').skip(2);
        let device = fields.next()?;
        (unescaped(fields.nth(1)?) == wanted).then(|| String::from_utf8_lossy(device).into_owned())
    };
    Ok(table.split(|&b| b == b'\n').filter_map(device).next_back())
}

/// Takes the octal escapes (`\040`) of the mount table away.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().filter(|digits| *first == b'\\' && digits.iter().all(is_octal));
        let (byte, tail) = match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, d| value * 8 + u32::from(d - b'0'));
                (value as u8, tail.get(3..).unwrap_or_default())
            }
            None => (*first, tail),
        };
        out.push(byte);
        rest = tail;
    }
    out
}

fn is_octal(digit: &u8) -> bool {
    (b'0'..=b'7').contains(digit)
}

/// Unmounts; with `lazily` also while files are open (they stay usable until they are closed).
///
/// # Errors
/// `EBUSY` while files are open.
pub fn unmount(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let how = if lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    let flags = how | MntFlags::UMOUNT_NOFOLLOW;
    match umount2(mountpoint, flags) {
        Err(nix::errno::Errno::EPERM) => unmount_by_helper(mountpoint, lazily),
        result => Ok(result?),
    }
}

fn unmount_by_helper(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let mut command = Command::new(HELPER);
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.stdin(Stdio::null()).output().map_err(helper_failed)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("busy") {
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    } else {
        Err(io::Error::other(text.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_understood() {
        assert_eq!(unescaped(b"/a\\040b\\134\\"), b"/a b\\\\");
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
    }
}
