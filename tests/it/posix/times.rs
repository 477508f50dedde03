//! Times that are set: how far they reach, and who may set them.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::harness::sys::{
    NOBODY, as_user, atime, chown, mkdir, mtime, open_rw, set_times, special, write_file,
};
use crate::harness::{Mount, Store, Twin};

fn utimens(path: &Path, access: (i64, i64), modification: (i64, i64)) -> io::Result<()> {
    set_times(path, access, modification)
}

const NOW: (i64, i64) = (0, libc::UTIME_NOW);
const OMIT: (i64, i64) = (0, libc::UTIME_OMIT);
const THEN: (i64, i64) = (1_234_567_890, 5);

#[test]
fn now_and_omit_set_what_they_say_for_whom_they_may() {
    let twin = Twin::new();
    let files = [("his", NOBODY, 0o600), ("open", 0, 0o666), ("shut", 0, 0o644), ("unreadable", 0, 0o622)];
    let old = (1_000_000_000, 7);
    let mut refused = 0;
    for (name, owner, mode) in files {
        for access in [NOW, OMIT, THEN, (5, 1_000_000_000), (5, -1)] {
            for modification in [NOW, OMIT, THEN, (5, 1_000_000_000)] {
                for who in [0, NOBODY] {
                    let what = format!("{access:?} and {modification:?} on {name} by {who}");
                    let told = twin.same(&what, |dir| {
                        let path = dir.join(name);
                        write_file(&path, mode, b"")?;
                        chown(&path, owner, owner)?;
                        set_times(&path, old, old)?;
                        let before = path.metadata()?;
                        let done = as_user(who, who, || utimens(&path, access, modification));
                        let after = path.metadata()?;
                        // Set, left alone, or that of this moment.
                        let kind = |time: (i64, i64)| if [old, THEN].contains(&time) { time } else { (1, 1) };
                        let ctime = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec());
                        let same_ctime =
                            access == OMIT && modification == OMIT && ctime(&before) == ctime(&after);
                        Ok((
                            done.map_err(|e| e.raw_os_error()),
                            kind(atime(&path)?),
                            kind(mtime(&path)?),
                            same_ctime,
                        ))
                    });
                    refused += u32::from(told.expect("stat works").0.is_err());
                }
            }
        }
    }
    assert!((60..140).contains(&refused), "{refused} of 160 were refused");
}

#[test]
fn the_edges_of_a_second_are_kept_before_and_after_1970() {
    let mut twin = Twin::new();
    for (i, secs) in
        [-2_147_483_647, -1_000_000_001, -2, -1, 0, 1, 2_147_483_647, 2_147_483_648, 15_032_385_534]
            .into_iter()
            .enumerate()
    {
        for nanos in [0, 1, 500_000_000, 999_999_999] {
            let seen = twin.ok(&format!("{secs} s and {nanos} ns"), |dir| {
                let path = dir.join(format!("f{i}-{nanos}"));
                fs::write(&path, b"")?;
                set_times(&path, (secs, nanos), (secs, 999_999_999 - nanos))?;
                Ok((atime(&path)?, mtime(&path)?))
            });
            assert_eq!(seen, ((secs, nanos), (secs, 999_999_999 - nanos)));
        }
    }
    twin.compare_over_remount();
    let kept = twin.ok("the last one", |dir| mtime(&dir.join("f8-1")));
    assert_eq!(kept, (15_032_385_534, 999_999_998));
}

/// Seconds that ext4 cannot hold: the year 1, the year 9999, and as far as a number of 64 bits goes.
const FAR: [i64; 8] = [
    -62_135_596_800,
    253_402_300_799,
    -15_032_385_536,
    15_032_385_536,
    1 << 40,
    -(1 << 40),
    i64::MAX - 1,
    i64::MIN + 1,
];

fn far_times(mount: &Mount) -> Vec<((i64, i64), (i64, i64))> {
    let times = |i: usize| {
        let path = mount.path().join(format!("f{i}"));
        (atime(&path).expect("stat"), mtime(&path).expect("stat"))
    };
    (0..FAR.len()).map(times).collect()
}

