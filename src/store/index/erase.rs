//! Erasing: versions of the history are freed although points still show them. Which ones is decided by whoever
//! commits the record; where the dead list has them depends on points that may be gone by now, so the record says
//! that, too, and `apply` need not find out.

use std::collections::BTreeSet;

use super::keys::{self, Family, meta};
use super::rows::Stored;
use super::scan::ReapItem;
use super::txn::Txn;
use super::{HEADS, HISTORY, Index, damaged};
use crate::store::model::{Dirent, PastVersion};
use crate::types::{Ino, Lsn, Result, VolumeId};

/// Buckets of the dead list that are looked into first.
const BUCKETS_KNOWN_MAX: usize = 16;

/// Buckets of the dead list in which versions were found: those of one file mostly share a few.
#[derive(Debug)]
pub struct Buckets(Vec<Lsn>);

impl Default for Buckets {
    fn default() -> Buckets {
        Buckets(vec![Lsn::ZERO])
    }
}

impl Buckets {
    fn learn(&mut self, first: Lsn) {
        if !self.0.contains(&first) {
            if self.0.len() >= BUCKETS_KNOWN_MAX {
                self.0.remove(1);
            }
            self.0.push(first);
        }
    }
}

/// A part of the history.
#[derive(Debug, Default)]
pub struct PastPage {
    /// Versions, with where the dead list has them.
    pub versions: Vec<PastVersion>,
    /// Versions that the dead list does not have: forgotten just now, or damage.
    pub unlisted: u64,
    /// Where the next page begins; none when this was the last.
    pub next: Option<Vec<u8>>,
}

impl Txn<'_> {
    /// Frees a version, wherever the dead list has it by now. If forgetting was faster, nothing happens.
    pub(super) fn erase(&mut self, vol: VolumeId, version: &PastVersion) -> Result<()> {
        let head = keys::of_item(vol, &version.item);
        for first in [version.first, Lsn::ZERO] {
            let row = keys::ended(vol, first, version.end, &head);
            if self.index.get(HISTORY, &row)?.is_some() {
                self.delete_ended(vol, first, version.end, &head)?;
                return self.free_history(&head, version.end).map(drop);
            }
        }
        Ok(())
    }
}

