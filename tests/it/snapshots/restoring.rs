//! `rewindfs restore`: in place on a running mount, as a copy within it, and written out.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use super::restore::prepared;
use crate::harness::mounting::REWINDFS;
use crate::harness::sys::{Mapping, NOBODY, chmod, chown, mkdir, open_rw};
use crate::harness::{Mount, Rng, Store, Times, Tree, args, eventually, run, same_tree, setting, tool};

fn restore(mount: &Mount, below: &str, more: &[std::ffi::OsString]) -> Value {
    let first = args!["restore", mount.path().join(below), "--at", "good"];
    let mut reports = mount.store().json(&[&first, more].concat());
    assert_eq!(reports.len(), 1, "one report");
    reports.remove(0)
}

fn number(report: &Value, key: &str) -> u64 {
    report.get(key).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {key}: {report}"))
}

fn fsck(store: &Arc<Store>) {
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn a_deleted_tree_is_restored_whole_also_with_its_parents() {
    let (mount, good) = prepared();
    let x = mount.path().join("x");
    fs::remove_dir_all(&x).expect("removing");
    let would = restore(&mount, "x", &args!["--dry-run"]);
    assert!(!x.exists(), "a dry run changes nothing");
    let done = restore(&mount, "x", &[]);
    assert_eq!(number(&done, "brought_back"), good.len() as u64);
    assert_eq!((number(&would, "brought_back"), number(&would, "bytes")), {
        (number(&done, "brought_back"), number(&done, "bytes"))
    });
    good.assert_same(&Tree::read(&x), Times::All, "restored");
    same_tree(&mount.at("good/x"), &x);
    fs::remove_dir_all(&x).expect("removing again");
    restore(&mount, "x/deep/er/est", &[]);
    same_tree(&mount.at("good/x/deep/er/est"), &x.join("deep/er/est"));
    assert_eq!(fs::metadata(x.join("deep/er")).expect("stat").permissions().mode() & 0o7777, 0o700);
    assert!(!x.join("setuid").exists() && !x.join("deep/er/file-0").exists(), "only what was asked for");
    let before = done.get("snapshot").and_then(Value::as_str).expect("a snapshot of before");
    assert!(mount.snapshot_names().contains(before) && !mount.at(before).join("x").exists());
    let mount = mount.remount();
    same_tree(&mount.at("good/x/deep/er/est"), &mount.path().join("x/deep/er/est"));
    fsck(&mount.umount());
}

#[test]
fn a_changed_tree_is_what_it_was_and_programs_keep_what_they_have_open() {
    let (mount, good) = prepared();
    let x = mount.path().join("x");
    let path = x.join("deep/er/file-1500000");
    let file = open_rw(&path).expect("opening");
    let map = Mapping::shared(&file, 100_000).expect("mapping");
    map.write(50_000, b"mapped");
    file.write_all_at(b"written", 200_000).expect("writing");
    fs::remove_file(x.join("links/one")).expect("removing");
    fs::write(x.join("deep/extra"), b"came since").expect("writing");
    fs::create_dir_all(x.join("new/tree/of")).expect("mkdir");
    fs::write(x.join("new/tree/of/files"), b"came since").expect("writing");
    chmod(&x.join("empty"), 0o700).expect("chmod");
    fs::rename(x.join("relative"), x.join("moved")).expect("renaming");
    // What the kernel knows of all this must be gone.
    let _ = Tree::read(&x);
    let kept = fs::metadata(x.join("deep/er/file-65537")).expect("stat").ino();
    let report = restore(&mount, "x", &[]);
    good.assert_same(&Tree::read(&x), Times::All, "restored in place");
    assert_eq!(fs::metadata(x.join("deep/er/file-65537")).expect("stat").ino(), kept, "what has not changed");
    assert_eq!(number(&report, "removed"), 6);
    // The old file lives on for those who have it.
    assert_eq!(map.read(50_000, 6), b"mapped");
    map.write(60_000, b"later");
    map.sync().expect("msync");
    let mut bytes = [0; 7];
    file.read_exact_at(&mut bytes, 200_000).expect("reading");
    assert_eq!((&bytes, file.metadata().expect("fstat").nlink()), (b"written", 0));
    let before = report.get("snapshot").and_then(Value::as_str).expect("a snapshot of before");
    let then = fs::read(mount.at(before).join("x/deep/er/file-1500000")).expect("reading the past");
    assert_eq!((&then[50_000..50_006], &then[200_000..200_007]), (&b"mapped"[..], &b"written"[..]));
    assert_eq!(fs::read(mount.at(before).join("x/new/tree/of/files")).expect("reading"), b"came since");
    drop((map, file));
    let again = restore(&mount, "x", &[]);
    assert_eq!(again.get("snapshot"), Some(&Value::Null), "nothing to be done: {again}");
    fsck(&mount.umount());
}

#[test]
fn the_whole_volume_and_single_files_are_restored_in_place() {
    let (mount, good) = prepared();
    let x = mount.path().join("x");
    fs::write(x.join("deep/er/file-4096"), b"other").expect("writing");
    fs::write(mount.path().join("stays"), b"came since").expect("writing");
    restore(&mount, "x/deep/er/file-4096", &[]);
    same_tree(&mount.at("good/x/deep/er/file-4096"), &x.join("deep/er/file-4096"));
    assert!(mount.path().join("stays").exists());
    fs::remove_dir_all(&x).expect("removing");
    restore(&mount, "", &[]);
    good.assert_same(&Tree::read(&x), Times::All, "the volume");
    assert!(!mount.path().join("stays").exists());
    fs::write(x.with_file_name("file"), b"1").expect("writing");
    let refused = |code, below: &str, more: &[std::ffi::OsString]| {
        let first = args!["restore", mount.path().join(below), "--at", "good"];
        mount.store().refused(code, &[&first, more].concat())
    };
    assert!(refused(1, "never/was", &[]).contains("there was no never"));
    assert!(refused(1, "file/below", &[]).contains("there was no file"));
    refused(2, ".snapshots/good/x", &[]);
    mount.store().refused(1, &args!["restore", x, "--at", "none"]);
    mount.store().refused(2, &args!["restore", mount.store().path(), "--at", "good"]);
}

#[test]
fn a_copy_within_the_volume_costs_no_bytes() {
    let (mount, good) = prepared();
    let copy = mount.path().join("copy");
    fs::remove_dir_all(mount.path().join("x")).expect("removing");
    let packs = mount.status_number("/bytes/packs");
    restore(&mount, "x", &args!["--to", copy]);
    good.assert_same(&Tree::read(&copy), Times::All, "a copy");
    // What was synced in small pieces may become chunks meanwhile.
    let grown = mount.status_number("/bytes/packs") - packs;
    assert!(grown < 100_000, "{grown} bytes for a tree of 2 MB");
    let again = args!["restore", mount.path().join("x"), "--at", "good", "--to", copy];
    assert!(mount.store().refused(1, &again).contains("exists already"));
    fsck(&mount.umount());
}

#[test]
fn a_tree_is_written_out_with_and_without_a_mount_and_again_after_an_interruption() {
    let (mount, good) = prepared();
    let (out, alone) = (mount.store().home().join("out"), mount.store().home().join("alone"));
    let report = restore(&mount, "x", &args!["--to", out]);
    assert_eq!(number(&report, "brought_back"), good.len() as u64);
    good.assert_same(&Tree::read(&out), Times::All, "out of a mount");
    let file = mount.store().home().join("one");
    restore(&mount, "x/deep/er/file-4097", &args!["--to", file]);
    assert_eq!(fs::read(&file).expect("reading").len(), 4097);
    let refused = args!["restore", mount.path().join("x"), "--at", "good", "--to", out];
    assert!(mount.store().refused(1, &refused).contains("not empty"));
    let whole = Tree::read(mount.path());
    let server_runs = args!["restore", mount.store().path(), "--at", "good", "--to", alone];
    mount.store().ok(&server_runs);
    whole.assert_same(&Tree::read(&alone), Times::All, "by a server, named by its store");
    fs::remove_dir_all(&alone).expect("removing");
    let store = mount.umount();
    store.ok(&args!["restore", store.path(), "--at", "good", "--to", alone]);
    whole.assert_same(&Tree::read(&alone), Times::All, "without a mount");
    // As an interruption leaves it: some of it missing, something half written aside.
    let aside = alone.join(".rewindfs-restore");
    fs::create_dir(&aside).expect("mkdir");
    fs::write(aside.join("part"), b"half").expect("writing");
    let node = fs::read_to_string(store.path().join("node")).expect("the node id");
    let lsn = number(&report, "lsn");
    let from = serde_json::json!(
        {"node": node.trim(), "volume": "main", "path": ".", "at": "good", "lsn": lsn}
    );
    fs::write(aside.join("from.json"), from.to_string()).expect("writing");
    fs::remove_dir_all(alone.join("x/deep/er")).expect("removing");
    fs::write(alone.join("x/setuid"), b"changed\n").expect("writing");
    let another = format!("@lsn:{}", lsn - 1);
    let other = store.cli(&args!["restore", store.path(), "--at", another, "--to", alone]);
    let line = other.expect_refusal(1);
    assert!(line.contains("unfinished restore"), "{line}");
    let again = store.json(&args!["restore", store.path(), "--at", "good", "--to", alone]);
    assert!(number(&again[0], "skipped") >= 1, "{again:?}");
    whole.assert_same(&Tree::read(&alone), Times::All, "after an interruption");
}

/// What is sealed in the store must not lie beside it in plain text.
#[test]
fn nothing_is_written_out_into_the_store() {
    let (mount, _) = prepared();
    let home = mount.store().home().to_owned();
    std::os::unix::fs::symlink(mount.store().path(), home.join("link")).expect("symlink");
    let name = mount.store().path().file_name().expect("a name").to_owned();
    let places = [
        mount.store().path().join("out"),
        mount.store().path().join("packs/out"),
        home.join("link/out"),
        home.join("link"),
        home.join("link/packs/../out"),
        home.join("mnt").join("..").join(&name).join("out"),
    ];
    let refused = |store: &Store, from: &Path, to: &Path| {
        let line = store.refused(1, &args!["restore", from, "--at", "good", "--to", to]);
        assert!(line.contains("lies within the store"), "{line}");
        assert!(!store.path().join("out").exists() && !store.path().join("packs/out").exists());
    };
    for place in &places {
        refused(mount.store(), mount.path(), place);
        refused(mount.store(), &mount.path().join("x/setuid"), place);
        refused(mount.store(), &mount.store().path(), place);
    }
    let store = mount.umount();
    places.iter().for_each(|place| refused(&store, &store.path(), place));
    fsck(&store);
}

#[test]
fn a_destination_that_cannot_be_is_named() {
    let (mount, _) = prepared();
    let refused = |to: &Path| {
        let from = mount.path().join("x/setuid");
        mount.store().refused(1, &args!["restore", from, "--at", "good", "--to", to])
    };
    let missing = mount.store().home().join("none/dir/f");
    assert!(refused(&missing).contains("none/dir/f: its directory does not exist"));
    fs::write(mount.path().join("there"), b"x").expect("writing");
    assert!(refused(&mount.path().join("there")).contains("there: it exists already; give a new name"));
}

#[test]
fn what_is_damaged_is_named_and_everything_else_is_written_out() {
    let mount = Store::init(&args!["--no-encryption"]).mount();
    let mut rng = Rng::printed();
    fs::write(mount.path().join("whole"), rng.bytes(300_000)).expect("writing");
    mount.snapshot("first");
    fs::write(mount.path().join("broken"), rng.bytes(300_000)).expect("writing");
    mount.snapshot("good");
    let store = mount.umount();
    // The last chunks of the pack are those of the last file.
    let packs = fs::read_dir(store.path().join("packs")).expect("packs").map(|e| e.expect("entry").path());
    let pack =
        packs.filter(|p| p.is_file()).max_by_key(|p| p.metadata().expect("stat").len()).expect("a pack");
    let len = fs::metadata(&pack).expect("stat").len();
    open_rw(&pack).and_then(|f| f.write_all_at(&[0xff; 64], len * 3 / 4)).expect("damaging");
    let out = store.home().join("out");
    let run = store.cli(&args!["restore", store.path(), "--at", "good", "--to", out]);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stderr.contains("not restored: broken"), "{run:?}");
    assert_eq!(fs::read(out.join("whole")).expect("reading").len(), 300_000);
    assert!(!out.join("broken").exists(), "nothing half written has a name");
}

