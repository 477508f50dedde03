//! Range reads of the index that `apply` and the maintenance share.

use super::keys::{self, meta};
use super::rows::ChunkEntry;
use super::{CHUNKS, HEADS, HISTORY, Index, damaged, index_error};
use crate::store::model::Recipe;
use crate::types::{ChunkId, Ino, Lsn, Result, Timestamp, VolumeId};

/// A dead-list item: first point, end, head key, data bytes.
pub type Ended = (Lsn, Lsn, Vec<u8>, u64);

/// Reads a dead-list item.
pub(super) fn ended_item(key: &[u8], value: &[u8]) -> Result<Ended> {
    let (first, end, head) = keys::split_ended(key).ok_or_else(|| damaged(key, "bad key"))?;
    Ok((first, end, head, value.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))))
}

/// A cut whose blocks are still to be reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReapItem {
    /// The volume.
    pub vol: VolumeId,
    /// The inode, which may be gone.
    pub ino: Ino,
    /// The record that cut.
    pub cut: Lsn,
}

/// A block version that wants another representation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingBlock {
    /// The volume.
    pub vol: VolumeId,
    /// The inode.
    pub ino: Ino,
    /// The block.
    pub block: u64,
    /// The LSN at which the version began.
    pub since: Lsn,
}

impl Index {
    /// Up to `limit` keys that begin with `prefix`.
    pub(super) fn keys_with(&self, family: &str, prefix: &[u8], limit: usize) -> Result<Vec<Vec<u8>>> {
        self.keys_between(family, prefix, &keys::after_prefix(prefix), limit)
    }

