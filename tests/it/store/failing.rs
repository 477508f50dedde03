//! A disk that fails below a real mount: one read, write or sync of journal, packs or index gives EIO (by a
//! library preloaded into the server; this kernel need not have a device mapper). Nothing wrong is read, what
//! fsync acknowledged is there after another start, and `status` tells when the store takes no more changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::harness::{Mount, Rng, Store, args, tool};

/// Which call of a kind fails, counted from when it is asked for.
const AT: [u64; 8] = [1, 2, 3, 5, 9, 14, 24, 60];

struct Patient {
    store: Arc<Store>,
    fault: PathBuf,
    /// What fsync acknowledged.
    files: BTreeMap<String, Vec<u8>>,
    rng: Rng,
    made: u64,
}

impl Patient {
    fn new() -> Patient {
        let store = Store::encrypted();
        let settings = "index_flush_bytes = 1048576\nindex_flush_records = 100\nchunk_cache_bytes = 1048576\n\
            checkpoint_journal_bytes = 1048576\ncommit_interval_ms = 50\n";
        fs::write(store.path().join("config.toml"), settings).expect("settings");
        let (source, library) = (store.home().join("failing_disk.c"), store.home().join("failing_disk.so"));
        fs::write(&source, include_str!("../harness/failing_disk.c")).expect("the library's source");
        tool(store.home(), "cc", &args!["-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"]);
        let fault = store.home().join("fault");
        store.set_env("REWINDFS_TEST_FAULT", &fault);
        store.set_env("LD_PRELOAD", &library);
        Patient { store, fault, files: BTreeMap::new(), rng: Rng::printed(), made: 0 }
    }

    fn arm(&self, what: char, at: u64) {
        fs::write(&self.fault, format!("{what} {at}")).expect("asking for a fault");
    }

    /// Lets nothing fail any more. Whether something had.
    fn disarm(&self) -> bool {
        fs::remove_file(&self.fault).is_err()
    }

    /// A step of the work: what fails, fails with EIO, or with EROFS once a sync had failed.
    fn allow(what: &str, result: io::Result<()>) -> bool {
        match result.map_err(|e| e.raw_os_error()) {
            Ok(()) => true,
            Err(Some(libc::EIO | libc::EROFS)) => false,
            Err(e) => panic!("{what} failed with errno {e:?}"),
        }
    }

    /// Writes, syncs, renames, removes, takes snapshots and reads. How many steps failed.
    fn work(&mut self, mount: &Mount) -> u64 {
        let mut failed = 0;
        for _ in 0..12 {
            self.made += 1;
            let name = format!("f{}", self.made % 25);
            let len = [100, 5_000, 150_000, 600_000][self.rng.below(4) as usize];
            let content = self.rng.bytes(len);
            let (new, path) = (mount.path().join(format!("new-{}", self.made)), mount.path().join(&name));
            let written = File::create(&new)
                .and_then(|mut f| f.write_all(&content).and_then(|()| f.sync_all()))
                .and_then(|()| fs::rename(&new, &path))
                .and_then(|()| File::open(mount.path())?.sync_all());
            if Self::allow(&name, written) {
                self.files.insert(name, content);
            } else {
                // It has the old bytes or the new ones; which, another start tells.
                self.files.remove(&name);
                failed += 1;
            }
            failed += self.read_all(mount);
        }
        failed
    }

    /// Reads everything past the kernel's cache; how many reads failed.
    fn read_all(&self, mount: &Mount) -> u64 {
        let mut failed = 0;
        for (name, content) in &self.files {
            let read = || {
                let mut file = File::open(mount.path().join(name))?;
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
                let mut found = Vec::new();
                file.read_to_end(&mut found)?;
                assert!(found == *content, "{name}: wrong bytes were served");
                Ok(())
            };
            failed += u64::from(!Self::allow(name, read()));
        }
        failed
    }
}

/// Every call of a kind fails once, here and there; each time the store goes on or comes back sound. How often
/// it took no more changes until then.
fn every(what: char, least: u64) -> u64 {
    let mut patient = Patient::new();
    let (mut hit, mut poisoned) = (0, 0);
    for at in AT {
        let mount = patient.store.mount();
        patient.work(&mount);
        patient.arm(what, at);
        patient.work(&mount);
        let failed = patient.disarm();
        hit += u64::from(failed);
        let status = mount.status();
        if status["read_only"] == true {
            // RocksDB stops for good when it cannot read a table that it merges.
            let problems = status["problems"].to_string();
            println!("{what} {at}: {problems}");
            let merging = what == 'r' && problems.contains("index");
            poisoned += u64::from(!merging);
            assert!(failed && problems.contains("read-only"), "{status}");
        }
        let store = mount.umount();
        let mount = store.mount();
        assert_eq!(mount.status()["read_only"], false, "{what} {at}: another start recovers");
        assert_eq!(patient.read_all(&mount), 0, "{what} {at}: the disk works again");
        patient.work(&mount);
        mount.umount();
        store.ok(&args!["fsck", store.path()]);
    }
    println!("{hit} of {} faults were met, {poisoned} ended all changes", AT.len());
    assert!(hit >= least, "only {hit} faults were met");
    poisoned
}

#[test]
fn a_read_that_fails_below_a_mount_serves_nothing_wrong() {
    assert_eq!(every('r', 5), 0, "reading does not end changes");
}

#[test]
fn a_write_that_fails_below_a_mount_loses_nothing_acknowledged() {
    every('w', 6);
}

#[test]
fn a_sync_that_fails_below_a_mount_is_told_and_another_start_recovers() {
    assert!(every('s', 6) >= 5, "a failed sync ends all changes");
}

#[test]
fn a_read_that_fails_while_mounting_is_refused_in_one_line_or_does_not_matter() {
    let mut patient = Patient::new();
    let mount = patient.store.mount();
    patient.work(&mount);
    let mut store = mount.crash();
    let mut refused = 0;
    for at in (1..40).step_by(3) {
        patient.arm('r', at);
        let mounted = store.try_mount("mnt", &[]);
        patient.disarm();
        let mount = match mounted {
            Ok(mount) => mount,
            Err(run) => {
                assert_eq!(run.code, 1, "{run:?}");
                let line = run.one_line();
                assert!(line.contains("Input/output error"), "{line}");
                refused += 1;
                store.mount()
            }
        };
        assert_eq!(patient.read_all(&mount), 0, "read {at} failed while mounting");
        store = mount.crash();
    }
    assert!(refused > 0, "no mount was refused");
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn changes_wait_for_an_index_that_found_no_room_and_then_work() {
    let mut patient = Patient::new();
    let mount = patient.store.mount();
    for round in 1..=3 {
        patient.work(&mount);
        patient.arm('n', round);
        // Names until the index is written and meets the end of the disk, as far as RocksDB can tell.
        let mut made = Vec::new();
        while patient.fault.exists() && made.len() < 100_000 {
            let dir = mount.path().join(format!("d{round}-{}", made.len()));
            // They wait, since there is room on the disk.
            fs::create_dir(&dir).expect("making");
            made.push(dir);
        }
        assert!(patient.disarm(), "round {round}: the index was not written");
        made.iter().for_each(|dir| fs::remove_dir(dir).expect("removing"));
        assert_eq!(mount.status()["read_only"], false, "round {round}");
        assert_eq!(patient.read_all(&mount), 0, "round {round}");
    }
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}
