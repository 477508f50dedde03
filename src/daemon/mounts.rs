//! The mounts of a server: what can be asked about them, and the table of them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::holder::{Forgotten, Link};
use super::protocol::{ControlError, Kind, MountRequest};
use super::registry::MountEntry;
use super::rights::control_error;
use crate::mount::Mounted;
use crate::types::{Ino, VolumeId};
use crate::volume::purge::Past;
use crate::volume::restore::Touched;
use crate::volume::{Volume, Volumes};

/// The mounts of a server; without one there are none.
pub trait Mounts: Send + Sync {
    /// Mounts a volume.
    fn mount(&self, request: &MountRequest) -> Result<(), ControlError>;
    /// Unmounts. Returns whether that was the last mount, with which the server ends.
    fn unmount(&self, mountpoint: &Path) -> Result<bool, ControlError>;
    /// What is mounted where.
    fn list(&self) -> Vec<MountEntry>;
    /// Tells the kernel, where the volume is mounted, what changed other than through it.
    fn tell(&self, volume: VolumeId, touched: &Touched) -> Result<(), ControlError>;
    /// Has the kernel, where the volume is mounted, forget what it knows of the past of files.
    fn tell_past(&self, volume: VolumeId, past: &Past) -> Result<(), ControlError>;
    /// Which of these live inodes the kernel holds, where the volume is mounted.
    fn holds(&self, volume: VolumeId, inodes: &[Ino]) -> Vec<Ino>;
    /// The snapshot directory at the root of the volume's mount, if it is mounted.
    fn snapshots_of(&self, volume: VolumeId) -> Option<PathBuf>;
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
    pub(super) snapdir_name: String,
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
        if let Some(entry) = self.of(volume.id()) {
            let at = entry.mounted.mountpoint().display();
            return Err(ControlError::in_use(format!("volume {} is mounted at {at}", volume.name())));
        }
        if let Some(other) = self.mounted.get(mountpoint) {
            let (name, at) = (other.mounted.volume().name(), mountpoint.display());
            return Err(ControlError::in_use(format!("volume {name} of this store is mounted at {at}")));
        }
        Ok(())
    }

    /// The mount of a volume.
    pub(super) fn of(&self, volume: VolumeId) -> Option<&TableEntry> {
        self.mounted.values().find(|entry| entry.mounted.volume().id() == volume)
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

/// Bytes of names, four to each as they are sent, and of what goes with them, in one message to the holder.
const FORGET_BYTES: usize = 64 * 1024;
/// Bytes of a number in it.
const NUMBER_BYTES: usize = 24;

/// Has the holder tell the kernel what changed other than through a volume's mount, and sees to what lost its last
/// name by it. Not under any lock that answering a program takes.
///
/// # Errors
/// The kernel could not be told.
pub(super) fn tell(
    table: &Mutex<Table>,
    link: &Link,
    volume: VolumeId,
    touched: &Touched,
) -> Result<(), ControlError> {
    let Some(connection) = table.lock().of(volume).map(|entry| entry.connection) else { return Ok(()) };
    let told = forgotten(touched).into_iter().try_for_each(|what| link.forget(connection, what));
    // Only now: what the kernel still holds of these is held by programs.
    if let Some(entry) = table.lock().of(volume) {
        entry.mounted.note_orphans(&touched.orphans);
    }
    told
}

/// As [`tell`], of the past: in every view that the kernel may have been given.
///
/// # Errors
/// The kernel could not be told.
pub(super) fn tell_past(
    table: &Mutex<Table>,
    link: &Link,
    volume: VolumeId,
    past: &Past,
) -> Result<(), ControlError> {
    let (connection, nodes) = {
        let table = table.lock();
        let Some(entry) = table.of(volume) else { return Ok(()) };
        (entry.connection, entry.mounted.past_nodes(past).map_err(|e| control_error("views", e))?)
    };
    let (mut what, mut bytes) = (Forgotten::default(), 0);
    let names = nodes.names.into_iter().map(|(dir, name)| (dir, Some(name)));
    for (node, name) in names.chain(nodes.inodes.into_iter().map(|node| (node, None))) {
        bytes += NUMBER_BYTES + 4 * name.as_ref().map_or(0, Vec::len);
        match name {
            Some(name) => what.past_names.push((node, name)),
            None => what.past_nodes.push(node),
        }
        if bytes >= FORGET_BYTES {
            link.forget(connection, std::mem::take(&mut what))?;
            bytes = 0;
        }
    }
    link.forget(connection, what)
}

/// What the kernel is to forget, in messages that are not too long.
fn forgotten(touched: &Touched) -> Vec<Forgotten> {
    let mut all = Vec::new();
    let (mut what, mut bytes) = (Forgotten::default(), 0);
    for (dir, name) in &touched.entries {
        what.entries.push((dir.0, name.clone()));
        bytes += NUMBER_BYTES + 4 * name.len();
        if bytes >= FORGET_BYTES {
            all.push(std::mem::take(&mut what));
            bytes = 0;
        }
    }
    for ino in &touched.inodes {
        what.inodes.push(ino.0);
        bytes += NUMBER_BYTES;
        if bytes >= FORGET_BYTES {
            all.push(std::mem::take(&mut what));
            bytes = 0;
        }
    }
    all.push(what);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::protocol::encode;

    #[test]
    fn what_is_to_be_forgotten_fits_into_messages_and_none_is_left_out() {
        let entries: Vec<_> = (0..3000u64).map(|i| (Ino(u64::MAX - i), vec![0xff; 255])).collect();
        let inodes: Vec<_> = (0..9000).map(|i| Ino(u64::MAX - i)).collect();
        let touched = Touched { entries: entries.clone(), inodes: inodes.clone(), orphans: Vec::new() };
        let messages = forgotten(&touched);
        assert!(messages.iter().all(|m| encode(m).unwrap().len() < 100 * 1024));
        let all: Vec<_> = messages.iter().flat_map(|m| m.entries.clone()).collect();
        assert_eq!(all, entries.into_iter().map(|(dir, name)| (dir.0, name)).collect::<Vec<_>>());
        let all: Vec<_> = messages.iter().flat_map(|m| m.inodes.clone()).collect();
        assert_eq!(all, inodes.into_iter().map(|ino| ino.0).collect::<Vec<_>>());
    }
}
