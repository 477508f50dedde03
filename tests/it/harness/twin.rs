//! A mount and a plain ext4 directory that the same things are done to: ext4 says what is right.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, statfs};

use super::sys::{chmod, chown};
use super::{Mount, Store, Times, Tree, test_root};

/// The two directories.
pub struct Twin {
    mount: Option<Mount>,
    plain: PathBuf,
}

impl Twin {
    /// A fresh store, mounted, beside an empty plain directory; both roots are 0755 and root's.
    pub fn new() -> Twin {
        let kind = statfs(&test_root()).expect("statfs of the test directory").filesystem_type();
        assert!(
            kind == EXT4_SUPER_MAGIC,
            "{} is not on ext4, which these tests compare with: set REWINDFS_TEST_DIR",
            test_root().display()
        );
        let store = Store::encrypted();
        let plain = store.directory("plain");
        let mount = store.mount();
        for root in [mount.path(), &plain] {
            chmod(root, 0o755).and_then(|()| chown(root, 0, 0)).expect("preparing the roots");
        }
        Twin { mount: Some(mount), plain }
    }

    /// The mounted side.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted except within remount")
    }

    /// The plain side.
    pub fn plain(&self) -> &Path {
        &self.plain
    }

    /// The mounted directory, then the plain one.
    pub fn roots(&self) -> [&Path; 2] {
        [self.mount().path(), &self.plain]
    }

    /// Does something on both sides and fails the test unless both return the same value or the same errno.
    pub fn same<T, F>(&self, what: &str, act: F) -> Result<T, Errno>
    where
        T: PartialEq + Debug,
        F: Fn(&Path) -> io::Result<T>,
    {
        let [ours, theirs] = self.roots().map(|root| errno(act(root)));
        assert_eq!(ours, theirs, "{what}: left is the mount, right is ext4");
        ours
    }

    /// As [`Twin::same`], for what must succeed.
    pub fn ok<T, F>(&self, what: &str, act: F) -> T
    where
        T: PartialEq + Debug,
        F: Fn(&Path) -> io::Result<T>,
    {
        self.same(what, act).unwrap_or_else(|e| panic!("{what} fails on both sides: {e}"))
    }

    /// As [`Twin::same`], for what must fail with this errno.
    pub fn err<F>(&self, what: &str, expected: Errno, act: F)
    where
        F: Fn(&Path) -> io::Result<()>,
    {
        assert_eq!(self.same(what, act), Err(expected), "{what}, on both sides");
    }

    /// Unmounts and mounts again; the plain side stays.
    pub fn remount(&mut self) {
        self.mount = self.mount.take().map(Mount::remount);
    }

    /// As [`Twin::remount`], with the index deleted in between: it must be rebuilt.
    pub fn remount_without_index(&mut self) {
        self.mount = self.mount.take().map(|mount| {
            let store = mount.umount();
            std::fs::remove_dir_all(store.path().join("index")).expect("deleting the index");
            store.mount()
        });
    }

    /// Compares the two whole trees, times that were set by hand included.
    pub fn compare(&self, what: &str) {
        Tree::read(&self.plain).assert_same(&Tree::read(self.mount().path()), Times::Planted, what);
    }

    /// Compares the trees, remounts and compares again.
    pub fn compare_over_remount(&mut self) {
        self.compare("before the remount");
        self.remount();
        self.compare("after the remount");
    }
}

/// The kernel's error number; an error of another source fails the test.
pub fn errno<T>(result: io::Result<T>) -> Result<T, Errno> {
    result.map_err(|e| match e.raw_os_error() {
        Some(number) => Errno::from_raw(number),
        None => panic!("not a system error: {e}"),
    })
}
