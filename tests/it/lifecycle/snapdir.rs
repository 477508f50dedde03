//! `.snapshots` as CLI.md has it: there for those who ask, never met by those who walk, never written.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::RenameFlags;

use crate::harness::sys::{chmod, mkdir, names, open_rw, rename, set_times, set_xattr};
use crate::harness::{Mount, Store, args, run, tool};

fn sample() -> Mount {
    let mount = Store::encrypted().mount();
    fs::create_dir_all(mount.path().join("dir/sub")).expect("mkdir");
    fs::write(mount.path().join("dir/sub/f"), "x").expect("writing");
    mount.snapshot("s");
    mount
}

#[track_caller]
fn read_only<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("it is read-only").raw_os_error(), Some(Errno::EROFS as i32));
}

#[test]
fn nothing_inside_can_be_changed() {
    let mount = sample();
    let (live, root) = (mount.path(), mount.path().join(".snapshots"));
    for dir in [root.clone(), root.join("s"), root.join("s/dir"), live.join("dir/.snapshots")] {
        read_only(File::create(dir.join("new")));
        read_only(symlink("x", dir.join("new")));
        read_only(fs::hard_link(live.join("dir/sub/f"), dir.join("new")));
        read_only(rename(&live.join("dir/sub"), &dir.join("new"), RenameFlags::empty()));
        read_only(chmod(&dir, 0o777));
        read_only(set_xattr(&dir, "user.a", b"b", 0));
        read_only(set_times(&dir, (1, 0), (1, 0)));
    }
    for dir in [root.join("s"), root.join("s/dir"), live.join("dir/.snapshots")] {
        read_only(mkdir(&dir.join("new"), 0o755));
    }
    let file = root.join("s/dir/sub/f");
    read_only(open_rw(&file));
    read_only(fs::remove_file(&file));
    read_only(fs::remove_dir(root.join("s/dir/sub")));
    read_only(rename(&root.join("s"), &root.join("t"), RenameFlags::empty()));
    read_only(fs::remove_dir(live.join("dir/.snapshots/s")));
    read_only(fs::remove_dir(&root));
    read_only(rename(&root, &live.join("t"), RenameFlags::empty()));
    assert_eq!(fs::read(&file).expect("reading"), b"x");
}

#[test]
fn who_walks_never_meets_it_and_it_keeps_no_directory_from_going() {
    let mount = sample();
    let dir = mount.path();
    let walks: [(&str, &[&str]); 5] = [
        ("find", &["."]),
        ("du", &["-a", "."]),
        ("ls", &["-laR", "."]),
        ("tar", &["-cvf", "/dev/null", "."]),
        ("rsync", &["-anv", "./", "/nonexistent-rewindfs/"]),
    ];
    for (program, words) in walks {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let out = tool(dir, program, &words);
        assert!(out.contains("sub") && !out.contains(".snapshots"), "{program}: {out}");
    }
    run(Command::new("rm").args(["-rf", "dir"]).current_dir(dir)).expect_ok();
    assert!(names(dir).expect("listing").is_empty());
    assert_eq!(fs::read(mount.at("s").join("dir/sub/f")).expect("the snapshot has it"), b"x");
}

#[test]
fn it_shows_at_the_root_alone_where_that_was_asked_for() {
    let store = Store::encrypted();
    let mount = store.mount_with("mnt", &args!["-o", "snapdir=visible"]);
    fs::create_dir(mount.path().join("dir")).expect("mkdir");
    mount.snapshot("s");
    assert_eq!(names(mount.path()).expect("listing"), [".snapshots", "dir"]);
    assert!(names(&mount.path().join("dir")).expect("listing").is_empty());
    assert_eq!(names(&mount.at("s")).expect("listing"), ["dir"]);
    assert_eq!(names(&mount.path().join("dir/.snapshots")).expect("listing"), ["s"]);
}

#[test]
fn a_long_listing_is_whole_and_a_deleted_name_is_gone_at_once() {
    let mount = sample();
    let root = mount.path().join(".snapshots");
    let mut expected: Vec<OsString> = (0..700).map(|n| format!("many-{n:03}").into()).collect();
    for name in &expected {
        fs::create_dir(root.join(name)).expect("taking a snapshot");
    }
    expected.push("s".into());
    assert_eq!(names(&root).expect("listing"), expected);
    let open = File::open(mount.at("s").join("dir")).expect("opening a directory of a snapshot");
    mount.store().ok(&args!["snapshot", "delete", mount.path(), "s"]);
    assert_eq!(fs::metadata(mount.at("s")).expect_err("deleted").kind(), io::ErrorKind::NotFound);
    assert!(!names(&root).expect("listing").contains(&"s".into()));
    drop(open);
}

#[test]
fn listings_stay_whole_while_snapshots_come_and_go() {
    let mount = sample();
    let root = mount.path().join(".snapshots");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let lister = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let found = names(&root).expect("a listing never fails");
                assert!(found.contains(&"s".into()), "what stays is always listed: {found:?}");
                list_long(&root);
            }
        });
        for n in 0..100 {
            let name = root.join(format!("passing-{n}"));
            fs::create_dir(&name).expect("taking a snapshot");
            fs::remove_dir(&name).expect("deleting a snapshot");
        }
        done.store(true, Ordering::Relaxed);
        lister.join().expect("the lister");
    });
}

/// A listing with attributes, which the kernel asks for in one request.
fn list_long(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a listing never fails") {
        let entry = entry.expect("a listing never fails");
        match entry.metadata() {
            Ok(found) => assert!(found.is_dir()),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::NotFound),
        }
    }
}

#[test]
fn a_read_only_mount_can_be_snapshotted_by_command_alone() {
    let mount = sample().umount().mount_with("mnt", &args!["--read-only"]);
    mount.snapshot("of-read-only");
    read_only(fs::create_dir(mount.path().join(".snapshots/by-mkdir")));
    assert_eq!(fs::read(mount.at("of-read-only").join("dir/sub/f")).expect("reading"), b"x");
    assert_eq!(mount.status().get("read_only"), Some(&true.into()));
}
