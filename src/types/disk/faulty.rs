//! A disk in memory for tests. It forgets what was not synced, tears the write under way, reorders what lies
//! between two syncs, fails, fills up and lies on demand; and it remembers every change, so that afterwards
//! the power can be cut at each of them ([`FaultyDisk::cuts`]).

pub mod medium;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::types::{Disk, DiskFile, Space};
use medium::{Change, FileNumber, Medium};

/// What the filesystem says of its size.
const SIZE: u64 = 1 << 30;

/// What happens at one chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: this operation and all later ones fail; a write gets `0..=1` of its bytes, in 256ths.
    Power(u8),
    /// This one fails with that errno after `0..=1` of a write, in 256ths; later ones work.
    Once(i32, u8),
    /// The disk is full from here on, until [`FaultyDisk::lift`]: files grow only by what others shrink.
    Full,
}

/// What of the unsynced changes is still there afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// All: only the process died.
    All,
    /// Sector by sector by chance, directory changes up to some moment: a real power cut.
    Some(u64),
}

/// Whether a sync (its kind, and the file or directory) is only said to have been done.
type Lie = Box<dyn Fn(&str, &Path) -> bool + Send>;

/// What became of a change.
#[derive(Clone, Copy)]
enum Done {
    /// All of it.
    Whole,
    /// So many bytes of it (of a write), and an error. If the disk went on, they were written back.
    Part { bytes: usize, wrote_back: bool },
    /// Nothing, and the kernel takes the bytes that a sync should have brought to the medium for clean.
    Dropped,
    /// Nothing.
    Not,
}

#[derive(Default)]
struct State {
    /// The disk before the first change of `log`.
    before: Medium,
    now: Medium,
    log: Vec<(Change, Done)>,
    fault: Option<(u64, Fault)>,
    /// What all files may take together.
    limit: Option<u64>,
    reads: u64,
    read_fault: Option<(u64, i32)>,
    off: bool,
    lie: Option<Lie>,
}

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub struct FaultyDisk(Arc<Mutex<State>>);

struct Handle(FaultyDisk, FileNumber);

fn errno(n: i32) -> io::Error {
    io::Error::from_raw_os_error(n)
}

/// That part of a write, in 256ths; rounded up, so that 255 is all of it.
fn part_of(change: &Change, part: u8) -> usize {
    let Change::Write { data, .. } = change else { return 0 };
    (data.len() * usize::from(part)).div_ceil(255).min(data.len())
}

impl Done {
    fn apply(self, medium: &mut Medium, change: &Change) {
        match (self, change) {
            (Done::Whole, _) => medium.apply(change, usize::MAX),
            (Done::Part { bytes, wrote_back }, Change::Write { file, .. }) => {
                medium.apply(change, bytes);
                if wrote_back {
                    medium.write_back(*file);
                }
            }
            (Done::Dropped, Change::Sync(file)) => medium.drop_dirty(*file),
            _ => {}
        }
    }
}

impl State {
    /// Does a change, or what a fault leaves of it.
    fn change(&mut self, change: Change) -> io::Result<()> {
        let now = self.log.len() as u64;
        let fault = self.fault.and_then(|(at, fault)| (at == now).then_some(fault));
        let failed = |part, wrote_back| match &change {
            Change::Write { .. } => Done::Part { bytes: part_of(&change, part), wrote_back },
            // The worst failure is one that did happen.
            Change::Rename { .. } if part == 255 => Done::Whole,
            Change::Sync(_) if wrote_back => Done::Dropped,
            _ => Done::Not,
        };
        let (done, result) = match fault {
            _ if self.off => (Done::Not, Err(errno(libc::EIO))),
            Some(Fault::Power(part)) => {
                self.off = true;
                (failed(part, false), Err(errno(libc::EIO)))
            }
            // The kernel may write back at any moment; right after a failed write is the worst one.
            Some(Fault::Once(e, part)) => (failed(part, true), Err(errno(e))),
            Some(Fault::Full) => {
                self.limit = Some(self.now.used());
                self.possible(&change)
            }
            None if self.is_lie(&change) => (Done::Not, Ok(())),
            None => self.possible(&change),
        };
        done.apply(&mut self.now, &change);
        self.log.push((change, done));
        result
    }

    fn possible(&self, change: &Change) -> (Done, io::Result<()>) {
        match change {
            Change::Create(path) if self.now.find(path).is_some() => (Done::Not, Err(errno(libc::EEXIST))),
            Change::Rename { from, .. } if self.now.find(from).is_none() => {
                (Done::Not, Err(errno(libc::ENOENT)))
            }
            Change::Write { file, offset, data } if !self.fits(*file, offset + data.len()) => {
                (Done::Part { bytes: 0, wrote_back: true }, Err(errno(libc::ENOSPC)))
            }
            Change::SetLen { file, len } if !self.fits(*file, *len) => (Done::Not, Err(errno(libc::ENOSPC))),
            _ => (Done::Whole, Ok(())),
        }
    }

    /// Whether a file may get that long.
    fn fits(&self, file: FileNumber, len: usize) -> bool {
        let grows = len.saturating_sub(self.now.bytes(file).len()) as u64;
        grows == 0 || self.limit.is_none_or(|limit| self.now.used() + grows <= limit)
    }

