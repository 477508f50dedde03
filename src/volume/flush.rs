//! Flushing: uncommitted bytes become chunks (or, when few and somebody waits for them, inline bytes of the
//! record), and one record commits them with the inode.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::cell::{Cell, Live};
use super::extents::{Run, copy_over, runs};
use super::file::assemble;
use super::policy::burst::Kind;
use super::{FsError, FsResult, Shared, Volume};
use crate::store::chunks::{Stored, pool::Pool};
use crate::store::model::{Edit, Piece, Recipe, Source};
use crate::types::error::IoContext;
use crate::types::limits::{BLOCK_BYTES, SMALL_HOLE_BYTES};
use crate::types::{Ino, Lsn, VolumeId};

/// An fsync of no more than this journals the bytes themselves; a rebind makes chunks of them later.
const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// Runs in one block beyond which they are joined.
const RUNS_PER_BLOCK_MAX: usize = 16;
/// Edits after which a flush begins another record.
const EDITS_PER_RECORD: usize = 4096;
/// How often the flusher looks for files whose time has come.
const TICK: Duration = Duration::from_millis(50);

/// Why a file is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It has much to seal: whole chunks now, the tail when more came.
    Full,
    /// Its time has come: everything.
    Age,
    /// Somebody waits: everything, few bytes inline.
    Asked,
}

/// Pieces that replace the bytes from an offset on, and the pins of their chunks.
struct Sealed {
    runs: Vec<(u64, Vec<Piece>)>,
    _pins: Vec<Stored>,
    /// Bytes of the runs that came in the place of others, and of them those that cannot be compressed.
    replaced: (u64, u64),
    /// From which offset on bytes were left for later.
    tail: Option<u64>,
}

/// Whether the range of a block, given by offsets in its file, has a hole that is to stay one.
fn has_large_hole(recipe: &Recipe, block: u64, from: u64, to: u64) -> bool {
    let start = block * BLOCK_BYTES;
    let mut pieces = Vec::new();
    recipe.slice_into((from - start) as u32, (to - start) as u32, &mut pieces);
    pieces.iter().any(|piece| piece.source == Source::Hole && piece.len >= SMALL_HOLE_BYTES)
}

impl Shared {
    /// Commits what a cell holds. The caller holds the cell's flush lock.
    fn flush_locked(&self, vol: VolumeId, cell: &Cell, reason: Reason) -> FsResult<()> {
        let (slots, committed, growing) = {
            let mut live = cell.state.write();
            if live.gone || !live.is_dirty() {
                return Ok(());
            }
            let slots = Arc::new(live.dirty.take());
            live.sealing = slots.clone();
            (slots, live.committed_size, live.attrs.size)
        };
        let runs = runs(&slots);
        let sealed = self.joined(vol, cell.ino, &runs).and_then(|joined| {
            // Of joined runs no tail is left: it would hold bytes that nobody's write had paid for.
            let whole = reason == Reason::Full && joined.len() < runs.len();
            self.seal(&joined, if whole { Reason::Age } else { reason }, (committed, growing))
        });
        let mut live = cell.state.write();
        let result = sealed.and_then(|sealed| {
            let (replaced, scrambled) = sealed.replaced;
            let kept_from = self.commit_runs(vol, cell.ino, &mut live, sealed)?;
            self.keeping.alarms.add(vol, Kind::OverwrittenBytes, replaced);
            self.keeping.alarms.add(vol, Kind::ScrambledBytes, scrambled);
            Ok(kept_from)
        });
        drop(slots);
        // Nobody else holds them: readers look under the state's lock.
        let slots = Arc::into_inner(std::mem::take(&mut live.sealing)).unwrap_or_default();
        let kept_from = *result.as_ref().unwrap_or(&0);
        for mut slot in slots.into_iter().filter(|slot| slot.end() > kept_from) {
            slot.trim(kept_from, u64::MAX);
            live.dirty.put_back(slot);
        }
        live.failure = result.as_ref().err().map(ToString::to_string);
        result.map(drop)
    }

