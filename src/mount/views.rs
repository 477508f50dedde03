//! The names under the snapshot directory, and the view numbers they stand for. A snapshot's number is in
//! its record; other moments get numbers as they are asked for.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::nodeid::{Node, VIEWS};
use crate::arena;
use crate::types::Lsn;
use crate::types::limits::SNAPSHOT_VIEW_MAX;
use crate::types::point::Point;
use crate::volume::{FsError, FsResult, Volume};

/// A relative moment (`@10m`) keeps what it first meant until it was not used for so long.
const KEEP_SECS: u64 = 60;
/// Moments remembered; beyond it those not used for [`KEEP_SECS`] are forgotten.
const MOMENTS_MAX: usize = 4096;

struct Moment {
    number: u32,
    at: Lsn,
    relative: bool,
    /// Seconds since the table was made.
    used: AtomicU64,
}

struct Snapshot {
    at: Lsn,
    /// As of a moment.
    used: AtomicU64,
}

#[derive(Default)]
struct Tables {
    by_text: HashMap<String, Arc<Moment>>,
    by_number: HashMap<u32, Arc<Moment>>,
    last: u32,
}

/// Views of one mount.
pub(super) struct Views {
    volume: Arc<Volume>,
    started: Instant,
    snapshots: Mutex<HashMap<u32, Snapshot>>,
    moments: Mutex<Tables>,
}

impl Views {
    /// Of a connection that is new, or was another server's whose moments are still in use.
    pub(super) fn new(volume: Arc<Volume>, resumed: bool) -> Views {
        let mut tables = Tables::default();
        for kept in volume.arena().moments().inherited(volume.id().0) {
            if !resumed {
                volume.arena().forget(volume.id().0, kept.number);
                continue;
            }
            let used = AtomicU64::new(0);
            let moment = Moment { number: kept.number, at: kept.at, relative: kept.relative, used };
            let moment = Arc::new(moment);
            tables.last = tables.last.max(kept.number);
            tables.by_text.insert(kept.text, moment.clone());
            tables.by_number.insert(kept.number, moment);
        }
        Views { volume, started: Instant::now(), snapshots: Mutex::default(), moments: Mutex::new(tables) }
    }

    /// The view that a name under the snapshot directory means: its number and point.
    pub(super) fn named(&self, name: &[u8]) -> FsResult<(u32, Lsn)> {
        let text = std::str::from_utf8(name).map_err(|_| FsError::NotFound)?;
        let point = Point::from_str(text).map_err(|_| FsError::NotFound)?;
        if let Point::Name(name) = &point {
            let row = self.volume.snapshot_named(name)?;
            self.volume.touch(row.lsn);
            self.enter(row.spec.view, row.lsn);
            return Ok((row.spec.view, row.lsn));
        }
        let now = self.started.elapsed().as_secs();
        let mut tables = self.moments.lock();
        if let Some(moment) = tables.by_text.get(text) {
            let fresh = now.saturating_sub(moment.used.load(Ordering::Relaxed)) < KEEP_SECS;
            if (fresh || !moment.relative) && self.volume.is_readable(moment.at) {
                self.used(&moment.used, moment.at);
                return Ok((moment.number, moment.at));
            }
        }
        let at = self.volume.resolve(&point)?;
        self.volume.touch(at);
        if tables.by_number.len() >= MOMENTS_MAX {
            let old = |m: &Arc<Moment>| now.saturating_sub(m.used.load(Ordering::Relaxed)) >= KEEP_SECS;
            for number in tables.by_number.extract_if(|_, m| old(m)).map(|(number, _)| number) {
                self.volume.arena().forget(self.volume.id().0, number);
            }
            tables.by_text.retain(|_, m| !old(m));
        }
        // Numbers are not used again for a long time, so that the kernel cannot mistake one view for another.
        let first = SNAPSHOT_VIEW_MAX + 1;
        tables.last = if (first..VIEWS - 1).contains(&tables.last) { tables.last + 1 } else { first };
        let relative = matches!(point, Point::Ago(_));
        let moment = Arc::new(Moment { number: tables.last, at, relative, used: AtomicU64::new(now) });
        tables.by_text.insert(text.to_owned(), moment.clone());
        tables.by_number.insert(moment.number, moment.clone());
        let (volume, number) = (self.volume.id().0, moment.number);
        let text = text.to_owned();
        self.volume.arena().remember(&arena::Moment { volume, number, at, relative, text });
        Ok((moment.number, at))
    }

    /// The numbers under which the kernel may have been shown moments, with their points, and those of all
    /// snapshots: an earlier server may have shown them.
    pub(super) fn all(&self) -> FsResult<Vec<(u32, Lsn)>> {
        let snapshots = self.volume.snapshots(Lsn::ZERO, usize::MAX)?;
        let tables = self.moments.lock();
        let moments = tables.by_number.values().map(|moment| (moment.number, moment.at));
        Ok(snapshots.iter().map(|row| (row.spec.view, row.lsn)).chain(moments).collect())
    }

    /// The point of a view number.
    ///
    /// # Errors
    /// [`FsError::Stale`] when the snapshot was deleted or the moment has left the window.
    pub(super) fn point(&self, view: u32) -> FsResult<Lsn> {
        let at = if Node::is_snapshot_view(view) { self.snapshot(view)? } else { self.moment(view)? };
        self.check(at)?;
        Ok(at)
    }

    /// Fails when a point can no longer be read: what was read meanwhile may be torn.
    pub(super) fn check(&self, at: Lsn) -> FsResult<()> {
        if self.volume.is_readable(at) { Ok(()) } else { Err(FsError::Stale) }
    }

    fn snapshot(&self, view: u32) -> FsResult<Lsn> {
        if let Some(snapshot) = self.snapshots.lock().get(&view) {
            self.used(&snapshot.used, snapshot.at);
            return Ok(snapshot.at);
        }
        let at = self.volume.snapshot_of_view(view)?.ok_or(FsError::Stale)?;
        self.volume.touch(at);
        self.enter(view, at);
        Ok(at)
    }

    fn enter(&self, view: u32, at: Lsn) {
        let used = AtomicU64::new(self.started.elapsed().as_secs());
        self.snapshots.lock().insert(view, Snapshot { at, used });
    }

    /// Notes a use; once a second the volume is told, so that nothing takes the point away meanwhile.
    fn used(&self, last: &AtomicU64, at: Lsn) {
        let now = self.started.elapsed().as_secs();
        if last.swap(now, Ordering::Relaxed) != now {
            self.volume.touch(at);
        }
    }

    fn moment(&self, view: u32) -> FsResult<Lsn> {
        let tables = self.moments.lock();
        let moment = tables.by_number.get(&view).ok_or(FsError::Stale)?;
        self.used(&moment.used, moment.at);
        Ok(moment.at)
    }
}
