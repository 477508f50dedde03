//! Comparing two points, inode by inode.

use std::collections::{BTreeMap, HashMap};

use super::found::{self, Found, TOO_MANY};
use super::links::{self, Links};
use super::tree::{Scope, Spot, Tree, joined};
use super::{Change, How, What};
use crate::store::model::{Dirent, FileKind, Inode};
use crate::types::limits::DIFF_CHANGES_MAX;
use crate::types::{Ino, Lsn};
use crate::volume::lineage::Place;
use crate::volume::same::has_blocks;
use crate::volume::{FsResult, Volume};

/// A change and the inode it is about.
struct Told {
    change: Change,
    ino: Ino,
}

/// Which of the two points.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
}

/// Two points being compared.
pub struct Comparison<'a> {
    volume: &'a Volume,
    points: (Lsn, Lsn),
    /// Whether it is one thing at both points, so that what keeps its place keeps its path. Else only paths count.
    is_one: bool,
    before: Tree<'a>,
    after: Tree<'a>,
    found: Found,
    links: HashMap<Ino, Links>,
    told: Vec<Told>,
    /// Directories that came into what is looked at, or left it, with all they hold; and their paths.
    moved: Vec<(Side, Ino, Vec<u8>)>,
}

/// The size, of what has one that matters.
fn size(inode: &Inode) -> Option<u64> {
    matches!(inode.attrs.kind, FileKind::File | FileKind::Symlink).then_some(inode.attrs.size)
}

fn place(inode: &Inode) -> Place {
    (inode.attrs.parent, inode.attrs.name)
}

/// Whether the inode knows its only name.
fn is_plain(inode: Option<&Inode>) -> bool {
    inode.is_none_or(|i| i.attrs.kind == FileKind::Dir || (i.attrs.nlink == 1 && i.attrs.parent != Ino(0)))
}

