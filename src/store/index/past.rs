//! What changed between two points, and the versions that one item had.

use super::keys::{self, Family};
use super::rows::Stored;
use super::view::{Version, View, kind_of};
use super::{HEADS, HISTORY, damaged, index_error};
use crate::store::model::{Dirent, Inode, Item};
use crate::types::{Ino, Lsn, Result};

/// An item of a view that was changed or removed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// An inode.
    Inode(Ino),
    /// A directory entry.
    Entry(Ino, [u8; 16]),
    /// A block of that file.
    Block(Ino),
}

/// A directory entry, found by the inode it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The LSN at which it began.
    pub since: Lsn,
    /// The inode it names.
    pub ino: Ino,
    /// Its directory.
    pub parent: Ino,
    /// The hash of its name.
    pub hash: [u8; 16],
}

/// A version with the LSN at which it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span<T> {
    /// Where it began.
    pub since: Lsn,
    /// Where it ended: the first record that does not show it. [`Lsn::MAX`] if it has not.
    pub end: Lsn,
    /// The item.
    pub item: T,
}

impl View {
    /// Visits what this view of a point shows and a view of `until` does not show any more, or in another
    /// version: out of the dead list, so it costs what ended, and a seek for each point before `until`. A cut
    /// that is not reaped yet has ended no block.
    pub fn ended_by(&self, until: Lsn, mut visit: impl FnMut(Ended) -> Result<bool>) -> Result<()> {
        let Some(at) = self.at else { return Ok(()) };
        let is_point = {
            let state = self.index.state();
            let volume = state.volumes.get(&self.vol);
            volume.and_then(|v| v.points.get(&at)).is_some_and(|s| !s.deleting)
        };
        // What a snapshot shows is needed by that snapshot or by one before it. What only the window keeps has
        // no such point, and its first one may come later.
        let firsts = if is_point { (Lsn::ZERO.next(), at) } else { (Lsn::ZERO, until) };
        self.index.visit_ended(self.vol, firsts, (at, until), |(first, end, head, _)| {
            let certain = first > Lsn::ZERO && first <= at;
            if !certain {
                let row = self.index.get(HISTORY, &keys::history(&head, end))?;
                let since = row.map(|r| Stored::since_of(&r).map_err(|e| damaged(&head, e))).transpose()?;
                if since.is_none_or(|since| since > at) {
                    return Ok(true);
                }
            }
            let ino = keys::ino_of(&head).ok_or_else(|| damaged(&head, "bad key"))?;
            match keys::family_of(&head) {
                Some(Family::Inode) => visit(Ended::Inode(ino)),
                Some(Family::Block) => visit(Ended::Block(ino)),
                Some(Family::Dirent) => {
                    let hash = keys::hash_of(&head).ok_or_else(|| damaged(&head, "bad key"))?;
                    visit(Ended::Entry(ino, hash))
                }
                // Its inode ended with it.
                Some(Family::Xattr) | None => Ok(true),
            }
        })
    }

    /// Visits the inodes numbered from `from` on whose version began after `after`.
    pub fn inodes_since(
        &self,
        from: Ino,
        after: Lsn,
        mut visit: impl FnMut(Ino) -> Result<bool>,
    ) -> Result<()> {
        let prefix = keys::family(self.vol, Family::Inode);
        self.scan(&prefix, &keys::inode(self.vol, from), &mut |since, stored, key| {
            let ino = keys::ino_of(key).ok_or_else(|| damaged(key, "bad key"))?;
            let hidden = self.at.is_some() && Inode::is_excluded(&stored.public);
            if since > after && !hidden { visit(ino) } else { Ok(true) }
        })
    }

    /// An entry of a directory, with the LSN at which it began.
    pub fn entry(&self, parent: Ino, hash: &[u8; 16]) -> Result<Option<Version<Dirent>>> {
        let found = self.get::<Dirent>(&keys::dirent(self.vol, parent, hash))?;
        Ok(found.filter(|v| self.at.is_none() || !v.item.excluded))
    }

