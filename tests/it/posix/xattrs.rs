//! Extended attributes: limits, flags, and who may see and change which.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::ptr;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, makedev};

use crate::harness::Twin;
use crate::harness::sys::{
    NOBODY, as_user, chmod, chown, get_xattr, list_xattrs, mkdir, remove_xattr, set_xattr, special,
    write_file,
};

const KINDS: [&str; 7] = ["file", "dir", "link", "fifo", "socket", "char", "block"];

fn with_kinds() -> Twin {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        write_file(&dir.join("file"), 0o666, b"content")?;
        mkdir(&dir.join("dir"), 0o755)?;
        symlink("file", dir.join("link"))?;
        for (name, kind, device) in [
            ("fifo", SFlag::S_IFIFO, 0),
            ("socket", SFlag::S_IFSOCK, 0),
            ("char", SFlag::S_IFCHR, makedev(1, 3)),
            ("block", SFlag::S_IFBLK, makedev(7, 99)),
        ] {
            special(&dir.join(name), kind, 0o666, device)?;
            chmod(&dir.join(name), 0o666)?;
        }
        chmod(&dir.join("dir"), 0o777)
    });
    twin
}

#[test]
fn every_namespace_on_every_kind_of_file_answers_as_on_ext4() {
    let mut twin = with_kinds();
    let names =
        ["user.a", "trusted.a", "security.a", "system.a", "user", "user.", "trusted.", "a", "other.a"];
    let mut refused = 0;
    for kind in KINDS {
        for name in names {
            for root in [true, false] {
                let who = if root { 0 } else { NOBODY };
                let what = |call: &str| format!("{call} {name} of {kind} by user {who}");
                let at = |dir: &Path| dir.join(kind);
                let set =
                    twin.same(&what("set"), |dir| as_user(who, who, || set_xattr(&at(dir), name, b"1", 0)));
                refused += u32::from(set.is_err());
                let _: Result<Vec<u8>, _> =
                    twin.same(&what("get"), |dir| as_user(who, who, || get_xattr(&at(dir), name.as_bytes())));
                let _: Result<Vec<Vec<u8>>, _> =
                    twin.same(&what("list"), |dir| as_user(who, who, || list_xattrs(&at(dir))));
                let _: Result<(), _> =
                    twin.same(&what("remove"), |dir| as_user(who, who, || remove_xattr(&at(dir), name)));
            }
        }
    }
    assert!(refused > 80, "only {refused} were refused");
    twin.compare_over_remount();
}

#[test]
fn the_flags_decide_about_every_value_that_is_there_or_not() {
    let twin = with_kinds();
    for name in ["user.a", "trusted.a", "security.a"] {
        for flags in [0, libc::XATTR_CREATE, libc::XATTR_REPLACE, libc::XATTR_CREATE | libc::XATTR_REPLACE, 8]
        {
            for before in [None, Some(&b""[..]), Some(b"before")] {
                for value in [&b""[..], b"before", b"after"] {
                    let what = format!("{name} with flags {flags}, {before:?} -> {value:?}");
                    let _: Result<(), _> = twin.same(&what, |dir| {
                        let path = dir.join("dir");
                        if let Some(before) = before {
                            set_xattr(&path, name, before, 0)?;
                        }
                        set_xattr(&path, name, value, flags)
                    });
                    twin.ok(&format!("{what}: what is there"), |dir| {
                        let path = dir.join("dir");
                        let found = list_xattrs(&path)?;
                        let value = get_xattr(&path, name.as_bytes()).ok();
                        let _ = remove_xattr(&path, name);
                        Ok((found, value))
                    });
                }
            }
        }
    }
}

#[test]
fn attributes_are_reached_by_path_by_link_and_by_descriptor() {
    let twin = with_kinds();
    twin.ok("by descriptor", |dir| {
        let file = File::open(dir.join("file"))?;
        // SAFETY: the names end with NUL and the value has the length given.
        let set =
            unsafe { libc::fsetxattr(file.as_raw_fd(), c"user.fd".as_ptr(), b"xyz".as_ptr().cast(), 3, 0) };
        Errno::result(set)?;
        let mut buf = [0u8; 16];
        // SAFETY: the buffer is as long as said.
        let got = unsafe {
            libc::fgetxattr(file.as_raw_fd(), c"user.fd".as_ptr(), buf.as_mut_ptr().cast(), buf.len())
        };
        let got = Errno::result(got)? as usize;
        // Past the symbolic link, unlike the calls of the harness.
        let by_link = fs::canonicalize(dir.join("link"))?;
        Ok((buf[..got].to_vec(), get_xattr(&by_link, b"user.fd")?, list_xattrs(&dir.join("link"))?))
    });
}

