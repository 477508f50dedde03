//! Which pack is rewritten next, and its rewriting in steps.

use std::collections::{BTreeSet, HashMap};

use crate::store::Store;
use crate::store::chunks::pack::{self, Location, Trust};
use crate::store::index::Locate;
use crate::store::index::relocate::Relocation;
use crate::types::{ChunkId, Error, PackId, Result};

/// Chunks for which the append lock is taken at once.
const CHUNKS_PER_STEP: usize = 1000;

/// A pack that is being rewritten.
pub(super) struct Work {
    pub(super) pack: PackId,
    frames: Vec<(ChunkId, Location)>,
    next: usize,
    /// Chunks that could not go.
    left: u64,
    /// Bytes of frames that something names, and of the others, when it was looked at.
    pub(super) live_bytes: u64,
    pub(super) dead_bytes: u64,
}

impl Work {
    /// Whether all frames were looked at.
    pub(super) fn is_done(&self) -> bool {
        self.next >= self.frames.len()
    }

    /// Whether something is still there.
    pub(super) fn leaves_some(&self) -> bool {
        self.left > 0
    }
}

impl Store {
    /// The packs below `end`, with their sizes and what of them is named.
    pub(super) fn pack_sizes(&self, end: PackId) -> Result<Vec<(PackId, u64, u64)>> {
        let mut found = Vec::new();
        for id in pack::list(&*self.disk, &self.layout.packs)?.into_iter().filter(|id| *id < end) {
            let live = self.index.state().packs.get(&id).map_or(0, |stat| stat.live_bytes);
            found.push((id, self.pack_bytes(id)?, live));
        }
        Ok(found)
    }

    /// The pack with the largest dead part, if at least `percent` of its frames' bytes are dead, and any are.
    /// Only packs in `among` count, if it is given.
    pub(super) fn choose(
        &self,
        judged: &mut HashMap<PackId, u64>,
        percent: u64,
        among: Option<&BTreeSet<PackId>>,
    ) -> Result<Option<Work>> {
        // Footers of finished packs, and no pack half in the writer's hands.
        self.chunks.sync().map_err(|e| self.poisoned(&e))?;
        let retired = self.index.state().retired.clone();
        // What is packed and not named yet lies at or behind this.
        let end = self.chunks.low_mark().0.min(self.chunks.end().0);
        let mut packs = self.pack_sizes(end)?;
        packs.retain(|(id, _, live)| !retired.contains_key(id) && judged.get(id) != Some(live));
        packs.retain(|(id, ..)| among.is_none_or(|among| among.contains(id)));
        packs.sort_by_key(|(_, len, live)| live.saturating_mul(1000) / (*len).max(1));
        for (id, len, live) in packs {
            // Headers and footers count as dead here, and exactly below.
            if len.saturating_sub(live).saturating_mul(100) < len.saturating_mul(percent) {
                break;
            }
            let work = match self.work_on(id) {
                Ok(work) => work,
                Err(e) => {
                    tracing::warn!(error = %e, "a pack that cannot be read is not rewritten");
                    judged.insert(id, live);
                    continue;
                }
            };
            let frames = work.live_bytes + work.dead_bytes;
            // An empty pack has nothing dead in it, and is of no use.
            let wanted = frames == 0 || work.dead_bytes > 0;
            if wanted && work.dead_bytes.saturating_mul(100) >= frames.saturating_mul(percent) {
                return Ok(Some(work));
            }
            judged.insert(id, live);
        }
        Ok(None)
    }

    /// Looks at a pack's frames.
    pub(super) fn work_on(&self, pack: PackId) -> Result<Work> {
        let mut work = Work { pack, frames: Vec::new(), next: 0, left: 0, live_bytes: 0, dead_bytes: 0 };
        let report =
            pack::scan(&*self.disk, &self.layout.packs, self.id, pack, 0, Trust::Footer, &mut |id, at| {
                let live = self.is_wanted(&id, &at)?;
                let bytes = if live { &mut work.live_bytes } else { &mut work.dead_bytes };
                *bytes += at.frame_bytes();
                work.frames.push((id, at));
                Ok(())
            })?;
        // What a scan does not see keeps its entry, dead ones included, and they must not outlive the pack.
        report.errors().next().map_or(Ok(work), Err)
    }

    /// Whether the frame holds a chunk that something names or is about to.
    fn is_wanted(&self, id: &ChunkId, at: &Location) -> Result<bool> {
        if self.chunks.locate(id) == Some(*at) {
            return Ok(true);
        }
        let entry = self.index.chunk(id)?.filter(|entry| entry.location == *at);
        Ok(entry.is_some_and(|entry| entry.refs > 0 || self.chunks.is_pinned(id)))
    }

    /// Copies up to `bytes` of what is wanted, and tells the index. Returns how many.
    pub(super) fn rewrite_some(&self, work: &mut Work, bytes: u64) -> Result<u64> {
        let left = work.frames.get(work.next..).unwrap_or_default();
        let wanted: u64 = left.iter().map(|(_, at)| at.frame_bytes()).sum::<u64>().min(work.live_bytes);
        if wanted > 0 && !self.room.has(wanted.min(bytes)) {
            return Err(Error::NoSpace("copies of what packs still hold".into()));
        }
        let (mut copied, mut changes, mut failed) = (0, Vec::new(), None);
        for (id, from) in left.iter().take(CHUNKS_PER_STEP) {
            if copied >= bytes {
                break;
            }
            let to = match self.is_wanted(id, from)?.then(|| self.chunks.copy(id, from)).transpose() {
                Ok(to) => to,
                // What was copied before counts all the same.
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            };
            work.next += 1;
            copied += to.map_or(0, |to| to.frame_bytes());
            changes.push(Relocation { id: *id, from: *from, to });
        }
        if copied > 0 {
            self.chunks.sync().map_err(|e| self.poisoned(&e))?;
        }
        let _committed = self.commit.lock();
        self.check_writable()?;
        self.index.ready()?;
        work.left += self.index.relocate(&changes, &|id| self.chunks.is_pinned(id))?;
        failed.map_or(Ok(copied), Err)
    }
}
