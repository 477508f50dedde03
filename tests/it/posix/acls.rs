//! POSIX ACLs: who gets in, what is handed on, and how they and the mode are one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::{AccessFlags, access};

use crate::harness::acl::{ACCESS, DEFAULT, acl};
use crate::harness::sys::{
    Facts, NOBODY, as_member, as_user, chmod, chown, facts, get_xattr, in_directory, list_xattrs, mkdir,
    names, set_xattr, special, write_file,
};
use crate::harness::{Twin, args, tool};

/// What an ACL shows of itself: the facts, and both attributes where they exist.
type Shown = (Facts, Vec<Vec<u8>>, Result<Vec<u8>, Errno>, Result<Vec<u8>, Errno>);

fn shown(path: &Path) -> io::Result<Shown> {
    let value = |name: &str| crate::harness::twin::errno(get_xattr(path, name.as_bytes()));
    Ok((facts(path)?, list_xattrs(path)?, value(ACCESS), value(DEFAULT)))
}

#[test]
fn an_acl_set_as_an_attribute_is_one_for_the_tools_and_the_other_way_round() {
    let mut twin = Twin::new();
    let text = twin.ok("raw, then getfacl", |dir| {
        write_file(&dir.join("raw"), 0o640, b"x")?;
        set_xattr(&dir.join("raw"), ACCESS, &acl("u:rw- u65534:r-x g:r-- g4242:-w- m:rwx o:--x"), 0)?;
        let text = tool(dir, "getfacl", &args!["--numeric", "--omit-header", "raw"]);
        Ok((text, shown(&dir.join("raw"))?))
    });
    assert_eq!(text.0.trim(), "user::rw-\nuser:65534:r-x\ngroup::r--\ngroup:4242:-w-\nmask::rwx\nother::--x");
    assert_eq!(text.1.0.mode & 0o777, 0o671, "the mask shows in the mode");
    let value = twin.ok("setfacl, then raw", |dir| {
        write_file(&dir.join("tools"), 0o600, b"x")?;
        mkdir(&dir.join("dir"), 0o755)?;
        tool(dir, "setfacl", &args!["-m", "u:65534:rw,g:4242:r", "tools"]);
        tool(dir, "setfacl", &args!["-m", "u:65534:rwx,d:u:65534:rwx,d:o::-", "dir"]);
        Ok((shown(&dir.join("tools"))?, shown(&dir.join("dir"))?))
    });
    assert_eq!(value.0.1, [ACCESS.as_bytes()], "the names that a listing shows");
    assert_eq!(value.0.2, Ok(acl("u:rw- u65534:rw- g:--- g4242:r-- m:rw- o:---")));
    assert_eq!(value.1.3, Ok(acl("u:rwx u65534:rwx g:r-x m:rwx o:---")));
    twin.compare_over_remount();
}

#[test]
fn named_users_named_groups_and_the_mask_decide_who_gets_in() {
    let twin = Twin::new();
    let acls = [
        "u:rwx u2000:rwx g:--- m:rwx o:---",
        "u:rwx u2000:rwx g:rwx m:r-- o:---",
        "u:--- u2000:-w- g:r-x g4242:-w- m:rwx o:r--",
        "u:r-- u2000:--- g:rwx g4242:rwx m:rwx o:rwx",
        "u:rwx u2000:rwx g:rwx g4242:--- g4343:rwx m:rwx o:rwx",
        "u:rwx g:--- g4242:r-- g4343:-w- m:rw- o:rwx",
    ];
    for (i, text) in acls.iter().enumerate() {
        let _ = twin.ok(text, |dir| {
            let path = dir.join(format!("f{i}"));
            write_file(&path, 0o640, b"x")?;
            chown(&path, 1000, 4000)?;
            set_xattr(&path, ACCESS, &acl(text), 0)?;
            shown(&path)
        });
    }
    let people: [(u32, u32, &[u32]); 9] = [
        (0, 0, &[]),
        (1000, 1000, &[]),
        (1000, 4242, &[]),
        (2000, 2000, &[]),
        (2000, 4000, &[4242]),
        (3000, 4000, &[]),
        (3000, 4242, &[]),
        (3000, 3000, &[4242, 4343]),
        (3000, 3000, &[]),
    ];
    let mut granted = 0;
    for (uid, gid, groups) in people {
        for (i, text) in acls.iter().enumerate() {
            let what = format!("user {uid}, group {gid} and {groups:?}, {text}");
            granted += twin.ok(&what, |dir| {
                let path = dir.join(format!("f{i}"));
                Ok(as_member(uid, gid, groups, || {
                    let rights = [AccessFlags::R_OK, AccessFlags::W_OK, AccessFlags::X_OK];
                    let asked = rights.map(|right| u32::from(access(&path, right).is_ok()));
                    let opened = [
                        File::open(&path).is_ok(),
                        File::options().write(true).open(&path).is_ok(),
                        File::options().read(true).write(true).open(&path).is_ok(),
                    ];
                    asked.into_iter().chain(opened.map(u32::from)).collect::<Vec<_>>()
                }))
            })[..3]
                .iter()
                .sum::<u32>();
        }
    }
    assert!((40..100).contains(&granted), "{granted} of {} rights were granted", 9 * acls.len() * 3);
}

