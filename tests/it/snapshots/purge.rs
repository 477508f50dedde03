//! `rewindfs purge` on real mounts: nothing of the file is left, in no point, no cache and no file of the store.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::sys::{NOBODY, chown};
use crate::harness::{Mount, Rng, Store, args, eventually, within};

fn purge(mount: &Mount, below: &str, more: &[OsString]) -> Value {
    let first = args!["purge", mount.path().join(below), "--all-history"];
    let mut reports = mount.store().json(&[&first, more].concat());
    assert_eq!(reports.len(), 1, "one report");
    reports.remove(0)
}

fn refused(mount: &Mount, code: i32, below: &str) -> String {
    mount.store().refused(code, &args!["purge", mount.path().join(below), "--all-history"])
}

fn save(path: &Path, content: &[u8]) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, content).and_then(|()| File::open(&temporary)?.sync_all()).expect("writing");
    fs::rename(&temporary, path).expect("renaming");
}

/// The files below a directory that hold `needle`.
fn holding(dir: &Path, needle: &str) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(path) = todo.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => todo.extend(entries.filter_map(|entry| Some(entry.ok()?.path()))),
            Err(_) => {
                let bytes = fs::read(&path).unwrap_or_default();
                found.extend(bytes.windows(needle.len()).any(|w| w == needle.as_bytes()).then_some(path));
            }
        }
    }
    found
}

/// Random bytes, so that no codec hides the marker in them.
fn marked(rng: &mut Rng, marker: &str, len: usize) -> Vec<u8> {
    [rng.bytes(len), marker.as_bytes().to_vec(), rng.bytes(len)].concat()
}

fn is_gone(path: &Path) {
    let gone = |error: std::io::Error| error.kind() == ErrorKind::NotFound;
    assert!(fs::symlink_metadata(path).is_err_and(gone), "{} is still there", path.display());
    assert!(File::open(path).is_err_and(gone), "{} can still be opened", path.display());
}

