//! What may be mounted where, and mounts that follow each other closely.

use std::fs;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::mounting::is_mounted;
use crate::harness::{Store, args, eventually, run};

#[test]
fn a_volume_is_mounted_once_and_a_mountpoint_takes_one_volume() {
    let store = Store::encrypted();
    let main = store.mount();
    store.ok(&args!["volume", "create", store.path(), "other"]);
    let elsewhere = store.directory("elsewhere");
    let line = store.refused(11, &args!["mount", store.path(), elsewhere]);
    assert!(line.contains(&*main.path().to_string_lossy()), "it says where it is mounted: {line}");
    store.refused(11, &args!["mount", store.path(), main.path()]);
    let other = args!["mount", store.path(), main.path(), "--volume", "other"];
    store.refused(11, &other);
    store.refused(11, &args!["mount", store.path(), elsewhere, "--volume", "other", "--foreground"]);
    store.refused(1, &args!["mount", store.path(), elsewhere, "--volume", "nowhere"]);
    assert!(!is_mounted(&elsewhere), "a refusal leaves nothing behind");
    fs::write(main.path().join("f"), "x").expect("the first mount still works");
}

#[test]
fn two_volumes_share_a_server_that_ends_with_the_last_of_them() {
    let store = Store::encrypted();
    let main = store.mount();
    store.ok(&args!["volume", "create", store.path(), "other"]);
    let other = store.mount_with("other", &args!["--volume", "other"]);
    assert_eq!(main.status_number("/server_pid"), other.status_number("/server_pid"));
    fs::write(main.path().join("f"), "main").expect("writing");
    fs::write(other.path().join("f"), "other").expect("writing");
    drop(main);
    assert_eq!(fs::read(other.path().join("f")).expect("reading"), b"other");
    // Over and over, while the server goes on: no end of one mount may be taken for the end of the next.
    for _ in 0..20 {
        store.mount().umount();
    }
    let main = store.mount();
    assert_eq!(fs::read(main.path().join("f")).expect("reading"), b"main");
    assert_eq!(main.status_number("/server_pid"), other.status_number("/server_pid"));
}

#[test]
fn a_mount_right_after_umount_8_works() {
    let store = Store::encrypted();
    let dir = store.mount().path().to_owned();
    for round in 0..10 {
        if !is_mounted(&dir) {
            store.ok(&args!["mount", store.path(), dir]);
        }
        fs::write(dir.join("round"), round.to_string()).expect("writing");
        // Busy for a moment where another test's child, between fork and exec, has a copy of our descriptors.
        eventually("umount(8)", || run(Command::new("umount").arg(&dir)).code == 0);
        store.ok(&args!["mount", store.path(), dir]);
        let found = fs::read_to_string(dir.join("round")).expect("the new mount is usable");
        assert_eq!(found, round.to_string());
    }
    store.ok(&args!["umount", dir]);
}

#[test]
fn a_bind_mount_keeps_a_volume_in_use() {
    let store = Store::encrypted();
    let main = store.mount();
    fs::write(main.path().join("f"), "x").expect("writing");
    let bound = store.directory("bound");
    mount(Some(main.path()), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("binding");
    let line = store.refused(11, &args!["umount", main.path()]);
    assert!(line.contains("bind mount"), "{line}");
    assert_eq!(fs::read(bound.join("f")).expect("the bind mount goes on"), b"x");
    store.refused(11, &args!["mount", store.path(), main.path()]);
    umount2(&bound, MntFlags::empty()).expect("unmounting the bind mount");
    store.ok(&args!["mount", store.path(), main.path()]);
    assert_eq!(fs::read(main.path().join("f")).expect("reading"), b"x");
}

#[test]
fn what_is_no_place_for_a_mount_is_refused_in_one_line() {
    let store = Store::encrypted();
    let file = store.home().join("file");
    fs::write(&file, "").expect("writing");
    let inside = store.path().join("inside");
    fs::create_dir(&inside).expect("mkdir");
    store.refused(1, &args!["mount", store.path(), file]);
    store.refused(1, &args!["mount", store.path(), store.home().join("missing")]);
    store.refused(2, &args!["mount", store.path(), store.path()]);
    store.refused(2, &args!["mount", store.path(), inside]);
    store.refused(2, &args!["mount", store.path(), store.home()]);
    let dir = store.directory("mnt");
    for options in ["bogus", "snapdir=sometimes", "snapdir-name=a/b", "snapdir-name=", "allow_other=1"] {
        let line = store.refused(2, &args!["mount", store.path(), dir, "-o", options]);
        assert!(!line.contains("--help") || line.contains(options), "{line}");
    }
    fs::remove_dir(&inside).expect("rmdir");
    assert!(!is_mounted(&dir));
}
