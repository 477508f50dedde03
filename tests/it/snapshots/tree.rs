//! `.snapshots` as a directory: where it is, where it hides, what it refuses.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::harness::sys::{chmod, chown, mkdir, names, remove_xattr, rename, set_times, set_xattr, special};
use crate::harness::{Mount, Store, args, tool};

/// A mount with `a/b/f`, a snapshot `one`, then `a/later`.
fn prepared() -> Mount {
    let mount = Store::encrypted().mount();
    fs::create_dir_all(mount.path().join("a/b")).expect("mkdir");
    fs::write(mount.path().join("a/b/f"), b"content").expect("writing");
    symlink("b/f", mount.path().join("a/link")).expect("linking");
    mount.snapshot("one");
    mkdir(&mount.path().join("a/later"), 0o755).expect("mkdir");
    mount
}

#[test]
fn every_directory_shows_itself_as_it_was_under_its_own_snapshot_directory() {
    let mount = prepared();
    let dir = mount.path();
    assert_eq!(names(&dir.join(".snapshots")).expect("listing"), ["one"]);
    assert_eq!(names(&dir.join(".snapshots/one")).expect("listing"), ["a"]);
    assert_eq!(names(&dir.join("a/.snapshots/one")).expect("listing"), ["b", "link"]);
    assert_eq!(fs::read(dir.join("a/b/.snapshots/one/f")).expect("reading"), b"content");
    assert_eq!(dir.join("a/.snapshots/one/link").read_link().expect("readlink"), Path::new("b/f"));
    assert!(!dir.join("a/later/.snapshots/one").exists(), "it was not there yet");
    assert!(dir.join("a/later/.snapshots").is_dir());
    assert!(!dir.join("a/b/f/.snapshots").exists(), "files have none");
    assert!(!dir.join(".snapshots/nowhere").exists());
    assert_eq!(dir.join(".snapshots/one/a/..").canonicalize().expect("..").file_name().expect("name"), "one");
}

#[test]
fn the_snapshot_directory_is_in_no_listing_and_in_no_walk() {
    let mount = prepared();
    let dir = mount.path();
    for sub in ["", "a", "a/b", "a/later", ".snapshots/one", ".snapshots/one/a"] {
        let listed = names(&dir.join(sub)).expect("listing");
        assert!(!listed.iter().any(|name| name == ".snapshots"), "{sub:?} lists {listed:?}");
    }
    let found = tool(dir, "find", &args![".", "-name", ".snapshots", "-o", "-name", "one"]);
    assert_eq!(found, "");
    tool(dir, "rm", &args!["-rf", "a"]);
    assert_eq!(names(dir).expect("listing"), Vec::<std::ffi::OsString>::new(), "rm -rf met nothing hidden");
    assert_eq!(fs::read(mount.at("one/a/b/f")).expect("reading"), b"content");
}

#[test]
fn the_name_of_the_snapshot_directory_cannot_be_taken_or_removed() {
    let mount = prepared();
    let (dir, snapshots) = (mount.path(), mount.path().join("a/.snapshots"));
    let attempts: [(&str, io::Result<()>); 7] = [
        ("mkdir", mkdir(&snapshots, 0o755)),
        ("create", File::create(&snapshots).map(drop)),
        ("symlink", symlink("x", &snapshots)),
        ("mknod", special(&snapshots, nix::sys::stat::SFlag::S_IFIFO, 0o600, 0)),
        ("rename over it", fs::rename(dir.join("a/later"), &snapshots)),
        ("rename it away", fs::rename(&snapshots, dir.join("moved"))),
        ("rmdir", fs::remove_dir(&snapshots)),
    ];
    for (what, result) in attempts {
        assert!(result.is_err(), "{what} of .snapshots must fail");
    }
    assert_eq!(names(&snapshots).expect("listing"), ["one"]);
    assert!(dir.join("a/later").is_dir());
}