#[test]
fn times_that_ext4_cannot_hold_are_kept_exactly() {
    let mut mount = Store::encrypted().mount();
    for (i, secs) in FAR.into_iter().enumerate() {
        let path = mount.path().join(format!("f{i}"));
        fs::write(&path, b"").expect("writing");
        set_times(&path, (secs, 1), (secs, 999_999_999)).unwrap_or_else(|e| panic!("{secs}: {e}"));
    }
    let expected: Vec<_> = FAR.iter().map(|secs| ((*secs, 1), (*secs, 999_999_999))).collect();
    assert_eq!(far_times(&mount), expected, "as set");
    mount.snapshot("then");
    mount = mount.remount();
    assert_eq!(far_times(&mount), expected, "after a remount");
    let store = mount.umount();
    fs::remove_dir_all(store.path().join("index")).expect("deleting the index");
    mount = store.mount();
    assert_eq!(far_times(&mount), expected, "after the index was rebuilt");
    for (i, (access, modification)) in expected.iter().enumerate() {
        let past = mount.at("then").join(format!("f{i}"));
        assert_eq!((atime(&past).expect("stat"), mtime(&past).expect("stat")), (*access, *modification));
    }
}

#[test]
fn times_of_every_kind_of_file_can_be_set_by_path_link_and_descriptor() {
    let mut twin = Twin::new();
    twin.ok("preparing", |dir| {
        fs::write(dir.join("file"), b"")?;
        mkdir(&dir.join("dir"), 0o755)?;
        special(&dir.join("fifo"), nix::sys::stat::SFlag::S_IFIFO, 0o600, 0)?;
        symlink("file", dir.join("link"))?;
        symlink("nowhere", dir.join("dangling"))
    });
    let [a, m] = [TimeSpec::new(-5, 5), TimeSpec::new(3_000_000_000, 6)];
    for name in ["file", "dir", "fifo", "link", "dangling"] {
        for (flags, follows) in
            [(UtimensatFlags::NoFollowSymlink, false), (UtimensatFlags::FollowSymlink, true)]
        {
            let _: Result<_, _> = twin.same(&format!("{name}, {follows}"), |dir| {
                utimensat(AT_FDCWD, &dir.join(name), &a, &m, flags)?;
                let seen = (mtime(&dir.join(name))?, mtime(&dir.join("file"))?);
                set_times(&dir.join(name), THEN, THEN)?;
                set_times(&dir.join("file"), THEN, THEN)?;
                Ok(seen)
            });
        }
    }
    twin.ok("by descriptor", |dir| {
        let file = open_rw(&dir.join("file"))?;
        nix::sys::stat::futimens(&file, &a, &m)?;
        // What is written afterwards moves it again.
        let set = mtime(&dir.join("file"))?;
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0)?;
        file.sync_all()?;
        let moved = mtime(&dir.join("file"))? != set;
        nix::sys::stat::futimens(&file, &a, &m)?;
        Ok((set, moved, mtime(&dir.join("file"))?))
    });
    twin.err("of what is not there", Errno::ENOENT, |dir| set_times(&dir.join("none"), THEN, THEN));
    twin.compare_over_remount();
}

#[test]
fn a_time_that_was_set_stays_when_earlier_writes_are_committed_later() {
    let mut twin = Twin::new();
    twin.ok("written, set, left alone", |dir| {
        for i in 0..20 {
            let path = dir.join(format!("f{i}"));
            let file = fs::File::create(&path)?;
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![i as u8; 50_000], 0)?;
            set_times(&path, (5, 5), (6, 6))?;
            // What closing and syncing commit must not move it.
            drop(file);
            if i % 2 == 0 {
                fs::File::open(&path)?.sync_all()?;
            }
        }
        (0..20).map(|i| mtime(&dir.join(format!("f{i}")))).collect::<io::Result<Vec<_>>>()
    });
    twin.compare_over_remount();
}
