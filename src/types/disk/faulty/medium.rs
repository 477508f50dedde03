//! What a simulated disk holds: what is durable, what is only written, and what a power cut may leave.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Keep;

/// Bytes that reach the medium together or not at all.
pub const SECTOR: usize = 512;

/// A number of a file; it outlives the file's names.
pub type FileNumber = usize;

/// One changing operation.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new empty file.
    Create(PathBuf),
    /// Bytes written to a file.
    Write { file: FileNumber, offset: usize, data: Arc<[u8]> },
    /// A file cut or extended.
    SetLen { file: FileNumber, len: usize },
    /// A file's bytes and length made durable.
    Sync(FileNumber),
    /// A name taken away.
    Remove(PathBuf),
    /// A name moved within its directory.
    Rename { from: PathBuf, to: PathBuf },
    /// A directory's names made durable.
    SyncDir(PathBuf),
}

impl Change {
    /// What kind it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Change::Create(_) => "create",
            Change::Write { .. } => "write",
            Change::SetLen { .. } => "set_len",
            Change::Sync(_) => "sync",
            Change::Remove(_) => "remove",
            Change::Rename { .. } => "rename",
            Change::SyncDir(_) => "sync_dir",
        }
    }

    /// How many bytes of it may have been done when the power goes: for a write, up to each border of a
    /// sector; else none (all of it is the same as none of the next change).
    pub fn tears(&self) -> Vec<usize> {
        match self {
            Change::Write { offset, data, .. } => {
                let first = SECTOR - offset % SECTOR;
                let borders = (first..data.len()).step_by(SECTOR);
                [0].into_iter().chain(borders).collect()
            }
            _ => vec![0],
        }
    }
}

/// A change of a file that was not synced.
#[derive(Clone)]
enum Pending {
    Write(usize, Arc<[u8]>),
    Len(usize),
}

#[derive(Clone, Default)]
struct Content {
    now: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    /// What lies between the two, in order.
    pending: Vec<Pending>,
    /// Sectors that a failed sync dropped: no later one brings them to the medium unless they are written
    /// again.
    dropped: BTreeSet<usize>,
}

type Names = BTreeMap<OsString, FileNumber>;

/// Files and directories, each as it is and as it would be found after a power cut.
#[derive(Clone, Default)]
pub struct Medium {
    files: Vec<Content>,
    /// Every state of a directory since it was synced, that one first, the present one last.
    dirs: BTreeMap<PathBuf, Vec<Names>>,
}

/// A small generator of choices.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    /// One of the `n + 1` moments before, between and behind `n` changes; mostly the first or the last.
    fn moment(&mut self, n: usize) -> usize {
        match self.below(3) {
            0 => 0,
            1 => n,
            _ => self.below(n + 1),
        }
    }
}

impl Content {
    fn write(&mut self, offset: usize, data: Arc<[u8]>) {
        if data.is_empty() {
            return;
        }
        let now = Arc::make_mut(&mut self.now);
        let end = offset + data.len();
        if now.len() < end {
            now.resize(end, 0);
        }
        now[offset..end].copy_from_slice(&data);
        let sectors = offset / SECTOR..end.div_ceil(SECTOR);
        self.dropped.retain(|sector| !sectors.contains(sector));
        self.pending.push(Pending::Write(offset, data));
    }

    fn set_len(&mut self, len: usize) {
        Arc::make_mut(&mut self.now).resize(len, 0);
        self.pending.push(Pending::Len(len));
    }

    fn settle(&mut self) {
        let old = std::mem::replace(&mut self.durable, self.now.clone());
        self.pending.clear();
        for sector in &self.dropped {
            let durable = Arc::make_mut(&mut self.durable);
            let end = durable.len().min((sector + 1) * SECTOR);
            let Some(lost) = durable.get_mut(sector * SECTOR..end) else { continue };
            lost.fill(0);
            overlay(0, &old, sector * SECTOR, lost);
        }
    }

    fn drop_dirty(&mut self) {
        let sector =
            |of: &[u8], n: usize| of.iter().skip(n * SECTOR).take(SECTOR).copied().collect::<Vec<u8>>();
        let sectors = 0..self.now.len().div_ceil(SECTOR);
        self.dropped.extend(sectors.filter(|n| sector(&self.now, *n) != sector(&self.durable, *n)));
    }

    /// The length after the first `moment` pending changes.
    fn len_at(&self, moment: usize) -> usize {
        self.pending[..moment].iter().fold(self.durable.len(), |len, change| match change {
            Pending::Write(offset, data) => len.max(offset + data.len()),
            Pending::Len(len) => *len,
        })
    }

    /// Fills `out` with the bytes at `start` as they were after the first `moment` pending changes.
    fn read_at(&self, moment: usize, start: usize, out: &mut [u8]) {
        overlay(0, &self.durable, start, out);
        for change in &self.pending[..moment] {
            match change {
                Pending::Write(offset, data) => overlay(*offset, data, start, out),
                Pending::Len(len) => {
                    let kept = len.saturating_sub(start).min(out.len());
                    out[kept..].fill(0);
                }
            }
        }
    }

