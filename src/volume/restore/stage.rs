//! Preparing what comes back, out of sight: new inodes that no name leads to, filled by copying recipes, in
//! records of bounded size. A stage row says which numbers they have, so that a crash leaks none.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::plan::{Plan, Put};
use super::walk::{Entries, check_depth};
use super::{Progress, Restore};
use crate::store::chunks::Stored;
use crate::store::index::View;
use crate::store::model::{Attrs, Dirent, Edit, FileKind, Inode, Piece, Source};
use crate::types::limits::INO_MAX;
use crate::types::{Ino, Timestamp};
use crate::volume::{FsError, FsResult, Volume};

/// Edits after which a record of the stage ends: bounds the time for which the append lock is held.
const EDITS_PER_RECORD: usize = if cfg!(test) { 8 } else { 4096 };
/// Bytes of inline data, names and attributes after which it ends.
const BYTES_PER_RECORD: usize = 4 << 20;
/// Pieces after which it ends.
const PIECES_PER_RECORD: usize = 16 * 1024;
/// Numbers of blocks read at a time.
const BLOCKS_PAGE: usize = if cfg!(test) { 3 } else { 512 };

/// Inodes that are being prepared. What was not published is removed when it is dropped.
pub(super) struct Stage<'a> {
    volume: &'a Volume,
    pub(super) from: Ino,
    pub(super) to: Ino,
    /// What the name of each put leads to, in their order, as it is to be from then on. Until then it has no links.
    pub(super) roots: Vec<(Ino, Attrs)>,
    published: bool,
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = self.volume.remove_stage(self.from, self.to)
        {
            tracing::warn!(%error, "what a restore had prepared is removed at the next mount");
        }
        self.volume.staging.lock().remove(&self.from);
    }
}

impl Stage<'_> {
    /// It belongs to the tree now.
    pub(super) fn publish(mut self) {
        self.published = true;
    }
}

/// The edits of the next record.
#[derive(Default)]
struct Batch {
    edits: Vec<Edit>,
    bytes: usize,
    pieces: usize,
    /// Chunks that its recipes name.
    held: Vec<Stored>,
}

/// A directory that is being filled.
struct Filling {
    dir: Ino,
    entries: Entries,
}

struct Stager<'a> {
    volume: &'a Volume,
    past: View,
    restore: &'a Restore,
    plan: &'a Plan,
    batch: Batch,
    next: Ino,
    to: Ino,
    now: Timestamp,
    /// What the puts lead to, at the point.
    roots: HashSet<Ino>,
    /// Of files with several names: what they have become.
    made: HashMap<Ino, (Ino, Attrs)>,
    done: u64,
    progress: Progress<'a>,
}

impl Volume {
    /// Prepares what the plan puts.
    ///
    /// # Errors
    /// From the store; [`FsError::Stale`] when the point was forgotten meanwhile. Nothing is left then.
    pub(super) fn stage<'a>(
        &'a self,
        restore: &'a Restore,
        plan: &'a Plan,
        progress: Progress<'a>,
    ) -> FsResult<Stage<'a>> {
        let from = Ino(self.next_ino.fetch_add(plan.inodes, Ordering::Relaxed));
        let to = Ino(from.0.saturating_add(plan.inodes));
        if to.0 > INO_MAX {
            return Err(FsError::Invalid("the volume has used all its inode numbers"));
        }
        self.staging.lock().insert(from);
        let mut stage = Stage { volume: self, from, to, roots: Vec::new(), published: false };
        if plan.puts.is_empty() {
            return Ok(stage);
        }
        let mut stager = Stager {
            volume: self,
            past: self.view(Some(restore.at)),
            restore,
            plan,
            batch: Batch::default(),
            next: from,
            to,
            now: self.shared.now(),
            roots: plan.puts.iter().map(root).collect(),
            made: HashMap::new(),
            done: 0,
            progress,
        };
        stager.batch.edits.push(Edit::Stage { vol: self.vol, from, to, staged: true });
        for put in &plan.puts {
            let root = stager.put(put)?;
            stage.roots.push(root);
        }
        stager.commit()?;
        if self.is_readable(restore.at) { Ok(stage) } else { Err(FsError::Stale) }
    }
}

