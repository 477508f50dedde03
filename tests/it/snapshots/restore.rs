//! Restoring by copying out of `.snapshots`.

use std::fs;
use std::os::unix::fs::FileExt;

use nix::sys::stat::SFlag;

use crate::harness::sys::{chmod, mkdir, open_rw, set_times, special};
use crate::harness::{Mount, Rng, Store, Times, Tree, args, same_tree, sample, tool};

/// A mount with a sample tree `x` and a snapshot `good` of it.
/// A tree of all kinds of files, and the snapshot `good` of it.
pub fn prepared() -> (Mount, Tree) {
    let mount = Store::encrypted().mount();
    let x = mount.path().join("x");
    mkdir(&x, 0o755).expect("mkdir");
    sample::plant(&x, &mut Rng::printed()).expect("planting");
    special(&x.join("socket"), SFlag::S_IFSOCK, 0o640, 0).expect("mknod");
    chmod(&x, 0o2750).expect("chmod");
    set_times(&x, (1, 2), (3, 4)).expect("utimes");
    let tree = Tree::read(&x);
    mount.snapshot("good");
    (mount, tree)
}

#[test]
fn cp_a_out_of_a_snapshot_brings_a_deleted_tree_back_whole() {
    let (mut mount, good) = prepared();
    tool(mount.path(), "rm", &args!["-rf", "x"]);
    tool(mount.path(), "cp", &args!["-a", mount.at("good/x"), mount.path()]);
    good.assert_same(&Tree::read(&mount.path().join("x")), Times::All, "restored");
    same_tree(&mount.at("good/x"), &mount.path().join("x"));
    mount = mount.remount();
    good.assert_same(&Tree::read(&mount.path().join("x")), Times::All, "restored, after a remount");
    same_tree(&mount.at("good/x"), &mount.path().join("x"));
}

#[test]
fn cp_a_over_a_damaged_tree_mends_it() {
    let (mount, good) = prepared();
    let x = mount.path().join("x");
    open_rw(&x.join("deep/er/file-65537")).and_then(|f| f.write_all_at(b"damage", 30_000)).expect("writing");
    fs::write(x.join("deep/er/file-4097"), b"short").expect("writing");
    fs::remove_file(x.join("links/one")).expect("removing");
    tool(mount.path(), "cp", &args!["-a", "--remove-destination", mount.at("good/x"), mount.path()]);
    good.assert_same(&Tree::read(&x), Times::All, "restored in place");
}

#[test]
fn a_restored_copy_is_independent_of_the_snapshot() {
    let (mount, good) = prepared();
    tool(mount.path(), "cp", &args!["-a", mount.at("good/x"), "copy"]);
    let file = open_rw(&mount.path().join("copy/deep/er/file-1500000")).expect("opening");
    file.write_all_at(&[7; 100_000], 500_000).expect("writing");
    drop(file);
    fs::remove_dir_all(mount.path().join("x")).expect("removing the original");
    good.assert_same(&Tree::read(&mount.at("good/x")), Times::All, "the snapshot");
    mount.store().ok(&args!["snapshot", "delete", mount.path(), "good"]);
    let mount = mount.remount();
    let path = mount.path().join("copy/deep/er/file-1500000");
    assert_eq!(&fs::read(&path).expect("reading")[500_000..600_000], &[7; 100_000][..]);
    assert_eq!(fs::read(mount.path().join("copy/links/two")).expect("reading"), b"one inode, three names");
}

#[test]
fn a_snapshot_copied_out_to_ext4_and_back_is_the_same() {
    let (mount, good) = prepared();
    let out = mount.store().directory("out");
    tool(mount.path(), "cp", &args!["-a", mount.at("good/x"), out]);
    good.assert_same(&Tree::read(&out.join("x")), Times::All, "on ext4");
    tool(mount.path(), "cp", &args!["-a", out.join("x"), mount.path().join("again")]);
    good.assert_same(&Tree::read(&mount.path().join("again")), Times::All, "and back");
}
