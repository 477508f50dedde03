//! A connection to the kernel that outlives its server: the handshake for a new one, and taking over one that
//! another server had.
//!
//! fuser insists on an INIT request as the first thing it reads. It gets one through a socket pair: the
//! kernel's own from a new connection, the same again (with the flags that were agreed on) from one that is
//! taken over. Then the device is put in the socket's place.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use fuser::{Filesystem, Session};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Bytes of any handshake message, generously.
const MESSAGE_BYTES_MAX: usize = 1 << 16;
/// How long the kernel may take to say INIT, which it queues with the mount.
const INIT_PATIENCE: Duration = Duration::from_secs(30);

/// `fuse_in_header`, then `fuse_init_in`: major, minor, max_readahead, flags, flags2 (kernel, `fuse.h`).
const IN_FLAGS: usize = 40 + 12;
const IN_FLAGS2: usize = 40 + 16;
/// `fuse_out_header`, then `fuse_init_out`: major, minor, max_readahead, flags, 2 × u16, max_write,
/// time_gran, 2 × u16, flags2.
const OUT_FLAGS: usize = 16 + 12;
const OUT_FLAGS2: usize = 16 + 32;
/// The flag that says that `flags2` counts.
const INIT_EXT: u32 = 1 << 30;
/// `FUSE_HAS_RESEND`, 2^39: a bit of `flags2`.
const HAS_RESEND2: u32 = 1 << 7;
/// `FUSE_NOTIFY_RESEND`.
const NOTIFY_RESEND: i32 = 7;

/// What kernel and server agreed on when the connection began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// The kernel's INIT request.
    pub init: Vec<u8>,
    /// The answer to it.
    pub answer: Vec<u8>,
}

/// A connection that a server is to serve.
#[derive(Debug)]
pub struct Connection {
    /// `/dev/fuse`.
    pub device: OwnedFd,
    /// Tells its requests from those of other connections, in records; never 0.
    pub id: u64,
    /// None for a new connection.
    pub negotiated: Option<Negotiated>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
}

fn put_word(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..).and_then(|b| b.first_chunk_mut()) {
        *place = value.to_ne_bytes();
    }
}

impl Negotiated {
    /// The INIT for a later server: it is offered what was agreed on and no more.
    fn masked(&self) -> Vec<u8> {
        let mut init = self.init.clone();
        for (at, agreed) in [
            (IN_FLAGS, word(&self.answer, OUT_FLAGS) | INIT_EXT),
            (IN_FLAGS2, word(&self.answer, OUT_FLAGS2)),
        ] {
            let offered = word(&init, at);
            put_word(&mut init, at, offered & agreed);
        }
        init
    }

    /// Makes it that of a kernel that does not send requests again.
    fn without_resend(mut self) -> Negotiated {
        let flags = word(&self.init, IN_FLAGS2);
        put_word(&mut self.init, IN_FLAGS2, flags & !HAS_RESEND2);
        self
    }

    /// Whether the kernel can send requests again that a server read and did not answer (since Linux 6.9).
    pub fn can_resend(&self) -> bool {
        word(&self.init, IN_FLAGS) & INIT_EXT != 0 && word(&self.init, IN_FLAGS2) & HAS_RESEND2 != 0
    }
}

fn readable(fd: impl AsFd, patience: Duration) -> io::Result<()> {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The kernel's first request. (A duplicate shares the device; nothing is lost by closing it.)
fn read_init(device: &OwnedFd) -> io::Result<Vec<u8>> {
    readable(device, INIT_PATIENCE)?;
    let mut init = vec![0; MESSAGE_BYTES_MAX];
    let n = std::fs::File::from(device.try_clone()?).read(&mut init)?;
    init.truncate(n);
    Ok(init)
}

/// Makes a session by `make`, which gets the descriptor to make it of, and connects it to the kernel. Also
/// returns what was agreed on; without `resends` a new connection is one that cannot send requests again.
///
/// # Errors
/// From the kernel, or from fuser.
pub(super) fn connect<F: Filesystem>(
    connection: &Connection,
    resends: bool,
    make: impl FnOnce(OwnedFd) -> io::Result<Session<F>>,
) -> io::Result<(Session<F>, Negotiated)> {
    let init = match &connection.negotiated {
        Some(negotiated) => negotiated.masked(),
        None => read_init(&connection.device)?,
    };
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    nix::unistd::write(&ours, &init)?;
    let session = make(theirs)?;
    readable(&ours, INIT_PATIENCE)?;
    let mut answer = vec![0; MESSAGE_BYTES_MAX];
    let n = nix::unistd::read(&ours, &mut answer)?;
    answer.truncate(n);
    let negotiated = match &connection.negotiated {
        Some(negotiated) => negotiated.clone(),
        None => {
            std::fs::File::from(connection.device.try_clone()?).write_all(&answer)?;
            let negotiated = Negotiated { init, answer };
            if resends { negotiated } else { negotiated.without_resend() }
        }
    };
    let place = session.as_fd().as_raw_fd();
    // SAFETY: both descriptors are open; the second one's owner, the session, then owns the device by it.
    Errno::result(unsafe { libc::dup3(connection.device.as_raw_fd(), place, libc::O_CLOEXEC) })?;
    Ok((session, negotiated))
}

/// Has the kernel send again what was read from the device and not answered.
///
/// # Errors
/// `EINVAL` before Linux 6.9.
pub fn resend(device: impl AsFd) -> io::Result<()> {
    notify(device, 16, NOTIFY_RESEND, 0)
}

/// Answers a request with an error.
///
/// # Errors
/// `ENOENT` when the kernel waits for no such answer.
pub fn refuse(device: impl AsFd, unique: u64, errno: Errno) -> io::Result<()> {
    notify(device, 16, -(errno as i32), unique)
}

/// Writes a `fuse_out_header`.
fn notify(device: impl AsFd, len: u32, error: i32, unique: u64) -> io::Result<()> {
    let mut message = [0; 16];
    let fields = [len.to_ne_bytes(), error.to_ne_bytes()];
    for (place, bytes) in message.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&bytes);
    }
    if let Some(place) = message.last_chunk_mut::<8>() {
        *place = unique.to_ne_bytes();
    }
    nix::unistd::write(device, &message)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_server_is_offered_what_was_agreed_on() {
        let mut init = vec![0; 104];
        put_word(&mut init, IN_FLAGS, INIT_EXT | 0b1111);
        put_word(&mut init, IN_FLAGS2, HAS_RESEND2 | 0b11);
        let mut answer = vec![0; 80];
        put_word(&mut answer, OUT_FLAGS, 0b0110);
        put_word(&mut answer, OUT_FLAGS2, 0b10);
        let negotiated = Negotiated { init, answer };
        let masked = negotiated.masked();
        assert_eq!((word(&masked, IN_FLAGS), word(&masked, IN_FLAGS2)), (INIT_EXT | 0b0110, 0b10));
        assert!(negotiated.can_resend());
        assert!(!negotiated.without_resend().can_resend());
        assert!(!Negotiated::default().can_resend(), "damaged bytes are no reason to panic");
        assert_eq!(Negotiated::default().masked(), Vec::<u8>::new());
    }
}
