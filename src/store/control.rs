//! How fast long work goes (scrubbing, rewriting packs), how far it is, and how it is stopped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::{Error, Result};

/// Longest sleep between two looks whether the round was cancelled.
const NAP: Duration = Duration::from_millis(50);

/// One round, as others see it.
pub struct Control {
    bytes_per_second: u64,
    started: Instant,
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    what: Mutex<&'static str>,
}

/// How far a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// What is being done.
    pub what: &'static str,
    /// Bytes done.
    pub done: u64,
    /// Bytes there are to do, as far as is known.
    pub total: u64,
    /// Bytes a second so far.
    pub rate: u64,
}

impl Control {
    /// Of a round that begins now and goes no faster than `bytes_per_second`; 0: as fast as it can.
    pub fn new(bytes_per_second: u64) -> Control {
        Control {
            bytes_per_second,
            started: Instant::now(),
            cancelled: AtomicBool::new(false),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            what: Mutex::new("beginning"),
        }
    }

    /// Ends the round at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// How far it is.
    pub fn position(&self) -> Position {
        let done = self.done.load(Ordering::Relaxed);
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = u64::try_from(u128::from(done) * 1000 / u128::from(millis)).unwrap_or(u64::MAX);
        Position { what: *self.what.lock(), done, total: self.total.load(Ordering::Relaxed).max(done), rate }
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn begin(&self, what: &'static str) {
        *self.what.lock() = what;
    }

    /// Notes that `bytes` were done, and waits until more is due.
    ///
    /// # Errors
    /// The round was cancelled.
    pub(super) fn advance(&self, bytes: u64) -> Result<()> {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        loop {
            if self.is_cancelled() {
                return Err(Error::Invalid("it was cancelled".into()));
            }
            let early = due(done, self.bytes_per_second).saturating_sub(self.started.elapsed());
            if early.is_zero() {
                return Ok(());
            }
            std::thread::sleep(early.min(NAP));
        }
    }
}

/// How long after the start so many bytes may have been done.
fn due(done: u64, bytes_per_second: u64) -> Duration {
    match bytes_per_second {
        0 => Duration::ZERO,
        rate => {
            let nanos = u128::from(done) * 1_000_000_000 / u128::from(rate);
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_is_due_by_the_rate() {
        assert_eq!(due(3 << 20, 1 << 20), Duration::from_secs(3));
        assert_eq!(due(u64::MAX, 0), Duration::ZERO);
        assert!(due(u64::MAX, 1) > Duration::from_secs(500 * 365 * 24 * 3600));
    }

    #[test]
    fn a_cancelled_round_ends_at_its_next_read_and_says_how_far_it_was() {
        let control = Control::new(0);
        control.expect(100);
        control.begin("packs");
        control.advance(40).unwrap();
        let position = control.position();
        assert_eq!((position.what, position.done, position.total), ("packs", 40, 100));
        control.cancel();
        assert!(control.advance(1).unwrap_err().to_string().contains("cancelled"));
    }
}
