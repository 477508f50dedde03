//! Supplementary groups, setgid on directories, the umask in every call that makes something, and sticky
//! directories.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::RenameFlags;
use nix::sys::stat::SFlag;

use crate::harness::Twin;
use crate::harness::sys::{
    NOBODY, as_member, as_user, chmod, chown, facts, in_directory, mkdir, names, rename, special, write_file,
};

const GROUP: u32 = 4242;

#[test]
fn a_supplementary_group_opens_what_its_own_group_opens() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        for mode in [0o060, 0o040, 0o020, 0o010, 0o606] {
            let path = dir.join(format!("f{mode:o}"));
            write_file(&path, mode, b"content")?;
            chown(&path, 1, GROUP)?;
            let path = dir.join(format!("d{mode:o}"));
            mkdir(&path, 0o755)?;
            write_file(&path.join("in"), 0o666, b"inside")?;
            chown(&path, 1, GROUP)?;
            chmod(&path, mode | 0o010)?;
        }
        Ok(())
    });
    let many: Vec<u32> = (5000..5030).chain([GROUP]).collect();
    let memberships: [&[u32]; 4] = [&[], &[GROUP], &[7, 8], &many];
    let mut opened = 0;
    for groups in memberships {
        for mode in [0o060, 0o040, 0o020, 0o010, 0o606] {
            let told = twin.ok(&format!("mode {mode:o}, groups {groups:?}"), |dir| {
                let file = dir.join(format!("f{mode:o}"));
                let below = dir.join(format!("d{mode:o}"));
                Ok(as_member(NOBODY, NOBODY, groups, || {
                    [
                        File::open(&file).is_ok(),
                        OpenOptions::new().write(true).open(&file).is_ok(),
                        names(&below).is_ok(),
                        File::open(below.join("in")).is_ok(),
                        fs::write(below.join("new"), b"").is_ok(),
                    ]
                }))
            });
            opened += told.iter().filter(|open| **open).count();
        }
    }
    assert!((15..60).contains(&opened), "{opened} of 100");
}

#[test]
fn an_owner_gives_a_file_to_his_groups_and_to_no_other() {
    let twin = Twin::new();
    for (i, (groups, to)) in
        [(&[][..], GROUP), (&[GROUP], GROUP), (&[7, GROUP], GROUP), (&[GROUP], 0), (&[GROUP], 1000)]
            .into_iter()
            .enumerate()
    {
        let given = twin.same(&format!("chgrp to {to} in groups {groups:?}"), |dir| {
            let path = dir.join(format!("f{i}"));
            write_file(&path, 0o644, b"")?;
            chown(&path, 1000, 1000)?;
            as_member(1000, 1000, groups, || chown(&path, u32::MAX, to))?;
            facts(&path)
        });
        assert_eq!(given.is_ok(), to == 1000 || (to == GROUP && groups.contains(&GROUP)), "{given:?}");
    }
    twin.err("another's file to one's own group", Errno::EPERM, |dir| {
        write_file(&dir.join("roots"), 0o666, b"")?;
        as_member(1000, 1000, &[GROUP], || chown(&dir.join("roots"), u32::MAX, GROUP))
    });
    twin.compare("after all attempts");
}

#[test]
fn setgid_is_for_members_of_the_group() {
    let mut twin = Twin::new();
    for (i, groups) in [&[][..], &[GROUP]].into_iter().enumerate() {
        for kind in ["file", "dir"] {
            let mode = twin.ok(&format!("chmod g+s of a {kind} by an owner in {groups:?}"), |dir| {
                let path = dir.join(format!("{kind}{i}"));
                if kind == "file" {
                    fs::write(&path, b"")?;
                } else {
                    mkdir(&path, 0o755)?;
                }
                chown(&path, 1000, GROUP)?;
                as_member(1000, 1000, groups, || chmod(&path, 0o2755))?;
                Ok(facts(&path)?.mode & 0o7777)
            });
            assert_eq!(mode, if groups.is_empty() { 0o755 } else { 0o2755 });
        }
    }
    for (i, groups) in [&[][..], &[GROUP]].into_iter().enumerate() {
        let made = twin.ok(&format!("made with setgid below a setgid directory, in {groups:?}"), |dir| {
            let team = dir.join(format!("team{i}"));
            mkdir(&team, 0o755)?;
            chown(&team, 0, GROUP)?;
            chmod(&team, 0o2777)?;
            as_member(1000, 1000, groups, || {
                for mode in [0o2755, 0o2745, 0o6711, 0o4755] {
                    OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(mode)
                        .open(team.join(format!("f{mode:o}")))?;
                    mkdir(&team.join(format!("d{mode:o}")), mode)?;
                    special(&team.join(format!("p{mode:o}")), SFlag::S_IFIFO, mode, 0)?;
                }
                symlink("x", team.join("link"))
            })?;
            names(&team)?.iter().map(|name| facts(&team.join(name))).collect::<io::Result<Vec<_>>>()
        });
        assert!(made.iter().all(|facts| facts.gid == GROUP), "{made:?}");
    }
    twin.compare_over_remount();
}

