//! Access times: which reads set them, by the options of the mount. ext4 is mounted a second time with the
//! same options.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::sys::{
    NOBODY, as_user, atime, chown, mkdir, mtime, names, open_rw, set_times, write_file,
};
use crate::harness::twin::errno;
use crate::harness::{Mount, Store, args};

/// A plain directory once more, with options of its own.
struct Bind(PathBuf);

impl Bind {
    fn new(dir: &Path, at: PathBuf, flags: MsFlags) -> Bind {
        let none: Option<&str> = None;
        mount(Some(dir), &at, none, MsFlags::MS_BIND, none).expect("a second mount of ext4");
        let bind = Bind(at);
        mount(none, &bind.0, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none)
            .expect("its options");
        bind
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Both filesystems under the same options.
struct Sides {
    /// Unmounted before the directory that it lies in is removed.
    plain: Bind,
    mount: Mount,
}

impl Sides {
    fn new(options: &str) -> Sides {
        let flags = options.split(',').map(|option| match option {
            "noatime" => MsFlags::MS_NOATIME,
            "relatime" => MsFlags::MS_RELATIME,
            "strictatime" => MsFlags::MS_STRICTATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            other => panic!("no such option: {other}"),
        });
        let store = Store::encrypted();
        let plain = Bind::new(&store.directory("plain"), store.directory("bind"), flags.collect());
        Sides { plain, mount: store.mount_with("mnt", &args!["-o", options]) }
    }

    /// Does the same on both sides; what both return.
    fn same<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        act: impl Fn(&Path) -> io::Result<T>,
    ) -> Result<T, Errno> {
        let [ours, theirs] = [self.mount.path(), &self.plain.0].map(|root| errno(act(root)));
        assert_eq!(ours, theirs, "{what}: left is the mount, right is ext4");
        ours
    }

    fn ok<T: PartialEq + std::fmt::Debug>(&self, what: &str, act: impl Fn(&Path) -> io::Result<T>) -> T {
        self.same(what, act).unwrap_or_else(|e| panic!("{what} fails on both sides: {e}"))
    }
}

const OPTIONS: [&str; 5] = ["relatime", "noatime", "strictatime", "nodiratime", "strictatime,nodiratime"];

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Longer than a tick of the kernel's coarse clock.
fn tick() {
    std::thread::sleep(Duration::from_millis(30));
}

/// An access time by how long ago it was, beside a modification time.
const MOMENTS: [(&str, i64, i64); 4] = [
    ("older than the modification", 2000, 1000),
    ("that of the modification", 1000, 1000),
    ("older than the last change", 1000, 2000),
    // Nothing is newer, so `relatime` has no reason.
    ("in the future", -1000, 1000),
];

/// Whether `act` moved the access time, which is set to each of the moments before.
fn moved(path: &Path, act: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<Vec<bool>> {
    let each = MOMENTS.iter().map(|(_, access, change)| {
        let set = (now() - access, 7);
        set_times(path, set, (now() - change, 8))?;
        tick();
        act(path)?;
        Ok(atime(path)? != set)
    });
    each.collect()
}

fn read_by(path: &Path, flags: i32) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    file.read_exact(&mut [0; 3])
}

#[test]
fn reading_a_file_sets_its_access_time_as_the_mount_says() {
    for options in OPTIONS {
        let sides = Sides::new(options);
        let moved_by = |what: &str, act: &dyn Fn(&Path) -> io::Result<()>| {
            sides.ok(&format!("{what}, {options}"), |dir| {
                write_file(&dir.join("f"), 0o644, b"content")?;
                moved(&dir.join("f"), act)
            })
        };
        let read = moved_by("a read", &|path| read_by(path, 0));
        let expected = match options {
            "noatime" => [false; 4],
            "strictatime" | "strictatime,nodiratime" => [true; 4],
            _ => [true, true, true, false],
        };
        assert_eq!(read, expected, "{options}: {MOMENTS:?}");
        moved_by("a read with O_NOATIME", &|path| read_by(path, libc::O_NOATIME));
        moved_by("a read through a descriptor for both", &|path| open_rw(path)?.read_exact(&mut [0; 3]));
        moved_by("a read through a mapping", &|path| {
            let map = crate::harness::sys::Mapping::shared(&open_rw(path)?, 7)?;
            assert_eq!(map.read(0, 3), b"con");
            Ok(())
        });
        moved_by("a copy", &|path| fs::copy(path, path.with_file_name("copy")).map(drop));
        moved_by("a write", &|path| OpenOptions::new().write(true).open(path)?.write_all(b"x"));
        moved_by("a look", &|path| path.metadata().map(drop));
        moved_by("a rename", &|path| {
            fs::rename(path, path.with_file_name("g"))?;
            fs::rename(path.with_file_name("g"), path)
        });
    }
}

#[test]
fn listing_a_directory_sets_its_access_time_as_the_mount_says() {
    for options in OPTIONS {
        let sides = Sides::new(options);
        let listed = sides.ok(&format!("a listing, {options}"), |dir| {
            mkdir(&dir.join("d"), 0o755)?;
            fs::write(dir.join("d/f"), b"")?;
            moved(&dir.join("d"), &|path| names(path).map(drop))
        });
        let never = options.contains("noatime") || options.contains("nodiratime");
        let expected = match options {
            _ if never => [false; 4],
            "strictatime" => [true; 4],
            _ => [true, true, true, false],
        };
        assert_eq!(listed, expected, "{options}");
        sides.ok(&format!("a path through it, {options}"), |dir| {
            moved(&dir.join("d"), &|path| path.join("f").metadata().map(drop))
        });
        sides.ok(&format!("a new name in it, {options}"), |dir| {
            moved(&dir.join("d"), &|path| {
                fs::write(path.join("new"), b"")?;
                fs::remove_file(path.join("new"))
            })
        });
    }
}

#[test]
fn following_a_symbolic_link_sets_its_access_time_as_the_mount_says() {
    for options in OPTIONS {
        let sides = Sides::new(options);
        let followed = sides.ok(&format!("readlink and open, {options}"), |dir| {
            fs::write(dir.join("f"), b"content")?;
            // A new one for each moment, so that the kernel knows none of their targets.
            let each = MOMENTS.iter().enumerate().map(|(i, (_, access, change))| {
                let mut moved = Vec::new();
                for how in ["readlink", "open"] {
                    let link = dir.join(format!("{how}-{i}"));
                    symlink("f", &link)?;
                    let set = (now() - access, 7);
                    set_times(&link, set, (now() - change, 8))?;
                    tick();
                    if how == "open" {
                        read_by(&link, 0)?;
                    } else {
                        link.read_link()?;
                    }
                    moved.push(atime(&link)? != set);
                }
                Ok(moved)
            });
            each.collect::<io::Result<Vec<_>>>()
        });
        let expected = match options {
            "noatime" => [false; 4],
            "strictatime" | "strictatime,nodiratime" => [true; 4],
            _ => [true, true, true, false],
        };
        assert_eq!(followed, expected.map(|moved| vec![moved; 2]), "{options}");
    }
}

#[test]
fn with_strictatime_every_read_of_a_link_and_of_a_directory_counts() {
    let sides = Sides::new("strictatime");
    let again = sides.ok("twice", |dir| {
        mkdir(&dir.join("d"), 0o755)?;
        symlink("d", dir.join("link"))?;
        let mut moved = Vec::new();
        for _ in 0..3 {
            let before = (atime(&dir.join("d"))?, atime(&dir.join("link"))?);
            tick();
            names(&dir.join("d"))?;
            dir.join("link").read_link()?;
            let after = (atime(&dir.join("d"))?, atime(&dir.join("link"))?);
            moved.push((after.0 > before.0, after.1 > before.1));
        }
        Ok(moved)
    });
    assert_eq!(again, [(true, true); 3]);
}

#[test]
fn a_new_file_has_been_read_once_when_it_was_read_once() {
    let sides = Sides::new("relatime");
    let times = sides.ok("written, read, read again", |dir| {
        let path = dir.join("f");
        fs::write(&path, b"content")?;
        let written = atime(&path)?;
        tick();
        read_by(&path, 0)?;
        let first = atime(&path)?;
        tick();
        read_by(&path, 0)?;
        let second = atime(&path)?;
        tick();
        OpenOptions::new().append(true).open(&path)?.write_all(b"more")?;
        tick();
        read_by(&path, 0)?;
        Ok((first > written, second == first, atime(&path)? > second))
    });
    assert_eq!(times, (true, true, true));
}

#[test]
fn a_read_moves_no_other_time_and_no_attribute() {
    let sides = Sides::new("strictatime");
    sides.ok("what a read leaves", |dir| {
        let path = dir.join("f");
        fs::write(&path, b"content")?;
        let before = path.metadata()?;
        tick();
        read_by(&path, 0)?;
        let after = path.metadata()?;
        let rest =
            |m: &fs::Metadata| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.mode(), m.len());
        assert_eq!(rest(&before), rest(&after));
        assert_ne!((before.atime(), before.atime_nsec()), (after.atime(), after.atime_nsec()));
        Ok(())
    });
}

