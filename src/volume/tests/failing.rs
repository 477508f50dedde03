//! A disk that is full, or fails, at any one operation of journal, packs and reserve: nothing hangs, nothing
//! wrong is read, nothing that was acknowledged is lost; what frees space works on a full disk; and once there
//! is room again everything works, without a restart unless a sync had failed.

use std::collections::BTreeMap;

use super::*;
use crate::store::model::{Piece, Source};
use crate::types::disk::faulty::{Fault, FaultyDisk, Keep};
use crate::types::{ChunkId, Error};

/// What a file holds; `None`: it is not there.
type Content = Option<Vec<u8>>;

/// A bench on a disk that fails, with what its files should hold.
struct Patient {
    bench: Bench,
    disk: FaultyDisk,
    /// Of each name the contents it had since the last sync that succeeded; the last one is the present one.
    files: BTreeMap<String, Vec<Content>>,
    snapshots: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    made: u64,
}

/// One step of the work that fails somewhere.
#[derive(Clone, Copy, Debug)]
enum Step {
    Make(u8),
    Write(u8, usize),
    Truncate(u8, u64),
    Fsync(u8),
    Rename(u8, u8),
    Remove(u8),
    Snapshot(u8),
    Forget(u8),
    Flush,
    Checkpoint,
    Care,
}

/// All that a store does with a disk: inline and sealed data, new packs and segments, a cut, a snapshot.
const WORK: [Step; 26] = [
    Step::Make(0),
    Step::Write(0, 3_000),
    Step::Fsync(0),
    Step::Make(1),
    Step::Write(1, 180_000),
    Step::Fsync(1),
    Step::Snapshot(0),
    Step::Write(1, 90_000),
    Step::Make(2),
    Step::Write(2, 300_000),
    Step::Rename(2, 3),
    Step::Flush,
    Step::Truncate(1, 50_000),
    Step::Remove(0),
    Step::Checkpoint,
    Step::Make(4),
    Step::Write(4, 70_000),
    Step::Fsync(4),
    Step::Forget(0),
    Step::Care,
    Step::Rename(4, 3),
    Step::Checkpoint,
    Step::Write(3, 200_000),
    Step::Truncate(3, 0),
    Step::Fsync(3),
    Step::Remove(1),
];

fn name(n: u8) -> String {
    format!("f{n}")
}

impl Patient {
    fn new() -> Patient {
        let config = Config { sealer_threads: 1, reserve_bytes: 1 << 20, ..quiet() };
        let mut bench = Bench::with(config, false);
        bench.drop_all();
        std::fs::remove_dir_all(bench.root().join("index")).unwrap();
        let disk = FaultyDisk::new();
        bench.disk = Arc::new(disk.clone());
        bench.open();
        Patient { bench, disk, files: BTreeMap::new(), snapshots: BTreeMap::new(), made: 0 }
    }

    fn ino(&self, n: u8) -> FsResult<Ino> {
        Ok(self.bench.main().lookup(None, Ino::ROOT, name(n).as_bytes())?.ino)
    }

    fn now(&self, n: u8) -> Content {
        self.files.get(&name(n)).and_then(|versions| versions.last().cloned().flatten())
    }

    fn set(&mut self, n: u8, content: Content) {
        self.files.entry(name(n)).or_insert_with(|| vec![None]).push(content);
    }

    /// Everything as it is now is durable.
    fn settled(&mut self) {
        self.files.values_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
    }

