//! `mount -t rewindfs` and fstab: the program as `mount.rewindfs`, called as mount(8) calls it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::harness::mounting::{REWINDFS, is_mounted};
use crate::harness::sys::names;
use crate::harness::{Run, Store, args, run};

/// Runs the program under the helper's name.
fn helper(store: &Store, more: &[OsString]) -> Run {
    let program = store.home().join("mount.rewindfs");
    if !program.exists() {
        symlink(REWINDFS, &program).expect("linking the helper");
    }
    let mut command = Command::new(program);
    command.args(more).env("REWINDFS_KEY_DIR", store.home().join("keys")).current_dir("/");
    run(&mut command)
}

/// Fields of the mount table: per-mount options, type, source.
fn table(dir: &Path) -> (String, String, String) {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let line = table.lines().find(|l| l.split(' ').nth(4) == dir.to_str()).expect("it is mounted");
    let (before, after) = line.split_once(" - ").expect("a separator");
    let field = |text: &str, n: usize| text.split(' ').nth(n).unwrap_or_default().to_owned();
    (field(before, 5), field(after, 0), field(after, 1))
}

#[test]
fn an_fstab_line_mounts_with_its_options() {
    let store = Store::encrypted();
    let dir = store.directory("mnt");
    let options = "rw,noauto,nofail,_netdev,x-systemd.automount,nodev,noatime,snapdir=visible,\
                   snapdir-name=.hist,fsname=a\\,b";
    helper(&store, &args![store.path(), dir, "-n", "-o", options]).expect_ok();
    let (flags, kind, source) = table(&dir);
    assert_eq!((kind.as_str(), source.as_str()), ("fuse.rewindfs", "a,b"));
    let flags: Vec<&str> = flags.split(',').collect();
    assert!(
        flags.contains(&"nodev") && flags.contains(&"noatime") && !flags.contains(&"nosuid"),
        "{flags:?}"
    );
    fs::create_dir(dir.join(".hist/one")).expect("a snapshot under the other name");
    assert_eq!(names(&dir).expect("listing"), [".hist"]);
    fs::metadata(dir.join(".snapshots")).expect_err("the usual name means nothing here");
    store.ok(&args!["umount", dir]);
}

#[test]
fn read_only_with_an_empty_subtype() {
    let store = Store::encrypted();
    let dir = store.directory("mnt");
    helper(&store, &args![store.path(), dir, "-o", "ro,subtype=,volume=main"]).expect_ok();
    let (flags, kind, source) = table(&dir);
    assert_eq!((kind.as_str(), source.as_str()), ("fuse", store.path().to_str().expect("a path")));
    assert!(flags.split(',').any(|f| f == "ro"), "{flags}");
    fs::write(dir.join("f"), "x").expect_err("it is read-only");
    store.ok(&args!["umount", dir]);
}

#[test]
fn flags_of_mount_8() {
    let store = Store::encrypted();
    let dir = store.directory("mnt");
    helper(&store, &args![store.path(), dir, "-o", "bogus"]).expect_refusal(2);
    helper(&store, &args![store.path(), dir, "-f", "-o", "ro"]).expect_ok();
    helper(&store, &args![store.path(), dir, "-fns", "-o", "bogus"]).expect_ok();
    assert!(!is_mounted(&dir), "-f only checks");
    helper(&store, &args![store.path(), dir, "-s", "-v", "-t", "rewindfs", "-o", "bogus"]).expect_ok();
    helper(&store, &args![store.path(), dir]).expect_refusal(11);
    store.ok(&args!["umount", dir]);
    helper(&store, &args![store.directory("empty"), dir]).expect_refusal(10);
}
