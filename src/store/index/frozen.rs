//! The index at one record, for whoever reads all of it: rows and state agree, and writers go on meanwhile.

use super::keys::{self, meta};
use super::rows::{ChunkEntry, State, Stored};
use super::{CHUNKS, HEADS, HISTORY, Index, damaged, index_error};
use crate::store::model::{Item, Split};
use crate::types::{ChunkId, Ino, Lsn, Result, VolumeId};
use rocksdb::ReadOptions;

/// A version met by [`Frozen::versions`].
pub struct VersionRow<'a> {
    /// Its head key.
    pub key: &'a [u8],
    /// Where it ended; `None` for a head.
    pub end: Option<Lsn>,
    /// Itself.
    pub stored: Stored,
}

/// A row of the dead list.
pub struct EndedRow {
    /// The volume.
    pub vol: VolumeId,
    /// The first point that needed the version; zero when only the window did.
    pub first: Lsn,
    /// Where the version ended.
    pub end: Lsn,
    /// Its head key.
    pub head: Vec<u8>,
    /// Its bytes of file data.
    pub bytes: u64,
}

/// The index as it was when it was frozen. It keeps RocksDB from dropping what was replaced since, so it
/// should not live longer than one reading of everything.
pub struct Frozen<'a> {
    index: &'a Index,
    snapshot: rocksdb::Snapshot<'a>,
    /// The rows that are not versioned, as they were.
    pub state: State,
}

impl Index {
    /// Freezes the index at the last record applied.
    pub fn freeze(&self) -> Frozen<'_> {
        // A batch is written under this lock's other side, so nothing gets between the two.
        let state = self.state.read();
        Frozen { index: self, snapshot: self.db.snapshot(), state: state.clone() }
    }

    /// What one version adds to the digest.
    pub fn digest_of(row: &VersionRow<'_>) -> u128 {
        match row.end {
            None => row.stored.check,
            Some(end) => super::txn::history_check(row.stored.check, end),
        }
    }

    /// A version's item, after comparing its check; what `fsck` uses.
    pub fn verified_item<T: Item>(&self, row: &VersionRow<'_>) -> Result<T> {
        let item: T = self.item(row.key, &row.stored)?;
        let split: Split = item.split();
        if self.check(row.key, row.stored.since, &split) != row.stored.check {
            return Err(damaged(row.key, "its check does not match"));
        }
        Ok(item)
    }
}

