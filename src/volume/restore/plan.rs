//! What a restore has to change: the tree at the point is compared with the live one, name by name.

use std::collections::{BTreeMap, HashMap};

use super::walk::{Entries, check_depth, walk};
use super::{Counts, Restore};
use crate::store::index::{Version, View};
use crate::store::model::{Dirent, FileKind, Inode};
use crate::types::Ino;
use crate::types::limits::{RECORD_BYTES_MAX, RECORD_EDITS_MAX, RESTORE_LINKS_MAX};
use crate::volume::same::{has_attributes, is_same};
use crate::volume::{FsError, FsResult, Volume};

/// Edits of the record that makes a restore visible; the rest of what a record may have is for rounding.
const EDITS_MAX: usize = if cfg!(test) { 24 } else { RECORD_EDITS_MAX - RECORD_EDITS_MAX / 10 };
/// And their bytes.
const BYTES_MAX: usize = RECORD_BYTES_MAX / 4 * 3;
/// Bytes of an edit beside the names in it, generously.
const EDIT_BYTES: usize = 64;
/// Bytes of an inode's edit, without the target of a symbolic link.
const INODE_BYTES: usize = 200;

/// A name that is to lead to something staged.
#[derive(Debug)]
pub(super) struct Put {
    /// The live directory.
    pub(super) dir: Ino,
    /// The name in it.
    pub(super) name: Vec<u8>,
    /// Directories at the point that come back only to hold the next one: each with the name in it.
    pub(super) shells: Vec<(Ino, Vec<u8>)>,
    /// The inode at the point.
    pub(super) source: Ino,
    /// What it is.
    pub(super) kind: FileKind,
    /// What has the name now.
    pub(super) replaces: Option<Dirent>,
}

impl Put {
    /// What the name leads to.
    pub(super) fn entry_kind(&self) -> FileKind {
        if self.shells.is_empty() { self.kind } else { FileKind::Dir }
    }
}

/// A live directory that changes.
#[derive(Debug)]
pub(super) struct DirPlan {
    /// The directory whose attributes it gets; none where only its entries change.
    pub(super) point: Option<Ino>,
    /// What it was when it was looked at.
    pub(super) seen: Version<Inode>,
}

/// What has to change.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) puts: Vec<Put>,
    /// Names that go: directory and entry.
    pub(super) removes: Vec<(Ino, Dirent)>,
    pub(super) dirs: BTreeMap<Ino, DirPlan>,
    /// Of files that are staged and have several names in the tree: how many.
    pub(super) links: HashMap<Ino, u32>,
    /// Inodes to be staged.
    pub(super) inodes: u64,
    pub(super) counts: Counts,
    edits: usize,
    bytes: usize,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removes.is_empty() && self.dirs.is_empty()
    }

    fn fits(&self) -> bool {
        self.edits <= EDITS_MAX && self.bytes <= BYTES_MAX
    }

    fn cost(&mut self, edits: usize, bytes: usize) {
        self.edits += edits;
        self.bytes += edits * EDIT_BYTES + bytes;
        if !self.fits() {
            // Only counted from here on.
            (self.puts, self.removes, self.dirs) = Default::default();
        }
    }
}

/// A live directory, and the one at the point that it is to be like, if it is part of the tree.
pub(super) type Dir = (Ino, Option<Ino>);

/// A file at the point that has several names.
#[derive(Default)]
struct Link {
    names: u32,
    /// What its first name that is as it was leads to.
    live: Option<Ino>,
    /// Whether one of them has to come back; then all of them lead to the new inode.
    changed: bool,
    /// Names that are as they were.
    kept: Vec<(Dir, Dirent)>,
}

/// The two directories that are compared, and how far.
struct Pair {
    point: Ino,
    live: Ino,
    /// Names at the point, then names of now.
    phases: (Entries, Entries),
    named: bool,
}