impl Stager<'_> {
    fn commit(&mut self) -> FsResult<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.edits.is_empty() {
            return Ok(());
        }
        let _gate = self.volume.enter();
        self.volume.shared.commit_patches(batch.edits, &|_| {})
    }

    /// Ends the record if it is large enough. Whether it did.
    fn commit_if_full(&mut self) -> FsResult<bool> {
        let Batch { edits, bytes, pieces, .. } = &self.batch;
        let full =
            edits.len() >= EDITS_PER_RECORD || *bytes >= BYTES_PER_RECORD || *pieces >= PIECES_PER_RECORD;
        if full {
            self.commit()?;
        }
        Ok(full)
    }

    fn push(&mut self, edit: Edit, bytes: usize) {
        self.batch.edits.push(edit);
        self.batch.bytes += bytes + 64;
    }

    fn new_ino(&mut self) -> FsResult<Ino> {
        // The past does not change while it is readable, so this is what was counted.
        if self.next >= self.to {
            return Err(FsError::Stale);
        }
        let ino = self.next;
        self.next = Ino(ino.0 + 1);
        Ok(ino)
    }

    /// Prepares what one name is to lead to.
    fn put(&mut self, put: &Put) -> FsResult<(Ino, Attrs)> {
        let (mut dir, mut name) = (put.dir, put.name.as_slice());
        let mut root = None;
        for (i, (point, below)) in put.shells.iter().enumerate() {
            let inner = if i + 1 < put.shells.len() { FileKind::Dir } else { put.kind };
            let (shell, attrs) = self.shell(*point, dir, name, inner)?;
            if root.is_none() {
                root = Some((shell, attrs));
            } else {
                self.name(dir, name, shell, FileKind::Dir)?;
            }
            (dir, name) = (shell, below);
        }
        let (ino, attrs) = self.tree(put.source, dir, name)?;
        match root {
            None => Ok((ino, attrs)),
            Some(root) => {
                self.name(dir, name, ino, put.kind)?;
                Ok(root)
            }
        }
    }

    fn name(&mut self, dir: Ino, name: &[u8], ino: Ino, kind: FileKind) -> FsResult<()> {
        let dirent = Dirent { ino, kind, name: name.to_vec(), excluded: false };
        let hash = self.volume.name_hash(name);
        self.push(Edit::PutDirent { vol: self.volume.vol, parent: dir, hash, dirent }, name.len());
        self.commit_if_full().map(drop)
    }

    /// A directory that holds one entry.
    fn shell(&mut self, point: Ino, parent: Ino, name: &[u8], inner: FileKind) -> FsResult<(Ino, Attrs)> {
        let inode = self.past.inode(point)?.ok_or(FsError::Stale)?.item;
        let ino = self.new_ino()?;
        let mut attrs = self.attrs(&inode, parent, name);
        (attrs.entries, attrs.nlink) = (1, 2 + u32::from(inner == FileKind::Dir));
        self.inode(point, ino, self.staged(point, &attrs))?;
        Ok((ino, attrs))
    }

    /// The attributes of what comes back as `name` in `parent`.
    fn attrs(&self, inode: &Inode, parent: Ino, name: &[u8]) -> Attrs {
        let mut attrs = inode.attrs.clone();
        (attrs.parent, attrs.name) = (parent, self.volume.name_hash(name));
        attrs.ctime = self.now;
        attrs.generation = self.volume.shared.store.term().0;
        if let Some(actor) = &self.restore.actor {
            actor.limit(&mut attrs);
        }
        attrs
    }

    /// What they are while it is prepared: what no name leads to is shown without links by the points in between, and
    /// by the snapshot before the restore.
    fn staged(&self, point: Ino, attrs: &Attrs) -> Attrs {
        let nlink = if self.roots.contains(&point) { 0 } else { attrs.nlink };
        Attrs { nlink, ..attrs.clone() }
    }

    /// Puts an inode with its extended attributes.
    fn inode(&mut self, point: Ino, ino: Ino, attrs: Attrs) -> FsResult<()> {
        let vol = self.volume.vol;
        let xattrs = if attrs.xattrs > 0 { self.past.xattrs(point)? } else { Vec::new() };
        // All in one record, of which they are a small part: their names come to 64 KiB and each value to no more.
        let mut bytes = attrs.target.len() + 200;
        self.push(Edit::PutInode { vol, ino, attrs: attrs.clone() }, bytes);
        for xattr in xattrs {
            bytes = xattr.name.len() + xattr.value.len();
            let hash = self.volume.xattr_hash(&xattr.name);
            self.push(Edit::PutXattr { vol, ino, hash, xattr }, bytes);
            if self.commit_if_full()? {
                self.push(Edit::PutInode { vol, ino, attrs: attrs.clone() }, 200);
            }
        }
        self.done += 1;
        (self.progress)("bringing back files", self.done, self.plan.inodes);
        self.commit_if_full().map(drop)
    }

    /// Prepares an inode and all beneath it.
    fn tree(&mut self, source: Ino, parent: Ino, name: &[u8]) -> FsResult<(Ino, Attrs)> {
        let mut stack = Vec::new();
        let root = self.node(source, parent, name, &mut stack)?;
        while let Some(top) = stack.last_mut() {
            let dir = top.dir;
            match top.entries.next(&self.past)? {
                None => drop(stack.pop()),
                Some((_, entry)) => {
                    let (ino, _) = self.node(entry.ino, dir, &entry.name, &mut stack)?;
                    self.name(dir, &entry.name, ino, entry.kind)?;
                }
            }
        }
        Ok(root)
    }

    /// Prepares one inode; a directory is still to be filled.
    fn node(
        &mut self,
        source: Ino,
        parent: Ino,
        name: &[u8],
        stack: &mut Vec<Filling>,
    ) -> FsResult<(Ino, Attrs)> {
        if let Some(made) = self.made.get(&source) {
            return Ok(made.clone());
        }
        let inode = self.past.inode(source)?.ok_or(FsError::Stale)?.item;
        let ino = self.new_ino()?;
        let mut attrs = self.attrs(&inode, parent, name);
        match attrs.kind {
            FileKind::Dir => {
                check_depth(stack.len())?;
                // What was purged is still counted by what its directory was.
                attrs.entries = 0;
                self.past.entries_naming(
                    Some(source),
                    |_| true,
                    |_| {
                        attrs.entries += 1;
                        Ok(true)
                    },
                )?;
                stack.push(Filling { dir: ino, entries: Entries::of(source) });
            }
            _ => {
                attrs.nlink = self.plan.links.get(&source).copied().unwrap_or(1);
                if attrs.nlink > 1 {
                    self.made.insert(source, (ino, attrs.clone()));
                }
            }
        }
        let staged = self.staged(source, &attrs);
        self.inode(source, ino, staged.clone())?;
        if attrs.kind == FileKind::File {
            self.blocks(source, &inode, ino, &staged)?;
        }
        Ok((ino, attrs))
    }

    /// Copies the recipes of a file's blocks that hold data.
    fn blocks(&mut self, source: Ino, inode: &Inode, ino: Ino, attrs: &Attrs) -> FsResult<()> {
        let mut from = 0;
        // Whether the record that is being filled puts the inode already.
        let mut put = !self.batch.edits.is_empty();
        loop {
            let mut page = Vec::new();
            self.past.blocks(inode, source, from, |block, _| {
                page.push(block);
                Ok(page.len() < BLOCKS_PAGE)
            })?;
            let Some(last) = page.last() else { return Ok(()) };
            from = last + 1;
            for block in page {
                if !put {
                    self.push(Edit::PutInode { vol: self.volume.vol, ino, attrs: attrs.clone() }, 200);
                }
                self.block(source, inode, ino, block)?;
                put = !self.commit_if_full()?;
            }
        }
    }

    fn block(&mut self, source: Ino, inode: &Inode, ino: Ino, block: u64) -> FsResult<()> {
        let pieces = self.past.block(inode, source, block)?.pieces().to_vec();
        if pieces.is_empty() {
            return Err(FsError::Stale);
        }
        let named = pieces.iter().filter_map(Piece::chunk).copied();
        let store = &self.volume.shared.store;
        let held = store.chunks().hold(store.index(), named)?.ok_or(FsError::Stale)?;
        let bytes = pieces.iter().map(inline_bytes).sum();
        self.batch.held.push(held);
        self.batch.pieces += pieces.len();
        self.push(Edit::PatchBlock { vol: self.volume.vol, ino, block, offset: 0, pieces }, bytes);
        Ok(())
    }
}

/// What a name is to lead to, at the point.
fn root(put: &Put) -> Ino {
    put.shells.first().map_or(put.source, |(shell, _)| *shell)
}

fn inline_bytes(piece: &Piece) -> usize {
    if let Source::Inline(bytes) = &piece.source { bytes.len() } else { 48 }
}
