//! From a PATH to whom to ask and about what.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use nix::libc;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};

use super::progress::Display;
use super::{io_error, shown};
use crate::daemon::client::{Backend, Client};
use crate::daemon::news::Listener;
use crate::daemon::offline;
use crate::daemon::protocol::{ControlError, Progress, Request, Response, StatusReport, Target};
use crate::daemon::registry::{
    self, Entry, Found, MOUNT_ATTRIBUTE, MOUNT_ATTRIBUTE_BYTES_MAX, MountAttribute, MountEntry,
};
use crate::daemon::sys::{END_PATIENCE, getxattr};
use crate::types::Ino;

/// The volume that `init` makes.
pub(super) const DEFAULT_VOLUME: &str = "main";

/// Whom to ask about a PATH.
pub(super) struct Resolved {
    backend: Box<dyn Backend>,
    /// About what.
    pub(super) target: Target,
    /// What the store's server has mounted, as far as is known.
    pub(super) mounts: Vec<MountEntry>,
}

impl Resolved {
    /// Asks, and shows progress meanwhile.
    pub(super) fn ask(&self, request: Request) -> Result<Response, ControlError> {
        let mut display = Display::new();
        self.backend.call(request, &mut |news: Progress| display.show(&news))
    }

    /// As [`Resolved::ask`], on a display that the caller keeps.
    pub(super) fn ask_quietly(
        &self,
        request: Request,
        display: &mut Display,
    ) -> Result<Response, ControlError> {
        self.backend.call(request, &mut |news: Progress| display.show(&news))
    }

    /// As [`Resolved::ask`], for an answer in parts.
    pub(super) fn ask_in_parts(
        &self,
        request: Request,
        listener: &mut dyn Listener,
    ) -> Result<Response, ControlError> {
        self.backend.call(request, listener)
    }

    /// How what the path names fares.
    pub(super) fn status(&self) -> Result<Vec<StatusReport>, ControlError> {
        match self.ask(Request::Status { target: self.target.clone() })? {
            Response::Status(reports) => Ok(reports),
            _ => Err(super::unexpected()),
        }
    }

    /// The volume that the target is in; None for a whole store.
    pub(super) fn volume(&self) -> Option<&str> {
        match &self.target {
            Target::File { volume, .. } | Target::Volume { volume } => Some(volume),
            Target::Store => None,
        }
    }
}

/// Whether `path` lies in a mount whose server is gone.
pub(super) fn is_dead(path: &Path) -> bool {
    matches!(statfs(path), Err(nix::errno::Errno::ENOTCONN))
}

/// The store whose mount `path` lies in, where its servers keep dying and the mount cannot be asked.
pub(super) fn failing(path: &Path) -> Option<Entry> {
    let path = std::path::absolute(path).ok()?;
    let here = |entry: &Entry| entry.mounts.iter().any(|m| path.starts_with(&m.mountpoint));
    registry::running().into_iter().find(|entry| entry.failed.is_some() && here(entry))
}

/// What the registry knows of the mount that `path` lies in, where the path itself cannot say it: None when
/// its servers keep dying.
fn registered(path: &Path) -> Result<Option<MountAttribute>, ControlError> {
    if failing(path).is_some() {
        return Ok(None);
    }
    let at = std::path::absolute(path).unwrap_or_default();
    let mount = registry::running().into_iter().find_map(|entry| {
        let mount = entry.mounts.iter().find(|m| at.starts_with(&m.mountpoint))?.clone();
        let MountEntry { volume, mountpoint } = mount;
        let Entry { store, node, socket, .. } = entry;
        Some(MountAttribute { store, node, volume, mountpoint, socket, ino: Ino::ROOT.0 })
    });
    let unreadable = || io_error("looking at", path, &io::Error::from_raw_os_error(libc::EIO));
    mount.map(Some).ok_or_else(unreadable)
}

/// As [`failing`], also for the store's directory.
pub(super) fn failed_store(path: &Path) -> Option<Entry> {
    let store = path.canonicalize().ok();
    let running = || registry::running().into_iter();
    failing(path).or_else(|| running().find(|e| e.failed.is_some() && Some(&e.store) == store.as_ref()))
}

