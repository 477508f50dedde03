//! Waiting for room on a disk that is nearly full: while history gives way there, nobody is told that there is no space
//! for want of some that is about to be free. Whoever waits holds no lock.

use std::time::{Duration, Instant};

use super::{FsError, FsResult, Shared};
use crate::types::Error;

/// How long data waits, …
const PATIENCE: Duration = Duration::from_secs(30);
/// … and a name, for which a thread waits that others may need.
const PATIENCE_OF_NAMES: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

impl Shared {
    /// Before data is taken from a program.
    pub(super) fn wait_for_room(&self) {
        self.wait_until(PATIENCE, || !self.store.is_tight());
    }

    /// Before a name is given: it takes so little that only on a disk that is full to the end it would be refused.
    pub(super) fn wait_for_room_for_names(&self) {
        if self.store.is_tight() {
            self.wait_until(PATIENCE_OF_NAMES, || !(self.store.is_tight() && self.store.is_full()));
        }
    }

    /// Tries again what found no room, as long as some is being given back.
    pub(super) fn patiently(&self, mut run: impl FnMut() -> FsResult<()>) -> FsResult<()> {
        let since = Instant::now();
        loop {
            match run() {
                Err(FsError::Store(Error::NoSpace(_)))
                    if self.store.is_tight() && since.elapsed() < PATIENCE =>
                {
                    // The keeper looks at the disk at once.
                    self.keeping.wake();
                    std::thread::sleep(LOOK);
                    self.wait_until(PATIENCE, || !self.store.is_tight());
                }
                result => return result,
            }
        }
    }

    fn wait_until(&self, patience: Duration, is_so: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_so() && since.elapsed() < patience {
            std::thread::sleep(LOOK);
        }
    }
}
