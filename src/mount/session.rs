//! Mounting a volume, serving it, unmounting it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, Session};

use super::fs::{Adapter, Inner};
use super::kernel::unmount;
use super::orphans::Orphans;
use super::settings::Settings;
use super::views::Views;
use crate::volume::{Volume, Volumes};

/// A mounted volume.
pub struct Mounted {
    mountpoint: PathBuf,
    volume: Arc<Volume>,
    orphans: Arc<Orphans>,
    session: JoinHandle<io::Result<()>>,
    reaper: JoinHandle<()>,
}

impl Mounted {
    /// Mounts `volume` at `mountpoint` and serves it. `ended` is called when the kernel has let go of the
    /// mount, whoever unmounted it.
    ///
    /// # Errors
    /// From the kernel or `fusermount3`; from the operating system when it gives no threads.
    pub fn start(
        volumes: Arc<Volumes>,
        volume: Arc<Volume>,
        mountpoint: &Path,
        settings: Settings,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Mounted> {
        // A new connection knows no inode, so nothing without a name is held by anyone.
        if volume.store().read_only().is_none() {
            for ino in volume.orphans().map_err(io::Error::other)? {
                volume.remove_orphan(ino).map_err(io::Error::other)?;
            }
        }
        let mut connection = [0; 8];
        getrandom::fill(&mut connection).map_err(io::Error::other)?;
        let orphans = Arc::new(Orphans::default());
        let mut config = Config::default();
        config.n_threads = Some(settings.threads);
        // Clones of the device lose the requests read through them when they close, and are no faster.
        config.clone_fd = false;
        let (readahead, kernel, acl) = (settings.readahead_bytes, settings.kernel.clone(), settings.acl);
        let inner = Inner {
            below: File::open(volume.store().path())?,
            views: Views::new(volume.clone()),
            orphans: orphans.clone(),
            connection: u64::from_ne_bytes(connection) | 1,
            volumes,
            volume: volume.clone(),
            settings,
        };
        let adapter = Adapter::new(Arc::new(inner))?;
        let connection = kernel.mount(mountpoint)?;
        let started = Session::from_fd(adapter, connection, acl, config).and_then(|session| {
            let device = File::from(session.as_fd().try_clone_to_owned()?);
            let reaper = orphans.start(volume.clone(), device)?;
            let session = std::thread::Builder::new().name("rewindfs-mount".into()).spawn(move || {
                let result = session.run();
                ended();
                result
            })?;
            Ok((session, reaper))
        });
        let (session, reaper) = match started {
            Ok(started) => started,
            Err(e) => {
                orphans.stop();
                let _ = unmount(mountpoint, true);
                return Err(e);
            }
        };
        set_readahead(mountpoint, readahead);
        Ok(Mounted { mountpoint: mountpoint.to_owned(), volume, orphans, session, reaper })
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What is mounted.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Whether the kernel has let go of the mount.
    pub fn has_ended(&self) -> bool {
        self.session.is_finished()
    }

    /// Waits until the mount is gone.
    ///
    /// # Errors
    /// What ended the session, if not an unmount.
    pub fn join(self) -> io::Result<()> {
        let result = self.session.join().unwrap_or_else(|_| Err(io::Error::other("a mount thread panicked")));
        self.orphans.stop();
        let _ = self.reaper.join();
        result
    }
}

/// The kernel proposes 128 KiB of read-ahead and takes no larger answer; only this raises it. Not essential.
fn set_readahead(mountpoint: &Path, bytes: u64) {
    let device = match nix::sys::stat::stat(mountpoint) {
        Ok(stat) => stat.st_dev,
        Err(e) => return tracing::debug!(error = %e, "no read-ahead set"),
    };
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(e) = std::fs::write(&path, (bytes / 1024).to_string()) {
        tracing::debug!(error = %e, path = %OsStr::new(&path).display(), "no read-ahead set");
    }
}
