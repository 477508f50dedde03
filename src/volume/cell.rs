//! Cells: the in-memory state of inodes that are being changed. An inode without a cell is exactly what the
//! index says. A cell goes away as soon as it holds nothing that the index does not.

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::extents::Extents;
use crate::arena::{Recovered, Slot};
use crate::store::model::{Attrs, FileKind};
use crate::types::{Ino, Timestamp, VolumeId};

/// Shards of the map, so that unrelated files do not wait for one lock.
const SHARDS: usize = 64;

/// The present state of an inode.
#[derive(Debug)]
pub struct Live {
    /// Its attributes; size and times may be ahead of the index.
    pub attrs: Attrs,
    /// The size that the index has: data up to here is committed, or a hole.
    pub committed_size: u64,
    /// Written, not being sealed yet.
    pub dirty: Extents,
    /// Being sealed; what was written since lies over it.
    pub sealing: Arc<Vec<Slot>>,
    /// When the oldest uncommitted change was made.
    pub dirty_since: Option<Instant>,
    /// The inode is gone; nothing may be committed for it any more.
    pub gone: bool,
    /// Why the last background commit failed, to be told at the next fsync.
    pub failure: Option<String>,
}

impl Live {
    fn new(attrs: Attrs) -> Live {
        Live {
            committed_size: attrs.size,
            attrs,
            dirty: Extents::default(),
            sealing: Arc::default(),
            dirty_since: None,
            gone: false,
            failure: None,
        }
    }

    /// Whether the index lacks something.
    pub fn is_dirty(&self) -> bool {
        self.dirty_since.is_some()
    }

    /// Uncommitted bytes.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty.bytes() + self.sealing.iter().map(|slot| slot.len() as u64).sum::<u64>()
    }

    /// The attributes as a record may state them now: a size never covers bytes that are not committed.
    pub fn recordable(&self) -> Attrs {
        let mut attrs = self.attrs.clone();
        if self.attrs.kind == FileKind::File {
            attrs.size = self.committed_size;
        }
        attrs
    }

    /// Whether any byte of `from..to` is uncommitted.
    pub fn touches(&self, from: u64, to: u64) -> bool {
        self.dirty.touches(from, to) || self.sealing.iter().any(|slot| slot.start() < to && slot.end() > from)
    }

    /// Takes up bytes that an earlier server left, which lie beneath what is here already. Their time counts
    /// if nothing that was recorded later stated one.
    pub fn take_up(&mut self, recovered: Recovered, committed: Timestamp) {
        let (owner, slot) = (recovered.owner, ManuallyDrop::into_inner(recovered.slot));
        self.attrs.size = self.attrs.size.max(slot.end());
        if owner.time > committed {
            self.attrs.mtime = self.attrs.mtime.max(owner.time);
            self.attrs.ctime = self.attrs.ctime.max(owner.time);
            if owner.kill {
                super::attr::kill_privileges(&mut self.attrs);
            }
        }
        self.dirty.put_back(slot);
        self.dirty_since.get_or_insert_with(Instant::now);
    }
}

/// An inode that is being changed.
///
/// Lock order: `flush` before `state`; `state`s of several cells in the order of their inode numbers; both
/// before the store's append lock.
#[derive(Debug)]
pub struct Cell {
    /// Which inode.
    pub ino: Ino,
    /// Held while its data is being sealed and committed, and by whatever must not meet that.
    pub flush: Mutex<()>,
    /// Its state.
    pub state: RwLock<Live>,
}

type Key = (VolumeId, Ino);

/// All cells of a store.
#[derive(Debug)]
pub struct Cells {
    shards: Vec<Mutex<HashMap<Key, Arc<Cell>>>>,
}

impl Cells {
    /// No cells.
    pub fn new() -> Cells {
        Cells { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, ino: Ino) -> Option<&Mutex<HashMap<Key, Arc<Cell>>>> {
        self.shards.get(ino.0 as usize % SHARDS)
    }

    /// The cell, if there is one.
    pub fn get(&self, vol: VolumeId, ino: Ino) -> Option<Arc<Cell>> {
        self.shard(ino)?.lock().get(&(vol, ino)).cloned()
    }

    /// The cell, made from `load` if there is none. `load` reads the index under the shard's lock, so that a
    /// cell never starts from attributes older than the cell before it left.
    pub fn get_or_load<E>(
        &self,
        vol: VolumeId,
        ino: Ino,
        load: impl FnOnce() -> Result<Attrs, E>,
    ) -> Result<Option<Arc<Cell>>, E> {
        let Some(shard) = self.shard(ino) else { return Ok(None) };
        let mut cells = shard.lock();
        if let Some(cell) = cells.get(&(vol, ino)) {
            return Ok(Some(cell.clone()));
        }
        let live = Live::new(load()?);
        let cell = Arc::new(Cell { ino, flush: Mutex::default(), state: RwLock::new(live) });
        cells.insert((vol, ino), cell.clone());
        Ok(Some(cell))
    }

    /// Gives a cell back: it goes away if nobody else holds it and the index has all of it.
    pub fn give_back(&self, vol: VolumeId, cell: Arc<Cell>) {
        let ino = cell.ino;
        let Some(shard) = self.shard(ino) else { return };
        let mut cells = shard.lock();
        // The map's and ours. Nobody can take another one while the shard is locked.
        if Arc::strong_count(&cell) <= 2 && !cell.state.read().is_dirty() {
            cells.remove(&(vol, ino));
        }
    }

    /// The cells that hold uncommitted changes.
    pub fn dirty(&self) -> Vec<(VolumeId, Arc<Cell>)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            // Collected first: a cell's state must not be waited for under a shard's lock.
            let cells: Vec<_> = shard.lock().iter().map(|((vol, _), cell)| (*vol, cell.clone())).collect();
            for (vol, cell) in cells {
                if cell.state.read().is_dirty() {
                    found.push((vol, cell));
                } else {
                    self.give_back(vol, cell);
                }
            }
        }
        found
    }
}

impl Default for Cells {
    fn default() -> Cells {
        Cells::new()
    }
}
