//! Answers, out of results.

use std::time::Duration;

use fuser::{Errno, Generation, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::convert::file_attr;
use super::errno::errno;
use super::inner::{FOREVER, NEVER};
use super::nodeid::Node;
use crate::volume::{Attr, FsResult};

pub(super) fn answer_entry(reply: ReplyEntry, result: FsResult<(Node, Attr, Duration)>) {
    match result {
        Ok((node, attr, keep)) => {
            let generation = Generation(attr.attrs.generation);
            reply.entry_with_ttls(&keep, &keep, &file_attr(node, &attr), generation);
        }
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn answer_attr(reply: ReplyAttr, result: FsResult<(Node, Attr)>) {
    match result {
        Ok((node, attr)) => {
            let keep = if matches!(node, Node::Snapshots(_)) { NEVER } else { FOREVER };
            let mut file = file_attr(node, &attr);
            file.ino = INodeNo(node.st_ino());
            reply.attr(&keep, &file);
        }
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn answer_data(reply: ReplyData, result: FsResult<Vec<u8>>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn answer_empty<T>(reply: ReplyEmpty, result: FsResult<T>) {
    match result {
        Ok(_) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn answer_xattr(reply: ReplyXattr, size: u32, result: FsResult<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(&e)),
    }
}