/// What the mount says that `path` lies in; None when it lies in none of ours.
///
/// # Errors
/// A dead mount, and whatever keeps `path` from being looked at; a missing one is `NoStore`.
pub(super) fn mount_of(path: &Path) -> Result<Option<MountAttribute>, ControlError> {
    let on_fuse = match statfs(path) {
        Ok(found) => found.filesystem_type() == FUSE_SUPER_MAGIC,
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {
            return Err(ControlError::no_store(path));
        }
        Err(nix::errno::Errno::EIO) => return registered(path),
        Err(nix::errno::Errno::ENOTCONN) => {
            let text = format!("the server of the mount at {} is gone; rewindfs umount it", shown(path));
            return Err(ControlError::failed(text));
        }
        Err(e) => return Err(io_error("looking at", path, &e.into())),
    };
    // On other filesystems anyone can give a file such an attribute.
    if !on_fuse {
        return Ok(None);
    }
    let value = match getxattr(path, MOUNT_ATTRIBUTE, MOUNT_ATTRIBUTE_BYTES_MAX) {
        Ok(value) => value,
        Err(e) => match e.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM) => return Ok(None),
            Some(libc::EIO) => return registered(path),
            _ => return Err(io_error("looking at", path, &e)),
        },
    };
    Ok(serde_json::from_slice(&value).ok())
}

/// Whom to ask about a path inside a mount, or a store directory. `volume` overrides which volume of the
/// store is meant.
pub(super) fn path(
    path: &Path,
    volume: Option<&str>,
    key_file: Option<&Path>,
) -> Result<Resolved, ControlError> {
    let Some(mount) = mount_of(path)? else {
        let target = Target::Volume { volume: volume.unwrap_or(DEFAULT_VOLUME).to_owned() };
        return store(path, target, key_file);
    };
    let target = match volume {
        Some(volume) if volume != mount.volume => Target::Volume { volume: volume.to_owned() },
        _ => Target::File { volume: mount.volume.clone(), ino: mount.ino },
    };
    let entries = registry::running();
    let known = entries.into_iter().find(|entry| entry.node == mount.node);
    let own = MountEntry { volume: mount.volume, mountpoint: mount.mountpoint };
    let mounts = known.map_or_else(|| vec![own], |entry| entry.mounts);
    Ok(Resolved { backend: Box::new(Client::new(mount.socket, None)), target, mounts })
}

/// Whom to ask about a store: its server, or else the store itself, opened in this process. A path inside a
/// mount is no store: what such a path says of itself must not decide whose keys are changed.
pub(super) fn store(path: &Path, target: Target, key_file: Option<&Path>) -> Result<Resolved, ControlError> {
    if let Some(entry) = failing(path) {
        return Err(servers_die(&entry));
    }
    let store = store_directory(path)?;
    let node = registry::node_of(&store)?;
    let found = match registry::find(&store, node) {
        // It will be gone, and the store free, in a moment.
        Found::Leaving(process) => {
            process.wait(END_PATIENCE);
            registry::find(&store, node)
        }
        found => found,
    };
    let (backend, mounts): (Box<dyn Backend>, _) = match found {
        Found::Running(entry) => (Box::new(server_of(&store, &entry)), entry.mounts),
        Found::Failed(entry) => return Err(servers_die(&entry)),
        _ => (offline::open(&store, key_file)?, Vec::new()),
    };
    Ok(Resolved { backend, target, mounts })
}

/// The volume that a path inside a mount lies in, or that is named; else the path is a store's directory, and all
/// of that store is meant.
pub(super) fn mount_or_store(
    path: &Path,
    volume: Option<&str>,
    key_file: Option<&Path>,
) -> Result<Resolved, ControlError> {
    match (mount_of(path)?, volume) {
        (None, None) => store(path, Target::Store, key_file),
        (_, volume) => self::path(path, volume, key_file),
    }
}

