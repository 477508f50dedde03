//! Giving block versions a better representation in the background: inline bytes become chunks, and blocks
//! of too many pieces are written anew. The bytes stay the same, and so does the version.

use std::sync::Arc;

use super::Store;
use super::chunks::Stored;
use super::index::Index;
use super::index::keys;
use super::index::scan::PendingBlock;
use super::model::{Edit, Piece, Recipe, Source};
use crate::types::limits::{BLOCK_BYTES, RECIPE_PIECES_PATCHED_MAX, RECIPE_PIECES_TARGET, SMALL_HOLE_BYTES};
use crate::types::{Lsn, Result};

/// Block versions that one record rebinds.
const REBINDS_PER_RECORD: usize = 64;

impl Store {
    /// Rebinds block versions that began at or before `until`. Returns how many were looked at.
    pub(super) fn rebind_pending(&self, until: Lsn) -> Result<usize> {
        let pending = self.index.pending_blocks(REBINDS_PER_RECORD)?;
        let mut edits = Vec::new();
        let mut stored = Vec::new();
        let mut seen = 0;
        for item in pending.iter().filter(|p| p.since <= until) {
            seen += 1;
            let Some(recipe) = self.index.block_version(item)? else { continue };
            let (recipe, pins) = self.rewritten(&recipe)?;
            stored.extend(pins);
            edits.push(rebind(item, recipe));
        }
        if !edits.is_empty() {
            self.commit(edits, None)?;
        }
        drop(stored);
        Ok(seen)
    }

    /// Rewrites the blocks that `edits` are about to patch and that are in too many pieces already: each
    /// patch costs as much as the block has pieces.
    pub fn defragment(&self, edits: &[Edit]) -> Result<()> {
        for edit in edits {
            let Edit::PatchBlock { vol, ino, block, pieces, .. } = edit else { continue };
            if pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>() >= BLOCK_BYTES {
                // Nothing is left of what is there.
                continue;
            }
            let Some((since, pieces)) = self.index.block_pieces(&keys::block(*vol, *ino, *block))? else {
                continue;
            };
            if pieces < RECIPE_PIECES_PATCHED_MAX {
                continue;
            }
            let item = PendingBlock { vol: *vol, ino: *ino, block: *block, since };
            self.rebind_now(&item)?;
        }
        Ok(())
    }

    fn rebind_now(&self, item: &PendingBlock) -> Result<()> {
        let Some(recipe) = self.index.block_version(item)? else { return Ok(()) };
        let (recipe, pins) = self.rewritten(&recipe)?;
        self.commit(vec![rebind(item, recipe)], None)?;
        drop(pins);
        Ok(())
    }

    /// The same bytes with inline runs (of a fragmented block: all runs) as chunks.
    fn rewritten(&self, recipe: &Recipe) -> Result<(Recipe, Vec<Stored>)> {
        let all = recipe.pieces().len() > RECIPE_PIECES_TARGET;
        let (mut pieces, mut pins) = (Vec::new(), Vec::new());
        let mut run: Vec<u8> = Vec::new();
        for piece in recipe.pieces() {
            let kept = match &piece.source {
                Source::Hole => !all || piece.len >= SMALL_HOLE_BYTES,
                Source::Inline(_) => false,
                Source::Chunk { .. } => !all,
            };
            if kept {
                self.seal_run(&mut run, &mut pieces, &mut pins)?;
                pieces.push(piece.clone());
            } else {
                read_piece(&self.index, self, piece, &mut run)?;
            }
        }
        self.seal_run(&mut run, &mut pieces, &mut pins)?;
        Ok((Recipe::new(pieces), pins))
    }

    fn seal_run(&self, run: &mut Vec<u8>, pieces: &mut Vec<Piece>, pins: &mut Vec<Stored>) -> Result<()> {
        if run.is_empty() {
            return Ok(());
        }
        let data = Arc::new(std::mem::take(run));
        let cuts = self.chunks.cuts(&data, true);
        let stored = self.chunks.store(&self.index, data, &cuts)?;
        pieces
            .extend(stored.chunks().map(|(id, len)| Piece { len, source: Source::Chunk { id, offset: 0 } }));
        pins.push(stored);
        Ok(())
    }
}

fn rebind(item: &PendingBlock, recipe: Recipe) -> Edit {
    Edit::Rebind { vol: item.vol, ino: item.ino, block: item.block, since: item.since, recipe }
}

/// Appends a piece's bytes to `out`.
fn read_piece(index: &Index, store: &Store, piece: &Piece, out: &mut Vec<u8>) -> Result<()> {
    match &piece.source {
        Source::Hole => out.resize(out.len() + piece.len as usize, 0),
        Source::Inline(bytes) => out.extend_from_slice(bytes),
        Source::Chunk { id, offset } => {
            let bytes = store.chunks.read(index, id)?;
            let range = *offset as usize..(*offset + piece.len) as usize;
            let part = bytes.get(range).ok_or_else(|| {
                crate::types::Error::corrupt("recipe", id.to_string(), "it reaches past its chunk's end")
            })?;
            out.extend_from_slice(part);
        }
    }
    Ok(())
}
