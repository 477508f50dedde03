//! Names and directories: creating, removing, renaming.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::RenameFlags;

use crate::harness::Twin;
use crate::harness::sys::{chmod, facts, mkdir, names, raw_name, rename};

/// `d/` with a file, `e/` empty, `f` and `g` files.
fn prepared() -> Twin {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        mkdir(&dir.join("d"), 0o755)?;
        mkdir(&dir.join("d/sub"), 0o755)?;
        mkdir(&dir.join("e"), 0o755)?;
        fs::write(dir.join("d/in"), b"inside")?;
        fs::write(dir.join("f"), b"file f")?;
        fs::write(dir.join("g"), b"file g")
    });
    twin
}

#[test]
fn names_may_hold_any_byte_but_slash_and_nul() {
    let mut twin = Twin::new();
    let names: Vec<Vec<u8>> = (1..=255u8)
        .filter(|b| !matches!(b, b'/' | b'.'))
        .map(|b| vec![b])
        .chain([b"new\nline".to_vec(), b"\xff\xfe\x80".to_vec(), b"...".to_vec(), b"..a".to_vec()])
        .chain([vec![b'n'; 255], "é".repeat(127).into_bytes(), b"tab\t".to_vec(), b".hidden".to_vec()])
        .collect();
    twin.ok("files of all names", |dir| {
        names.iter().try_for_each(|name| fs::write(dir.join(raw_name(name)), name))?;
        names.iter().map(|name| fs::read(dir.join(raw_name(name)))).collect::<Result<Vec<_>, _>>()
    });
    assert_eq!(twin.ok("listing", super::names::names).len(), names.len());
    twin.compare_over_remount();
}

#[test]
fn names_and_paths_that_are_too_long_are_refused() {
    let twin = Twin::new();
    twin.err("a name of 256 bytes", Errno::ENAMETOOLONG, |dir| fs::write(dir.join("n".repeat(256)), b""));
    twin.err("looking it up", Errno::ENAMETOOLONG, |dir| facts(&dir.join("n".repeat(256))).map(drop));
    twin.err("making such a directory", Errno::ENAMETOOLONG, |dir| mkdir(&dir.join("n".repeat(256)), 0o755));
    twin.err("renaming to it", Errno::ENAMETOOLONG, |dir| {
        fs::write(dir.join("f"), b"")?;
        fs::rename(dir.join("f"), dir.join("n".repeat(256)))
    });
    twin.err("a path over 4095 bytes", Errno::ENAMETOOLONG, |dir| {
        facts(&dir.join("./".repeat(2048))).map(drop)
    });
}

#[test]
fn directories_a_hundred_deep_work() {
    let mut twin = Twin::new();
    let deep = |dir: &Path| (0..100).fold(dir.to_owned(), |path, i| path.join(format!("level-{i}")));
    twin.ok("a deep path", |dir| {
        fs::create_dir_all(deep(dir))?;
        fs::write(deep(dir).join("bottom"), b"here")?;
        fs::read(deep(dir).join("bottom"))
    });
    twin.compare_over_remount();
    twin.ok("removing it all", |dir| {
        fs::remove_dir_all(dir.join("level-0"))?;
        names(dir)
    });
}

#[test]
fn making_and_removing_answers_as_on_ext4() {
    let mut twin = prepared();
    twin.err("mkdir over a directory", Errno::EEXIST, |dir| mkdir(&dir.join("d"), 0o755));
    twin.err("mkdir over a file", Errno::EEXIST, |dir| mkdir(&dir.join("f"), 0o755));
    twin.err("mkdir below nothing", Errno::ENOENT, |dir| mkdir(&dir.join("none/x"), 0o755));
    twin.err("mkdir below a file", Errno::ENOTDIR, |dir| mkdir(&dir.join("f/x"), 0o755));
    twin.err("rmdir of a full directory", Errno::ENOTEMPTY, |dir| fs::remove_dir(dir.join("d")));
    twin.err("rmdir of a file", Errno::ENOTDIR, |dir| fs::remove_dir(dir.join("f")));
    twin.err("rmdir of nothing", Errno::ENOENT, |dir| fs::remove_dir(dir.join("none")));
    twin.err("rmdir of .", Errno::EINVAL, |dir| Ok(nix::unistd::unlinkat(at(dir)?, "e/.", rmdir())?));
    twin.same("rmdir of ..", |dir| Ok(nix::unistd::unlinkat(at(dir)?, "d/sub/..", rmdir())?))
        .expect_err("a parent is never empty");
    twin.err("unlinking a directory", Errno::EISDIR, |dir| fs::remove_file(dir.join("e")));
    twin.err("unlinking nothing", Errno::ENOENT, |dir| fs::remove_file(dir.join("none")));
    twin.ok("removing what can be removed", |dir| {
        fs::remove_dir(dir.join("e"))?;
        fs::remove_file(dir.join("f"))?;
        names(dir)
    });
    twin.compare_over_remount();
}

