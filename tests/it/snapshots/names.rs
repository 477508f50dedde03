//! `snapshot create/list/delete/hold/release`, and the same by `mkdir` and `rmdir`.

use std::fs;

use serde_json::Value;

use crate::harness::sys::{NOBODY, as_user, chmod, mkdir, names};
use crate::harness::{Mount, Store, args};

/// Names that CLI.md rules out.
fn bad_names() -> [String; 7] {
    ["@x".into(), ".x".into(), "..".into(), "a/b".into(), "n".repeat(129), " ".into(), "a\nb".into()]
}

fn listed(mount: &Mount, name: &str) -> Value {
    let found = mount.snapshots().into_iter().find(|(n, _)| n == name);
    found.unwrap_or_else(|| panic!("{name} is not in the list")).1
}

#[test]
fn a_snapshot_is_listed_with_name_time_lsn_tags_hold_and_bytes() {
    let mount = Store::encrypted().mount();
    fs::write(mount.path().join("f"), b"content").expect("writing");
    let before = mount.status_number("/lsn");
    let (run7, note) = ("run=7", "note=two words, é");
    mount.store().ok(&args!["snapshot", "create", mount.path(), "tagged", "--tag", run7, "--tag", note]);
    mount.snapshot("second");
    let item = listed(&mount, "tagged");
    assert_eq!(item["tags"], serde_json::json!({"run": "7", "note": "two words, é"}));
    assert_eq!(item["hold"], Value::Bool(false));
    assert!(item["lsn"].as_u64().is_some_and(|lsn| lsn > before), "{item} was taken after LSN {before}");
    assert!(item["bytes_only"].is_u64(), "{item}");
    let time = item["time"].as_str().expect("a time as text");
    let date = crate::harness::tool(mount.path(), "date", &args!["-u", "-d", time, "+%s"]);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let age = now - date.trim().parse::<u64>().expect("a number of seconds");
    assert!(age < 3600 && time.ends_with('Z'), "{time} is not in RFC 3339 UTC or not now");
    let lsn = |name: &str| listed(&mount, name)["lsn"].as_u64();
    assert!(lsn("tagged") < lsn("second"), "LSNs follow the order of snapshots");
    assert_eq!(mount.status_number("/snapshots"), 2);
    let text = mount.store().ok(&args!["snapshot", "list", mount.path()]);
    assert!(text.contains("tagged") && text.contains("second"), "{text}");
}

#[test]
fn a_snapshot_without_a_name_gets_one_and_prints_it() {
    let mount = Store::encrypted().mount();
    let create = || mount.store().ok(&args!["snapshot", "create", mount.path()]).trim_end().to_owned();
    let (first, second) = (create(), create());
    assert!(!first.is_empty() && first != second && !first.starts_with(['@', '.']), "{first:?}, {second:?}");
    assert_eq!(mount.snapshot_names(), [first, second].into());
}

#[test]
fn any_path_inside_the_mount_names_the_volume() {
    let mount = Store::encrypted().mount();
    fs::create_dir(mount.path().join("sub")).expect("mkdir");
    fs::write(mount.path().join("sub/f"), b"x").expect("writing");
    mount.store().ok(&args!["snapshot", "create", mount.path().join("sub"), "by-dir"]);
    mount.store().ok(&args!["snapshot", "create", mount.path().join("sub/f"), "by-file"]);
    assert_eq!(mount.snapshot_names(), ["by-dir".into(), "by-file".into()].into());
    assert!(mount.at("by-dir/sub/f").exists(), "a snapshot is of the whole volume");
}

#[test]
fn names_may_be_128_bytes_of_anything_visible() {
    let mount = Store::encrypted().mount();
    for name in ["n".repeat(128), "é b".into(), "-dash".into(), "a@b.c".into(), "#1 \"quoted\"".into()] {
        mount.store().ok(&args!["snapshot", "create", mount.path(), "--", name]);
        assert!(mount.snapshot_names().contains(&name) && mount.at(&name).is_dir(), "{name}");
    }
}

#[test]
fn bad_and_taken_names_are_refused_by_command_and_by_mkdir() {
    let mount = Store::encrypted().mount();
    for name in bad_names() {
        let run = mount.store().cli(&args!["snapshot", "create", mount.path(), "--", name]);
        assert!(matches!(run.code, 1 | 2), "{name:?} was answered with {}", run.code);
        run.one_line();
        mkdir(&mount.at(&name), 0o755).expect_err("mkdir of a bad snapshot name");
    }
    assert_eq!(mount.snapshot_names(), [].into());
    mount.snapshot("taken");
    let line = mount.store().refused(1, &args!["snapshot", "create", mount.path(), "taken"]);
    assert!(line.contains("taken"), "{line}");
    let again = mkdir(&mount.at("taken"), 0o755).expect_err("mkdir of a taken name");
    assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
    assert_eq!(mount.snapshots().len(), 1);
}

