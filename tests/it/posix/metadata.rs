//! Modes, owners, times, extended attributes, filesystem statistics.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use nix::errno::Errno;

use crate::harness::Twin;
use crate::harness::sys::{
    chmod, chown, facts, get_xattr, list_xattrs, mkdir, mtime, remove_xattr, set_times, set_xattr, special,
};

/// One of each kind to try attributes on.
const KINDS: [&str; 4] = ["file", "dir", "link", "fifo"];

fn with_kinds() -> Twin {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        fs::write(dir.join("file"), b"content")?;
        mkdir(&dir.join("dir"), 0o755)?;
        symlink("file", dir.join("link"))?;
        special(&dir.join("fifo"), nix::sys::stat::SFlag::S_IFIFO, 0o644, 0)
    });
    twin
}

#[test]
fn all_twelve_mode_bits_and_any_owner_are_kept() {
    let mut twin = with_kinds();
    for mode in [0, 0o777, 0o400, 0o7777, 0o1777, 0o2755, 0o4711, 0o644] {
        for kind in ["file", "dir", "fifo"] {
            let facts = twin.ok("chmod", |dir| {
                chmod(&dir.join(kind), mode)?;
                facts(&dir.join(kind))
            });
            assert_eq!(facts.mode & 0o7777, mode, "{kind}");
        }
    }
    for (uid, gid) in [(1000, 1000), (0, 65_534), (u32::MAX - 1, u32::MAX - 1), (1 << 31, 7)] {
        for kind in KINDS {
            let facts = twin.ok("chown", |dir| {
                chown(&dir.join(kind), uid, gid)?;
                facts(&dir.join(kind))
            });
            assert_eq!((facts.uid, facts.gid), (uid, gid), "{kind}");
        }
    }
    twin.compare_over_remount();
}

#[test]
fn times_have_nanoseconds_and_reach_before_1970_and_after_2038() {
    let mut twin = with_kinds();
    let moments = [
        (0, 0),
        (0, 1),
        (-1, 999_999_999),
        (-2_000_000_000, 5),
        (2_147_483_648, 123_456_789),
        (9_000_000_000, 9),
    ];
    for (i, moment) in moments.into_iter().enumerate() {
        for kind in KINDS {
            let seen = twin.ok("utimensat", |dir| {
                let path = dir.join(format!("{kind}-{i}"));
                fs::rename(dir.join(kind), &path)?;
                let atime = (moment.0 + 1, 7);
                set_times(&path, atime, moment)?;
                let m = path.symlink_metadata()?;
                fs::rename(&path, dir.join(kind))?;
                Ok(((m.atime(), m.atime_nsec()) == atime, (m.mtime(), m.mtime_nsec())))
            });
            assert_eq!(seen, (true, moment), "{kind}");
        }
        twin.compare_over_remount();
    }
}

#[test]
fn writing_and_changing_moves_the_times_that_posix_says() {
    let twin = Twin::new();
    let old = (1_000_000_000, 5);
    let moved = twin.ok("mtime and ctime", |dir| {
        let path = dir.join("f");
        fs::write(&path, b"content")?;
        let mut moved = Vec::new();
        let mut after = |act: &dyn Fn(&Path) -> std::io::Result<()>| {
            set_times(&path, old, old)?;
            let before = path.metadata()?;
            // Longer than a tick of the kernel's coarse clock.
            std::thread::sleep(std::time::Duration::from_millis(30));
            act(&path)?;
            let now = path.metadata()?;
            let ctime = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec());
            moved.push((mtime(&path)? != old, ctime(&now) > ctime(&before)));
            Ok::<(), std::io::Error>(())
        };
        after(&|p| {
            let file = File::options().write(true).open(p)?;
            file.write_all_at(b"x", 0)?;
            file.sync_all()
        })?;
        after(&|p| File::options().write(true).open(p)?.set_len(3))?;
        after(&|p| chmod(p, 0o600))?;
        after(&|p| chown(p, 1, 1))?;
        after(&|p| set_xattr(p, "user.a", b"1", 0))?;
        after(&|p| fs::hard_link(p, p.with_file_name("g")))?;
        after(&|p| fs::remove_file(p.with_file_name("g")))?;
        after(&|p| fs::rename(p, p.with_file_name("h")).and_then(|()| fs::rename(p.with_file_name("h"), p)))?;
        after(&|p| fs::read(p).map(drop))?;
        Ok(moved)
    });
    assert_eq!(moved[0], (true, true), "a write moves both times");
    assert_eq!(moved[8], (false, false), "a read moves neither");
}

