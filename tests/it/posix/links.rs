//! Hard links, symbolic links and special files.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, makedev};

use crate::harness::Twin;
use crate::harness::sys::{chmod, facts, special};

#[test]
fn hard_links_are_one_file_under_several_names() {
    let mut twin = Twin::new();
    let counts = twin.ok("linking", |dir| {
        fs::create_dir(dir.join("d"))?;
        fs::write(dir.join("a"), b"content")?;
        fs::hard_link(dir.join("a"), dir.join("d/b"))?;
        fs::hard_link(dir.join("d/b"), dir.join("c"))?;
        let three = facts(&dir.join("a"))?.nlink;
        chmod(&dir.join("c"), 0o604)?;
        File::options().write(true).open(dir.join("d/b"))?.write_all_at(b"C", 0)?;
        fs::remove_file(dir.join("a"))?;
        Ok((three, facts(&dir.join("c"))?, fs::read(dir.join("c"))?))
    });
    assert_eq!((counts.0, counts.1.nlink), (3, 2));
    twin.compare_over_remount();
    let inode = |name: &str| twin.mount().path().join(name).metadata().map(|m| m.ino()).expect("stat");
    assert_eq!(inode("c"), inode("d/b"), "two names of one file have one inode number");
}

#[test]
fn links_that_cannot_be_made_are_refused_as_on_ext4() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        fs::create_dir(dir.join("d"))?;
        fs::write(dir.join("f"), b"")?;
        symlink("f", dir.join("s"))
    });
    twin.err("a link to a directory", Errno::EPERM, |dir| fs::hard_link(dir.join("d"), dir.join("x")));
    twin.err("over an existing name", Errno::EEXIST, |dir| fs::hard_link(dir.join("f"), dir.join("s")));
    twin.err("of what is not there", Errno::ENOENT, |dir| fs::hard_link(dir.join("none"), dir.join("x")));
    twin.err("below a file", Errno::ENOTDIR, |dir| fs::hard_link(dir.join("f"), dir.join("f/x")));
    twin.err("onto another filesystem", Errno::EXDEV, |dir| {
        fs::hard_link(dir.join("f"), "/dev/shm/rewindfs-it-never-made")
    });
    twin.ok("of a symbolic link itself", |dir| {
        fs::hard_link(dir.join("s"), dir.join("s2"))?;
        Ok((facts(&dir.join("s2"))?, dir.join("s2").read_link()?))
    });
}

#[test]
fn symbolic_links_keep_their_exact_target() {
    let mut twin = Twin::new();
    let long = "t/".repeat(2047) + "e";
    assert_eq!(long.len(), 4095);
    for (i, target) in ["f", "/etc/passwd", "../..", "", "with\nnewline", " ", &long, "é"].iter().enumerate()
    {
        let made = twin.same("a symbolic link", |dir| {
            symlink(target, dir.join(format!("s{i}")))?;
            Ok((dir.join(format!("s{i}")).read_link()?, facts(&dir.join(format!("s{i}")))?))
        });
        assert_eq!(made.is_ok(), !target.is_empty(), "target {target:?}");
    }
    twin.err("a target too long", Errno::ENAMETOOLONG, |dir| symlink("x".repeat(4096), dir.join("l")));
    twin.err("readlink of a file", Errno::EINVAL, |dir| {
        fs::write(dir.join("f"), b"followed")?;
        dir.join("f").read_link().map(drop)
    });
    assert_eq!(twin.ok("following", |dir| fs::read(dir.join("s0"))), b"followed");
    twin.err("a loop of links", Errno::ELOOP, |dir| {
        symlink("two", dir.join("one"))?;
        symlink("one", dir.join("two"))?;
        File::open(dir.join("one")).map(drop)
    });
    twin.compare_over_remount();
}

#[test]
fn special_files_have_their_type_mode_and_device_number() {
    let mut twin = Twin::new();
    let kinds = [
        ("fifo", SFlag::S_IFIFO, 0),
        ("char", SFlag::S_IFCHR, makedev(1, 3)),
        ("block", SFlag::S_IFBLK, makedev(7, 200)),
        ("wide", SFlag::S_IFCHR, makedev(300, 70_000)),
        ("socket", SFlag::S_IFSOCK, 0),
        ("regular", SFlag::S_IFREG, 0),
    ];
    for (name, kind, device) in kinds {
        let facts = twin.ok(name, |dir| {
            special(&dir.join(name), kind, 0o640, device)?;
            facts(&dir.join(name))
        });
        assert_eq!((facts.mode & libc::S_IFMT, facts.rdev), (kind.bits(), device), "{name}");
    }
    twin.err("a special file over a name", Errno::EEXIST, |dir| {
        special(&dir.join("fifo"), SFlag::S_IFIFO, 0o600, 0)
    });
    twin.compare_over_remount();
    let zeros = twin.ok("the character device 1:3 is /dev/null", |dir| {
        fs::write(dir.join("char"), b"swallowed")?;
        fs::read(dir.join("char"))
    });
    assert!(zeros.is_empty());
}

#[test]
fn a_fifo_and_a_socket_on_the_mount_carry_data_between_threads() {
    let twin = Twin::new();
    let through = twin.ok("a fifo and a socket", |dir| {
        let fifo = dir.join("fifo");
        special(&fifo, SFlag::S_IFIFO, 0o600, 0)?;
        let text = std::thread::scope(|s| {
            let writer = s.spawn(|| fs::write(&fifo, b"through the pipe"));
            let text = fs::read(&fifo);
            writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))?;
            text
        })?;
        // By descriptor: socket addresses hold no long paths.
        let open = File::open(dir)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
        let listener = std::os::unix::net::UnixListener::bind(short.join("socket"))?;
        let client = std::os::unix::net::UnixStream::connect(short.join("socket"))?;
        drop((client, listener.accept()?));
        Ok((text, dir.join("socket").symlink_metadata()?.file_type().is_socket()))
    });
    assert_eq!(through, (b"through the pipe".to_vec(), true));
}
