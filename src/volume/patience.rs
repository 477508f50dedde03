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
const LOOK: Duration = Duration::from_millis(10);

impl Shared {
    /// Before data is taken from a program.
    pub(super) fn wait_for_room(&self) {
        if self.store.is_full() {
            self.have_a_look(PATIENCE);
        }
        self.wait_until(PATIENCE, || !self.store.is_tight());
    }

    /// Before a name is given: it takes so little that only on a disk that is full to the end it would be refused.
    pub(super) fn wait_for_room_for_names(&self) {
        if self.store.is_full() {
            self.have_a_look(PATIENCE_OF_NAMES);
            self.wait_until(PATIENCE_OF_NAMES, || !(self.store.is_tight() && self.store.is_full()));
        }
    }

    /// Tries again what found no room, as long as some is being given back.
    pub(super) fn patiently(&self, mut run: impl FnMut() -> FsResult<()>) -> FsResult<()> {
        let since = Instant::now();
        loop {
            match run() {
                Err(FsError::Store(Error::NoSpace(what))) if since.elapsed() < PATIENCE => {
                    self.have_a_look(PATIENCE);
                    if !self.store.is_tight() {
                        return Err(Error::NoSpace(what).into());
                    }
                    self.wait_until(PATIENCE, || !self.store.is_tight());
                }
                result => return result,
            }
        }
    }

    /// Has the keeper look at the full disk before anybody is told that it is full: what it saw last may be long ago for
    /// a fast writer, and one who is at work on it needs his time.
    fn have_a_look(&self, patience: Duration) {
        let before = self.keeping.looks();
        if before > 0 {
            self.keeping.wake();
            self.wait_until(patience, || self.keeping.looks() > before);
        }
    }

    fn wait_until(&self, patience: Duration, is_so: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_so() && since.elapsed() < patience {
            std::thread::sleep(LOOK);
        }
    }
}