    /// Does a step. What fails leaves everything as it was; a name that is missing because an earlier step
    /// failed is passed over.
    fn step(&mut self, step: Step) -> FsResult<()> {
        self.bench.clock.advance(1_000_003);
        self.made += 1;
        let main = self.bench.main().clone();
        match step {
            Step::Make(n) if self.now(n).is_none() => {
                main.make(Ino::ROOT, name(n).as_bytes(), node(FileKind::File), None)?;
                self.set(n, Some(Vec::new()));
            }
            Step::Write(n, len) if self.now(n).is_some() => {
                let data = noise(self.made, len);
                main.write(self.ino(n)?, 0, &data, Writer::ROOT)?;
                let mut content = self.now(n).unwrap_or_default();
                content.resize(content.len().max(len), 0);
                content[..len].copy_from_slice(&data);
                self.set(n, Some(content));
            }
            Step::Truncate(n, size) if self.now(n).is_some() => {
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                main.setattr(self.ino(n)?, &set, None)?;
                let mut content = self.now(n).unwrap_or_default();
                content.resize(size as usize, 0);
                self.set(n, Some(content));
            }
            Step::Fsync(n) if self.now(n).is_some() => {
                main.fsync(self.ino(n)?)?;
            }
            Step::Rename(from, to) if self.now(from).is_some() => {
                let (old, new) = (name(from), name(to));
                let replaced = main.rename(
                    (Ino::ROOT, old.as_bytes()),
                    (Ino::ROOT, new.as_bytes()),
                    RenameMode::Replace,
                    None,
                )?;
                let content = self.now(from);
                self.set(to, content);
                self.set(from, None);
                replaced.map_or(Ok(()), |ino| main.remove_orphan(ino))?;
            }
            Step::Remove(n) if self.now(n).is_some() => {
                let gone = main.unlink(Ino::ROOT, name(n).as_bytes(), None)?;
                self.set(n, None);
                gone.map_or(Ok(()), |ino| main.remove_orphan(ino))?;
            }
            Step::Snapshot(n) => {
                let create = SnapshotCreate { name: Some(name(n)), ..SnapshotCreate::default() };
                let now = self.contents();
                self.bench.volumes().snapshot(&[main.id()], &create)?;
                self.snapshots.insert(name(n), now);
                self.settled();
            }
            Step::Forget(n) if self.snapshots.contains_key(&name(n)) => {
                main.delete_snapshots(&[&name(n)], None)?;
                self.snapshots.remove(&name(n));
            }
            Step::Flush => drop(self.bench.store().flush_index()?),
            Step::Checkpoint => self.bench.store().checkpoint()?,
            Step::Care => {
                self.bench.store().pause_care(false);
                let done = self.bench.store().care_until_idle();
                self.bench.store().pause_care(true);
                done?;
            }
            _ => {}
        }
        Ok(())
    }

    fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let now =
            |(name, versions): (&String, &Vec<Content>)| Some((name.clone(), versions.last()?.clone()?));
        self.files.iter().filter_map(now).collect()
    }

    /// What the store says that a file holds.
    fn found(&self, at: Option<Lsn>, name: &str) -> Content {
        match self.bench.main().lookup(at, Ino::ROOT, name.as_bytes()) {
            Ok(attr) => Some(self.bench.read(at, attr.ino)),
            Err(FsError::NotFound) => None,
            Err(e) => panic!("{name}: {e}"),
        }
    }

    /// Everything is as it should be, now and in the snapshots.
    fn compare(&self, when: &str) {
        for (name, versions) in &self.files {
            assert!(self.found(None, name) == *versions.last().unwrap(), "{name} {when}");
        }
        for (snapshot, files) in &self.snapshots {
            let rows = self.bench.main().snapshots(Lsn::ZERO, 100).unwrap();
            let at = rows.iter().find(|row| row.spec.name == *snapshot);
            let at = at.unwrap_or_else(|| panic!("snapshot {snapshot} is gone {when}")).lsn;
            for (name, content) in files {
                assert!(self.found(Some(at), name).as_ref() == Some(content), "{name} of {snapshot} {when}");
            }
        }
    }

    /// Starts the server anew after a failed sync; every file then has one of the contents that it had since
    /// the last sync that succeeded.
    fn recover(&mut self, keep: Keep, when: &str) {
        self.bench.drop_all();
        self.disk = self.disk.crash(keep);
        self.bench.disk = Arc::new(self.disk.clone());
        self.bench.try_open().unwrap_or_else(|e| panic!("opening {when}: {e}"));
        assert_eq!(self.bench.store().read_only(), None, "{when}");
        let names: Vec<String> = self.files.keys().cloned().collect();
        for name in names {
            let found = self.found(None, &name);
            let versions = self.files.get_mut(&name).unwrap();
            let known = versions.contains(&found) || found.as_ref().is_some_and(Vec::is_empty);
            assert!(known, "{name} is none of what it was {when}");
            *versions = vec![found];
        }
        let left: Vec<String> =
            self.bench.main().snapshots(Lsn::ZERO, 100).unwrap().into_iter().map(|s| s.spec.name).collect();
        self.snapshots.retain(|name, _| left.contains(name));
    }

    /// A new file can be written and read, every old one removed, and the store is sound, also when opened
    /// anew.
    fn works_again(&mut self, when: &str) {
        self.disk.lift();
        let steps = [Step::Make(9), Step::Write(9, 120_000), Step::Fsync(9), Step::Snapshot(9)];
        for step in steps.into_iter().chain([Step::Remove(3), Step::Checkpoint, Step::Flush, Step::Care]) {
            self.step(step).unwrap_or_else(|e| panic!("{step:?} {when}: {e}"));
        }
        self.compare(when);
        self.bench.volumes().sync().unwrap();
        self.settled();
        self.bench.fsck();
        self.bench.reopen();
        self.compare("after another start");
        self.bench.fsck();
    }
}

