//! Paths through time: what a path meant, at whatever moment, also through directories that were removed, remade,
//! renamed or restored meanwhile; and what the files that it meant were called before. Each step back is one look
//! at the history of a name or an inode, whose rows lie together.

use std::collections::{BTreeMap, HashMap};

use super::user::{SEARCH, User};
use super::{FsError, FsResult, Volume};
use crate::store::index::Span;
use crate::store::model::{Dirent, FileKind};
use crate::types::{Ino, Lsn};

/// A name in a directory: the directory and the hash of the name.
pub type Place = (Ino, [u8; 16]);

/// A path from a directory on: the hashes of its names, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePath {
    from: Ino,
    above: Vec<[u8; 16]>,
    last: [u8; 16],
}

/// A name that meant one inode, from a record on until before another ([`Lsn::MAX`]: still).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub place: Place,
    pub ino: Ino,
    pub kind: FileKind,
    pub excluded: bool,
    pub since: Lsn,
    pub end: Lsn,
    /// The record that gave the inode the name: before `since` where the directory came to lie on a path later.
    made: Lsn,
}

impl Meaning {
    fn of(place: Place, span: &Span<Dirent>) -> Meaning {
        let Dirent { ino, kind, excluded, .. } = span.item;
        Meaning { place, ino, kind, excluded, since: span.since, end: span.end, made: span.since }
    }

    /// Whether `before` is what the name, or the path, meant until this.
    fn follows(&self, before: &Meaning) -> bool {
        before.end == self.since && before.kind != FileKind::Dir
    }
}

/// A directory that a path led to, from `since` on; the next name in it is looked for before `before`.
struct Step {
    dir: Ino,
    since: Lsn,
    before: Lsn,
}

/// What a path meant, newest first, whatever points still show. A `user` gets nothing out of directories that he
/// could not search when the path last led there.
struct Meanings<'a> {
    volume: &'a Volume,
    path: &'a NamePath,
    user: Option<&'a User>,
    /// The directories that led to what was met last.
    steps: Vec<Step>,
}

impl<'a> Meanings<'a> {
    fn new(volume: &'a Volume, path: &'a NamePath, user: Option<&'a User>) -> Meanings<'a> {
        let steps = vec![Step { dir: path.from, since: Lsn::ZERO, before: Lsn::MAX }];
        Meanings { volume, path, user, steps }
    }

    fn next(&mut self) -> FsResult<Option<Meaning>> {
        loop {
            let above = self.path.above.get(self.steps.len().saturating_sub(1));
            let Some(step) = self.steps.last_mut() else { return Ok(None) };
            let place = (step.dir, *above.unwrap_or(&self.path.last));
            let span = match step.since < step.before {
                true => self.volume.entry_before(place, step.before)?.filter(|span| span.end > step.since),
                false => None,
            };
            let Some(span) = span else {
                self.steps.pop();
                continue;
            };
            let (since, end) = (span.since.max(step.since), span.end.min(step.before));
            step.before = since;
            let meaning = Meaning { since, end, ..Meaning::of(place, &span) };
            if above.is_none() {
                return Ok(Some(meaning));
            }
            if meaning.kind == FileKind::Dir && self.may_search(meaning.ino, end)? {
                self.steps.push(Step { dir: meaning.ino, since, before: end });
            }
        }
    }

    /// Whether the user may search a directory as it was before the record `end`.
    fn may_search(&self, dir: Ino, end: Lsn) -> FsResult<bool> {
        let Some(user) = self.user else { return Ok(true) };
        let mut newest = None;
        self.volume.view(None).inode_spans(dir, end, |span| {
            newest = Some(span);
            Ok(false)
        })?;
        let Some(span) = newest else { return Ok(false) };
        let end = span.end.min(end);
        let at = (end < Lsn::MAX).then_some(Lsn(end.0.saturating_sub(1)));
        Ok(self.volume.granted(at, dir, &span.item.attrs, user)? & SEARCH != 0)
    }
}

/// The files of a path, from the newest on: all that it ever meant; and where the path began to mean one out of
/// nothing, what that was called before, and what it took that name from. Of what overlaps, what ended last comes
/// first. Nothing comes twice.
pub(super) struct Lineage<'a> {
    volume: &'a Volume,
    meanings: Meanings<'a>,
    /// The next that the path meant.
    ahead: Option<Meaning>,
    /// Earlier names, by when they ended.
    earlier: BTreeMap<(Lsn, Place, Lsn), Meaning>,
    /// Of entries, by the records that made them: from where on they have been told.
    told: HashMap<(Place, Lsn), Lsn>,
}

impl Lineage<'_> {
    pub fn next(&mut self) -> FsResult<Option<Meaning>> {
        loop {
            let on_path = match (&self.ahead, self.earlier.last_key_value()) {
                (None, None) => return Ok(None),
                (Some(ahead), Some(((end, ..), _))) => ahead.end >= *end,
                (ahead, None) => ahead.is_some(),
                (None, Some(_)) => false,
            };
            let next = if on_path { self.ahead.take() } else { self.earlier.pop_last().map(|(_, m)| m) };
            let Some(now) = next else { return Ok(None) };
            let mut is_followed = false;
            if on_path {
                self.ahead = self.meanings.next()?;
                is_followed = self.ahead.is_some_and(|before| now.follows(&before));
            }
            if now.kind == FileKind::Dir {
                continue;
            }
            let told = self.told.entry((now.place, now.made)).or_insert(Lsn::MAX);
            let end = now.end.min(*told);
            if now.since >= end {
                continue;
            }
            *told = now.since;
            if !is_followed && let Some(before) = self.volume.name_before(now)? {
                self.earlier.insert((before.end, before.place, before.made), before);
            }
            return Ok(Some(Meaning { end, ..now }));
        }
    }
}

