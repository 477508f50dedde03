//! The dirty budget: how much programs may write ahead of sealing. Beyond it a writer waits; if sealing
//! fails for lack of space, it is told so instead.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{FsError, FsResult};

/// A writer that waited this long without any room coming free is told that there is no space.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    used: u64,
    failing: Option<String>,
    /// Barriers that want what is dirty to become little.
    draining: usize,
}

/// Bytes written and not yet committed, of all volumes.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    state: Mutex<State>,
    freed: Condvar,
}

impl Budget {
    pub(super) fn new(max: u64) -> Budget {
        Budget { max, state: Mutex::default(), freed: Condvar::new() }
    }

    /// Whether a write of `bytes` would have to wait.
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        let state = self.state.lock();
        state.draining > 0 || state.used + bytes > self.max
    }

    /// Lets no writer in until the guard is dropped: what is dirty then only shrinks.
    pub(super) fn drain(&self) -> Draining<'_> {
        self.state.lock().draining += 1;
        Draining(self)
    }

    /// Takes `bytes`, waiting for room. A single write larger than the budget gets through when nothing else
    /// is dirty. Holds no lock of any volume while it waits.
    ///
    /// # Errors
    /// No space, when what is dirty cannot be committed.
    pub(super) fn take(&self, bytes: u64) -> FsResult<()> {
        let mut state = self.state.lock();
        let mut since = Instant::now();
        let mut least = state.used;
        while state.draining > 0 || (state.used + bytes > self.max && state.used > 0) {
            if let Some(reason) = &state.failing {
                return Err(crate::types::Error::NoSpace(reason.clone()).into());
            }
            if since.elapsed() > PATIENCE {
                return Err(FsError::Store(crate::types::Error::NoSpace("data waiting to be sealed".into())));
            }
            self.freed.wait_for(&mut state, Duration::from_millis(100));
            if state.used < least {
                (least, since) = (state.used, Instant::now());
            }
        }
        state.used += bytes;
        Ok(())
    }

    /// Gives `bytes` back.
    pub(super) fn give(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
        self.freed.notify_all();
    }

    /// Tells whether committing works.
    pub(super) fn set_failing(&self, reason: Option<String>) {
        let mut state = self.state.lock();
        state.failing = reason;
        self.freed.notify_all();
    }

    pub(super) fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Whether so much is dirty that sealing should not wait for age.
    pub(super) fn is_pressing(&self) -> bool {
        self.state.lock().used > self.max / 2
    }
}

/// Keeps writers out; see [`Budget::drain`].
pub(super) struct Draining<'a>(&'a Budget);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.draining = state.draining.saturating_sub(1);
        self.0.freed.notify_all();
    }
}
