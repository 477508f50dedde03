//! Reading, removing, starting elsewhere and syncing while the journal runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tempfile::TempDir;

use super::faulty::{Fault, FaultyDisk, Keep};
use super::*;
use crate::types::DiskFile;

#[test]
fn reading_starts_anywhere_and_sees_what_was_there_when_it_began() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(dir.path(), 2 << 20);
    for i in 1..=300 {
        journal.append(Term(i / 100), &body(i, 20_000)).unwrap();
    }
    for round in 0..2 {
        for from in [1, 2, 13, 14, 99, 150, 299, 300] {
            let mut reader = journal.read_from(Lsn(from)).unwrap();
            if round == 0 && from == 300 {
                journal.append(Term(3), &body(301, 20_000)).unwrap();
            }
            for i in from..=300 {
                let record = reader.next().unwrap().unwrap();
                assert_eq!((record.lsn, record.term), (Lsn(i), Term(i / 100)));
                assert_eq!(record.body, body(i, 20_000));
            }
            assert!(reader.next().is_none() || round == 1 || from < 300);
        }
        assert!(journal.read_from(Lsn(302)).unwrap().next().is_none());
        assert!(matches!(journal.read_from(Lsn(303)), Err(Error::Invalid(_))));
        assert!(matches!(journal.read_from(Lsn(0)), Err(Error::Invalid(_))));
        if round == 0 {
            assert_eq!(journal.read_from(Lsn(300)).unwrap().count(), 2);
        }
    }
}

#[test]
fn removing_keeps_the_active_segment_and_says_what_is_oldest() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(dir.path(), 6000);
    for i in 1..=13 {
        journal.append(Term(1), &body(i, 400)).unwrap();
    }
    let before = journal.bytes();
    assert_eq!(journal.remove_before(Lsn(4)).unwrap(), 0);
    let mut behind = journal.read_from(Lsn(1)).unwrap();
    assert_eq!(journal.remove_before(Lsn(9)).unwrap(), 2);
    assert_eq!(journal.oldest(), Lsn(9));
    assert!(journal.bytes() < before);
    // Opened before the removal, it reads on to the end of its segment and then says what is missing.
    assert_eq!(behind.by_ref().take_while(Result::is_ok).count(), 4);
    assert!(behind.next().is_none());
    let gone = journal.read_from(Lsn(8)).map(|_| ()).unwrap_err().to_string();
    assert!(gone.contains("the oldest is 9"), "{gone}");
    assert_eq!(journal.remove_before(Lsn::MAX).unwrap(), 1);
    assert_eq!((journal.oldest(), journal.last().0), (Lsn(13), Lsn(13)));
    journal.sync(Lsn(13)).unwrap();
    let chain = journal.last().1;
    drop(journal);
    let (journal, report) = open(dir.path(), 6000);
    assert_eq!(report.outcome, Outcome::Clean);
    assert_eq!((report.oldest, report.last, report.chain), (Lsn(13), Lsn(13), chain));
    let on_disk: u64 =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(journal.bytes(), on_disk);
}

#[test]
fn a_copy_has_the_same_chain_whatever_its_segments() {
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (primary, _) = open(a.path(), 6000);
    let bodies: Vec<_> = (1..=40).map(|i| body(i, 300)).collect();
    for b in &bodies {
        primary.append(Term(4), b).unwrap();
    }
    let tenth = primary.read_from(Lsn(10)).unwrap().next().unwrap().unwrap();
    let start = options(1 << 20);
    let standby = Journal::start_at(Arc::new(OsDisk), b.path(), STORE, start, Lsn(11), tenth.chain).unwrap();
    assert_eq!((standby.oldest(), standby.next_lsn(), standby.durable()), (Lsn(11), Lsn(11), Lsn(10)));
    let batch: Vec<_> = bodies[10..].iter().map(|b| (Term(4), b.as_slice())).collect();
    let made = standby.append_many(&batch).unwrap();
    assert_eq!((made.len(), made[29].lsn), (30, Lsn(40)));
    assert_eq!(standby.last(), primary.last());
    standby.sync(Lsn(40)).unwrap();
    drop(standby);
    let again = Journal::start_at(Arc::new(OsDisk), b.path(), STORE, options(6000), Lsn(11), tenth.chain);
    assert!(matches!(again.map(|_| ()), Err(Error::Invalid(_))));
    let (standby, report) = open(b.path(), 6000);
    assert_eq!((report.oldest, standby.last()), (Lsn(11), primary.last()));
}

