//! Views: the tree now, at a snapshot or at any past moment, read by the same code.

use std::sync::Arc;

use super::keys::{self, Family};
use super::rows::Stored;
use super::{HEADS, HISTORY, Index, damaged, index_error};
use crate::store::model::{Dirent, FileKind, Inode, Item, Recipe, Xattr};
use crate::types::{Ino, Lsn, Result, VolumeId};

/// An item and the LSN at which this version of it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version<T> {
    /// Where it began.
    pub since: Lsn,
    /// The item.
    pub item: T,
}

/// Called with the birth, the row and the key of each version met; false ends the scan.
pub(super) type Visit<'a> = dyn FnMut(Lsn, &Stored, &[u8]) -> Result<bool> + 'a;

/// What a stored entry names, and whether it is excluded.
pub(super) fn kind_of(stored: &Stored, key: &[u8]) -> Result<(FileKind, bool)> {
    Dirent::kind_of(&stored.public).map_err(|e| damaged(key, e))
}

/// A volume as it is, or as it was at a point.
#[derive(Clone)]
pub struct View {
    pub(super) index: Arc<Index>,
    pub(super) vol: VolumeId,
    pub(super) at: Option<Lsn>,
}

impl View {
    /// A view of `vol`; live without `at`. The caller has made sure that `at` is readable.
    pub fn new(index: Arc<Index>, vol: VolumeId, at: Option<Lsn>) -> View {
        View { index, vol, at }
    }

    /// The point, or `None` for the live tree.
    pub fn at(&self) -> Option<Lsn> {
        self.at
    }

    /// The version of `key` that this view shows.
    ///
    /// The head first: a version moves to the history in the batch that replaces it, so a head found to be
    /// too new implies that the history already has the older one.
    fn stored(&self, key: &[u8]) -> Result<Option<Stored>> {
        let head = self.index.head(key)?;
        let Some(at) = self.at else { return Ok(head) };
        if let Some(head) = head.filter(|h| h.since <= at) {
            return Ok(Some(head));
        }
        Ok(self.index.history_after(key, at)?.map(|(_, stored)| stored).filter(|s| s.since <= at))
    }

    pub(super) fn get<T: Item>(&self, key: &[u8]) -> Result<Option<Version<T>>> {
        match self.stored(key)? {
            None => Ok(None),
            Some(stored) => Ok(Some(Version { since: stored.since, item: self.index.item(key, &stored)? })),
        }
    }

    /// An inode. A point shows nothing of what is excluded.
    pub fn inode(&self, ino: Ino) -> Result<Option<Version<Inode>>> {
        let found = self.get::<Inode>(&keys::inode(self.vol, ino))?;
        if self.at.is_none() {
            return Ok(found);
        }
        Ok(found.and_then(|v| Some(Version { since: v.since, item: v.item.at_point()? })))
    }

    /// The entry of a directory whose name hashes to `hash`.
    pub fn dirent(&self, parent: Ino, hash: &[u8; 16]) -> Result<Option<Dirent>> {
        Ok(self.entry(parent, hash)?.map(|v| v.item))
    }

    /// What a block of `inode` is made of; an absent block is all zeros.
    pub fn block(&self, inode: &Inode, ino: Ino, block: u64) -> Result<Recipe> {
        let version = self.get::<Recipe>(&keys::block(self.vol, ino, block))?;
        Ok(version.filter(|v| v.since >= inode.cut_at(block)).map(|v| v.item).unwrap_or_default())
    }

    /// An extended attribute by the hash of its name.
    pub fn xattr(&self, ino: Ino, hash: &[u8; 16]) -> Result<Option<Xattr>> {
        Ok(self.get(&keys::xattr(self.vol, ino, hash))?.map(|v| v.item))
    }