#[test]
fn acls_of_directories_decide_about_the_names_in_them() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        for (name, text) in [
            ("enter", "u:rwx u65534:--x g:--- m:rwx o:---"),
            ("list", "u:rwx u65534:r-- g:--- m:rwx o:---"),
            ("make", "u:rwx u65534:-wx g:--- m:rwx o:---"),
            ("masked", "u:rwx u65534:rwx g:--- m:r-x o:---"),
            ("shut", "u:rwx u65534:--- g:rwx m:rwx o:rwx"),
        ] {
            mkdir(&dir.join(name), 0o755)?;
            write_file(&dir.join(name).join("f"), 0o644, b"x")?;
            set_xattr(&dir.join(name), ACCESS, &acl(text), 0)?;
        }
        Ok(())
    });
    for name in ["enter", "list", "make", "masked", "shut"] {
        type Attempt<'a> = (&'a str, &'a (dyn Fn(&Path) -> io::Result<()> + Sync));
        let attempts: [Attempt; 6] = [
            ("reading", &|d| fs::read(d.join("f")).map(drop)),
            ("listing", &|d| names(d).map(drop)),
            ("making", &|d| fs::write(d.join("new"), b"")),
            ("renaming", &|d| fs::rename(d.join("f"), d.join("g"))),
            ("removing", &|d| fs::remove_file(d.join("g"))),
            ("looking", &|d| facts(&d.join("f")).map(drop)),
        ];
        for (what, attempt) in attempts {
            let _: Result<(), _> = twin.same(&format!("{what} in {name}"), |dir| {
                as_user(NOBODY, NOBODY, || attempt(&dir.join(name)))
            });
        }
    }
    twin.compare("after all attempts");
}

/// One of each kind, made in the directory that is current.
fn make_all() -> io::Result<()> {
    for mode in [0o666, 0o600, 0o777, 0o640] {
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(format!("file-{mode:o}"))?;
        mkdir(Path::new(&format!("dir-{mode:o}")), mode)?;
        special(Path::new(&format!("fifo-{mode:o}")), SFlag::S_IFIFO, mode, 0)?;
        special(Path::new(&format!("node-{mode:o}")), SFlag::S_IFREG, mode, 0)?;
    }
    std::os::unix::net::UnixListener::bind("socket")?;
    symlink("target", "link")
}

#[test]
fn a_default_acl_is_handed_on_and_takes_the_place_of_the_umask() {
    let mut twin = Twin::new();
    let defaults = [
        "u:rwx u65534:rwx g:r-x g4242:rw- m:rwx o:r-x",
        "u:rw- u65534:rwx g:--- m:r-- o:---",
        "u:rwx g:rwx o:rwx",
        "u:r-x g:-w- o:---",
    ];
    for (i, text) in defaults.iter().enumerate() {
        for umask in [0o000, 0o022, 0o077] {
            let made = twin.ok(&format!("{text} under umask {umask:o}"), |dir| {
                let dir = dir.join(format!("d{i}-{umask:o}"));
                mkdir(&dir, 0o755)?;
                set_xattr(&dir, DEFAULT, &acl(text), 0)?;
                in_directory(&dir, umask, || {
                    make_all()?;
                    // Made below what inherited.
                    mkdir(Path::new("dir-777/sub"), 0o770)?;
                    fs::write("dir-777/sub/f", b"")?;
                    let all = names(Path::new("."))?.into_iter().map(|n| n.into());
                    let deep = ["dir-777/sub", "dir-777/sub/f"].map(std::path::PathBuf::from);
                    all.chain(deep).map(|path| Ok((shown(&path)?, path))).collect::<io::Result<Vec<_>>>()
                })
            });
            let dirs: Vec<_> =
                made.iter().filter(|(s, _)| s.0.mode & libc::S_IFMT == libc::S_IFDIR).collect();
            assert!(dirs.iter().all(|(s, _)| s.3.as_ref() == Ok(&acl(text))), "{dirs:?}");
        }
    }
    twin.compare_over_remount();
}