    /// Visits the entries that name an inode which `wanted` accepts: those of one directory, or of the whole
    /// volume. No name is opened.
    pub fn entries_naming(
        &self,
        dir: Option<Ino>,
        wanted: impl Fn(Ino) -> bool,
        mut visit: impl FnMut(Named) -> Result<bool>,
    ) -> Result<()> {
        let prefix = match dir {
            Some(dir) => keys::prefix(self.vol, Family::Dirent, dir),
            None => keys::family(self.vol, Family::Dirent),
        };
        self.scan(&prefix, &prefix, &mut |since, stored, key| {
            let ino = Dirent::ino_of(&stored.public).map_err(|e| damaged(key, e))?;
            if !wanted(ino) || (self.at.is_some() && kind_of(stored, key)?.1) {
                return Ok(true);
            }
            let (parent, hash) =
                keys::ino_of(key).zip(keys::hash_of(key)).ok_or_else(|| damaged(key, "bad key"))?;
            visit(Named { since, ino, parent, hash })
        })
    }

    /// Whether a block that this view shows of a file began after `after`.
    pub fn has_block_since(&self, inode: &Inode, ino: Ino, after: Lsn) -> Result<bool> {
        let prefix = keys::prefix(self.vol, Family::Block, ino);
        let mut found = false;
        self.scan(&prefix, &prefix, &mut |since, _, key| {
            let block = keys::block_of(key).ok_or_else(|| damaged(key, "bad key"))?;
            found = since > after && since >= inode.cut_at(block);
            Ok(!found)
        })?;
        Ok(found)
    }

    /// Visits the versions that an inode had before the record `before`, newest first, whatever this view
    /// shows. Versions that no point needs are not kept.
    pub fn inode_spans(
        &self,
        ino: Ino,
        before: Lsn,
        visit: impl FnMut(Span<Inode>) -> Result<bool>,
    ) -> Result<()> {
        self.spans(&keys::inode(self.vol, ino), before, visit)
    }

    /// As [`View::inode_spans`], of a directory entry.
    pub fn entry_spans(
        &self,
        parent: Ino,
        hash: &[u8; 16],
        before: Lsn,
        visit: impl FnMut(Span<Dirent>) -> Result<bool>,
    ) -> Result<()> {
        self.spans(&keys::dirent(self.vol, parent, hash), before, visit)
    }

    fn spans<T: Item>(
        &self,
        key: &[u8],
        before: Lsn,
        mut visit: impl FnMut(Span<T>) -> Result<bool>,
    ) -> Result<()> {
        // A version that moves from the heads to the history meanwhile is met twice; the second time its
        // birth is not below the one before.
        let mut oldest = before;
        let mut show = |end: Lsn, stored: &Stored| {
            if stored.since >= oldest {
                return Ok(true);
            }
            oldest = stored.since;
            visit(Span { since: stored.since, end, item: self.index.item(key, stored)? })
        };
        let head = self.index.get(HEADS, key)?;
        if let Some(row) = &head
            && !show(Lsn::MAX, &Stored::decode(row).map_err(|e| damaged(key, e))?)?
        {
            return Ok(());
        }
        drop(head);
        // The one that ends at `before` or later, then those that ended earlier.
        let last = Lsn(before.0.saturating_sub(1));
        let mut it = self.index.iterate(HISTORY, &keys::history(key, before), &keys::after_prefix(key))?;
        let mut earlier = false;
        loop {
            let row = it.item().and_then(|(row, value)| Some((keys::split_history(row)?, value)));
            let more = match row.filter(|((head, _), _)| *head == key) {
                Some(((_, end), value)) => show(end, &Stored::decode(value).map_err(|e| damaged(key, e))?)?,
                None => !earlier,
            };
            if !more {
                break;
            }
            if earlier {
                it.prev();
            } else {
                earlier = true;
                it.seek_for_prev(keys::history(key, last));
            }
        }
        it.status().map_err(index_error)
    }
}