#[test]
fn nothing_inside_a_snapshot_can_be_changed() {
    let mount = prepared();
    let (file, dir, link) = (mount.at("one/a/b/f"), mount.at("one/a/b"), mount.at("one/a/link"));
    let live = mount.path();
    let attempts: Vec<(&str, io::Result<()>)> = vec![
        ("opening for writing", File::options().write(true).open(&file).map(drop)),
        ("appending", File::options().append(true).open(&file).map(drop)),
        ("truncating", Ok(()).and_then(|()| Ok(nix::unistd::truncate(&file, 0)?))),
        ("creating", File::create(dir.join("new")).map(drop)),
        ("mkdir", mkdir(&dir.join("new"), 0o755)),
        ("rmdir", fs::remove_dir(&dir)),
        ("unlink", fs::remove_file(&file)),
        ("symlink", symlink("x", dir.join("new"))),
        ("hard link inside", fs::hard_link(&file, dir.join("new"))),
        ("mknod", special(&dir.join("new"), nix::sys::stat::SFlag::S_IFIFO, 0o600, 0)),
        ("rename inside", fs::rename(&file, dir.join("new"))),
        ("exchange inside", rename(&file, &link, nix::fcntl::RenameFlags::RENAME_EXCHANGE)),
        ("chmod", chmod(&file, 0o600)),
        ("chown", chown(&file, 1, 1)),
        ("utimes", set_times(&file, (1, 1), (1, 1))),
        ("setxattr", set_xattr(&file, "user.a", b"1", 0)),
        ("removexattr", remove_xattr(&file, "user.a")),
        ("chmod of its root", chmod(&mount.at("one"), 0o700)),
    ];
    for (what, result) in attempts {
        let errno = result.expect_err(what).raw_os_error();
        assert_eq!(errno, Some(libc::EROFS), "{what} inside a snapshot");
    }
    let across: [(&str, io::Result<()>); 4] = [
        ("rename out", fs::rename(&file, live.join("out"))),
        ("rename in", fs::rename(live.join("a/later"), dir.join("in"))),
        ("link out", fs::hard_link(&file, live.join("out"))),
        ("link in", fs::hard_link(live.join("a/b/f"), dir.join("in"))),
    ];
    for (what, result) in across {
        let errno = result.expect_err(what).raw_os_error();
        assert!(matches!(errno, Some(libc::EROFS | libc::EXDEV)), "{what}: {errno:?}");
    }
    assert_eq!(fs::read(&file).expect("reading"), b"content");
    assert_eq!(names(&dir).expect("listing"), ["f"]);
    assert_eq!(names(live).expect("listing"), ["a"]);
}

#[test]
fn options_show_and_rename_the_snapshot_directory() {
    let mount = prepared();
    let store = mount.umount();
    let mount = store.mount_with("visible", &args!["-o", "snapdir=visible"]);
    assert_eq!(names(mount.path()).expect("listing"), [".snapshots", "a"], "shown at the root");
    assert_eq!(names(&mount.path().join("a")).expect("listing"), ["b", "later", "link"], "and only there");
    let store = mount.umount();
    let mount = store.mount_with("renamed", &args!["-o", "snapdir-name=.history"]);
    assert_eq!(fs::read(mount.path().join(".history/one/a/b/f")).expect("reading"), b"content");
    assert!(!mount.path().join(".snapshots").exists());
    assert_eq!(names(mount.path()).expect("listing"), ["a"]);
}

#[test]
fn inode_numbers_in_a_snapshot_are_its_own_and_survive_a_remount() {
    let mut mount = prepared();
    mount.snapshot("two");
    let inodes = |mount: &Mount| -> Vec<u64> {
        let roots = [mount.path().to_owned(), mount.at("one"), mount.at("two")];
        let inode = |path: &Path| path.symlink_metadata().unwrap_or_else(|e| panic!("{path:?}: {e}")).ino();
        roots.iter().flat_map(|root| ["a", "a/b", "a/b/f", "a/link"].map(|f| inode(&root.join(f)))).collect()
    };
    let before = inodes(&mount);
    let unique: std::collections::BTreeSet<&u64> = before.iter().collect();
    assert_eq!(unique.len(), before.len(), "live, one and two differ everywhere: {before:?}");
    mount = mount.remount();
    assert_eq!(before, inodes(&mount));
    // The number that a listing gives is the one that stat gives.
    for dir in [mount.at("one/a"), mount.path().join("a/.snapshots/one")] {
        for entry in fs::read_dir(dir).expect("listing").map(|e| e.expect("an entry")) {
            use std::os::unix::fs::DirEntryExt;
            assert_eq!(entry.ino(), entry.metadata().expect("stat").ino(), "{:?}", entry.path());
        }
    }
}

#[test]
fn a_deleted_snapshot_is_gone_from_every_directory_at_once() {
    let mount = prepared();
    mount.snapshot("two");
    let open = File::open(mount.at("one/a/b/f")).expect("opening a file of the snapshot");
    for sub in ["", "a", "a/b"] {
        assert!(mount.path().join(sub).join(".snapshots/one").is_dir());
    }
    mount.store().ok(&args!["snapshot", "delete", mount.path(), "one"]);
    for sub in ["", "a", "a/b"] {
        let snapshots = mount.path().join(sub).join(".snapshots");
        assert!(!snapshots.join("one").exists(), "{sub:?}");
        assert_eq!(names(&snapshots).expect("listing"), ["two"]);
    }
    // What was open either still has its bytes or says that it is stale.
    let mut content = String::new();
    match io::Read::read_to_string(&mut &open, &mut content) {
        Ok(_) => assert_eq!(content, "content"),
        Err(e) => assert!(matches!(e.raw_os_error(), Some(libc::ESTALE | libc::ENOENT | libc::EIO)), "{e}"),
    }
    assert_eq!(fs::read(mount.at("two/a/b/f")).expect("reading"), b"content");
}