fn at(dir: &Path) -> std::io::Result<fs::File> {
    fs::File::open(dir)
}

fn rmdir() -> nix::unistd::UnlinkatFlags {
    nix::unistd::UnlinkatFlags::RemoveDir
}

#[test]
fn a_removed_directory_that_is_still_open_takes_no_new_files() {
    let twin = Twin::new();
    twin.err("a file in a removed directory", Errno::ENOENT, |dir| {
        mkdir(&dir.join("gone"), 0o755)?;
        let open = at(&dir.join("gone"))?;
        fs::remove_dir(dir.join("gone"))?;
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
        let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
        Ok(nix::fcntl::openat(&open, "f", flags, mode).map(drop)?)
    });
}

#[test]
fn every_rename_of_one_kind_onto_another_answers_as_on_ext4() {
    let kinds = ["d", "d/sub", "d/in", "e", "f", "g", "none", "d/new", "none/x", "f/x", ".", "link", "hard"];
    let flags = [RenameFlags::empty(), RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE];
    let mut twin = prepared();
    for flag in flags {
        for from in kinds {
            for to in kinds {
                // A fresh sub-tree for each, so that one rename does not decide the next.
                twin.ok("preparing", |dir| {
                    let dir = dir.join("case");
                    fs::create_dir_all(dir.join("d/sub"))?;
                    mkdir(&dir.join("e"), 0o750)?;
                    fs::write(dir.join("d/in"), b"inside")?;
                    fs::write(dir.join("f"), b"file f")?;
                    fs::write(dir.join("g"), b"file g")?;
                    fs::hard_link(dir.join("f"), dir.join("hard"))?;
                    std::os::unix::fs::symlink("g", dir.join("link"))
                });
                let what = format!("rename {from} to {to} with {flag:?}");
                let _: Result<(), _> = twin.same(&what, |dir| {
                    rename(&dir.join("case").join(from), &dir.join("case").join(to), flag)
                });
                twin.compare(&what);
                twin.ok("clearing", |dir| fs::remove_dir_all(dir.join("case")));
            }
        }
    }
    twin.compare_over_remount();
}

#[test]
fn the_errors_of_rename_that_programs_rely_on() {
    let twin = prepared();
    let plain = RenameFlags::empty();
    let (keep, swap) = (RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE);
    let cases = [
        ("d", "d/sub/x", plain, Errno::EINVAL),
        ("d", "d/sub", swap, Errno::EINVAL),
        ("e", "d", plain, Errno::ENOTEMPTY),
        ("e", "f", plain, Errno::ENOTDIR),
        ("f", "e", plain, Errno::EISDIR),
        ("f", "g", keep, Errno::EEXIST),
        ("f", "none", swap, Errno::ENOENT),
        ("none", "f", plain, Errno::ENOENT),
        ("f", "g", keep | swap, Errno::EINVAL),
    ];
    for (from, to, flags, expected) in cases {
        twin.err(&format!("rename {from} to {to} with {flags:?}"), expected, |dir| {
            rename(&dir.join(from), &dir.join(to), flags)
        });
    }
    twin.compare("refused renames change nothing");
}

#[test]
fn renames_replace_exchange_and_move_whole_trees() {
    let mut twin = prepared();
    twin.ok("a file over a file", |dir| fs::rename(dir.join("f"), dir.join("g")));
    assert_eq!(twin.ok("reading it", |dir| fs::read(dir.join("g"))), b"file f");
    twin.ok("a directory over an empty one", |dir| fs::rename(dir.join("d"), dir.join("e")));
    twin.ok("file and directory exchanged", |dir| {
        rename(&dir.join("g"), &dir.join("e"), RenameFlags::RENAME_EXCHANGE)
    });
    assert_eq!(twin.ok("reading through", |dir| fs::read(dir.join("g/in"))), b"inside");
    twin.ok("with NOREPLACE to a free name", |dir| {
        rename(&dir.join("e"), &dir.join("g/free"), RenameFlags::RENAME_NOREPLACE)
    });
    twin.ok("onto another link of the same file, which does nothing", |dir| {
        fs::hard_link(dir.join("g/free"), dir.join("twin"))?;
        fs::rename(dir.join("twin"), dir.join("g/free"))?;
        names(dir)
    });
    twin.compare_over_remount();
}

