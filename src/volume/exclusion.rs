//! What has no history: whether a name is excluded, and what of the directories around it must be changed with it.
//!
//! A name is excluded when it is given, if the policy in force then excludes its path or that of a directory above.
//! What is made under such a name is excluded with it, and stays so until it gets a name that is not. Three things
//! hold at every moment but in the middle of a move that a crash cut short (`revealing`):
//! * what is not excluded lies in directories that are not, so that every point that has it shows it;
//! * above whatever is excluded, every directory knows that it is there ([`Attrs::hidden`]);
//! * what is not excluded never becomes so: what has a history keeps it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::RwLockWriteGuard;

use super::cell::Live;
use super::policy::Globs;
use super::{CellRef, FsError, FsResult, Volume};
use crate::store::model::{Attrs, Dirent, Edit, FileKind};
use crate::types::Ino;

/// Directories whose paths are remembered.
const DIRS_MAX: usize = 1024;
/// Directories within each other; a longer chain is damage.
const DEPTH_MAX: usize = 1 << 20;

/// An entry: its directory, the hash of its name, and what it is.
pub(super) type Entry = (Ino, [u8; 16], Dirent);

/// A directory as its path has it.
#[derive(Debug)]
struct Dir {
    /// From the volume's root on; nothing for the root.
    path: Vec<u8>,
    /// Whether all that is made in it is excluded.
    excluded: bool,
}

/// A volume's patterns, made ready, and where directories lie. Used under the namespace lock.
#[derive(Debug, Default)]
pub(super) struct Exclusions {
    patterns: Vec<String>,
    globs: Option<Globs>,
    dirs: HashMap<Ino, Dir>,
}

impl Exclusions {
    /// Takes over the patterns of the policy. False if there are none.
    fn follow(&mut self, patterns: &[String]) -> bool {
        if self.patterns != patterns {
            *self = Exclusions::default();
            if !patterns.is_empty() {
                self.patterns = patterns.to_vec();
                self.globs = Globs::new(patterns).ok();
            }
        }
        self.globs.is_some()
    }

    fn matches(&self, path: &[u8]) -> bool {
        self.globs.as_ref().is_some_and(|globs| globs.is_match(path))
    }

    /// Whether the path or that of a directory above is excluded.
    fn excludes(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        ends.chain([path.len()]).any(|end| path.get(..end).is_some_and(|part| self.matches(part)))
    }
}

