//! What a store does by itself: flushing the index, making checkpoints and letting go of old journal
//! segments, reaping, forgetting, rebinding. One thread, small steps, each a record or a file operation.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Store;
use super::layout::remove_tree;
use super::model::Edit;
use crate::types::error::IoContext;
use crate::types::limits::{SWEEP_ITEMS_BESIDE, SWEEP_ITEMS_MAX};
use crate::types::{Error, Lsn, Result, Timestamp, VolumeId};

/// Time between rounds when there is nothing to do.
const ROUND: Duration = Duration::from_millis(250);
/// Age at which records are made durable without being asked.
const SYNC_INTERVAL: Duration = Duration::from_secs(4);
/// Bytes appended to packs after which they are synced without being asked.
const PACK_SYNC_BYTES: u64 = 32 << 20;
/// Replayed records that are flushed at once.
const REPLAYED_RECORDS: u64 = 1000;
/// Pack bytes read for a replay from which on it is flushed at once: every killed server leaves a pack without a
/// footer, and all of those behind the last flush are read by every opening.
const SCANNED_BYTES: u64 = 16 << 20;
/// Checkpoints kept.
pub(super) const CHECKPOINTS_KEPT: usize = 2;
/// Steps of one kind in a round, so that no kind starves the others.
const STEPS_PER_ROUND: usize = 8;
/// Longest pause after a piece of background work.
const BREATH_MAX: Duration = Duration::from_millis(20);
/// Records between two checkpoints that are made for want of room.
const RELIEF_RECORDS: u64 = 1000;
/// Seconds by which the window's floor lags, so that it moves in steps worth a record.
const WINDOW_STEP_SECS: u64 = 5;

/// What the care thread shares with the store.
pub(super) struct CareState {
    flushed: AtomicU64,
    /// Much was replayed at opening and is to be flushed at once: the next opening, which may come soon where
    /// servers are killed, shall not replay it again.
    replayed: AtomicBool,
    packs_synced: AtomicU64,
    unsynced_since: Mutex<Option<Instant>>,
    /// One checkpoint at a time.
    checkpointing: Mutex<()>,
    checkpoint_at_bytes: AtomicU64,
    paused: AtomicBool,
    /// The last flush of the index found no room.
    starving: AtomicBool,
    /// The last record when a checkpoint was last made for want of room.
    relieved: AtomicU64,
    failure: Mutex<Option<String>>,
    /// Of each volume the oldest moment that somebody reads just now.
    in_use: Mutex<HashMap<VolumeId, Lsn>>,
}

impl CareState {
    /// `flushed`: the record up to which the index is on disk; `applied`: that up to which it was replayed, for
    /// which so many bytes of packs were `scanned`.
    pub(super) fn new(flushed: Lsn, applied: Lsn, scanned: u64) -> CareState {
        let long = applied.0.saturating_sub(flushed.0) >= REPLAYED_RECORDS || scanned >= SCANNED_BYTES;
        CareState {
            replayed: AtomicBool::new(long),
            flushed: AtomicU64::new(flushed.0),
            packs_synced: AtomicU64::new(0),
            unsynced_since: Mutex::new(None),
            checkpointing: Mutex::new(()),
            // What earlier sessions journaled counts too, or many short ones would never make a checkpoint.
            checkpoint_at_bytes: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            starving: AtomicBool::new(false),
            relieved: AtomicU64::new(0),
            failure: Mutex::new(None),
            in_use: Mutex::default(),
        }
    }

    /// Notes whether the index finds room to be flushed.
    pub(super) fn starve(&self, starving: bool) {
        self.starving.store(starving, Ordering::Relaxed);
    }

    /// Whether the index's changes pile up in memory for want of room on the disk.
    pub(super) fn starves(&self) -> bool {
        self.starving.load(Ordering::Relaxed)
    }

    pub(super) fn flushed(&self, applied: Lsn) {
        self.flushed.fetch_max(applied.0, Ordering::Relaxed);
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.failure.lock().iter().map(|e| format!("background work fails: {e}")).collect()
    }
}

/// The running care thread. Dropping it ends the thread after its current step.
pub struct Care {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Care {
    /// Starts caring for `store`; does not keep it open.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(store: &Arc<Store>) -> Result<Care> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (weak, signal) = (Arc::downgrade(store), stop.clone());
        let thread = std::thread::Builder::new()
            .name("rewindfs-care".into())
            .spawn(move || run(&weak, &signal))
            .at("starting a thread for", store.path())?;
        Ok(Care { stop, thread: Some(thread) })
    }
}

