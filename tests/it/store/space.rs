//! What is deleted gives its space back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::patient::set;
use crate::harness::sys::open_rw;
use crate::harness::{Mount, Rng, Store, args, eventually, setting};
use crate::survival::server::kill;

/// A store that keeps no moments beside its snapshots, with other settings as well.
fn store(more: &[(&str, u64)]) -> Arc<Store> {
    let store = Store::encrypted();
    let path = store.path().join("config.toml");
    let mut text = fs::read_to_string(&path).expect("the settings");
    for (name, value) in [("window_seconds", 0)].iter().chain(more) {
        text = set(&text, name, *value);
    }
    fs::write(path, text).expect("writing the settings");
    store
}

fn packs(store: &Store) -> u64 {
    let packs = fs::read_dir(store.path().join("packs")).expect("listing the packs");
    packs.filter_map(|e| e.expect("an entry").metadata().ok()).map(|m| m.len()).sum()
}

/// Files that compress badly, by name.
fn fill(dir: &Path, names: std::ops::Range<u32>, rng: &mut Rng) -> BTreeMap<String, Vec<u8>> {
    names
        .map(|i| {
            let (name, bytes) = (format!("f{i}"), rng.bytes(500_000));
            fs::write(dir.join(&name), &bytes).expect("writing");
            open_rw(&dir.join(&name)).and_then(|f| f.sync_all()).expect("syncing");
            (name, bytes)
        })
        .collect()
}

fn assert_all(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        assert!(fs::read(dir.join(name)).expect("reading") == *bytes, "{name}");
    }
}

fn gc(mount: &Mount, more: &[&str]) -> Value {
    let mut words = args!["gc", mount.path()].to_vec();
    words.extend(more.iter().map(|word| word.into()));
    mount.store().json(&words).pop().expect("a report")
}

#[test]
fn gc_gives_the_space_of_deleted_files_back_and_says_before_how_much() {
    let mut rng = Rng::printed();
    let mount = store(&[]).mount();
    let mut files = fill(mount.path(), 0..40, &mut rng);
    tool_sync(&mount);
    let full = packs(mount.store());
    files.retain(|name, _| {
        let goes = name.len() == 3;
        if goes {
            fs::remove_file(mount.path().join(name)).expect("removing");
        }
        !goes
    });
    eventually("the removed files to be dead", || mount.status_number("/bytes/dead") > full / 2);
    let would = gc(&mount, &["--dry-run"]);
    assert_eq!((would["dry_run"].clone(), packs(mount.store())), (Value::Bool(true), full));
    let done = gc(&mount, &[]);
    let freed = done["freed_bytes"].as_u64().expect("a number");
    assert!(freed > full / 2 && would["freed_bytes"].as_u64().expect("a number").abs_diff(freed) < full / 20);
    assert_eq!(packs(mount.store()), done["after_bytes"].as_u64().expect("a number"));
    assert_all(mount.path(), &files);
    let mount = mount.remount();
    assert_all(mount.path(), &files);
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}

fn tool_sync(mount: &Mount) {
    fs::File::open(mount.path()).and_then(|dir| dir.sync_all()).expect("syncing");
}

#[test]
fn gc_works_on_a_store_that_is_not_mounted() {
    let mut rng = Rng::printed();
    let mount = store(&[]).mount();
    fill(mount.path(), 0..10, &mut rng);
    mount.snapshot("kept");
    let kept = fill(mount.path(), 10..12, &mut rng);
    (0..12).for_each(|i| fs::remove_file(mount.path().join(format!("f{i}"))).expect("removing"));
    let store = mount.umount();
    let before = packs(&store);
    let said = store.ok(&args!["gc", store.path()]);
    assert!(said.starts_with("freed "), "{said}");
    let after = packs(&store);
    assert!(
        after < before - 500_000 && after > 4_500_000,
        "{before} bytes, then {after}: a snapshot keeps ten files"
    );
    store.ok(&args!["fsck", store.path()]);
    let mount = store.mount();
    assert_eq!(fs::read_dir(mount.at("kept")).expect("listing").count(), 10);
    assert!(kept.keys().all(|name| !mount.path().join(name).exists()));
}

#[test]
fn a_server_that_is_killed_while_packs_are_rewritten_loses_nothing() {
    let mut rng = Rng::printed();
    let mount = store(&[]).mount();
    let mut files = fill(mount.path(), 0..30, &mut rng);
    for round in 0..setting("REWINDFS_TEST_KILLS", 12) as u32 {
        for i in (round % 3..30).step_by(3) {
            let (name, bytes) = (format!("f{i}"), rng.bytes(500_000));
            fs::write(mount.path().join(&name), &bytes).expect("writing");
            files.insert(name, bytes);
        }
        tool_sync(&mount);
        let mut command = mount.store().command(&args!["gc", mount.path()]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting gc");
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        kill(&mount);
        // It fails, or it was done before.
        child.wait().expect("waiting for gc");
        assert_all(mount.path(), &files);
    }
    gc(&mount, &[]);
    assert_all(mount.path(), &files);
    let store = mount.umount();
    assert!(packs(&store) < 20_000_000, "{}", packs(&store));
    store.ok(&args!["fsck", store.path()]);
}