#[test]
fn without_a_default_acl_the_umask_is_obeyed() {
    let mut twin = Twin::new();
    for umask in [0o000, 0o022, 0o027, 0o177, 0o777] {
        let made = twin.ok(&format!("under umask {umask:o}"), |dir| {
            let dir = dir.join(format!("d-{umask:o}"));
            mkdir(&dir, 0o755)?;
            // An ACL of its own, and none to hand on.
            set_xattr(&dir, ACCESS, &acl("u:rwx u65534:rwx g:r-x m:rwx o:r-x"), 0)?;
            in_directory(&dir, umask, || {
                make_all()?;
                let all = names(Path::new("."))?.into_iter();
                all.map(|n| Ok((facts(Path::new(&n))?.mode, n))).collect::<io::Result<Vec<_>>>()
            })
        });
        let links = |mode: u32| mode & libc::S_IFMT == libc::S_IFLNK;
        assert!(made.iter().all(|(mode, _)| links(*mode) || mode & umask == 0), "{made:?}");
    }
    twin.compare_over_remount();
}

#[test]
fn chmod_moves_the_mask_and_an_acl_moves_the_mode() {
    let mut twin = Twin::new();
    let full = "u:rwx u65534:rwx g:rwx g4242:r-x m:rwx o:rwx";
    for (i, mode) in [0o000, 0o640, 0o604, 0o777, 0o070, 0o2750, 0o1711].into_iter().enumerate() {
        for kind in ["f", "d"] {
            let (facts, ..) = twin.ok("chmod of what has an ACL", |dir| {
                let path = dir.join(format!("{kind}{i}"));
                if kind == "f" {
                    fs::write(&path, b"")?;
                } else {
                    mkdir(&path, 0o755)?;
                }
                set_xattr(&path, ACCESS, &acl(full), 0)?;
                if kind == "d" {
                    set_xattr(&path, DEFAULT, &acl(full), 0)?;
                }
                chmod(&path, mode)?;
                shown(&path)
            });
            assert_eq!(facts.mode & 0o7777, mode);
        }
    }
    // The group's rights in the mode are the mask's, and the group's own stay behind it.
    let masked = twin.ok("closed and opened again", |dir| {
        let path = dir.join("again");
        fs::write(&path, b"")?;
        set_xattr(&path, ACCESS, &acl("u:rw- u65534:rw- g:r-- m:rw- o:---"), 0)?;
        chmod(&path, 0o600)?;
        let closed = as_user(NOBODY, NOBODY, || File::open(&path).is_ok());
        chmod(&path, 0o660)?;
        let open = as_user(NOBODY, NOBODY, || File::options().write(true).open(&path).is_ok());
        Ok((closed, open, shown(&path)?.2))
    });
    assert_eq!(masked, (false, true, Ok(acl("u:rw- u65534:rw- g:r-- m:rw- o:---"))));
    twin.compare_over_remount();
}

#[test]
fn an_acl_that_says_no_more_than_a_mode_becomes_one() {
    let mut twin = Twin::new();
    let minimal = twin.ok("a minimal ACL on a file and a directory", |dir| {
        write_file(&dir.join("f"), 0o600, b"")?;
        set_xattr(&dir.join("f"), ACCESS, &acl("u:rwx g:r-x o:--x"), 0)?;
        mkdir(&dir.join("d"), 0o700)?;
        set_xattr(&dir.join("d"), ACCESS, &acl("u:rwx g:-w- o:r--"), 0)?;
        Ok((shown(&dir.join("f"))?, shown(&dir.join("d"))?))
    });
    assert_eq!((minimal.0.0.mode & 0o777, minimal.1.0.mode & 0o777), (0o751, 0o724));
    assert!(minimal.0.1.is_empty() && minimal.0.2 == Err(Errno::ENODATA), "nothing is left of it");
    let narrowed = twin.ok("in the place of a full one", |dir| {
        set_xattr(&dir.join("f"), ACCESS, &acl("u:rwx u65534:rwx g:r-x m:rwx o:---"), 0)?;
        set_xattr(&dir.join("f"), ACCESS, &acl("u:rw- g:r-- o:---"), 0)?;
        shown(&dir.join("f"))
    });
    assert_eq!((narrowed.0.mode & 0o777, narrowed.1.len()), (0o640, 0));
    let masked = twin.ok("with a mask and nobody named", |dir| {
        set_xattr(&dir.join("f"), ACCESS, &acl("u:rw- g:rwx m:r-- o:---"), 0)?;
        shown(&dir.join("f"))
    });
    assert_eq!((masked.0.mode & 0o777, masked.1.len()), (0o640, 1));
    twin.compare_over_remount();
}