#[test]
fn mkdir_and_rmdir_in_the_snapshot_directory_take_and_delete_snapshots() {
    let mount = Store::encrypted().mount();
    fs::write(mount.path().join("f"), b"then").expect("writing");
    mkdir(&mount.at("made"), 0o755).expect("mkdir takes a snapshot");
    fs::write(mount.path().join("f"), b"now").expect("writing");
    assert_eq!(fs::read(mount.at("made/f")).expect("reading the snapshot"), b"then");
    assert_eq!(mount.snapshot_names(), ["made".into()].into());
    fs::remove_dir(mount.at("made")).expect("rmdir deletes it, full as it is");
    assert_eq!(mount.snapshot_names(), [].into());
    let gone = fs::remove_dir(mount.at("made")).expect_err("it is gone");
    assert_eq!(gone.raw_os_error(), Some(libc::ENOENT));
    assert!(!mount.at("made").exists());
    mkdir(&mount.at("made"), 0o755).expect("the name is free again");
    assert_eq!(fs::read(mount.at("made/f")).expect("reading the new snapshot"), b"now");
}

#[test]
fn mkdir_below_the_root_takes_no_snapshot() {
    let mount = Store::encrypted().mount();
    mkdir(&mount.path().join("sub"), 0o755).expect("mkdir");
    mkdir(&mount.path().join("sub/.snapshots/no"), 0o755).expect_err("only at the volume's root");
    mkdir(&mount.at("@10s"), 0o755).expect_err("a point is no name");
    fs::write(mount.at("file"), b"").expect_err("there are only snapshots in there");
    assert_eq!(mount.snapshot_names(), [].into());
}

#[test]
fn deleting_takes_several_names_and_names_the_unknown() {
    let mount = Store::encrypted().mount();
    for name in ["a", "b", "c", "d"] {
        mount.snapshot(name);
    }
    let store = mount.store();
    store.ok(&args!["snapshot", "delete", mount.path(), "a", "b", "--dry-run"]);
    assert_eq!(mount.snapshots().len(), 4, "a dry run deletes nothing");
    store.ok(&args!["snapshot", "delete", mount.path(), "a", "b"]);
    assert_eq!(mount.snapshot_names(), ["c".into(), "d".into()].into());
    let line = store.refused(1, &args!["snapshot", "delete", mount.path(), "nowhere"]);
    assert!(line.contains("nowhere"), "{line}");
    let partly = store.cli(&args!["snapshot", "delete", mount.path(), "c", "nowhere"]);
    assert_eq!(partly.code, 3, "one of two was deleted: {partly:?}");
    assert_eq!(mount.snapshot_names(), ["d".into()].into());
}

#[test]
fn a_held_snapshot_is_not_deleted_until_released() {
    let mut mount = Store::encrypted().mount();
    mount.snapshot("later");
    mount.store().ok(&args!["snapshot", "create", mount.path(), "at-once", "--hold"]);
    mount.store().ok(&args!["snapshot", "hold", mount.path(), "later"]);
    mount = mount.remount();
    for name in ["later", "at-once"] {
        assert_eq!(listed(&mount, name)["hold"], Value::Bool(true), "{name} is held over a remount");
        let line = mount.store().refused(1, &args!["snapshot", "delete", mount.path(), name]);
        assert!(line.contains(name), "{line}");
        fs::remove_dir(mount.at(name)).expect_err("rmdir asks too");
        assert!(mount.at(name).is_dir());
    }
    for name in ["later", "at-once"] {
        mount.store().ok(&args!["snapshot", "release", mount.path(), name]);
        mount.store().ok(&args!["snapshot", "delete", mount.path(), name]);
    }
    assert_eq!(mount.snapshot_names(), [].into());
    mount.store().refused(1, &args!["snapshot", "hold", mount.path(), "nowhere"]);
}

#[test]
fn a_stranger_may_list_but_neither_take_nor_delete() {
    let mount = Store::encrypted().mount();
    chmod(mount.path(), 0o755).expect("chmod");
    mount.snapshot("roots");
    let nobody = |args: &[std::ffi::OsString]| mount.store().as_nobody(args);
    let list = nobody(&args!["snapshot", "list", mount.path()]).expect_ok();
    assert!(list.contains("roots"), "{list}");
    nobody(&args!["snapshot", "create", mount.path(), "his"]).expect_refusal(1);
    nobody(&args!["snapshot", "delete", mount.path(), "roots"]).expect_refusal(1);
    nobody(&args!["snapshot", "hold", mount.path(), "roots"]).expect_refusal(1);
    as_user(NOBODY, NOBODY, || mkdir(&mount.at("his"), 0o755)).expect_err("mkdir asks for the same rights");
    as_user(NOBODY, NOBODY, || fs::remove_dir(mount.at("roots"))).expect_err("and so does rmdir");
    assert_eq!(mount.snapshot_names(), ["roots".into()].into());
    // Who may write the path may take one, and still not delete it.
    chmod(mount.path(), 0o777).expect("chmod");
    nobody(&args!["snapshot", "create", mount.path(), "his"]).expect_ok();
    nobody(&args!["snapshot", "delete", mount.path(), "his"]).expect_refusal(1);
    assert_eq!(names(&mount.at("")).expect("listing"), ["his", "roots"]);
}