impl Volume {
    /// The path that names make, from a directory on.
    ///
    /// # Errors
    /// [`FsError::Invalid`] without any name.
    pub fn name_path(&self, from: Ino, names: &[impl AsRef<[u8]>]) -> FsResult<NamePath> {
        let mut above: Vec<[u8; 16]> = names.iter().map(|name| self.name_hash(name.as_ref())).collect();
        let last = above.pop().ok_or(FsError::Invalid("a path needs a name"))?;
        Ok(NamePath { from, above, last })
    }

    /// Where a path ends at a point: the directory that holds its last name there, if it has one, and that name. A
    /// `user` finds nothing in directories that he may not search there.
    ///
    /// # Errors
    /// From the store.
    pub fn place_at(&self, path: &NamePath, at: Lsn, user: Option<&User>) -> FsResult<Option<Place>> {
        let view = self.view(Some(at));
        let closed = |dir: Ino| -> FsResult<bool> {
            let Some(user) = user else { return Ok(false) };
            let Some(inode) = view.inode(dir)? else { return Ok(true) };
            Ok(self.granted(view.at(), dir, &inode.item.attrs, user)? & SEARCH == 0)
        };
        let mut dir = path.from;
        for name in &path.above {
            if closed(dir)? {
                return Ok(None);
            }
            let entry = view.dirent(dir, name)?.filter(|entry| entry.kind == FileKind::Dir);
            let Some(entry) = entry else { return Ok(None) };
            dir = entry.ino;
        }
        Ok((!closed(dir)?).then_some((dir, path.last)))
    }

    /// Whether a name means a directory at a point.
    pub fn is_directory(&self, place: Place, at: Lsn) -> bool {
        let entry = self.view(Some(at)).dirent(place.0, &place.1);
        matches!(entry, Ok(Some(entry)) if entry.kind == FileKind::Dir)
    }

    /// The file that a path means or meant last.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when it never meant anything that is still known, [`FsError::IsDir`] when it means a
    /// directory now or only ever meant directories; from the store.
    pub(super) fn last_file(&self, path: &NamePath, user: Option<&User>) -> FsResult<Meaning> {
        let mut meanings = Meanings::new(self, path, user);
        let mut nothing = FsError::NotFound;
        while let Some(meaning) = meanings.next()? {
            match meaning.kind {
                FileKind::Dir if meaning.end == Lsn::MAX => return Err(FsError::IsDir),
                FileKind::Dir => nothing = FsError::IsDir,
                _ => return Ok(meaning),
            }
        }
        Err(nothing)
    }

    /// The files of a path, as [`Lineage`] says.
    pub(super) fn lineage<'a>(&'a self, path: &'a NamePath, user: Option<&'a User>) -> FsResult<Lineage<'a>> {
        let mut meanings = Meanings::new(self, path, user);
        let ahead = meanings.next()?;
        Ok(Lineage { volume: self, meanings, ahead, earlier: BTreeMap::new(), told: HashMap::new() })
    }

    /// What a name meant last before the record `before`.
    fn entry_before(&self, place: Place, before: Lsn) -> FsResult<Option<Span<Dirent>>> {
        let mut found = None;
        self.view(None).entry_spans(place.0, &place.1, before, |span| {
            found = Some(span);
            Ok(false)
        })?;
        Ok(found)
    }

    /// What comes before a meaning, always earlier: the same while the directory lay elsewhere, what the name meant
    /// until then, or the name that the file had.
    fn name_before(&self, now: Meaning) -> FsResult<Option<Meaning>> {
        if now.made < now.since {
            return Ok(Some(Meaning { since: now.made, end: now.since, ..now }));
        }
        let replaced = self.entry_before(now.place, now.since)?.map(|span| Meaning::of(now.place, &span));
        match replaced.filter(|before| now.follows(before)) {
            Some(replaced) => Ok(Some(replaced)),
            None => self.other_name(now),
        }
    }

    /// The name that a file had before it got the one it has now.
    fn other_name(&self, now: Meaning) -> FsResult<Option<Meaning>> {
        let mut version = None;
        self.view(None).inode_spans(now.ino, now.since, |span| {
            version = Some(span);
            Ok(false)
        })?;
        let Some(version) = version.filter(|v| v.item.attrs.nlink > 0) else { return Ok(None) };
        let place = (version.item.attrs.parent, version.item.attrs.name);
        if place == now.place {
            return Ok(None);
        }
        let entry = self.entry_before(place, version.since.next())?;
        let entry = entry.filter(|e| e.item.ino == now.ino && e.end > version.since && !e.item.excluded);
        Ok(entry.map(|span| Meaning { end: span.end.min(now.since), ..Meaning::of(place, &span) }))
    }
}