impl Frozen<'_> {
    fn range(
        &self,
        family: &str,
        from: &[u8],
        below: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options.set_iterate_upper_bound(below);
        options.set_total_order_seek(true);
        // Reading everything once must not push out what programs use.
        options.fill_cache(false);
        let mut it = self.index.db.raw_iterator_cf_opt(self.index.family(family)?, options);
        it.seek(from);
        while let Some((key, value)) = it.item() {
            visit(key, value)?;
            it.next();
        }
        it.status().map_err(index_error)
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        self.index.db.get_cf_opt(self.index.family(family)?, key, &options).map_err(index_error)
    }

    /// Visits every version of every item: all heads, then all history entries.
    pub fn versions(&self, mut visit: impl FnMut(VersionRow<'_>) -> Result<()>) -> Result<()> {
        self.range(HEADS, &[], &[0xff; 64], |key, value| {
            let stored = Stored::decode(value).map_err(|e| damaged(key, e))?;
            visit(VersionRow { key, end: None, stored })
        })?;
        self.range(HISTORY, &[], &[0xff; 64], |key, value| {
            if keys::split_ended(key).is_some() {
                return Ok(());
            }
            let (head, end) = keys::split_history(key).ok_or_else(|| damaged(key, "bad key"))?;
            let stored = Stored::decode(value).map_err(|e| damaged(key, e))?;
            visit(VersionRow { key: head, end: Some(end), stored })
        })
    }

    /// Visits the whole dead list.
    pub fn ended(&self, mut visit: impl FnMut(EndedRow) -> Result<()>) -> Result<()> {
        for vol in self.state.volumes.keys() {
            let from = keys::ended_from(*vol, Lsn::ZERO, Lsn::ZERO);
            let below = keys::after_prefix(&keys::ended_from(*vol, Lsn::MAX, Lsn::MAX));
            self.range(HISTORY, &from, &below, |key, value| {
                let (first, end, head) = keys::split_ended(key).ok_or_else(|| damaged(key, "bad key"))?;
                let bytes = value.first_chunk::<8>().ok_or_else(|| damaged(key, "bad value"))?;
                visit(EndedRow { vol: *vol, first, end, head, bytes: u64::from_le_bytes(*bytes) })
            })?;
        }
        Ok(())
    }

    /// The version of `head` that ended at `end`.
    pub fn ended_version(&self, head: &[u8], end: Lsn) -> Result<Option<Stored>> {
        let key = keys::history(head, end);
        self.get(HISTORY, &key)?.map(|v| Stored::decode(&v).map_err(|e| damaged(&key, e))).transpose()
    }

    /// Visits every chunk.
    pub fn chunks(&self, mut visit: impl FnMut(ChunkId, ChunkEntry) -> Result<()>) -> Result<()> {
        self.range(CHUNKS, &[], &[0xff; 33], |key, value| {
            let id = ChunkId(*key.first_chunk().ok_or_else(|| damaged(key, "bad key"))?);
            visit(id, ChunkEntry::decode(value).map_err(|e| damaged(key, e))?)
        })
    }

    /// What was known of a chunk.
    pub fn chunk(&self, id: &ChunkId) -> Result<Option<ChunkEntry>> {
        self.get(CHUNKS, &id.0)?.map(|v| ChunkEntry::decode(&v).map_err(|e| damaged(&id.0, e))).transpose()
    }

    /// Visits the blocks that waited for another representation: volume, inode, block, birth.
    pub fn pending(&self, mut visit: impl FnMut(VolumeId, [u64; 3]) -> Result<()>) -> Result<()> {
        self.range("default", &[meta::PENDING], &[meta::PENDING + 1], |key, _| {
            let (vol, numbers) = meta::split::<3>(key).ok_or_else(|| damaged(key, "bad key"))?;
            visit(vol, numbers)
        })
    }

    /// Visits the spans of inode numbers that are being prepared: volume, first number, the one behind the last.
    pub fn stages(&self, mut visit: impl FnMut(VolumeId, u64, u64) -> Result<()>) -> Result<()> {
        self.range("default", &[meta::STAGE], &[meta::STAGE + 1], |key, value| {
            let (vol, [from]) = meta::split::<1>(key).ok_or_else(|| damaged(key, "bad key"))?;
            let to = value.first_chunk::<8>().ok_or_else(|| damaged(key, "bad stage"))?;
            visit(vol, from, u64::from_le_bytes(*to))
        })
    }

    /// Visits the inodes that are being erased.
    pub fn purges(&self, mut visit: impl FnMut(VolumeId, Ino) -> Result<()>) -> Result<()> {
        self.range("default", &[meta::PURGE], &[meta::PURGE + 1], |key, value| {
            let (vol, [ino]) = meta::split::<1>(key).ok_or_else(|| damaged(key, "bad key"))?;
            if !value.is_empty() {
                return Err(damaged(key, "bad value"));
            }
            visit(vol, Ino(ino))
        })
    }

    /// Reads every row of every family, so that RocksDB compares all its checksums. Returns the bytes.
    pub fn read_all(&self, mut each: impl FnMut(u64) -> Result<()>) -> Result<u64> {
        let mut total = 0;
        for family in super::FAMILIES {
            self.range(family, &[], &[0xff; 64], |key, value| {
                let bytes = (key.len() + value.len()) as u64;
                total += bytes;
                each(bytes)
            })?;
        }
        Ok(total)
    }
}