pub(super) struct Planner<'a> {
    pub(super) volume: &'a Volume,
    past: View,
    pub(super) live: View,
    pub(super) restore: &'a Restore,
    /// Whether directories are replaced as a whole instead of looked into: the plan is short then.
    pub(super) whole: bool,
    plan: Plan,
    links: HashMap<Ino, Link>,
    /// Of live files with several names: what they were.
    became: HashMap<Ino, Ino>,
    linked_names: usize,
}

impl<'a> Planner<'a> {
    pub(super) fn new(volume: &'a Volume, restore: &'a Restore) -> Planner<'a> {
        Planner {
            volume,
            past: volume.view(Some(restore.at)),
            live: volume.view(None),
            restore,
            whole: false,
            plan: Plan::default(),
            links: HashMap::new(),
            became: HashMap::new(),
            linked_names: 0,
        }
    }

    /// The plan, in terms of single names, or where that is too much for one record, of whole directories.
    ///
    /// # Errors
    /// [`FsError::Refused`], [`FsError::Denied`].
    pub(super) fn run(mut self) -> FsResult<Plan> {
        self.compare()?;
        if self.plan.fits() {
            return Ok(self.plan);
        }
        let counts = self.plan.counts;
        let mut whole = Planner { whole: true, ..Planner::new(self.volume, self.restore) };
        whole.compare()?;
        if !whole.plan.fits() {
            return Err(FsError::Refused(format!(
                "more than {EDITS_MAX} changes in one directory; restore a part of it, or to another place with --to"
            )));
        }
        whole.plan.counts = counts;
        Ok(whole.plan)
    }

    fn compare(&mut self) -> FsResult<()> {
        let (chain, source) = self.at_point()?;
        match &self.restore.to {
            Some((dir, name)) => self.copy_to(*dir, name.clone(), &source)?,
            None => self.in_place(&chain, &source)?,
        }
        self.settle_links()
    }

    /// The directories at the point that lead to the path, and what it names.
    fn at_point(&self) -> FsResult<(Vec<Ino>, Dirent)> {
        let path = &self.restore.path;
        let mut chain = Vec::new();
        let mut entry = Dirent { ino: Ino::ROOT, kind: FileKind::Dir, name: Vec::new(), excluded: false };
        for (i, name) in path.iter().enumerate() {
            let shown = shown(path.get(..i).unwrap_or_default());
            let attrs = self.inode(&self.past, entry.ino)?.item.attrs;
            if attrs.kind == FileKind::Dir
                && let Some(actor) = &self.restore.actor
            {
                actor.searches((self.volume, &self.past), entry.ino, &attrs, &shown)?;
            }
            chain.push(entry.ino);
            let found = self.past.dirent(entry.ino, &self.volume.name_hash(name))?;
            entry = found.ok_or_else(|| {
                let shown = self::shown(path.get(..=i).unwrap_or_default());
                FsError::Refused(format!("there was no {shown} then"))
            })?;
        }
        Ok((chain, entry))
    }

    fn inode(&self, view: &View, ino: Ino) -> FsResult<Version<Inode>> {
        // A tree that names what is not there is torn: forgotten meanwhile.
        view.inode(ino)?.ok_or(FsError::Stale)
    }

    /// A copy under a name that nothing has.
    fn copy_to(&mut self, dir: Ino, name: Vec<u8>, source: &Dirent) -> FsResult<()> {
        let attrs = self.live.inode(dir)?.ok_or(FsError::NotFound)?.item.attrs;
        if attrs.kind != FileKind::Dir || attrs.nlink == 0 {
            return Err(FsError::NotDir);
        }
        if self.live.dirent(dir, &self.volume.name_hash(&name))?.is_some() {
            return Err(FsError::Exists);
        }
        self.put((dir, None), name, source, None)
    }

    fn in_place(&mut self, chain: &[Ino], source: &Dirent) -> FsResult<()> {
        let path = &self.restore.path;
        let mut dir = Ino::ROOT;
        for (i, name) in path.iter().enumerate() {
            let shown = shown(path.get(..i).unwrap_or_default());
            let attrs = self.inode(&self.live, dir)?.item.attrs;
            if attrs.kind != FileKind::Dir {
                return Err(FsError::Refused(format!("{shown} is in the way: it is no directory now")));
            }
            if let Some(actor) = &self.restore.actor {
                actor.searches((self.volume, &self.live), dir, &attrs, &shown)?;
            }
            let entry = self.live.dirent(dir, &self.volume.name_hash(name))?;
            let last = i + 1 == path.len();
            if entry.as_ref().is_some_and(|entry| entry.excluded) {
                return self.check_may_go(entry.as_ref());
            }
            match entry {
                Some(entry) if !last => dir = entry.ino,
                None if !last => {
                    let below = chain.iter().skip(i + 1).copied().zip(path.iter().skip(i + 1).cloned());
                    return self.put_with_parents(dir, name.clone(), below.collect(), source);
                }
                entry => return self.names((dir, None), name, source, entry),
            }
        }
        self.pair(source.ino, dir)
    }

    /// Compares what a name meant with what it means.
    fn names(&mut self, dir: Dir, name: &[u8], source: &Dirent, now: Option<Dirent>) -> FsResult<()> {
        match now {
            Some(now) if self.looks_into(source, &now)? => self.pair(source.ino, now.ino),
            Some(now) if !now.excluded && self.keeps(dir, source.ino, &now)? => Ok(()),
            now => self.put(dir, name.to_vec(), source, now),
        }
    }

    /// Compares two directories and all that is in both.
    fn pair(&mut self, point: Ino, live: Ino) -> FsResult<()> {
        let mut stack = vec![self.open_pair(point, live)?];
        while let Some(pair) = stack.last_mut() {
            let (dir, from) = (pair.live, pair.point);
            if !pair.named {
                let Some((hash, source)) = pair.phases.0.next(&self.past)? else {
                    pair.named = true;
                    continue;
                };
                let now = self.live.dirent(dir, &hash)?;
                match now {
                    Some(now) if self.looks_into(&source, &now)? => {
                        check_depth(stack.len())?;
                        stack.push(self.open_pair(source.ino, now.ino)?);
                    }
                    now => {
                        let name = source.name.clone();
                        self.names((dir, Some(from)), &name, &source, now)?;
                    }
                }
            } else if let Some((hash, now)) = pair.phases.1.next(&self.live)? {
                if self.past.dirent(from, &hash)?.is_none() {
                    self.remove((dir, Some(from)), now)?;
                }
            } else {
                stack.pop();
            }
        }
        Ok(())
    }

    fn open_pair(&mut self, point: Ino, live: Ino) -> FsResult<Pair> {
        let then = self.inode(&self.past, point)?;
        let now = self.inode(&self.live, live)?;
        if let Some(actor) = &self.restore.actor {
            actor.reads((self.volume, &self.past), point, &then.item.attrs, &self.shown_dir())?;
        }
        let times = self.restore.actor.as_ref().is_none_or(|actor| actor.owns(&now.item.attrs));
        if !has_attributes((&self.past, point, &then), (&self.live, live, &now), times)? {
            if let Some(actor) = &self.restore.actor {
                actor.replaces(&now.item.attrs, &self.shown_dir())?;
                actor.makes(&then.item.attrs, &self.shown_dir())?;
            }
            self.plan.counts.replaced += 1;
            self.touch(live, now, Some(point));
            self.plan.cost(then.item.attrs.xattrs as usize, 0);
        }
        Ok(Pair { point, live, phases: (Entries::of(point), Entries::of(live)), named: false })
    }

    fn shown_dir(&self) -> String {
        format!("something in {}", shown(&self.restore.path))
    }

    /// Whether a name leads to what it led to, so that it can stay. Of files with several names, then or now, that
    /// is only known when all of them have been seen.
    fn keeps(&mut self, dir: Dir, point: Ino, now: &Dirent) -> FsResult<bool> {
        let then = self.inode(&self.past, point)?;
        let live = self.inode(&self.live, now.ino)?;
        let dirs = then.item.attrs.kind == FileKind::Dir || live.item.attrs.kind == FileKind::Dir;
        if dirs || !is_same((&self.past, point, &then), (&self.live, now.ino, &live))? {
            return Ok(false);
        }
        if then.item.attrs.nlink > 1 || live.item.attrs.nlink > 1 {
            self.note_link(point)?;
            let other = *self.became.entry(now.ino).or_insert(point);
            let link = self.links.entry(point).or_default();
            link.kept.push((dir, now.clone()));
            // Two that have become one, or one that has become two.
            if other != point || *link.live.get_or_insert(now.ino) != now.ino {
                link.changed = true;
                self.links.entry(other).or_default().changed = true;
            }
        }
        Ok(true)
    }

    fn note_link(&mut self, ino: Ino) -> FsResult<()> {
        self.linked_names += 1;
        if self.linked_names > RESTORE_LINKS_MAX {
            let text =
                format!("more than {RESTORE_LINKS_MAX} names of files with several; restore a part of it");
            return Err(FsError::Refused(text));
        }
        self.links.entry(ino).or_default().names += 1;
        Ok(())
    }

    /// A live directory changes, and gets the attributes of `point`.
    fn touch(&mut self, dir: Ino, seen: Version<Inode>, point: Option<Ino>) {
        if let Some(known) = self.plan.dirs.get_mut(&dir) {
            known.point = known.point.or(point);
            return;
        }
        self.plan.dirs.insert(dir, DirPlan { point, seen });
        self.plan.cost(1, INODE_BYTES);
    }

    /// The entries of a live directory change. As part of the tree it keeps the times that it had.
    fn touch_entries(&mut self, (dir, point): Dir) -> FsResult<()> {
        if self.plan.dirs.contains_key(&dir) && self.restore.actor.is_none() {
            return Ok(());
        }
        let now = self.inode(&self.live, dir)?;
        let mut point = point;
        if let Some(actor) = &self.restore.actor {
            actor.changes((self.volume, &self.live), dir, &now.item.attrs, &self.shown_dir())?;
            point = point.filter(|_| actor.owns(&now.item.attrs));
        }
        self.touch(dir, now, point);
        Ok(())
    }

    fn put(&mut self, dir: Dir, name: Vec<u8>, source: &Dirent, replaces: Option<Dirent>) -> FsResult<()> {
        self.check_may_go(replaces.as_ref())?;
        self.touch_entries(dir)?;
        let one = source.kind != FileKind::Dir && replaces.as_ref().is_some_and(|r| r.kind != FileKind::Dir);
        if let Some(now) = &replaces {
            let nodes = self.gone(now.ino)?;
            self.plan.counts.removed += if one { 0 } else { nodes };
        }
        let nodes = self.comes_back(source.ino)?;
        let total = if one { &mut self.plan.counts.replaced } else { &mut self.plan.counts.brought_back };
        *total += nodes;
        let (dir, _) = dir;
        self.push(Put { dir, name, shells: Vec::new(), source: source.ino, kind: source.kind, replaces })
    }

    /// The entry and what it leads to; what it led to, as an orphan.
    fn push(&mut self, put: Put) -> FsResult<()> {
        let (mut edits, mut bytes) = (2, put.name.len() + inode_bytes(&self.past, put.kind, put.source)?);
        if let Some(old) = &put.replaces {
            edits += 2;
            bytes += inode_bytes(&self.live, old.kind, old.ino)?;
        }
        self.plan.puts.push(put);
        self.plan.cost(edits, bytes);
        Ok(())
    }

    /// Brings back something whose directories are gone, with those.
    fn put_with_parents(
        &mut self,
        dir: Ino,
        name: Vec<u8>,
        shells: Vec<(Ino, Vec<u8>)>,
        source: &Dirent,
    ) -> FsResult<()> {
        self.touch_entries((dir, None))?;
        for (shell, _) in &shells {
            let attrs = self.inode(&self.past, *shell)?.item.attrs;
            if let Some(actor) = &self.restore.actor {
                actor.makes(&attrs, &self.shown_dir())?;
            }
        }
        self.plan.inodes += shells.len() as u64;
        self.plan.counts.brought_back += shells.len() as u64 + self.comes_back(source.ino)?;
        self.push(Put { dir, name, shells, source: source.ino, kind: source.kind, replaces: None })
    }

    pub(super) fn remove_whole(&mut self, dir: Dir, now: Dirent) -> FsResult<()> {
        self.touch_entries(dir)?;
        self.plan.counts.removed += self.gone(now.ino)?;
        let bytes = inode_bytes(&self.live, now.kind, now.ino)?;
        self.plan.removes.push((dir.0, now));
        self.plan.cost(3, bytes);
        Ok(())
    }

    /// Counts the names of what is staged; each must be one that may come back.
    fn comes_back(&mut self, root: Ino) -> FsResult<u64> {
        let (view, restore, volume) = (self.past.clone(), self.restore, self.volume);
        let shown = self.shown_dir();
        let mut nodes = 0;
        walk(&view, root, &mut |ino, inode| {
            nodes += 1;
            if let Some(actor) = &restore.actor {
                actor.reads((volume, &view), ino, &inode.attrs, &shown)?;
                actor.makes(&inode.attrs, &shown)?;
            }
            if inode.attrs.kind != FileKind::Dir && inode.attrs.nlink > 1 {
                self.note_link(ino)?;
                self.links.entry(ino).or_default().changed = true;
                return Ok(());
            }
            self.plan.inodes += 1;
            self.plan.counts.bytes += inode.data_bytes;
            Ok(())
        })?;
        Ok(nodes)
    }

    /// Counts the names of what goes; each must be one that may go.
    fn gone(&mut self, root: Ino) -> FsResult<u64> {
        let (restore, shown) = (self.restore, self.shown_dir());
        let mut nodes = 0;
        walk(&self.live, root, &mut |_, inode| {
            nodes += 1;
            restore.actor.as_ref().map_or(Ok(()), |actor| actor.replaces(&inode.attrs, &shown))
        })?;
        Ok(nodes)
    }

    /// A file with several names gets a new inode for all of them or for none.
    fn settle_links(&mut self) -> FsResult<()> {
        for (ino, link) in std::mem::take(&mut self.links) {
            if !link.changed {
                continue;
            }
            self.plan.inodes += 1;
            self.plan.counts.bytes += self.inode(&self.past, ino)?.item.data_bytes;
            for (dir, now) in link.kept {
                self.touch_entries(dir)?;
                if let Some(actor) = &self.restore.actor {
                    actor.replaces(&self.inode(&self.live, now.ino)?.item.attrs, &self.shown_dir())?;
                }
                self.plan.counts.replaced += 1;
                let (name, kind) = (now.name.clone(), now.kind);
                let (dir, _) = dir;
                self.push(Put { dir, name, shells: Vec::new(), source: ino, kind, replaces: Some(now) })?;
            }
            if link.names > 1 {
                self.plan.links.insert(ino, link.names);
            }
        }
        Ok(())
    }
}

fn inode_bytes(view: &View, kind: FileKind, ino: Ino) -> FsResult<usize> {
    let target = match kind {
        FileKind::Symlink => view.inode(ino)?.map_or(0, |inode| inode.item.attrs.target.len()),
        _ => 0,
    };
    Ok(INODE_BYTES + target)
}

/// A path for a message.
pub(super) fn shown(path: &[Vec<u8>]) -> String {
    if path.is_empty() {
        return "the volume's root".to_owned();
    }
    let names: Vec<_> = path.iter().map(|name| String::from_utf8_lossy(name)).collect();
    names.join("/")
}
