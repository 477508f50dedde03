//! A full disk: the store lies on a small filesystem of its own, so that journal, packs and RocksDB all meet
//! its end. Nothing wrong is read, deleting works, and with room again the same mount goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::harness::{Mount, Rng, Store, args, eventually, tool};

/// A loop-mounted ext4 at `home/store-disk`, taken down when dropped.
struct SmallDisk {
    image: PathBuf,
    dir: PathBuf,
}

impl SmallDisk {
    /// With so many percent of it kept for root.
    fn new(store: &Store, mib: u64, reserved: &str) -> SmallDisk {
        let disk = SmallDisk { image: store.home().join("disk.img"), dir: store.home().join("disk") };
        fs::create_dir(&disk.dir).expect("a mountpoint");
        let image = File::create(&disk.image).expect("an image");
        image.set_len(mib << 20).expect("its size");
        tool(store.home(), "mkfs.ext4", &args!["-q", "-F", "-m", reserved, disk.image]);
        tool(store.home(), "mount", &args!["-o", "loop", disk.image, disk.dir]);
        disk
    }

    fn free(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.dir).expect("statvfs");
        found.blocks_available() * found.fragment_size()
    }

    /// Takes all but `left` bytes of what is free.
    fn ballast(&self, left: u64) {
        let path = self.dir.join("ballast");
        let _ = fs::remove_file(&path);
        let file = File::create(&path).expect("ballast");
        let (mut at, mut step) = (0, 64 << 20);
        // What is free may be in pieces, and the store goes on meanwhile.
        while step >= 4096 {
            let wanted = self.free().saturating_sub(left).min(step) as i64 & !4095;
            let flags = nix::fcntl::FallocateFlags::empty();
            match (wanted > 0).then(|| nix::fcntl::fallocate(&file, flags, at, wanted)) {
                Some(Ok(())) => at += wanted,
                Some(Err(nix::errno::Errno::ENOSPC)) => step /= 2,
                Some(Err(e)) => panic!("filling the disk: {e}"),
                None => return,
            }
        }
    }

    fn drop_ballast(&self) {
        fs::remove_file(self.dir.join("ballast")).expect("removing the ballast");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: it also goes when a test died with the store still open.
        let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A mounted store on a small disk, and what its files hold.
struct Patient {
    mount: Option<Mount>,
    store: Arc<Store>,
    files: BTreeMap<String, Vec<u8>>,
    rng: Rng,
    /// Last: after the mount.
    disk: SmallDisk,
}

/// Times that the disk is full.
const ROUNDS: u64 = 24;

/// Settings with which a small store flushes its index and makes checkpoints often.
const SETTINGS: &str = "index_flush_bytes = 1048576\nindex_flush_records = 100\n\
    checkpoint_journal_bytes = 1048576\nwindow_seconds = 0\ncommit_interval_ms = 100\n";

impl Patient {
    fn new(mib: u64) -> Patient {
        Patient::with(mib, "0", SETTINGS)
    }

    fn with(mib: u64, reserved: &str, settings: &str) -> Patient {
        let store = Store::uninitialised();
        let disk = SmallDisk::new(&store, mib, reserved);
        std::os::unix::fs::symlink(disk.dir.join("store"), store.path()).expect("a link to the store");
        store.ok(&args!["init", disk.dir.join("store")]);
        fs::write(disk.dir.join("store/config.toml"), settings).expect("settings");
        let mount = store.mount();
        Patient { mount: Some(mount), store, files: BTreeMap::new(), rng: Rng::printed(), disk }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.as_ref().expect("it is mounted").path().join(name)
    }

    /// Writes and syncs a new file beside an old one and puts it in its place, as editors do.
    fn replace(&mut self, name: &str, content: Vec<u8>) -> io::Result<()> {
        let (new, path) = (self.path("new"), self.path(name));
        let written = File::create(&new)
            .and_then(|mut f| f.write_all(&content).and_then(|()| f.sync_all()))
            .and_then(|()| fs::rename(&new, &path));
        match written {
            Ok(()) => drop(self.files.insert(name.into(), content)),
            // It may not even have been made.
            Err(_) => drop(fs::remove_file(&new)),
        }
        written
    }

    /// Replaces files of all sizes until one finds no room. How many found some.
    fn fill(&mut self, names: u64) -> u64 {
        for done in 0.. {
            let name = format!("f{}", self.rng.below(names));
            let len = [200, 3_000, 40_000, 200_000, 900_000][self.rng.below(5) as usize];
            let content = self.rng.bytes(len);
            match self.replace(&name, content) {
                Ok(()) => {}
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{name}: {e}");
                    return done;
                }
            }
        }
        0
    }

    fn compare(&self, when: &str) {
        for (name, content) in &self.files {
            let found = fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name} {when}: {e}"));
            assert!(found == *content, "{name} has other bytes {when}");
        }
        let names = fs::read_dir(self.path("")).expect("listing").map(|e| e.expect("an entry").file_name());
        let names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        let strange: Vec<&String> = names.iter().filter(|n| !self.files.contains_key(*n)).collect();
        assert!(strange.is_empty(), "{strange:?} {when}");
    }

    fn remove(&mut self, name: &str) {
        fs::remove_file(self.path(name)).unwrap_or_else(|e| panic!("removing {name} on a full disk: {e}"));
        self.files.remove(name);
    }

    fn status(&self) -> serde_json::Value {
        self.mount.as_ref().expect("it is mounted").status()
    }

    fn problems(&self) -> String {
        self.status()["problems"].to_string()
    }

    /// Unmounts, checks and mounts again.
    fn remount(&mut self, when: &str) {
        let store = self.mount.take().expect("it is mounted").umount();
        store.ok(&args!["fsck", self.disk.dir.join("store")]);
        self.mount = Some(store.mount());
        self.compare(when);
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        // Without room the server would not let go of what it could not store yet.
        let _ = fs::remove_file(self.disk.dir.join("ballast"));
        drop(self.mount.take());
        // The server lets go of the disk a moment after it said that it had unmounted.
        let dir: &Path = &self.disk.dir;
        let _ =
            crate::harness::within(std::time::Duration::from_secs(30), || nix::mount::umount(dir).is_ok());
    }
}