#[test]
fn limits_are_kept() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(dir.path(), 1 << 20);
    let largest = body(1, BODY_BYTES_MAX);
    assert!(matches!(journal.append(Term(1), &vec![1; BODY_BYTES_MAX + 1]), Err(Error::Invalid(_))));
    let three = [(Term(1), largest.as_slice()); 3];
    assert!(matches!(journal.append_many(&three), Err(Error::Invalid(_))));
    journal.append(Term(1), b"").unwrap();
    journal.append(Term(1), &largest).unwrap();
    journal.append(Term(1), b"after").unwrap();
    assert!(matches!(journal.sync(Lsn(4)), Err(Error::Invalid(_))));
    drop(journal);
    let (journal, report) = open(dir.path(), 1 << 20);
    assert_eq!(report.outcome, Outcome::Clean);
    let records = all(&journal);
    assert_eq!((records.len(), &records[1].body, &records[2].body[..]), (3, &largest, &b"after"[..]));
}

#[test]
fn segments_below_verify_from_are_not_walked() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(dir.path(), 6000);
    for i in 1..=20 {
        journal.append(Term(1), &body(i, 400)).unwrap();
    }
    journal.sync(Lsn(20)).unwrap();
    drop(journal);
    let from = JournalOptions { verify_from: Lsn(10), ..options(6000) };
    let (journal, report) = Journal::open(Arc::new(OsDisk), dir.path(), STORE, from).unwrap();
    assert_eq!((report.outcome, report.records_verified, report.last), (Outcome::Clean, 12, Lsn(20)));
    assert_eq!(all(&journal).len(), 20);
}

/// Counts syncs, and is slow at them.
struct SlowDisk(Arc<AtomicU64>);
struct SlowFile(Arc<dyn DiskFile>, Arc<AtomicU64>);

impl DiskFile for SlowFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        thread::sleep(std::time::Duration::from_millis(5));
        self.0.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

impl Disk for SlowDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(OsDisk.create(path)?, self.0.clone())))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(OsDisk.open(path, write)?, self.0.clone())))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        OsDisk.list(dir)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.create_dir(dir)
    }
}

#[test]
fn syncs_that_come_together_share_and_appends_go_on_meanwhile() {
    let dir = TempDir::new().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let disk = Arc::new(SlowDisk(syncs.clone()));
    let journal = Journal::open(disk, dir.path(), STORE, options(64 << 10)).unwrap().0;
    let (threads, each) = (8, 40);
    thread::scope(|scope| {
        for t in 0..threads {
            let journal = &journal;
            scope.spawn(move || {
                for i in 0..each {
                    let made = journal.append(Term(1), &body(t * each + i, 500)).unwrap();
                    assert!(journal.sync(made.lsn).unwrap() >= made.lsn);
                    assert!(journal.durable() >= made.lsn);
                    if i % 10 == 0 {
                        let records = journal.read_from(made.lsn).unwrap().map(Result::unwrap);
                        assert!(records.take(3).count() >= 1);
                    }
                }
            });
        }
    });
    let total = threads * each;
    assert_eq!(journal.last().0, Lsn(total));
    let syncs = syncs.load(Ordering::SeqCst);
    assert!(syncs < total / 2, "{syncs} syncs for {total} records");
    drop(journal);
    let (journal, report) = open(dir.path(), 64 << 10);
    assert_eq!((report.outcome, report.records_verified), (Outcome::Clean, total));
    assert_eq!(all(&journal).len() as u64, total);
}

#[test]
fn a_failed_sync_poisons_and_the_next_server_writes_again() {
    let disk = FaultyDisk::new();
    let dir = Path::new("/j");
    let journal = Journal::open(Arc::new(disk.clone()), dir, STORE, options(6000)).unwrap().0;
    journal.append(Term(1), b"one").unwrap();
    disk.set_fault(disk.ops(), Fault::Once(libc::EIO, 0));
    assert!(matches!(journal.sync(Lsn(1)), Err(Error::Poisoned(_))));
    let ops = disk.ops();
    assert!(matches!(journal.sync(Lsn(1)), Err(Error::Poisoned(_))));
    assert!(matches!(journal.append(Term(1), b"two"), Err(Error::Poisoned(_))));
    assert!(matches!(journal.remove_before(Lsn(1)), Err(Error::Poisoned(_))));
    assert_eq!(disk.ops(), ops, "nothing is tried again");
    assert_eq!(journal.durable(), Lsn(0));
    assert_eq!(all(&journal).len(), 1, "reading goes on");
    drop(journal);
    let journal = Journal::open(Arc::new(disk.clone()), dir, STORE, options(6000)).unwrap().0;
    assert_eq!(disk.what(ops), "write", "row 15: the records are written again before they are synced");
    assert_eq!(journal.durable(), Lsn(1));
    drop(journal);
    assert!(disk.list(dir).unwrap().iter().all(|n| n != "sync-failed"));
}

