//! `fallocate`: every mode at every border.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;

use crate::harness::sys::{allocated, data_ranges, facts, fallocate, mtime, open_rw, set_times};
use crate::harness::twin::errno;
use crate::harness::{Rng, Twin};

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const COLLAPSE: i32 = libc::FALLOC_FL_COLLAPSE_RANGE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
const INSERT: i32 = libc::FALLOC_FL_INSERT_RANGE;
const UNSHARE: i32 = libc::FALLOC_FL_UNSHARE_RANGE;

/// Bytes of the file that most cases begin with.
const SIZE: i64 = 600_000;

fn fresh(path: &Path) -> io::Result<File> {
    sized(path, SIZE)
}

fn sized(path: &Path, size: i64) -> io::Result<File> {
    fs::write(path, Rng::new(9).bytes(size as usize))?;
    open_rw(path)
}

#[test]
fn every_mode_at_every_border_answers_as_on_ext4() {
    let mut twin = Twin::new();
    let modes = [0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP, PUNCH, PUNCH | ZERO | KEEP, UNSHARE, 0x4000];
    let size = 280_000;
    let offsets = [-1, 0, 1, 4096, 262_143, 262_144, size - 1, size, size + 200_000];
    let lens = [-1, 0, 1, 4095, 4097, 262_144, 400_000];
    let mut done = 0;
    for (i, mode) in modes.into_iter().enumerate() {
        for (j, offset) in offsets.into_iter().enumerate() {
            for len in lens {
                let told = twin.same(&format!("mode {mode:#x}, {len} bytes at {offset}"), |dir| {
                    let path = dir.join("f");
                    let file = sized(&path, size)?;
                    let told = errno(fallocate(&file, mode, offset, len));
                    if told.is_ok() && (i + j) % 5 == 0 {
                        fs::copy(&path, dir.join(format!("kept-{mode}-{offset}-{len}")))?;
                    }
                    // All of it, and what is behind a later end.
                    file.set_len(900_000)?;
                    let mut found = vec![1; 910_000];
                    let len = file.read_at(&mut found, 0)?;
                    let sum = found[..len]
                        .iter()
                        .fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
                    let size = facts(&path)?.size;
                    Ok((told, size, len, sum))
                });
                done += u32::from(told.is_ok_and(|told| told.0.is_ok()));
            }
        }
    }
    assert!((150..400).contains(&done), "{done} of {} succeeded", modes.len() * offsets.len() * lens.len());
    twin.compare_over_remount();
}

#[test]
fn sizes_after_fallocate_are_those_of_ext4() {
    let twin = Twin::new();
    for mode in [0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP] {
        for (offset, len) in
            [(0, 1), (SIZE - 10, 10), (SIZE - 10, 11), (SIZE, 1), (SIZE + 5000, 10_000), (1 << 33, 7)]
        {
            twin.ok(&format!("mode {mode:#x}, {len} bytes at {offset}"), |dir| {
                let file = fresh(&dir.join("f"))?;
                fallocate(&file, mode, offset, len)?;
                Ok(file.metadata()?.len())
            });
        }
    }
}

#[test]
fn collapsing_and_inserting_are_refused_wherever_they_are_asked_for() {
    let twin = Twin::new();
    let file = fresh(&twin.mount().path().join("f")).expect("writing");
    for mode in [COLLAPSE, INSERT, COLLAPSE | KEEP, INSERT | ZERO] {
        for (offset, len) in [(0, 4096), (4096, 4096), (1, 1), (SIZE, 4096), (0, SIZE)] {
            let told = errno(fallocate(&file, mode, offset, len));
            assert_eq!(told, Err(Errno::EOPNOTSUPP), "mode {mode:#x}, {len} bytes at {offset}");
        }
    }
    let bytes = fs::read(twin.mount().path().join("f")).expect("reading");
    assert!(bytes == Rng::new(9).bytes(SIZE as usize), "nothing was changed");
}