#[test]
fn a_full_disk_refuses_lets_delete_and_goes_on_when_there_is_room() {
    let mut patient = Patient::new(128);
    let (mut full, mut deleted) = (0, 0);
    for round in 0..ROUNDS {
        // From next to nothing to some megabytes: the end comes in journal, packs and index in turn.
        patient.disk.ballast(
            [0, 40_000, 150_000, 400_000, 900_000, 1_300_000, 2_500_000, 3_700_000][round as usize % 8],
        );
        let done = patient.fill(30);
        full += 1;
        let when = format!("in round {round}, full after {done} files");
        patient.compare(&when);
        // Old history may have been given up for it meanwhile; then there is room again.
        let problems = patient.problems();
        let told = problems.contains("full") || patient.replace("probe", vec![7; 4096]).is_ok();
        assert!(told, "{when}: {problems}");
        // Names that stay, names that go; then it is still full.
        let gone: Vec<String> = patient.files.keys().take(5).cloned().collect();
        for name in gone {
            patient.remove(&name);
            deleted += 1;
        }
        if let Some(name) = patient.files.keys().next().cloned() {
            let file = File::options().write(true).open(patient.path(&name)).expect("opening");
            file.set_len(0).unwrap_or_else(|e| panic!("truncating {name} {when}: {e}"));
            patient.files.insert(name, Vec::new());
        }
        patient.compare(&when);
        patient.disk.drop_ballast();
        let mut last = String::new();
        eventually("writing works again", || {
            let content = patient.rng.bytes(70_000);
            patient.replace("again", content).map_err(|e| last = e.to_string()).is_ok()
        });
        assert_eq!(patient.status()["read_only"], false, "{when}");
        patient.compare("with room again");
        if round % 4 == 3 {
            patient.remount("after another start");
        }
    }
    assert!(full == ROUNDS && deleted >= ROUNDS, "{deleted} files were deleted on a full disk");
}

#[test]
fn a_disk_that_is_full_to_the_last_byte_still_lets_thousands_of_files_be_deleted() {
    let mut patient = Patient::new(128);
    for dir in 0..20 {
        fs::create_dir(patient.path(&format!("d{dir}"))).expect("mkdir");
        for file in 0..100 {
            fs::write(patient.path(&format!("d{dir}/f{file}")), b"small").expect("writing");
        }
    }
    patient.store.ok(&args!["snapshot", "create", patient.path(""), "kept"]);
    patient.disk.ballast(0);
    patient.fill(10);
    // Until what the journal had written ahead is used up.
    let refused = (0..100_000).find_map(|i| fs::create_dir(patient.path(&format!("d0/more-{i}"))).err());
    assert_eq!(refused.and_then(|e| e.raw_os_error()), Some(libc::ENOSPC), "names need room too");
    for dir in 0..20 {
        fs::remove_dir_all(patient.path(&format!("d{dir}"))).unwrap_or_else(|e| panic!("rm -r d{dir}: {e}"));
    }
    patient.store.ok(&args!["snapshot", "delete", patient.path(""), "kept"]);
    patient.compare("after deleting");
    patient.disk.drop_ballast();
    eventually("writing works again", || patient.replace("again", vec![7; 300_000]).is_ok());
    patient.remount("after another start");
}

