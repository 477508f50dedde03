//! Ranges of a file: removing (truncate, punch), allocating, finding data and holes.

use parking_lot::RwLockWriteGuard;

use super::cell::{Cell, Live};
use super::policy::burst::Kind;
use super::{FsError, FsResult, Volume, Writer};
use crate::store::model::{Edit, FileKind, Piece, RequestId, Source};
use crate::types::limits::{
    BLOCK_BYTES, CUTS_MAX, DIRECT_REMOVE_BLOCKS_MAX, FILE_BYTES_MAX, SWEEP_ITEMS_MAX,
};
use crate::types::{Ino, Lsn};

/// What `fallocate` should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Make sure that the range can be written; with `keep_size` without growing the file.
    Reserve {
        /// Whether the size stays.
        keep_size: bool,
    },
    /// Make the range a hole; the size stays.
    Punch,
    /// Make the range read as zeros; with `keep_size` without growing the file.
    Zero {
        /// Whether the size stays.
        keep_size: bool,
    },
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte of data.
    Data,
    /// The next byte of a hole; the end of the file counts as one.
    Hole,
}

impl Volume {
    /// Adds the edits that turn `from..to` of the committed bytes into a hole. `committed` is the end of
    /// what the index may hold. The caller holds the cell's flush lock and state.
    pub(super) fn remove_range(
        &self,
        ino: Ino,
        from: u64,
        to: u64,
        committed: u64,
        edits: &mut Vec<Edit>,
    ) -> FsResult<()> {
        let to_end = to >= committed;
        let to = to.min(committed);
        if from >= to {
            return Ok(());
        }
        let first_whole = from.div_ceil(BLOCK_BYTES);
        let last_whole = if to_end { to.div_ceil(BLOCK_BYTES) } else { to / BLOCK_BYTES };
        let hole = |block: u64, lo: u64, hi: u64| Edit::PatchBlock {
            vol: self.vol,
            ino,
            block,
            offset: (lo - block * BLOCK_BYTES) as u32,
            pieces: vec![Piece::hole((hi - lo) as u32)],
        };
        if !from.is_multiple_of(BLOCK_BYTES) {
            let block = from / BLOCK_BYTES;
            let end = if to_end { (block + 1) * BLOCK_BYTES } else { to.min((block + 1) * BLOCK_BYTES) };
            edits.push(hole(block, from, end));
        }
        if !to_end && !to.is_multiple_of(BLOCK_BYTES) && to / BLOCK_BYTES >= first_whole {
            edits.push(hole(to / BLOCK_BYTES, to / BLOCK_BYTES * BLOCK_BYTES, to));
        }
        if first_whole < last_whole {
            self.remove_blocks(ino, first_whole, last_whole, edits)?;
        }
        Ok(())
    }

    /// Adds the edit that ends whole blocks: directly if few, else by a cut that is reaped later.
    fn remove_blocks(&self, ino: Ino, from: u64, to: u64, edits: &mut Vec<Edit>) -> FsResult<()> {
        if to - from <= DIRECT_REMOVE_BLOCKS_MAX {
            edits.push(Edit::DropBlocks { vol: self.vol, ino, from, to });
            return Ok(());
        }
        // An inode carries few cuts; the oldest is worked off here when there is no room for another.
        loop {
            let Some(inode) = self.view(None).inode(ino)? else { break };
            match inode.item.cuts.first() {
                Some(cut) if inode.item.cuts.len() >= CUTS_MAX => {
                    let items = SWEEP_ITEMS_MAX as u32;
                    self.commit(vec![Edit::Reap { vol: self.vol, ino, cut: cut.lsn, items }], None)?;
                }
                _ => break,
            }
        }
        edits.push(Edit::Cut { vol: self.vol, ino, from, to });
        Ok(())
    }

    /// The state of a regular file with everything committed that was written before. The caller holds the
    /// cell's flush lock.
    pub(super) fn settled_file<'c>(&self, cell: &'c Cell) -> FsResult<RwLockWriteGuard<'c, Live>> {
        self.shared.flush_below(self.vol, cell, u64::MAX)?;
        let live = cell.state.write();
        match live.attrs.kind {
            _ if live.gone => Err(FsError::NotFound),
            FileKind::File => Ok(live),
            _ => Err(FsError::Invalid("not a regular file")),
        }
    }

    /// `fallocate(2)`. Space is not reserved: a full disk shows when data is written.
    ///
    /// # Errors
    /// [`FsError::TooLarge`], [`FsError::NotFound`], [`FsError::Invalid`] for what is not a file.
    pub fn allocate(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        how: Allocate,
        writer: Writer,
        request: Option<RequestId>,
    ) -> FsResult<()> {
        self.check_writable()?;
        let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::TooLarge)?;
        if len == 0 {
            return Err(FsError::Invalid("an empty range"));
        }
        let _gate = self.enter();
        let cell = self.cell(ino)?;
        let _flush = cell.flush.lock();
        let mut live = self.settled_file(&cell)?;
        let now = self.shared.now();
        let mut attrs = live.attrs.clone();
        let (grows, clears) = match how {
            Allocate::Reserve { keep_size } => (!keep_size, false),
            Allocate::Punch => (false, true),
            Allocate::Zero { keep_size } => (!keep_size, true),
        };
        if grows {
            attrs.size = attrs.size.max(end);
        }
        let mut edits = Vec::new();
        let mut held = 0;
        if clears {
            held = self.inode(None, ino)?.item.data_bytes;
            self.remove_range(ino, offset, end, live.committed_size, &mut edits)?;
        }
        writer.changed(&mut attrs, now);
        edits.insert(0, Edit::PutInode { vol: self.vol, ino, attrs: attrs.clone() });
        self.shared.store.defragment(&edits)?;
        self.commit(edits, request)?;
        if clears {
            let cleared = end.min(live.committed_size).saturating_sub(offset).min(held);
            self.shared.keeping.alarms.add(self.vol, Kind::OverwrittenBytes, cleared);
        }
        live.committed_size = attrs.size;
        live.attrs = attrs;
        Ok(())
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] at or behind the end, or when no data follows.
    pub fn seek(&self, at: Option<Lsn>, ino: Ino, offset: u64, what: Seek) -> FsResult<u64> {
        if at.is_none() {
            self.commit_file(ino)?;
        }
        let inode = self.inode(at, ino)?.item;
        let size = inode.attrs.size;
        if offset >= size {
            return Err(FsError::NoSuchOffset);
        }
        // Walks data runs in order; `hole` is where the data that covers `offset` ends so far.
        let (mut data, mut hole) = (None, offset);
        self.view(at).blocks(&inode, ino, offset / BLOCK_BYTES, |block, recipe| {
            let mut start = block * BLOCK_BYTES;
            for piece in recipe.pieces() {
                let end = start + u64::from(piece.len);
                if piece.source != Source::Hole && end > offset {
                    data.get_or_insert(start.max(offset));
                    if start > hole {
                        return Ok(false);
                    }
                    hole = end;
                }
                start = end;
            }
            Ok(what == Seek::Hole && start.max(block * BLOCK_BYTES) <= hole || data.is_none())
        })?;
        match what {
            Seek::Data => data.filter(|d| *d < size).ok_or(FsError::NoSuchOffset),
            Seek::Hole => Ok(hole.min(size)),
        }
    }
}