impl Drop for Care {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(store: &Weak<Store>, (stopped, signal): &(Mutex<bool>, Condvar)) {
    let mut settled = Lsn::ZERO;
    loop {
        let Some(store) = store.upgrade() else { return };
        let busy = match store.care_round(settled) {
            Ok(busy) => {
                *store.care.failure.lock() = None;
                busy
            }
            Err(e) => {
                let message = e.to_string();
                let mut failure = store.care.failure.lock();
                if failure.as_deref() != Some(&message) {
                    tracing::error!(error = %message, "background work failed");
                }
                *failure = Some(message);
                false
            }
        };
        if !busy {
            settled = store.last();
        }
        drop(store);
        let mut stop = stopped.lock();
        if *stop {
            return;
        }
        let pause = if busy { Duration::from_millis(1) } else { ROUND };
        signal.wait_for(&mut stop, pause);
        if *stop {
            return;
        }
    }
}

impl Store {
    /// Suspends background records (flushes go on), for tests that count records.
    pub fn pause_care(&self, paused: bool) {
        self.care.paused.store(paused, Ordering::Relaxed);
    }

    /// Does some of whatever is to do. Returns whether more is left. Representations are changed only of
    /// versions that began at or before `settled`.
    pub fn care_round(&self, settled: Lsn) -> Result<bool> {
        if self.check_writable().is_err() {
            return Ok(false);
        }
        self.sync_packs_if_due()?;
        self.sync_if_due()?;
        // On a full disk what frees space must go on.
        unless_full(self.flush_if_due().and_then(|()| self.checkpoint_if_due()))?;
        if self.care.paused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let mut busy = unless_full(self.free_some())?.unwrap_or(false);
        busy |= unless_full(self.gc_some())?.unwrap_or(false);
        if !self.room.is_full() {
            busy |= unless_full(self.rebind_pending(settled))?.unwrap_or(0) > 0;
        }
        Ok(busy)
    }

    /// Reaps and forgets.
    pub(super) fn free_some(&self) -> Result<bool> {
        let mut busy = self.reap_some()?;
        let volumes: Vec<(VolumeId, bool)> =
            self.index.state().volumes.iter().map(|(id, v)| (*id, v.deleted)).collect();
        for (vol, deleted) in volumes {
            busy |= if deleted { self.sweep_some(vol)? } else { self.forget_some(vol)? };
        }
        Ok(busy)
    }

    /// Does all there is to do now.
    pub fn care_until_idle(&self) -> Result<()> {
        while self.care_round(self.last())? {}
        Ok(())
    }

    /// Makes records durable that nobody asked about, so that a power cut takes no more than the last
    /// seconds.
    fn sync_if_due(&self) -> Result<()> {
        let mut oldest = self.care.unsynced_since.lock();
        if self.last() <= self.durable() {
            *oldest = None;
        } else if oldest.get_or_insert_with(Instant::now).elapsed() >= SYNC_INTERVAL {
            *oldest = None;
            self.sync_all()?;
        }
        Ok(())
    }

    /// Writes packs to the disk as they grow, so that whoever asks for durability waits for little.
    fn sync_packs_if_due(&self) -> Result<()> {
        let packed = self.chunks.counters().packed_bytes.load(Ordering::Relaxed);
        if packed.saturating_sub(self.care.packs_synced.load(Ordering::Relaxed)) < PACK_SYNC_BYTES {
            return Ok(());
        }
        self.chunks.sync().map_err(|e| self.poisoned(&e))?;
        self.care.packs_synced.store(packed, Ordering::Relaxed);
        Ok(())
    }