/// The raw call: what it returns with a buffer of that size.
fn list_into(path: &Path, size: usize) -> io::Result<usize> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut buf = vec![0u8; size];
    let start = if size == 0 { ptr::null_mut() } else { buf.as_mut_ptr() };
    // SAFETY: the buffer is as long as said.
    Ok(Errno::result(unsafe { libc::llistxattr(path.as_ptr(), start.cast(), size) })? as usize)
}

/// As [`list_into`], for a value.
fn get_into(path: &Path, name: &str, size: usize) -> io::Result<usize> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let name = std::ffi::CString::new(name)?;
    let mut buf = vec![0u8; size];
    let start = if size == 0 { ptr::null_mut() } else { buf.as_mut_ptr() };
    // SAFETY: the buffer is as long as said.
    Ok(Errno::result(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), start.cast(), size) })? as usize)
}

#[test]
fn buffers_that_are_too_small_are_erange_and_empty_ones_ask_for_the_size() {
    let twin = with_kinds();
    twin.ok("setting", |dir| {
        set_xattr(&dir.join("file"), "user.ten", b"0123456789", 0)?;
        set_xattr(&dir.join("file"), "user.empty", b"", 0)
    });
    for size in [0, 1, 9, 10, 11, 19, 20, 21, 100, 65_536, 70_000] {
        let _: Result<usize, _> = twin.same(&format!("the value into {size} bytes"), |dir| {
            get_into(&dir.join("file"), "user.ten", size)
        });
        let _: Result<usize, _> = twin.same(&format!("nothing into {size} bytes"), |dir| {
            get_into(&dir.join("file"), "user.empty", size)
        });
        let _: Result<usize, _> =
            twin.same(&format!("the names into {size} bytes"), |dir| list_into(&dir.join("file"), size));
        let _: Result<usize, _> =
            twin.same(&format!("no names into {size} bytes"), |dir| list_into(&dir.join("dir"), size));
    }
}

#[test]
fn names_of_255_bytes_and_values_of_64_kib_are_kept_and_longer_ones_refused() {
    let mut twin = with_kinds();
    for space in ["user.", "trusted.", "security."] {
        for len in [254, 255, 256, 300] {
            let name = space.to_owned() + &"n".repeat(len - space.len());
            let set = twin.same(&format!("{space} with {len} bytes"), |dir| {
                set_xattr(&dir.join("file"), &name, b"1", 0)?;
                get_xattr(&dir.join("file"), name.as_bytes())
            });
            assert_eq!(set.is_ok(), len <= 255, "{set:?}");
        }
    }
    // ext4 has room for one block of them, so the largest are ours alone.
    let path = twin.mount().path().join("dir");
    for len in [4096, 65_535, 65_536] {
        let value = vec![len as u8; len];
        set_xattr(&path, "user.big", &value, 0).expect("a large value");
        assert!(get_xattr(&path, b"user.big").expect("reading it") == value, "{len} bytes");
    }
    twin.err("a value of 65,537 bytes", Errno::E2BIG, |dir| {
        set_xattr(&dir.join("dir"), "user.more", &[1; 65_537], 0)
    });
    twin.remount();
    let path = twin.mount().path().join("dir");
    assert_eq!(get_xattr(&path, b"user.big").expect("after the remount").len(), 65_536);
}

#[test]
fn the_names_of_one_file_fit_into_64_kib_and_more_are_refused() {
    let twin = with_kinds();
    let path = twin.mount().path().join("file");
    let name = |i: u32| format!("user.{i:03}{}", "n".repeat(247));
    assert_eq!(name(0).len(), 255);
    // 256 bytes each, with the zero that ends it.
    for i in 0..256 {
        set_xattr(&path, &name(i), b"", 0).unwrap_or_else(|e| panic!("name {i}: {e}"));
    }
    assert_eq!(list_into(&path, 0).expect("the size"), 65_536);
    assert_eq!(list_xattrs(&path).expect("all names").len(), 256);
    let more = |name: &str, flags| crate::harness::twin::errno(set_xattr(&path, name, b"more", flags));
    assert_eq!(more("user.x", 0), Err(Errno::ENOSPC));
    assert_eq!(more(&name(7), 0), Ok(()), "what is there can be replaced");
    assert_eq!(more(&name(8), libc::XATTR_REPLACE), Ok(()));
    remove_xattr(&path, &name(7)).expect("removing");
    assert_eq!(more("user.x", libc::XATTR_CREATE), Ok(()));
    let mount = twin.mount().path().join("file");
    assert_eq!(list_xattrs(&mount).expect("all names").len(), 256);
}