/// How many operations the work takes, and how many came before it.
fn recorded() -> (u64, u64) {
    let mut patient = Patient::new();
    let before = patient.disk.ops();
    for step in WORK {
        patient.step(step).unwrap();
    }
    patient.compare("after the work");
    (before, patient.disk.ops())
}

/// Every operation fails once with `errno`, after a part of a write.
fn fails_once(errno: i32, part: u8, keep: Keep) {
    let (from, to) = recorded();
    let mut poisoned = 0;
    for n in from..to {
        let mut patient = Patient::new();
        patient.disk.set_fault(n, Fault::Once(errno, part));
        let mut broken = false;
        for step in WORK {
            let when = format!("at {step:?}, errno {errno} at operation {n}");
            if let Err(e) = patient.step(step) {
                if errno == libc::ENOSPC && !broken && patient.bench.store().read_only().is_none() {
                    assert!(matches!(e, FsError::Store(Error::NoSpace(_))), "{when}: {e:?}");
                }
                broken = true;
            }
            if patient.bench.store().read_only().is_some() {
                poisoned += 1;
                assert!(!patient.bench.store().problems().is_empty(), "{when}: status says nothing");
                patient.recover(keep, &when);
            }
            patient.compare(&when);
        }
        patient.works_again(&format!("after errno {errno} at operation {n}"));
    }
    assert!(poisoned > 0, "no sync was hit in {} operations", to - from);
}

#[test]
fn no_space_at_every_operation_once() {
    fails_once(libc::ENOSPC, 0, Keep::All);
}

#[test]
fn no_space_in_the_middle_of_every_write() {
    fails_once(libc::ENOSPC, 100, Keep::Nothing);
}

#[test]
fn an_error_at_every_operation_once() {
    fails_once(libc::EIO, 0, Keep::Nothing);
}

#[test]
fn an_error_in_the_middle_of_every_write() {
    fails_once(libc::EIO, 200, Keep::All);
}

#[test]
fn a_disk_that_is_full_from_any_operation_on_lets_delete_and_goes_on_when_there_is_room() {
    let (from, to) = recorded();
    let mut refused = 0;
    for n in from..to {
        let mut patient = Patient::new();
        patient.disk.set_fault(n, Fault::Full);
        for step in WORK {
            let when = format!("at {step:?}, full from operation {n} on");
            let result = patient.step(step);
            if let Err(e) = &result {
                refused += 1;
                assert!(matches!(e, FsError::Store(Error::NoSpace(_))), "{when}: {e:?}");
                let frees =
                    matches!(step, Step::Remove(_) | Step::Truncate(_, 0) | Step::Forget(_) | Step::Care);
                assert!(!frees, "{when}: {e}");
            }
            assert_eq!(patient.bench.store().read_only(), None, "{when}");
            patient.compare(&when);
        }
        if patient.bench.main().snapshots(Lsn::ZERO, 100).unwrap().is_empty() {
            for n in 0..5 {
                patient.step(Step::Remove(n)).unwrap_or_else(|e| panic!("removing, full from {n} on: {e}"));
            }
        }
        patient.works_again(&format!("after it was full from operation {n} on"));
    }
    assert!(refused > 100, "only {refused} steps found the disk full");
}

#[test]
fn a_read_that_fails_is_an_error_of_that_read_alone() {
    let mut patient = Patient::new();
    for step in &WORK[..12] {
        patient.step(*step).unwrap();
    }
    patient.bench.reopen();
    let config = Config { chunk_cache_bytes: 1 << 20, ..patient.bench.config.clone() };
    patient.bench.config = config;
    let expected = patient.contents();
    let mut failed = 0;
    for n in 0.. {
        patient.bench.reopen();
        let first = patient.disk.reads();
        patient.disk.set_read_fault(first + n, libc::EIO);
        let mut refused = 0;
        for (name, content) in &expected {
            let ino = patient.bench.main().lookup(None, Ino::ROOT, name.as_bytes()).unwrap().ino;
            for offset in (0..content.len()).step_by(60_000) {
                let end = content.len().min(offset + 60_000);
                match patient.bench.main().read(None, ino, offset as u64, end - offset) {
                    Ok(bytes) => {
                        assert!(bytes == content[offset..end], "{name} at {offset}, read {n} failing");
                    }
                    Err(FsError::Store(Error::Io { .. })) => refused += 1,
                    Err(e) => panic!("{name} at {offset}: {e:?}"),
                }
            }
        }
        if patient.disk.reads() <= first + n {
            break;
        }
        assert_eq!(refused, 1, "one read fails, read {n}");
        failed += 1;
        patient.compare("once it reads again");
    }
    assert!(failed > 4, "{failed} reads were made to fail");
}

