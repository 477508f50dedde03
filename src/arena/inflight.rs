//! Requests that change something and are not answered yet. The kernel sends them again to the next server,
//! which must know whether their records are in the journal: only records behind the LSN noted here can be
//! theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::map::Map;
use super::{Arena, Shape};
use crate::types::Lsn;

/// Requests noted at once; more than a mount has threads and queues.
const ROWS: usize = 1024;
/// Bytes of a row: request, connection, LSN, unused.
const ROW_BYTES: usize = 32;
/// Bytes of the table.
pub(super) const BYTES: usize = ROWS * ROW_BYTES;

/// The table's free rows, and what the server before left in it.
#[derive(Debug)]
pub struct InFlight {
    free: Mutex<Vec<u16>>,
    /// The lowest LSN noted by the server before; `u64::MAX` when it owed nothing.
    inherited: AtomicU64,
    uniques: Mutex<Vec<(u64, u64)>>,
    overflowed: AtomicBool,
}

/// A note; see [`Arena::begin`].
#[derive(Debug)]
pub struct Ticket {
    arena: Arc<Arena>,
    row: Option<u16>,
}

fn place(row: u16) -> usize {
    Shape::IN_FLIGHT + usize::from(row) * ROW_BYTES
}

impl InFlight {
    pub(super) fn new() -> InFlight {
        InFlight {
            free: Mutex::new((0..ROWS as u16).rev().collect()),
            inherited: AtomicU64::new(u64::MAX),
            uniques: Mutex::default(),
            overflowed: AtomicBool::new(false),
        }
    }

    pub(super) fn begin(arena: &Arc<Arena>, connection: u64, unique: u64, last: Lsn) -> Ticket {
        let row = arena.in_flight.free.lock().pop();
        if let Some(row) = row {
            let at = place(row);
            arena.map.word(at + 8).store(connection, Ordering::Relaxed);
            arena.map.word(at + 16).store(last.0, Ordering::Relaxed);
            arena.map.word(at).store(unique, Ordering::Release);
        } else if !arena.in_flight.overflowed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "more than {ROWS} requests at once; should the server die now, some may be repeated"
            );
        }
        Ticket { arena: arena.clone(), row }
    }

    pub(super) fn recover(&self, map: &Map) {
        let mut lowest = u64::MAX;
        let mut uniques = self.uniques.lock();
        for row in 0..ROWS as u16 {
            let word = |n: usize| map.word(place(row) + n);
            let unique = word(0).swap(0, Ordering::AcqRel);
            if unique != 0 {
                lowest = lowest.min(word(16).load(Ordering::Acquire));
                uniques.push((word(8).load(Ordering::Acquire), unique));
            }
        }
        self.inherited.store(lowest, Ordering::Release);
    }

    /// The LSN behind which the records of requests lie that the server before did not answer; None when
    /// there are no such requests.
    pub fn inherited(&self) -> Option<Lsn> {
        Some(self.inherited.load(Ordering::Acquire)).filter(|lsn| *lsn != u64::MAX).map(Lsn)
    }

    /// The requests of a connection that the server before did not answer.
    pub fn unanswered(&self, connection: u64) -> Vec<u64> {
        self.uniques.lock().iter().filter(|(c, _)| *c == connection).map(|(_, unique)| *unique).collect()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(row) = self.row {
            self.arena.map.word(place(row)).store(0, Ordering::Release);
            self.arena.in_flight.free.lock().push(row);
        }
    }
}