#[test]
fn only_the_owner_may_read_without_leaving_a_trace() {
    let sides = Sides::new("relatime");
    sides.ok("preparing", |dir| {
        write_file(&dir.join("roots"), 0o644, b"content")?;
        write_file(&dir.join("his"), 0o644, b"content")?;
        chown(&dir.join("his"), NOBODY, NOBODY)
    });
    for (name, expected) in [("roots", Err(Errno::EPERM)), ("his", Ok(()))] {
        let found = sides.same("O_NOATIME by a user", |dir| {
            as_user(NOBODY, NOBODY, || read_by(&dir.join(name), libc::O_NOATIME))
        });
        assert_eq!(found, expected, "of a file of {name}");
    }
}

#[test]
fn access_times_are_kept_over_remounts_and_in_snapshots() {
    let mount = Store::encrypted().mount_with("mnt", &args!["-o", "strictatime"]);
    let paths = ["f", "d", "link"];
    let times = |root: &Path| {
        paths.map(|name| {
            let path = root.join(name);
            (atime(&path).expect("stat"), mtime(&path).expect("stat"))
        })
    };
    fs::write(mount.path().join("f"), b"content").expect("writing");
    fs::create_dir(mount.path().join("d")).expect("mkdir");
    symlink("f", mount.path().join("link")).expect("symlink");
    let made = times(mount.path());
    let visit = |root: &Path| {
        tick();
        read_by(&root.join("f"), 0).expect("reading");
        names(&root.join("d")).expect("listing");
        root.join("link").read_link().expect("readlink");
    };
    visit(mount.path());
    let visited = times(mount.path());
    for (before, after) in made.iter().zip(&visited) {
        assert!(after.0 > before.0 && after.1 == before.1, "{before:?}, then {after:?}");
    }
    let mount = mount.remount();
    assert_eq!(times(mount.path()), visited, "after a remount");
    mount.snapshot("then");
    assert_eq!(times(&mount.at("then")), visited, "in a snapshot");
    visit(mount.path());
    let later = times(mount.path());
    assert_ne!(later, visited);
    visit(&mount.at("then"));
    assert_eq!(times(&mount.at("then")), visited, "reading in a snapshot leaves no trace");
    let store = mount.umount();
    let read_only = store.mount_with("mnt", &args!["--read-only", "-o", "strictatime"]);
    visit(read_only.path());
    assert_eq!(times(read_only.path()), later, "nor on a read-only mount");
    let mount = read_only.umount().mount();
    assert_eq!(times(mount.path()), later, "nor is one kept from it");
}

