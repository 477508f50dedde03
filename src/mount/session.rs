//! Mounting a volume, serving it, unmounting it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use fuser::{Config, Session};

use super::connection::{Connection, Negotiated, connect, refuse, resend};
use super::fs::Adapter;
use super::inner::Inner;
use super::kernel::device_of;
use super::nodeid::Node;
use super::orphans::{Orphans, is_known};
use super::outcomes::Outcomes;
use super::settings::Settings;
use super::views::Views;
use crate::types::{Ino, Lsn};
use crate::volume::purge::Past;
use crate::volume::{FsError, FsResult, Volume, Volumes};

/// Nodes of the past, as the kernel knows them.
#[derive(Clone, Debug, Default)]
pub struct PastNodes {
    /// Names in directories.
    pub names: Vec<(u64, Vec<u8>)>,
    /// Inodes.
    pub inodes: Vec<u64>,
}

/// A mounted volume.
pub struct Mounted {
    mountpoint: PathBuf,
    volume: Arc<Volume>,
    inner: Arc<Inner>,
    orphans: Arc<Orphans>,
    session: JoinHandle<io::Result<()>>,
    reaper: JoinHandle<()>,
}

impl Mounted {
    /// Serves `volume` to the mount at `mountpoint`, whose connection is new or was another server's. `ended`
    /// is called when the kernel has let go of the mount, whoever unmounted it. Also returns what was agreed
    /// on with the kernel, for the next server.
    ///
    /// # Errors
    /// From the kernel, the store, or the operating system when it gives no threads.
    pub fn start(
        volumes: Arc<Volumes>,
        volume: Arc<Volume>,
        mountpoint: &Path,
        settings: Settings,
        connection: Connection,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<(Mounted, Negotiated)> {
        let orphans = Arc::new(Orphans::default());
        let resumed = connection.negotiated.is_some();
        if volume.store().read_only().is_none() {
            for ino in volume.orphans().map_err(io::Error::other)? {
                if resumed {
                    // Whether the kernel still holds it is for the orphans' thread to find out.
                    orphans.add(ino);
                } else {
                    // A new connection knows no inode, so nothing without a name is held by anyone.
                    match volume.remove_orphan(ino) {
                        // With all that is in it, in the background.
                        Err(FsError::NotEmpty) => orphans.add(ino),
                        result => result.map_err(io::Error::other)?,
                    }
                }
            }
        }
        let outcomes = if resumed { Outcomes::of(&volume, connection.id)? } else { Outcomes::default() };
        let mut config = Config::default();
        config.n_threads = Some(settings.threads);
        // Clones of the device lose the requests read through them when they close, and are no faster.
        config.clone_fd = false;
        let (readahead, acl, resends) = (settings.readahead_bytes, settings.acl, settings.resend);
        let inner = Arc::new(Inner {
            device: File::from(connection.device.try_clone()?),
            below: File::open(volume.store().path())?,
            views: Views::new(volume.clone(), resumed),
            orphans: orphans.clone(),
            connection: connection.id,
            outcomes,
            acls: AtomicBool::new(false),
            notes_all: AtomicBool::new(false),
            volumes,
            volume: volume.clone(),
            settings,
        });
        let adapter = Adapter::new(inner.clone())?;
        let make = |fd| Session::from_fd(adapter, fd, acl, config);
        let (session, negotiated) = connect(&connection, resends, make)?;
        let can_resend = negotiated.can_resend();
        inner.notes_all.store(!can_resend, Ordering::Relaxed);
        let reaper = orphans.start(volume.clone(), File::from(connection.device.try_clone()?))?;
        if resumed {
            // Before anything is read: a request of this server must not be taken for one of the last's.
            take_over(&connection, &volume, can_resend);
        }
        let session = std::thread::Builder::new().name("rewindfs-mount".into()).spawn(move || {
            let result = session.run();
            ended();
            result
        });
        let session = session.inspect_err(|_| orphans.stop())?;
        if !resumed {
            set_readahead(mountpoint, readahead);
        }
        let mounted = Mounted { mountpoint: mountpoint.to_owned(), volume, inner, orphans, session, reaper };
        Ok((mounted, negotiated))
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What is mounted.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Notes that inodes lost their last names other than through this mount.
    pub fn note_orphans(&self, inodes: &[Ino]) {
        self.orphans.add_all(inodes);
    }

    /// Which of these live inodes the kernel holds.
    pub fn holds(&self, inodes: &[Ino]) -> Vec<Ino> {
        inodes.iter().copied().filter(|ino| is_known(&self.inner.device, *ino)).collect()
    }

    /// The nodes by which the kernel may know the past of files.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when the volume is gone.
    pub fn past_nodes(&self, past: &Past) -> FsResult<PastNodes> {
        let mut nodes = PastNodes::default();
        for (view, at) in self.inner.views.all()? {
            let shows = |since: Lsn, end: Lsn| since <= at && at < end;
            for (dir, name, ..) in past.names.iter().filter(|(_, _, since, end)| shows(*since, *end)) {
                nodes.names.push((Node::Past { view, ino: *dir }.id(), name.clone()));
            }
            for (ino, ..) in past.inodes.iter().filter(|(_, since, end)| shows(*since, *end)) {
                nodes.inodes.push(Node::Past { view, ino: *ino }.id());
            }
        }
        Ok(nodes)
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

/// Sees to the requests that the server before read and did not answer. What must be answered is answered
/// whatever fails here, so failures are only told.
fn take_over(connection: &Connection, volume: &Volume, can_resend: bool) {
    if can_resend {
        match resend(&connection.device) {
            Ok(()) => return,
            Err(e) => tracing::error!(error = %e, "the kernel does not send unanswered requests again"),
        }
    }
    let mut refused = 0;
    for unique in volume.arena().take_unanswered(connection.id) {
        // One that was answered, or was never read, is not known as read.
        refused += u64::from(refuse(&connection.device, unique, nix::errno::Errno::EIO).is_ok());
    }
    if refused > 0 {
        tracing::warn!("{refused} requests that the server before had read fail with EIO");
    }
}

/// The kernel proposes 128 KiB of read-ahead and takes no larger answer; only this raises it. Not essential.
fn set_readahead(mountpoint: &Path, bytes: u64) {
    let device = match device_of(mountpoint) {
        Ok(Some(device)) => device,
        Ok(None) => return,
        Err(e) => return tracing::debug!(error = %e, "no read-ahead set"),
    };
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(e) = std::fs::write(&path, (bytes / 1024).to_string()) {
        tracing::debug!(error = %e, path = %OsStr::new(&path).display(), "no read-ahead set");
    }
}
