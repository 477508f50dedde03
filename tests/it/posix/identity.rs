//! Inode numbers, block counts and what the filesystem says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::harness::listing::listed;
use crate::harness::sys::{allocated, open_rw, raw_name};
use crate::harness::{Rng, Store, args, sample};

/// Every inode number below a directory, by path.
fn numbers(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let m = full.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", full.display()));
        found.insert(path.clone(), m.ino());
        if m.is_dir() {
            let names = crate::harness::sys::names(&full).expect("listing");
            todo.extend(names.into_iter().map(|name| path.join(name)));
        }
    }
    found
}

fn planted() -> crate::harness::Mount {
    let mount = Store::encrypted().mount();
    sample::plant(mount.path(), &mut Rng::printed()).expect("planting");
    mount
}

#[test]
fn inode_numbers_stay_over_remounts_kills_and_a_lost_index_and_are_never_used_again() {
    let mut mount = planted();
    let first = numbers(mount.path());
    let distinct: BTreeSet<u64> = first.values().copied().collect();
    assert_eq!(distinct.len(), first.len() - 2, "two of three names of one file");
    assert_eq!(first[Path::new("links/one")], first[Path::new("deep/er/three")]);
    mount.server().kill();
    assert_eq!(numbers(mount.path()), first, "by the next server");
    mount = mount.remount();
    assert_eq!(numbers(mount.path()), first, "after a remount");
    let store = mount.umount();
    fs::remove_dir_all(store.path().join("index")).expect("deleting the index");
    mount = store.mount();
    assert_eq!(numbers(mount.path()), first, "after the index was rebuilt");
    let mut used = distinct;
    for round in 0..3 {
        for i in 0..50 {
            let path = mount.path().join(format!("again-{i}"));
            fs::write(&path, b"x").expect("writing");
            let ino = path.symlink_metadata().expect("stat").ino();
            assert!(used.insert(ino), "round {round}: {ino} is used again");
            fs::remove_file(&path).expect("removing");
        }
        mount = mount.remount();
    }
}

#[test]
fn a_snapshot_has_numbers_of_its_own_that_stay_as_well() {
    let mut mount = planted();
    mount.snapshot("one");
    fs::write(mount.path().join("new"), b"x").expect("writing");
    mount.snapshot("two");
    let all = |mount: &crate::harness::Mount| {
        [numbers(mount.path()), numbers(&mount.at("one")), numbers(&mount.at("two"))]
    };
    let first = all(&mount);
    let [live, one, two] = first.each_ref().map(|n| n.values().copied().collect::<BTreeSet<u64>>());
    assert!(live.is_disjoint(&one) && live.is_disjoint(&two) && one.is_disjoint(&two), "{first:?}");
    assert_eq!(first[1][Path::new("links/one")], first[1][Path::new("deep/er/three")]);
    // The way there has no part in it: the same directory by its own `.snapshots`.
    let by_own = mount.path().join("deep/.snapshots/one/er").symlink_metadata().expect("stat").ino();
    assert_eq!(by_own, first[1][Path::new("deep/er")]);
    mount.server().kill();
    assert_eq!(all(&mount), first, "by the next server");
    mount = mount.remount();
    assert_eq!(all(&mount), first, "after a remount");
    let dev = |path: &Path| path.symlink_metadata().expect("stat").dev();
    assert_eq!(
        dev(&mount.at("one")),
        dev(mount.path()),
        "one filesystem, so that tools may link and compare"
    );
}

/// Fails the test unless every `d_ino` and `d_type` of a listing is what `lstat` says.
fn listing_is_true(dir: &Path, dots: bool) {
    for entry in listed(dir).expect("listing") {
        if !dots && entry.name == b".." {
            continue;
        }
        let path = dir.join(raw_name(&entry.name));
        let m = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(entry.ino, m.ino(), "d_ino of {}", path.display());
        assert_eq!(u32::from(entry.kind), (m.mode() & libc::S_IFMT) >> 12, "d_type of {}", path.display());
    }
}

#[test]
fn listings_name_the_numbers_and_kinds_that_stat_names() {
    let mut mount = planted();
    for i in 0..500 {
        fs::write(mount.path().join(format!("deep/f{i}")), b"").expect("writing");
    }
    mount.snapshot("then");
    for _ in 0..2 {
        for dir in ["deep", "deep/er", "deep/er/est", "links", "empty"] {
            listing_is_true(&mount.path().join(dir), true);
            listing_is_true(&mount.at("then").join(dir), true);
        }
        // Above a root lies another filesystem, or none: its `..` is the root itself, as on a disk.
        for root in [mount.path(), &mount.at("then")] {
            listing_is_true(root, false);
            let entries = listed(root).expect("listing");
            let dot = |name: &[u8]| entries.iter().find(|e| e.name == name).map(|e| e.ino).expect("dots");
            println!("{}: . is {}, .. is {}", root.display(), dot(b"."), dot(b".."));
        }
        let root = listed(mount.path()).expect("listing");
        let dot = |name: &[u8]| root.iter().find(|e| e.name == name).map(|e| e.ino).expect("dots");
        assert_eq!(dot(b"."), dot(b".."));
        listing_is_true(&mount.path().join(".snapshots"), true);
        mount = mount.remount();
    }
}

