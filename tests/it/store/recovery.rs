//! Coming back: after SIGKILL, and without the index.

use std::fs::{self, File};
use std::io::Write;

use crate::harness::sys::Mapping;
use crate::harness::{Mount, Rng, Store, Times, Tree, args, sample};

/// A mount with a sample tree, snapshots and some work after the last of them.
fn worked_on() -> Mount {
    let mount = Store::encrypted().mount();
    let mut rng = Rng::printed();
    for round in 0..3 {
        let dir = mount.path().join(format!("round-{round}"));
        fs::create_dir(&dir).expect("mkdir");
        sample::plant(&dir, &mut rng).expect("planting");
        mount.snapshot(&format!("s{round}"));
        fs::remove_dir_all(dir.join("deep/er")).expect("removing");
        fs::rename(dir.join("links"), dir.join("deep/links")).expect("renaming");
    }
    mount
}

/// The live tree and those of all snapshots.
fn trees(mount: &Mount) -> Vec<(String, Tree)> {
    let mut trees = vec![("live".to_owned(), Tree::read(mount.path()))];
    let names = mount.snapshot_names();
    trees.extend(names.into_iter().map(|name| (name.clone(), Tree::read(&mount.at(&name)))));
    trees
}

fn assert_same_trees(before: &[(String, Tree)], mount: &Mount, when: &str) {
    let now = trees(mount);
    assert_eq!(before.len(), now.len(), "{when}: snapshots");
    for ((name, then), (_, now)) in before.iter().zip(&now) {
        then.assert_same(now, Times::All, &format!("{name} {when}"));
    }
}

/// The digest once background work has come to rest.
fn quiet_digest(mount: &Mount) -> serde_json::Value {
    let mut before = mount.status();
    loop {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let now = mount.status();
        if now["lsn"] == before["lsn"] {
            return now["digest"].clone();
        }
        before = now;
    }
}

#[test]
fn a_deleted_index_is_rebuilt_with_the_same_trees() {
    // Looking moves access times, which are part of the state.
    let quiet = args!["-o", "noatime"];
    let mut mount = worked_on().umount().mount_with("mnt", &quiet);
    let (before, list) = (trees(&mount), mount.snapshots());
    let digest = quiet_digest(&mount);
    for _ in 0..2 {
        let store = mount.umount();
        fs::remove_dir_all(store.path().join("index")).expect("deleting the index");
        mount = store.mount_with("mnt", &quiet);
        assert_same_trees(&before, &mount, "after rebuilding the index");
        assert_eq!(list, mount.snapshots());
        assert_eq!(digest, quiet_digest(&mount), "the digest of the logical state");
    }
    fs::write(mount.path().join("goes on"), b"x").expect("writing after the rebuild");
    mount = mount.remount();
    assert_eq!(fs::read(mount.path().join("goes on")).expect("reading"), b"x");
}

#[test]
fn a_young_store_is_rebuilt_from_its_journal_alone() {
    let mount = worked_on();
    let before = trees(&mount);
    let store = mount.umount();
    fs::remove_dir_all(store.path().join("index")).expect("deleting the index");
    for checkpoint in fs::read_dir(store.path().join("checkpoints")).expect("the checkpoints") {
        fs::remove_dir_all(checkpoint.expect("a checkpoint").path()).expect("deleting a checkpoint");
    }
    let mount = store.mount();
    assert_same_trees(&before, &mount, "from the journal");
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn what_was_synced_is_there_after_the_server_was_killed() {
    let mount = Store::encrypted().mount();
    let mut rng = Rng::printed();
    sample::plant(mount.path(), &mut rng).expect("planting");
    mount.snapshot("before");
    let content = rng.bytes(5 << 20);
    let mut file = File::create(mount.path().join("synced")).expect("creating");
    file.write_all(&content).and_then(|()| file.sync_all()).expect("fsync");
    fs::create_dir(mount.path().join("dir")).expect("mkdir");
    fs::rename(mount.path().join("relative"), mount.path().join("dir/moved")).expect("renaming");
    // A sync makes all earlier records durable, whatever file it was asked on.
    let small = File::create(mount.path().join("dir/small")).expect("creating");
    small.sync_all().expect("fsync");
    let mapped = File::options().read(true).write(true).open(mount.path().join("synced")).expect("opening");
    let map = Mapping::shared(&mapped, 4096).expect("mmap");
    map.write(100, b"through msync");
    map.sync().expect("msync");
    let snapshot = Tree::read(&mount.at("before"));
    drop((map, mapped, small, file));
    let store = mount.crash();
    let mount = store.mount();
    let bytes = fs::read(mount.path().join("synced")).expect("reading");
    assert!(bytes.len() == content.len() && bytes[4096..] == content[4096..], "what fsync acknowledged");
    assert_eq!(&bytes[100..113], b"through msync");
    assert!(mount.path().join("dir/moved").is_symlink() && !mount.path().join("relative").exists());
    assert!(mount.path().join("dir/small").is_file());
    snapshot.assert_same(&Tree::read(&mount.at("before")), Times::All, "the snapshot");
    mount.umount().ok(&args!["fsck", store.path()]);
}

#[test]
fn killing_the_server_again_and_again_keeps_every_synced_file_whole() {
    let store = Store::encrypted();
    let mut rng = Rng::printed();
    let mut expected: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..5 {
        let mount = store.mount();
        for (name, content) in &expected {
            assert!(
                fs::read(mount.path().join(name)).expect("reading") == *content,
                "{name} in round {round}"
            );
        }
        for i in 0..40 {
            let name = format!("f{}", rng.below(60));
            let len = rng.below(40_000) as usize;
            let content = if i % 2 == 0 { rng.bytes(len) } else { rng.text(len) };
            // As editors do: a new file, synced, renamed over; then the directory.
            let temporary = mount.path().join("temporary");
            let mut file = File::create(&temporary).expect("creating");
            file.write_all(&content).and_then(|()| file.sync_all()).expect("fsync");
            fs::rename(&temporary, mount.path().join(&name)).expect("renaming");
            expected.retain(|(n, _)| *n != name);
            expected.push((name, content));
        }
        File::open(mount.path()).and_then(|d| d.sync_all()).expect("fsync of the directory");
        // Not synced; whether it survives is open, but it must not disturb.
        fs::write(mount.path().join("unsynced"), rng.bytes(200_000)).expect("writing");
        mount.crash();
    }
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn a_rename_over_an_old_file_never_leaves_it_empty_after_a_kill() {
    let store = Store::encrypted();
    for round in 0..4 {
        let mount = store.mount();
        for i in 0..200 {
            // No fsync: the rename alone must carry the data.
            fs::write(mount.path().join("new"), format!("{round} {i} ").repeat(100)).expect("writing");
            fs::rename(mount.path().join("new"), mount.path().join("config")).expect("renaming");
        }
        mount.crash();
        let mount = store.mount();
        let text = fs::read_to_string(mount.path().join("config")).expect("some version is there");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert!(words.len() == 200 && words.chunks(2).all(|pair| pair == &words[..2]), "torn: {text:.100}");
        mount.umount();
    }
}