#[test]
fn many_reads_at_once_are_all_seen() {
    let mount = Store::encrypted().mount();
    let paths: Vec<PathBuf> = (0..500).map(|i| mount.path().join(format!("f{i}"))).collect();
    for path in &paths {
        fs::write(path, b"content").expect("writing");
    }
    tick();
    std::thread::scope(|scope| {
        for part in paths.chunks(100) {
            scope.spawn(move || part.iter().for_each(|path| read_by(path, 0).expect("reading")));
        }
    });
    let read = |path: &PathBuf| {
        let found = (atime(path).expect("stat"), mtime(path).expect("stat"));
        assert!(found.0 > found.1, "{} was read after it was written: {found:?}", path.display());
        found
    };
    let seen: Vec<_> = paths.iter().map(read).collect();
    let mount = mount.remount();
    let kept: Vec<_> = (0..500).map(|i| read(&mount.path().join(format!("f{i}")))).collect();
    assert!(seen == kept, "the same after a remount");
}

#[test]
fn a_descriptor_that_is_kept_open_reads_on_without_harm() {
    let mount = Store::encrypted().mount();
    let path = mount.path().join("f");
    fs::write(&path, b"content").expect("writing");
    let mut file = File::open(&path).expect("opening");
    fs::remove_file(&path).expect("unlinking");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("reading what has no name");
    assert_eq!(text, "content");
    drop(file);
    let mount = mount.remount();
    assert!(names(mount.path()).expect("listing").is_empty());
}
