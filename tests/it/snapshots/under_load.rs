//! Snapshots taken while writers go on: atomic, and complete up to the moment they were asked for.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::{Mount, Store, args};

/// A counter that a writer keeps in two files, the first always before the second.
struct Pair {
    files: [File; 2],
    /// The last number that both writes had returned for.
    returned: AtomicU64,
}

impl Pair {
    fn new(first: &Path, second: &Path) -> Pair {
        let create = |path| File::create(path).expect("creating a counter");
        let pair = Pair { files: [create(first), create(second)], returned: AtomicU64::new(0) };
        pair.write(1);
        pair
    }

    fn write(&self, number: u64) {
        self.files.iter().for_each(|f| f.write_all_at(&number.to_le_bytes(), 0).expect("counting"));
        self.returned.store(number, Ordering::SeqCst);
    }

    /// Counts until told to stop.
    fn count(&self, stop: &AtomicBool) {
        for number in 2.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            self.write(number);
        }
    }
}

fn counter(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// In a snapshot, the second file is never ahead of the first, nor behind by more than the one write that was
/// under way; and both are at least where they were before the snapshot was asked for.
fn check(first: &Path, second: &Path, returned: u64) {
    let (a, b) = (counter(first), counter(second));
    assert!(b <= a && a <= b + 1, "{a} in the first file, {b} in the second");
    assert!(b >= returned, "{b} in the snapshot, but {returned} had returned before it was asked for");
}

/// Stops the writers also when a check fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn two_files_written_in_order_are_in_order_in_every_snapshot() {
    let mount = Store::encrypted().mount();
    let (first, second) = (mount.path().join("first"), mount.path().join("second"));
    let pair = Pair::new(&first, &second);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| pair.count(&stop));
        let _stop = StopAtEnd(&stop);
        for i in 0..30 {
            let returned = pair.returned.load(Ordering::SeqCst);
            let name = format!("s{i}");
            match i % 2 {
                0 => mount.snapshot(&name),
                _ => fs::create_dir(mount.at(&name)).expect("mkdir takes a snapshot"),
            }
            check(&mount.at(&name).join("first"), &mount.at(&name).join("second"), returned);
        }
    });
    let last = pair.returned.load(Ordering::SeqCst);
    // Its open files would keep the mount busy.
    drop(pair);
    let mount = mount.remount();
    (0..30).for_each(|i| check(&mount.at(&format!("s{i}/first")), &mount.at(&format!("s{i}/second")), 0));
    assert_eq!(counter(&mount.path().join("second")), last);
}

#[test]
fn a_file_that_is_moved_all_the_time_is_in_every_snapshot_exactly_once() {
    let mount = Store::encrypted().mount();
    let places = ["x/f", "y/f", "y/g"].map(|p| mount.path().join(p));
    for dir in ["x", "y"] {
        fs::create_dir(mount.path().join(dir)).expect("mkdir");
    }
    fs::write(&places[0], b"the one").expect("writing");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in (0..3).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                fs::rename(&places[i], &places[(i + 1) % 3]).expect("renaming");
            }
        });
        let _stop = StopAtEnd(&stop);
        for i in 0..20 {
            let name = format!("s{i}");
            mount.snapshot(&name);
            let found: Vec<Vec<u8>> =
                ["x/f", "y/f", "y/g"].iter().filter_map(|p| fs::read(mount.at(&name).join(p)).ok()).collect();
            assert_eq!(found, [b"the one"], "in snapshot {i}");
        }
    });
}

#[test]
fn a_snapshot_of_all_volumes_is_one_moment_of_all() {
    let store = Store::encrypted();
    store.ok(&args!["volume", "create", store.path(), "second"]);
    let main = store.mount();
    let other = store.mount_with("other", &args!["--volume", "second"]);
    let pair = Pair::new(&main.path().join("f"), &other.path().join("f"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| pair.count(&stop));
        let _stop = StopAtEnd(&stop);
        for i in 0..10 {
            let returned = pair.returned.load(Ordering::SeqCst);
            let name = format!("s{i}");
            store.ok(&args!["snapshot", "create", main.path(), name, "--all-volumes"]);
            check(&main.at(&name).join("f"), &other.at(&name).join("f"), returned);
        }
    });
    let lsns = |mount: &Mount| mount.snapshots().iter().map(|(_, s)| s["lsn"].as_u64()).collect::<Vec<_>>();
    assert_eq!(lsns(&main), lsns(&other), "one record each for both");
    main.snapshot("only-main");
    assert!(!other.snapshot_names().contains("only-main"));
}

#[test]
fn snapshots_and_their_deletion_do_not_disturb_writers() {
    let mut mount = Store::encrypted().mount();
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut i = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let path = mount.path().join(format!("f{}", i % 50));
                fs::write(path.with_extension("new"), format!("{i:08}").repeat(2000)).expect("writing");
                fs::rename(path.with_extension("new"), path).expect("renaming");
                i += 1;
            }
            i
        });
        let _stop = StopAtEnd(&stop);
        for i in 0..40 {
            mount.snapshot(&format!("s{i}"));
            if i >= 5 {
                mount.store().ok(&args!["snapshot", "delete", mount.path(), format!("s{}", i - 5)]);
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer")
    });
    mount = mount.remount();
    for i in written.saturating_sub(50)..written {
        let text = fs::read_to_string(mount.path().join(format!("f{}", i % 50))).expect("reading");
        assert!(text == format!("{i:08}").repeat(2000), "file {i}");
    }
    // Whole files only, also in the snapshots: each was renamed into place when complete.
    for i in 35..40 {
        for entry in fs::read_dir(mount.at(&format!("s{i}"))).expect("listing").map(|e| e.expect("an entry"))
        {
            let text = fs::read_to_string(entry.path()).expect("reading");
            let whole = text.len() == 16_000 && text.as_bytes().chunks(8).all(|c| c == &text.as_bytes()[..8]);
            assert!(whole || entry.path().extension().is_some(), "{:?} is torn", entry.path());
        }
    }
}