    /// Turns runs into pieces. `sizes`: what is committed of the file, and what it grows to.
    fn seal(&self, runs: &[Run], reason: Reason, (committed, size): (u64, u64)) -> FsResult<Sealed> {
        let mut sealed =
            Sealed { runs: Vec::with_capacity(runs.len()), _pins: Vec::new(), replaced: (0, 0), tail: None };
        let over = |offset: u64, len: usize| committed.saturating_sub(offset).min(len as u64);
        let total: u64 = runs.iter().map(|(_, run)| run.len() as u64).sum();
        if reason == Reason::Asked && total <= INLINE_BYTES_MAX {
            for (offset, run) in runs {
                sealed.replaced.0 += over(*offset, run.len());
                let piece = Piece { len: run.len() as u32, source: Source::Inline(run.to_vec()) };
                sealed.runs.push((*offset, vec![piece]));
            }
            return Ok(sealed);
        }
        let chunks = self.store.chunks();
        for (offset, run) in runs {
            let last = reason != Reason::Full || offset + run.len() as u64 != size;
            let cuts = chunks.cuts(run, last);
            let end = cuts.last().copied().unwrap_or(0);
            if end < run.len() {
                sealed.tail = Some(offset + end as u64);
            }
            let stored = chunks.store(self.store.index(), run.clone(), &cuts)?;
            let replaced = over(*offset, end);
            sealed.replaced.0 += replaced;
            sealed.replaced.1 += stored.raw_bytes().min(replaced);
            let pieces = stored
                .chunks()
                .map(|(id, len)| Piece { len, source: Source::Chunk { id, offset: 0 } })
                .collect();
            sealed.runs.push((*offset, pieces));
            sealed._pins.push(stored);
        }
        Ok(sealed)
    }

    /// Commits sealed runs with the inode. Returns the offset from which on what was taken stays uncommitted.
    fn commit_runs(&self, vol: VolumeId, ino: Ino, live: &mut Live, sealed: Sealed) -> FsResult<u64> {
        let kept_from = sealed.tail.unwrap_or(u64::MAX);
        let end = sealed
            .runs
            .iter()
            .map(|(at, pieces)| at + pieces.iter().map(|p| u64::from(p.len)).sum::<u64>())
            .max()
            .unwrap_or(0);
        let all = live.dirty.is_empty() && sealed.tail.is_none();
        // A size never covers what is not committed yet, or a crash would leave zeros in its place.
        let committed = if all { live.attrs.size } else { live.committed_size.max(end).min(live.attrs.size) };
        let put = |size: u64| {
            let mut attrs = live.attrs.clone();
            attrs.size = size;
            Edit::PutInode { vol, ino, attrs }
        };
        let mut edits = vec![put(committed)];
        let mut reached = live.committed_size;
        for (offset, pieces) in &sealed.runs {
            if edits.len() > EDITS_PER_RECORD {
                // What was flushed so far, in a record of its own; runs come in order.
                edits.push(put(reached.min(committed)));
                edits.swap_remove(0);
                self.commit_patches(std::mem::take(&mut edits), &|_| {})?;
                edits.push(put(committed));
            }
            patch_edits(vol, ino, *offset, pieces, &mut edits);
            reached = reached.max(offset + pieces.iter().map(|p| u64::from(p.len)).sum::<u64>());
        }
        let slots = live.sealing.clone();
        let taken = || slots.iter().filter(|slot| slot.start() < kept_from);
        self.commit_patches(edits, &|lsn| taken().for_each(|slot| slot.note(lsn, kept_from, u64::MAX)))?;
        live.committed_size = committed;
        live.dirty_since = (!all).then(Instant::now);
        Ok(kept_from)
    }

    /// Commits edits that patch blocks.
    pub(super) fn commit_patches(&self, edits: Vec<Edit>, note: &dyn Fn(Lsn)) -> FsResult<()> {
        self.store.defragment(&edits)?;
        self.store.commit_noted(edits, None, note)?;
        Ok(())
    }

    /// The runs, where a block has many of them joined over the committed bytes between them: each would
    /// become a piece for good, and patching costs as much as a block has pieces. Only small holes between
    /// them become zeros. The caller holds the flush lock, so nothing else commits bytes of the file.
    fn joined(&self, vol: VolumeId, ino: Ino, runs: &[Run]) -> FsResult<Vec<Run>> {
        let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
        let block_of = |(at, run): &Run| {
            let block = at / BLOCK_BYTES;
            (!run.is_empty() && (at + run.len() as u64 - 1) / BLOCK_BYTES == block).then_some(block)
        };
        for group in runs.chunk_by(|a, b| block_of(a).is_some() && block_of(a) == block_of(b)) {
            let Some((first, _)) = group.first().filter(|_| group.len() > RUNS_PER_BLOCK_MAX) else {
                joined.extend_from_slice(group);
                continue;
            };
            let view = self.store.view(vol, None);
            let block = first / BLOCK_BYTES;
            let recipe = match view.inode(ino)? {
                Some(inode) => view.block(&inode.item, ino, block)?,
                None => return Err(FsError::NotFound),
            };
            let end_of = |(at, run): &Run| at + run.len() as u64;
            let near = |a: &Run, b: &Run| !has_large_hole(&recipe, block, end_of(a), b.0);
            let parts: Vec<&[Run]> = group.chunk_by(near).collect();
            let blocks = [(block, recipe)];
            for part in parts {
                let (Some((from, _)), Some(last)) = (part.first(), part.last()) else { continue };
                let mut bytes = assemble(&self.store, &blocks, *from, end_of(last))?;
                for (at, run) in part {
                    copy_over(*at, run, *from, &mut bytes);
                }
                joined.push((*from, Arc::new(bytes)));
            }
        }
        Ok(joined)
    }

