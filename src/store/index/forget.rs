//! Forgetting: which versions no point needs any more, and taking them out of the history.

use std::collections::BTreeSet;

use super::keys::{self, Family, meta};
use super::rows::{Stored, Volume};
use super::scan::{Ended, ended_item};
use super::txn::Txn;
use super::{HEADS, HISTORY, Index, damaged};
use crate::store::model::{Edit, ForgetFrom, Recipe};
use crate::types::{ChunkId, Lsn, Result, VolumeId};

/// What this copy remembers of a volume's dead list, so that it need not look for it among rows that were removed:
/// until RocksDB has merged those away, passing over them can cost more than forgetting did. No part of the state:
/// it may be lost at any time, and changes only where is looked, never what is found.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Where the next `Forget` record is to begin.
    from: ForgetFrom,
    /// The buckets that may hold something, bucket 0 aside.
    buckets: BTreeSet<Lsn>,
    /// Whether others are being looked for; what is put into one meanwhile is noted.
    learning: bool,
    /// Whether there are no others.
    complete: bool,
}

/// What a volume lets be forgotten.
struct Limits {
    /// What only the window needed and ended up to here.
    floor: Lsn,
    /// The oldest snapshot being deleted, with the points before and after it.
    deleting: Option<(Lsn, Lsn, Lsn)>,
}

impl Limits {
    fn of(volume: &Volume) -> Limits {
        let deleting = volume.points.iter().find(|(_, s)| s.deleting).map(|(at, _)| {
            let previous = volume.points.range(..at).next_back().map_or(Lsn::ZERO, |(p, _)| *p);
            let next = volume.points.range(at.next()..).next().map_or(Lsn::MAX, |(n, _)| *n);
            (previous, *at, next)
        });
        Limits { floor: volume.floor, deleting }
    }
}

/// What one record forgets.
struct Due {
    /// Ends and keys of what only the window needed.
    window: Vec<(Lsn, Vec<u8>)>,
    /// What only the snapshot needed.
    snapshot: Vec<Ended>,
    /// Whether there is no more of the snapshot's.
    all: bool,
}

impl Txn<'_> {
    /// Forgets up to a batch of versions: first what only the window kept and has left it, then what only
    /// the oldest snapshot being deleted needed. That one is gone when a look from the beginning finds no more.
    pub(super) fn forget(&mut self, vol: VolumeId, items: usize, from: ForgetFrom) -> Result<()> {
        let Some(limits) = self.state.volumes.get(&vol).map(Limits::of) else { return Ok(()) };
        let due = self.index.due(vol, &limits, items, from)?;
        #[cfg(test)]
        if let Some((previous, at, next)) = limits.deleting
            && let left @ 1.. = items.saturating_sub(due.window.len())
        {
            let start = (from.first, from.end);
            let found = self.index.ended_between(vol, (previous, at), (at, next), start, left)?;
            assert_eq!(
                due.snapshot, found,
                "what is remembered of the dead list changes what is found there"
            );
        }
        let mut reached = from;
        for (end, head) in due.window {
            self.delete_ended(vol, Lsn::ZERO, end, &head)?;
            self.free_history(&head, end)?;
            reached.window = end;
        }
        for (first, end, head, bytes) in due.snapshot {
            self.delete_ended(vol, first, end, &head)?;
            if end > limits.floor {
                self.put_ended(vol, Lsn::ZERO, end, &head, bytes)?;
            } else {
                self.free_history(&head, end)?;
            }
            (reached.first, reached.end) = (first, end);
        }
        if due.all {
            (reached.first, reached.end) = (Lsn::ZERO, Lsn::ZERO);
            if let Some((_, at, _)) = limits.deleting.filter(|_| from.first == Lsn::ZERO) {
                self.delete_row(&meta::snapshot(vol, at));
                if let Some(volume) = self.state.volume_mut(vol) {
                    volume.points.remove(&at);
                }
            }
        }
        self.index.forgotten.lock().entry(vol).or_default().from = reached;
        Ok(())
    }
}

