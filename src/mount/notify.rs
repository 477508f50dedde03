//! Messages to the kernel that answer nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use super::nodeid::Node;
use crate::types::Ino;

/// `FUSE_NOTIFY_INVAL_INODE` of the kernel's `fuse.h`.
const NOTIFY_INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INVAL_ENTRY`.
const NOTIFY_INVAL_ENTRY: i32 = 3;

/// Has the kernel forget the attributes of a node. With this negative offset it touches no page, so it never
/// waits for a request that this server still owes.
///
/// # Errors
/// `ENOENT` when the kernel does not hold the node.
pub(super) fn forget_attributes(device: &File, node: u64) -> io::Result<()> {
    invalidate_inode(device, node, -1)
}

fn invalidate_inode(device: impl AsFd, node: u64, offset: i64) -> io::Result<()> {
    let mut message = Vec::with_capacity(40);
    message.extend_from_slice(&40u32.to_ne_bytes());
    message.extend_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(&node.to_ne_bytes());
    message.extend_from_slice(&offset.to_ne_bytes());
    message.extend_from_slice(&0i64.to_ne_bytes());
    write(device, &message)
}

/// One message is one write(2).
fn write(device: impl AsFd, message: &[u8]) -> io::Result<()> {
    nix::unistd::write(device, message)?;
    Ok(())
}

/// Has the kernel forget the attributes of a live inode, as [`forget_entry`] does a name.
///
/// # Errors
/// As [`forget_entry`].
pub fn forget_inode(device: impl AsFd, ino: Ino) -> io::Result<()> {
    invalidate_inode(device, Node::Live(ino).id(), -1)
}

/// Has the kernel forget the attributes and all pages of a node. This waits for pages that are being read, so it is
/// as little for a server as [`forget_entry`].
///
/// # Errors
/// As [`forget_entry`].
pub fn forget_pages(device: impl AsFd, node: u64) -> io::Result<()> {
    invalidate_inode(device, node, 0)
}

/// Has the kernel forget what a name in a live directory leads to, and all that it knows beneath.
///
/// This waits for the lock of the directory, which a program may hold that waits for an answer about it. So it is
/// not for a process that owes such answers: only the holder does it, and on a thread that nothing else needs.
///
/// # Errors
/// `ENOENT` when the kernel knows nothing of that name, which is as good.
pub fn forget_entry(device: impl AsFd, dir: Ino, name: &[u8]) -> io::Result<()> {
    forget_name(device, Node::Live(dir).id(), name)
}

/// As [`forget_entry`], of a directory by its node, which may be one of the past.
///
/// # Errors
/// As [`forget_entry`].
pub fn forget_name(device: impl AsFd, dir: u64, name: &[u8]) -> io::Result<()> {
    let len = 16 + 16 + name.len() + 1;
    let mut message = Vec::with_capacity(len);
    message.extend_from_slice(&(len as u32).to_ne_bytes());
    message.extend_from_slice(&NOTIFY_INVAL_ENTRY.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(&dir.to_ne_bytes());
    message.extend_from_slice(&(name.len() as u32).to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(name);
    message.push(0);
    write(device, &message)
}