    /// Up to `limit` keys in `from..below`.
    pub(super) fn keys_between(
        &self,
        family: &str,
        from: &[u8],
        below: &[u8],
        limit: usize,
    ) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        self.range(family, from, below, |key, _| {
            found.push(key.to_vec());
            Ok(found.len() < limit)
        })?;
        Ok(found)
    }

    /// Visits the dead-list items with `firsts.0 ≤ first ≤ firsts.1` and `ends.0 < end ≤ ends.1`, while
    /// `visit` says true.
    pub(super) fn visit_ended(
        &self,
        vol: VolumeId,
        firsts: (Lsn, Lsn),
        ends: (Lsn, Lsn),
        visit: impl FnMut(Ended) -> Result<bool>,
    ) -> Result<()> {
        self.visit_ended_from(&keys::ended_from(vol, firsts.0, ends.0.next()), vol, firsts.1, ends, visit)
    }

    pub(super) fn visit_ended_from(
        &self,
        from: &[u8],
        vol: VolumeId,
        last: Lsn,
        ends: (Lsn, Lsn),
        mut visit: impl FnMut(Ended) -> Result<bool>,
    ) -> Result<()> {
        let below = keys::ended_from(vol, last.next(), Lsn::ZERO);
        let mut it = self.iterate(HISTORY, from, &below)?;
        while let Some((key, value)) = it.item() {
            let item = ended_item(key, value)?;
            let (first, end, ..) = item;
            if end <= ends.0 || end > ends.1 {
                // Skip to the part of this bucket that counts, or of the next one.
                let bucket = if end > ends.1 { first.next() } else { first };
                it.seek(keys::ended_from(vol, bucket, ends.0.next()));
                continue;
            }
            if !visit(item)? {
                break;
            }
            it.next();
        }
        it.status().map_err(index_error)
    }

    /// The cuts still to be reaped, oldest first, at most `limit`.
    pub fn reap_items(&self, limit: usize) -> Result<Vec<ReapItem>> {
        let rows = self.keys_with("default", &[meta::REAP], limit)?;
        let item = |key: &Vec<u8>| {
            let (vol, [cut, ino]) = meta::split::<2>(key)?;
            Some(ReapItem { vol, ino: Ino(ino), cut: Lsn(cut) })
        };
        Ok(rows.iter().filter_map(item).collect())
    }

    /// Up to `limit` block versions that want another representation.
    pub fn pending_blocks(&self, limit: usize) -> Result<Vec<PendingBlock>> {
        let rows = self.keys_with("default", &[meta::PENDING], limit)?;
        let item = |key: &Vec<u8>| {
            let (vol, [ino, block, since]) = meta::split::<3>(key)?;
            Some(PendingBlock { vol, ino: Ino(ino), block, since: Lsn(since) })
        };
        Ok(rows.iter().filter_map(item).collect())
    }

    /// The inodes of `vol` that have no name and wait for the kernel to let go of them.
    pub fn orphans(&self, vol: VolumeId) -> Result<Vec<Ino>> {
        let rows = self.keys_with("default", &meta::of_volume(meta::ORPHAN, vol), usize::MAX)?;
        Ok(rows.iter().filter_map(|k| meta::split::<1>(k)).map(|(_, [ino])| Ino(ino)).collect())
    }

    /// The spans of inode numbers, each up to the one behind its last, that are being prepared or were left so.
    pub fn stages(&self, vol: VolumeId) -> Result<Vec<(Ino, Ino)>> {
        let mut found = Vec::new();
        self.rows(&meta::of_volume(meta::STAGE, vol), |key, value| {
            let from = meta::split::<1>(key).map(|(_, [from])| Ino(from));
            let to = value.first_chunk::<8>().map(|b| Ino(u64::from_le_bytes(*b)));
            found.push(from.zip(to).ok_or_else(|| damaged(key, "bad stage"))?);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Up to `limit` inodes with numbers in `from..to`.
    pub fn inodes_between(&self, vol: VolumeId, from: Ino, to: Ino, limit: usize) -> Result<Vec<Ino>> {
        let keys = self.keys_between(HEADS, &keys::inode(vol, from), &keys::inode(vol, to), limit)?;
        Ok(keys.iter().filter_map(|key| keys::ino_of(key)).collect())
    }

    /// The recipe of a block version, wherever it is now, with its inline bytes.
    pub fn block_version(&self, pending: &PendingBlock) -> Result<Option<Recipe>> {
        let key = keys::block(pending.vol, pending.ino, pending.block);
        let stored = match self.head(&key)?.filter(|s| s.since == pending.since) {
            Some(stored) => Some(stored),
            None => self
                .history_after(&key, pending.since)?
                .map(|(_, stored)| stored)
                .filter(|s| s.since == pending.since),
        };
        stored.map(|s| self.item(&key, &s)).transpose()
    }

    /// Where the head of a block began, and in how many pieces it is.
    pub fn block_pieces(&self, key: &[u8]) -> Result<Option<(Lsn, usize)>> {
        let Some(stored) = self.head(key)? else { return Ok(None) };
        let pieces = Recipe::piece_count(&stored.public).map_err(|e| damaged(key, e))?;
        Ok(Some((stored.since, pieces)))
    }

    /// What is known of a chunk.
    pub fn chunk(&self, id: &ChunkId) -> Result<Option<ChunkEntry>> {
        self.get(CHUNKS, &id.0)?.map(|v| ChunkEntry::decode(&v).map_err(|e| damaged(&id.0, e))).transpose()
    }

    /// What is known of several chunks, whose names are in order.
    pub(super) fn chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkEntry>>> {
        if let [one] = ids {
            return Ok(vec![self.chunk(one)?]);
        }
        let found = self.get_all(CHUNKS, ids.iter().map(|id| &id.0));
        let entry = |(value, id): (Result<Option<rocksdb::DBPinnableSlice<'_>>>, &ChunkId)| {
            value?.map(|v| ChunkEntry::decode(&v).map_err(|e| damaged(&id.0, e))).transpose()
        };
        found.into_iter().zip(ids).map(entry).collect()
    }

    /// Up to `limit` keys of time marks, oldest first, whose record lies before `floor`.
    pub(super) fn times_before(&self, floor: Lsn, limit: usize) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        self.rows(&[meta::TIME], |key, value| {
            let at = value.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
            if at < floor.0 {
                found.push(key.to_vec());
            }
            Ok(at < floor.0 && found.len() < limit)
        })?;
        Ok(found)
    }

    /// The last record committed before the clock last said `moment`; zero when there is none.
    pub fn lsn_at(&self, moment: Timestamp) -> Result<Lsn> {
        let told = {
            let state = self.state();
            state.meaning(moment, state.clock().max(moment)).told
        };
        self.lsn_before(told)
    }

    /// The last record committed before `time`, which never runs backwards, to a hundredth of a second; zero when
    /// there is none.
    pub fn lsn_before(&self, time: Timestamp) -> Result<Lsn> {
        let centi = time.as_nanos_saturating().div_euclid(10_000_000);
        let below = meta::time(centi);
        let from = [meta::TIME];
        self.counters.seeks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut it = self.db.raw_iterator();
        it.seek_for_prev(&below);
        let found = it.item().filter(|(key, _)| key.starts_with(&from));
        let lsn = found.and_then(|(_, value)| value.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)));
        it.status().map_err(index_error)?;
        Ok(Lsn(lsn.unwrap_or(0)))
    }
}