impl Index {
    fn due(&self, vol: VolumeId, limits: &Limits, items: usize, from: ForgetFrom) -> Result<Due> {
        let window = self.ended_until(vol, from.window, limits.floor, items)?;
        let left = items.saturating_sub(window.len());
        let Some((previous, at, next)) = limits.deleting.filter(|_| left > 0) else {
            return Ok(Due { window, snapshot: Vec::new(), all: false });
        };
        let start = (from.first, from.end);
        let snapshot = match self.buckets(vol, previous, at) {
            Some(buckets) => self.ended_in(vol, &buckets, (at, next), start, left)?,
            None => self.ended_between(vol, (previous, at), (at, next), start, left)?,
        };
        let all = snapshot.len() < left;
        Ok(Due { window, snapshot, all })
    }

    /// Up to `limit` dead-list items that only the window needs, and that ended in `from..=until`.
    fn ended_until(&self, vol: VolumeId, from: Lsn, until: Lsn, limit: usize) -> Result<Vec<(Lsn, Vec<u8>)>> {
        let from = keys::ended_from(vol, Lsn::ZERO, from);
        let below = keys::ended_from(vol, Lsn::ZERO, until.next());
        let keys = self.keys_between(HISTORY, &from, &below, limit)?;
        Ok(keys.iter().filter_map(|k| keys::split_ended(k)).map(|(_, end, head)| (end, head)).collect())
    }

    /// Up to `limit` dead-list items with `firsts.0 < first ≤ firsts.1` and `ends.0 < end ≤ ends.1`, none of them
    /// before `start` (first, end).
    fn ended_between(
        &self,
        vol: VolumeId,
        firsts: (Lsn, Lsn),
        ends: (Lsn, Lsn),
        start: (Lsn, Lsn),
        limit: usize,
    ) -> Result<Vec<Ended>> {
        let mut found = Vec::new();
        let from = keys::ended_from(vol, firsts.0.next(), ends.0.next());
        let from = from.max(keys::ended_from(vol, start.0, start.1));
        self.visit_ended_from(&from, vol, firsts.1, ends, |item| {
            found.push(item);
            Ok(found.len() < limit)
        })?;
        Ok(found)
    }

    /// As [`Index::ended_between`], in these buckets only. Those that turn out to be empty are not looked into again.
    fn ended_in(
        &self,
        vol: VolumeId,
        buckets: &[Lsn],
        ends: (Lsn, Lsn),
        start: (Lsn, Lsn),
        limit: usize,
    ) -> Result<Vec<Ended>> {
        let mut found = Vec::new();
        for &first in buckets.iter().filter(|first| **first >= start.0) {
            let from = keys::ended_from(vol, first, ends.0.next());
            let from = from.max(keys::ended_from(vol, start.0, start.1));
            // Up to the bucket's end, which says whether it is empty, and not into the next one.
            let mut it = self.iterate(HISTORY, &from, &keys::ended_from(vol, first.next(), Lsn::ZERO))?;
            let mut empty = true;
            while let Some((key, value)) = it.item() {
                empty = false;
                let item = ended_item(key, value)?;
                if item.1 > ends.1 {
                    break;
                }
                found.push(item);
                if found.len() >= limit {
                    return Ok(found);
                }
                it.next();
            }
            it.status().map_err(super::index_error)?;
            // What ended before is gone: forgetting has come to this snapshot, which no point precedes in the bucket.
            if empty
                && start.0 == Lsn::ZERO
                && let Some(known) = self.forgotten.lock().get_mut(&vol)
            {
                known.buckets.remove(&first);
            }
        }
        Ok(found)
    }

    /// The buckets behind `previous` and up to `at` that may hold something, if it is known which do.
    fn buckets(&self, vol: VolumeId, previous: Lsn, at: Lsn) -> Option<Vec<Lsn>> {
        let forgotten = self.forgotten.lock();
        let known = forgotten.get(&vol).filter(|known| known.complete)?;
        Some(known.buckets.range(previous.next()..=at).copied().collect())
    }

    /// Notes that something is put into a bucket.
    pub(super) fn note_bucket(&self, vol: VolumeId, first: Lsn) {
        if first > Lsn::ZERO {
            self.forgotten.lock().entry(vol).or_default().buckets.insert(first);
        }
    }

