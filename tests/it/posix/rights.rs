//! Who may do what: another user's view, sticky and setgid directories, the umask.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;

use crate::harness::sys::{
    NOBODY, as_user, chmod, chown, facts, mkdir, names, set_times, set_xattr, write_file,
};
use crate::harness::{Twin, args, tool};

/// The same call as user nobody.
fn nobody<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    as_user(NOBODY, NOBODY, act)
}

#[test]
fn a_stranger_is_kept_out_of_what_is_not_his() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        mkdir(&dir.join("private"), 0o755)?;
        write_file(&dir.join("private/inside"), 0o644, b"x")?;
        chmod(&dir.join("private"), 0o700)?;
        mkdir(&dir.join("listed"), 0o744)?;
        chmod(&dir.join("listed"), 0o744)?;
        write_file(&dir.join("listed/f"), 0o644, b"x")?;
        write_file(&dir.join("secret"), 0o600, b"x")?;
        write_file(&dir.join("public"), 0o644, b"read me")?;
        write_file(&dir.join("group"), 0o060, b"x")?;
        chown(&dir.join("group"), 1, NOBODY)
    });
    type Attempt<'a> = (&'a str, Errno, &'a (dyn Fn(&Path) -> io::Result<()> + Sync));
    let refused: [Attempt; 14] = [
        ("entering a 0700 directory", Errno::EACCES, &|d| facts(&d.join("private/inside")).map(drop)),
        ("listing it", Errno::EACCES, &|d| names(&d.join("private")).map(drop)),
        ("entering without x", Errno::EACCES, &|d| facts(&d.join("listed/f")).map(drop)),
        ("reading a 0600 file", Errno::EACCES, &|d| File::open(d.join("secret")).map(drop)),
        ("writing a 0644 file", Errno::EACCES, &|d| {
            File::options().write(true).open(d.join("public")).map(drop)
        }),
        ("truncating by path", Errno::EACCES, &|d| Ok(nix::unistd::truncate(&d.join("public"), 0)?)),
        ("creating in a 0755 directory", Errno::EACCES, &|d| fs::write(d.join("new"), b"")),
        ("mkdir in it", Errno::EACCES, &|d| mkdir(&d.join("new"), 0o755)),
        ("unlinking in it", Errno::EACCES, &|d| fs::remove_file(d.join("public"))),
        ("renaming in it", Errno::EACCES, &|d| fs::rename(d.join("public"), d.join("new"))),
        ("chmod of another's file", Errno::EPERM, &|d| chmod(&d.join("public"), 0o666)),
        ("chown of another's file", Errno::EPERM, &|d| chown(&d.join("public"), NOBODY, NOBODY)),
        ("times of another's file", Errno::EPERM, &|d| set_times(&d.join("public"), (1, 1), (1, 1))),
        ("trusted attributes", Errno::EPERM, &|d| set_xattr(&d.join("public"), "trusted.a", b"1", 0)),
    ];
    for (what, expected, attempt) in refused {
        twin.err(what, expected, |dir| nobody(|| attempt(dir)));
    }
    twin.same("user attributes on another's file", |dir| {
        nobody(|| set_xattr(&dir.join("public"), "user.a", b"1", 0))
    })
    .expect_err("it may not be written");
    twin.ok("listing with r alone", |dir| nobody(|| names(&dir.join("listed"))));
    twin.ok("reading a 0644 file", |dir| nobody(|| fs::read(dir.join("public"))));
    twin.ok("the group's rights", |dir| {
        nobody(|| File::options().write(true).open(dir.join("group")).map(drop))
    });
}

#[test]
fn an_owner_without_root_may_do_what_owners_may() {
    let mut twin = Twin::new();
    twin.ok("as the owner", |dir| {
        mkdir(&dir.join("home"), 0o755)?;
        chown(&dir.join("home"), NOBODY, NOBODY)?;
        nobody(|| {
            let home = dir.join("home");
            write_file(&home.join("f"), 0o600, b"mine")?;
            set_times(&home.join("f"), (5, 5), (6, 6))?;
            set_xattr(&home.join("f"), "user.a", b"1", 0)?;
            fs::hard_link(home.join("f"), home.join("g"))?;
            fs::rename(home.join("g"), home.join("h"))?;
            let owner = facts(&home.join("f"))?;
            assert_eq!((owner.uid, owner.gid), (NOBODY, NOBODY), "new files are their maker's");
            Ok((owner, fs::read(home.join("h"))?))
        })
    });
    twin.err("giving a file away", Errno::EPERM, |dir| nobody(|| chown(&dir.join("home/f"), 0, NOBODY)));
    twin.err("to a group he is not in", Errno::EPERM, |dir| nobody(|| chown(&dir.join("home/f"), NOBODY, 0)));
    twin.compare_over_remount();
}