/// Runs the program as user nobody, who may not run it where it is.
fn as_nobody(mount: &Mount, args: &[std::ffi::OsString]) -> crate::harness::Run {
    let program = mount.store().home().join("rewindfs");
    if !program.exists() {
        fs::copy(REWINDFS, &program).expect("copying the program");
        chmod(&program, 0o755).expect("chmod");
    }
    run(Command::new(program).args(args).current_dir("/").uid(NOBODY).gid(NOBODY))
}

#[test]
fn another_user_restores_own_files_and_no_others() {
    let mount = Store::encrypted().mount();
    let (his, shared) = (mount.path().join("his"), mount.path().join("shared"));
    for (dir, owner) in [(&his, NOBODY), (&shared, 0)] {
        mkdir(dir, 0o777).expect("mkdir");
        chmod(dir, 0o777).expect("chmod");
        for (name, uid) in [("own", NOBODY), ("roots", 0)] {
            fs::write(dir.join(name), b"then").expect("writing");
            chown(&dir.join(name), uid, uid).expect("chown");
        }
        chown(dir, owner, owner).expect("chown");
    }
    chmod(&his.join("own"), 0o4755).expect("chmod");
    mount.snapshot("good");
    for dir in [&his, &shared] {
        fs::write(dir.join("roots"), b"now").expect("writing");
        fs::remove_file(dir.join("own")).expect("removing");
    }
    let attempt = |path: &Path| as_nobody(&mount, &args!["restore", path, "--at", "good"]);
    for path in [shared.join("roots"), shared.clone(), his.clone(), his.join("roots"), mount.path().into()] {
        let said = attempt(&path).expect_refusal(1);
        assert!(said.contains("permission denied"), "{said}");
    }
    for dir in [&his, &shared] {
        attempt(&dir.join("own")).expect_ok();
        assert_eq!(fs::read(dir.join("own")).expect("reading"), b"then");
        assert_eq!(fs::read(dir.join("roots")).expect("reading"), b"now");
    }
    let own = fs::metadata(his.join("own")).expect("stat");
    assert_eq!((own.mode() & 0o7777, own.uid()), (0o755, NOBODY), "no setuid bit by that");
    chmod(&shared, 0o755).expect("chmod");
    fs::remove_file(shared.join("own")).expect("removing");
    assert!(attempt(&shared.join("own")).expect_refusal(1).contains("you may not write"));
    let dir = mount.store().directory("nobodys");
    chown(&dir, NOBODY, NOBODY).expect("chown");
    let out = dir.join("out");
    let run = as_nobody(&mount, &args!["restore", shared, "--at", "good", "--to", out]);
    assert_eq!(run.code, 3, "owners are lost: {run:?}");
    assert_eq!(fs::read(out.join("own")).expect("reading"), b"then");
}

