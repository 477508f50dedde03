//! Tests of the journal as a whole: the recovery table row by row, every crash, concurrent syncs.

mod crash;
mod cut;
mod live;
mod table;

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::types::disk::faulty;
use crate::types::{OsDisk, Term};

pub const STORE: StoreUuid = StoreUuid([0x5a; 16]);

pub fn options(segment_bytes: u64) -> JournalOptions {
    JournalOptions { segment_bytes, ..JournalOptions::default() }
}

/// A body that differs for every record, `len` bytes long.
pub fn body(n: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (n.wrapping_mul(31).wrapping_add(i * 7) % 251) as u8 + 1).collect()
}

pub fn open(dir: &Path, segment_bytes: u64) -> (Journal, RecoveryReport) {
    Journal::open(Arc::new(OsDisk), dir, STORE, options(segment_bytes)).unwrap()
}

pub fn all(journal: &Journal) -> Vec<Record> {
    journal.read_from(journal.oldest()).unwrap().map(Result::unwrap).collect()
}