#[test]
fn the_umask_is_taken_off_in_every_call_that_makes_something() {
    let mut twin = Twin::new();
    for umask in [0o000, 0o002, 0o022, 0o027, 0o077, 0o111, 0o222, 0o777] {
        let made = twin.ok(&format!("under umask {umask:o}"), |dir| {
            let dir = dir.join(format!("d{umask:o}"));
            mkdir(&dir, 0o777)?;
            in_directory(&dir, umask, || {
                for mode in [0o666, 0o777, 0o7777, 0o640] {
                    let options = |exclusive: bool| {
                        let mut options = OpenOptions::new();
                        options.write(true).create(true).create_new(exclusive).mode(mode).to_owned()
                    };
                    options(false).truncate(false).open(format!("open-{mode:o}"))?;
                    options(true).open(format!("exclusive-{mode:o}"))?;
                    mkdir(Path::new(&format!("mkdir-{mode:o}")), mode)?;
                    let kinds = [
                        ("mkfifo", SFlag::S_IFIFO, 0),
                        ("socket", SFlag::S_IFSOCK, 0),
                        ("regular", SFlag::S_IFREG, 0),
                        ("device", SFlag::S_IFCHR, nix::sys::stat::makedev(1, 3)),
                    ];
                    for (name, kind, device) in kinds {
                        special(Path::new(&format!("{name}-{mode:o}")), kind, mode, device)?;
                    }
                }
                std::os::unix::net::UnixListener::bind("bound")?;
                symlink("nowhere", "link")?;
                // What is there keeps its mode.
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o777).open("open-640")?;
                let all = names(Path::new("."))?.into_iter();
                all.map(|name| Ok((facts(Path::new(&name))?, name))).collect::<io::Result<Vec<_>>>()
            })
        });
        assert_eq!(made.len(), 4 * 7 + 2);
        let masked =
            |(facts, name): &(crate::harness::sys::Facts, _)| name == "link" || facts.mode & umask == 0;
        assert!(made.iter().all(masked), "{made:?}");
    }
    twin.compare_over_remount();
}

/// What is tried in a directory `d` that holds `victim`, `full/in`, `empty`; `mine` is whoever tries's.
type Attempt = (&'static str, fn(&Path) -> io::Result<()>);

const ATTEMPTS: [Attempt; 9] = [
    ("unlink", |d| fs::remove_file(d.join("victim"))),
    ("rmdir", |d| fs::remove_dir(d.join("empty"))),
    ("rename within", |d| fs::rename(d.join("victim"), d.join("renamed"))),
    ("rename out", |d| fs::rename(d.join("victim"), d.with_file_name("open").join("victim"))),
    ("rename over", |d| fs::rename(d.join("mine"), d.join("victim"))),
    ("rename of a directory over", |d| fs::rename(d.join("mydir"), d.join("empty"))),
    ("exchange", |d| rename(&d.join("mine"), &d.join("victim"), RenameFlags::RENAME_EXCHANGE)),
    ("link", |d| fs::hard_link(d.join("victim"), d.join("link"))),
    ("make", |d| fs::write(d.join("new"), b"")),
];

#[test]
fn in_sticky_directories_names_belong_to_owners() {
    let twin = Twin::new();
    let mut refused = 0;
    for mode in [0o777, 0o1777, 0o1770] {
        for (directory, victim) in
            [(0, 0), (0, 1000), (1000, 0), (1000, 1000), (2000, 1000), (1000, 2000), (0, 2000), (2000, 2000)]
        {
            for (what, attempt) in ATTEMPTS {
                let told = twin.same(
                    &format!("{what} by 1000 in {directory}'s {mode:o} directory, of what is {victim}'s"),
                    |dir| {
                        let (case, open) = (dir.join("case"), dir.join("case/open"));
                        let d = case.join("d");
                        for path in [&case, &d, &open, &d.join("empty"), &d.join("full"), &d.join("mydir")] {
                            mkdir(path, 0o755)?;
                        }
                        fs::write(d.join("full/in"), b"")?;
                        for name in ["victim", "mine"] {
                            write_file(&d.join(name), 0o666, name.as_bytes())?;
                        }
                        for (name, owner) in [
                            ("victim", victim),
                            ("empty", victim),
                            ("full", victim),
                            ("mine", 1000),
                            ("mydir", 1000),
                        ] {
                            chown(&d.join(name), owner, owner)?;
                        }
                        chown(&d, directory, 1000)?;
                        chmod(&d, mode)?;
                        chmod(&open, 0o777)?;
                        let done = as_user(1000, 1000, || attempt(&d)).map_err(|e| e.raw_os_error());
                        let left = (names(&d)?, names(&open)?);
                        fs::remove_dir_all(&case)?;
                        Ok((done, left))
                    },
                );
                refused += u32::from(told.expect("the rest works").0.is_err());
            }
        }
    }
    assert!((30..80).contains(&refused), "{refused} of 216 were refused");
}
