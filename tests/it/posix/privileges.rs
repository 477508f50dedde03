//! What takes setuid, setgid and file capabilities away from a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::truncate;

use crate::harness::sys::{
    Facts, Mapping, NOBODY, as_member, chmod, chown, copy_range, facts, fallocate, list_xattrs, open_rw,
    set_times, set_xattr, write_file,
};
use crate::harness::{Twin, args, eventually, tool};

/// What is done to a file, which lies in a directory with a readable `source`.
type Act = fn(&Path) -> io::Result<()>;

const OWNER: u32 = 1000;
const GROUP: u32 = 4242;

fn writing(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn allocate(path: &Path, mode: i32) -> io::Result<()> {
    fallocate(&writing(path)?, mode, 10, 5000)
}

/// Everything that changes contents.
const CONTENTS: [(&str, Act); 16] = [
    ("a write", |p| writing(p)?.write_all_at(b"new", 2)),
    ("an append", |p| OpenOptions::new().append(true).open(p)?.write_all(b"new")),
    ("an empty write", |p| writing(p)?.write_at(b"", 2).map(drop)),
    ("a synchronous write", |p| {
        OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(p)?.write_all(b"new")
    }),
    ("truncate to less", |p| Ok(truncate(p, 5)?)),
    ("truncate to more", |p| Ok(truncate(p, 20_000)?)),
    ("truncate to the same", |p| Ok(truncate(p, p.metadata()?.len() as i64)?)),
    ("ftruncate", |p| writing(p)?.set_len(5)),
    ("O_TRUNC", |p| OpenOptions::new().write(true).truncate(true).open(p).map(drop)),
    ("opening alone", |p| open_rw(p).map(drop)),
    ("reserving space", |p| allocate(p, 0)),
    ("reserving and keeping the size", |p| allocate(p, libc::FALLOC_FL_KEEP_SIZE)),
    ("punching", |p| allocate(p, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)),
    ("zeroing", |p| allocate(p, libc::FALLOC_FL_ZERO_RANGE)),
    ("copy_file_range", |p| {
        let source = File::open(p.with_file_name("source"))?;
        copy_range(&source, 0, &writing(p)?, 3, 6).map(drop)
    }),
    ("a store through a mapping", |p| {
        let file = open_rw(p)?;
        let map = Mapping::shared(&file, 4096)?;
        map.write(0, b"mapped");
        map.sync()
    }),
];

/// Changes of attributes that the owner may do. A `chown` that names neither owner nor group is not among
/// them: the kernel does not pass it on.
const ATTRIBUTES: [(&str, Act); 6] = [
    ("chown to oneself", |p| chown(p, OWNER, u32::MAX)),
    ("chgrp to one's group", |p| chown(p, u32::MAX, GROUP)),
    ("chmod", |p| chmod(p, 0o6755)),
    ("times", |p| set_times(p, (5, 5), (6, 6))),
    ("an extended attribute", |p| set_xattr(p, "user.a", b"1", 0)),
    ("a name more", |p| fs::hard_link(p, p.with_extension("link"))),
];

/// Who does it: user, group, further groups.
const PEOPLE: [(&str, u32, u32, &[u32]); 4] = [
    ("the owner", OWNER, OWNER, &[]),
    ("the owner, in the group", OWNER, OWNER, &[GROUP]),
    ("a stranger", NOBODY, NOBODY, &[]),
    ("root", 0, 0, &[]),
];

const MODES: [u32; 6] = [0o6777, 0o6767, 0o4766, 0o2767, 0o2777, 0o777];

/// A mode without what the two may differ in: setgid without the group's right to execute, which gives no
/// program a right. ext4 takes it from who is not in the group; who writes here does not say his groups.
fn compared(mut facts: Facts) -> Facts {
    if facts.mode & 0o010 == 0 {
        facts.mode &= !0o2000;
    }
    facts
}

/// The modes that are left on both sides, which must be the same.
fn left_by(twin: &Twin, acts: &[(&str, Act)], modes: &[u32]) -> Vec<(u32, u32)> {
    twin.ok("preparing", |dir| {
        chmod(dir, 0o777)?;
        write_file(&dir.join("source"), 0o644, b"the source of copies")
    });
    let (mut left, mut different) = (Vec::new(), Vec::new());
    for (i, (what, act)) in acts.iter().enumerate() {
        for (j, (who, uid, gid, groups)) in PEOPLE.iter().enumerate() {
            for mode in modes {
                let told = twin.roots().map(|dir| {
                    let path = dir.join(format!("f{i}-{j}-{mode:o}"));
                    write_file(&path, 0o600, &[b'x'; 10_000])?;
                    chown(&path, OWNER, GROUP)?;
                    chmod(&path, *mode)?;
                    let done = as_member(*uid, *gid, groups, || act(&path)).map_err(|e| e.raw_os_error());
                    let found = compared(facts(&path)?);
                    if mode & 0o010 == 0 {
                        chmod(&path, found.mode & 0o7777)?;
                    }
                    Ok::<_, io::Error>((done, found.mode & 0o7777))
                });
                let [ours, theirs] = told.map(|told| told.expect("the file is there"));
                if ours != theirs {
                    different.push(format!("{what} by {who} of {mode:o}: {ours:?}, not {theirs:?}"));
                }
                left.push((*mode, theirs.1));
            }
        }
    }
    assert!(different.is_empty(), "{} differ from ext4:\n{}", different.len(), different.join("\n"));
    left
}

#[test]
fn changing_contents_takes_setuid_and_setgid_away_as_on_ext4() {
    let mut twin = Twin::new();
    let left = left_by(&twin, &CONTENTS, &MODES);
    let lost = left.iter().filter(|(before, after)| before != after).count();
    assert!((80..300).contains(&lost), "{lost} of {} lost bits", left.len());
    twin.compare_over_remount();
}

#[test]
fn changing_attributes_takes_setuid_and_setgid_away_as_on_ext4() {
    let mut twin = Twin::new();
    let left = left_by(&twin, &ATTRIBUTES, &MODES);
    assert!(left.iter().any(|(before, after)| before != after));
    twin.compare_over_remount();
}

#[test]
fn a_directory_keeps_its_bits_whoever_makes_names_in_it() {
    let twin = Twin::new();
    let mode = twin.ok("in a directory with all bits", |dir| {
        let path = dir.join("d");
        crate::harness::sys::mkdir(&path, 0o755)?;
        chown(&path, OWNER, GROUP)?;
        chmod(&path, 0o7777)?;
        as_member(NOBODY, NOBODY, &[], || fs::write(path.join("f"), b"content"))?;
        chown(&path, OWNER + 1, GROUP + 1)?;
        Ok(facts(&path)?.mode & 0o7777)
    });
    assert_eq!(mode, 0o7777);
}

#[test]
fn bits_that_a_write_took_are_gone_after_a_kill_and_a_remount() {
    let mut twin = Twin::new();
    twin.ok("a setuid program, written to", |dir| {
        chmod(dir, 0o777)?;
        for (name, mode) in [("written", 0o6777), ("kept", 0o6755)] {
            write_file(&dir.join(name), 0o600, b"#!/bin/sh\n")?;
            chown(&dir.join(name), OWNER, GROUP)?;
            chmod(&dir.join(name), mode)?;
        }
        as_member(NOBODY, NOBODY, &[], || writing(&dir.join("written"))?.write_all_at(b"echo", 10))
    });
    let server = twin.mount().server();
    server.kill();
    eventually("the server to be gone", || !server.alive());
    twin.compare("by the next server");
    twin.compare_over_remount();
    let modes = ["written", "kept"].map(|name| twin.ok("stat", |dir| facts(&dir.join(name))).mode & 0o7777);
    assert_eq!(modes, [0o777, 0o6755]);
}

/// The capabilities that a file has, as the tool shows them.
fn capabilities(path: &Path) -> io::Result<(String, Vec<Vec<u8>>)> {
    let dir = path.parent().unwrap_or(path);
    Ok((tool(dir, "getcap", &args!["-n", path.file_name().unwrap_or_default()]), list_xattrs(path)?))
}

#[test]
fn changing_contents_or_owner_takes_file_capabilities_away_as_on_ext4() {
    let mut twin = Twin::new();
    twin.ok("preparing", |dir| {
        chmod(dir, 0o777)?;
        write_file(&dir.join("source"), 0o644, b"the source of copies")
    });
    let mut kept = Vec::new();
    for (i, (what, act)) in CONTENTS.iter().chain(&ATTRIBUTES).enumerate() {
        for (j, (who, uid, gid, groups)) in PEOPLE.iter().enumerate() {
            let left = twin.ok(&format!("{what} by {who} of a file with capabilities"), |dir| {
                let path = dir.join(format!("f{i}-{j}"));
                write_file(&path, 0o777, &[b'x'; 10_000])?;
                chown(&path, OWNER, GROUP)?;
                tool(dir, "setcap", &args!["cap_net_raw,cap_sys_nice+ep", path]);
                assert!(capabilities(&path)?.0.contains("cap_net_raw"), "setcap sets something");
                let done = as_member(*uid, *gid, groups, || act(&path)).map_err(|e| e.raw_os_error());
                let left = capabilities(&path)?;
                Ok((done, left.0.contains("cap_net_raw"), left.1))
            });
            kept.push(left.1);
        }
    }
    assert!(kept.contains(&true) && kept.contains(&false));
    twin.compare_over_remount();
}
