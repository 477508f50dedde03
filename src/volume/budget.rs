//! The dirty budget: how much programs may write ahead of sealing. Beyond it a writer waits; if sealing
//! fails for lack of space, it is told so instead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::FsResult;
use crate::arena::{Arena, PAGE_BYTES};
use crate::types::Error;

/// A writer that waited this long without any room coming free is told that there is no space.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a writer waits before it looks again by itself.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct State {
    /// Room promised to writes that are being carried out.
    reserved: u64,
    failing: Option<String>,
    /// Barriers that want what is dirty to become little.
    draining: usize,
}

/// Room in the arena, for all volumes: what is used of it counts by slots and not by bytes, so that many tiny
/// writes count for what they really take.
#[derive(Debug)]
pub(super) struct Budget {
    arena: Arc<Arena>,
    max: u64,
    state: Mutex<State>,
}

/// The most room that a write of `bytes` takes, when it does not meet very scattered ones.
fn room(bytes: u64) -> u64 {
    bytes + bytes / 8 + 2 * PAGE_BYTES as u64
}

impl Budget {
    pub(super) fn new(arena: Arc<Arena>, max: u64) -> Budget {
        let max = max.min(arena.capacity());
        Budget { arena, max, state: Mutex::default() }
    }

    fn has_room(&self, state: &State, room: u64) -> bool {
        let taken = self.arena.used() + state.reserved;
        state.draining == 0 && (taken == 0 || taken + room <= self.max)
    }

    /// Whether a write of `bytes` would have to wait.
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        !self.has_room(&self.state.lock(), room(bytes))
    }

    /// Lets no writer in until the guard is dropped: what is dirty then only shrinks.
    pub(super) fn drain(&self) -> Draining<'_> {
        self.state.lock().draining += 1;
        Draining(self)
    }

    /// Promises room for a write of `bytes`, waiting for it. Holds no lock of any volume while it waits.
    ///
    /// # Errors
    /// No space, when what is dirty cannot be committed.
    pub(super) fn reserve(&self, bytes: u64) -> FsResult<Reserved<'_>> {
        let room = room(bytes);
        let mut since = Instant::now();
        let mut least = self.arena.used();
        loop {
            {
                let mut state = self.state.lock();
                if self.has_room(&state, room) {
                    state.reserved += room;
                    return Ok(Reserved { budget: self, room });
                }
                if let Some(reason) = &state.failing {
                    return Err(Error::NoSpace(reason.clone()).into());
                }
            }
            if since.elapsed() > PATIENCE {
                return Err(Error::NoSpace("data waiting to be sealed".into()).into());
            }
            self.arena.wait_freed(LOOK);
            let used = self.arena.used();
            if used < least {
                (least, since) = (used, Instant::now());
            }
        }
    }

    /// Tells whether committing works, and why not; what was said before.
    pub(super) fn set_failing(&self, reason: Option<String>) -> Option<String> {
        let failing = reason.is_some();
        let before = std::mem::replace(&mut self.state.lock().failing, reason);
        if failing {
            self.arena.wake();
        }
        before
    }

    /// Whether committing did not work when it was last tried.
    pub(super) fn is_failing(&self) -> bool {
        self.state.lock().failing.is_some()
    }

    /// Bytes of the slots in use.
    pub(super) fn used(&self) -> u64 {
        self.arena.used()
    }

    /// Whether so much is dirty that sealing should not wait for age.
    pub(super) fn is_pressing(&self) -> bool {
        self.used() > self.max / 2
    }
}

/// Room that a write was promised. The slots it takes count by themselves.
pub(super) struct Reserved<'a> {
    budget: &'a Budget,
    room: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.reserved = state.reserved.saturating_sub(self.room);
    }
}

/// Keeps writers out; see [`Budget::drain`].
pub(super) struct Draining<'a>(&'a Budget);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.0.state.lock();
            state.draining = state.draining.saturating_sub(1);
        }
        self.0.arena.wake();
    }
}