fn fsck(store: &Arc<Store>) {
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn a_purged_file_is_gone_from_every_point_every_cache_and_the_store() {
    let store = Store::init(&args!["--no-encryption"]);
    let mount = store.mount();
    let mut rng = Rng::printed();
    let (content, name) = (rng.marker(), rng.marker());
    let at = |below: &str| mount.path().join(below);
    fs::create_dir_all(at("d/e")).expect("mkdir");
    let other = rng.bytes(700_000);
    fs::write(at("d/other"), &other).expect("writing");
    let path = format!("d/{name}");
    save(&at(&path), &marked(&mut rng, &content, 300_000));
    mount.snapshot("one");
    File::options()
        .write(true)
        .open(at(&path))
        .and_then(|file| {
            file.write_all_at(format!("small {content}").as_bytes(), 5).and_then(|()| file.sync_all())
        })
        .expect("writing");
    fs::hard_link(at(&path), at("d/e/link")).expect("linking");
    let lsn = mount.status_number("/lsn");
    mount.snapshot("two");
    save(&at(&path), &marked(&mut rng, &content, 200_000));
    fs::rename(at(&path), at("d/e/renamed")).expect("renaming");
    mount.snapshot("three");
    fs::copy(at("d/other"), at("d/copy")).expect("copying");
    let moment = format!("@lsn:{lsn}");
    // What the kernel has seen of the past, and what a program has open there.
    let shown = [
        format!("one/{path}"),
        format!("two/{path}"),
        "two/d/e/link".to_owned(),
        "three/d/e/renamed".to_owned(),
        "three/d/e/link".to_owned(),
        format!("{moment}/{path}"),
        format!("{moment}/d/e/link"),
    ];
    for path in &shown {
        assert!(fs::read(mount.at(path)).is_ok_and(|bytes| bytes.len() > 100_000), "{path}");
    }
    let open = File::open(mount.at(&format!("two/{path}"))).expect("opening");
    let mut bytes = [0; 4096];
    open.read_exact_at(&mut bytes, 0).expect("reading");
    assert!(holding(&store.path(), &content).len() > 1, "the search finds it in journal and packs");
    assert!(!holding(&store.path(), &name).is_empty(), "and its name");
    let dry = purge(&mount, "d/e/renamed", &args!["--dry-run"]);
    assert!(fs::read(mount.at(&shown[0])).is_ok() && at("d/e/renamed").exists());
    let done = purge(&mount, "d/e/renamed", &[]);
    for key in ["names", "files", "versions", "snapshots", "bytes", "shared_bytes"] {
        assert_eq!(dry[key], done[key], "{key}");
    }
    assert_eq!((&done["bytes_go_when"], &done["resumed"]), (&json!([]), &json!(false)), "{done}");
    assert_eq!(done["snapshots"], json!(["one", "two", "three"]));
    let names: Vec<&str> =
        done["names"].as_array().expect("names").iter().filter_map(|n| n["path"].as_str()).collect();
    for below in [path.as_str(), "d/e/link", "d/e/renamed"] {
        assert!(names.contains(&below), "{names:?}");
    }
    let again = |mount: &Mount| {
        for path in shown.iter() {
            is_gone(&mount.at(path));
        }
        for below in [path.as_str(), "d/e/link", "d/e/renamed"] {
            is_gone(&mount.path().join(below));
        }
        for point in ["one", "two", "three", moment.as_str()] {
            assert_eq!(fs::read(mount.at(point).join("d/other")).expect("reading"), other);
        }
        assert_eq!(fs::read(mount.path().join("d/copy")).expect("reading"), other);
    };
    again(&mount);
    let read = open.read_at(&mut bytes, 0);
    assert!(read.is_err(), "an open file of the past gives {read:?}");
    for needle in [&content, &name] {
        assert_eq!(holding(&store.path(), needle), Vec::<PathBuf>::new());
    }
    drop(open);
    fsck(&store);
    assert!(refused(&mount, 1, "d/e/renamed").contains("nothing of that name is known"));
    let mount = mount.remount();
    again(&mount);
    for needle in [&content, &name] {
        assert_eq!(holding(&store.path(), needle), Vec::<PathBuf>::new());
    }
    fsck(&mount.umount());
}

#[test]
fn a_file_that_is_gone_or_is_no_regular_file_is_purged_too() {
    let store = Store::init(&args!["--no-encryption"]);
    let mount = store.mount();
    let mut rng = Rng::printed();
    let (content, target) = (rng.marker(), rng.marker());
    fs::create_dir(mount.path().join("gone")).expect("mkdir");
    fs::write(mount.path().join("gone/f"), marked(&mut rng, &content, 50_000)).expect("writing");
    std::os::unix::fs::symlink(&target, mount.path().join("link")).expect("linking");
    mount.snapshot("s");
    fs::remove_dir_all(mount.path().join("gone")).expect("removing");
    assert!(fs::read(mount.at("s/gone/f")).is_ok() && fs::read_link(mount.at("s/link")).is_ok());
    purge(&mount, "gone/f", &[]);
    purge(&mount, "link", &[]);
    is_gone(&mount.at("s/gone/f"));
    assert!(mount.at("s/gone").is_dir(), "its directory is shown as it was");
    is_gone(&mount.at("s/link"));
    for needle in [&content, &target] {
        assert_eq!(holding(&store.path(), needle), Vec::<PathBuf>::new());
    }
    fsck(&mount.umount());
}

#[test]
fn a_purge_through_a_link_is_refused() {
    let mount = Store::encrypted().mount();
    let at = |path: &str| mount.path().join(path);
    fs::create_dir(at("cur")).and_then(|()| fs::create_dir(at("next"))).expect("mkdir");
    fs::write(at("cur/f"), "before the link").expect("writing");
    mount.snapshot("s");
    fs::rename(at("cur"), at("old")).expect("renaming");
    std::os::unix::fs::symlink("next", at("cur")).expect("linking");
    fs::write(at("next/f"), "behind the link").expect("writing");
    for path in ["cur/f", "cur/never", "cur/../cur/f"] {
        let line = refused(&mount, 2, path);
        assert!(line.contains("cur is a symbolic link; purge "), "{line}");
    }
    // What had the path, and what the link leads to.
    fs::rename(at("cur"), at("link")).expect("renaming");
    purge(&mount, "cur/f", &[]);
    is_gone(&mount.at("s/cur/f"));
    is_gone(&at("old/f"));
    assert_eq!(fs::read_to_string(at("link/f")).expect("reading"), "behind the link");
    // A link outside of the mount says nothing of what lies in it.
    let outside = mount.store().home().join("outside");
    std::os::unix::fs::symlink(mount.path(), &outside).expect("linking");
    mount.store().ok(&args!["purge", outside.join("next/f"), "--all-history"]);
    is_gone(&at("next/f"));
    fsck(&mount.umount());
}

#[test]
fn names_that_are_no_text_are_told_as_they_are() {
    use std::os::unix::ffi::OsStrExt as _;
    let mount = Store::encrypted().mount();
    for name in [&b"b\xff"[..], b"b\xfe", b"new\nline"] {
        fs::write(mount.path().join(std::ffi::OsStr::from_bytes(name)), "x").expect("writing");
    }
    let told = |name: &[u8], dry: &str| {
        let path = mount.path().join(std::ffi::OsStr::from_bytes(name));
        mount.store().json(&args!["purge", path, "--all-history", dry])[0]["names"][0]["path"].clone()
    };
    assert_eq!(told(b"b\xff", "--dry-run"), json!({ "hex": "62ff" }));
    assert_eq!(told(b"b\xfe", "--dry-run"), json!({ "hex": "62fe" }));
    let path = mount.path().join("new\nline");
    let text = mount.store().ok(&args!["purge", path, "--all-history"]);
    assert!(text.contains("  new\\nline ("), "{text}");
}

#[test]
fn what_must_not_be_purged_is_refused_with_the_reason_and_stays() {
    let mount = Store::encrypted().mount();
    let file = mount.path().join("f");
    fs::write(&file, "then").expect("writing");
    fs::create_dir(mount.path().join("dir")).expect("mkdir");
    mount.store().ok(&args!["snapshot", "create", mount.path(), "kept", "--hold"]);
    fs::write(&file, "now!").expect("writing");
    let stays = || {
        assert_eq!(fs::read_to_string(&file).expect("reading"), "now!");
        assert_eq!(fs::read_to_string(mount.at("kept/f")).expect("reading"), "then");
    };
    let usage = mount.store().refused(2, &args!["purge", file]);
    assert!(usage.contains("--all-history"), "{usage}");
    assert!(refused(&mount, 1, "f").contains("snapshot kept is held"));
    let dry = mount.store().cli(&args!["purge", file, "--all-history", "--dry-run"]);
    assert_eq!(dry.code, 1, "{dry:?}");
    assert!(
        dry.stdout.contains("would be refused: snapshot kept is held (release it first), and shows it"),
        "{dry:?}"
    );
    stays();
    assert!(refused(&mount, 2, "dir").contains("is a directory"));
    assert!(refused(&mount, 2, "").contains("is a directory"));
    assert!(refused(&mount, 2, ".snapshots/kept/f").contains("lies in a snapshot"));
    assert!(refused(&mount, 1, "never").contains("nothing of that name"));
    mount.store().refused(2, &args!["purge", "/proc/self/none", "--all-history"]);
    chown(mount.path(), NOBODY, NOBODY).expect("chown");
    let run = mount.store().as_nobody(&args!["purge", file, "--all-history"]);
    assert!(run.expect_refusal(1).contains("permission denied"));
    mount.store().ok(&args!["snapshot", "release", mount.path(), "kept"]);
    mount.store().ok(&args!["policy", "set", mount.path(), "immutable=1h"]);
    let line = refused(&mount, 1, "f");
    assert!(line.contains("kept is immutable until"), "{line}");
    stays();
    fsck(&mount.umount());
    // As somebody who may, but has it open.
    let mount = Store::encrypted().mount();
    let file = mount.path().join("f");
    fs::write(&file, "open").expect("writing");
    let open = File::open(&file).expect("opening");
    assert!(refused(&mount, 1, "f").contains("has f open"));
    assert_eq!(fs::read_to_string(&file).expect("reading"), "open");
    drop(open);
    purge(&mount, "f", &[]);
    is_gone(&file);
    // A mount that may not be written to.
    fs::write(&file, "again").expect("writing");
    let store = mount.umount();
    let mount = store.mount_with("mnt", &args!["--read-only"]);
    assert!(refused(&mount, 1, "f").contains("read-only"));
    assert_eq!(fs::read_to_string(mount.path().join("f")).expect("reading"), "again");
}

#[test]
fn a_purge_whose_server_is_killed_is_carried_through_by_the_next() {
    let store = Store::init(&args!["--no-encryption"]);
    let mount = store.mount();
    let mut rng = Rng::printed();
    let content = rng.marker();
    let path = mount.path().join("f");
    for i in 0..60 {
        fs::write(&path, marked(&mut rng, &content, 20_000 + i)).expect("writing");
        mount.snapshot(&format!("s{i}"));
    }
    let mut killed = false;
    // A purge that was done before it could be killed has done what is looked at below, too.
    let mut command = store.command(&args!["purge", path, "--all-history"]);
    let mut child = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("purge");
    let server = mount.server();
    if within(std::time::Duration::from_secs(30), || !path.exists()) {
        server.kill();
        killed = true;
    }
    let _ = child.wait();
    assert!(killed, "its name never went");
    eventually("the next server to be done", || holding(&store.path(), &content).is_empty());
    for i in 0..60 {
        is_gone(&mount.at(&format!("s{i}/f")));
    }
    fsck(&mount.umount());
}