#[test]
fn only_root_sees_that_there_are_trusted_attributes() {
    let mut twin = with_kinds();
    twin.ok("setting", |dir| {
        for kind in ["file", "dir"] {
            for name in ["trusted.secret", "user.open", "security.label"] {
                set_xattr(&dir.join(kind), name, b"value", 0)?;
            }
        }
        Ok(())
    });
    for kind in ["file", "dir"] {
        for (uid, names) in [(0, 3), (NOBODY, 2)] {
            let seen = twin.ok(&format!("the names that user {uid} sees"), |dir| {
                as_user(uid, uid, || list_xattrs(&dir.join(kind)))
            });
            assert_eq!(seen.len(), names, "{seen:?}");
            let size = twin.ok(&format!("the size that user {uid} is told"), |dir| {
                as_user(uid, uid, || list_into(&dir.join(kind), 0))
            });
            assert_eq!(size, seen.iter().map(|name| name.len() + 1).sum::<usize>());
        }
        twin.err("reading one", Errno::ENODATA, |dir| {
            as_user(NOBODY, NOBODY, || get_xattr(&dir.join(kind), b"trusted.secret").map(drop))
        });
        twin.err("setting one", Errno::EPERM, |dir| {
            as_user(NOBODY, NOBODY, || set_xattr(&dir.join(kind), "trusted.secret", b"x", 0))
        });
        twin.err("removing one", Errno::EPERM, |dir| {
            as_user(NOBODY, NOBODY, || remove_xattr(&dir.join(kind), "trusted.secret"))
        });
    }
    twin.compare_over_remount();
}

#[test]
fn user_attributes_follow_the_rights_to_the_file() {
    let twin = with_kinds();
    let cases = [0o600, 0o604, 0o602, 0o606, 0o640];
    for mode in cases {
        twin.ok("preparing", |dir| {
            let path = dir.join(format!("f{mode:o}"));
            write_file(&path, mode, b"")?;
            set_xattr(&path, "user.a", b"1", 0)
        });
        let at = |dir: &Path| dir.join(format!("f{mode:o}"));
        let _: Result<Vec<u8>, _> = twin.same(&format!("reading at {mode:o}"), |dir| {
            as_user(NOBODY, NOBODY, || get_xattr(&at(dir), b"user.a"))
        });
        let _: Result<(), _> = twin.same(&format!("setting at {mode:o}"), |dir| {
            as_user(NOBODY, NOBODY, || set_xattr(&at(dir), "user.b", b"1", 0))
        });
        let _: Result<(), _> = twin.same(&format!("removing at {mode:o}"), |dir| {
            as_user(NOBODY, NOBODY, || remove_xattr(&at(dir), "user.a"))
        });
        twin.ok("the names", |dir| as_user(NOBODY, NOBODY, || list_xattrs(&at(dir))));
    }
    twin.compare("after all attempts");
}

#[test]
fn on_a_sticky_directory_only_its_owner_sets_user_attributes() {
    let twin = with_kinds();
    for (owner, mode) in [(0, 0o1777), (0, 0o777), (NOBODY, 0o1777), (1000, 0o1757), (1000, 0o757)] {
        let set = twin.same(&format!("user {NOBODY} on a directory of {owner} with mode {mode:o}"), |dir| {
            let path = dir.join("dir");
            chown(&path, owner, owner)?;
            chmod(&path, mode)?;
            as_user(NOBODY, NOBODY, || set_xattr(&path, "user.a", b"1", 0))?;
            as_user(NOBODY, NOBODY, || remove_xattr(&path, "user.a"))
        });
        assert_eq!(set.is_ok(), owner == NOBODY || mode & 0o1000 == 0, "{set:?}");
    }
}

#[test]
fn the_mounts_own_attribute_is_answered_and_never_listed() {
    let twin = with_kinds();
    let root = twin.mount().path();
    for name in ["", "file", "dir"] {
        let answer = get_xattr(&root.join(name), b"user.rewindfs.mount").expect("the mount's answer");
        assert!(!answer.is_empty(), "{name:?}");
    }
    let names = list_xattrs(&root.join("file")).expect("the names");
    assert!(names.is_empty(), "so that nothing copies it: {names:?}");
}