#[test]
fn in_a_sticky_directory_only_owners_remove() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        mkdir(&dir.join("tmp"), 0o755)?;
        chmod(&dir.join("tmp"), 0o1777)?;
        write_file(&dir.join("tmp/roots"), 0o666, b"x")?;
        nobody(|| write_file(&dir.join("tmp/his"), 0o666, b"x"))
    });
    twin.err("removing root's file", Errno::EPERM, |dir| nobody(|| fs::remove_file(dir.join("tmp/roots"))));
    twin.err("renaming it", Errno::EPERM, |dir| {
        nobody(|| fs::rename(dir.join("tmp/roots"), dir.join("tmp/x")))
    });
    twin.err("replacing it", Errno::EPERM, |dir| {
        nobody(|| fs::rename(dir.join("tmp/his"), dir.join("tmp/roots")))
    });
    twin.ok("writing to it", |dir| nobody(|| fs::write(dir.join("tmp/roots"), b"changed")));
    twin.ok("removing one's own", |dir| nobody(|| fs::remove_file(dir.join("tmp/his"))));
}

#[test]
fn a_setgid_directory_hands_its_group_on() {
    let mut twin = Twin::new();
    let made = twin.ok("inheriting", |dir| {
        mkdir(&dir.join("team"), 0o755)?;
        chown(&dir.join("team"), 0, 4242)?;
        chmod(&dir.join("team"), 0o2777)?;
        fs::write(dir.join("team/file"), b"")?;
        mkdir(&dir.join("team/sub"), 0o755)?;
        std::os::unix::fs::symlink("x", dir.join("team/link"))?;
        nobody(|| {
            fs::write(dir.join("team/his"), b"")?;
            mkdir(&dir.join("team/sub2"), 0o700)
        })?;
        ["file", "sub", "link", "his", "sub2"]
            .iter()
            .map(|name| facts(&dir.join("team").join(name)))
            .collect::<io::Result<Vec<_>>>()
    });
    assert!(made.iter().all(|f| f.gid == 4242), "{made:?}");
    assert!([1, 4].iter().all(|&i| made[i].mode & 0o2000 != 0), "sub-directories are setgid too: {made:?}");
    twin.compare_over_remount();
}

#[test]
fn the_umask_is_taken_off_new_modes() {
    let twin = Twin::new();
    for umask in ["000", "022", "027", "077", "777"] {
        twin.ok("files and directories under a umask", |dir| {
            let script = format!("umask {umask} && : >f{umask} && mkdir d{umask} && mkfifo p{umask}");
            tool(dir, "sh", &args!["-c", script]);
            ["f", "d", "p"]
                .iter()
                .map(|k| facts(&dir.join(format!("{k}{umask}"))))
                .collect::<io::Result<Vec<_>>>()
        });
    }
}

#[test]
fn access_answers_by_the_real_user() {
    use nix::unistd::{AccessFlags, access};
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        write_file(&dir.join("r"), 0o444, b"")?;
        write_file(&dir.join("x"), 0o711, b"")?;
        write_file(&dir.join("none"), 0, b"")
    });
    for name in ["r", "x", "none"] {
        for flags in [AccessFlags::R_OK, AccessFlags::W_OK, AccessFlags::X_OK, AccessFlags::F_OK] {
            let what = format!("access {name} {flags:?}");
            let _: Result<(), _> = twin.same(&what, |dir| nobody(|| Ok(access(&dir.join(name), flags)?)));
            let _: Result<(), _> = twin.same(&what, |dir| Ok(access(&dir.join(name), flags)?));
        }
    }
}

#[test]
fn programs_on_the_mount_run_and_setuid_works() {
    let twin = Twin::new();
    let ids = twin.ok("a setuid copy of id", |dir| {
        fs::copy("/usr/bin/id", dir.join("id"))?;
        chown(&dir.join("id"), 4321, 4321)?;
        chmod(&dir.join("id"), 0o6755)?;
        let out: Vec<OsString> = args!["-u"].to_vec();
        Ok(tool(dir, "./id", &out))
    });
    assert_eq!(ids.trim(), "4321", "the effective user is the file's owner");
}