/// Why nobody answers for a store whose servers keep dying.
pub(super) fn servers_die(entry: &Entry) -> ControlError {
    let why = entry.failed.as_deref().unwrap_or("the server is gone");
    ControlError::in_use(format!("{}: {why}", shown(&entry.store)))
}

/// A client of a registered server.
pub(super) fn server_of(store: &Path, entry: &Entry) -> Client {
    // An owner that cannot be seen must not mean that any server is trusted.
    let owner = fs::metadata(store).map_or(u32::MAX, |m| m.uid());
    Client::new(entry.socket.clone(), Some(owner))
}

/// The canonical path of a store's directory.
pub(super) fn store_directory(path: &Path) -> Result<PathBuf, ControlError> {
    match path.canonicalize() {
        Ok(canonical) => Ok(canonical),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(ControlError::no_store(path))
        }
        Err(e) => Err(io_error("looking at", path, &e)),
    }
}

/// Writes out what programs have changed through shared mappings and not yet told anyone: the kernel hands
/// it to the server, and a snapshot that follows has it.
///
/// # Errors
/// Writing failed. A mount that the caller may not open is passed over.
pub(super) fn sync_mounts<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<(), ControlError> {
    let mut synced = Vec::new();
    for path in paths {
        // Only directories: opening a pipe or a device would do something.
        let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
        let Ok(dir) = File::options().read(true).custom_flags(flags).open(path) else { continue };
        let device = dir.metadata().map_err(|e| io_error("syncing", path, &e))?.dev();
        if synced.contains(&device) {
            continue;
        }
        // A mountpoint of the registry may have become something else meanwhile; syncing that does no harm.
        nix::unistd::syncfs(&dir).map_err(|e| io_error("syncing", path, &e.into()))?;
        synced.push(device);
    }
    Ok(())
}

/// Which volume a command is about.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// A path inside a mount, or a store directory.
    pub(super) path: PathBuf,
    /// The volume, when it is not the one that PATH lies in [default with a store directory: main].
    #[arg(long)]
    volume: Option<String>,
    /// The key file, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl Where {
    /// The volume and who answers for it.
    pub(super) fn resolve(&self) -> Result<Resolved, ControlError> {
        path(&self.path, self.volume.as_deref(), self.key_file.as_deref())
    }
}

/// Whom to ask about a path inside a mount that may name anything, or something that is gone: a directory is
/// meant as such; anything else is named from the nearest directory above it that there is.
///
/// # Errors
/// As [`path`]; `NoStore` where that directory is in no mount.
pub(super) fn named(
    path: &Path,
    volume: Option<&str>,
    key_file: Option<&Path>,
) -> Result<(Resolved, Option<PathBuf>), ControlError> {
    let is_gone = |e: io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    if fs::metadata(path).map_or_else(|e| !is_gone(e), |found| found.is_dir()) {
        return Ok((self::path(path, volume, key_file)?, None));
    }
    if volume.is_some() {
        return Err(ControlError::usage("--volume goes with a store directory or a directory of a mount"));
    }
    let (dir, name) = split(path)?;
    // The file itself may lie where the directory does not: it decides nothing.
    let Some(_) = mount_of(&dir)? else { return Err(ControlError::no_store(path)) };
    Ok((self::path(&dir, None, key_file)?, Some(name)))
}

/// The nearest directory above a path that there is, and the rest of the path.
pub(super) fn split(path: &Path) -> Result<(PathBuf, PathBuf), ControlError> {
    let mut dir = path;
    let mut names = Vec::new();
    loop {
        let name = dir
            .file_name()
            .ok_or_else(|| ControlError::usage(format!("{}: name it without .. at its end", shown(path))))?;
        names.push(name);
        dir = match dir.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(ControlError::no_store(path)),
        };
        // A symbolic link to a directory that is gone is a name like another.
        if dir.is_dir() {
            return Ok((dir.to_owned(), names.iter().rev().collect()));
        }
        if let Err(e) = fs::symlink_metadata(dir)
            && !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        {
            return Err(io_error("looking at", dir, &e));
        }
    }
}