#[test]
fn a_store_on_a_full_disk_can_be_opened_and_deleted_from() {
    let mut patient = Patient::new(128);
    patient.fill_some();
    let store = patient.mount.take().expect("it is mounted").umount();
    patient.disk.ballast(0);
    patient.mount = Some(store.mount());
    patient.compare("mounted on a full disk");
    let refused = patient.replace("more", vec![1; 500_000]).expect_err("there is no room");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    let gone: Vec<String> = patient.files.keys().take(10).cloned().collect();
    gone.iter().for_each(|name| patient.remove(name));
    patient.disk.drop_ballast();
    eventually("writing works again", || patient.replace("again", vec![7; 300_000]).is_ok());
    patient.remount("after another start");
}

#[test]
fn acknowledged_writes_outlive_server_and_holder_on_a_full_disk() {
    let mut patient = Patient::new(128);
    patient.fill_some();
    patient.disk.ballast(0);
    // Taken until the server learns that it cannot commit them.
    let path = patient.path("late");
    let mut late = File::create(&path).expect("a name fits into what the journal wrote ahead");
    let mut taken = Vec::new();
    let refused = (0..100_000).find_map(|_| {
        let bytes = patient.rng.bytes(70_000);
        let written = late.write_all(&bytes).map(|()| taken.extend_from_slice(&bytes));
        written.err()
    });
    assert_eq!(refused.and_then(|e| e.raw_os_error()), Some(libc::ENOSPC));
    // Of the write that was refused in the middle a part may be there.
    let len = late.metadata().expect("fstat").len() as usize;
    assert!(len >= taken.len() && !taken.is_empty(), "{len} bytes of {}", taken.len());
    drop(late);
    let found = fs::read(&path).expect("reading");
    assert!(found.starts_with(&taken), "what was taken is there");
    patient.files.insert("late".into(), found);
    for death in 0..3 {
        let store = patient.mount.take().expect("it is mounted").crash();
        patient.mount = Some(store.mount());
        patient.compare(&format!("after death {death} on a full disk"));
        let refused = File::open(&path).and_then(|f| f.sync_all()).expect_err("it cannot be committed");
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    }
    let gone: Vec<String> = patient.files.keys().filter(|name| *name != "late").take(5).cloned().collect();
    gone.iter().for_each(|name| patient.remove(name));
    patient.disk.drop_ballast();
    eventually("fsync works again", || File::open(&path).and_then(|f| f.sync_all()).is_ok());
    patient.compare("with room again");
    patient.remount("after another start");
}

impl Patient {
    fn fill_some(&mut self) {
        for i in 0..40 {
            let content = self.rng.bytes(i * 5_000);
            self.replace(&format!("f{i}"), content).expect("writing");
        }
    }
}

#[test]
fn history_gives_way_before_anybody_is_told_that_there_is_no_space() {
    // Four files of 4 MiB, written over until three times the disk has gone through it; no history is old.
    for reserved in ["0", "5"] {
        let mut patient = Patient::with(192, reserved, "");
        for i in 0..140 {
            let name = format!("f{}", i % 4);
            let content = patient.rng.bytes(4 << 20);
            patient
                .replace(&name, content)
                .unwrap_or_else(|e| panic!("write {i}: {e}; {}", patient.problems()));
        }
        patient.compare("at the end");
        patient.remount("after a remount");
    }
}

#[test]
fn a_disk_full_of_live_files_has_room_again_once_they_are_removed() {
    // With what is kept for root, into which the store has written as well.
    for reserved in ["0", "5"] {
        let mut patient = Patient::with(192, reserved, "");
        for i in 0.. {
            let content = patient.rng.bytes(1 << 20);
            if let Err(e) = patient.replace(&format!("f{i}"), content) {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
                break;
            }
        }
        assert!(patient.files.len() > 100, "{} files", patient.files.len());
        patient.disk.ballast(0);
        let keep = patient.files.len() / 10;
        for name in patient.files.keys().skip(keep).cloned().collect::<Vec<_>>() {
            patient.remove(&name);
        }
        for i in 0..60 {
            let content = patient.rng.bytes(1 << 20);
            eventually("a write that finds room", || {
                patient.replace(&format!("g{i}"), content.clone()).is_ok()
            });
        }
        patient.compare("at the end");
        patient.remount("after a remount");
    }
}