    fn is_lie(&self, change: &Change) -> bool {
        let Some(lie) = &self.lie else { return false };
        match change {
            Change::Sync(file) => self.now.path_of(*file).is_some_and(|path| lie("sync", &path)),
            Change::SyncDir(dir) => lie("sync_dir", dir),
            _ => false,
        }
    }
}

impl FaultyDisk {
    /// An empty disk.
    pub fn new() -> FaultyDisk {
        FaultyDisk::default()
    }

    fn on(medium: Medium) -> FaultyDisk {
        let state = State { before: medium.clone(), now: medium, ..State::default() };
        FaultyDisk(Arc::new(Mutex::new(state)))
    }

    /// How many changes were asked for.
    pub fn ops(&self) -> u64 {
        self.0.lock().log.len() as u64
    }

    /// What kind of change number `n` was.
    pub fn what(&self, n: u64) -> &'static str {
        self.0.lock().log[n as usize].0.kind()
    }

    /// Makes operation `at` (counted from the disk's beginning) go wrong.
    pub fn set_fault(&self, at: u64, fault: Fault) {
        self.0.lock().fault = Some((at, fault));
    }

    /// Lets nothing more go wrong, and makes room again.
    pub fn lift(&self) {
        let mut state = self.0.lock();
        (state.fault, state.limit, state.read_fault) = (None, None, None);
    }

    /// How many reads were asked for.
    pub fn reads(&self) -> u64 {
        self.0.lock().reads
    }

    /// Makes read `at` (counted from the disk's beginning) fail with that errno.
    pub fn set_read_fault(&self, at: u64, errno: i32) {
        self.0.lock().read_fault = Some((at, errno));
    }

    /// From now on the syncs for which `lie` says so report success and do nothing.
    pub fn set_lie(&self, lie: impl Fn(&str, &Path) -> bool + Send + 'static) {
        self.0.lock().lie = Some(Box::new(lie));
    }

    /// The disk that the next server finds.
    pub fn crash(&self, keep: Keep) -> FaultyDisk {
        FaultyDisk::on(self.0.lock().now.after(keep))
    }

    /// The disk's whole life so far, to cut the power at any moment of it.
    pub fn cuts(&self) -> Cuts {
        let state = self.0.lock();
        Cuts { before: state.before.clone(), log: state.log.clone(), position: 0, now: state.before.clone() }
    }
}

/// A disk's life, and the disk at one moment of it.
pub struct Cuts {
    before: Medium,
    log: Vec<(Change, Done)>,
    position: usize,
    now: Medium,
}

impl Cuts {
    /// How many changes there were.
    pub fn ops(&self) -> u64 {
        self.log.len() as u64
    }

    /// Change number `n`.
    pub fn change(&self, n: u64) -> &Change {
        &self.log[n as usize].0
    }

    /// The disk that the next server finds when the power goes during change `n` (or behind the last), of
    /// which `torn` bytes were done. Asking in ascending order costs least.
    pub fn at(&mut self, n: u64, torn: usize, keep: Keep) -> FaultyDisk {
        let n = n as usize;
        if n < self.position {
            (self.position, self.now) = (0, self.before.clone());
        }
        for (change, done) in &self.log[self.position..n] {
            done.apply(&mut self.now, change);
        }
        self.position = n;
        match self.log.get(n) {
            Some((change @ Change::Write { .. }, Done::Whole)) if torn > 0 => {
                let mut during = self.now.clone();
                during.apply(change, torn);
                FaultyDisk::on(during.after(keep))
            }
            _ => FaultyDisk::on(self.now.after(keep)),
        }
    }
}

impl FaultyDisk {
    /// A short name for what a reader finds; disks with the same one differ in nothing.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.0.lock().now.fingerprint()
    }
}

impl DiskFile for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.0.0.lock();
        state.reads += 1;
        if let Some((at, e)) = state.read_fault
            && at + 1 == state.reads
        {
            return Err(errno(e));
        }
        let source = state.now.bytes(self.1).get(offset as usize..).unwrap_or_default();
        let n = buf.len().min(source.len());
        buf[..n].copy_from_slice(&source[..n]);
        Ok(n)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let change = Change::Write { file: self.1, offset: offset as usize, data: buf.into() };
        self.0.0.lock().change(change)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.0.lock().change(Change::Sync(self.1))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.0.lock().change(Change::SetLen { file: self.1, len: len as usize })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.0.lock().now.bytes(self.1).len() as u64)
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        let file = state.now.files();
        state.change(Change::Create(path.to_owned()))?;
        Ok(Arc::new(Handle(self.clone(), file)))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.lock().now.find(path).ok_or_else(|| errno(libc::ENOENT))?;
        Ok(Arc::new(Handle(self.clone(), file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        Ok(self.0.lock().now.list(dir))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.now.find(path).is_none() {
            return Err(errno(libc::ENOENT));
        }
        state.change(Change::Remove(path.to_owned()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.lock().change(Change::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.lock().change(Change::SyncDir(dir.to_owned()))
    }

    /// Directories are there as soon as a name is made in them; `init` makes the store's on the real disk.
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.0.lock();
        let free = state.limit.map_or(SIZE, |limit| limit.saturating_sub(state.now.used()));
        Ok(Space { total: SIZE, free, usable: free })
    }

    fn set_aside(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = match self.open(path, true) {
            Err(_) => self.create(path)?,
            Ok(file) => file,
        };
        let len = len.max(file.len()?);
        file.set_len(len)
    }
}