#[test]
fn a_read_that_fails_while_opening_refuses_and_harms_nothing() {
    let mut patient = Patient::new();
    for step in WORK {
        patient.step(step).unwrap();
    }
    patient.bench.volumes().sync().unwrap();
    patient.settled();
    let mut refused = 0;
    for n in 0.. {
        patient.bench.drop_all();
        let first = patient.disk.reads();
        patient.disk.set_read_fault(first + n, libc::EIO);
        match patient.bench.try_open() {
            Ok(()) => {}
            Err(e) => {
                assert!(e.to_string().contains("Input/output error"), "{e}");
                refused += 1;
                patient.bench.try_open().unwrap();
            }
        }
        patient.compare("once it reads again");
        if patient.disk.reads() <= first + n {
            break;
        }
    }
    assert!(refused > 4, "{refused} openings were refused");
    patient.disk.lift();
    patient.bench.fsck();
}

#[test]
fn a_record_that_cannot_be_applied_is_taken_back() {
    let mut patient = Patient::new();
    for step in &WORK[..6] {
        patient.step(*step).unwrap();
    }
    let store = patient.bench.store();
    let (last, digest) = (store.last(), store.index().state().digest);
    let nowhere = Piece { len: 10, source: Source::Chunk { id: ChunkId([7; 32]), offset: 0 } };
    let vol = patient.bench.main().id();
    let edits = vec![
        Edit::VolumeCreate { vol: VolumeId(77), name: "never".into() },
        Edit::PatchBlock { vol, ino: patient.ino(1).unwrap(), block: 0, offset: 0, pieces: vec![nowhere] },
    ];
    for _ in 0..3 {
        let refused = store.commit(edits.clone(), None);
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
        assert_eq!((store.last(), store.index().state().digest), (last, digest));
        assert!(!store.index().state().volumes.contains_key(&VolumeId(77)));
        assert_eq!(store.sync_all().unwrap(), last);
    }
    patient.recover(Keep::Nothing, "after the record was refused");
    patient.works_again("after the record was refused");
}

/// A filesystem of its own for the index, small and in memory; taken down when dropped.
struct SmallIndex(PathBuf);

impl SmallIndex {
    fn new(index: &std::path::Path, mib: u64) -> SmallIndex {
        let old = index.with_file_name("index.old");
        std::fs::rename(index, &old).unwrap();
        std::fs::create_dir(index).unwrap();
        let (none, options) = (None::<&str>, format!("size={mib}m"));
        nix::mount::mount(none, index, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))
            .expect("this test mounts a filesystem: run it as root");
        for entry in std::fs::read_dir(&old).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, index.join(from.file_name().unwrap())).unwrap();
        }
        SmallIndex(index.to_owned())
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallIndex {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn an_index_that_finds_no_room_in_the_middle_of_a_flush_goes_on_when_there_is_some() {
    let mut patient = Patient::new();
    patient.bench.reopen();
    patient.bench.drop_all();
    let index = SmallIndex::new(&patient.bench.root().join("index"), 24);
    patient.bench.open();
    for round in 0..2 {
        for step in &WORK[..14] {
            patient.step(*step).unwrap();
        }
        let store = patient.bench.store().clone();
        index.fill();
        // The rest of the store has room, so RocksDB is asked, and meets the end of its disk by itself.
        let refused = store.flush_index();
        assert!(matches!(refused, Err(Error::NoSpace(_))), "round {round}: {refused:?}");
        let refused = patient.step(Step::Make(7));
        assert!(matches!(refused, Err(FsError::Store(Error::NoSpace(_)))), "round {round}: {refused:?}");
        assert_eq!((store.read_only(), store.durable()), (None, store.last()), "round {round}");
        patient.compare("while the index waits");
        index.make_room();
        // RocksDB looks every five seconds; how long that takes is not what is tested.
        while store.index().ready().is_err() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        drop(store);
        patient.works_again("with room for the index");
        patient.step(Step::Forget(0)).unwrap();
        patient.step(Step::Forget(9)).unwrap();
        patient.step(Step::Remove(9)).unwrap();
    }
    patient.bench.drop_all();
}
