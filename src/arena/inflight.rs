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
/// Bytes of a row: request, connection, LSN, servers that left it; of a free one 0, connection, LSN, the
/// request that had it.
const ROW_BYTES: usize = 32;
/// Bytes of the table.
pub(super) const BYTES: usize = ROWS * ROW_BYTES;
/// A note that so many servers left is of a request that was answered: its server was killed between the
/// answer and taking the note away.
const SERVERS_MAX: u64 = 8;
/// The kernel counts requests in such steps (`FUSE_REQ_ID_STEP`).
const NUMBER_STEP: u64 = 2;
/// Requests on each side of the last noted one: many more than threads could read while one of them was kept
/// from noting what it had read.
const NEAR: u64 = 16 * 1024;

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
    /// The highest number of each connection that the server before noted.
    highest: HashMap<u64, u64>,
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
        let rows = Rows {
            free: (0..ROWS as u16).rev().collect(),
            inherited: HashMap::new(),
            lowest: None,
            highest: HashMap::new(),
        };
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
            let connection = word(8).load(Ordering::Acquire);
            let latest = if unique == 0 { word(24).load(Ordering::Acquire) } else { unique };
            let highest = rows.highest.entry(connection).or_default();
            *highest = latest.max(*highest);
            if unique == 0 || word(24).fetch_add(1, Ordering::AcqRel) >= SERVERS_MAX {
                word(24).store(latest, Ordering::Release);
                word(0).store(0, Ordering::Release);
                rows.free.push(row);
                continue;
            }
            let lsn = Lsn(word(16).load(Ordering::Acquire));
            rows.lowest = Some(rows.lowest.map_or(lsn, |lowest| lowest.min(lsn)));
            rows.inherited.insert(Id { connection, unique }, row);
        }
    }

    /// The LSN behind which the records of requests lie that the server before did not answer; None when
    /// there are no such requests.
    pub fn inherited(&self) -> Option<Lsn> {
        self.rows.lock().lowest
    }

    /// See [`Arena::asked_before`].
    pub(super) fn asked_before(&self, map: &Map, lsn: Lsn) -> bool {
        let word = |at: usize| map.word(at).load(Ordering::Acquire);
        (0..ROWS as u16).map(place).any(|row| word(row) != 0 && word(row + 16).saturating_add(1) < lsn.0)
    }

    /// See [`Arena::take_unanswered`].
    pub(super) fn take_unanswered(&self, map: &Map, connection: u64) -> Vec<u64> {
        let mut rows = self.rows.lock();
        let noted: Vec<(Id, u16)> = rows.inherited.extract_if(|id, _| id.connection == connection).collect();
        for (id, row) in &noted {
            map.word(place(*row) + 24).store(id.unique, Ordering::Release);
            map.word(place(*row)).store(0, Ordering::Release);
        }
        rows.free.extend(noted.iter().map(|(_, row)| *row));
        let near = rows.highest.get(&connection).into_iter().flat_map(|last| {
            let reach = NEAR * NUMBER_STEP;
            (last.saturating_sub(reach)..=last.saturating_add(reach)).step_by(NUMBER_STEP as usize)
        });
        noted.iter().map(|(id, _)| id.unique).chain(near).collect()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(row) = self.row {
            let word = |n: usize| self.arena.map.word(place(row) + n);
            word(24).store(word(0).load(Ordering::Relaxed), Ordering::Release);
            word(0).store(0, Ordering::Release);
            self.arena.in_flight.rows.lock().free.push(row);
        }
    }
}
