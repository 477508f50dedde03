//! Messages to the kernel that answer nothing.

use std::fs::File;
use std::io::{self, Write};

/// `FUSE_NOTIFY_INVAL_INODE` of the kernel's `fuse.h`.
const NOTIFY_INVAL_INODE: i32 = 2;

/// Has the kernel forget the attributes of a node. With this negative offset it touches no page, so it never
/// waits for a request that this server still owes.
///
/// # Errors
/// `ENOENT` when the kernel does not hold the node.
pub(super) fn forget_attributes(mut device: &File, node: u64) -> io::Result<()> {
    let mut message = Vec::with_capacity(40);
    message.extend_from_slice(&40u32.to_ne_bytes());
    message.extend_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(&node.to_ne_bytes());
    message.extend_from_slice(&(-1i64).to_ne_bytes());
    message.extend_from_slice(&0i64.to_ne_bytes());
    device.write_all(&message)
}
