//! Which files, live and in snapshots, need given chunks: found by reading all recipes and all names once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::index::frozen::VersionRow;
use super::index::keys::{self, Family};
use super::index::rows::Volume;
use super::index::{Frozen, Index, View};
use super::model::{Dirent, Recipe};
use crate::types::{ChunkId, Ino, Lsn, Result, VolumeId};

/// Files listed for one chunk; beyond it they are counted.
pub const FILES_MAX: usize = 1000;

/// When a file looks as it does at a [`FilePlace`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// Now.
    Live,
    /// In that snapshot.
    Snapshot(String),
    /// At some moment of the window, and neither now nor in a snapshot.
    Window,
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            When::Live => f.write_str("live"),
            When::Snapshot(name) => write!(f, "snapshot {name}"),
            When::Window => f.write_str("within the window"),
        }
    }
}

/// A file that needs a chunk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePlace {
    /// The volume's name.
    pub volume: String,
    /// When.
    pub when: When,
    /// Its path from the volume's root; bytes, as names are.
    pub path: Vec<u8>,
}

/// The files that need one chunk.
#[derive(Clone, Debug, Default)]
pub struct Affected {
    /// At most [`FILES_MAX`], in order.
    pub files: BTreeSet<FilePlace>,
    /// How many more there are, those listed twice included.
    pub more: u64,
}

/// A version's span of life.
#[derive(Clone, Copy)]
struct Span {
    since: Lsn,
    /// `None`: still alive.
    end: Option<Lsn>,
}

impl Span {
    fn of(row: &VersionRow<'_>) -> Span {
        Span { since: row.stored.since, end: row.end }
    }

    /// Whether the version is what `at` shows; `None` is now.
    fn shown_at(&self, at: Option<Lsn>) -> bool {
        match at {
            None => self.end.is_none(),
            Some(at) => self.since <= at && self.end.is_none_or(|end| at < end),
        }
    }
}

struct Name {
    parent: Ino,
    name: Vec<u8>,
    excluded: bool,
    span: Span,
}

/// Asked at every row whether to read on.
pub type GoOn<'a> = &'a dyn Fn() -> Result<()>;

/// Finds the files that need `chunks`, live or in a snapshot that can be read.
///
/// # Errors
/// The index cannot be read, or `go_on` says no. Versions that do not decode are passed over: `fsck` names
/// them.
pub fn affected(
    index: &Arc<Index>,
    frozen: &Frozen<'_>,
    chunks: &HashSet<ChunkId>,
    go_on: GoOn<'_>,
) -> Result<HashMap<ChunkId, Affected>> {
    affected_but(index, frozen, chunks, &|_, _| false, go_on)
}

/// As [`affected`], without the inodes that are `passed_over`.
pub fn affected_but(
    index: &Arc<Index>,
    frozen: &Frozen<'_>,
    chunks: &HashSet<ChunkId>,
    passed_over: &dyn Fn(VolumeId, Ino) -> bool,
    go_on: GoOn<'_>,
) -> Result<HashMap<ChunkId, Affected>> {
    let mut found: HashMap<ChunkId, Affected> = HashMap::new();
    if chunks.is_empty() {
        return Ok(found);
    }
    let mut uses = uses_of(frozen, chunks, go_on)?;
    uses.retain(|(_, vol, ino, _)| !passed_over(*vol, *ino));
    let inodes: HashSet<(VolumeId, Ino)> = uses.iter().map(|(_, vol, ino, _)| (*vol, *ino)).collect();
    let names = names_of(index, frozen, &inodes, go_on)?;
    let mut paths = Paths { index, directories: HashMap::new() };
    for (id, vol, ino, span) in uses {
        go_on()?;
        let Some(volume) = frozen.state.volumes.get(&vol).filter(|v| !v.deleted) else { continue };
        let names = names.get(&(vol, ino)).map_or(&[][..], Vec::as_slice);
        // No point shows what is excluded, wherever its span lies.
        let live = View::new(index.clone(), vol, None).inode(ino).ok().flatten();
        let hidden = span.end.is_none() && live.is_some_and(|inode| inode.item.attrs.excluded);
        let affected = found.entry(id).or_default();
        for place in places(volume, (vol, ino), (span, hidden), names, &mut paths) {
            if affected.files.len() < FILES_MAX {
                affected.files.insert(place);
            } else {
                affected.more += 1;
            }
        }
    }
    Ok(found)
}