    /// Finds out which buckets hold something.
    fn learn_buckets(&self, vol: VolumeId) -> Result<()> {
        {
            let mut forgotten = self.forgotten.lock();
            let known = forgotten.entry(vol).or_default();
            if known.complete {
                return Ok(());
            }
            known.learning = true;
        }
        let mut found = BTreeSet::new();
        let below = keys::ended_from(vol, Lsn::MAX, Lsn::ZERO);
        let mut it = self.iterate(HISTORY, &keys::ended_from(vol, Lsn::ZERO.next(), Lsn::ZERO), &below)?;
        while let Some(key) = it.key() {
            let (first, ..) = keys::split_ended(key).ok_or_else(|| damaged(key, "bad key"))?;
            found.insert(first);
            it.seek(keys::ended_from(vol, first.next(), Lsn::ZERO));
        }
        it.status().map_err(super::index_error)?;
        let mut forgotten = self.forgotten.lock();
        let known = forgotten.entry(vol).or_default();
        known.buckets.append(&mut found);
        // Unless all was forgotten in between, and with it what was noted.
        known.complete = known.learning;
        Ok(())
    }

    /// Reads what a record that forgets or reaps is about to need, so that applying it, while everybody waits, finds
    /// it in memory.
    pub fn read_ahead(&self, edit: &Edit) -> Result<()> {
        match edit {
            Edit::Forget { vol, items, from } => {
                self.learn_buckets(*vol)?;
                let limits = self.state().volumes.get(vol).map(Limits::of);
                let Some(limits) = limits else { return Ok(()) };
                let due = self.due(*vol, &limits, *items as usize, *from)?;
                let freed = due.snapshot.into_iter().map(|(_, end, head, _)| (end, head));
                let rows = due.window.into_iter().chain(freed.filter(|(end, _)| *end <= limits.floor));
                self.read_versions(HISTORY, rows.map(|(end, head)| keys::history(&head, end)).collect())
            }
            Edit::Reap { vol, ino, cut, items } => {
                let row = meta::reap(*vol, *cut, *ino);
                let Some((from, to, _)) = self.reap_range(&row)? else { return Ok(()) };
                let (from, below) = (keys::block(*vol, *ino, from), keys::block(*vol, *ino, to));
                self.read_versions(HEADS, self.keys_between(HEADS, &from, &below, *items as usize)?)
            }
            _ => Ok(()),
        }
    }

    /// Reads versions, and what is known of the chunks that their blocks name.
    fn read_versions(&self, family: &str, rows: Vec<Vec<u8>>) -> Result<()> {
        let mut ids: Vec<ChunkId> = Vec::new();
        for (key, value) in rows.iter().zip(self.get_all(family, rows.iter())) {
            let Some(value) = value?.filter(|_| keys::family_of(key) == Some(Family::Block)) else {
                continue;
            };
            let stored = Stored::decode(&value).map_err(|e| damaged(key, e))?;
            let recipe = Recipe::join_public(&stored.public).map_err(|e| damaged(key, e))?;
            ids.extend(recipe.chunks());
        }
        ids.sort_unstable();
        ids.dedup();
        self.chunks(&ids).map(drop)
    }

    /// Whether a `Forget` record would find work.
    pub fn wants_forget(&self, vol: VolumeId) -> Result<bool> {
        let (floor, deleting) = {
            let state = self.state();
            let Some(volume) = state.volumes.get(&vol).filter(|v| !v.deleted) else { return Ok(false) };
            (volume.floor, volume.points.values().any(|s| s.deleting))
        };
        Ok(deleting || self.window_moves(vol, floor)?)
    }

    /// Whether moving the window's floor to `floor` would let something be forgotten.
    pub fn window_moves(&self, vol: VolumeId, floor: Lsn) -> Result<bool> {
        Ok(!self.ended_until(vol, self.forget_from(vol).window, floor, 1)?.is_empty())
    }

    /// Where the next `Forget` record is to begin its look: what was forgotten lies before it. From the very beginning
    /// where this is not known, and when a look from here has found no more.
    pub fn forget_from(&self, vol: VolumeId) -> ForgetFrom {
        self.forgotten.lock().get(&vol).map(|known| known.from).unwrap_or_default()
    }
}
