//! What only `fsck --repair` does to the index: counting chunks as lost, and computing anew what `apply`
//! derives. Nobody else has the store open; nothing reaches the disk before the next flush, and then all of it.

use std::collections::HashMap;

use rocksdb::WriteBatch;

use super::frozen::VersionRow;
use super::keys::{self, Family, meta};
use super::rows::{ChunkEntry, PackStat, State};
use super::txn::wants_rebind;
use super::{CHUNKS, HEADS, HISTORY, Index, damaged, index_error};
use crate::store::chunks::pack::Location;
use crate::store::model::{Inode, Recipe};
use crate::types::{ChunkId, Ino, Lsn, Result, VolumeId};

/// Rows written in one batch.
const BATCH_ROWS: usize = 10_000;

/// A batch that is written whenever it has grown.
struct Batches<'a> {
    index: &'a Index,
    batch: WriteBatch,
}

impl Batches<'_> {
    fn put(&mut self, family: &str, key: &[u8], value: &[u8]) -> Result<()> {
        self.batch.put_cf(self.index.family(family)?, key, value);
        self.write_if(BATCH_ROWS)
    }

    fn delete(&mut self, family: &str, key: &[u8]) -> Result<()> {
        self.batch.delete_cf(self.index.family(family)?, key);
        self.write_if(BATCH_ROWS)
    }

    fn write_if(&mut self, rows: usize) -> Result<()> {
        if self.batch.len() < rows {
            return Ok(());
        }
        let mut options = rocksdb::WriteOptions::default();
        options.disable_wal(true);
        self.index.db.write_opt(std::mem::take(&mut self.batch), &options).map_err(index_error)
    }
}

/// What all versions come to, for [`Index::recount`].
#[derive(Default)]
struct Count {
    digest: u128,
    references: HashMap<ChunkId, u64>,
    /// Of each volume: live and history bytes, inodes.
    volumes: HashMap<VolumeId, [u64; 3]>,
    /// Of each live inode: bytes in its blocks, and what it says itself.
    data_bytes: HashMap<(VolumeId, Ino), (u64, u64)>,
}

impl Index {
    /// Counts these chunks as lost: reading them goes on failing, and who stores the same bytes again brings
    /// them back instead of sharing what cannot be read.
    ///
    /// # Errors
    /// From RocksDB.
    pub fn give_up(&self, chunks: &[ChunkId]) -> Result<()> {
        let mut state = self.state.write();
        let mut batches = Batches { index: self, batch: WriteBatch::default() };
        for id in chunks {
            let Some(entry) = self.chunk(id)?.filter(|e| !e.location.is_lost()) else { continue };
            if entry.refs > 0 {
                let stat = state.packs.entry(entry.location.pack).or_default();
                stat.live_bytes = stat.live_bytes.saturating_sub(entry.location.frame_bytes());
                let live = stat.live_bytes;
                batches.put("default", &meta::pack(entry.location.pack), &live.to_le_bytes())?;
            }
            let lost = ChunkEntry { location: Location::LOST, refs: entry.refs };
            batches.put(CHUNKS, &id.0, &lost.encode())?;
        }
        batches.write_if(1)
    }

    /// Computes everything anew that follows from the versions: digest, data bytes, counters, references,
    /// live bytes of packs, dead list and pending rows.
    ///
    /// # Errors
    /// From RocksDB, and a version that does not decode: then the index is to be rebuilt instead.
    pub fn recount(&self) -> Result<()> {
        let mut count = self.count()?;
        let mut batches = Batches { index: self, batch: WriteBatch::default() };
        self.mend_data_bytes(&mut count, &mut batches)?;
        self.mend_chunks(&count, &mut batches)?;
        self.mend_lists(&mut batches)?;
        let mut state = self.state.write();
        state.digest = count.digest;
        for (vol, volume) in &mut state.volumes {
            let [live, history, inodes] = count.volumes.get(vol).copied().unwrap_or_default();
            (volume.live_bytes, volume.history_bytes, volume.inodes) = (live, history, inodes);
        }
        self.write_state(&state, &mut batches)?;
        batches.write_if(1)
    }