#[test]
fn a_restore_whose_server_is_killed_is_right_when_it_is_run_again() {
    let (mount, good) = prepared();
    let (x, many) = (mount.path().join("x"), mount.path().join("x/many"));
    fs::create_dir(&many).expect("mkdir");
    let files = setting("REWINDFS_TEST_FILES", 4000);
    for i in 0..files {
        fs::write(many.join(format!("f{i}")), format!("content {i}")).expect("writing");
    }
    mount.snapshot("more");
    let all = Tree::read(&x);
    let mut cut = 0;
    for round in 0..setting("REWINDFS_TEST_KILLS", 6) {
        fs::remove_dir_all(&many).expect("removing");
        fs::write(x.join("setuid"), b"other").expect("writing");
        let arguments = args!["restore", x, "--at", "more"];
        let mut child = mount.store().command(&arguments).stderr(std::process::Stdio::null()).spawn();
        let child = child.as_mut().expect("starting");
        std::thread::sleep(std::time::Duration::from_millis(20 + round * 53 % 300));
        let server = mount.server();
        server.kill();
        eventually("the server to be gone", || !server.alive());
        cut += u64::from(!child.wait().expect("waiting").success());
        let found = fs::read_dir(&many).map_or(0, Iterator::count) as u64;
        assert!(found == 0 || found == files, "all or nothing, not {found}");
        mount.store().ok(&arguments);
        all.assert_same(&Tree::read(&x), Times::All, "run again");
    }
    eprintln!("{cut} restores were cut short");
    restore(&mount, "x", &[]);
    good.assert_same(&Tree::read(&x), Times::All, "and the one before");
    fsck(&mount.umount());
}

