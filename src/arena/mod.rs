//! The arena: shared memory that outlives the server. What a program was told is written lies here until its
//! record is in the journal, so that a killed server, holder or both lose nothing of it.
//!
//! It is a file in tmpfs, `rewindfs-<node id>`, mapped by the server. Stores into a shared mapping are the
//! kernel's at once: they need no call, and no death of a process undoes them. A power cut does, as it undoes
//! whatever was not fsynced anywhere.
//!
//! ```text
//! page 0          header: magic, version, sizes, the arena's id, the term of the server that uses it
//! in-flight       1024 × 32 bytes: requests that change something and are not answered yet
//! moments         1024 × 128 bytes: the view numbers that `@POINT` names were given
//! descriptors     64 bytes for each page of data
//! data            pages of 4096 bytes
//! ```
//!
//! The store names the arena that belongs to it in its file `session`; an arena of another id is stale (the
//! store was opened elsewhere meanwhile) and is put aside, never applied.

mod inflight;
mod map;
mod moments;
mod place;
mod slots;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

pub use inflight::{InFlight, Ticket};
pub use moments::{Moment, Moments};
pub use place::{Opened, open, pending};
pub use slots::{NoRoom, Owner, Recovered, Slot};

use crate::types::{Lsn, Term, Timestamp};
use map::Map;
use slots::Free;

/// Bytes of a page, the smallest slot.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a slab, the largest slot.
const SLAB_PAGES: usize = 32;
/// Bytes of a slab.
const SLAB_BYTES: usize = SLAB_PAGES * PAGE_BYTES;
/// Bytes of a page's descriptor.
const DESCRIPTOR_BYTES: usize = 64;
/// "rwdarena" and the layout's version.
const MAGIC: [u64; 2] = [u64::from_le_bytes(*b"rwdarena"), 1];

/// Where the parts of an arena lie, in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    slabs: usize,
}

impl Shape {
    /// In the header, behind magic, slabs and id.
    const TERM: usize = 40;
    const IN_FLIGHT: usize = PAGE_BYTES;
    const MOMENTS: usize = Self::IN_FLIGHT + inflight::BYTES;
    const DESCRIPTORS: usize = Self::MOMENTS + moments::BYTES;

    /// Of an arena for `capacity` bytes.
    fn for_bytes(capacity: u64) -> Shape {
        Shape { slabs: usize::try_from(capacity).unwrap_or(usize::MAX / 4).div_ceil(SLAB_BYTES).max(1) }
    }

    fn pages(self) -> usize {
        self.slabs * SLAB_PAGES
    }

    fn data(self) -> usize {
        (Self::DESCRIPTORS + self.pages() * DESCRIPTOR_BYTES).next_multiple_of(PAGE_BYTES)
    }

    fn bytes(self) -> usize {
        self.data() + self.pages() * PAGE_BYTES
    }
}

/// An open arena.
#[derive(Debug)]
pub struct Arena {
    map: Map,
    shape: Shape,
    /// Where it lies, if it outlives this process.
    files: Option<Files>,
    seq: AtomicU64,
    /// Bytes of slots in use.
    used: AtomicU64,
    free: Mutex<Free>,
    freed: Condvar,
    /// The rest is for the next server.
    left: AtomicBool,
    in_flight: InFlight,
    moments: Moments,
}

/// The files that make an arena found again.
#[derive(Clone, Debug)]
struct Files {
    arena: PathBuf,
    session: PathBuf,
}

impl Arena {
    /// Private memory that ends with the process: for tests, for commands that open a store for a moment,
    /// and for servers without tmpfs (which then commit before they answer).
    ///
    /// # Errors
    /// The operating system gives no memory.
    pub fn volatile(capacity: u64) -> io::Result<Arc<Arena>> {
        let shape = Shape::for_bytes(capacity);
        Ok(Arc::new(Arena::over(Map::private(shape.bytes())?, shape, None)))
    }

