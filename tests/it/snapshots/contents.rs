//! What a snapshot holds: all that was there, and nothing that came after.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::harness::sys::{Mapping, mkdir, open_rw, rename, set_xattr};
use crate::harness::{Rng, Store, Times, Tree, args, eventually, same_tree, sample};

#[test]
fn a_snapshot_is_the_tree_as_it_was_whatever_happens_to_it_later() {
    let mut mount = Store::encrypted().mount();
    let mut rng = Rng::printed();
    let x = mount.path().join("x");
    mkdir(&x, 0o755).expect("mkdir");
    sample::plant(&x, &mut rng).expect("planting");
    let then = Tree::read(&x);
    assert!(then.len() > 25, "the sample has one of everything");
    mount.snapshot("then");
    then.assert_same(&Tree::read(&mount.at("then/x")), Times::All, "at once");
    // Every kind of change to what the snapshot holds.
    let file = open_rw(&x.join("deep/er/file-1500000")).expect("opening");
    file.write_all_at(&rng.bytes(300_000), 700_000).expect("writing");
    file.set_len(900_000).expect("truncating");
    drop(file);
    fs::write(x.join("links/one"), b"another content").expect("writing");
    set_xattr(&x.join("deep"), "user.on a directory", b"no", 0).expect("setxattr");
    fs::rename(x.join("deep/er/est"), x.join("empty/moved")).expect("renaming");
    rename(&x.join("fifo"), &x.join("links"), nix::fcntl::RenameFlags::RENAME_EXCHANGE).expect("exchanging");
    fs::remove_file(x.join("sparse")).expect("removing");
    fs::write(x.join("sparse"), b"no longer").expect("writing");
    then.assert_same(&Tree::read(&mount.at("then/x")), Times::All, "after the changes");
    mount.snapshot("changed");
    let changed = Tree::read(&x);
    fs::remove_dir_all(&x).expect("removing it all");
    for when in ["after the removal", "after a remount"] {
        then.assert_same(&Tree::read(&mount.at("then/x")), Times::All, when);
        changed.assert_same(&Tree::read(&mount.at("changed/x")), Times::All, when);
        assert!(!mount.path().join("x").exists());
        mount = mount.remount();
    }
}

#[test]
fn bytes_that_were_written_but_never_synced_are_in_the_snapshot() {
    let mount = Store::encrypted().mount();
    let mut rng = Rng::printed();
    let content = rng.bytes(48 << 20);
    let file = File::options().create_new(true).read(true).write(true).open(mount.path().join("open"));
    let file = file.expect("creating");
    file.write_all_at(&content, 0).expect("writing");
    mount.snapshot("dirty");
    file.write_all_at(b"later", 1000).expect("writing");
    file.set_len(2000).expect("truncating");
    assert!(fs::read(mount.at("dirty/open")).expect("reading") == content, "48 MiB as they were written");
    // Small dirty files, many of them, are in it as well.
    for i in 0..500 {
        fs::write(mount.path().join(format!("small-{i}")), format!("content {i}")).expect("writing");
    }
    mount.snapshot("many");
    for i in 0..500 {
        let text = fs::read_to_string(mount.at("many").join(format!("small-{i}"))).expect("reading");
        assert_eq!(text, format!("content {i}"));
    }
}

#[test]
fn what_was_stored_through_a_mapping_is_in_the_snapshot_that_the_command_takes() {
    let mount = Store::encrypted().mount();
    fs::write(mount.path().join("f"), vec![b'.'; 100_000]).expect("writing");
    let file = open_rw(&mount.path().join("f")).expect("opening");
    let map = Mapping::shared(&file, 100_000).expect("mmap");
    map.write(50_000, b"stored");
    mount.snapshot("one");
    map.write(50_000, b"later!");
    map.sync().expect("msync");
    assert_eq!(&fs::read(mount.at("one/f")).expect("reading")[50_000..50_006], b"stored");
    assert_eq!(&fs::read(mount.path().join("f")).expect("reading")[50_000..50_006], b"later!");
}

#[test]
fn an_unlinked_open_file_is_in_no_later_snapshot_and_stays_in_earlier_ones() {
    let mount = Store::encrypted().mount();
    fs::write(mount.path().join("f"), b"content").expect("writing");
    mount.snapshot("before");
    let file = open_rw(&mount.path().join("f")).expect("opening");
    fs::remove_file(mount.path().join("f")).expect("removing");
    file.write_all_at(b"CHANGED", 0).expect("writing");
    mount.snapshot("after");
    drop(file);
    assert_eq!(fs::read(mount.at("before/f")).expect("reading"), b"content");
    assert!(!mount.at("after/f").exists());
}