#[test]
fn each_removal_is_durable_before_the_next() {
    let disk = FaultyDisk::new();
    let journal = Journal::open(Arc::new(disk.clone()), Path::new("/j"), STORE, options(6000)).unwrap().0;
    for i in 1..=13 {
        journal.append(Term(1), &body(i, 400)).unwrap();
    }
    let ops = disk.ops();
    assert_eq!(journal.remove_before(Lsn(9)).unwrap(), 2);
    let done: Vec<_> = (ops..disk.ops()).map(|n| disk.what(n)).collect();
    assert_eq!(done, ["remove", "sync_dir", "remove", "sync_dir"]);
}

#[test]
fn a_full_disk_refuses_and_then_goes_on_at_the_same_place() {
    for part in [0, 1, 100, 254] {
        let disk = FaultyDisk::new();
        let dir = Path::new("/j");
        let journal = Journal::open(Arc::new(disk.clone()), dir, STORE, options(6000)).unwrap().0;
        journal.append(Term(1), &body(1, 400)).unwrap();
        disk.set_fault(disk.ops(), Fault::Once(libc::ENOSPC, part));
        assert!(matches!(journal.append(Term(1), &body(2, 400)), Err(Error::NoSpace(_))));
        assert_eq!(journal.next_lsn(), Lsn(2));
        journal.append(Term(1), &body(3, 40)).unwrap();
        journal.sync(Lsn(2)).unwrap();
        let (journal, report) = Journal::open(Arc::new(disk), dir, STORE, options(6000)).unwrap();
        assert_eq!(report.outcome, Outcome::Clean);
        assert_eq!(all(&journal).iter().map(|r| r.body.len()).collect::<Vec<_>>(), [400, 40]);
    }
}

#[test]
fn a_record_that_is_withdrawn_is_gone_and_its_number_is_free() {
    for synced in [false, true] {
        for keep in [Keep::All, Keep::Nothing] {
            let disk = FaultyDisk::new();
            let dir = Path::new("/j");
            let journal = Journal::open(Arc::new(disk.clone()), dir, STORE, options(6000)).unwrap().0;
            for i in 1..=13 {
                let before = journal.last();
                journal.append(Term(1), &body(99, 500)).unwrap();
                if synced {
                    journal.sync(Lsn(i)).unwrap();
                }
                journal.withdraw(Lsn(i)).unwrap();
                assert_eq!((journal.last(), journal.durable()), (before, before.0));
                assert!(matches!(journal.withdraw(Lsn(i)), Err(Error::Invalid(_))), "once");
                journal.append(Term(1), &body(i, 400)).unwrap();
                assert!(matches!(journal.withdraw(before.0), Err(Error::Invalid(_))), "only the newest");
                journal.sync(Lsn(i)).unwrap();
            }
            journal.append(Term(1), &body(99, 500)).unwrap();
            journal.withdraw(Lsn(14)).unwrap();
            let disk = disk.crash(keep);
            let (journal, report) = Journal::open(Arc::new(disk), dir, STORE, options(6000)).unwrap();
            assert_eq!((report.outcome, report.last), (Outcome::Clean, Lsn(13)));
            let bodies: Vec<_> = all(&journal).into_iter().map(|r| r.body).collect();
            assert_eq!(bodies, (1..=13).map(|i| body(i, 400)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_record_that_cannot_be_withdrawn_poisons() {
    for failing in 0..2 {
        let disk = FaultyDisk::new();
        let dir = Path::new("/j");
        let journal = Journal::open(Arc::new(disk.clone()), dir, STORE, options(6000)).unwrap().0;
        journal.append(Term(1), b"refused").unwrap();
        disk.set_fault(disk.ops() + failing, Fault::Once(libc::EIO, 0));
        assert!(matches!(journal.withdraw(Lsn(1)), Err(Error::Poisoned(_))), "set_len, then the sync");
        assert!(matches!(journal.append(Term(1), b"next"), Err(Error::Poisoned(_))));
    }
}