    fn over(map: Map, shape: Shape, files: Option<Files>) -> Arena {
        Arena {
            in_flight: InFlight::new(),
            moments: Moments::new(),
            map,
            shape,
            files,
            seq: AtomicU64::new(1),
            used: AtomicU64::new(0),
            free: Mutex::new(Free::new(shape.slabs)),
            freed: Condvar::new(),
            left: AtomicBool::new(false),
        }
    }

    /// Whether what it holds outlives this process.
    pub fn survives(&self) -> bool {
        self.files.is_some()
    }

    /// Bytes that its slots can hold.
    pub fn capacity(&self) -> u64 {
        (self.shape.slabs * SLAB_BYTES) as u64
    }

    /// Bytes of the slots in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Waits until a slot was freed, or somebody called [`Arena::wake`], or the time is over.
    pub fn wait_freed(&self, patience: Duration) {
        let mut free = self.free.lock();
        self.freed.wait_for(&mut free, patience);
    }

    /// Wakes those who wait for room, so that they look again.
    pub fn wake(&self) {
        let _free = self.free.lock();
        self.freed.notify_all();
    }

    /// The requests that are being carried out.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// The moments that have view numbers.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// The lowest LSN that a note in a slot names, and the term of the server that made the notes. Its record
    /// may never have been written: then the LSN has gone to a record of a later term.
    pub fn noted(&self) -> Option<(Lsn, Term)> {
        let term = self.map.word(Shape::TERM).load(Ordering::Acquire);
        self.lowest_note().map(|lsn| (lsn, Term(term)))
    }

    /// From now on records are written under `term`. Only after [`Arena::recover`], which settles older notes.
    pub fn reign(&self, term: Term) {
        self.map.word(Shape::TERM).store(term.0, Ordering::Release);
    }

    /// Leaves all slots to the next server: dropping them frees them no more.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// The slots that a server left which ended without committing them, newest first; `last` is the last
    /// record that this server can have written. Also takes over its in-flight requests and moments. To be
    /// called once, before anything else.
    pub fn recover(self: &Arc<Self>, last: Lsn) -> Vec<Recovered> {
        self.in_flight.recover(&self.map);
        self.moments.recover(&self.map);
        self.recover_slots(last)
    }

    /// Notes that a request that changes something is being carried out; `last` is the end of the journal
    /// now. The note goes away with the ticket, after the answer. A request is its connection and number;
    /// one that is `repeated` keeps the note that it has.
    pub fn begin(self: &Arc<Self>, request: (u64, u64), repeated: bool, last: Lsn) -> Ticket {
        InFlight::begin(self, request, repeated, last)
    }

    /// Whether a request that is not answered yet began before that record: whether it was carried out is then to be
    /// found in the journal from there on.
    pub fn asked_before(&self, lsn: Lsn) -> bool {
        self.in_flight.asked_before(&self.map, lsn)
    }

    /// The requests of a connection that the server before may have read and did not answer: those noted, and
    /// those near the last one that was, since a server can be killed between reading and noting. Whoever asks
    /// answers them all: the notes are gone.
    pub fn take_unanswered(&self, connection: u64) -> Vec<u64> {
        self.in_flight.take_unanswered(&self.map, connection)
    }

    /// Gives a moment of a volume a place that the next server finds; no room is no error.
    pub fn remember(&self, moment: &Moment) {
        self.moments.remember(&self.map, moment);
    }

    /// Gives the place of a moment up.
    pub fn forget(&self, volume: u32, number: u32) {
        self.moments.forget(&self.map, volume, number);
    }

    /// Removes the arena's files, if nothing is left in it. Whether that is so.
    pub fn remove(&self) -> bool {
        if self.used() > 0 {
            return false;
        }
        if let Some(files) = &self.files {
            // The session first: an arena without one is never applied.
            let _ = std::fs::remove_file(&files.session);
            let _ = std::fs::remove_file(&files.arena);
        }
        true
    }
}

/// A time as a slot keeps it.
fn nanos(time: Timestamp) -> u64 {
    time.as_nanos_saturating() as u64
}

/// The reverse of [`nanos`].
fn timestamp(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(nanos as i64)
}

#[cfg(test)]
mod tests;