/// The path of `name` in the directory of that path.
pub(super) fn below(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

impl Volume {
    /// Whether what gets that name now has no history. The caller holds the namespace lock, and no cell's.
    pub(super) fn excludes(&self, dir: Ino, name: &[u8]) -> FsResult<bool> {
        Ok(self.placed(dir, name)?.is_none())
    }

    /// The path that a name has, or nothing if it is excluded. Of a directory that is gone, the name.
    pub(super) fn placed(&self, dir: Ino, name: &[u8]) -> FsResult<Option<Vec<u8>>> {
        let mut known = self.exclusions.lock();
        {
            let state = self.shared.store.index().state();
            let patterns = state.volumes.get(&self.vol).map_or(&[][..], |v| &v.policy.exclude);
            if !known.follow(patterns) {
                return Ok(Some(name.to_vec()));
            }
        }
        if !known.dirs.contains_key(&dir) {
            let Some(path) = self.view(None).path(dir)? else { return Ok(Some(name.to_vec())) };
            if known.dirs.len() >= DIRS_MAX {
                known.dirs.clear();
            }
            let excluded = dir != Ino::ROOT && known.excludes(&path);
            known.dirs.insert(dir, Dir { path, excluded });
        }
        let Some(at) = known.dirs.get(&dir).filter(|at| !at.excluded) else { return Ok(None) };
        let path = below(&at.path, name);
        Ok((!known.matches(&path)).then_some(path))
    }

    /// Whether a path below a directory that is not excluded is.
    pub(super) fn excludes_path(&self, path: &[u8]) -> bool {
        self.exclusions.lock().matches(path)
    }

    /// Forgets where directories lie, since one has moved. The caller holds the namespace lock.
    pub(super) fn forget_paths(&self) {
        self.exclusions.lock().dirs.clear();
    }

    /// Prepares a directory for something that comes into it: what points show (`shown`) makes it and what it
    /// lies in ordinary; above what they do not show, or what holds such (`hiding`), every directory knows of it.
    /// The caller holds the namespace lock, and no cell's.
    pub(super) fn admit(&self, dir: Ino, shown: bool, hiding: bool) -> FsResult<()> {
        let attrs = {
            let cell = self.cell(dir)?;
            let live = cell.state.read();
            (live.attrs.kind == FileKind::Dir && live.attrs.nlink > 0)
                .then_some((live.attrs.excluded, live.attrs.hidden.is_some()))
        };
        // The caller refuses anything else.
        let Some((excluded, knows)) = attrs else { return Ok(()) };
        if shown && excluded {
            self.reveal_above(dir)?;
        }
        if hiding && !knows {
            self.know_above(dir)?;
        }
        Ok(())
    }

    /// Makes a directory ordinary, and those that it lies in.
    pub(super) fn reveal_above(&self, dir: Ino) -> FsResult<()> {
        let view = self.view(None);
        let mut entries: Vec<Entry> = Vec::new();
        let mut here = dir;
        while entries.len() < DEPTH_MAX {
            let attrs = self.inode(None, here)?.item.attrs;
            if !attrs.excluded {
                break;
            }
            let entry = view.dirent(attrs.parent, &attrs.name)?.filter(|entry| entry.ino == here);
            let Some(entry) = entry else { break };
            entries.push((attrs.parent, attrs.name, entry));
            here = attrs.parent;
        }
        self.reveal(&entries)
    }

    /// Notes in a directory and those that it lies in that something excluded is, or may be, below them.
    fn know_above(&self, dir: Ino) -> FsResult<()> {
        let mut unknowing = BTreeSet::new();
        let mut here = dir;
        while unknowing.len() < DEPTH_MAX {
            let attrs = self.inode(None, here)?.item.attrs;
            if attrs.hidden.is_some() || !unknowing.insert(here) {
                break;
            }
            here = attrs.parent;
        }
        self.change_attrs(unknowing, |all| {
            for attrs in all.values_mut() {
                attrs.hidden.get_or_insert_default();
            }
            Vec::new()
        })
    }

    /// Makes entries and what they name ordinary, in one record. The caller holds the namespace lock.
    pub(super) fn reveal(&self, entries: &[Entry]) -> FsResult<()> {
        let vol = self.vol;
        let inodes = entries.iter().flat_map(|(dir, _, entry)| [*dir, entry.ino]).collect();
        self.change_attrs(inodes, |all| {
            let mut edits = Vec::with_capacity(entries.len());
            for (parent, hash, entry) in entries {
                if let Some(attrs) = all.get_mut(&entry.ino) {
                    attrs.excluded = false;
                }
                if entry.excluded {
                    if let Some(attrs) = all.get_mut(parent) {
                        attrs.count_hidden(-1, entry.kind);
                    }
                    let dirent = Dirent { excluded: false, ..entry.clone() };
                    edits.push(Edit::PutDirent { vol, parent: *parent, hash: *hash, dirent });
                }
            }
            edits
        })
    }

    /// Changes attributes of several inodes, and what else `change` says, by one record.
    fn change_attrs(
        &self,
        inodes: BTreeSet<Ino>,
        change: impl FnOnce(&mut BTreeMap<Ino, Attrs>) -> Vec<Edit>,
    ) -> FsResult<()> {
        if inodes.is_empty() {
            return Ok(());
        }
        let vol = self.vol;
        let cells = inodes.iter().map(|ino| self.cell(*ino)).collect::<FsResult<Vec<CellRef<'_>>>>()?;
        // In the order of their numbers.
        let mut states: BTreeMap<Ino, RwLockWriteGuard<'_, Live>> =
            cells.iter().map(|cell| (cell.ino, cell.state.write())).collect();
        if states.values().any(|live| live.gone) {
            return Err(FsError::NotFound);
        }
        let mut all: BTreeMap<Ino, Attrs> =
            states.iter().map(|(ino, live)| (*ino, live.recordable())).collect();
        let mut edits = change(&mut all);
        edits.extend(all.iter().map(|(ino, attrs)| Edit::PutInode { vol, ino: *ino, attrs: attrs.clone() }));
        self.commit(edits, None)?;
        for (ino, live) in &mut states {
            if let Some(new) = all.remove(ino) {
                (live.attrs.excluded, live.attrs.hidden) = (new.excluded, new.hidden);
            }
        }
        Ok(())
    }

    /// Whether something excluded lies in a live directory or below it.
    pub(super) fn holds_excluded(&self, dir: Ino) -> FsResult<bool> {
        let view = self.view(None);
        let mut left = vec![dir];
        while let Some(dir) = left.pop() {
            match view.inode(dir)?.and_then(|inode| inode.item.attrs.hidden) {
                Some(hidden) if hidden.entries > 0 => return Ok(true),
                Some(_) => view.readdir_marked(dir, &[0; 16], |_, entry| {
                    left.push(entry.ino);
                    Ok(true)
                })?,
                None => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_matches_a_directory_excludes_all_below() {
        let mut known = Exclusions::default();
        assert!(!known.follow(&[]));
        assert!(known.follow(&["scratch/**".into(), "**/cache".into(), "**/*.tmp".into()]));
        for path in ["scratch/a", "scratch/a/b", "x/cache", "x/cache/y/z", "a.tmp", "x/b.tmp", "d.tmp/e"] {
            assert!(known.excludes(path.as_bytes()), "{path}");
        }
        for path in ["scratch", "x/caches", "a.tmpx", "xscratch/a", "x/scratch/a"] {
            assert!(!known.excludes(path.as_bytes()), "{path}");
        }
        assert!(known.follow(&["other".into()]));
        assert!(!known.excludes(b"a.tmp") && known.excludes(b"other/a"));
    }
}