#[test]
fn a_hundred_snapshots_each_keep_their_own_state() {
    let mut mount = Store::encrypted().mount();
    let state = |root: &Path| {
        let mut files: Vec<(String, String)> = fs::read_dir(root)
            .expect("listing")
            .map(|e| e.expect("an entry"))
            .map(|e| (e.file_name().to_string_lossy().into(), fs::read_to_string(e.path()).expect("reading")))
            .collect();
        files.sort();
        files
    };
    let mut rng = Rng::printed();
    let mut states = Vec::new();
    for i in 0..100 {
        for _ in 0..3 {
            let path = mount.path().join(format!("f{}", rng.below(30)));
            match rng.below(4) {
                0 => drop(fs::remove_file(path)),
                1 => drop(fs::rename(path, mount.path().join(format!("f{}", rng.below(30))))),
                _ => fs::write(path, format!("{i} {}", rng.marker())).expect("writing"),
            }
        }
        mount.snapshot(&format!("s{i}"));
        states.push(state(mount.path()));
    }
    mount = mount.remount();
    let check = |mount: &crate::harness::Mount, step: usize, when: &str| {
        for (i, expected) in states.iter().enumerate().step_by(step) {
            assert_eq!(&state(&mount.at(&format!("s{i}"))), expected, "snapshot {i} {when}");
        }
    };
    check(&mount, 1, "after the remount");
    let odd: Vec<_> = (0..100).filter(|i| i % 2 == 1).map(|i| format!("s{i}").into()).collect();
    mount.store().ok(&[&args!["snapshot", "delete", mount.path()], &odd[..]].concat());
    check(&mount, 2, "after every second one was deleted");
    assert_eq!(mount.snapshots().len(), 50);
    mount = mount.remount();
    check(&mount, 2, "after another remount");
    assert_eq!(&state(mount.path()), states.last().expect("a hundred"));
}

#[test]
fn a_renamed_directory_finds_its_past_under_both_names() {
    let mount = Store::encrypted().mount();
    let dir = mount.path();
    fs::create_dir_all(dir.join("old/sub")).expect("mkdir");
    fs::write(dir.join("old/sub/f"), b"then").expect("writing");
    mount.snapshot("before");
    fs::rename(dir.join("old"), dir.join("new")).expect("renaming");
    fs::write(dir.join("new/sub/f"), b"now").expect("writing");
    mount.snapshot("after");
    assert_eq!(fs::read(mount.at("before/old/sub/f")).expect("reading"), b"then");
    assert!(!mount.at("before/new").exists() && !mount.at("after/old").exists());
    assert_eq!(fs::read(mount.at("after/new/sub/f")).expect("reading"), b"now");
    // The same directory under its new name, as it was.
    assert_eq!(fs::read(dir.join("new/.snapshots/before/sub/f")).expect("reading"), b"then");
    // Another directory of the old name is not the old directory.
    fs::create_dir(dir.join("old")).expect("mkdir");
    assert!(!dir.join("old/.snapshots/after").exists());
    // A file that moved between directories.
    fs::create_dir(dir.join("other")).expect("mkdir");
    fs::rename(dir.join("new/sub/f"), dir.join("other/g")).expect("renaming");
    mount.snapshot("moved");
    assert_eq!(fs::read(mount.at("moved/other/g")).expect("reading"), b"now");
    assert!(!mount.at("moved/new/sub/f").exists());
    assert_eq!(fs::read(mount.at("before/old/sub/f")).expect("reading"), b"then");
}

#[test]
fn a_deleted_directory_is_found_whole_in_its_snapshot() {
    let mut mount = Store::encrypted().mount();
    let dir = mount.path().join("d");
    for sub in 0..20 {
        fs::create_dir_all(dir.join(format!("{sub}"))).expect("mkdir");
        for i in 0..20 {
            fs::write(dir.join(format!("{sub}/{i}")), format!("{sub} {i}")).expect("writing");
        }
    }
    let whole = Tree::read(&dir);
    mount.snapshot("whole");
    fs::remove_dir_all(&dir).expect("removing");
    // Others take the names.
    fs::create_dir(&dir).expect("mkdir");
    fs::write(dir.join("7"), b"a file where a directory was").expect("writing");
    for when in ["at once", "after a remount"] {
        whole.assert_same(&Tree::read(&mount.at("whole/d")), Times::All, when);
        mount = mount.remount();
    }
}