    /// What may be found after a power cut: a length that the file had at some moment, and every run of
    /// sectors as it was at a moment of its own. The runs are short or long, so that in some cuts every
    /// sector goes its own way, and in others whole files are older than others.
    fn by_chance(&self, chance: &mut Chance) -> Vec<u8> {
        let count = self.pending.len();
        if count == 0 {
            return self.durable.to_vec();
        }
        let run = [SECTOR, 8 * SECTOR, 128 * SECTOR, usize::MAX][chance.below(4)];
        let one = chance.moment(count);
        let mut out = vec![0; self.len_at(if run == usize::MAX { one } else { chance.moment(count) })];
        for (i, part) in out.chunks_mut(run).enumerate() {
            let moment = if run == usize::MAX { one } else { chance.moment(count) };
            self.read_at(moment, i.saturating_mul(run), part);
        }
        out
    }
}

/// Copies what `data`, which lies at `offset`, has of the bytes that begin at `start`.
fn overlay(offset: usize, data: &[u8], start: usize, out: &mut [u8]) {
    let (from, to) = (offset.max(start), (offset + data.len()).min(start + out.len()));
    if from < to {
        out[from - start..to - start].copy_from_slice(&data[from - offset..to - offset]);
    }
}

fn split(path: &Path) -> (PathBuf, OsString) {
    let parent = path.parent().map(Path::to_owned).unwrap_or_default();
    (parent, path.file_name().map(OsString::from).unwrap_or_default())
}

impl Medium {
    /// The file of that name.
    pub fn find(&self, path: &Path) -> Option<FileNumber> {
        let (dir, name) = split(path);
        self.dirs.get(&dir)?.last()?.get(&name).copied()
    }

    /// The name of that file, if it has one.
    pub fn path_of(&self, file: FileNumber) -> Option<PathBuf> {
        self.dirs.iter().find_map(|(dir, history)| {
            let (name, _) = history.last()?.iter().find(|(_, f)| **f == file)?;
            Some(dir.join(name))
        })
    }

    /// The names in a directory.
    pub fn list(&self, dir: &Path) -> Vec<OsString> {
        let names = self.dirs.get(dir).and_then(|history| history.last());
        names.map(|names| names.keys().cloned().collect()).unwrap_or_default()
    }

    /// How many files there ever were.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// A file's bytes, as its readers see them.
    pub fn bytes(&self, file: FileNumber) -> &[u8] {
        &self.files[file].now
    }

    /// Does a change; of a write only the first `bytes` bytes.
    pub fn apply(&mut self, change: &Change, bytes: usize) {
        match change {
            Change::Create(path) => {
                self.files.push(Content::default());
                let file = self.files.len() - 1;
                self.rename(path, |names, name| {
                    names.insert(name, file);
                });
            }
            Change::Write { file, offset, data } => {
                let part = if bytes >= data.len() { data.clone() } else { data[..bytes].into() };
                self.files[*file].write(*offset, part);
            }
            Change::SetLen { file, len } => self.files[*file].set_len(*len),
            Change::Sync(file) => self.files[*file].settle(),
            Change::Remove(path) => self.rename(path, |names, name| {
                names.remove(&name);
            }),
            Change::Rename { from, to } => {
                let (dir, old) = split(from);
                let (other, new) = split(to);
                assert_eq!(dir, other, "no caller moves a file to another directory");
                self.rename(&dir.join(new), |names, new| {
                    if let Some(file) = names.remove(&old) {
                        names.insert(new, file);
                    }
                });
            }
            Change::SyncDir(dir) => {
                let history = self.dirs.entry(dir.clone()).or_insert_with(|| vec![Names::new()]);
                drop(history.drain(..history.len() - 1));
            }
        }
    }

    fn rename(&mut self, path: &Path, change: impl FnOnce(&mut Names, OsString)) {
        let (dir, name) = split(path);
        let history = self.dirs.entry(dir).or_insert_with(|| vec![Names::new()]);
        let mut names = history.last().cloned().unwrap_or_default();
        change(&mut names, name);
        history.push(names);
    }

    /// What all files take.
    pub fn used(&self) -> u64 {
        let names = self.dirs.values().filter_map(|history| history.last()).flatten();
        names.map(|(_, file)| self.files[*file].now.len().max(SECTOR) as u64).sum()
    }

    /// A failed sync: the kernel takes what is not durable yet for clean.
    pub fn drop_dirty(&mut self, file: FileNumber) {
        self.files[file].drop_dirty();
    }

    /// Makes a file durable as it is, unasked.
    pub fn write_back(&mut self, file: FileNumber) {
        self.files[file].settle();
    }

    /// What the next process finds.
    #[must_use]
    pub fn after(&self, keep: Keep) -> Medium {
        let mut left = self.clone();
        let mut chance = Chance(match keep {
            Keep::Some(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            Keep::Nothing => 1,
            Keep::All => return left,
        });
        for history in left.dirs.values_mut() {
            let moment = if keep == Keep::Nothing { 0 } else { chance.moment(history.len() - 1) };
            *history = vec![history.swap_remove(moment)];
        }
        for file in &mut left.files {
            if keep != Keep::Nothing {
                file.durable = Arc::new(file.by_chance(&mut chance));
            }
            file.now = file.durable.clone();
            file.pending.clear();
            file.dropped.clear();
        }
        left
    }

    /// A short name for what is there: media with the same one are the same to a reader.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        for (dir, history) in &self.dirs {
            for (name, file) in history.last().into_iter().flatten() {
                let bytes = &self.files[*file].now;
                hash.update(format!("{dir:?} {name:?} {} ", bytes.len()).as_bytes()).update(bytes);
            }
        }
        *hash.finalize().as_bytes()
    }
}
