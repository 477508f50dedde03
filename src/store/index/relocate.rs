//! Where chunks lie is known to this copy of the store alone, so it changes without a record: when packs are
//! rewritten. What is written here reaches the disk with the next flush; until a checkpoint has it, the old
//! packs stay.

use std::collections::HashMap;

use rocksdb::WriteBatch;

use super::keys::meta;
use super::rows::{ChunkEntry, PackStat};
use super::{CHUNKS, Index};
use crate::store::chunks::pack::Location;
use crate::types::{ChunkId, PackId, Result};

/// What becomes of a chunk whose pack is rewritten.
#[derive(Clone, Copy, Debug)]
pub struct Relocation {
    /// The chunk.
    pub id: ChunkId,
    /// Where it lay; if it no longer does, nothing is done.
    pub from: Location,
    /// Where its copy lies; of a chunk without one only the entry may go.
    pub to: Option<Location>,
}

impl Index {
    /// Moves chunks to where their copies lie, and forgets those that nothing names and that are not `pinned`.
    /// The caller holds the commit lock, and the copies are durable. Returns how many stay where they were.
    ///
    /// # Errors
    /// From RocksDB; then nothing was changed.
    pub fn relocate(&self, changes: &[Relocation], pinned: &dyn Fn(&ChunkId) -> bool) -> Result<u64> {
        let mut state = self.state.write();
        let (mut batch, mut live) = (WriteBatch::default(), HashMap::<PackId, u64>::new());
        let (mut stay, mut dropped) = (0, Vec::new());
        let family = self.family(CHUNKS)?;
        for change in changes {
            let Some(entry) = self.chunk(&change.id)?.filter(|e| e.location == change.from) else { continue };
            let wanted = entry.refs > 0 || pinned(&change.id);
            match change.to {
                Some(to) if wanted => {
                    let moved = ChunkEntry { location: to, refs: entry.refs };
                    batch.put_cf(family, change.id.0, moved.encode());
                    if entry.refs > 0 {
                        for at in [change.from, to] {
                            let known = state.packs.get(&at.pack).map_or(0, |stat| stat.live_bytes);
                            live.entry(at.pack).or_insert(known);
                        }
                        // A copy is as long as what it was made of.
                        let bytes = to.frame_bytes();
                        live.entry(change.from.pack).and_modify(|n| *n = n.saturating_sub(bytes));
                        live.entry(to.pack).and_modify(|n| *n += bytes);
                    }
                }
                None if wanted => stay += 1,
                _ => {
                    batch.delete_cf(family, change.id.0);
                    dropped.push((change.id, entry));
                }
            }
        }
        for (pack, bytes) in &live {
            batch.put(meta::pack(*pack), bytes.to_le_bytes());
        }
        self.write(batch)?;
        for (pack, live_bytes) in live {
            state.packs.insert(pack, PackStat { live_bytes });
        }
        // Who pinned one of them before it went has seen it, and names it in a record that waits for the lock.
        let mut back = WriteBatch::default();
        for (id, entry) in dropped.into_iter().filter(|(id, _)| pinned(id)) {
            back.put_cf(family, id.0, entry.encode());
            stay += 1;
        }
        if !back.is_empty() {
            self.write(back)?;
        }
        Ok(stay)
    }

    /// Notes that nothing in the index lies in the pack any more: it may be deleted when no checkpoint is kept
    /// from before this. The caller holds the commit lock.
    ///
    /// # Errors
    /// From RocksDB.
    pub fn retire_pack(&self, pack: PackId) -> Result<()> {
        let mut state = self.state.write();
        let since = state.applied;
        let mut batch = WriteBatch::default();
        batch.put(meta::retired(pack), since.0.to_le_bytes());
        batch.delete(meta::pack(pack));
        self.write(batch)?;
        state.packs.remove(&pack);
        state.retired.insert(pack, since);
        Ok(())
    }

    /// Forgets a pack whose file is gone. The caller holds the commit lock.
    ///
    /// # Errors
    /// From RocksDB.
    pub fn pack_removed(&self, pack: PackId) -> Result<()> {
        let mut state = self.state.write();
        let mut batch = WriteBatch::default();
        batch.delete(meta::retired(pack));
        self.write(batch)?;
        state.retired.remove(&pack);
        Ok(())
    }
}