#[test]
fn fallocate_of_what_is_no_file_or_not_open_for_writing_is_refused_as_on_ext4() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        fs::create_dir(dir.join("d"))?;
        crate::harness::sys::special(&dir.join("p"), nix::sys::stat::SFlag::S_IFIFO, 0o600, 0)?;
        fresh(&dir.join("f")).map(drop)
    });
    for mode in [0, KEEP, PUNCH | KEEP, ZERO] {
        twin.err("through a descriptor for reading", Errno::EBADF, |dir| {
            fallocate(&File::open(dir.join("f"))?, mode, 0, 10)
        });
        twin.same("of a directory", |dir| fallocate(&File::open(dir.join("d"))?, mode, 0, 10))
            .expect_err("directories have no bytes");
        twin.same("of a fifo", |dir| fallocate(&open_rw(&dir.join("p"))?, mode, 0, 10))
            .expect_err("fifos have no bytes");
    }
    let _: Result<(), _> = twin.same("of a descriptor that appends", |dir| {
        fallocate(&OpenOptions::new().append(true).open(dir.join("f"))?, 0, 0, 700_000)
    });
    let _: Result<(), _> = twin.same("a hole through one", |dir| {
        fallocate(&OpenOptions::new().append(true).open(dir.join("f"))?, PUNCH | KEEP, 0, 5000)
    });
    twin.compare("after all that");
}

#[test]
fn punched_and_zeroed_ranges_are_holes_and_reserved_ones_take_nothing() {
    let twin = Twin::new();
    let path = twin.mount().path().join("f");
    for mode in [PUNCH | KEEP, ZERO | KEEP] {
        let file = fresh(&path).expect("writing");
        fallocate(&file, mode, 100_000, 300_000).expect("making a hole");
        let ranges = data_ranges(&file).expect("SEEK_DATA");
        assert_eq!(ranges, [(0, 100_000), (400_000, SIZE as u64)], "mode {mode:#x}");
        file.sync_all().expect("syncing");
        let taken = allocated(&path).expect("stat");
        assert!(taken < SIZE as u64 - 250_000, "{taken} bytes by st_blocks");
        fallocate(&file, PUNCH | KEEP, 0, SIZE).expect("emptying it");
        assert_eq!(allocated(&path).expect("stat"), 0);
        assert_eq!(file.metadata().expect("stat").len(), SIZE as u64);
    }
    let file = File::create(twin.mount().path().join("reserved")).expect("creating");
    fallocate(&file, 0, 0, 1 << 45).expect("32 TiB, which no disk here has");
    fallocate(&file, KEEP, 1 << 50, 1 << 50).expect("more, behind the end");
    let found = file.metadata().expect("stat");
    assert_eq!((found.len(), found.blocks()), (1 << 45, 0));
    assert!(data_ranges(&file).expect("SEEK_DATA").is_empty());
}

#[test]
fn the_end_of_the_largest_file_is_the_end_of_fallocate() {
    let twin = Twin::new();
    let file = File::create(twin.mount().path().join("f")).expect("creating");
    let max = i64::MAX;
    assert_eq!(errno(fallocate(&file, 0, max - 10, 10)), Ok(()), "up to the last byte");
    assert_eq!(file.metadata().expect("stat").len(), max as u64);
    for mode in [0, KEEP, PUNCH | KEEP, ZERO] {
        assert_eq!(errno(fallocate(&file, mode, max - 10, 11)), Err(Errno::EFBIG), "mode {mode:#x}");
        twin.err("past it", Errno::EFBIG, |dir| {
            fallocate(
                &OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("g"))?,
                mode,
                max,
                max,
            )
        });
    }
}

#[test]
fn fallocate_moves_the_times_that_ext4_moves() {
    let twin = Twin::new();
    let old = (1_000_000_000, 5);
    for (what, mode, offset, len) in [
        ("growing", 0, SIZE, 5000),
        ("reserving inside", 0, 0, 5000),
        ("reserving behind the end", KEEP, SIZE, 5000),
        ("punching", PUNCH | KEEP, 10, 9000),
        ("zeroing", ZERO | KEEP, 10, 9000),
        ("zeroing and growing", ZERO, SIZE - 10, 9000),
    ] {
        let moved = twin.ok(what, |dir| {
            let path = dir.join("f");
            let file = fresh(&path)?;
            set_times(&path, old, old)?;
            let before = path.metadata()?;
            std::thread::sleep(std::time::Duration::from_millis(30));
            fallocate(&file, mode, offset, len)?;
            let after = path.metadata()?;
            let ctime = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec());
            Ok((mtime(&path)? != old, ctime(&after) > ctime(&before)))
        });
        println!("{what}: mtime and ctime moved: {moved:?}");
    }
}