    fn count(&self) -> Result<Count> {
        let mut count = Count::default();
        self.freeze().versions(|row| {
            count.digest = count.digest.wrapping_add(Index::digest_of(&row));
            let vol = keys::volume_of(row.key);
            let ino = keys::ino_of(row.key).unwrap_or_default();
            let [live, history, inodes] = count.volumes.entry(vol).or_default();
            match keys::family_of(row.key) {
                Some(Family::Block) => {
                    let recipe: Recipe = self.verified_item(&row)?;
                    let bytes = recipe.data_bytes();
                    match row.end {
                        None => {
                            *live += bytes;
                            count.data_bytes.entry((vol, ino)).or_default().0 += bytes;
                        }
                        Some(_) => *history += bytes,
                    }
                    for id in recipe.chunks() {
                        *count.references.entry(*id).or_default() += 1;
                    }
                }
                Some(Family::Inode) if row.end.is_none() => {
                    *inodes += 1;
                    let inode: Inode = self.verified_item(&row)?;
                    count.data_bytes.entry((vol, ino)).or_default().1 = inode.data_bytes;
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(count)
    }

    /// The version stays the same one; its check and with it the digest change.
    fn mend_data_bytes(&self, count: &mut Count, batches: &mut Batches<'_>) -> Result<()> {
        for ((vol, ino), (found, kept)) in &count.data_bytes {
            let key = keys::inode(*vol, *ino);
            let Some(old) = self.head(&key)?.filter(|_| found != kept) else { continue };
            let mut inode: Inode = self.item(&key, &old)?;
            inode.data_bytes = *found;
            let new = self.stored(&key, old.since, crate::store::model::Item::split(&inode))?;
            count.digest = count.digest.wrapping_sub(old.check).wrapping_add(new.check);
            batches.put(HEADS, &key, &new.encode())?;
        }
        Ok(())
    }

    fn mend_chunks(&self, count: &Count, batches: &mut Batches<'_>) -> Result<()> {
        let mut unknown = count.references.clone();
        let mut live: HashMap<_, u64> = HashMap::new();
        self.freeze().chunks(|id, entry| {
            let refs = unknown.remove(&id).unwrap_or(0);
            if refs > 0 && !entry.location.is_lost() {
                *live.entry(entry.location.pack).or_default() += entry.location.frame_bytes();
            }
            if refs != entry.refs {
                batches.put(CHUNKS, &id.0, &ChunkEntry { refs, ..entry }.encode())?;
            }
            Ok(())
        })?;
        for (id, refs) in unknown {
            batches.put(CHUNKS, &id.0, &ChunkEntry { location: Location::LOST, refs }.encode())?;
        }
        let mut state = self.state.write();
        for pack in state.packs.keys().filter(|pack| !live.contains_key(pack)).copied().collect::<Vec<_>>() {
            live.insert(pack, 0);
        }
        for (pack, live_bytes) in live {
            state.packs.insert(pack, PackStat { live_bytes });
            batches.put("default", &meta::pack(pack), &live_bytes.to_le_bytes())?;
        }
        Ok(())
    }

    /// Makes dead list and pending rows anew.
    fn mend_lists(&self, batches: &mut Batches<'_>) -> Result<()> {
        let frozen = self.freeze();
        let deleted = |vol: &VolumeId| frozen.state.volumes.get(vol).is_none_or(|v| v.deleted);
        frozen.ended(|row| match deleted(&row.vol) {
            true => Ok(()),
            false => batches.delete(HISTORY, &keys::ended(row.vol, row.first, row.end, &row.head)),
        })?;
        frozen.pending(|vol, [ino, block, since]| match deleted(&vol) {
            true => Ok(()),
            false => batches.delete("default", &meta::pending(vol, Ino(ino), block, Lsn(since))),
        })?;
        frozen.versions(|row| {
            let vol = keys::volume_of(row.key);
            let Some(volume) = frozen.state.volumes.get(&vol).filter(|v| !v.deleted) else { return Ok(()) };
            let recipe = self.block_recipe(&row)?;
            let block = recipe.as_ref().filter(|r| wants_rebind(r)).and_then(|_| keys::block_of(row.key));
            if let Some(block) = block {
                let ino = keys::ino_of(row.key).unwrap_or_default();
                batches.put("default", &meta::pending(vol, ino, block, row.stored.since), &[])?;
            }
            let Some(end) = row.end else { return Ok(()) };
            // A version that nothing needs stands with the window, and forgetting takes it from there.
            let first = volume.first_point(row.stored.since, end).unwrap_or(Lsn::ZERO);
            let bytes = recipe.map_or(0, |r| r.data_bytes());
            batches.put(HISTORY, &keys::ended(vol, first, end, row.key), &bytes.to_le_bytes())
        })
    }

    fn block_recipe(&self, row: &VersionRow<'_>) -> Result<Option<Recipe>> {
        match keys::family_of(row.key) {
            Some(Family::Block) => {
                Recipe::join_public(&row.stored.public).map(Some).map_err(|e| damaged(row.key, e))
            }
            _ => Ok(None),
        }
    }

    fn write_state(&self, state: &State, batches: &mut Batches<'_>) -> Result<()> {
        for (vol, volume) in &state.volumes {
            let key = meta::volume(*vol);
            let sealed = self.sealer.seal(&key, &volume.encode()).map_err(index_error)?;
            batches.put("default", &key, &sealed)?;
        }
        batches.put("default", meta::STATE, &state.encode())
    }
}

#[cfg(test)]
impl Index {
    /// Makes derived rows wrong, for tests of those who find and mend it. Returns how many.
    pub fn falsify(&self) -> usize {
        let mut batches = Batches { index: self, batch: WriteBatch::default() };
        let frozen = self.freeze();
        let (mut chunk, mut ended, mut inode) = (None, None, None);
        frozen
            .chunks(|id, entry| {
                chunk = Some((id, entry));
                Ok(())
            })
            .unwrap();
        frozen
            .ended(|row| {
                ended = Some(keys::ended(row.vol, row.first, row.end, &row.head));
                Ok(())
            })
            .unwrap();
        frozen
            .versions(|row| {
                if keys::family_of(row.key) == Some(Family::Inode) && row.end.is_none() {
                    inode = Some((row.key.to_vec(), row.stored.clone()));
                }
                Ok(())
            })
            .unwrap();
        let (id, entry) = chunk.unwrap();
        batches.put(CHUNKS, &id.0, &ChunkEntry { refs: entry.refs + 3, ..entry }.encode()).unwrap();
        batches.delete(HISTORY, &ended.unwrap()).unwrap();
        let (key, stored) = inode.unwrap();
        let mut wrong: Inode = self.item(&key, &stored).unwrap();
        wrong.data_bytes += 7;
        let split = crate::store::model::Item::split(&wrong);
        batches.put(HEADS, &key, &self.stored(&key, stored.since, split).unwrap().encode()).unwrap();
        batches.put("default", &meta::pending(keys::volume_of(&key), Ino(77), 0, Lsn(1)), &[]).unwrap();
        let mut state = self.state.write();
        state.digest ^= 1;
        for volume in state.volumes.values_mut() {
            (volume.live_bytes, volume.history_bytes, volume.inodes) =
                (volume.live_bytes + 1, volume.history_bytes + 1, volume.inodes + 1);
        }
        let pack = entry.location.pack;
        state.packs.entry(pack).or_default().live_bytes += 11;
        self.write_state(&state, &mut batches).unwrap();
        batches.write_if(1).unwrap();
        // Chunk, dead list, data bytes, pending, digest, three counters, pack.
        9
    }
}
