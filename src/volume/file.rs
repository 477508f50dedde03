//! File contents: reading and writing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{FsError, FsResult, Volume, Writer};
use crate::arena::Owner;
use crate::store::Store;
use crate::store::model::{FileKind, Inode, Piece, Recipe, Source};
use crate::types::limits::{BLOCK_BYTES, FILE_BYTES_MAX};
use crate::types::{ChunkId, Error, Ino, Lsn};

/// Larger writes are carried out in parts of this size; the kernel never sends larger ones.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// How often a write makes room for itself before it is given up.
const ROOM_TRIES: usize = 8;

impl Volume {
    /// Up to `len` bytes of a file from `offset` on; fewer only at its end.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDir`]; [`Error::Corrupt`] for a range whose chunk is damaged.
    pub fn read(&self, at: Option<Lsn>, ino: Ino, offset: u64, len: usize) -> FsResult<Vec<u8>> {
        let cell = if at.is_none() { self.cell_if_any(ino) } else { None };
        let Some(cell) = cell else {
            let purges = self.shared.purges.load(Ordering::Acquire);
            let inode = self.inode(at, ino)?.item;
            let read = self.read_committed(at, ino, &inode, inode.attrs.size, offset, len)?;
            // Blocks that a purge has taken meanwhile look like holes.
            if self.shared.purges.load(Ordering::Acquire) != purges {
                self.inode(at, ino)?;
            }
            return Ok(read);
        };
        // Uncommitted bytes are copied first: what a commit moves to the index meanwhile is then seen there
        // as well, and the copy is the same or older than a write that is still under way.
        let (size, overlay) = {
            let live = cell.state.read();
            if live.gone {
                return Err(FsError::NotFound);
            }
            let size = live.attrs.size;
            let end = size.min(offset.saturating_add(len as u64));
            let overlay = live.touches(offset, end).then(|| Overlay::of(&live, offset, end));
            (size, overlay)
        };
        let inode = self.inode(None, ino)?.item;
        let mut out = self.read_committed(None, ino, &inode, size, offset, len)?;
        if let Some(overlay) = overlay {
            overlay.lay(offset, &mut out);
        }
        Ok(out)
    }

    fn read_committed(
        &self,
        at: Option<Lsn>,
        ino: Ino,
        inode: &Inode,
        size: u64,
        offset: u64,
        len: usize,
    ) -> FsResult<Vec<u8>> {
        match inode.attrs.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(FsError::IsDir),
            _ => return Err(FsError::Invalid("not a regular file")),
        }
        let end = size.min(offset.saturating_add(len as u64));
        if offset >= end {
            return Ok(Vec::new());
        }
        let view = self.view(at);
        let blocks = (offset / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES)
            .map(|block| Ok((block, view.block(inode, ino, block)?)))
            .collect::<FsResult<Vec<_>>>()?;
        assemble(&self.shared.store, &blocks, offset, end)
    }

    /// Whether a write of `len` bytes would have to wait for sealing or for room on the disk; then it belongs on a
    /// thread that may wait.
    pub fn write_would_wait(&self, len: usize) -> bool {
        let store = &self.shared.store;
        store.is_tight() || store.is_full() || self.shared.budget.is_full(len as u64)
    }

    /// Writes `data` at `offset`. When this returns every reader sees it; it is committed by age, by
    /// [`Volume::fsync`] or by a barrier.
    ///
    /// # Errors
    /// [`FsError::TooLarge`], [`FsError::NotFound`], no space.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], writer: Writer) -> FsResult<()> {
        self.check_writable()?;
        self.shared.wait_for_room();
        self.shared.store.admit_data()?;
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len() as u64;
        offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::TooLarge)?;
        let mut at = offset;
        for part in data.chunks(WRITE_BYTES_MAX) {
            self.write_part(ino, at, part, writer)?;
            at += part.len() as u64;
        }
        // Where nothing outlives the server, the journal must have it before anyone is told so.
        if self.shared.arena.survives() || !self.shared.commits_first {
            Ok(())
        } else {
            self.commit_file(ino)
        }
    }

    fn write_part(&self, ino: Ino, offset: u64, data: &[u8], writer: Writer) -> FsResult<()> {
        for _ in 0..ROOM_TRIES {
            let _room = self.shared.budget.reserve(data.len() as u64)?;
            if self.write_reserved(ino, offset, data, writer)? {
                return Ok(());
            }
            // Very scattered slots took more than was reserved: away with them.
            self.commit_file(ino)?;
        }
        Err(Error::NoSpace("written data: it is too scattered".into()).into())
    }

    /// Whether there was room for all of it.
    fn write_reserved(&self, ino: Ino, offset: u64, data: &[u8], writer: Writer) -> FsResult<bool> {
        let _gate = self.enter();
        let cell = self.cell(ino)?;
        let mut live = cell.state.write();
        if live.gone {
            return Err(FsError::NotFound);
        }
        if live.attrs.kind != FileKind::File {
            return Err(FsError::Invalid("not a regular file"));
        }
        let time = self.shared.now();
        let owner = Owner { volume: self.vol, ino, time, kill: writer.kill_privileges };
        live.dirty_since.get_or_insert_with(Instant::now);
        if live.dirty.write(&self.shared.arena, owner, offset, data).is_err() {
            return Ok(false);
        }
        live.attrs.size = live.attrs.size.max(offset + data.len() as u64);
        writer.changed(&mut live.attrs, time);
        if live.dirty.bytes() >= self.shared.store.config().seal_run_bytes {
            self.shared.flush_soon();
        }
        Ok(true)
    }
}