    /// Commits what the cell holds if any of it lies below `size`. The caller holds the flush lock.
    pub(super) fn flush_below(&self, vol: VolumeId, cell: &Cell, size: u64) -> FsResult<()> {
        let touches = cell.state.read().touches(0, size);
        if touches { self.flush_locked(vol, cell, Reason::Asked) } else { Ok(()) }
    }

    fn flush_cell(&self, vol: VolumeId, cell: &Cell, reason: Reason) -> FsResult<()> {
        let _flush = cell.flush.lock();
        self.flush_locked(vol, cell, reason)
    }

    /// Commits everything that is uncommitted now.
    pub(super) fn flush_all(&self) -> FsResult<()> {
        let mut result = Ok(());
        self.try_commit_accesses();
        for (vol, cell) in self.cells.dirty() {
            if let Err(e) = self.flush_cell(vol, &cell, Reason::Asked) {
                result = Err(e);
            }
            self.cells.give_back(vol, cell);
        }
        result
    }

    /// Asks the flusher to look now.
    pub(super) fn flush_soon(&self) {
        self.wake.ask();
    }
}

/// The edits that lay `pieces` over a file from `offset` on, split at block borders.
pub(super) fn patch_edits(vol: VolumeId, ino: Ino, offset: u64, pieces: &[Piece], edits: &mut Vec<Edit>) {
    let mut at = offset;
    let mut current: Option<(u64, u32, Vec<Piece>)> = None;
    let mut finish = |current: &mut Option<(u64, u32, Vec<Piece>)>| {
        if let Some((block, offset, pieces)) = current.take() {
            edits.push(Edit::PatchBlock { vol, ino, block, offset, pieces });
        }
    };
    for piece in pieces {
        let mut skip = 0u32;
        while skip < piece.len {
            let (block, within) = (at / BLOCK_BYTES, (at % BLOCK_BYTES) as u32);
            if current.as_ref().is_some_and(|(open, ..)| *open != block) {
                finish(&mut current);
            }
            let len = (piece.len - skip).min(BLOCK_BYTES as u32 - within);
            let (_, _, list) = current.get_or_insert_with(|| (block, within, Vec::new()));
            list.push(piece.part(skip, len));
            skip += len;
            at += u64::from(len);
        }
    }
    finish(&mut current);
}

/// How the flusher is woken.
#[derive(Debug, Default)]
pub(super) struct Wake {
    asked: AtomicBool,
    stop: Mutex<bool>,
    signal: Condvar,
}

impl Wake {
    fn ask(&self) {
        if !self.asked.swap(true, Ordering::Relaxed) {
            self.signal.notify_all();
        }
    }
}

