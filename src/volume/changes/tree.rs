//! One side of a comparison: where things lie at a point, and what of it somebody may see.

use std::collections::HashMap;
use std::sync::Arc;

use crate::store::index::View;
use crate::store::model::Inode;
use crate::types::limits::DIFF_PATH_BYTES_MAX;
use crate::types::{Ino, Lsn};
use crate::volume::lineage::Place;
use crate::volume::user::{READ, SEARCH, User};
use crate::volume::{FsError, FsResult, Volume};

/// What of a volume is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A directory, and what is below it, wherever it lies.
    Dir(Ino),
    /// What has that name, and what is below it.
    Name(Place),
    /// Nothing: a path that leads nowhere.
    Nothing,
}

/// Where something lies, from the scope on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Its path; that of the scope's own directory is empty.
    pub path: Vec<u8>,
    /// Whether whoever asks may see it.
    pub open: bool,
}

/// A volume at a point.
pub struct Tree<'a> {
    volume: &'a Volume,
    /// What is there.
    pub view: View,
    scope: Scope,
    user: Option<&'a User>,
    /// What a user needs on the directories of the scope: also reading, where names are told to whoever asks.
    wanted: u16,
    /// Directories in the scope, and (`None`) outside of it. `open` says whether the names in it may be seen.
    dirs: HashMap<Ino, Option<Arc<Spot>>>,
    /// Whether the user may reach what holds the scope.
    reachable: Option<bool>,
}

impl<'a> Tree<'a> {
    /// The volume at `at`, as `user` may see it, or whole.
    pub fn new(volume: &'a Volume, at: Lsn, scope: Scope, user: Option<&'a User>) -> Tree<'a> {
        let view = volume.view(Some(at));
        let wanted = READ | SEARCH;
        Tree { volume, view, scope, user, wanted, dirs: HashMap::new(), reachable: None }
    }

    /// For someone who knows the names and asks only where things lie.
    pub fn of_known_names(self) -> Tree<'a> {
        Tree { wanted: SEARCH, ..self }
    }

    /// An inode, unless it has no name.
    pub fn inode(&self, ino: Ino) -> FsResult<Option<Inode>> {
        Ok(self.view.inode(ino)?.map(|v| v.item).filter(|i| i.attrs.nlink > 0))
    }

    /// What is looked at.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    fn grants(&self, ino: Ino, inode: &Inode, wanted: u16) -> FsResult<bool> {
        let Some(user) = self.user else { return Ok(true) };
        Ok(self.volume.granted(self.view.at(), ino, &inode.attrs, user)? & wanted == wanted)
    }

    /// Whether the user may search `dir` and all that it lies in.
    fn searchable(&self, mut dir: Ino) -> FsResult<bool> {
        if self.user.is_none() {
            return Ok(true);
        }
        for _ in 0..DIFF_PATH_BYTES_MAX {
            let Some(inode) = self.inode(dir)? else { return Ok(false) };
            if !self.grants(dir, &inode, SEARCH)? {
                return Ok(false);
            }
            if dir == Ino::ROOT {
                return Ok(true);
            }
            dir = inode.attrs.parent;
        }
        Ok(false)
    }

    /// Whether the user may reach the scope itself.
    pub fn reachable(&mut self) -> FsResult<bool> {
        if let Some(known) = self.reachable {
            return Ok(known);
        }
        let from = match self.scope {
            Scope::Dir(Ino::ROOT) | Scope::Nothing => None,
            Scope::Dir(dir) => self.inode(dir)?.map(|inode| inode.attrs.parent),
            Scope::Name((parent, _)) => Some(parent),
        };
        let known = from.map_or(Ok(true), |dir| self.searchable(dir))?;
        self.reachable = Some(known);
        Ok(known)
    }

    /// The path of a directory in the scope, and whether the names in it may be seen.
    pub fn dir(&mut self, ino: Ino) -> FsResult<Option<Arc<Spot>>> {
        // Up to what is known or where the scope begins, then down again.
        let mut chain: Vec<(Ino, Inode)> = Vec::new();
        let mut at = ino;
        let mut found = loop {
            if let Some(known) = self.dirs.get(&at) {
                break known.clone();
            }
            // Each directory takes two bytes of a path.
            if chain.len() > DIFF_PATH_BYTES_MAX / 2 {
                return Err(too_deep());
            }
            let Some(inode) = self.inode(at)? else { break None };
            let place = (inode.attrs.parent, inode.attrs.name);
            let begins = match self.scope {
                Scope::Dir(dir) => (at == dir).then(Vec::new),
                Scope::Name(name) if name == place => self.name(place)?,
                Scope::Name(_) | Scope::Nothing => None,
            };
            if let Some(path) = begins {
                let open = self.reachable()? && self.grants(at, &inode, self.wanted)?;
                let spot = Some(Arc::new(Spot { path, open }));
                self.dirs.insert(at, spot.clone());
                break spot;
            }
            let is_root = at == Ino::ROOT;
            let parent = inode.attrs.parent;
            chain.push((at, inode));
            if is_root {
                break None;
            }
            at = parent;
        };
        for (ino, inode) in chain.into_iter().rev() {
            if let Some(above) = found {
                found = match self.name((inode.attrs.parent, inode.attrs.name))? {
                    Some(name) => {
                        let open = above.open && self.grants(ino, &inode, self.wanted)?;
                        Some(Arc::new(Spot { path: joined(&above.path, &name)?, open }))
                    }
                    None => None,
                };
            }
            self.dirs.insert(ino, found.clone());
        }
        Ok(found)
    }

    /// The name that a place has.
    pub fn name(&self, place: Place) -> FsResult<Option<Vec<u8>>> {
        Ok(self.view.dirent(place.0, &place.1)?.map(|entry| entry.name))
    }

    /// Where a name lies; `None` if it is not in the scope, or nothing has it.
    pub fn spot(&mut self, place: Place) -> FsResult<Option<Spot>> {
        if self.scope == Scope::Name(place) {
            let Some(path) = self.name(place)? else { return Ok(None) };
            return Ok(Some(Spot { path, open: self.reachable()? }));
        }
        let Some(dir) = self.dir(place.0)? else { return Ok(None) };
        let Some(name) = self.name(place)? else { return Ok(None) };
        Ok(Some(Spot { path: joined(&dir.path, &name)?, open: dir.open }))
    }
}

fn too_deep() -> FsError {
    FsError::TooMany("a path is too long; ask about a directory further down")
}

/// The path of `name` in the directory of that path.
pub fn joined(dir: &[u8], name: &[u8]) -> FsResult<Vec<u8>> {
    let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    let path = [dir, slash, name].concat();
    if path.len() > DIFF_PATH_BYTES_MAX { Err(too_deep()) } else { Ok(path) }
}