impl Index {
    /// A page of the history of the items whose keys begin with `prefix`: from the row `from` on (empty: from the
    /// first), at most `limit` versions that `wanted` accepts.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn past_page(
        &self,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
        wanted: impl Fn(&Stored) -> bool,
        buckets: &mut Buckets,
    ) -> Result<PastPage> {
        let mut page = PastPage::default();
        let mut rows = Vec::new();
        let from = if from.is_empty() { prefix } else { from };
        self.range(HISTORY, from, &keys::after_prefix(prefix), |key, value| {
            if rows.len() >= limit {
                page.next = Some(key.to_vec());
                return Ok(false);
            }
            let stored = Stored::decode(value).map_err(|e| damaged(key, e))?;
            if wanted(&stored) {
                rows.push((key.to_vec(), stored));
            }
            Ok(true)
        })?;
        for (key, stored) in rows {
            let (head, end) = keys::split_history(&key).ok_or_else(|| damaged(&key, "bad key"))?;
            let item = keys::item_of(head).ok_or_else(|| damaged(head, "bad key"))?;
            let Some(first) = self.bucket(head, stored.since, end, buckets)? else {
                page.unlisted += 1;
                continue;
            };
            page.versions.push(PastVersion { item, first, end });
        }
        Ok(page)
    }

    /// The bucket of the dead list that has a version. It is that of the first point within its life, as points were
    /// when it ended; forgetting may have moved it to bucket 0.
    fn bucket(&self, head: &[u8], since: Lsn, end: Lsn, buckets: &mut Buckets) -> Result<Option<Lsn>> {
        let vol = keys::volume_of(head);
        let is_in = |first: Lsn| {
            let row = keys::ended(vol, first, end, head);
            self.get(HISTORY, &row).map(|row| row.is_some())
        };
        let point =
            self.state().volumes.get(&vol).and_then(|v| v.points.range(since..end).next().map(|p| *p.0));
        let within = |first: &Lsn| *first == Lsn::ZERO || (since..end).contains(first);
        for first in point.into_iter().chain(buckets.0.iter().rev().copied()).filter(within) {
            if is_in(first)? {
                buckets.learn(first);
                return Ok(Some(first));
            }
        }
        let before = Lsn(end.0.saturating_sub(1));
        let mut found = None;
        self.visit_ended(vol, (since.max(Lsn(1)), before), (before, end), |(first, _, listed, _)| {
            if listed == head {
                found = Some(first);
            }
            Ok(found.is_none())
        })?;
        if found.is_none() && is_in(Lsn::ZERO)? {
            found = Some(Lsn::ZERO);
        }
        if let Some(first) = found {
            buckets.learn(first);
        }
        Ok(found)
    }

    /// Visits the versions of the items whose keys begin with `prefix`: key, end (none of a head), version. One that
    /// ends meanwhile may be met twice.
    ///
    /// # Errors
    /// The index cannot be read; what `visit` said.
    pub fn visit_versions(
        &self,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], Option<Lsn>, Stored) -> Result<()>,
    ) -> Result<()> {
        let below = keys::after_prefix(prefix);
        self.range(HEADS, prefix, &below, |key, value| {
            visit(key, None, Stored::decode(value).map_err(|e| damaged(key, e))?)?;
            Ok(true)
        })?;
        self.range(HISTORY, prefix, &below, |key, value| {
            let (head, end) = keys::split_history(key).ok_or_else(|| damaged(key, "bad key"))?;
            visit(head, Some(end), Stored::decode(value).map_err(|e| damaged(key, e))?)?;
            Ok(true)
        })
    }

    /// Visits the versions of all entries of a volume, or of one name, that name one of `inodes`: key, end, birth,
    /// entry.
    ///
    /// # Errors
    /// As [`Index::visit_versions`].
    pub fn visit_names(
        &self,
        prefix: &[u8],
        inodes: &BTreeSet<Ino>,
        mut visit: impl FnMut(&[u8], Option<Lsn>, Lsn, Dirent) -> Result<()>,
    ) -> Result<()> {
        self.visit_versions(prefix, |key, end, stored| {
            let ino = Dirent::ino_of(&stored.public).map_err(|e| damaged(key, e))?;
            if inodes.contains(&ino) {
                visit(key, end, stored.since, self.item(key, &stored)?)?;
            }
            Ok(())
        })
    }

    /// The inodes of a volume that are being erased.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn purges(&self, vol: VolumeId) -> Result<BTreeSet<Ino>> {
        let rows = self.keys_with("default", &meta::of_volume(meta::PURGE, vol), usize::MAX)?;
        Ok(rows.iter().filter_map(|k| meta::split::<1>(k)).map(|(_, [ino])| Ino(ino)).collect())
    }

    /// The cuts of one of `inodes` that are still to be reaped.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn reaps_of(&self, vol: VolumeId, inodes: &BTreeSet<Ino>) -> Result<Vec<ReapItem>> {
        let rows = self.keys_with("default", &meta::of_volume(meta::REAP, vol), usize::MAX)?;
        let items = rows.iter().filter_map(|key| {
            let (vol, [cut, ino]) = meta::split::<2>(key)?;
            Some(ReapItem { vol, ino: Ino(ino), cut: Lsn(cut) })
        });
        Ok(items.filter(|item| inodes.contains(&item.ino)).collect())
    }

    /// Up to `limit` numbers of blocks that an inode has in the present.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn live_blocks(&self, vol: VolumeId, ino: Ino, limit: usize) -> Result<Vec<u64>> {
        let found = self.keys_with(HEADS, &keys::prefix(vol, Family::Block, ino), limit)?;
        Ok(found.iter().filter_map(|key| keys::block_of(key)).collect())
    }
}