#[test]
fn extended_attributes_of_all_namespaces_are_kept() {
    let mut twin = with_kinds();
    // Four of them fit into what ext4 has room for.
    let big = vec![b'v'; 600];
    let values: [&[u8]; 4] = [b"", b"text", b"\0\xff\n", &big];
    for kind in KINDS {
        for name in ["user.a", "user.with space/slash", "trusted.b", "security.c"] {
            for value in values {
                let _: Result<_, Errno> = twin.same(&format!("{name} on {kind}"), |dir| {
                    let path = dir.join(kind);
                    set_xattr(&path, name, value, 0)?;
                    Ok((get_xattr(&path, name.as_bytes())?, list_xattrs(&path)?))
                });
            }
        }
    }
    let names = twin.ok("names on a file", |dir| list_xattrs(&dir.join("file")));
    assert_eq!(names.len(), 4, "{names:?}");
    twin.compare_over_remount();
    twin.ok("removing", |dir| {
        remove_xattr(&dir.join("file"), "user.a")?;
        remove_xattr(&dir.join("dir"), "trusted.b")?;
        list_xattrs(&dir.join("file"))
    });
    twin.compare_over_remount();
}

#[test]
fn the_flags_and_errors_of_extended_attributes_are_as_on_ext4() {
    let twin = with_kinds();
    let file = |dir: &Path| dir.join("file");
    let set =
        |name: &'static str, flags: i32| move |dir: &Path| set_xattr(&dir.join("file"), name, b"1", flags);
    twin.err("replacing what is not there", Errno::ENODATA, set("user.a", libc::XATTR_REPLACE));
    twin.ok("creating", set("user.a", libc::XATTR_CREATE));
    twin.err("creating twice", Errno::EEXIST, set("user.a", libc::XATTR_CREATE));
    twin.ok("replacing", set("user.a", libc::XATTR_REPLACE));
    twin.err("an unknown namespace", Errno::EOPNOTSUPP, set("unknown.a", 0));
    twin.err("no namespace", Errno::EOPNOTSUPP, set("plain", 0));
    twin.same("an empty name in a namespace", set("user.", 0)).expect_err("a name is needed");
    twin.err("unknown flags", Errno::EINVAL, set("user.b", 0x40));
    twin.same("a name over 255 bytes", |dir| {
        set_xattr(&file(dir), &format!("user.{}", "n".repeat(251)), b"", 0)
    })
    .expect_err("XATTR_NAME_MAX is 255");
    twin.ok("a name of 255 bytes", |dir| {
        set_xattr(&file(dir), &format!("user.{}", "n".repeat(250)), b"long", 0)?;
        get_xattr(&file(dir), format!("user.{}", "n".repeat(250)).as_bytes())
    });
    twin.err("a value over 64 KiB", Errno::E2BIG, |dir| set_xattr(&file(dir), "user.b", &[0; 65_537], 0));
    twin.err("getting what is not there", Errno::ENODATA, |dir| {
        get_xattr(&file(dir), b"user.none").map(drop)
    });
    twin.err("removing what is not there", Errno::ENODATA, |dir| remove_xattr(&file(dir), "user.none"));
    twin.same("user. on a symbolic link", |dir| set_xattr(&dir.join("link"), "user.a", b"1", 0))
        .expect_err("user attributes are for files and directories");
    // ext4 has room for 4 KiB in all here, so the largest value Linux allows is ours alone.
    let path = twin.mount().path().join("file");
    let value = vec![0xa5; 65_536];
    set_xattr(&path, "user.largest", &value, 0).expect("64 KiB of value");
    assert!(get_xattr(&path, b"user.largest").expect("reading it") == value);
}

