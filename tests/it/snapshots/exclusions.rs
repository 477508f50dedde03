//! What a policy excludes from the history, on a real mount.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::harness::sys::open_rw;
use crate::harness::{Mount, Rng, Store, Times, Tree, args, eventually, tool};

const MIB: usize = 1 << 20;
const FILES: usize = 8;
const FILE_MIB: usize = 25;
const ROUNDS: usize = 4;

fn packs(store: &Store) -> u64 {
    let packs = fs::read_dir(store.path().join("packs")).expect("listing the packs");
    packs.filter_map(|e| e.expect("an entry").metadata().ok()).map(|m| m.len()).sum()
}

/// A mount of a store that excludes, with the default window: every moment of the last minutes is kept.
fn excluding() -> Mount {
    let mount = Store::encrypted().mount();
    mount.store().ok(&args!["policy", "set", mount.path(), "exclude=scratch/**", "exclude=**/*.tmp"]);
    mount
}

fn write_synced(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("writing");
    open_rw(path).and_then(|file| file.sync_all()).expect("syncing");
}

/// Rewrites the scratch files, so that nothing of what they held is left.
fn spill(dir: &Path, rng: &mut Rng) -> Vec<Vec<u8>> {
    let spill = |i: usize| {
        let bytes = rng.bytes(FILE_MIB * MIB);
        write_synced(&dir.join(format!("spill{i}")), &bytes);
        bytes
    };
    (0..FILES).map(spill).collect()
}

fn fsck(store: &Arc<Store>) {
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn scratch_that_is_rewritten_between_snapshots_takes_no_more_than_it_holds() {
    let mut rng = Rng::printed();
    let mount = excluding();
    let scratch = mount.path().join("scratch");
    fs::create_dir_all(scratch.join("job")).expect("directories");
    let plain = rng.bytes(MIB);
    write_synced(&mount.path().join("plain"), &plain);
    let mut last = Vec::new();
    for round in 0..ROUNDS {
        last = spill(&scratch.join("job"), &mut rng);
        mount.snapshot(&format!("s{round}"));
        let snapshot = mount.at(&format!("s{round}"));
        assert_eq!(fs::read_dir(snapshot.join("scratch")).expect("listing").count(), 0);
        assert!(!snapshot.join("scratch/job").exists() && !snapshot.join("scratch/job/spill0").exists());
        assert!(fs::read(snapshot.join("plain")).expect("reading") == plain);
    }
    let live = (FILES * FILE_MIB * MIB) as u64;
    eventually("the live bytes to be those of one round", || {
        mount.status_number("/bytes/live") < live + 4 * MIB as u64
    });
    assert!(mount.status_number("/bytes/history") < MIB as u64);
    // What is freed is dead in its packs until these are rewritten.
    mount.store().ok(&args!["gc", mount.path()]);
    let left = packs(mount.store());
    assert!(left < live + live / 10, "{left} bytes of packs for {live} live ones");
    let mount = mount.remount();
    for (i, bytes) in last.iter().enumerate() {
        assert!(fs::read(mount.path().join(format!("scratch/job/spill{i}"))).expect("reading") == *bytes);
    }
    assert_eq!(fs::read_dir(mount.at("s1").join("scratch")).expect("listing").count(), 0);
    fs::remove_dir_all(mount.path().join("scratch")).expect("removing");
    eventually("all of it to be freed", || mount.status_number("/bytes/live") < 4 * MIB as u64);
    mount.store().ok(&args!["gc", mount.path()]);
    let left = packs(mount.store());
    assert!(left < 8 * MIB as u64, "{left} bytes");
    fsck(&mount.umount());
}

#[test]
fn snapshots_have_everything_but_what_is_excluded_and_a_remount_keeps_that() {
    let mount = excluding();
    let root = mount.path().to_owned();
    for dir in ["scratch/a", "d/e"] {
        fs::create_dir_all(root.join(dir)).expect("directories");
    }
    for file in ["scratch/a/x", "scratch/y", "d/e/f", "d/g", "d/h.tmp"] {
        fs::write(root.join(file), file).expect("writing");
    }
    std::os::unix::fs::symlink("g", root.join("d/link.tmp")).expect("a link");
    fs::write(root.join("d/new.tmp"), "whole").expect("writing");
    fs::rename(root.join("d/new.tmp"), root.join("d/new")).expect("renaming");
    fs::hard_link(root.join("scratch/y"), root.join("d/linked")).expect("a link");
    mount.snapshot("s");
    let expected = BTreeSet::from(["e", "g", "linked", "new"].map(String::from));
    let check = |mount: &Mount, out: &str| {
        let listed = fs::read_dir(mount.at("s").join("d")).expect("listing");
        let listed = listed.map(|e| e.expect("an entry").file_name().into_string().expect("a name"));
        assert_eq!(listed.collect::<BTreeSet<_>>(), expected);
        assert_eq!(fs::read(mount.at("s").join("d/new")).expect("reading"), b"whole");
        assert!(fs::symlink_metadata(mount.at("s").join("d/link.tmp")).is_err());
        assert_eq!(fs::read(mount.path().join("d/h.tmp")).expect("reading"), b"d/h.tmp");
        let out = mount.store().directory(out).join("copy");
        tool(mount.path(), "cp", &args!["-a", mount.at("s").join("d"), out]);
        Tree::read(&mount.at("s").join("d")).assert_same(&Tree::read(&out), Times::All, "copied out");
    };
    check(&mount, "before");
    let mount = mount.remount();
    check(&mount, "after");
    let log = mount.store().refused(1, &args!["log", mount.path().join("d/h.tmp")]);
    assert!(log.contains("excluded from the history"), "{log}");
    let shown = mount.store().json(&args!["policy", "show", mount.path()]).remove(0);
    assert_eq!(shown["exclude"], serde_json::json!(["scratch/**", "**/*.tmp"]));
    // Moved out, a directory has all that it holds.
    fs::rename(mount.path().join("scratch/a"), mount.path().join("a")).expect("renaming");
    mount.snapshot("t");
    assert_eq!(fs::read(mount.at("t").join("a/x")).expect("reading"), b"scratch/a/x");
    fs::write(mount.path().join("d/i.tmp"), "more").expect("writing");
    let diff = mount.store().ok(&args!["diff", mount.path(), "s"]);
    assert!(diff.contains("a/x") && !diff.contains("tmp"), "{diff}");
    // A restore in place brings back what was, and leaves the rest.
    fs::remove_file(mount.path().join("d/e/f")).expect("removing");
    fs::write(mount.path().join("d/extra"), "goes").expect("writing");
    mount.store().ok(&args!["restore", mount.path().join("d"), "--at", "s"]);
    assert_eq!(fs::read(mount.path().join("d/e/f")).expect("reading"), b"d/e/f");
    assert!(!mount.path().join("d/extra").exists());
    for (file, content) in [("d/h.tmp", "d/h.tmp"), ("d/i.tmp", "more"), ("scratch/y", "scratch/y")] {
        assert_eq!(fs::read(mount.path().join(file)).expect("reading"), content.as_bytes());
    }
    mount.store().ok(&args!["policy", "set", mount.path(), "exclude=off"]);
    fs::write(mount.path().join("d/late.tmp"), "seen").expect("writing");
    mount.snapshot("u");
    assert!(mount.at("u").join("d/late.tmp").exists() && !mount.at("u").join("d/h.tmp").exists());
    fsck(&mount.umount());
}
