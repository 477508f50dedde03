//! Recipes: what a file block is made of.

use super::{Item, Split};
use crate::types::ChunkId;
use crate::types::limits::{BLOCK_BYTES, CHUNK_MAX_BYTES, RECIPE_PIECES_MAX};
use crate::types::wire::{Decoder, Encoder, WireError};

/// Where a piece's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Zeros that take no room.
    Hole,
    /// The bytes themselves.
    Inline(Vec<u8>),
    /// Bytes of a chunk, from `offset` on.
    Chunk {
        /// Which chunk.
        id: ChunkId,
        /// Where in its plain bytes the piece begins.
        offset: u32,
    },
}

/// A run of a block's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes; at least 1, at most [`BLOCK_BYTES`].
    pub len: u32,
    /// Where they come from.
    pub source: Source,
}

impl Piece {
    /// A run of zeros.
    pub fn hole(len: u32) -> Piece {
        Piece { len, source: Source::Hole }
    }

    /// The chunk that it names, if it names one.
    pub fn chunk(&self) -> Option<&ChunkId> {
        match &self.source {
            Source::Chunk { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The part of the piece from `skip` on, `len` bytes long; both lie within the piece.
    #[must_use]
    pub fn part(&self, skip: u32, len: u32) -> Piece {
        let source = match &self.source {
            Source::Hole => Source::Hole,
            Source::Inline(bytes) => Source::Inline(
                bytes.get(skip as usize..(skip + len) as usize).map(<[u8]>::to_vec).unwrap_or_default(),
            ),
            Source::Chunk { id, offset } => Source::Chunk { id: *id, offset: offset + skip },
        };
        Piece { len, source }
    }

    fn encode_public(&self, e: &mut Encoder) {
        match &self.source {
            Source::Hole => e.u8(0).varint(u64::from(self.len)),
            Source::Inline(_) => e.u8(1).varint(u64::from(self.len)),
            Source::Chunk { id, offset } => {
                e.u8(2).varint(u64::from(self.len)).raw(&id.0).varint(u64::from(*offset))
            }
        };
    }

    fn decode_public(d: &mut Decoder<'_>) -> Result<Piece, WireError> {
        let tag = d.u8()?;
        let len = d.count(BLOCK_BYTES as usize, "piece length")? as u32;
        if len == 0 {
            return Err(WireError::Bad("piece length"));
        }
        let source = match tag {
            0 => Source::Hole,
            1 => Source::Inline(Vec::new()),
            2 => {
                let id = ChunkId(d.array()?);
                let offset = d.count(CHUNK_MAX_BYTES, "chunk offset")? as u32;
                if (offset + len) as usize > CHUNK_MAX_BYTES {
                    return Err(WireError::Bad("chunk offset"));
                }
                Source::Chunk { id, offset }
            }
            _ => return Err(WireError::Bad("piece kind")),
        };
        Ok(Piece { len, source })
    }

    pub(super) fn encode_list(pieces: &[Piece], e: &mut Encoder) {
        e.varint(pieces.len() as u64);
        for piece in pieces {
            piece.encode_public(e);
            if let Source::Inline(bytes) = &piece.source {
                e.raw(bytes);
            }
        }
    }

    pub(super) fn decode_list(d: &mut Decoder<'_>) -> Result<Vec<Piece>, WireError> {
        let count = d.count(RECIPE_PIECES_MAX, "piece count")?;
        let mut pieces = Vec::with_capacity(count.min(64));
        let mut total = 0u64;
        for _ in 0..count {
            let mut piece = Piece::decode_public(d)?;
            if let Source::Inline(bytes) = &mut piece.source {
                *bytes = d.raw(piece.len as usize)?.to_vec();
            }
            total += u64::from(piece.len);
            if total > BLOCK_BYTES {
                return Err(WireError::Bad("recipe length"));
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }
}

/// The pieces of one block, in order, from its first byte; what they do not reach is a hole.
///
/// Invariants: no empty piece, no hole at the end, never longer than [`BLOCK_BYTES`]. An empty recipe is
/// never stored; the block is absent instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    pieces: Vec<Piece>,
}

impl Recipe {
    /// A recipe of these pieces, normalised.
    pub fn new(pieces: Vec<Piece>) -> Recipe {
        let mut recipe = Recipe { pieces: Vec::with_capacity(pieces.len()) };
        for piece in pieces {
            recipe.push(piece);
        }
        recipe.trim();
        recipe
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether the block holds nothing but zeros.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of data, holes not counted.
    pub fn data_bytes(&self) -> u64 {
        self.pieces.iter().filter(|p| p.source != Source::Hole).map(|p| u64::from(p.len)).sum()
    }

    /// Bytes held inline.
    pub fn inline_bytes(&self) -> usize {
        self.pieces
            .iter()
            .map(|p| if matches!(p.source, Source::Inline(_)) { p.len as usize } else { 0 })
            .sum()
    }

    /// The chunks referred to, one for each piece.
    pub fn chunks(&self) -> impl Iterator<Item = &ChunkId> {
        self.pieces.iter().filter_map(Piece::chunk)
    }

    /// The recipe of a public half alone: its inline pieces have their length but no bytes.
    ///
    /// # Errors
    /// As [`Item::join`].
    pub fn join_public(public: &[u8]) -> Result<Recipe, WireError> {
        let mut d = Decoder::new(public);
        let recipe = Recipe { pieces: Recipe::decode_pieces(&mut d, None)? };
        d.end()?;
        Ok(recipe)
    }

    /// How many pieces a public half has.
    ///
    /// # Errors
    /// As [`Item::join`].
    pub fn piece_count(public: &[u8]) -> Result<usize, WireError> {
        Decoder::new(public).count(RECIPE_PIECES_MAX, "piece count")
    }

    /// Reads the pieces; inline bytes come from `inline`, where it is given.
    fn decode_pieces(
        d: &mut Decoder<'_>,
        mut inline: Option<&mut Decoder<'_>>,
    ) -> Result<Vec<Piece>, WireError> {
        let count = d.count(RECIPE_PIECES_MAX, "piece count")?;
        let mut pieces = Vec::with_capacity(count.min(64));
        let mut total = 0u64;
        for _ in 0..count {
            let mut piece = Piece::decode_public(d)?;
            if let (Source::Inline(bytes), Some(inline)) = (&mut piece.source, inline.as_deref_mut()) {
                *bytes = inline.raw(piece.len as usize)?.to_vec();
            }
            total += u64::from(piece.len);
            if total > BLOCK_BYTES {
                return Err(WireError::Bad("recipe length"));
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Appends a piece, joining it with the last one where both are the same run.
    fn push(&mut self, piece: Piece) {
        if piece.len == 0 {
            return;
        }
        if let Some(last) = self.pieces.last_mut() {
            match (&mut last.source, &piece.source) {
                (Source::Hole, Source::Hole) => {
                    last.len += piece.len;
                    return;
                }
                (Source::Inline(a), Source::Inline(b)) => {
                    a.extend_from_slice(b);
                    last.len += piece.len;
                    return;
                }
                (Source::Chunk { id: a, offset }, Source::Chunk { id: b, offset: next })
                    if a == b && *offset + last.len == *next =>
                {
                    last.len += piece.len;
                    return;
                }
                _ => {}
            }
        }
        self.pieces.push(piece);
    }

    fn trim(&mut self) {
        while self.pieces.last().is_some_and(|p| p.source == Source::Hole) {
            self.pieces.pop();
        }
    }

    /// Appends to `out` the pieces that make up bytes `from..to` of the block, holes included.
    pub fn slice_into(&self, from: u32, to: u32, out: &mut Vec<Piece>) {
        let mut at = 0u32;
        for piece in &self.pieces {
            let end = at + piece.len;
            let (lo, hi) = (at.max(from), end.min(to));
            if lo < hi {
                out.push(piece.part(lo - at, hi - lo));
            }
            at = end;
            if at >= to {
                return;
            }
        }
        let covered = at.max(from);
        if covered < to {
            out.push(Piece::hole(to - covered));
        }
    }

    /// The block after `pieces` were written at `offset`.
    #[must_use]
    pub fn overlay(&self, offset: u32, pieces: &[Piece]) -> Recipe {
        let end = offset + pieces.iter().map(|p| p.len).sum::<u32>();
        let mut parts = Vec::with_capacity(self.pieces.len() + pieces.len() + 2);
        self.slice_into(0, offset, &mut parts);
        parts.extend_from_slice(pieces);
        self.slice_into(end, (BLOCK_BYTES as u32).max(end), &mut parts);
        Recipe::new(parts)
    }
}

impl Item for Recipe {
    fn split(&self) -> Split {
        let mut e = Encoder::with_capacity(self.pieces.len() * 40 + 4);
        e.varint(self.pieces.len() as u64);
        let mut secret = Vec::with_capacity(self.inline_bytes());
        for piece in &self.pieces {
            piece.encode_public(&mut e);
            if let Source::Inline(bytes) = &piece.source {
                secret.extend_from_slice(bytes);
            }
        }
        Split { public: e.finish(), secret }
    }

    fn join(public: &[u8], secret: &[u8]) -> Result<Recipe, WireError> {
        let mut d = Decoder::new(public);
        let mut inline = Decoder::new(secret);
        let pieces = Recipe::decode_pieces(&mut d, Some(&mut inline))?;
        d.end()?;
        inline.end()?;
        Ok(Recipe { pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(recipe: &Recipe, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for p in recipe.pieces() {
            match &p.source {
                Source::Hole => out.resize(out.len() + p.len as usize, 0),
                Source::Inline(b) => out.extend_from_slice(b),
                Source::Chunk { offset, .. } => {
                    out.extend_from_slice(&chunk[*offset as usize..(*offset + p.len) as usize]);
                }
            }
        }
        out.resize(BLOCK_BYTES as usize, 0);
        out
    }

    proptest! {
        #[test]
        fn overlays_equal_writes_to_a_plain_buffer(
            ops in prop::collection::vec((0u32..260_000, 1u32..4000, 0u8..3, any::<u8>()), 1..40),
        ) {
            let chunk: Vec<u8> = (0..CHUNK_MAX_BYTES).map(|i| (i * 7 % 251) as u8).collect();
            let mut plain = vec![0u8; BLOCK_BYTES as usize];
            let mut recipe = Recipe::default();
            for (offset, len, kind, fill) in ops {
                let len = len.min(BLOCK_BYTES as u32 - offset);
                let range = offset as usize..(offset + len) as usize;
                let source = match kind {
                    0 => { plain[range].fill(0); Source::Hole }
                    1 => { plain[range].fill(fill); Source::Inline(vec![fill; len as usize]) }
                    _ => {
                        plain[range].copy_from_slice(&chunk[100..100 + len as usize]);
                        Source::Chunk { id: ChunkId([1; 32]), offset: 100 }
                    }
                };
                recipe = recipe.overlay(offset, &[Piece { len, source }]);
                let Split { public, secret } = recipe.split();
                prop_assert_eq!(&Recipe::join(&public, &secret).unwrap(), &recipe);
            }
            prop_assert_eq!(bytes_of(&recipe, &chunk), plain);
        }

        #[test]
        fn hostile_bytes_are_refused(public: Vec<u8>, secret: Vec<u8>) {
            let _ = Recipe::join(&public, &secret);
        }
    }
}
