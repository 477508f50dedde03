//! The server is killed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use super::load::Load;
use crate::harness::sys::{Mapping, open_rw};
use crate::harness::{Mount, Store, eventually, setting};

/// Kills the server; whoever needs one waits for the next.
pub fn kill(mount: &Mount) {
    let server = mount.server();
    server.kill();
    eventually("the server to be gone", || !server.alive());
}

#[test]
fn programs_under_load_see_a_pause_and_no_error() {
    let mount = Store::encrypted().mount();
    let load = Load::start(mount.path());
    for round in 0..setting("REWINDFS_TEST_KILLS", 20) {
        load.advance(1);
        std::thread::sleep(Duration::from_millis(round * 37 % 200));
        kill(&mount);
    }
    load.advance(2);
    load.end();
    let store = mount.umount();
    store.ok(&crate::harness::args!["fsck", store.path()]);
}

#[test]
fn what_is_open_stays_open() {
    let mount = Store::encrypted().mount();
    let dir = mount.path();
    fs::write(dir.join("plain"), "some text").expect("writing");
    fs::write(dir.join("mapped"), vec![5u8; 100_000]).expect("writing");
    mount.snapshot("before");
    let mut reading = File::open(dir.join("plain")).expect("opening");
    let mut past = File::open(mount.at("before").join("plain")).expect("opening a past file");
    let lsn = mount.status_number("/lsn");
    let mut moment = File::open(mount.at(&format!("@lsn:{lsn}")).join("plain")).expect("opening a moment");
    // A name that counts back keeps what it first meant: not to be asked for too early.
    std::thread::sleep(Duration::from_millis(1500));
    let relative = mount.at("@1s");
    let meant = fs::metadata(&relative).expect("a moment a second ago").ino();
    let gone = dir.join("gone");
    let unlinked = OpenOptions::new().read(true).write(true).create_new(true).open(&gone).expect("creating");
    fs::remove_file(&gone).expect("unlinking");
    unlinked.write_all_at(b"still mine", 0).expect("writing");
    let file = open_rw(&dir.join("mapped")).expect("opening");
    let map = Mapping::shared(&file, 100_000).expect("mapping");
    map.write(50_000, &[9]);
    let listing = fs::read_dir(dir).expect("opening a directory");
    for _ in 0..3 {
        kill(&mount);
        let mut text = String::new();
        reading.read_to_string(&mut text).expect("reading");
        past.read_to_string(&mut text).expect("reading a past file");
        moment.read_to_string(&mut text).expect("reading at a moment");
        let mut bytes = [0; 10];
        unlinked.read_exact_at(&mut bytes, 0).expect("reading an unlinked file");
        assert_eq!(&bytes, b"still mine");
        assert_eq!(fs::read(relative.join("plain")).expect("reading a second ago"), b"some text");
        assert_eq!(fs::metadata(&relative).expect("a moment a second ago").ino(), meant);
        assert_eq!(map.read(50_000, 1), [9]);
        map.write(60_000, &[10]);
    }
    assert_eq!(listing.count(), 2, "a directory that was open is listed");
    // Read to their ends before the first kill came back; from the beginning now.
    for name in ["before", &format!("@lsn:{lsn}")] {
        assert_eq!(fs::read(mount.at(name).join("plain")).expect("reading"), b"some text");
    }
    map.sync().expect("msync");
    drop((map, unlinked));
    let found = fs::read(dir.join("mapped")).expect("reading");
    assert_eq!((found[50_000], found[60_000], found.len()), (9, 10, 100_000));
}

#[test]
fn what_was_written_is_there_at_once_and_with_its_times() {
    let mount = Store::encrypted().mount();
    for round in 0..5u8 {
        let path = mount.path().join(format!("f{round}"));
        let mut file = File::create(&path).expect("creating");
        file.write_all(&vec![round; 300_000]).expect("writing");
        file.write_all_at(b"overwritten", 1000).expect("writing");
        let before = file.metadata().expect("fstat");
        kill(&mount);
        // Past the kernel's caches.
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .expect("dropping pages");
        let found = fs::read(&path).expect("reading");
        assert_eq!(found.len(), 300_000);
        assert_eq!((&found[1000..1011], found[999], found[299_999]), (&b"overwritten"[..], round, round));
        drop(file);
        let mount_again = fs::metadata(&path).expect("stat");
        assert_eq!(mount_again.modified().expect("mtime"), before.modified().expect("mtime"));
    }
    let mount = mount.remount();
    assert_eq!(fs::read(mount.path().join("f4")).expect("reading").len(), 300_000);
}
