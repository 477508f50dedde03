//! What only some points of a volume keep: what deleting them would free.

use std::collections::{BTreeSet, HashMap};

use super::keys::{self, Family};
use super::rows::Stored;
use super::{HISTORY, Index, damaged};
use crate::store::model::Recipe;
use crate::types::limits::COUNTED_CHUNKS_MAX;
use crate::types::{ChunkId, Lsn, Result, VolumeId};

/// Versions, and chunks, that are read at a time.
const BATCH: usize = 1000;

/// What only some points keep, the continuous window aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnlyKept {
    /// Bytes of file data, before deduplication and compression.
    pub data_bytes: u64,
    /// Bytes in packs of the chunks that nothing else names: what deleting gives back.
    pub stored_bytes: u64,
    /// There were more than [`COUNTED_CHUNKS_MAX`] chunks; the data of the rest is in `stored_bytes` as it is.
    pub at_most: bool,
}

/// Chunks and how often they are named.
#[derive(Default)]
struct Named {
    rows: Vec<Vec<u8>>,
    chunks: HashMap<ChunkId, u64>,
    uncounted_bytes: u64,
}

impl Index {
    /// Bytes of file data that only the point at `at` keeps, the continuous window aside, before deduplication and
    /// compression.
    pub fn bytes_only(&self, vol: VolumeId, at: Lsn) -> Result<u64> {
        let mut total = 0u64;
        self.visit_only(vol, &BTreeSet::from([at]), |_, _, bytes| {
            total = total.saturating_add(bytes);
            Ok(())
        })?;
        Ok(total)
    }

    /// What would be freed if these points were deleted together. Takes as long as deleting them does.
    pub fn only_kept(&self, vol: VolumeId, points: &BTreeSet<Lsn>) -> Result<OnlyKept> {
        let mut named = Named::default();
        let mut kept = OnlyKept::default();
        self.visit_only(vol, points, |end, head, bytes| {
            kept.data_bytes = kept.data_bytes.saturating_add(bytes);
            if keys::family_of(&head) == Some(Family::Block) {
                named.rows.push(keys::history(&head, end));
            }
            if named.rows.len() < BATCH { Ok(()) } else { self.count_chunks(&mut named) }
        })?;
        self.count_chunks(&mut named)?;
        let Named { chunks, uncounted_bytes, .. } = named;
        (kept.stored_bytes, kept.at_most) = (uncounted_bytes, uncounted_bytes > 0);
        let mut ids: Vec<ChunkId> = chunks.keys().copied().collect();
        ids.sort_unstable();
        for ids in ids.chunks(BATCH) {
            for (id, entry) in ids.iter().zip(self.chunks(ids)?) {
                let own = chunks.get(id).copied().unwrap_or(0);
                if let Some(entry) = entry.filter(|entry| entry.refs <= own && !entry.location.is_lost()) {
                    kept.stored_bytes = kept.stored_bytes.saturating_add(entry.location.stored_len.into());
                }
            }
        }
        Ok(kept)
    }

    /// Visits what only these points keep: the record that ended it, its key, and its bytes of file data.
    fn visit_only(
        &self,
        vol: VolumeId,
        points: &BTreeSet<Lsn>,
        mut visit: impl FnMut(Lsn, Vec<u8>, u64) -> Result<()>,
    ) -> Result<()> {
        let neighbours: Vec<(Lsn, Lsn, Lsn)> = {
            let state = self.state();
            let Some(volume) = state.volumes.get(&vol) else { return Ok(()) };
            let kept = |at: &Lsn| !points.contains(at);
            let around = |at: &Lsn| {
                let previous = volume.points.range(..at).next_back().map_or(Lsn::ZERO, |(p, _)| *p);
                let next =
                    volume.points.range(at.next()..).find(|(p, _)| kept(p)).map_or(Lsn::MAX, |(n, _)| *n);
                (previous, *at, next)
            };
            points.iter().filter(|at| volume.points.contains_key(at)).map(around).collect()
        };
        for (previous, at, next) in neighbours {
            self.visit_ended(vol, (previous.next(), at), (at, next), |(_, end, head, bytes)| {
                visit(end, head, bytes)?;
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// Counts the chunks that versions name, and forgets these.
    fn count_chunks(&self, named: &mut Named) -> Result<()> {
        let rows = std::mem::take(&mut named.rows);
        for (key, value) in rows.iter().zip(self.get_all(HISTORY, rows.iter())) {
            // Forgotten meanwhile.
            let Some(value) = value? else { continue };
            let stored = Stored::decode(&value).map_err(|e| damaged(key, e))?;
            let recipe = Recipe::join_public(&stored.public).map_err(|e| damaged(key, e))?;
            for id in recipe.chunks() {
                let room = named.chunks.len() < COUNTED_CHUNKS_MAX;
                match named.chunks.get_mut(id) {
                    Some(count) => *count += 1,
                    None if room => drop(named.chunks.insert(*id, 1)),
                    None => named.uncounted_bytes = named.uncounted_bytes.saturating_add(recipe.data_bytes()),
                }
            }
        }
        Ok(())
    }
}
