//! The clock seam: everything that asks what time it is asks a [`Clock`].

use std::time::{SystemTime, UNIX_EPOCH};

/// A wall-clock moment: whole seconds since the Unix epoch (negative before 1970) and nanoseconds within
/// that second, always counted forward (`nanos < 1_000_000_000`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the epoch, rounded down.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

impl Timestamp {
    /// Nanoseconds since the epoch; saturates outside the years 1678-2262.
    pub fn as_nanos_saturating(self) -> i64 {
        self.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// The moment `nanos` nanoseconds after the epoch.
    pub fn from_nanos(nanos: i64) -> Timestamp {
        Timestamp {
            secs: nanos.div_euclid(1_000_000_000),
            // rem_euclid of a billion always fits.
            nanos: nanos.rem_euclid(1_000_000_000) as u32,
        }
    }
}

/// A source of wall-clock time.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp { secs: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(before) => {
                let d = before.duration();
                Timestamp::from_nanos(-(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
            }
        }
    }
}