    /// All extended attributes of an inode.
    pub fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        let mut found = Vec::new();
        let prefix = keys::prefix(self.vol, Family::Xattr, ino);
        self.scan(&prefix, &prefix, &mut |_, stored, key| {
            found.push(self.index.item(key, stored)?);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Visits the entries of a directory in the order of their hashes, from `from` on, while `visit` says
    /// true.
    pub fn readdir(
        &self,
        parent: Ino,
        from: &[u8; 16],
        visit: impl FnMut([u8; 16], Dirent) -> Result<bool>,
    ) -> Result<()> {
        let shown = |stored: &Stored, key: &[u8]| Ok(self.at.is_none() || !kind_of(stored, key)?.1);
        self.entries_that(shown, parent, from, visit)
    }

    /// As [`View::readdir`], only the directories and what is excluded. No other name is opened.
    pub fn readdir_marked(
        &self,
        parent: Ino,
        from: &[u8; 16],
        visit: impl FnMut([u8; 16], Dirent) -> Result<bool>,
    ) -> Result<()> {
        let marked = |stored: &Stored, key: &[u8]| {
            kind_of(stored, key).map(|(kind, excluded)| kind == FileKind::Dir || excluded)
        };
        self.entries_that(marked, parent, from, visit)
    }

    /// Visits the entries of a directory that are `wanted`, which is asked before their names are opened.
    fn entries_that(
        &self,
        wanted: impl Fn(&Stored, &[u8]) -> Result<bool>,
        parent: Ino,
        from: &[u8; 16],
        mut visit: impl FnMut([u8; 16], Dirent) -> Result<bool>,
    ) -> Result<()> {
        let prefix = keys::prefix(self.vol, Family::Dirent, parent);
        let from = keys::dirent(self.vol, parent, from);
        self.scan(&prefix, &from, &mut |_, stored, key| {
            if !wanted(stored, key)? {
                return Ok(true);
            }
            let hash = keys::hash_of(key).ok_or_else(|| damaged(key, "bad key"))?;
            visit(hash, self.index.item(key, stored)?)
        })
    }

    /// Visits the blocks of an inode that hold data, from block `from` on, while `visit` says true. Bytes that
    /// lie in the recipes are not read: such pieces have only their length.
    pub fn blocks(
        &self,
        inode: &Inode,
        ino: Ino,
        from: u64,
        mut visit: impl FnMut(u64, Recipe) -> Result<bool>,
    ) -> Result<()> {
        self.block_versions(inode, ino, from, |block, stored, key| {
            visit(block, Recipe::join_public(&stored.public).map_err(|e| damaged(key, e))?)
        })
    }

    /// As [`View::blocks`], with the bytes.
    pub fn recipes(
        &self,
        inode: &Inode,
        ino: Ino,
        from: u64,
        mut visit: impl FnMut(u64, Recipe) -> Result<bool>,
    ) -> Result<()> {
        self.block_versions(inode, ino, from, |block, stored, key| {
            visit(block, self.index.item(key, stored)?)
        })
    }

    fn block_versions(
        &self,
        inode: &Inode,
        ino: Ino,
        from: u64,
        mut visit: impl FnMut(u64, &Stored, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let prefix = keys::prefix(self.vol, Family::Block, ino);
        let from = keys::block(self.vol, ino, from);
        self.scan(&prefix, &from, &mut |since, stored, key| {
            let block = keys::block_of(key).ok_or_else(|| damaged(key, "bad key"))?;
            if since < inode.cut_at(block) { Ok(true) } else { visit(block, stored, key) }
        })
    }

    pub(super) fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let below = keys::after_prefix(prefix);
        match self.at {
            None => self.index.range(HEADS, from, &below, |key, value| {
                let stored = Stored::decode(value).map_err(|e| damaged(key, e))?;
                visit(stored.since, &stored, key)
            }),
            Some(at) => self.scan_past(at, from, &below, visit),
        }
    }

    /// Merges heads and history: of each key the version that `at` shows.
    fn scan_past(&self, at: Lsn, from: &[u8], below: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        // The history is opened after the heads: what leaves the heads in between is then seen there twice
        // at worst, and the head wins.
        let mut heads = self.index.iterate(HEADS, from, below)?;
        let mut history = Past(self.index.iterate(HISTORY, from, below)?);
        loop {
            let (head, old) = (heads.key(), history.head());
            let Some(key) = head.into_iter().chain(old).min().map(<[u8]>::to_vec) else { break };
            let (is_head, is_old) = (head == Some(key.as_slice()), old == Some(key.as_slice()));
            let mut shown = None;
            if is_head {
                let stored = heads.value().map(Stored::decode).transpose().map_err(|e| damaged(&key, e))?;
                shown = stored.filter(|s| s.since <= at);
                heads.next();
            }
            if is_old {
                if shown.is_none() {
                    shown = history.at(&key, at)?;
                }
                history.pass(&key);
            }
            if let Some(stored) = shown
                && !visit(stored.since, &stored, &key)?
            {
                break;
            }
        }
        heads.status().map_err(index_error)?;
        history.0.status().map_err(index_error)
    }
}

/// The history of a range of keys.
struct Past<'a>(rocksdb::DBRawIterator<'a>);

impl Past<'_> {
    /// The key whose version is next.
    fn head(&self) -> Option<&[u8]> {
        self.0.key().and_then(keys::split_history).map(|(head, _)| head)
    }

    /// The version of `key`, which is next, that a point shows.
    fn at(&mut self, key: &[u8], at: Lsn) -> Result<Option<Stored>> {
        if self.0.key().and_then(keys::split_history).is_some_and(|(_, end)| end <= at) {
            self.0.seek(keys::history(key, at.next()));
        }
        let value = if self.head() == Some(key) { self.0.value() } else { None };
        let stored = value.map(Stored::decode).transpose().map_err(|e| damaged(key, e))?;
        Ok(stored.filter(|s| s.since <= at))
    }

    /// Passes by what is left of `key`: mostly one version, but it may be a hundred thousand.
    fn pass(&mut self, key: &[u8]) {
        if self.head() == Some(key) {
            self.0.next();
        }
        if self.head() == Some(key) {
            self.0.seek(keys::after_prefix(&keys::history(key, Lsn::MAX)));
        }
    }
}
