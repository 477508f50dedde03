//! `rewindfs diff` on real mounts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::acl::{ACCESS, acl};
use crate::harness::sys::{NOBODY, chmod, chown, raw_name, set_xattr};
use crate::harness::{Mount, Store, args};

fn lines(store: &Store, arguments: &[std::ffi::OsString]) -> Vec<String> {
    store.ok(&[&args!["diff"], arguments].concat()).lines().map(str::to_owned).collect()
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// A tree, the snapshot `a` of it, and every kind of change.
fn changed() -> (Mount, Vec<&'static str>) {
    let mount = Store::encrypted().mount();
    let at = |name: &str| mount.path().join(name);
    for dir in ["d", "d/sub", "gone"] {
        fs::create_dir(at(dir)).expect("mkdir");
    }
    for file in ["saved", "moved", "d/sub/below", "gone/x", "mode", "owner", "xattr", "same", "link", "grows"]
    {
        fs::write(at(file), file).expect("writing");
    }
    fs::hard_link(at("link"), at("d/link too")).expect("link");
    fs::hard_link(at("link"), at("link three")).expect("link");
    symlink("somewhere", at("sym")).expect("symlink");
    mount.snapshot("a");
    fs::write(at("saved.tmp"), "saved anew").expect("writing");
    fs::rename(at("saved.tmp"), at("saved")).expect("rename");
    fs::rename(at("moved"), at("d/renamed")).expect("rename");
    fs::rename(at("d"), at("e")).expect("rename");
    fs::write(at("e/sub/below"), "changed below").expect("writing");
    fs::remove_dir_all(at("gone")).expect("rm");
    chmod(&at("mode"), 0o600).expect("chmod");
    chown(&at("owner"), 12, 34).expect("chown");
    set_xattr(&at("xattr"), "user.x", b"y", 0).expect("setxattr");
    fs::read(at("same")).expect("reading");
    fs::write(at("temporary"), "x").expect("writing");
    fs::remove_file(at("temporary")).expect("rm");
    fs::write(at("link"), "linked").expect("writing");
    fs::remove_file(at("link three")).expect("rm");
    fs::remove_file(at("sym")).expect("rm");
    symlink("elsewhere", at("sym")).expect("symlink");
    fs::write(mount.path().join(raw_name(b"\xff\n")), "").expect("writing");
    fs::OpenOptions::new()
        .append(true)
        .open(at("grows"))
        .and_then(|mut f| {
            use std::io::Write;
            f.write_all(b"!")
        })
        .expect("appending");
    let expected = vec![
        "R  d/ -> e/",
        "M  e/link too  (4 B -> 6 B)",
        "R  moved -> e/renamed",
        "M  e/sub/below  (11 B -> 13 B)",
        "D  gone/",
        "D  gone/x  (6 B)",
        "M  grows  (5 B -> 6 B)",
        "M  link  (4 B -> 6 B)",
        "D  link three  (4 B)",
        "M  mode  (mode)",
        "M  owner  (owner, group)",
        "M  saved  (5 B -> 10 B)",
        "M  sym  (content)",
        "M  xattr  (xattrs)",
        r"A  \xff\n  (0 B)",
    ];
    (mount, expected)
}

#[test]
fn every_kind_of_change_is_told_once_and_by_its_path() {
    let (mount, expected) = changed();
    // The last write is not even a second old: nothing that returned is missing.
    assert_eq!(lines(mount.store(), &args![mount.path(), "a"]), expected);
    mount.snapshot("b");
    fs::remove_dir_all(mount.path().join("e")).expect("rm");
    assert_eq!(lines(mount.store(), &args![mount.path(), "a", "b"]), expected);
    let summary = "1 added, 3 removed, 9 modified, 2 renamed";
    assert_eq!(lines(mount.store(), &args![mount.path(), "a", "b", "--summary"]), [summary]);
    assert_eq!(lines(mount.store(), &args![mount.path(), "b", "b"]), Vec::<String>::new());
    let path = mount.path().to_owned();
    let store = mount.umount();
    assert_eq!(lines(&store, &args![store.path(), "a", "b"]), expected, "without a server");
    assert_eq!(store.refused(10, &args!["diff", path, "a"]).lines().count(), 1, "no mount is there any more");
}

#[test]
fn json_has_an_object_for_each_change_and_hex_for_names_that_are_no_text() {
    let (mount, _) = changed();
    let all = mount.store().json(&args!["diff", mount.path(), "a"]);
    let of = |path: Value| all.iter().find(|c| c["path"] == path).cloned().unwrap_or_default();
    assert_eq!(
        of(json!("e/renamed")),
        json!({ "change": "renamed", "path": "e/renamed", "from": "moved", "kind": "file",
                "size_before": 5, "size_after": 5 })
    );
    assert_eq!(
        of(json!("saved")),
        json!({ "change": "modified", "path": "saved", "kind": "file", "size_before": 5, "size_after": 10,
                "what": ["content"] })
    );
    assert_eq!(of(json!("gone")), json!({ "change": "removed", "path": "gone", "kind": "directory" }));
    assert_eq!(of(json!({ "hex": "ff0a" }))["change"], "added");
    let totals = mount.store().json(&args!["diff", mount.path(), "a", "--summary"]);
    assert_eq!((&totals[0]["added"], &totals[0]["renamed"]), (&json!(1), &json!(2)));
}

#[test]
fn only_what_lies_at_or_below_the_path_is_told() {
    let (mount, _) = changed();
    let diff = |path: &str| lines(mount.store(), &args![mount.path().join(path), "a"]);
    let below = ["M  link too  (4 B -> 6 B)", "A  renamed  (5 B)", "M  sub/below  (11 B -> 13 B)"];
    assert_eq!(diff("e"), below);
    assert_eq!(diff("e/sub"), ["M  below  (11 B -> 13 B)"]);
    assert_eq!(diff("e/sub/below"), ["M  below  (11 B -> 13 B)"]);
    assert_eq!(diff("saved"), ["M  saved  (5 B -> 10 B)"]);
    assert_eq!(diff("same"), Vec::<String>::new());
    assert_eq!(diff("gone"), ["D  gone/", "D  gone/x  (6 B)"], "a path that is gone");
    assert_eq!(diff("gone/x"), ["D  x  (6 B)"]);
    assert_eq!(diff("sym"), ["M  sym  (content)"], "a link is not followed");
    assert_eq!(diff(".snapshots/a/d"), below, "a directory in a snapshot is the same directory");
}

#[test]
fn a_user_is_told_what_he_may_read_and_no_name_more() {
    let mount = Store::encrypted().mount();
    let at = |name: &str| mount.path().join(name);
    for dir in ["public", "public/closed", "private"] {
        fs::create_dir(at(dir)).expect("mkdir");
        open_to_all(&at(dir));
    }
    mount.snapshot("a");
    for file in ["public/x", "public/closed/secret", "private/secret"] {
        fs::write(at(file), "x").expect("writing");
    }
    mount.snapshot("open");
    chmod(&at("public/closed"), 0o711).expect("chmod");
    chmod(&at("private"), 0o750).expect("chmod");
    let diff =
        |arguments: &[std::ffi::OsString]| mount.store().as_nobody(&[&args!["diff"], arguments].concat());
    let told = diff(&args![mount.path(), "a"]).expect_ok();
    assert_eq!(
        told.lines().collect::<Vec<_>>(),
        ["M  private/  (mode)", "M  public/closed/  (mode)", "A  public/x  (1 B)"]
    );
    assert_eq!(
        diff(&args![mount.path(), "a", "open"]).expect_ok().lines().count(),
        3,
        "as it could be seen then"
    );
    diff(&args![at("private"), "a"]).expect_refusal(1);
    diff(&args![at("public/closed"), "a"]).expect_refusal(1);
    assert_eq!(lines(mount.store(), &args![mount.path(), "a"]).len(), 5);
}

#[test]
fn an_acl_decides_and_not_the_mode_that_stands_for_it() {
    let mount = Store::encrypted().mount();
    let at = |name: &str| mount.path().join(name);
    open_to_all(mount.path());
    mount.snapshot("a");
    for (dir, list) in [
        ("named", "u:rwx u65534:r-x g:--- m:r-x o:---"),
        // The mode says r-x for the group, which is the mask.
        ("masked", "u:rwx u4242:r-x g:--- m:r-x o:---"),
    ] {
        fs::create_dir(at(dir)).expect("mkdir");
        chown(&at(dir), 0, NOBODY).expect("chown");
        set_xattr(&at(dir), ACCESS, &acl(list), 0).expect("setxattr");
        fs::write(at(dir).join("f"), "x").expect("writing");
    }
    let told = mount.store().as_nobody(&args!["diff", mount.path(), "a"]).expect_ok();
    assert_eq!(told.lines().collect::<Vec<_>>(), ["A  masked/", "A  named/", "A  named/f  (1 B)"]);
    mount.store().as_nobody(&args!["diff", at("named"), "a"]).expect_ok();
    mount.store().as_nobody(&args!["diff", at("masked"), "a"]).expect_refusal(1);
    mount.store().as_nobody(&args!["snapshot", "list", at("masked")]).expect_refusal(1);
}

#[test]
fn what_cannot_be_compared_is_refused_in_one_line() {
    let mount = Store::encrypted().mount();
    mount.snapshot("a");
    fs::write(mount.path().join("f"), "x").expect("writing");
    mount.snapshot("b");
    let store: &Arc<Store> = mount.store();
    assert!(store.refused(1, &args!["diff", mount.path(), "none"]).contains("no snapshot none"));
    assert!(store.refused(2, &args!["diff", mount.path(), "b", "a"]).contains("b is later than a"));
    store.refused(1, &args!["diff", mount.path(), "a", "@lsn:99999999"]);
    store.refused(2, &args!["diff", mount.path(), "@soon"]);
    assert!(store.refused(1, &args!["diff", mount.path().join("never/was"), "a"]).contains("never/was"));
    assert!(store.refused(1, &args!["diff", mount.path().join("never"), "a"]).contains("at either point"));
    assert!(store.refused(1, &args!["diff", mount.path(), "@1w"]).contains("@1w"));
    let line = store.refused(10, &args!["diff", store.home().join("nothing"), "a"]);
    assert!(line.contains("neither in a mount of rewindfs nor a store"), "{line}");
    store.refused(2, &args!["diff", mount.path().join("f"), "a", "--volume", "main"]);
}
