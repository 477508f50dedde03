//! Several volumes in one store.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use crate::harness::sys::names;
use crate::harness::{Rng, Store, Times, Tree, args, sample};

fn volumes(store: &Arc<Store>) -> BTreeSet<String> {
    let items = store.json(&args!["volume", "list", store.path()]);
    items.iter().map(|v| v["name"].as_str().expect("a volume has a name").to_owned()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn volumes_are_made_listed_and_deleted_with_and_without_a_server() {
    let store = Store::encrypted();
    assert_eq!(volumes(&store), set(&["main"]));
    store.ok(&args!["volume", "create", store.path(), "models"]);
    assert_eq!(volumes(&store), set(&["main", "models"]));
    let mount = store.mount();
    store.ok(&args!["volume", "create", store.path(), "scratch"]);
    assert_eq!(volumes(&store), set(&["main", "models", "scratch"]));
    let text = store.ok(&args!["volume", "list", store.path()]);
    assert!(text.contains("models") && text.contains("scratch"), "{text}");
    store.ok(&args!["volume", "delete", store.path(), "scratch", "--dry-run"]);
    assert_eq!(volumes(&store), set(&["main", "models", "scratch"]), "a dry run deletes nothing");
    store.ok(&args!["volume", "delete", store.path(), "scratch"]);
    mount.umount();
    store.ok(&args!["volume", "delete", store.path(), "models"]);
    assert_eq!(volumes(&store), set(&["main"]));
    let line = store.refused(1, &args!["volume", "delete", store.path(), "models"]);
    assert!(line.contains("models"), "{line}");
    store.refused(1, &args!["volume", "create", store.path(), "main"]);
    store.refused(1, &args!["mount", store.path(), store.directory("m2"), "--volume", "models"]);
}

#[test]
fn volumes_are_separate_trees_with_separate_snapshots() {
    let store = Store::encrypted();
    store.ok(&args!["volume", "create", store.path(), "second"]);
    let mut main = store.mount();
    let mut other = store.mount_with("other", &args!["--volume", "second"]);
    assert_eq!(main.status()["server_pid"], other.status()["server_pid"], "one server for both");
    assert_eq!(
        (main.status()["volume"].as_str(), other.status()["volume"].as_str()),
        (Some("main"), Some("second"))
    );
    sample::plant(main.path(), &mut Rng::new(1)).expect("planting");
    fs::write(other.path().join("f"), b"second").expect("writing");
    main.snapshot("same name");
    other.snapshot("same name");
    assert_eq!(names(other.path()).expect("listing"), ["f"]);
    assert_eq!(names(&other.at("same name")).expect("listing"), ["f"]);
    let whole = Tree::read(main.path());
    whole.assert_same(&Tree::read(&main.at("same name")), Times::All, "the snapshot of main");
    // One is unmounted while the other stays.
    let main_dir = main.path().to_owned();
    main.umount();
    assert_eq!(fs::read(other.path().join("f")).expect("reading"), b"second");
    assert!(!main_dir.join("relative").exists());
    main = store.mount();
    other = other.remount();
    whole.assert_same(&Tree::read(main.path()), Times::All, "main after a remount");
    store.ok(&args!["snapshot", "delete", other.path(), "same name"]);
    assert!(main.at("same name").is_dir() && !other.at("same name").exists());
}

#[test]
fn a_mounted_volume_is_not_deleted_and_a_new_one_of_the_name_is_empty() {
    let store = Store::encrypted();
    store.ok(&args!["volume", "create", store.path(), "v"]);
    let main = store.mount();
    let mount = store.mount_with("v", &args!["--volume", "v"]);
    fs::write(mount.path().join("f"), b"x").expect("writing");
    mount.snapshot("s");
    let run = store.cli(&args!["volume", "delete", store.path(), "v"]);
    assert!(matches!(run.code, 1 | 11), "deleting a mounted volume ended with {}", run.code);
    run.one_line();
    assert_eq!(fs::read(mount.path().join("f")).expect("reading"), b"x");
    mount.umount();
    store.ok(&args!["volume", "delete", store.path(), "v"]);
    store.ok(&args!["volume", "create", store.path(), "v"]);
    let mount = store.mount_with("v", &args!["--volume", "v"]);
    assert_eq!(names(mount.path()).expect("listing"), Vec::<std::ffi::OsString>::new());
    assert_eq!(mount.snapshot_names(), set(&[]));
    drop(main);
}

#[test]
fn bad_volume_names_are_refused() {
    let store = Store::encrypted();
    for name in ["", "@v", ".v", "a/b", &"v".repeat(129)] {
        let run = store.cli(&args!["volume", "create", store.path(), name]);
        assert!(matches!(run.code, 1 | 2), "{name:?} was answered with {}", run.code);
    }
    assert_eq!(volumes(&store), set(&["main"]));
}

#[test]
fn a_name_that_one_volume_has_already_is_refused_with_that_volume() {
    let mount = Store::encrypted().mount();
    let store = mount.store();
    store.ok(&args!["volume", "create", store.path(), "second"]);
    store.ok(&args!["snapshot", "create", store.path(), "taken", "--volume", "second"]);
    let line = store.refused(1, &args!["snapshot", "create", mount.path(), "taken", "--all-volumes"]);
    assert!(line.contains("taken") && line.contains("in volume second"), "{line}");
}
