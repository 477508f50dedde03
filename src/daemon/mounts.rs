//! The mounts of a server: what can be asked about them, and the table of them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::protocol::{ControlError, Kind, MountRequest};
use super::registry::MountEntry;
use super::rights::control_error;
use crate::mount::Mounted;
use crate::volume::{Volume, Volumes};

/// The mounts of a server; without one there are none.
pub trait Mounts: Send + Sync {
    /// Mounts a volume.
    fn mount(&self, request: &MountRequest) -> Result<(), ControlError>;
    /// Unmounts. Returns whether that was the last mount, with which the server ends.
    fn unmount(&self, mountpoint: &Path) -> Result<bool, ControlError>;
    /// What is mounted where.
    fn list(&self) -> Vec<MountEntry>;
    /// Whether the mount there allows no writes.
    fn is_read_only(&self, mountpoint: &Path) -> bool;
    /// Begins to end the server.
    fn stop(&self);
    /// The process that starts the next server should this one die.
    fn holder(&self) -> Option<u32>;
    /// Makes room for that program: everything becomes durable, programs wait for the next server.
    fn replace(&self, program: OwnedFd) -> Result<(), ControlError>;
}

/// Tells a mount from a later one at the same place.
pub(super) type Number = u64;

/// A mount in the table.
pub(super) struct TableEntry {
    pub(super) mounted: Mounted,
    pub(super) read_only: bool,
    pub(super) number: Number,
    pub(super) connection: u64,
}

/// What is mounted where.
#[derive(Default)]
pub(super) struct Table {
    pub(super) mounted: HashMap<PathBuf, TableEntry>,
    /// How many mounts there have been.
    pub(super) count: Number,
    /// The server ends: whoever comes now is to wait for the next one.
    pub(super) ending: bool,
}

impl Table {
    /// Fails when `volume`, or something else at `mountpoint`, is mounted.
    pub(super) fn check_free(&self, volume: &Volume, mountpoint: &Path) -> Result<(), ControlError> {
        if self.ending {
            return Err(ControlError::new(Kind::Ending, "the store's server is just ending; try again"));
        }
        if let Some(entry) = self.mounted.values().find(|e| e.mounted.volume().id() == volume.id()) {
            let at = entry.mounted.mountpoint().display();
            return Err(ControlError::in_use(format!("volume {} is mounted at {at}", volume.name())));
        }
        if let Some(other) = self.mounted.get(mountpoint) {
            let (name, at) = (other.mounted.volume().name(), mountpoint.display());
            return Err(ControlError::in_use(format!("volume {name} of this store is mounted at {at}")));
        }
        Ok(())
    }

    /// Takes out the mount of that number, if it has not been taken yet.
    pub(super) fn take(&mut self, number: Number) -> Option<TableEntry> {
        let (at, _) = self.mounted.iter().find(|(_, entry)| entry.number == number)?;
        let at = at.clone();
        self.mounted.remove(&at)
    }
}

/// Makes everything durable before and after an unmount. After a failed sync nothing can be, and another start,
/// to which an unmount is the way, is the only remedy; what was not committed waits for it in the arena.
pub(super) fn make_durable(volumes: &Volumes) -> Result<(), ControlError> {
    match volumes.sync() {
        Err(e) if volumes.store().read_only().is_some() => {
            tracing::error!(error = %e, "unmounting although not everything can be made durable");
            Ok(())
        }
        result => result.map(drop).map_err(|e| control_error("making everything durable", e)),
    }
}
