//! Requests that change something and are not answered yet. The kernel sends them again to the next server,
//! which must know whether their records are in the journal: only records behind the LSN noted here can be
//! theirs. A note stays until the request is answered, however many servers that takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::map::Map;
use super::{Arena, Shape};
use crate::types::Lsn;

/// Requests noted at once; more than a mount has threads and queues.
const ROWS: usize = 1024;
/// Bytes of a row: request, connection, LSN, servers that left it.
const ROW_BYTES: usize = 32;
/// Bytes of the table.
pub(super) const BYTES: usize = ROWS * ROW_BYTES;
/// A note that so many servers left is of a request that was answered: its server was killed between the
/// answer and taking the note away.
const SERVERS_MAX: u64 = 8;

/// A request of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Id {
    connection: u64,
    unique: u64,
}

#[derive(Debug)]
struct Rows {
    free: Vec<u16>,
    /// What the server before left, until it is asked for again.
    inherited: HashMap<Id, u16>,
    /// The lowest LSN in `inherited`, when it was taken over.
    lowest: Option<Lsn>,
}

/// The table's bookkeeping.
#[derive(Debug)]
pub struct InFlight {
    rows: Mutex<Rows>,
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
        let rows = Rows { free: (0..ROWS as u16).rev().collect(), inherited: HashMap::new(), lowest: None };
        InFlight { rows: Mutex::new(rows), overflowed: AtomicBool::new(false) }
    }

    pub(super) fn begin(
        arena: &Arc<Arena>,
        (connection, unique): (u64, u64),
        repeated: bool,
        last: Lsn,
    ) -> Ticket {
        let mut rows = arena.in_flight.rows.lock();
        if repeated && let Some(row) = rows.inherited.remove(&Id { connection, unique }) {
            return Ticket { arena: arena.clone(), row: Some(row) };
        }
        let row = rows.free.pop();
        drop(rows);
        if let Some(row) = row {
            for (at, value) in [(8, connection), (16, last.0), (24, 0)] {
                arena.map.word(place(row) + at).store(value, Ordering::Relaxed);
            }
            arena.map.word(place(row)).store(unique, Ordering::Release);
        } else if !arena.in_flight.overflowed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "more than {ROWS} requests at once; should the server die now, some may be repeated"
            );
        }
        Ticket { arena: arena.clone(), row }
    }

    pub(super) fn recover(&self, map: &Map) {
        let mut rows = self.rows.lock();
        rows.free.clear();
        for row in (0..ROWS as u16).rev() {
            let word = |n: usize| map.word(place(row) + n);
            let unique = word(0).load(Ordering::Acquire);
            if unique == 0 || word(24).fetch_add(1, Ordering::AcqRel) >= SERVERS_MAX {
                word(0).store(0, Ordering::Release);
                rows.free.push(row);
                continue;
            }
            let lsn = Lsn(word(16).load(Ordering::Acquire));
            rows.lowest = Some(rows.lowest.map_or(lsn, |lowest| lowest.min(lsn)));
            rows.inherited.insert(Id { connection: word(8).load(Ordering::Acquire), unique }, row);
        }
    }

    /// The LSN behind which the records of requests lie that the server before did not answer; None when
    /// there are no such requests.
    pub fn inherited(&self) -> Option<Lsn> {
        self.rows.lock().lowest
    }

    /// The requests of a connection that the server before did not answer and that nobody asked for again.
    pub fn unanswered(&self, connection: u64) -> Vec<u64> {
        let rows = self.rows.lock();
        rows.inherited.keys().filter(|id| id.connection == connection).map(|id| id.unique).collect()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(row) = self.row {
            self.arena.map.word(place(row)).store(0, Ordering::Release);
            self.arena.in_flight.rows.lock().free.push(row);
        }
    }
}
