//! Programs that write into the mount and note, outside of it, what they were promised; and the checks of
//! those notes. Each stops at the first error: the power is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::machine::read_if_any;
use crate::harness::Rng;
use crate::harness::sys::names;

/// Bytes that belong to a number; a shorter one is the beginning of a longer one.
fn content(number: u64, len: u64) -> Vec<u8> {
    Rng::new(number.wrapping_mul(0x9e37_79b9)).bytes(len as usize)
}

/// Files that are written, grown and removed, with an fsync behind each step.
#[derive(Default)]
pub struct Synced {
    next: u64,
    /// By number: bytes that fsync acknowledged.
    files: BTreeMap<u64, u64>,
    /// Removed, and durably so.
    gone: BTreeSet<u64>,
    /// Removed or written when the power went: they may be there in part.
    open: BTreeSet<u64>,
}

impl Synced {
    fn step(&mut self, root: &Path, rng: &mut Rng, log: &Log) -> io::Result<()> {
        let known: Vec<u64> = self.files.keys().copied().collect();
        let made = log.made.load(Ordering::SeqCst);
        match rng.below(10) {
            0 if known.len() > 5 => {
                let number = *rng.pick(&known);
                self.files.remove(&number);
                self.open.insert(number);
                fs::remove_file(root.join(format!("synced-{number}")))?;
                File::open(root)?.sync_all()?;
                self.open.remove(&number);
                self.gone.insert(number);
            }
            1 | 2 if !known.is_empty() => {
                let number = *rng.pick(&known);
                let len = self.files[&number];
                let longer = len + 1 + rng.below(70_000);
                let file = File::options().write(true).open(root.join(format!("synced-{number}")))?;
                file.write_all_at(&content(number, longer)[len as usize..], len)?;
                file.sync_data()?;
                self.files.insert(number, longer);
            }
            _ => {
                let number = self.next;
                self.next += 1;
                let len = [rng.below(5_000), rng.below(300_000), rng.below(2_000_000)][rng.below(3) as usize];
                self.open.insert(number);
                let mut file = File::create(root.join(format!("synced-{number}")))?;
                file.write_all(&content(number, len))?;
                file.sync_all()?;
                self.open.remove(&number);
                self.files.insert(number, len);
            }
        }
        // An fsync makes every earlier change durable, whoever made it.
        log.promised.fetch_max(made, Ordering::SeqCst);
        Ok(())
    }