impl<'a> Comparison<'a> {
    /// A comparison of the points that the trees show.
    pub fn new(volume: &'a Volume, points: (Lsn, Lsn), before: Tree<'a>, after: Tree<'a>) -> Comparison<'a> {
        let found = Found { inodes: Vec::new(), rewritten: Default::default(), entries: Vec::new() };
        let (links, told, moved) = (HashMap::new(), Vec::new(), Vec::new());
        let is_one = before.scope() == after.scope();
        Comparison { volume, points, is_one, before, after, found, links, told, moved }
    }

    /// The changes, in order.
    pub fn run(mut self) -> FsResult<Vec<Change>> {
        self.found = found::between(self.volume, self.points, &self.before, &self.after)?;
        let inodes = std::mem::take(&mut self.found.inodes);
        let mut dirs = Vec::new();
        for ino in &inodes {
            let (old, new) = (self.before.inode(*ino)?, self.after.inode(*ino)?);
            if new.as_ref().is_some_and(|inode| inode.attrs.kind == FileKind::Dir) {
                dirs.push(*ino);
            }
            if !is_plain(old.as_ref()) || !is_plain(new.as_ref()) {
                let all = !self.what(*ino, old.as_ref(), new.as_ref())?.is_empty();
                self.links.insert(*ino, Links::new(old.as_ref(), new.as_ref(), all));
            } else {
                let names = |inode: &Option<Inode>| inode.as_ref().map(place).into_iter().collect::<Vec<_>>();
                let (was, is) = (names(&old), names(&new));
                self.compare(*ino, (old, new), &was, &is)?;
            }
        }
        self.found.inodes = inodes;
        let mut links = std::mem::take(&mut self.links);
        links::find(&mut links, self.points.0, &self.found, &dirs, (&self.before, &self.after))?;
        for (ino, links) in &links {
            let (old, new) = (self.before.inode(*ino)?, self.after.inode(*ino)?);
            let (was, is) = ([&links.gone[..], &links.kept].concat(), [&links.new[..], &links.kept].concat());
            self.compare(*ino, (old, new), &was, &is)?;
        }
        self.links = links;
        self.compare_tops()?;
        for (side, ino, path) in std::mem::take(&mut self.moved) {
            self.tell_all_below(side, ino, path)?;
        }
        self.merged()
    }

    /// In what an inode differs that is there at both points.
    fn what(&self, ino: Ino, old: Option<&Inode>, new: Option<&Inode>) -> FsResult<What> {
        let (Some(old), Some(new)) = (old, new) else { return Ok(What::default()) };
        let content = new.attrs.kind == FileKind::File
            && (old.attrs.size != new.attrs.size
                || old.attrs.mtime != new.attrs.mtime
                || self.found.rewritten.contains(&ino)
                || new.cuts.iter().any(|cut| cut.lsn > self.points.0)
                // A hole that was filled, and the time put back; or only blocks that took another form.
                || (old.data_bytes != new.data_bytes
                    && self.after.view.has_block_since(new, ino, self.points.0)?));
        Ok(What { content, ..self.meta((ino, old), (ino, new))? })
    }

    /// In what the attributes of two inodes differ, or of one at both points.
    fn meta(&self, (old_ino, old): (Ino, &Inode), (new_ino, new): (Ino, &Inode)) -> FsResult<What> {
        let xattrs = old.attrs.xattrs + new.attrs.xattrs > 0
            && self.before.view.xattrs(old_ino)? != self.after.view.xattrs(new_ino)?;
        Ok(What {
            content: false,
            mode: old.attrs.mode != new.attrs.mode,
            owner: old.attrs.uid != new.attrs.uid,
            group: old.attrs.gid != new.attrs.gid,
            xattrs,
        })
    }

    /// Tells what of the two things that are asked about, if they are two, is not compared by itself; and compares
    /// them, if they are directories to look into: then their names do not matter.
    fn compare_tops(&mut self) -> FsResult<()> {
        let scopes = (self.before.scope(), self.after.scope());
        if !self.is_one {
            for (side, scope) in [(Side::Before, scopes.0), (Side::After, scopes.1)] {
                match scope {
                    Scope::Nothing => {}
                    Scope::Dir(dir) => self.moved.push((side, dir, Vec::new())),
                    Scope::Name((dir, name)) => {
                        let tree = self.tree(side);
                        let entry = if tree.reachable()? { tree.view.dirent(dir, &name)? } else { None };
                        if let Some(entry) = entry
                            && let Some((ino, path)) = self.tell_entry(side, dir, b"", entry)?
                        {
                            self.moved.push((side, ino, path));
                        }
                    }
                }
            }
        }
        let (Scope::Dir(was), Scope::Dir(is)) = scopes else { return Ok(()) };
        let (Some(old), Some(new)) = (self.before.inode(was)?, self.after.inode(is)?) else { return Ok(()) };
        let what = self.meta((was, &old), (is, &new))?;
        if !what.is_empty() && self.before.reachable()? && self.after.reachable()? {
            let path = Vec::new();
            let (size_before, size_after) = (None, None);
            let kind = FileKind::Dir;
            let change = Change { how: How::Modified, path, from: None, kind, size_before, size_after, what };
            self.tell(change, is)?;
        }
        Ok(())
    }

    /// Compares an inode that had the names `was` and has the names `is`.
    fn compare(
        &mut self,
        ino: Ino,
        (old, new): (Option<Inode>, Option<Inode>),
        was: &[Place],
        is: &[Place],
    ) -> FsResult<()> {
        // Even if nothing of it differs, and no name, it may have come or gone with a directory.
        let what = self.what(ino, old.as_ref(), new.as_ref())?;
        let Some(kind) = new.as_ref().or(old.as_ref()).map(|inode| inode.attrs.kind) else { return Ok(()) };
        let (size_before, size_after) = (old.as_ref().and_then(size), new.as_ref().and_then(size));
        let mut gone = spots(&mut self.before, was)?;
        let mut came = spots(&mut self.after, is)?;
        let mut kept: Vec<(Spot, Spot)> = Vec::new();
        let kept_place = |place: &&Place| self.is_one && gone.contains_key(*place);
        let places: Vec<Place> = came.keys().filter(kept_place).copied().collect();
        kept.extend(places.iter().filter_map(|place| gone.remove(place).zip(came.remove(place))));
        let (mut gone, mut came) = (by_path(gone), by_path(came));
        // In another directory, which has the path that the first one had.
        let paths: Vec<Vec<u8>> = came.keys().filter(|path| gone.contains_key(*path)).cloned().collect();
        kept.extend(paths.iter().filter_map(|path| gone.remove(path).zip(came.remove(path))));
        for (then, now) in kept {
            if !what.is_empty() && now.open {
                let size_before = size_before.filter(|_| then.open);
                let (how, path) = (How::Modified, now.path);
                self.tell(Change { how, path, from: None, kind, size_before, size_after, what }, ino)?;
            }
        }
        let (mut gone, mut came) = (gone.into_values(), came.into_values());
        let renamed = if self.is_one { gone.len().min(came.len()) } else { 0 };
        for _ in 0..renamed {
            let Some((then, now)) = gone.next().zip(came.next()) else { break };
            match (then.open, now.open) {
                (true, true) => {
                    let (how, path, from) = (How::Renamed, now.path, Some(then.path));
                    self.tell(Change { how, path, from, kind, size_before, size_after, what }, ino)?;
                }
                (true, false) => self.tell_one_side(Side::Before, ino, then, kind, size_before)?,
                (false, _) => self.tell_one_side(Side::After, ino, now, kind, size_after)?,
            }
        }
        for then in gone {
            self.tell_one_side(Side::Before, ino, then, kind, size_before)?;
        }
        for now in came {
            self.tell_one_side(Side::After, ino, now, kind, size_after)?;
        }
        Ok(())
    }

    /// Tells that something is seen only at one point. A directory that is there at both, if without a name, brings
    /// or takes along all that it holds: a restore prepares directories before it names them, and one that it
    /// removes is emptied later.
    fn tell_one_side(
        &mut self,
        side: Side,
        ino: Ino,
        spot: Spot,
        kind: FileKind,
        size: Option<u64>,
    ) -> FsResult<()> {
        if !spot.open {
            return Ok(());
        }
        if kind == FileKind::Dir {
            let other = if side == Side::Before { &self.after } else { &self.before };
            if other.view.inode(ino)?.is_some() {
                self.moved.push((side, ino, spot.path.clone()));
            }
        }
        self.tell(one_sided(side, spot.path, kind, size), ino)
    }

    /// Tells of everything in a directory that came or went as a whole, but for what is compared by itself.
    fn tell_all_below(&mut self, side: Side, dir: Ino, path: Vec<u8>) -> FsResult<()> {
        let mut left = vec![(dir, path)];
        while let Some((dir, path)) = left.pop() {
            let tree = self.tree(side);
            if !tree.dir(dir)?.is_some_and(|spot| spot.open) {
                continue;
            }
            let mut entries: Vec<Dirent> = Vec::new();
            tree.view.readdir(dir, &[0; 16], |_, entry| {
                entries.push(entry);
                Ok(entries.len() <= DIFF_CHANGES_MAX)
            })?;
            for entry in entries {
                left.extend(self.tell_entry(side, dir, &path, entry)?);
            }
        }
        Ok(())
    }

    /// Tells of an entry of the directory that has that path, unless it is compared by itself. Returns a directory
    /// to go on with, and its path.
    fn tell_entry(
        &mut self,
        side: Side,
        dir: Ino,
        path: &[u8],
        entry: Dirent,
    ) -> FsResult<Option<(Ino, Vec<u8>)>> {
        let place = (dir, self.volume.name_hash(&entry.name));
        let compared = match self.links.get(&entry.ino) {
            Some(links) => links.has(&place),
            None => self.found.has(entry.ino),
        };
        if compared {
            return Ok(None);
        }
        let path = joined(path, &entry.name)?;
        let size = self.tree(side).inode(entry.ino)?.as_ref().and_then(size);
        self.tell(one_sided(side, path.clone(), entry.kind, size), entry.ino)?;
        Ok((entry.kind == FileKind::Dir).then_some((entry.ino, path)))
    }

    fn tree(&mut self, side: Side) -> &mut Tree<'a> {
        if side == Side::Before { &mut self.before } else { &mut self.after }
    }