#[test]
fn a_full_list_of_attribute_names_takes_new_values_and_no_more_names() {
    let twin = with_kinds();
    let path = twin.mount().path().join("file");
    let name = |n: usize| format!("user.{n:0>250}");
    // 256 bytes each, with the zero byte between them: 64 KiB together, of which ext4 has room for 4.
    for n in 0..256 {
        set_xattr(&path, &name(n), b"1", 0).expect("it fits");
    }
    assert_eq!(list_xattrs(&path).expect("listing").len(), 256);
    let full = set_xattr(&path, "user.a", b"", 0).expect_err("64 KiB and no more");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    set_xattr(&path, &name(7), b"other", 0).expect("a name that is there takes no more room");
    remove_xattr(&path, &name(8)).expect("removing");
    set_xattr(&path, "user.a", b"", 0).expect("there is room again");
}

#[test]
fn a_value_that_does_not_fit_the_readers_buffer_is_erange() {
    use std::os::unix::ffi::OsStrExt;
    let twin = with_kinds();
    twin.ok("setting", |dir| set_xattr(&dir.join("file"), "user.a", b"0123456789", 0));
    twin.err("five bytes of room for ten", Errno::ERANGE, |dir| {
        let path = std::ffi::CString::new(dir.join("file").as_os_str().as_bytes())?;
        let mut buf = [0u8; 5];
        // SAFETY: the buffer is as long as said and both strings are live.
        let r =
            unsafe { libc::lgetxattr(path.as_ptr(), c"user.a".as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
        Ok(Errno::result(r).map(drop)?)
    });
}

#[test]
fn statfs_tells_a_sane_filesystem() {
    let twin = Twin::new();
    let stat = nix::sys::statvfs::statvfs(twin.mount().path()).expect("statvfs");
    let below = nix::sys::statvfs::statvfs(twin.plain()).expect("statvfs of the filesystem below");
    assert!(stat.block_size().is_power_of_two() && stat.fragment_size().is_power_of_two(), "{stat:?}");
    assert_eq!(stat.name_max(), 255);
    assert!(stat.blocks() >= stat.blocks_free() && stat.blocks_free() >= stat.blocks_available(), "{stat:?}");
    assert!(stat.blocks_available() > 0 && stat.files_free() > 0, "there is room: {stat:?}");
    let bytes = |s: &nix::sys::statvfs::Statvfs, blocks: u64| blocks.saturating_mul(s.fragment_size());
    assert!(
        bytes(&stat, stat.blocks_available()) <= bytes(&below, below.blocks_free()),
        "no more room is promised than the filesystem below has: {stat:?} {below:?}"
    );
    assert!(!stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
}

#[test]
fn inode_numbers_are_unique_and_survive_a_remount() {
    let mut twin = with_kinds();
    let inodes = |twin: &Twin| {
        KINDS.map(|kind| twin.mount().path().join(kind).symlink_metadata().expect("stat").ino())
    };
    let before = inodes(&twin);
    let unique: std::collections::BTreeSet<u64> = before.into_iter().collect();
    assert_eq!(unique.len(), KINDS.len(), "{before:?}");
    twin.remount();
    assert_eq!(before, inodes(&twin));
    // A name that is used again is another file.
    let path = twin.mount().path().join("file");
    let open = File::open(&path).expect("opening");
    fs::remove_file(&path).expect("removing");
    fs::write(&path, b"new").expect("creating");
    assert_ne!(open.metadata().expect("fstat").ino(), path.metadata().expect("stat").ino());
}
