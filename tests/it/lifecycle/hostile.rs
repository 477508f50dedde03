//! What programs can ask of a mount to hurt its server or to find others' names in its log.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::{Whence, lseek};

use crate::harness::sys::{mkdir, open_rw, set_times, write_file};
use crate::harness::{Mount, Rng, Store, args, run};

/// The log of the server behind a mount.
fn log(mount: &Mount) -> PathBuf {
    let node = mount.status().get("node").and_then(|n| n.as_str().map(str::to_owned)).expect("a node id");
    PathBuf::from(format!("/var/log/rewindfs/{node}.log"))
}

#[test]
fn times_at_the_ends_of_their_range_are_kept_or_clamped() {
    let mount = Store::encrypted().mount();
    let file = mount.path().join("f");
    write_file(&file, 0o644, b"x").expect("writing");
    // More often than there are threads: each of them must outlive it.
    for _ in 0..32 {
        for secs in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            for nanos in [0, 999_999_999] {
                set_times(&file, (secs, nanos), (secs, nanos)).expect("utimensat");
                fs::symlink_metadata(&file).expect("stat");
            }
        }
    }
    let mount = mount.remount();
    assert_eq!(fs::read(mount.path().join("f")).expect("reading"), b"x");
    let text = fs::read_to_string(log(&mount)).expect("the log");
    assert!(!text.contains("panic"), "{text}");
}

#[test]
fn offsets_and_lengths_at_the_ends_of_their_range_do_no_harm() {
    let mount = Store::encrypted().mount();
    for name in ["a", "b"] {
        write_file(&mount.path().join(name), 0o644, b"x").expect("writing");
    }
    let files = ["a", "b"].map(|name| open_rw(&mount.path().join(name)).expect("opening"));
    let edges: [u64; 12] = [
        0,
        1,
        4095,
        262_144,
        1 << 31,
        (1 << 32) - 1,
        1 << 40,
        1 << 46,
        1 << 50,
        1 << 62,
        (1 << 63) - 4096,
        (1 << 63) - 1,
    ];
    let mut rng = Rng::printed();
    for _ in 0..3000 {
        let [at, to, len] = [(); 3].map(|()| *rng.pick(&edges));
        act(&files, rng.below(7), at, to, len);
    }
    for file in &files {
        file.set_len(3).expect("truncating");
        file.write_all_at(b"abc", 0).expect("writing");
        file.sync_all().expect("fsync");
    }
    assert_eq!(fs::read(mount.path().join("a")).expect("reading"), b"abc");
    let text = fs::read_to_string(log(&mount)).expect("the log");
    assert!(!text.contains("panic"), "{text}");
    mount.snapshot("after");
}

/// One call that may fail but must come back.
fn act(files: &[File; 2], what: u64, at: u64, to: u64, len: u64) {
    let [one, two] = files;
    match what {
        0 => drop(one.write_at(b"edge", at)),
        1 => drop(one.read_at(&mut [0; 16], at)),
        2 => drop(one.set_len(at)),
        3 => drop(two.set_len(to)),
        4 => drop(lseek(one, at as i64, Whence::SeekData)),
        5 => {
            let modes = [0, 1, 3, 16, 17, 8, 32];
            let mode = FallocateFlags::from_bits_retain(modes[to as usize % modes.len()]);
            let _ = fallocate(one, mode, at as i64, len as i64);
        }
        _ => {
            let (mut from, mut to) = (at as i64, to as i64);
            let (one, two) = (one.as_raw_fd(), two.as_raw_fd());
            // SAFETY: the descriptors are open and no memory but the two offsets is touched.
            let _ = unsafe { libc::copy_file_range(one, &mut from, two, &mut to, len as usize, 0) };
        }
    }
}

#[test]
fn no_log_level_puts_names_or_contents_into_the_log() {
    let store = Store::encrypted();
    for filter in ["trace", "fuser=trace", "fuser::request=trace"] {
        let dir = store.home().join("mnt");
        let _ = fs::create_dir(&dir);
        let mut command = store.command(&args!["mount", store.path(), dir]);
        run(command.env("REWINDFS_LOG", filter)).expect_ok();
        let at = |name: &str| dir.join(name);
        fs::write(at("MARKER-name"), "MARKER-content").expect("writing");
        fs::rename(at("MARKER-name"), at("MARKER-renamed")).expect("renaming");
        fs::read(at("MARKER-renamed")).expect("reading");
        std::os::unix::fs::symlink("MARKER-target", at("MARKER-link")).expect("linking");
        fs::read_dir(&dir).expect("listing").for_each(drop);
        fs::remove_dir(at("MARKER-missing")).expect_err("there is none");
        mkdir(&at("MARKER-dir"), 0o755).expect("mkdir");
        // What `isatty` asks, which Python does of every file it opens.
        run(Command::new("sh").args(["-c", "test -t 0 < MARKER-renamed || true"]).current_dir(&dir))
            .expect_ok();
        let log = store.json(&args!["status", dir]).remove(0);
        let node = log.get("node").and_then(|n| n.as_str()).expect("a node id");
        let log = PathBuf::from(format!("/var/log/rewindfs/{node}.log"));
        store.ok(&args!["snapshot", "create", dir]);
        for name in ["MARKER-renamed", "MARKER-link"] {
            fs::remove_file(at(name)).expect("removing");
        }
        fs::remove_dir(at("MARKER-dir")).expect("rmdir");
        store.ok(&args!["umount", dir]);
        let text = fs::read_to_string(log).expect("the log");
        assert!(!text.contains("MARKER"), "{filter}: {text}");
        assert!(!text.contains("Not Implemented"), "{filter}: {text}");
    }
}
