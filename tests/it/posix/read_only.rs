//! Every call that changes something, where nothing may change: on a mount that was made read-only, on one
//! that became so, and inside a snapshot. ext4 is mounted a second time, read-only.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::SFlag;
use nix::unistd::{AccessFlags, access, truncate};

use crate::harness::sys::{
    NOBODY, as_user, chmod, chown, copy_range, facts, fallocate, get_xattr, list_xattrs, mkdir, names,
    open_rw, remove_xattr, rename, set_times, set_xattr, special,
};
use crate::harness::twin::errno;
use crate::harness::{Rng, Store, Times, Tree, args, sample};

/// A call on a directory with `f`, `d/`, `full/in`, `link`, `p` and `hollow`, a link to nowhere.
type Call = (&'static str, fn(&Path) -> io::Result<()>);

fn opened(path: &Path, options: &mut OpenOptions) -> io::Result<()> {
    options.open(path).map(drop)
}

fn truncating(path: &Path) -> io::Result<()> {
    // What the standard library refuses to combine.
    let flags = libc::O_RDONLY | libc::O_TRUNC;
    let file =
        nix::fcntl::open(path, nix::fcntl::OFlag::from_bits_retain(flags), nix::sys::stat::Mode::empty());
    Ok(file.map(drop)?)
}

/// What must be refused with `EROFS`.
const CHANGES: [Call; 43] = [
    ("chmod of a file", |d| chmod(&d.join("f"), 0o600)),
    ("chmod to what it is", |d| chmod(&d.join("f"), facts(&d.join("f"))?.mode & 0o7777)),
    ("chmod of a directory", |d| chmod(&d.join("d"), 0o700)),
    ("chmod of the root", |d| chmod(d, 0o700)),
    ("chmod by link", |d| chmod(&d.join("link"), 0o600)),
    ("chown", |d| chown(&d.join("f"), 5, 5)),
    ("chown of a link", |d| chown(&d.join("link"), 5, 5)),
    ("link", |d| fs::hard_link(d.join("f"), d.join("new"))),
    ("link into a directory", |d| fs::hard_link(d.join("f"), d.join("d/new"))),
    ("mkdir", |d| mkdir(&d.join("new"), 0o755)),
    ("mkdir below", |d| mkdir(&d.join("d/new"), 0o755)),
    ("mkfifo", |d| special(&d.join("new"), SFlag::S_IFIFO, 0o600, 0)),
    ("mknod of a device", |d| special(&d.join("new"), SFlag::S_IFCHR, 0o600, nix::sys::stat::makedev(1, 3))),
    ("mknod of a file", |d| special(&d.join("new"), SFlag::S_IFREG, 0o600, 0)),
    ("mknod of a socket", |d| special(&d.join("new"), SFlag::S_IFSOCK, 0o600, 0)),
    ("open for writing", |d| opened(&d.join("f"), OpenOptions::new().write(true))),
    ("open for both", |d| opened(&d.join("f"), OpenOptions::new().read(true).write(true))),
    ("open for appending", |d| opened(&d.join("f"), OpenOptions::new().append(true))),
    ("open by link", |d| opened(&d.join("link"), OpenOptions::new().write(true))),
    ("open with O_TRUNC", |d| opened(&d.join("f"), OpenOptions::new().write(true).truncate(true))),
    ("O_RDONLY with O_TRUNC", |d| truncating(&d.join("f"))),
    ("open with O_CREAT of what is not there", |d| {
        opened(&d.join("new"), OpenOptions::new().write(true).create(true))
    }),
    ("open with O_EXCL", |d| opened(&d.join("new"), OpenOptions::new().write(true).create_new(true))),
    ("open with O_CREAT of what a link names", |d| {
        opened(&d.join("hollow"), OpenOptions::new().write(true).create(true))
    }),
    ("rename", |d| fs::rename(d.join("f"), d.join("new"))),
    ("rename over", |d| fs::rename(d.join("f"), d.join("link"))),
    ("rename of a directory", |d| fs::rename(d.join("full"), d.join("d"))),
    ("rename into a directory", |d| fs::rename(d.join("f"), d.join("d/f"))),
    ("exchange", |d| rename(&d.join("f"), &d.join("d"), nix::fcntl::RenameFlags::RENAME_EXCHANGE)),
    ("rmdir", |d| fs::remove_dir(d.join("d"))),
    ("rmdir of a full one", |d| fs::remove_dir(d.join("full"))),
    ("unlink", |d| fs::remove_file(d.join("f"))),
    ("unlink of a link", |d| fs::remove_file(d.join("link"))),
    ("unlink of a fifo", |d| fs::remove_file(d.join("p"))),
    ("symlink", |d| symlink("f", d.join("new"))),
    ("truncate", |d| Ok(truncate(&d.join("f"), 0)?)),
    ("truncate to its size", |d| Ok(truncate(&d.join("f"), facts(&d.join("f"))?.size as i64)?)),
    ("times", |d| set_times(&d.join("f"), (5, 5), (6, 6))),
    ("times of a link", |d| set_times(&d.join("link"), (5, 5), (6, 6))),
    ("times of now", |d| set_times(&d.join("f"), (0, libc::UTIME_NOW), (0, libc::UTIME_NOW))),
    ("an attribute", |d| set_xattr(&d.join("f"), "user.new", b"1", 0)),
    ("removing one", |d| remove_xattr(&d.join("f"), "user.a")),
    ("replacing one", |d| set_xattr(&d.join("f"), "trusted.a", b"2", libc::XATTR_REPLACE)),
];

/// What has an answer of its own, or works.
const OTHERS: [Call; 17] = [
    ("mkdir of what is there", |d| mkdir(&d.join("d"), 0o755)),
    ("link over what is there", |d| fs::hard_link(d.join("f"), d.join("link"))),
    ("symlink over what is there", |d| symlink("x", d.join("f"))),
    ("mkfifo over what is there", |d| special(&d.join("p"), SFlag::S_IFIFO, 0o600, 0)),
    ("O_EXCL of what is there", |d| opened(&d.join("f"), OpenOptions::new().write(true).create_new(true))),
    ("chmod of nothing", |d| chmod(&d.join("none"), 0o600)),
    ("opening a directory for writing", |d| opened(&d.join("d"), OpenOptions::new().write(true))),
    ("ftruncate of what is open for reading", |d| File::open(d.join("f"))?.set_len(0)),
    ("fallocate of it", |d| fallocate(&File::open(d.join("f"))?, 0, 0, 10)),
    ("a copy into it", |d| {
        copy_range(&File::open(d.join("f"))?, 0, &File::open(d.join("g"))?, 0, 2).map(drop)
    }),
    ("times left alone", |d| set_times(&d.join("f"), (0, libc::UTIME_OMIT), (0, libc::UTIME_OMIT))),
    ("a fifo for writing", |d| open_rw(&d.join("p")).map(drop)),
    ("a device for writing", |d| fs::write(d.join("null"), b"swallowed")),
    ("a descriptor of the path alone", |d| {
        opened(&d.join("f"), OpenOptions::new().read(true).custom_flags(libc::O_PATH))
    }),
    ("O_CREAT of what is there, for reading", |d| {
        let flags = nix::fcntl::OFlag::O_CREAT;
        Ok(nix::fcntl::open(&d.join("f"), flags, nix::sys::stat::Mode::empty()).map(drop)?)
    }),
    ("fsync", |d| File::open(d.join("f"))?.sync_all()),
    ("fsync of a directory", |d| File::open(d)?.sync_all()),
];

fn plant(dir: &Path) -> io::Result<()> {
    sample::plant(dir, &mut Rng::new(5))?;
    fs::write(dir.join("f"), b"content")?;
    fs::write(dir.join("g"), b"more")?;
    mkdir(&dir.join("d"), 0o755)?;
    mkdir(&dir.join("full"), 0o755)?;
    fs::write(dir.join("full/in"), b"")?;
    symlink("f", dir.join("link"))?;
    symlink("nowhere", dir.join("hollow"))?;
    special(&dir.join("p"), SFlag::S_IFIFO, 0o600, 0)?;
    special(&dir.join("null"), SFlag::S_IFCHR, 0o666, nix::sys::stat::makedev(1, 3))?;
    set_xattr(&dir.join("f"), "user.a", b"1", 0)?;
    set_xattr(&dir.join("f"), "trusted.a", b"1", 0)
}

/// ext4 a second time, read-only.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn of(dir: &Path, at: PathBuf) -> ReadOnly {
        let none: Option<&str> = None;
        mount(Some(dir), &at, none, MsFlags::MS_BIND, none).expect("a second mount of ext4");
        let twin = ReadOnly(at);
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &twin.0, none, flags, none).expect("making it read-only");
        twin
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Tries every call on both, as root and as a user to whom everything is open.
fn nothing_changes(ours: &Path, store: &Store, what: &str) {
    let name = what.replace(' ', "-");
    let plain = store.directory(&format!("plain-{name}"));
    plant(&plain).expect("planting");
    let theirs = ReadOnly::of(&plain, store.directory(&format!("bind-{name}")));
    let before = Tree::read(ours);
    for (call, act) in CHANGES {
        for root in [ours, &theirs.0] {
            assert_eq!(errno(act(root)), Err(Errno::EROFS), "{call}, {what}, {}", root.display());
        }
        let refused = errno(as_user(NOBODY, NOBODY, || act(ours)));
        assert!(refused.is_err(), "{call}, {what}, by a user");
    }
    let told = OTHERS.map(|(call, act)| [ours, &theirs.0].map(|root| (call, errno(act(root)))));
    let different: Vec<_> = told.iter().filter(|[ours, theirs]| ours != theirs).collect();
    assert!(different.is_empty(), "{what}: left is the mount, right is ext4: {different:#?}");
    // Inside a snapshot the kernel looks first, and nothing is there; else it sees the mount first.
    for act in [|d: &Path| fs::remove_file(d.join("none")), |d: &Path| fs::remove_dir(d.join("none"))] {
        let refused = errno(act(ours));
        assert!(
            matches!(refused, Err(Errno::EROFS | Errno::ENOENT)),
            "removing nothing, {what}: {refused:?}"
        );
    }
    before.assert_same(&Tree::read(ours), Times::All, what);
    let read =
        (fs::read(ours.join("f")).expect("reading"), names(&ours.join("full")).expect("listing").len());
    assert_eq!(read, (b"content".to_vec(), 1));
    let values = (get_xattr(&ours.join("f"), b"user.a"), list_xattrs(&ours.join("f")));
    assert_eq!((values.0.expect("reading"), values.1.expect("listing").len()), (b"1".to_vec(), 2));
}