#[test]
fn a_remount_changes_nothing_in_the_live_tree_or_in_snapshots() {
    let mut mount = Store::encrypted().mount();
    sample::plant(mount.path(), &mut Rng::printed()).expect("planting");
    mount.snapshot("one");
    same_tree(mount.path(), &mount.at("one"));
    fs::write(mount.path().join("more"), b"live only").expect("writing");
    let (live, one) = (Tree::read(mount.path()), Tree::read(&mount.at("one")));
    let list = mount.snapshots();
    for _ in 0..3 {
        mount = mount.remount();
        live.assert_same(&Tree::read(mount.path()), Times::All, "live");
        one.assert_same(&Tree::read(&mount.at("one")), Times::All, "snapshot");
        assert_eq!(list, mount.snapshots());
    }
}

#[test]
fn deleting_a_snapshot_frees_what_only_it_kept() {
    let store = Store::encrypted();
    // Without the continuous window, which would keep the bytes for its own sake.
    fs::write(store.path().join("config.toml"), "window_seconds = 0\n").expect("configuring");
    let mount = store.mount();
    let mut rng = Rng::printed();
    let path = mount.path().join("f");
    let fill = |bytes: Vec<u8>| {
        fs::write(&path, bytes).expect("writing");
        File::open(&path).and_then(|f| f.sync_all()).expect("syncing");
    };
    let big = 8 << 20;
    fill(rng.bytes(big));
    mount.snapshot("keeps");
    fill(rng.bytes(big));
    eventually("8 MiB that only the snapshot holds to be counted as history", || {
        mount.status_number("/bytes/history") >= big as u64
    });
    assert!(mount.status_number("/bytes/live") >= big as u64);
    let only = mount.snapshots()[0].1["bytes_only"].as_u64();
    assert!(only.is_some_and(|bytes| bytes >= big as u64), "bytes_only is {only:?}");
    mount.store().ok(&args!["snapshot", "delete", mount.path(), "keeps"]);
    eventually("the deletion to free them", || mount.status_number("/bytes/history") < 1 << 20);
    assert_eq!(mount.status_number("/snapshots"), 0);
}

#[test]
fn what_deleting_would_free_is_what_nothing_else_names() {
    let store = Store::encrypted();
    fs::write(store.path().join("config.toml"), "window_seconds = 0\n").expect("configuring");
    let mount = store.mount();
    let mut rng = Rng::printed();
    let size = 8u64 << 20;
    let [copied, alone] = ["copied", "alone"].map(|name| mount.path().join(name));
    for path in [&copied, &alone] {
        fs::write(path, rng.bytes(size as usize)).expect("writing");
        File::open(path).and_then(|f| f.sync_all()).expect("syncing");
    }
    mount.snapshot("one");
    fs::write(mount.path().join("another"), "file").expect("writing");
    mount.snapshot("two");
    fs::copy(&copied, mount.path().join("copy")).expect("copying");
    [&copied, &alone].into_iter().for_each(|path| fs::remove_file(path).expect("removing"));
    File::open(mount.path()).and_then(|dir| dir.sync_all()).expect("syncing");
    let told = |names: &[&str], options: &[&str]| {
        let args = args!["snapshot", "delete", mount.path()].into_iter();
        let args: Vec<OsString> = args.chain(options.iter().chain(names).map(OsString::from)).collect();
        let told = mount.store().json(&args);
        let number = |key: &str| told[0][key].as_u64().expect("a number");
        (number("bytes_freed"), number("data_bytes"))
    };
    eventually("both files to be history", || told(&["one", "two"], &["--dry-run"]).1 >= 2 * size);
    for name in ["one", "two"] {
        assert!(told(&[name], &["--dry-run"]).0 < 1 << 20, "the other has it as well");
    }
    let (freed, _) = told(&["one", "two"], &["--dry-run"]);
    assert!(freed.abs_diff(size) < 1 << 20, "{freed} bytes, of which the copy keeps none");
    assert_eq!(told(&["one", "two"], &[]).0, freed);
    eventually("what was deleted to be forgotten", || mount.status_number("/bytes/history") < 1 << 20);
    let gc = mount.store().json(&args!["gc", mount.path()]);
    let given = gc[0]["freed_bytes"].as_u64().expect("a number");
    assert!(given.abs_diff(freed) < 1 << 20, "{given} bytes were given back, and {freed} told");
}