/// The block versions that name one of `chunks`.
fn uses_of(
    frozen: &Frozen<'_>,
    chunks: &HashSet<ChunkId>,
    go_on: GoOn<'_>,
) -> Result<Vec<(ChunkId, VolumeId, Ino, Span)>> {
    let mut uses = Vec::new();
    frozen.versions(|row| {
        go_on()?;
        if keys::family_of(row.key) == Some(Family::Block)
            && let (Ok(recipe), Some(ino)) = (Recipe::join_public(&row.stored.public), keys::ino_of(row.key))
        {
            let named: HashSet<ChunkId> =
                recipe.chunks().filter(|id| chunks.contains(*id)).copied().collect();
            uses.extend(named.into_iter().map(|id| (id, keys::volume_of(row.key), ino, Span::of(&row))));
        }
        Ok(())
    })?;
    Ok(uses)
}

/// All names that those inodes have or had.
fn names_of(
    index: &Index,
    frozen: &Frozen<'_>,
    inodes: &HashSet<(VolumeId, Ino)>,
    go_on: GoOn<'_>,
) -> Result<HashMap<(VolumeId, Ino), Vec<Name>>> {
    let mut names: HashMap<(VolumeId, Ino), Vec<Name>> = HashMap::new();
    frozen.versions(|row| {
        go_on()?;
        if keys::family_of(row.key) == Some(Family::Dirent)
            && let (Ok(entry), Some(parent)) =
                (index.item::<Dirent>(row.key, &row.stored), keys::ino_of(row.key))
            && inodes.contains(&(keys::volume_of(row.key), entry.ino))
        {
            let name = Name { parent, name: entry.name, excluded: entry.excluded, span: Span::of(&row) };
            names.entry((keys::volume_of(row.key), entry.ino)).or_default().push(name);
        }
        Ok(())
    })?;
    Ok(names)
}

/// Where one block version is seen.
fn places(
    volume: &Volume,
    (vol, ino): (VolumeId, Ino),
    (span, hidden): (Span, bool),
    names: &[Name],
    paths: &mut Paths<'_>,
) -> Vec<FilePlace> {
    let mut moments: Vec<(Option<Lsn>, When)> = volume
        .snapshots()
        .filter(|(at, _)| !hidden && span.shown_at(Some(*at)))
        .map(|(at, s)| (Some(at), When::Snapshot(s.spec.name.clone())))
        .collect();
    if span.shown_at(None) {
        moments.push((None, When::Live));
    }
    if moments.is_empty() {
        let mark = volume.first_point(span.since, span.end.unwrap_or(Lsn::MAX)).filter(|at| *at > Lsn::ZERO);
        moments.push((Some(mark.unwrap_or(span.since.max(volume.floor))), When::Window));
    }
    let mut found = Vec::new();
    for (at, when) in moments {
        let shows = |n: &&Name| n.span.shown_at(at) && (at.is_none() || !n.excluded);
        let shown: Vec<&Name> = names.iter().filter(shows).collect();
        if shown.is_empty() {
            let path = format!("(inode {ino}, without a name)").into_bytes();
            found.push(FilePlace { volume: volume.name.clone(), when: when.clone(), path });
        }
        for name in shown {
            let mut path = paths.directory(vol, at, name.parent);
            path.push(b'/');
            path.extend_from_slice(&name.name);
            found.push(FilePlace { volume: volume.name.clone(), when: when.clone(), path });
        }
    }
    found
}

/// Paths of directories, each looked up once.
struct Paths<'a> {
    index: &'a Arc<Index>,
    directories: HashMap<(VolumeId, Option<Lsn>, Ino), Vec<u8>>,
}

impl Paths<'_> {
    /// The path of a directory from the root, without a `/` at its end; `...` where it cannot be told.
    fn directory(&mut self, vol: VolumeId, at: Option<Lsn>, dir: Ino) -> Vec<u8> {
        let known = self.directories.entry((vol, at, dir));
        let look = || match View::new(self.index.clone(), vol, at).path(dir) {
            Ok(Some(path)) if path.is_empty() => path,
            Ok(Some(path)) => [b"/".as_slice(), &path].concat(),
            Ok(None) | Err(_) => b"...".to_vec(),
        };
        known.or_insert_with(look).clone()
    }
}
