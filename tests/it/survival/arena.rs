//! Server and holder are killed at the same moment: what was acknowledged lies in memory for the next mount.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::harness::{Rng, Store, args};

#[test]
fn acknowledged_writes_are_there_after_mounting_again() {
    let mut mount = Store::encrypted().mount();
    let mut rng = Rng::printed();
    let mut expected = vec![0u8; 0];
    for round in 0..6 {
        let path = mount.path().join("f");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).expect("opening");
        for _ in 0..40 {
            let at = rng.below(2_000_000) as usize;
            let bytes = vec![rng.below(255) as u8 + 1; rng.below(100_000) as usize + 1];
            file.write_all_at(&bytes, at as u64).expect("writing");
            expected.resize(expected.len().max(at + bytes.len()), 0);
            expected[at..at + bytes.len()].copy_from_slice(&bytes);
            if rng.below(20) == 0 {
                let len = rng.below(expected.len() as u64 + 1);
                file.set_len(len).expect("truncating");
                expected.resize(len as usize, 0);
            }
        }
        drop(file);
        let store = mount.crash();
        if round % 2 == 0 {
            // A command that opens the store for writing takes them up as well.
            store.ok(&args!["volume", "create", store.path(), format!("v{round}")]);
        }
        mount = store.mount();
        let found = fs::read(mount.path().join("f")).expect("reading");
        assert!(found == expected, "round {round}: {} bytes, not {}", found.len(), expected.len());
    }
    let store = mount.umount();
    let node = fs::read_to_string(store.path().join("node")).expect("the node's id");
    let arena = format!("/dev/shm/rewindfs-{}", node.trim());
    assert!(!fs::exists(&arena).expect("looking"), "a clean stop leaves nothing in memory");
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn memory_of_another_session_is_put_aside_and_said() {
    let store = Store::encrypted();
    let mount = store.mount();
    let mut old = File::create(mount.path().join("old")).expect("creating");
    old.write_all(b"old").and_then(|()| old.sync_all()).expect("writing");
    drop(old);
    let mut file = File::create(mount.path().join("late")).expect("creating");
    file.write_all(&[7; 5000]).expect("writing");
    drop(file);
    let store = mount.crash();
    // As if the store had been used on another machine meanwhile.
    fs::write(store.path().join("session"), "00112233445566778899aabbccddeeff").expect("another session");
    let mount = store.mount();
    let status = mount.status();
    assert_eq!(status["health"], "attention");
    let problems = status["problems"].to_string();
    assert!(problems.contains("were not taken up"), "{problems}");
    assert_eq!(fs::read(mount.path().join("old")).expect("reading"), b"old");
}
