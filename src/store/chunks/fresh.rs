//! Pins: chunks that a record about to be committed may name. Such a chunk is packed and named by no applied
//! record yet, or it is in the index, where only its pin keeps it while nothing else names it. Whoever finds
//! one here may count on it until its own record is applied, whatever becomes of the writer that packed it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::Mutex;

use super::pack::Location;
use crate::types::{ChunkId, PackId};

/// A place in the packs.
pub(super) type Place = (PackId, u64);

/// A chunk's pins.
struct Pinned {
    /// Where it lies, if the index does not know that yet.
    location: Option<Location>,
    pins: u32,
}

#[derive(Default)]
struct Lists {
    chunks: HashMap<ChunkId, Pinned>,
    places: BTreeSet<Place>,
    /// Where the packs ended when each append that is still under way began.
    appending: BTreeMap<Place, u32>,
}

impl Lists {
    fn pin(&mut self, id: &ChunkId) -> bool {
        let pinned = self.chunks.entry(*id).or_insert(Pinned { location: None, pins: 0 });
        pinned.pins += 1;
        pinned.location.is_some()
    }

    fn unpin(&mut self, id: &ChunkId) {
        let Some(pinned) = self.chunks.get_mut(id) else { return };
        pinned.pins = pinned.pins.saturating_sub(1);
        if pinned.pins == 0 {
            let place = pinned.location.map(|at| (at.pack, at.offset));
            self.chunks.remove(id);
            if let Some(place) = place {
                self.places.remove(&place);
            }
        }
    }
}

/// The chunks between pack and index. Its lock is never held over I/O.
#[derive(Default)]
pub(super) struct Fresh(Mutex<Lists>);

impl Fresh {
    /// Pins the chunk. Returns whether it is packed and unknown to the index; if not, the caller looks there,
    /// and what it finds stays while it is pinned.
    pub(super) fn pin(&self, id: &ChunkId) -> bool {
        self.0.lock().pin(id)
    }

    /// Pins chunks.
    pub(super) fn pin_all(&self, ids: impl Iterator<Item = ChunkId>) {
        let mut lists = self.0.lock();
        for id in ids {
            lists.pin(&id);
        }
    }

    /// Lets go of one pin of each; without pins a chunk is either in the index or nobody's.
    pub(super) fn unpin<'a>(&self, ids: impl IntoIterator<Item = &'a ChunkId>) {
        let mut lists = self.0.lock();
        for id in ids {
            lists.unpin(id);
        }
    }

    /// Whether a record that is about to be committed may name the chunk.
    pub(super) fn is_pinned(&self, id: &ChunkId) -> bool {
        self.0.lock().chunks.get(id).is_some_and(|pinned| pinned.pins > 0)
    }

    /// Notes that an append begins while the packs end at `place`.
    pub(super) fn begin(&self, place: Place) {
        *self.0.lock().appending.entry(place).or_insert(0) += 1;
    }

    /// Notes that the append ended, and where its chunk, which is pinned, lies if it succeeded.
    pub(super) fn end(&self, place: Place, appended: Option<(ChunkId, Location)>) {
        let mut lists = self.0.lock();
        if let Some(count) = lists.appending.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                lists.appending.remove(&place);
            }
        }
        if let Some((id, location)) = appended {
            lists.places.insert((location.pack, location.offset));
            // Packed twice at the same time; the pins of both writers hold the later copy.
            let earlier = lists.chunks.get_mut(&id).and_then(|pinned| pinned.location.replace(location));
            if let Some(old) = earlier {
                lists.places.remove(&(old.pack, old.offset));
            }
        }
    }

    /// Adds a chunk found by recovery.
    pub(super) fn found(&self, id: ChunkId, location: Location) {
        self.0.lock().chunks.insert(id, Pinned { location: Some(location), pins: 0 });
    }

    /// Drops what recovery found and no record named.
    pub(super) fn clear(&self) {
        *self.0.lock() = Lists::default();
    }

    pub(super) fn get(&self, id: &ChunkId) -> Option<Location> {
        self.0.lock().chunks.get(id).and_then(|pinned| pinned.location)
    }

    /// The lowest place at which a chunk may lie that a later record will name; `end` is where the packs
    /// ended before this call.
    pub(super) fn low_mark(&self, end: Place) -> Place {
        let lists = self.0.lock();
        let chunk = lists.places.first().copied().unwrap_or(end);
        let append = lists.appending.keys().next().copied().unwrap_or(end);
        end.min(chunk).min(append)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Location {
        Location { pack: PackId(1), offset, stored_len: 1, raw_len: 1, codec: 0 }
    }

    #[test]
    fn the_low_mark_stays_below_every_chunk_not_yet_named() {
        let (fresh, a, b) = (Fresh::default(), ChunkId([1; 32]), ChunkId([2; 32]));
        assert!(!fresh.pin(&a) && !fresh.pin(&b));
        fresh.begin((PackId(1), 10));
        assert_eq!(fresh.low_mark((PackId(1), 50)), (PackId(1), 10));
        fresh.end((PackId(1), 10), Some((a, at(20))));
        assert_eq!(fresh.low_mark((PackId(1), 50)), (PackId(1), 20));
        fresh.begin((PackId(1), 50));
        fresh.end((PackId(1), 50), Some((b, at(60))));
        fresh.unpin([&a]);
        assert_eq!(fresh.low_mark((PackId(1), 90)), (PackId(1), 60));
        fresh.unpin([&b]);
        assert_eq!(fresh.low_mark((PackId(1), 90)), (PackId(1), 90));
    }

    #[test]
    fn a_chunk_found_by_two_writers_stays_until_both_are_done() {
        let (fresh, a) = (Fresh::default(), ChunkId([1; 32]));
        assert!(!fresh.pin(&a));
        fresh.begin((PackId(1), 0));
        fresh.end((PackId(1), 0), Some((a, at(0))));
        assert!(fresh.pin(&a));
        fresh.unpin([&a]);
        assert!(fresh.get(&a).is_some() && fresh.is_pinned(&a));
        fresh.unpin([&a]);
        assert!(fresh.get(&a).is_none() && !fresh.is_pinned(&a));
    }

    #[test]
    fn a_chunk_that_is_packed_twice_at_once_counts_where_it_lies_last() {
        let (fresh, a) = (Fresh::default(), ChunkId([1; 32]));
        assert!(!fresh.pin(&a) && !fresh.pin(&a));
        for offset in [10, 20] {
            fresh.begin((PackId(1), offset));
            fresh.end((PackId(1), offset), Some((a, at(offset))));
        }
        assert_eq!(fresh.get(&a), Some(at(20)));
        assert_eq!(fresh.low_mark((PackId(1), 90)), (PackId(1), 20));
        fresh.unpin([&a]);
        fresh.unpin([&a]);
        assert_eq!(fresh.low_mark((PackId(1), 90)), (PackId(1), 90));
    }
}
