//! Chunks that are packed but that no applied record names yet. They are pinned: a writer that found one here
//! may count on it until its own record is applied, whatever becomes of the writer that packed it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::Mutex;

use super::pack::Location;
use crate::types::{ChunkId, PackId};

/// A place in the packs.
pub(super) type Place = (PackId, u64);

#[derive(Default)]
struct Lists {
    chunks: HashMap<ChunkId, (Location, u32)>,
    places: BTreeSet<Place>,
    /// Where the packs ended when each append that is still under way began.
    appending: BTreeMap<Place, u32>,
}

/// The chunks between pack and index. Its lock is never held over I/O.
#[derive(Default)]
pub(super) struct Fresh(Mutex<Lists>);

impl Fresh {
    /// Pins the chunk, if it is here.
    pub(super) fn pin(&self, id: &ChunkId) -> bool {
        self.0.lock().chunks.get_mut(id).map(|(_, pins)| *pins += 1).is_some()
    }

    /// Lets go of one pin; without pins the chunk is either in the index or nobody's.
    pub(super) fn unpin(&self, id: &ChunkId) {
        let mut lists = self.0.lock();
        let Some((location, pins)) = lists.chunks.get_mut(id) else { return };
        *pins = pins.saturating_sub(1);
        if *pins == 0 {
            let place = (location.pack, location.offset);
            lists.chunks.remove(id);
            lists.places.remove(&place);
        }
    }

    /// Notes that an append begins while the packs end at `place`.
    pub(super) fn begin(&self, place: Place) {
        *self.0.lock().appending.entry(place).or_insert(0) += 1;
    }

    /// Notes that the append ended, and where its chunk lies if it succeeded; that chunk is pinned once.
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
            let previous = lists.chunks.insert(id, (location, 1));
            if let Some((old, pins)) = previous {
                // Packed twice at the same time; the pins of both writers hold the later copy.
                lists.places.remove(&(old.pack, old.offset));
                lists.chunks.insert(id, (location, pins + 1));
            }
        }
    }

    /// Adds a chunk found by recovery.
    pub(super) fn found(&self, id: ChunkId, location: Location) {
        self.0.lock().chunks.insert(id, (location, 0));
    }

    /// Drops what recovery found and no record named.
    pub(super) fn clear(&self) {
        *self.0.lock() = Lists::default();
    }

    pub(super) fn get(&self, id: &ChunkId) -> Option<Location> {
        self.0.lock().chunks.get(id).map(|(location, _)| *location)
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
        fresh.begin((PackId(1), 10));
        assert_eq!(fresh.low_mark((PackId(1), 50)), (PackId(1), 10));
        fresh.end((PackId(1), 10), Some((a, at(20))));
        assert_eq!(fresh.low_mark((PackId(1), 50)), (PackId(1), 20));
        fresh.begin((PackId(1), 50));
        fresh.end((PackId(1), 50), Some((b, at(60))));
        fresh.unpin(&a);
        assert_eq!(fresh.low_mark((PackId(1), 90)), (PackId(1), 60));
        fresh.unpin(&b);
        assert_eq!(fresh.low_mark((PackId(1), 90)), (PackId(1), 90));
    }

    #[test]
    fn a_chunk_found_by_two_writers_stays_until_both_are_done() {
        let (fresh, a) = (Fresh::default(), ChunkId([1; 32]));
        fresh.begin((PackId(1), 0));
        fresh.end((PackId(1), 0), Some((a, at(0))));
        assert!(fresh.pin(&a));
        fresh.unpin(&a);
        assert!(fresh.get(&a).is_some());
        fresh.unpin(&a);
        assert!(fresh.get(&a).is_none() && !fresh.pin(&a));
    }
}
