//! Where to cut file bytes into chunks: FastCDC, so that an insertion moves the chunks behind it and does
//! not change them.
//!
//! Source: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
//! Systems", IEEE TPDS 2020, as in the `fastcdc` crate (`v2020`). The gear table is seeded with a secret of
//! the store. A cut depends only on the bytes since the previous cut, which is what makes cutting piecewise
//! equal to cutting at once.

use crate::types::limits::{CHUNK_AVG_BYTES, CHUNK_MAX_BYTES, CHUNK_MIN_BYTES};
use fastcdc::v2020::{Normalization, cut_gear, get_gear_with_seed, select_masks};
use std::borrow::Cow;

// fastcdc steps two bytes at a time and needs even sizes.
const _: () = assert!(
    CHUNK_MIN_BYTES.is_multiple_of(2)
        && CHUNK_AVG_BYTES.is_multiple_of(2)
        && CHUNK_MAX_BYTES.is_multiple_of(2)
        && CHUNK_MIN_BYTES < CHUNK_AVG_BYTES
        && CHUNK_AVG_BYTES < CHUNK_MAX_BYTES
);

/// Finds cuts; built once per store, shared by all sealer threads.
pub struct Chunker {
    gear: Cow<'static, [u64]>,
    gear_shifted: Cow<'static, [u64]>,
    mask_small: u64,
    mask_large: u64,
}

impl Chunker {
    /// A chunker with the store's [seed](crate::store::keys::Sealer::chunker_seed).
    pub fn new(seed: u64) -> Chunker {
        let (mask_small, mask_large) = select_masks(CHUNK_AVG_BYTES, Normalization::Level1);
        let (gear, gear_shifted) = get_gear_with_seed(seed);
        Chunker { gear, gear_shifted, mask_small, mask_large }
    }

    /// The length of the first chunk of `data`, or `None` if more data could still move its end. With `last`
    /// no more data comes, and what is left is a chunk of any size from 1 byte; empty data has none.
    ///
    /// Every chunk that is not the last one of its run is [`CHUNK_MIN_BYTES`] to [`CHUNK_MAX_BYTES`] long.
    pub fn first(&self, data: &[u8], last: bool) -> Option<usize> {
        let (_, cut) = cut_gear(
            data,
            CHUNK_MIN_BYTES,
            CHUNK_AVG_BYTES,
            CHUNK_MAX_BYTES,
            self.mask_small,
            self.mask_large,
            self.mask_small << 1,
            self.mask_large << 1,
            &self.gear,
            &self.gear_shifted,
        );
        // A cut by content lies before the byte that made it, so a cut at the very end is no content cut; it
        // is final only if the chunk is full.
        let is_final = cut < data.len() || cut == CHUNK_MAX_BYTES || last;
        (cut > 0 && is_final).then_some(cut)
    }

    /// The ends of the chunks of `data`, ascending offsets from its start. With `last` the final end is
    /// `data.len()`; without it, what lies behind the final end is a tail (shorter than
    /// [`CHUNK_MAX_BYTES`]) that the caller keeps and presents again, from its start, with more data.
    pub fn cuts<'a>(&'a self, data: &'a [u8], last: bool) -> impl Iterator<Item = usize> + 'a {
        let mut end = 0;
        std::iter::from_fn(move || {
            end += self.first(data.get(end..)?, last)?;
            Some(end)
        })
    }
}

impl std::fmt::Debug for Chunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The seed is a secret.
        f.write_str("Chunker(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Pseudo-random bytes, the same for the same seed.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn chunks<'a>(chunker: &Chunker, data: &'a [u8]) -> Vec<&'a [u8]> {
        let mut start = 0;
        let ends = chunker.cuts(data, true);
        ends.map(|end| &data[std::mem::replace(&mut start, end)..end]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn piecewise_equals_at_once(
            seed: u64, len in 0usize..900_000, zeros in 0usize..400_000,
            splits in prop::collection::vec(1usize..150_000, 1..30),
        ) {
            let chunker = Chunker::new(seed);
            let mut data = noise(seed, len);
            let at = len / 3;
            data.splice(at..at, std::iter::repeat_n(0, zeros));
            let whole: Vec<usize> = chunker.cuts(&data, true).collect();

            let (mut kept, mut given, mut found) = (0, 0, Vec::new());
            for step in splits.iter().cycle() {
                let last = given >= data.len();
                let base = kept;
                for end in chunker.cuts(&data[base..given], last) {
                    kept = base + end;
                    found.push(kept);
                }
                prop_assert!(given - kept < CHUNK_MAX_BYTES);
                if last {
                    break;
                }
                given = (given + step).min(data.len());
            }
            prop_assert_eq!(&found, &whole);
            prop_assert_eq!(whole.last().copied().unwrap_or(0), data.len());
            for (i, chunk) in chunks(&chunker, &data).iter().enumerate() {
                prop_assert!(chunk.len() <= CHUNK_MAX_BYTES && !chunk.is_empty());
                prop_assert!(chunk.len() >= CHUNK_MIN_BYTES || i + 1 == whole.len());
            }
        }
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let chunker = Chunker::new(42);
        let data = noise(1, 8 << 20);
        let known: HashSet<&[u8]> = chunks(&chunker, &data).into_iter().collect();
        let mut changed = data.clone();
        changed.splice(3_000_001..3_000_001, *b"seventeen bytes!!");
        let fresh = chunks(&chunker, &changed).into_iter().filter(|c| !known.contains(c)).count();
        assert!(known.len() > 60 && fresh <= 4, "{fresh} new of {}", known.len());
    }

    #[test]
    fn seeds_cut_differently_and_the_average_is_near_the_target() {
        let data = noise(2, 16 << 20);
        let a: Vec<usize> = Chunker::new(1).cuts(&data, true).collect();
        let b: Vec<usize> = Chunker::new(2).cuts(&data, true).collect();
        assert_ne!(a, b);
        let average = data.len() / a.len();
        assert!((CHUNK_AVG_BYTES / 2..CHUNK_AVG_BYTES * 2).contains(&average), "{average}");
    }

    #[test]
    fn sameness_is_cut_at_the_largest_size_and_nothing_is_no_chunk() {
        let zeros = vec![0; 3 * CHUNK_MAX_BYTES];
        let cuts: Vec<usize> = Chunker::new(7).cuts(&zeros, false).collect();
        assert_eq!(cuts, [CHUNK_MAX_BYTES, 2 * CHUNK_MAX_BYTES, 3 * CHUNK_MAX_BYTES]);
        assert_eq!(Chunker::new(7).cuts(&[], true).count(), 0);
    }
}
