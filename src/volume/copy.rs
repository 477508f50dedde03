//! `copy_file_range`: recipes are copied, bytes are not. The source may lie in a snapshot, which is what
//! makes restoring by `cp` cost metadata only.

use super::flush::patch_edits;
use super::{FsError, FsResult, Volume, Writer};
use crate::store::chunks::Stored;
use crate::store::model::{Edit, FileKind, Inode, Piece, Source};
use crate::types::limits::{BLOCK_BYTES, FILE_BYTES_MAX};
use crate::types::{Ino, Lsn};

/// Bytes that one record copies: bounds the time for which the append lock is held.
const COPY_BYTES_PER_RECORD: u64 = 64 << 20;
/// Pieces and inline bytes after which the next record begins, so that none grows too large.
const COPY_PIECES_PER_RECORD: usize = 16 * 1024;
const COPY_INLINE_BYTES_PER_RECORD: usize = 4 << 20;
/// How often a source is read anew that is being written over.
const SOURCE_TRIES: usize = 8;
/// Bytes that one request copies; the kernel asks again for the rest.
const COPY_BYTES_PER_REQUEST: u64 = 1 << 30;

/// A place in a file, live or past.
#[derive(Clone, Copy, Debug)]
pub struct CopySource {
    /// The point, or the live tree.
    pub at: Option<Lsn>,
    /// The file.
    pub ino: Ino,
    /// From where.
    pub offset: u64,
}

fn inline_bytes(piece: &Piece) -> usize {
    if let Source::Inline(bytes) = &piece.source { bytes.len() } else { 0 }
}

impl Volume {
    /// Copies up to `len` bytes to `offset` of `ino`; returns how many, 0 at the source's end.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for overlapping ranges of one file or for what is not a file.
    pub fn copy_range(
        &self,
        from: CopySource,
        ino: Ino,
        offset: u64,
        len: u64,
        writer: Writer,
    ) -> FsResult<u64> {
        self.check_writable()?;
        if from.at.is_none() {
            self.commit_file(from.ino)?;
        }
        let source = self.inode(from.at, from.ino)?.item;
        if source.attrs.kind != FileKind::File {
            return Err(FsError::Invalid("not a regular file"));
        }
        let len = len.min(source.attrs.size.saturating_sub(from.offset)).min(COPY_BYTES_PER_REQUEST);
        if offset.checked_add(len).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(FsError::TooLarge);
        }
        let same = from.at.is_none() && from.ino == ino;
        if same && from.offset < offset + len && offset < from.offset + len {
            return Err(FsError::Invalid("the ranges overlap"));
        }
        let part = |done: u64| {
            let part = CopySource { offset: from.offset + done, ..from };
            self.source_pieces(part, (len - done).min(COPY_BYTES_PER_RECORD))
        };
        let mut done = 0;
        let mut read = part(0)?;
        while let Some((pieces, held)) = read.take() {
            let copied = pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>();
            let (at, then) = (offset + done, done + copied);
            let commit = || self.copy_part(&pieces, ino, at, writer);
            // The next part is read while this one is committed.
            read = std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().name("rewindfs-copy".into());
                let ahead = (then < len).then(|| thread.spawn_scoped(scope, || part(then)));
                commit()?;
                match ahead {
                    None => Ok(None),
                    Some(Ok(ahead)) => ahead.join().unwrap_or_else(|_| part(then)),
                    Some(Err(_)) => part(then),
                }
            })?;
            drop(held);
            done = then;
        }
        Ok(done)
    }

    fn copy_part(&self, pieces: &[Piece], ino: Ino, offset: u64, writer: Writer) -> FsResult<()> {
        let _gate = self.enter();
        let cell = self.cell(ino)?;
        let _flush = cell.flush.lock();
        let mut live = self.settled_file(&cell)?;
        let len = pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>();
        let now = self.shared.now();
        let mut attrs = live.attrs.clone();
        let committed = live.committed_size.max(offset + len);
        writer.changed(&mut attrs, now);
        attrs.size = committed;
        let (mode, author) = (attrs.mode, attrs.author);
        let mut edits = vec![Edit::PutInode { vol: self.vol, ino, attrs }];
        patch_edits(self.vol, ino, offset, pieces, &mut edits);
        self.shared.commit_patches(edits, &|_| {})?;
        // A write that came since the flush came after the copy.
        live.committed_size = committed;
        live.attrs.size = live.attrs.size.max(committed);
        (live.attrs.mode, live.attrs.author) = (mode, author);
        (live.attrs.mtime, live.attrs.ctime) = (now, now);
        Ok(())
    }

    /// What the source's bytes are made of, as many as one record takes, with pins on the chunks; nothing at its
    /// end.
    fn source_pieces(&self, from: CopySource, len: u64) -> FsResult<Option<(Vec<Piece>, Stored)>> {
        let store = &self.shared.store;
        for _ in 0..SOURCE_TRIES {
            let last = store.last();
            // Read now: the source may be the file itself, or have been cut since it was looked at.
            let source = self.inode(from.at, from.ino)?.item;
            let end = from.offset + len.min(source.attrs.size.saturating_sub(from.offset));
            if end == from.offset {
                return Ok(None);
            }
            let pieces = self.pieces_of(&source, from, end)?;
            let held = store.chunks().pin(pieces.iter().filter_map(Piece::chunk).copied());
            // What still names them now that they are pinned keeps them there. Without a record since, that is what
            // named them before; else one look at each block says it, instead of one at each chunk.
            if store.last() == last || self.pieces_of(&source, from, end)? == pieces {
                return Ok(Some((pieces, held)));
            }
            // Written over since it was read, and given back already.
        }
        Err(FsError::Stale)
    }

    fn pieces_of(&self, source: &Inode, from: CopySource, end: u64) -> FsResult<Vec<Piece>> {
        let mut pieces = Vec::new();
        let (mut at, mut inline, mut full) = (from.offset, 0, false);
        let first = from.offset / BLOCK_BYTES;
        self.view(from.at).recipes(source, from.ino, first, |block, recipe| {
            let start = block * BLOCK_BYTES;
            if start >= end {
                return Ok(false);
            }
            push_hole(&mut pieces, start.saturating_sub(at));
            let (within, before) = (at.max(start) - start, pieces.len());
            at = end.min(start + BLOCK_BYTES);
            recipe.slice_into(within as u32, (at - start) as u32, &mut pieces);
            inline += pieces.iter().skip(before).map(inline_bytes).sum::<usize>();
            full = pieces.len() > COPY_PIECES_PER_RECORD || inline > COPY_INLINE_BYTES_PER_RECORD;
            Ok(!full)
        })?;
        if !full {
            push_hole(&mut pieces, end - at);
        }
        Ok(pieces)
    }
}

fn push_hole(pieces: &mut Vec<Piece>, len: u64) {
    if len > 0 {
        // At most what one record copies.
        pieces.push(Piece::hole(len as u32));
    }
}