/// Puts together the bytes `offset..end` of these consecutive blocks. The chunks they need are read at
/// once, so that they are decoded on all cores.
pub(super) fn assemble(
    store: &Arc<Store>,
    blocks: &[(u64, Recipe)],
    offset: u64,
    end: u64,
) -> FsResult<Vec<u8>> {
    let mut pieces = Vec::new();
    for (block, recipe) in blocks {
        let start = block * BLOCK_BYTES;
        let (lo, hi) = (offset.max(start) - start, end.min(start + BLOCK_BYTES) - start);
        recipe.slice_into(lo as u32, hi as u32, &mut pieces);
    }
    let mut wanted: Vec<ChunkId> = Vec::new();
    for id in pieces.iter().filter_map(Piece::chunk) {
        if wanted.last() != Some(id) {
            wanted.push(*id);
        }
    }
    let chunks = store.chunks().read_all(store.index(), wanted.clone());
    let mut chunks = wanted.into_iter().zip(chunks).peekable();
    let mut current: Option<(ChunkId, Arc<Vec<u8>>)> = None;
    let mut out = Vec::with_capacity((end - offset) as usize);
    for piece in &pieces {
        let len = piece.len as usize;
        match &piece.source {
            Source::Hole => out.resize(out.len() + len, 0),
            Source::Inline(bytes) => out.extend_from_slice(bytes),
            Source::Chunk { id, offset } => {
                if current.as_ref().map(|(current, _)| current) != Some(id) {
                    let (id, bytes) = chunks.next().ok_or(FsError::Invalid("chunks out of step"))?;
                    current = Some((id, bytes?));
                }
                let bytes =
                    current.as_ref().and_then(|(_, b)| b.get(*offset as usize..*offset as usize + len));
                let short = || Error::corrupt("recipe", id.to_string(), "it reaches past its chunk's end");
                out.extend_from_slice(bytes.ok_or_else(short)?);
            }
        }
    }
    Ok(out)
}

/// Uncommitted bytes of a range, copied out of a cell.
struct Overlay {
    runs: Vec<(u64, Vec<u8>)>,
}

impl Overlay {
    fn of(live: &super::cell::Live, from: u64, to: u64) -> Overlay {
        let mut runs = Vec::new();
        super::extents::for_range(live.sealing.iter(), from, to, |at, part| runs.push((at, part.to_vec())));
        live.dirty.for_range(from, to, |at, part| runs.push((at, part.to_vec())));
        Overlay { runs }
    }

    fn lay(&self, offset: u64, out: &mut [u8]) {
        for (at, run) in &self.runs {
            super::extents::copy_over(*at, run, offset, out);
        }
    }
}
