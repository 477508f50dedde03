//! What the holder does with requests when no server lives long enough to answer them: they fail, so that no
//! program waits for ever.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::mount::refuse;

/// Bytes of the largest request: 1 MiB and its header, rounded up generously.
const REQUEST_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Requests that have no answer: FORGET, INTERRUPT, BATCH_FORGET (kernel, `fuse.h`).
const UNANSWERED: [u32; 3] = [2, 36, 42];
/// `FUSE_DESTROY`, the last request of a connection.
const DESTROY: u32 = 38;

/// Reads one request, which must be there, and refuses it with EIO. False when the connection has ended.
pub(super) fn refuse_one(device: &OwnedFd, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(REQUEST_BYTES_MAX, 0);
    let len = match nix::unistd::read(device, buffer) {
        Ok(len) => len,
        // An interrupted request, or somebody else was first.
        Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => return true,
        Err(_) => return false,
    };
    let request = buffer.get(..len).unwrap_or_default();
    // fuse_in_header: length, operation, number.
    let operation = request.get(4..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b));
    let unique = request.get(8..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b));
    if UNANSWERED.contains(&operation) {
        return true;
    }
    let errno = if operation == DESTROY { Errno::UnknownErrno } else { Errno::EIO };
    // One that was given up meanwhile is not known any more.
    let _ = refuse(device, unique, errno);
    operation != DESTROY
}