#[test]
fn nothing_can_be_changed_on_a_read_only_mount() {
    let store = Store::encrypted();
    let writable = store.mount();
    plant(writable.path()).expect("planting");
    let store = writable.umount();
    for options in [args!["--read-only"].to_vec(), args!["-o", "ro"].to_vec()] {
        let mount = store.mount_with("mnt", &options);
        nothing_changes(mount.path(), &store, &format!("mounted with {:?}", options[0]));
        let may = |name: &str, right| errno(access(&mount.path().join(name), right).map_err(io::Error::from));
        assert_eq!(may("f", AccessFlags::W_OK), Err(Errno::EROFS));
        assert_eq!(may("d", AccessFlags::W_OK), Err(Errno::EROFS));
        assert_eq!((may("f", AccessFlags::R_OK), may("null", AccessFlags::W_OK)), (Ok(()), Ok(())));
        assert_eq!(errno(mkdir(&mount.at("new"), 0o755)), Err(Errno::EROFS), "a snapshot is a change, too");
        mount.umount();
    }
    let writable = store.mount();
    fs::write(writable.path().join("f"), b"changed").expect("the next mount may write");
}

#[test]
fn a_mount_that_is_made_read_only_changes_nothing_until_it_may_again() {
    let store = Store::encrypted();
    let mount = store.mount();
    plant(mount.path()).expect("planting");
    fs::write(mount.path().join("late"), vec![7; 300_000]).expect("writing");
    let none: Option<&str> = None;
    let again = |flags: MsFlags| {
        errno(
            nix::mount::mount(none, mount.path(), none, MsFlags::MS_REMOUNT | flags, none)
                .map_err(Into::into),
        )
    };
    let held = open_rw(&mount.path().join("g")).expect("opening");
    assert_eq!(again(MsFlags::MS_RDONLY), Err(Errno::EBUSY), "while a file is open for writing");
    drop(held);
    // Closing is told to the server later.
    let mut told = Err(Errno::EBUSY);
    crate::harness::eventually("the mount to become read-only", || {
        told = again(MsFlags::MS_RDONLY);
        told != Err(Errno::EBUSY)
    });
    assert_eq!(told, Ok(()));
    nothing_changes(mount.path(), &store, "remounted");
    assert_eq!(fs::read(mount.path().join("late")).expect("reading"), vec![7; 300_000]);
    assert_eq!(again(MsFlags::empty()), Ok(()));
    fs::write(mount.path().join("f"), b"changed").expect("writing again");
    let mount = mount.remount();
    assert_eq!(fs::read(mount.path().join("f")).expect("reading"), b"changed");
    assert_eq!(fs::read(mount.path().join("late")).expect("reading"), vec![7; 300_000]);
}