#[test]
fn link_counts_of_directories_are_as_on_ext4() {
    let twin = prepared();
    let counts = twin.ok("nlink", |dir| {
        let count = |name: &&str| Ok(facts(&dir.join(name))?.nlink);
        ["", "d", "d/sub", "e"].iter().map(count).collect::<std::io::Result<Vec<_>>>()
    });
    assert_eq!(counts, [4, 3, 2, 2]);
    twin.ok("moving a directory", |dir| fs::rename(dir.join("d/sub"), dir.join("e/sub")));
    assert_eq!(twin.ok("nlink of d", |dir| facts(&dir.join("d"))).nlink, 2);
    assert_eq!(twin.ok("nlink of e", |dir| facts(&dir.join("e"))).nlink, 3);
}

#[test]
fn dot_and_dot_dot_are_listed_once_with_the_right_inodes() {
    use std::os::unix::fs::MetadataExt;
    let twin = prepared();
    let listed = twin.ok("raw listing", |dir| {
        let inode = |name: &str| dir.join("d").join(name).symlink_metadata().map(|m| m.ino());
        let mut open = nix::dir::Dir::open(&dir.join("d"), nix::fcntl::OFlag::O_DIRECTORY, mode())?;
        let mut found = Vec::new();
        for entry in open.iter() {
            let entry = entry?;
            let name = String::from_utf8_lossy(entry.file_name().to_bytes()).into_owned();
            found.push((inode(&name)? == entry.ino(), format!("{:?}", entry.file_type()), name));
        }
        found.sort();
        Ok(found)
    });
    let names: Vec<&str> = listed.iter().map(|(_, _, name)| name.as_str()).collect();
    assert_eq!(names, [".", "..", "sub", "in"], "sorted by type: {listed:?}");
    assert!(listed.iter().all(|(same, _, _)| *same), "d_ino is st_ino: {listed:?}");
}

fn mode() -> nix::sys::stat::Mode {
    nix::sys::stat::Mode::empty()
}

#[test]
fn changes_in_a_directory_move_its_times() {
    let twin = Twin::new();
    let old = (1_000_000_000, 5);
    let moved = twin.ok("mtime of the parent", |dir| {
        let parent = dir.join("d");
        mkdir(&parent, 0o755)?;
        let mut moved = Vec::new();
        let mut after = |act: &dyn Fn() -> std::io::Result<()>| {
            crate::harness::sys::set_times(&parent, old, old)?;
            act()?;
            moved.push(crate::harness::sys::mtime(&parent)? != old);
            Ok::<(), std::io::Error>(())
        };
        after(&|| fs::write(parent.join("f"), b""))?;
        after(&|| fs::write(parent.join("f"), b"content"))?;
        after(&|| chmod(&parent.join("f"), 0o600))?;
        after(&|| fs::rename(parent.join("f"), parent.join("g")))?;
        after(&|| fs::hard_link(parent.join("g"), parent.join("h")))?;
        after(&|| fs::remove_file(parent.join("h")))?;
        after(&|| mkdir(&parent.join("sub"), 0o755))?;
        after(&|| fs::remove_dir(parent.join("sub")))?;
        after(&|| names(&parent).map(drop))?;
        Ok(moved)
    });
    assert_eq!(moved, [true, false, false, true, true, true, true, true, false]);
}

#[test]
fn a_listing_gives_names_as_they_were_made() {
    let twin = Twin::new();
    let listed = twin.ok("case and composition are kept", |dir| {
        for name in ["Name", "name", "NAME", "e\u{301}", "\u{e9}"] {
            fs::write(dir.join(name), name)?;
        }
        names(dir)
    });
    assert_eq!(listed.len(), 5);
    assert!(listed.iter().any(|name| name.as_bytes() == "e\u{301}".as_bytes()));
}
