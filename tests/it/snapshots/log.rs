//! `rewindfs log` on real mounts.

use std::fs::{self, File};
use std::path::Path;

use serde_json::Value;

use crate::harness::sys::{NOBODY, as_user, chmod, raw_name};
use crate::harness::{Mount, Store, args};

fn write(path: &Path, content: &str) {
    fs::write(path, content).and_then(|()| File::open(path)?.sync_all()).expect("writing");
}

/// Size and snapshots of each version, newest first.
fn log(mount: &Mount, file: impl AsRef<Path>) -> Vec<(u64, String)> {
    let versions = mount.store().json(&args!["log", mount.path().join(file)]);
    let told = |version: &Value| {
        let names = version["snapshots"].as_array().expect("a list").iter();
        let names: Vec<&str> = names.filter_map(Value::as_str).collect();
        (version["size"].as_u64().expect("a size"), names.join(","))
    };
    versions.iter().map(told).collect()
}

#[test]
fn each_version_is_told_with_the_snapshots_that_show_it_and_can_be_read() {
    let mount = Store::encrypted().mount();
    let file = mount.path().join("f");
    for (n, name) in ["one", "two", "three"].iter().enumerate() {
        write(&mount.path().join("f.tmp"), &"x".repeat(n + 1));
        fs::rename(mount.path().join("f.tmp"), &file).expect("rename");
        mount.snapshot(name);
    }
    mount.snapshot("again");
    chmod(&file, 0o600).expect("chmod");
    let expected = [(3, "again,three".to_owned()), (2, "two".to_owned()), (1, "one".to_owned())];
    assert_eq!(log(&mount, "f")[..3], expected);
    for version in mount.store().json(&args!["log", file]) {
        let point = format!("@lsn:{}", version["lsn"]);
        let path = mount.at(&point).join(version["path"].as_str().expect("a path"));
        assert_eq!(fs::metadata(path).expect("looking").len(), version["size"].as_u64().expect("a size"));
    }
    let table = mount.store().ok(&args!["log", file, "--limit", "2"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(
        table.lines().nth(1).is_some_and(|line| line.contains(" root ") && line.ends_with("again, three"))
    );
    fs::remove_file(&file).expect("rm");
    assert_eq!(log(&mount, "f")[..3], expected, "a file that is gone");
    assert_eq!(log(&mount, ".snapshots/two/f")[..3], expected, "in a snapshot, the same file");
}

#[test]
fn a_name_is_followed_through_renames_and_into_directories_that_are_gone() {
    let mount = Store::encrypted().mount();
    let at = |name: &str| mount.path().join(name);
    fs::create_dir(at("drafts")).expect("mkdir");
    write(&at("drafts/paper"), "a");
    mount.snapshot("draft");
    fs::rename(at("drafts/paper"), at("paper")).expect("rename");
    fs::remove_dir(at("drafts")).expect("rmdir");
    write(&at("paper"), "abc");
    mount.snapshot("final");
    let told = log(&mount, "paper");
    assert_eq!((told[0].clone(), told.len()), ((3, "final".to_owned()), told.len()));
    assert!(told.contains(&(1, "draft".to_owned())), "{told:?}");
    let table = mount.store().ok(&args!["log", at("paper")]);
    assert!(table.lines().any(|line| line.ends_with("draft  (as drafts/paper)")), "{table}");
    assert!(log(&mount, "drafts/paper").contains(&(1, "draft".to_owned())));
    let odd = mount.path().join(raw_name(b"o\xffdd"));
    write(&odd, "abcd");
    let odd = mount.store().json(&args!["log", odd]);
    assert_eq!((&odd[0]["path"]["hex"], &odd[0]["kind"]), (&Value::from("6fff6464"), &Value::from("file")));
}

#[test]
fn who_wrote_a_version_is_told_to_those_who_may_read_it() {
    let mount = Store::encrypted().mount();
    let file = mount.path().join("f");
    write(&file, "by root");
    chmod(mount.path(), 0o755).expect("chmod");
    chmod(&file, 0o666).expect("chmod");
    as_user(NOBODY, NOBODY, || write(&file, "by nobody"));
    chmod(&file, 0o600).expect("chmod");
    write(&file, "root's secret");
    let authors: Vec<Value> =
        mount.store().json(&args!["log", file]).iter().map(|v| v["author"].clone()).collect();
    assert_eq!(authors.first(), Some(&Value::from(0)));
    assert!(authors.contains(&Value::from(NOBODY)), "{authors:?}");
    let as_nobody = || mount.store().as_nobody(&args!["log", file, "--json"]);
    let told = as_nobody().expect_ok();
    assert!(told.contains("\"size\":9") && !told.contains("\"size\":13"), "{told}");
    chmod(mount.path(), 0o700).expect("chmod");
    as_nobody().expect_refusal(1);
}

#[test]
fn what_has_no_versions_is_refused_in_one_line() {
    let mount = Store::encrypted().mount();
    let store = mount.store();
    fs::create_dir(mount.path().join("d")).expect("mkdir");
    assert!(store.refused(2, &args!["log", mount.path().join("d")]).contains("is a directory"));
    assert!(store.refused(1, &args!["log", mount.path().join("d/never")]).contains("never"));
    store.refused(1, &args!["log", mount.path().join(".snapshots/none/f")]);
    store.refused(10, &args!["log", store.home().join("nothing")]);
    store.refused(10, &args!["log", store.path().join("config.toml")]);
}

/// Whether something has or had a name in a directory that somebody may not search, or might not then, is the same to
/// that user as if it never had been.
#[test]
fn a_user_learns_of_no_name_where_he_could_not_look() {
    let mount = Store::encrypted().mount();
    let sub = mount.path().join("sub");
    chmod(mount.path(), 0o755).expect("chmod");
    fs::create_dir(&sub).expect("mkdir");
    chmod(&sub, 0o700).expect("chmod");
    write(&sub.join("file"), "secret");
    fs::create_dir(sub.join("dir")).expect("mkdir");
    mount.snapshot("closed");
    fs::remove_file(sub.join("file")).and_then(|()| fs::remove_dir(sub.join("dir"))).expect("removing");
    let look = |command: &str, name: &str| {
        let mut args = args![command, mount.path().join(name)].to_vec();
        args.extend((command == "diff").then(|| "closed".into()));
        // Some messages say all of the path.
        let line = mount.store().as_nobody(&args).expect_refusal(1);
        line.replace("sub/", "").replace(name.trim_start_matches("sub/"), "NAME")
    };
    for mode in [0o700, 0o755] {
        chmod(&sub, mode).expect("chmod");
        for command in ["log", "diff"] {
            let never = look(command, "sub/none");
            assert_eq!(look(command, "sub/file"), never, "{command}, {mode:o}");
            assert_eq!(look(command, "sub/dir"), never, "{command}, {mode:o}");
        }
    }
    // In the root, and snapshots in which it could not be reached.
    write(&mount.path().join("rooted"), "x");
    chmod(&mount.path().join("rooted"), 0o644).expect("chmod");
    chmod(mount.path(), 0o700).expect("chmod");
    mount.snapshot("rootless");
    chmod(mount.path(), 0o755).expect("chmod");
    mount.snapshot("open");
    let told = mount.store().as_nobody(&args!["log", mount.path().join("rooted"), "--json"]).expect_ok();
    assert!(told.contains("\"open\"") && !told.contains("rootless"), "{told}");
    fs::remove_file(mount.path().join("rooted")).expect("removing");
    let look = |name: &str| {
        let args = args!["diff", mount.path().join(name), "rootless"];
        mount.store().as_nobody(&args).expect_refusal(1).replace(name, "NAME")
    };
    assert_eq!(look("rooted"), look("nowhere"));
}