    fn flush_if_due(&self) -> Result<()> {
        let behind = self.last().0.saturating_sub(self.care.flushed.load(Ordering::Relaxed));
        let due = self.care.replayed.load(Ordering::Relaxed)
            || behind >= self.config.index_flush_records
            || (behind > 0 && self.index.unwritten_bytes() >= self.config.index_flush_bytes);
        if due {
            self.flush_index()?;
            self.care.replayed.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn checkpoint_if_due(&self) -> Result<()> {
        let bytes = self.journal.bytes();
        let base = self.care.checkpoint_at_bytes.load(Ordering::Relaxed);
        if bytes.saturating_sub(base) < self.config.checkpoint_journal_bytes && !self.relief_is_due() {
            return Ok(());
        }
        self.checkpoint()?;
        self.care.checkpoint_at_bytes.store(self.journal.bytes(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether a checkpoint now would give back room that is wanted: that of whole journal segments, once
    /// for as many records as one holds at least.
    fn relief_is_due(&self) -> bool {
        let last = self.last().0;
        let since = last.saturating_sub(self.care.relieved.load(Ordering::Relaxed));
        let due = since >= RELIEF_RECORDS && self.journal.segments() > 1 && self.room.is_full();
        if due {
            self.care.relieved.store(last, Ordering::Relaxed);
        }
        due
    }

    /// Makes a checkpoint of the index and lets go of what only older ones needed.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: the checkpoints are as before.
    pub fn checkpoint(&self) -> Result<()> {
        self.make_checkpoint(false)
    }

    /// As [`Store::checkpoint`]; if it is `urgent`, in any case with what is kept back.
    pub(super) fn make_checkpoint(&self, urgent: bool) -> Result<()> {
        let _one = self.care.checkpointing.lock();
        let at = self.flush(urgent)?;
        let path = self.layout.checkpoints.join(format!("{:016x}", at.0));
        if !self.layout.checkpoints_made().iter().any(|(made, _)| *made == at) {
            remove_tree(&path)?;
            let making = self.layout.checkpoints.join("making");
            remove_tree(&making)?;
            let made = self.index.summed_checkpoint(&making);
            self.room.noticed(made).inspect_err(|_| drop(remove_tree(&making)))?;
            std::fs::rename(&making, &path).at("renaming", &path)?;
            // Records are let go of because it is there: a name that may be lost is as bad as a lost record.
            let synced = self.disk.sync_dir(&self.layout.checkpoints);
            synced.at("syncing", &self.layout.checkpoints).map_err(|e| self.poisoned(&e))?;
        }
        self.layout.remove_ghosts()?;
        let kept = self.layout.checkpoints_made();
        for (_, old) in kept.iter().skip(CHECKPOINTS_KEPT) {
            self.layout.remove_checkpoint(old)?;
        }
        // A checkpoint holds at least what its name says, so replay from it needs no older record.
        if let Some((oldest, _)) = kept.get(CHECKPOINTS_KEPT - 1) {
            self.journal.remove_before(*oldest)?;
        }
        tracing::debug!(%at, "checkpoint made");
        Ok(())
    }

    fn reap_some(&self) -> Result<bool> {
        let items = self.index.reap_items(STEPS_PER_ROUND)?;
        for item in &items {
            let items = self.items();
            self.gently(Edit::Reap { vol: item.vol, ino: item.ino, cut: item.cut, items })?;
        }
        Ok(!items.is_empty())
    }

    fn sweep_some(&self, vol: VolumeId) -> Result<bool> {
        self.commit(vec![Edit::VolumeSweep { vol }], None)?;
        Ok(true)
    }

    fn forget_some(&self, vol: VolumeId) -> Result<bool> {
        if let Some((floor, since)) = self.due_floor(vol)? {
            self.commit(vec![Edit::Window { vol, floor, since }], None)?;
        }
        for _ in 0..STEPS_PER_ROUND {
            if !self.index.wants_forget(vol)? {
                return Ok(false);
            }
            let from = self.index.forget_from(vol);
            self.gently(Edit::Forget { vol, items: self.items(), from })?;
        }
        Ok(true)
    }

    /// How much one record is to do.
    fn items(&self) -> u32 {
        if self.room.is_wanted() { SWEEP_ITEMS_MAX as u32 } else { SWEEP_ITEMS_BESIDE }
    }

    /// Commits background work, and then leaves the store to others for as long as that took.
    fn gently(&self, edit: Edit) -> Result<()> {
        let start = Instant::now();
        self.index.read_ahead(&edit)?;
        self.commit(vec![edit], None)?;
        if !self.room.is_wanted() {
            std::thread::sleep(start.elapsed().min(BREATH_MAX));
        }
        Ok(())
    }

    /// Where the continuous window of `vol` should begin, if moving it would free something.
    fn due_floor(&self, vol: VolumeId) -> Result<Option<(Lsn, Timestamp)>> {
        let now = self.clock.now();
        let (current, continuous) = {
            let state = self.index.state();
            let Some(volume) = state.volumes.get(&vol) else { return Ok(None) };
            (volume.floor, volume.policy.continuous_secs)
        };
        let window = self.config.window_seconds.min(continuous).min(self.room.spared());
        let window = window + WINDOW_STEP_SECS.min(window / 10);
        let from = Timestamp { secs: now.secs.saturating_sub_unsigned(window), nanos: now.nanos };
        let in_use = self.care.in_use.lock().get(&vol).copied().unwrap_or(Lsn::MAX);
        let floor = self.index.lsn_at(from)?.min(in_use);
        Ok((floor > current && self.index.window_moves(vol, floor)?).then_some((floor, from)))
    }

    /// Keeps the window of `vol` from moving beyond a moment that somebody reads; `None` lets it move.
    pub fn hold_window(&self, vol: VolumeId, at: Option<Lsn>) {
        let mut in_use = self.care.in_use.lock();
        match at {
            Some(at) => drop(in_use.insert(vol, at)),
            None => drop(in_use.remove(&vol)),
        }
    }
}

/// What was done, unless there was no room to: then the disk is full, which `status` says.
fn unless_full<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Error::NoSpace(_)) => Ok(None),
        result => result.map(Some),
    }
}