#[test]
fn programs_that_work_in_a_tree_that_is_restored_see_no_error_but_that_it_changed() {
    let (mount, good) = prepared();
    let x = mount.path().join("x");
    let held = File::open(x.join("deep")).expect("opening a directory");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let mut rounds = 0u64;
            while rounds < 200_000 && !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Whoever holds the lock of the directory waits for the server meanwhile.
                let name = x.join(format!("deep/busy{}", rounds % 3));
                let _ = fs::write(&name, b"x").and_then(|()| fs::remove_file(&name));
                let _ = fs::read_dir(x.join("deep/er")).map(Iterator::count);
                rounds += 1;
            }
            rounds
        });
        let mut runs = Vec::new();
        for _ in 0..5 {
            fs::write(x.join("deep/er/file-4096"), b"other").expect("writing");
            runs.push(mount.store().cli(&args!["restore", x.join("deep/er"), "--at", "good"]));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(work.join().expect("the worker") > 0);
        runs.into_iter().for_each(|run| drop(run.expect_ok()));
    });
    drop(held);
    restore(&mount, "x", &[]);
    good.assert_same(&Tree::read(&x), Times::All, "when all is quiet");
    tool(mount.path(), "ls", &args!["-lR", "x"]);
    fsck(&mount.umount());
}