    fn check(&mut self, root: &Path) -> Result<(), String> {
        for (number, len) in &mut self.files {
            let path = root.join(format!("synced-{number}"));
            let found = read_if_any(&path)?.ok_or_else(|| format!("{} is missing", path.display()))?;
            if (found.len() as u64) < *len {
                return Err(format!(
                    "{} has {} bytes of {len} that were fsynced",
                    path.display(),
                    found.len()
                ));
            }
            if found != content(*number, found.len() as u64) {
                return Err(format!("{}: its bytes are not those written", path.display()));
            }
            *len = found.len() as u64;
        }
        for number in &self.gone {
            if root.join(format!("synced-{number}")).exists() {
                return Err(format!("synced-{number} is there though its removal was fsynced"));
            }
        }
        for number in std::mem::take(&mut self.open) {
            let path = root.join(format!("synced-{number}"));
            if let Some(found) = read_if_any(&path)? {
                let expected = content(number, found.len() as u64);
                if found != expected {
                    return Err(format!("{}: bytes that were never written", path.display()));
                }
                fs::remove_file(&path).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }
}

/// A few files that are replaced by rename, with and without fsync.
#[derive(Default)]
pub struct Replaced {
    /// Of each: the version that is durable, and the newest that was begun.
    versions: [(u64, u64); 4],
}

impl Replaced {
    fn bytes(version: u64) -> Vec<u8> {
        [version.to_le_bytes().to_vec(), content(version, 1 + version * 7919 % 150_000)].concat()
    }

    fn step(&mut self, root: &Path, rng: &mut Rng, _: &Log) -> io::Result<()> {
        let slot = rng.below(self.versions.len() as u64) as usize;
        let (temporary, name) = (root.join("temporary"), root.join(format!("replaced-{slot}")));
        self.versions[slot].1 += 1;
        let version = self.versions[slot].1;
        let mut file = File::create(&temporary)?;
        file.write_all(&Replaced::bytes(version))?;
        if rng.below(2) == 0 {
            file.sync_all()?;
        }
        fs::rename(&temporary, &name)?;
        if rng.below(3) == 0 {
            File::open(root)?.sync_all()?;
            self.versions[slot].0 = version;
        }
        Ok(())
    }

    fn check(&mut self, root: &Path) -> Result<(), String> {
        for (slot, (durable, newest)) in self.versions.iter_mut().enumerate() {
            let Some(found) = read_if_any(&root.join(format!("replaced-{slot}")))? else {
                if *durable > 0 {
                    return Err(format!("replaced-{slot} is missing"));
                }
                continue;
            };
            let version = found.first_chunk().map_or(0, |v| u64::from_le_bytes(*v));
            if found.is_empty() || found != Replaced::bytes(version) {
                return Err(format!(
                    "replaced-{slot} is neither an old nor a new version, but {} bytes",
                    found.len()
                ));
            }
            if !(*durable..=*newest).contains(&version) {
                return Err(format!("replaced-{slot} is version {version}, of {durable} to {newest}"));
            }
            (*durable, *newest) = (version, version.max(*newest));
        }
        Ok(())
    }
}

/// Files made strictly one after the other, none of them synced by name.
#[derive(Default)]
pub struct Log {
    tried: AtomicU64,
    made: AtomicU64,
    promised: AtomicU64,
}

impl Log {
    fn step(&self, root: &Path, rng: &mut Rng) -> io::Result<()> {
        let dir = root.join("log");
        let number = self.made.load(Ordering::SeqCst);
        self.tried.store(number + 1, Ordering::SeqCst);
        File::create_new(dir.join(number.to_string()))?;
        self.made.store(number + 1, Ordering::SeqCst);
        if rng.below(50) == 0 {
            File::open(&dir)?.sync_all()?;
            self.promised.fetch_max(number + 1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn check(&self, root: &Path) -> Result<(), String> {
        let Ok(found) = names(&root.join("log")) else {
            return match self.promised.load(Ordering::SeqCst) {
                0 => Ok(()),
                n => Err(format!("the log is gone, {n} of its files had been promised")),
            };
        };
        let mut numbers: Vec<u64> = found.iter().filter_map(|n| n.to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        let count = numbers.len() as u64;
        if numbers.iter().zip(0..).any(|(a, b)| *a != b) {
            return Err(format!("the log is no prefix: {count} files, the last is {:?}", numbers.last()));
        }
        let (promised, tried) = (self.promised.load(Ordering::SeqCst), self.tried.load(Ordering::SeqCst));
        if !(promised..=tried).contains(&count) {
            return Err(format!("the log has {count} files, promised were {promised}, tried {tried}"));
        }
        self.made.store(count, Ordering::SeqCst);
        self.promised.store(count, Ordering::SeqCst);
        Ok(())
    }
}

/// Snapshots of a file that says their number.
#[derive(Default)]
pub struct Snapshots {
    next: u64,
    kept: BTreeSet<u64>,
    /// Begun, or being deleted, when the power went.
    open: BTreeSet<u64>,
}

impl Snapshots {
    fn step(&mut self, root: &Path, rng: &mut Rng, _: &Log) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(20 + rng.below(60)));
        let snapshots = root.join(".snapshots");
        if self.kept.len() > 4 {
            let oldest = *self.kept.first().expect("some are kept");
            self.kept.remove(&oldest);
            self.open.insert(oldest);
            fs::remove_dir(snapshots.join(format!("n{oldest}")))?;
        }
        let number = self.next;
        self.next += 1;
        fs::write(root.join("marker"), number.to_string())?;
        self.open.insert(number);
        fs::create_dir(snapshots.join(format!("n{number}")))?;
        self.open.remove(&number);
        self.kept.insert(number);
        Ok(())
    }

    fn check(&mut self, root: &Path) -> Result<(), String> {
        let snapshots = root.join(".snapshots");
        let found = names(&snapshots).map_err(|e| format!("listing snapshots: {e}"))?;
        let numbers = found.iter().filter_map(|n| n.to_str()?.strip_prefix('n')?.parse::<u64>().ok());
        let numbers: BTreeSet<u64> = numbers.collect();
        if let Some(lost) = self.kept.difference(&numbers).next() {
            return Err(format!("snapshot n{lost} is gone; there are {numbers:?}"));
        }
        for number in &numbers {
            if !self.kept.contains(number) && !self.open.contains(number) {
                return Err(format!("there is a snapshot n{number} that was deleted for good or never made"));
            }
            let marker = read_if_any(&snapshots.join(format!("n{number}/marker")))?.unwrap_or_default();
            if marker != number.to_string().as_bytes() {
                return Err(format!("snapshot n{number} holds {:?}", String::from_utf8_lossy(&marker)));
            }
        }
        // What a cut decided stays so.
        self.kept = numbers;
        self.open.clear();
        Ok(())
    }
}

/// All of them, with their notes.
#[derive(Default)]
pub struct Writers {
    synced: Synced,
    replaced: Replaced,
    log: Log,
    snapshots: Snapshots,
}

/// Repeats a step until it fails or `stop` is set.
fn repeat(stop: &AtomicBool, mut step: impl FnMut() -> io::Result<()>) {
    while !stop.load(Ordering::Relaxed) && step().is_ok() {}
}

impl Writers {
    /// Begins to write below `root`, until `during` returns.
    pub fn run<T>(&mut self, root: &Path, rng: &mut Rng, during: impl FnOnce(&mut Rng) -> T) -> T {
        let Writers { synced, replaced, log, snapshots } = self;
        let (stop, log) = (AtomicBool::new(false), &*log);
        let mut seeds = [0; 4].map(|_| Rng::new(rng.next()));
        // Through a descriptor: the bare path means the directory beneath once the mount is gone, and a writer that
        // slept meanwhile would take what that promises for a promise of ours.
        let held = File::open(root).expect("the mount");
        let root = &PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        let _ = fs::create_dir(root.join("log"));
        std::thread::scope(|scope| {
            let [a, b, c, d] = &mut seeds;
            let stop = &stop;
            scope.spawn(move || repeat(stop, || synced.step(root, a, log)));
            scope.spawn(move || repeat(stop, || replaced.step(root, b, log)));
            scope.spawn(move || repeat(stop, || log.step(root, c)));
            scope.spawn(move || repeat(stop, || snapshots.step(root, d, log)));
            let result = during(rng);
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    /// Whether all that was promised is below `root`, and nothing that never was. Later checks expect what
    /// this one found.
    pub fn check(&mut self, root: &Path) -> Result<(), String> {
        self.synced.check(root)?;
        self.replaced.check(root)?;
        self.log.check(root)?;
        self.snapshots.check(root)
    }

    /// How much was promised: synced files, files of the log, snapshots.
    pub fn promised(&self) -> (usize, u64, usize) {
        let log = self.log.promised.load(Ordering::SeqCst);
        (self.synced.files.len(), log, self.snapshots.kept.len())
    }
}