/// The thread that commits files when they have much to seal or their time has come.
pub(super) struct Flusher {
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(shared: &Arc<Shared>) -> FsResult<Flusher> {
        let (weak, wake) = (Arc::downgrade(shared), shared.wake.clone());
        let path = shared.store.path();
        let pool =
            Pool::new("rewindfs-flush", shared.store.config().sealers()).at("starting threads for", path)?;
        let signal = wake.clone();
        let thread = std::thread::Builder::new()
            .name("rewindfs-flush".into())
            .spawn(move || run(&weak, &signal, &pool))
            .at("starting a thread for", path)?;
        Ok(Flusher { wake, thread: Some(thread) })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        *self.wake.stop.lock() = true;
        self.wake.signal.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Weak<Shared>, wake: &Wake, pool: &Pool) {
    loop {
        {
            let mut stop = wake.stop.lock();
            if !*stop && !wake.asked.load(Ordering::Relaxed) {
                wake.signal.wait_for(&mut stop, TICK);
            }
            if *stop {
                return;
            }
        }
        wake.asked.store(false, Ordering::Relaxed);
        let Some(shared) = shared.upgrade() else { return };
        flush_due(&shared, pool);
    }
}

/// Flushes what is due, several files at once.
fn flush_due(shared: &Arc<Shared>, pool: &Pool) {
    // Sealing for a disk that is known to be full would only take time; what was said of it stands.
    if shared.budget.is_failing() && shared.store.admit_data().is_err() {
        return;
    }
    // A writer that waits for room learns from this round whether there will be any, not from one before.
    let failed_before = shared.budget.set_failing(None);
    let config = shared.store.config();
    let (interval, run_bytes) = (config.commit_interval(), config.seal_run_bytes);
    let pressing = shared.budget.is_pressing();
    let mut due = Vec::new();
    for (vol, cell) in shared.cells.dirty() {
        let (age, bytes) = {
            let live = cell.state.read();
            (live.dirty_since.map_or(Duration::ZERO, |t| t.elapsed()), live.dirty.bytes())
        };
        let reason = if age >= interval || (pressing && bytes < run_bytes) {
            Some(Reason::Age)
        } else if bytes >= run_bytes || pressing {
            Some(Reason::Full)
        } else {
            None
        };
        match reason {
            Some(reason) => due.push((vol, cell, reason)),
            None => shared.cells.give_back(vol, cell),
        }
    }
    if shared.accesses.are_due() {
        shared.try_commit_accesses();
    }
    if due.is_empty() {
        return;
    }
    let (count, owned) = (due.len(), shared.clone());
    let due = Arc::new(Mutex::new(due));
    let results = pool.map(count, move |_| {
        let Some((vol, cell, reason)) = due.lock().pop() else { return Ok(()) };
        let result = owned.flush_cell(vol, &cell, reason);
        owned.cells.give_back(vol, cell);
        result
    });
    let failure = results.into_iter().find_map(Result::err).map(|e| e.to_string());
    if let Some(reason) = &failure
        && failed_before.as_ref() != Some(reason)
    {
        tracing::warn!(error = %reason, "written data cannot be committed yet");
    }
    shared.budget.set_failing(failure);
}

impl Volume {
    /// Commits what was written to a file, without making it durable.
    pub(super) fn commit_file(&self, ino: Ino) -> FsResult<()> {
        let Some(cell) = self.cell_if_any(ino) else { return Ok(()) };
        self.shared.patiently(|| self.shared.flush_cell(self.vol, &cell, Reason::Asked))
    }

    /// Makes a file, and every change acknowledged before, durable.
    ///
    /// # Errors
    /// Whatever kept its data from being committed, now or in the background before.
    pub fn fsync(&self, ino: Ino) -> FsResult<()> {
        if let Some(cell) = self.cell_if_any(ino) {
            let failed = cell.state.write().failure.take();
            self.shared.patiently(|| self.shared.flush_cell(self.vol, &cell, Reason::Asked))?;
            if let Some(failure) = failed {
                tracing::debug!(%failure, "an earlier background commit had failed and was repeated");
            }
        }
        self.shared.store.sync_all()?;
        Ok(())
    }

    /// Makes everything acknowledged so far durable in the journal's order; for a directory's fsync.
    ///
    /// # Errors
    /// From the store.
    pub fn fsync_names(&self) -> FsResult<Lsn> {
        Ok(self.shared.store.sync_all()?)
    }

    /// Removes an inode that has no name and that the kernel has let go of, with its data.
    ///
    /// # Errors
    /// [`FsError::Invalid`] when it still has a name, [`FsError::NotEmpty`] for a directory that
    /// [`Volume::empty_orphan`](Volume::empty_orphan) has to empty before.
    pub fn remove_orphan(&self, ino: Ino) -> FsResult<()> {
        let _gate = self.enter();
        let cell = match self.cell(ino) {
            Err(FsError::NotFound) => return Ok(()),
            cell => cell?,
        };
        let _flush = cell.flush.lock();
        let mut live = cell.state.write();
        if live.attrs.nlink > 0 {
            return Err(FsError::Invalid("it has a name"));
        }
        if live.attrs.entries > 0 {
            return Err(FsError::NotEmpty);
        }
        if live.gone {
            return Ok(());
        }
        let mut edits = Vec::new();
        let end = live.committed_size;
        // Also what was allocated behind the end, which only a range that reaches it removes.
        self.remove_range(ino, 0, u64::MAX, end, &mut edits)?;
        edits.push(Edit::DelInode { vol: self.vol, ino });
        edits.push(Edit::Orphan { vol: self.vol, ino, orphan: false });
        let note = |lsn| live.dirty.slots().for_each(|slot| slot.note(lsn, 0, 0));
        self.shared.store.commit_noted(edits, None, &note)?;
        live.dirty.truncate(0);
        live.dirty_since = None;
        live.gone = true;
        Ok(())
    }

    /// The inodes without a name that are still kept for those who have them open.
    pub fn orphans(&self) -> FsResult<Vec<Ino>> {
        Ok(self.shared.store.index().orphans(self.vol)?)
    }
}