#[test]
fn an_owner_who_is_not_in_the_group_loses_setgid_with_an_acl() {
    let twin = Twin::new();
    let kept = twin.ok("setfacl by owners", |dir| {
        let mut kept = Vec::new();
        for (i, groups) in [&[][..], &[4242]].into_iter().enumerate() {
            for text in ["u:rwx u2000:rwx g:r-x m:rwx o:r-x", "u:rwx g:r-x o:---"] {
                let path = dir.join(format!("f{i}-{}", text.len()));
                write_file(&path, 0o755, b"")?;
                chown(&path, 1000, 4242)?;
                chmod(&path, 0o2755)?;
                as_member(1000, 1000, groups, || set_xattr(&path, ACCESS, &acl(text), 0))?;
                kept.push(facts(&path)?.mode & 0o2000 != 0);
            }
        }
        Ok(kept)
    });
    assert_eq!(kept, [false, false, true, true]);
}

#[test]
fn acls_that_make_no_sense_are_refused() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        write_file(&dir.join("f"), 0o644, b"")?;
        mkdir(&dir.join("d"), 0o755)?;
        symlink("f", dir.join("link"))
    });
    let full = acl("u:rwx u65534:rwx g:rwx m:rwx o:rwx");
    let mut future = full.clone();
    future[0] = 9;
    let mut tag = full.clone();
    tag[4] = 0x80;
    let mut rights = full.clone();
    rights[6] = 0x1f;
    let bad: [(&str, Vec<u8>); 12] = [
        ("a header alone, of another version", vec![3, 0, 0, 0]),
        ("half a header", vec![2, 0]),
        ("half an entry", full[..full.len() - 3].to_vec()),
        ("another version", future),
        ("an unknown kind of entry", tag),
        ("unknown rights", rights),
        ("no owner", acl("g:rwx o:rwx")),
        ("no others", acl("u:rwx g:rwx")),
        ("two owners", acl("u:rwx u:rwx g:rwx o:rwx")),
        ("the wrong order", acl("o:rwx g:rwx u:rwx")),
        ("a name without a mask", acl("u:rwx u65534:rwx g:rwx o:rwx")),
        ("text", b"user::rwx".to_vec()),
    ];
    for (what, value) in bad {
        for (name, file) in [(ACCESS, "f"), (ACCESS, "d"), (DEFAULT, "d")] {
            let refusal = twin.same(&format!("{what}: {name} of {file}"), |dir| {
                set_xattr(&dir.join(file), name, &value, 0)
            });
            assert!(refusal.is_err(), "{what} was taken for an ACL");
        }
    }
    twin.err("one to hand on, of a file", Errno::EACCES, |dir| {
        set_xattr(&dir.join("f"), DEFAULT, &acl("u:rwx g:rwx o:rwx"), 0)
    });
    twin.err("of a symbolic link", Errno::EOPNOTSUPP, |dir| {
        set_xattr(&dir.join("link"), ACCESS, &acl("u:rwx g:rwx o:rwx"), 0)
    });
    twin.err("of another's file", Errno::EPERM, |dir| {
        as_user(NOBODY, NOBODY, || set_xattr(&dir.join("f"), ACCESS, &acl("u:rwx g:rwx o:rwx"), 0))
    });
    for flags in [libc::XATTR_CREATE, libc::XATTR_REPLACE] {
        let _: Result<(), _> =
            twin.same(&format!("with flags {flags}"), |dir| set_xattr(&dir.join("f"), ACCESS, &full, flags));
    }
    twin.compare("refused ACLs change nothing");
}