#[test]
fn the_number_of_a_directory_above_is_right_after_moves() {
    let mount = Store::encrypted().mount();
    let at = |name: &str| mount.path().join(name);
    for dir in ["a", "b", "a/moved", "a/moved/sub"] {
        fs::create_dir(at(dir)).expect("mkdir");
    }
    listing_is_true(&at("a/moved"), true);
    fs::rename(at("a/moved"), at("b/moved")).expect("moving");
    listing_is_true(&at("b/moved"), true);
    listing_is_true(&at("b/moved/sub"), true);
    fs::create_dir(at("a/other")).expect("mkdir");
    let swap = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
    crate::harness::sys::rename(&at("a/other"), &at("b/moved"), swap).expect("exchanging");
    for dir in ["a", "b", "a/other", "b/moved", "a/other/sub"] {
        listing_is_true(&at(dir), true);
    }
    let mount = mount.remount();
    listing_is_true(&mount.path().join("a/other"), true);
}

#[test]
fn blocks_count_written_bytes_and_neither_holes_nor_what_compression_saves() {
    let mut mount = Store::encrypted().mount();
    let mut rng = Rng::printed();
    let megabyte = 1u64 << 20;
    let random = rng.bytes(3 << 20);
    for name in ["random", "the same again"] {
        fs::write(mount.path().join(name), &random).expect("writing");
    }
    fs::write(mount.path().join("text"), rng.text(3 << 20)).expect("writing");
    fs::write(mount.path().join("zeros"), vec![0; 3 << 20]).expect("writing");
    fs::write(mount.path().join("tiny"), b"x").expect("writing");
    let sparse = File::create(mount.path().join("sparse")).expect("creating");
    for i in 0..3 {
        sparse.write_all_at(&random[..1 << 20], i * 100 * megabyte).expect("writing");
    }
    sparse.set_len(1 << 40).expect("growing");
    fs::write(mount.path().join("empty"), b"").expect("writing");
    for when in ["as written", "synced", "after a remount"] {
        let taken = |name: &str| allocated(&mount.path().join(name)).expect("stat");
        for name in ["random", "the same again", "text", "zeros", "sparse"] {
            assert_eq!(taken(name), 3 * megabyte, "{name}, {when}");
        }
        assert_eq!((taken("tiny"), taken("empty")), (4096, 0), "{when}");
        match when {
            "as written" => {
                for name in ["random", "the same again", "text", "zeros", "sparse", "tiny"] {
                    open_rw(&mount.path().join(name)).and_then(|f| f.sync_all()).expect("syncing");
                }
            }
            _ => break,
        }
    }
    drop(sparse);
    mount = mount.remount();
    let taken = |name: &str| allocated(&mount.path().join(name)).expect("stat");
    assert_eq!((taken("text"), taken("zeros"), taken("sparse")), (3 * megabyte, 3 * megabyte, 3 * megabyte));
    mount.snapshot("then");
    assert_eq!(allocated(&mount.at("then").join("sparse")).expect("stat"), 3 * megabyte);
    let block = mount.path().join("text").metadata().expect("stat").blksize();
    assert_eq!(block, 4096);
}

#[test]
fn statfs_tells_what_the_filesystem_below_has() {
    let store = Store::encrypted();
    let mount = store.mount();
    let (ours, below) = (statvfs(mount.path()).expect("statvfs"), statvfs(store.home()).expect("statvfs"));
    assert_eq!(ours.blocks() * ours.fragment_size(), below.blocks() * below.fragment_size(), "its size");
    assert_eq!(ours.files(), below.files());
    assert_eq!((ours.name_max(), below.name_max()), (255, 255));
    // Others write there meanwhile.
    let near = |a: u64, b: u64| a.abs_diff(b) < 2 << 30;
    let bytes = |s: &nix::sys::statvfs::Statvfs, blocks: u64| blocks * s.fragment_size();
    assert!(near(bytes(&ours, ours.blocks_free()), bytes(&below, below.blocks_free())), "{ours:?} {below:?}");
    assert!(near(bytes(&ours, ours.blocks_available()), bytes(&below, below.blocks_available())));
    assert!(ours.blocks_available() <= ours.blocks_free() && ours.files_free() <= ours.files());
    // The same from everywhere in the mount.
    fs::create_dir(mount.path().join("d")).expect("mkdir");
    mount.snapshot("then");
    for path in [mount.path().join("d"), mount.at("then"), mount.path().join(".snapshots")] {
        let there = statvfs(&path).expect("statvfs");
        assert_eq!((there.blocks(), there.name_max()), (ours.blocks(), 255), "{}", path.display());
    }
    let store = mount.umount();
    let read_only = store.mount_with("mnt", &args!["--read-only"]);
    assert!(statvfs(read_only.path()).expect("statvfs").flags().contains(FsFlags::ST_RDONLY));
}