#[test]
fn nothing_can_be_changed_inside_a_snapshot_by_any_call() {
    let store = Store::encrypted();
    let mut mount = store.mount();
    plant(mount.path()).expect("planting");
    mount.snapshot("then");
    nothing_changes(&mount.at("then"), &store, "a snapshot");
    // Between the two trees neither.
    let (live, past) = (mount.path().to_owned(), mount.at("then"));
    type Between = (&'static str, fn(&Path, &Path) -> io::Result<()>);
    let between: [Between; 4] = [
        ("a link into it", |live, past| fs::hard_link(live.join("f"), past.join("new"))),
        ("a link out of it", |live, past| fs::hard_link(past.join("f"), live.join("new"))),
        ("a rename into it", |live, past| fs::rename(live.join("f"), past.join("new"))),
        ("a rename out of it", |live, past| fs::rename(past.join("f"), live.join("new"))),
    ];
    for (what, act) in between {
        let refused = errno(act(&live, &past));
        assert!(matches!(refused, Err(Errno::EROFS | Errno::EXDEV)), "{what}: {refused:?}");
    }
    mount = mount.remount();
    nothing_changes(&mount.at("then"), &store, "a snapshot after a remount");
    let lsn = mount.status_number("/lsn");
    nothing_changes(&mount.at(&format!("@lsn:{lsn}")), &store, "a moment");
}