    fn tell(&mut self, change: Change, ino: Ino) -> FsResult<()> {
        if self.told.len() >= DIFF_CHANGES_MAX {
            return Err(TOO_MANY);
        }
        self.told.push(Told { change, ino });
        Ok(())
    }

    /// Sorts; what took the place of something of its kind counts as that, modified.
    fn merged(mut self) -> FsResult<Vec<Change>> {
        let mut told = std::mem::take(&mut self.told);
        told.sort_unstable_by(|a, b| {
            let key = |t: &Told| (t.change.how, t.ino);
            a.change.path.cmp(&b.change.path).then_with(|| key(a).cmp(&key(b)))
        });
        let mut merged: Vec<Told> = Vec::with_capacity(told.len());
        for next in told {
            let pair = |old: &mut Told| {
                let (old, new) = (&old.change, &next.change);
                (old.how, new.how) == (How::Removed, How::Added)
                    && (old.kind, &old.path) == (new.kind, &new.path)
            };
            let Some(old) = merged.pop_if(pair) else {
                merged.push(next);
                continue;
            };
            let ino = next.ino;
            merged.extend(self.replaced(&old, next)?.map(|change| Told { change, ino }));
        }
        Ok(merged.into_iter().map(|told| told.change).collect())
    }

    /// What it comes to that one thing took another's place; `None` if they are alike.
    fn replaced(&self, old: &Told, new: Told) -> FsResult<Option<Change>> {
        let (Some(was), Some(is)) = (self.before.inode(old.ino)?, self.after.inode(new.ino)?) else {
            return Ok(Some(new.change));
        };
        let content = match is.attrs.kind {
            FileKind::File => {
                was.attrs.size != is.attrs.size
                    || !has_blocks((&self.before.view, old.ino, &was), (&self.after.view, new.ino, &is))?
            }
            FileKind::Symlink => was.attrs.target != is.attrs.target,
            FileKind::Char | FileKind::Block => was.attrs.rdev != is.attrs.rdev,
            FileKind::Dir | FileKind::Fifo | FileKind::Socket => false,
        };
        let what = What { content, ..self.meta((old.ino, &was), (new.ino, &is))? };
        let size_before = old.change.size_before;
        Ok((!what.is_empty()).then_some(Change { how: How::Modified, size_before, what, ..new.change }))
    }
}

fn one_sided(side: Side, path: Vec<u8>, kind: FileKind, size: Option<u64>) -> Change {
    let (how, size_before, size_after) = match side {
        Side::Before => (How::Removed, size, None),
        Side::After => (How::Added, None, size),
    };
    Change { how, path, from: None, kind, size_before, size_after, what: What::default() }
}

/// Where those of the names lie that are in the scope.
fn spots(tree: &mut Tree<'_>, places: &[Place]) -> FsResult<BTreeMap<Place, Spot>> {
    let mut found = BTreeMap::new();
    for place in places {
        if let Some(spot) = tree.spot(*place)? {
            found.insert(*place, spot);
        }
    }
    Ok(found)
}

fn by_path(spots: BTreeMap<Place, Spot>) -> BTreeMap<Vec<u8>, Spot> {
    spots.into_values().map(|spot| (spot.path.clone(), spot)).collect()
}
