//! Inodes without a name live as long as the kernel holds them. The server keeps no counts; it asks: an
//! attribute invalidation of an inode that the kernel does not know comes back as ENOENT.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::nodeid::Node;
use super::notify::forget_attributes;
use crate::types::Ino;
use crate::volume::{FsError, FsResult, Volume};

/// How often all orphans are asked for, should a hint have been missed.
const ROUND: Duration = Duration::from_secs(5);
/// Time for the kernel to finish letting go, after which it is asked again.
const RETRY: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    orphans: HashSet<Ino>,
    hints: HashSet<Ino>,
    stop: bool,
}

/// The inodes of a mount that have no name.
#[derive(Default)]
pub(super) struct Orphans {
    state: Mutex<State>,
    signal: Condvar,
}

impl Orphans {
    /// Notes that an inode lost its last name.
    pub(super) fn add(&self, ino: Ino) {
        self.state.lock().orphans.insert(ino);
    }

    /// Notes that many inodes lost their last names, with all that is in those that are directories.
    pub(super) fn add_all(&self, inodes: &[Ino]) {
        let mut state = self.state.lock();
        state.orphans.extend(inodes);
        state.hints.extend(inodes);
        self.signal.notify_all();
    }

    /// Notes that the kernel forgot an inode, or closed it.
    pub(super) fn hint(&self, ino: Ino) {
        let mut state = self.state.lock();
        if state.orphans.contains(&ino) {
            state.hints.insert(ino);
            self.signal.notify_all();
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.signal.notify_all();
    }

    /// Starts the thread that asks the kernel through `device` and removes what it has let go.
    pub(super) fn start(
        self: &Arc<Self>,
        volume: Arc<Volume>,
        device: File,
    ) -> std::io::Result<JoinHandle<()>> {
        let orphans = self.clone();
        std::thread::Builder::new()
            .name("rewindfs-orphan".into())
            .spawn(move || orphans.run(&volume, &device))
    }

    fn run(&self, volume: &Volume, device: &File) {
        if volume.store().read_only().is_none()
            && let Err(error) = volume.remove_stages()
        {
            tracing::warn!(%error, "what a restore had prepared could not be removed yet");
        }
        let mut round = Instant::now() + ROUND;
        loop {
            let (candidates, patient): (Vec<Ino>, _) = {
                let mut state = self.state.lock();
                if state.hints.is_empty() && !state.stop {
                    self.signal.wait_until(&mut state, round);
                }
                if state.stop {
                    return;
                }
                let hints = std::mem::take(&mut state.hints);
                // Also when hints keep coming.
                let all = Instant::now() >= round;
                if all {
                    round = Instant::now() + ROUND;
                    (state.orphans.iter().copied().collect(), false)
                } else {
                    (hints.into_iter().collect(), true)
                }
            };
            for ino in candidates {
                self.try_remove(volume, device, ino, patient);
            }
        }
    }

    /// Removes an orphan that the kernel does not hold. `patient` after a hint, which can come before the
    /// kernel has finished with the inode.
    fn try_remove(&self, volume: &Volume, device: &File, ino: Ino, patient: bool) {
        if is_known(device, ino) {
            if !patient {
                return;
            }
            std::thread::sleep(RETRY);
            if is_known(device, ino) {
                return;
            }
        }
        match self.empty(volume, device, ino).and_then(|()| volume.remove_orphan(ino)) {
            Ok(()) => {
                self.state.lock().orphans.remove(&ino);
            }
            Err(e) => tracing::warn!(%ino, error = %e, "an unlinked file could not be removed yet"),
        }
    }
}

impl Orphans {
    /// Empties a directory without a name, which a restore has replaced with all that was in it.
    fn empty(&self, volume: &Volume, device: &File, dir: Ino) -> FsResult<()> {
        while let Some(emptied) = volume.empty_orphan(dir)? {
            let mut state = self.state.lock();
            if state.stop {
                return Err(FsError::NotEmpty);
            }
            // What only this directory held is gone at the next look.
            state.hints.extend(&emptied.orphans);
            state.orphans.extend(emptied.orphans);
            drop(state);
            for ino in emptied.unlinked {
                let _ = forget_attributes(device, Node::Live(ino).id());
            }
        }
        Ok(())
    }
}

/// Whether the kernel still holds the inode; when in doubt, yes.
pub(super) fn is_known(device: &File, ino: Ino) -> bool {
    let told = forget_attributes(device, Node::Live(ino).id());
    !matches!(told, Err(e) if e.raw_os_error() == Some(libc::ENOENT))
}
