//! Volumes against a reference model: [`ops`] are drawn at random, [`run`] does each on the [`model`] and on a
//! real store and compares, [`regressions`] keeps every bug that this found.
//!
//! `REWINDFS_TEST_CASES` sets how many histories are run.

mod accessed;
mod basic;
mod bursts;
mod care;
mod changes;
mod clock;
mod excluded;
mod failing;
mod gc;
mod hostile;
mod kept;
mod log;
mod model;
mod names;
mod ops;
mod points;
mod policy;
mod power;
mod purge;
mod regressions;
pub mod restore;
mod run;
mod stress;
mod surviving;
mod waiting;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::store::config::Config;
use crate::store::{CreateOptions, FileBytes, OpenMode, OpenOptions, create};
use crate::types::{Clock, Disk, OsDisk};

/// A clock that moves when it is told to.
pub struct ManualClock(AtomicI64);

impl ManualClock {
    pub fn advance(&self, nanos: i64) {
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// Small buffers, nothing by itself: what happens is what a test does.
pub fn quiet() -> Config {
    Config {
        commit_interval_ms: 600_000,
        sealer_threads: 2,
        index_cache_bytes: 4 << 20,
        chunk_cache_bytes: 2 << 20,
        reserve_bytes: 0,
        ..Config::default()
    }
}

/// A store in a directory that goes away with it, its volumes and `main`.
pub struct Bench {
    pub clock: Arc<ManualClock>,
    pub config: Config,
    pub disk: Arc<dyn Disk>,
    pub file_bytes: FileBytes,
    pub volumes: Option<Volumes>,
    pub main: Option<Arc<Volume>>,
    /// Last: it goes when nobody writes to it any more.
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new(config: Config) -> Bench {
        Bench::with(config, true)
    }

    pub fn with(config: Config, encryption: bool) -> Bench {
        // In memory where there is such a place: a history is hundreds of syncs.
        let shm = std::path::Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let options = CreateOptions {
            encryption,
            key_file: encryption.then(|| dir.path().join("key")),
            recovery_key_file: None,
        };
        create(&dir.path().join("store"), &options).unwrap();
        let clock = Arc::new(ManualClock(AtomicI64::new(1_700_000_000_000_000_000)));
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        let file_bytes = FileBytes::default();
        let mut bench = Bench { dir, clock, config, disk, file_bytes, volumes: None, main: None };
        bench.open();
        bench
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            mode: OpenMode::ReadWrite,
            key_file: Some(self.dir.path().join("key")),
            disk: self.disk.clone(),
            clock: self.clock.clone(),
            config: Some(self.config.clone()),
            give_up_chunks: false,
            file_bytes: self.file_bytes,
        }
    }

    pub fn try_open(&mut self) -> crate::types::Result<()> {
        let store = Store::open(&self.root(), self.options(), &mut |_, _| {})?;
        store.pause_care(true);
        let volumes = Volumes::new(store).unwrap();
        self.main = Some(volumes.open(DEFAULT_VOLUME).unwrap());
        self.volumes = Some(volumes);
        Ok(())
    }

    pub fn open(&mut self) {
        self.try_open().unwrap();
    }

    /// Ends the process, as far as the store can tell.
    pub fn drop_all(&mut self) {
        self.main = None;
        self.volumes = None;
    }

    pub fn reopen(&mut self) {
        self.volumes().close().unwrap();
        self.drop_all();
        self.open();
    }

    pub fn crash(&mut self) {
        self.drop_all();
        self.open();
    }

    pub fn volumes(&self) -> &Volumes {
        self.volumes.as_ref().unwrap()
    }

    pub fn store(&self) -> &Arc<Store> {
        self.volumes().store()
    }

    pub fn main(&self) -> &Arc<Volume> {
        self.main.as_ref().unwrap()
    }

    /// All background work that there is.
    pub fn care(&self) {
        self.store().pause_care(false);
        self.store().care_until_idle().unwrap();
        self.store().pause_care(true);
    }

    /// Commits what is dirty, and waits until a round of the care thread that began before it was paused has
    /// ended.
    pub fn rest(&self) {
        let volumes = self.volumes();
        drop(volumes.care.lock().take());
        volumes.shared.flush_all().unwrap();
        if volumes.store().read_only().is_none() {
            *volumes.care.lock() = Some(Care::start(volumes.store()).unwrap());
        }
    }

    /// What fsck finds.
    pub fn problems(&self) -> Vec<String> {
        self.rest();
        let found = self.store().check(&mut |_, _| {}).unwrap();
        found.problems.into_iter().map(|p| p.text).collect()
    }

    pub fn fsck(&self) {
        assert_eq!(self.problems(), Vec::<String>::new());
    }

    pub fn file(&self, parent: Ino, name: &str) -> Ino {
        self.make(parent, name, FileKind::File)
    }

    pub fn make(&self, parent: Ino, name: &str, kind: FileKind) -> Ino {
        self.main().make(parent, name.as_bytes(), node(kind), None).unwrap().ino
    }

    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) {
        self.main().write(ino, offset, data, Writer::ROOT).unwrap();
    }

    pub fn read(&self, at: Option<Lsn>, ino: Ino) -> Vec<u8> {
        let size = self.main().getattr(at, ino).unwrap().attrs.size;
        self.main().read(at, ino, 0, size as usize).unwrap()
    }

    pub fn snapshot(&self, name: &str) -> Lsn {
        let create = SnapshotCreate { name: Some(name.into()), ..SnapshotCreate::default() };
        self.volumes().snapshot(&[self.main().id()], &create).unwrap().lsn
    }
}

pub fn node(kind: FileKind) -> NewNode {
    NewNode { kind, mode: 0o640, umask: 0, owner: (7, 8), rdev: 0, target: Vec::new() }
}

/// Bytes that zstd can do little with and that differ for every seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// How many histories a test runs: `default`, or more if the environment says so.
pub fn cases(default: u32) -> u32 {
    std::env::var("REWINDFS_TEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}
