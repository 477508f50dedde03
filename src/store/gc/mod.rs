//! Giving space back: a pack whose chunks are mostly dead is written anew without them, and deleted.
//!
//! ```text
//! copy what is named to the end of the packs → sync → point the index at the copies, drop dead entries
//!   → retire the pack → every checkpoint kept is younger: delete the file
//! ```
//!
//! Until then the old pack stays whole, so a crash anywhere costs the copies made and nothing else. Of a chunk
//! that was dead when its pack was retired no record behind a kept checkpoint makes another, since only the
//! index could have shown that it is there; replay from the journal's very beginning takes it for lost, which
//! hurts nobody once nothing names it.

mod rewrite;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::Store;
use super::chunks::pack;
use super::control::Control;
use super::model::Edit;
use super::room::Lent;
use crate::types::error::IoContext;
use crate::types::{Error, Lsn, PackId, Result};
use rewrite::Work;

/// How often packs are looked at for what could be freed.
const LOOK: Duration = Duration::from_secs(30);
/// The same when less is free than is to be.
const LOOK_WANTED: Duration = Duration::from_secs(1);
/// Bytes that one step copies.
const STEP_BYTES: u64 = 16 << 20;
/// Time between checkpoints that are made only to be able to delete packs.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(60);

/// What rewriting remembers, in this process only.
#[derive(Default)]
pub(super) struct GcState {
    work: Option<Work>,
    /// Packs that need not be looked at while they have so many live bytes.
    judged: HashMap<PackId, u64>,
    looked: Option<Instant>,
    /// Packs were left alone for want of room; at the next look they may find it.
    lacked_room: bool,
    /// The last record when nothing was found to be rewritten.
    settled: Option<Lsn>,
    next_step: Option<Instant>,
    next_checkpoint: Option<Instant>,
    /// What is kept back was given up so that packs can be copied and go.
    lent: Option<Lent>,
}

/// What could be freed, or was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Packs that were rewritten, or would be.
    pub packs: u64,
    /// Bytes copied out of them, or to be.
    pub copied_bytes: u64,
    /// Bytes of all packs before.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
}

fn due(at: Option<Instant>) -> bool {
    at.is_none_or(|at| Instant::now() >= at)
}

impl Store {
    /// A step of rewriting in the background. Returns whether another can follow at once.
    pub(super) fn gc_some(&self) -> Result<bool> {
        let Some(mut gc) = self.gc.try_lock() else { return Ok(false) };
        if gc.work.is_none() || self.room.is_full() {
            self.let_go_of_packs(&mut gc)?;
        }
        if gc.lent.is_some() && gc.work.is_none() {
            // One pack after the other: with the first its room comes back.
            if !self.index.state().retired.is_empty() {
                return Ok(true);
            }
            gc.lent = None;
        }
        let rate = self.config.gc_bytes_per_second;
        if rate == 0 || !due(gc.next_step) {
            return Ok(false);
        }
        let Some(mut work) = self.next_work(&mut gc)? else { return Ok(false) };
        self.borrow_for(&mut gc, &work);
        let step = self.rewrite_some(&mut work, STEP_BYTES);
        let copied = *step.as_ref().unwrap_or(&0);
        let pause = if self.room.is_wanted() { 0 } else { copied.saturating_mul(1000) / rate };
        gc.next_step = Some(Instant::now() + Duration::from_millis(pause));
        match step {
            Ok(_) if work.is_done() => self.retire(&mut gc, &work)?,
            Ok(_) => gc.work = Some(work),
            Err(e) => self.give_up(&mut gc, &work, e)?,
        }
        Ok(true)
    }

    /// Has the background look for packs to rewrite without waiting.
    #[cfg(test)]
    pub fn gc_soon(&self) {
        *self.gc.lock() = GcState::default();
    }

    fn next_work(&self, gc: &mut GcState) -> Result<Option<Work>> {
        if let Some(work) = gc.work.take() {
            return Ok(Some(work));
        }
        let (wanted, last) = (self.room.is_wanted(), self.last());
        let pause = if wanted { LOOK_WANTED } else { LOOK };
        if gc.looked.is_some_and(|at| at.elapsed() < pause) || (gc.settled == Some(last) && !wanted) {
            return Ok(None);
        }
        if std::mem::take(&mut gc.lacked_room) {
            gc.judged.clear();
        }
        let percent = if wanted { WANTED_DEAD_PERCENT } else { self.config.gc_dead_percent.into() };
        let work = self.choose(&mut gc.judged, percent, None)?;
        if work.is_none() {
            gc.looked = Some(Instant::now());
            gc.settled = Some(last).filter(|_| !gc.lacked_room);
        }
        Ok(work)
    }

    /// On a full disk, has what is kept back given up for the copies, until packs have gone.
    fn borrow_for(&self, gc: &mut GcState, work: &Work) {
        let needed = work.live_bytes.saturating_add(CHECKPOINT_BYTES);
        if gc.lent.is_none() && !self.room.has(needed) {
            gc.lent = self.room.lend_for(needed);
        }
    }

    fn retire(&self, gc: &mut GcState, work: &Work) -> Result<()> {
        if work.leaves_some() {
            // Something there has come to be named while it was copied; another round copies it, too.
            gc.judged.remove(&work.pack);
            return Ok(());
        }
        let _committed = self.commit.lock();
        self.check_writable()?;
        self.index.retire_pack(work.pack)
    }

    /// Leaves a pack alone that cannot be copied; what was copied of it stays where it is now.
    fn give_up(&self, gc: &mut GcState, work: &Work, e: Error) -> Result<()> {
        let live = self.index.state().packs.get(&work.pack).map_or(0, |stat| stat.live_bytes);
        gc.judged.insert(work.pack, live);
        match e {
            Error::Corrupt { .. } => {
                tracing::warn!(error = %e, "a pack with damage is not rewritten; scrub names what is concerned");
                Ok(())
            }
            Error::NoSpace(_) => {
                gc.lacked_room = true;
                Ok(())
            }
            e => Err(e),
        }
    }

    /// Deletes retired packs that no checkpoint needs, and sees to it that there are such checkpoints.
    fn let_go_of_packs(&self, gc: &mut GcState) -> Result<()> {
        if self.index.state().retired.is_empty() {
            return Ok(());
        }
        self.delete_retired()?;
        let urgent = self.room.is_wanted();
        if !self.index.state().retired.is_empty() && (urgent || due(gc.next_checkpoint)) {
            gc.next_checkpoint = Some(Instant::now() + CHECKPOINT_PAUSE);
            self.checkpoint_beyond()?;
            self.delete_retired()?;
        }
        Ok(())
    }

    /// A checkpoint behind everything that was so far. It lets packs go, so what is kept back may be used for it.
    pub(crate) fn checkpoint_beyond(&self) -> Result<()> {
        self.room.make(self.index.unwritten_bytes().saturating_add(CHECKPOINT_BYTES))?;
        self.commit(vec![Edit::Term], None)?;
        self.make_checkpoint(true)
    }

    /// Deletes the retired packs that are older than every checkpoint kept.
    pub(crate) fn delete_retired(&self) -> Result<()> {
        let Some((oldest, _)) = self.layout.checkpoints_made().pop() else { return Ok(()) };
        let retired = self.index.state().retired.clone();
        let packs: Vec<PackId> =
            retired.into_iter().filter(|(_, since)| *since < oldest).map(|(pack, _)| pack).collect();
        for pack in &packs {
            let path = pack::pack_path(&self.layout.packs, *pack);
            self.chunks.forget_pack(*pack);
            match self.disk.remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("removing", &path),
                _ => tracing::debug!(pack = pack.0, "a rewritten pack is deleted"),
            }
        }
        if !packs.is_empty() {
            self.disk.sync_dir(&self.layout.packs).at("syncing", &self.layout.packs)?;
        }
        for pack in packs {
            let _committed = self.commit.lock();
            self.index.pack_removed(pack)?;
        }
        Ok(())
    }

    /// Forgets all there is to forget, and rewrites every pack that has dead bytes. With `dry` it only says what
    /// rewriting would come to now.
    ///
    /// # Errors
    /// It was cancelled (what is done is done), or from the store.
    pub fn gc(&self, control: &Control, dry: bool) -> Result<GcReport> {
        if dry {
            return self.would_free();
        }
        let mut report = GcReport { before_bytes: self.packs_bytes()?, ..GcReport::default() };
        // What the first packs give back may be the room for copies out of the others.
        loop {
            let no_room = self.rewrite_packs(control, &mut report, None)?;
            control.begin("making checkpoints without the old packs");
            let gone = self.let_retired_go()?;
            match no_room {
                None => break,
                Some(e) if gone == 0 => return Err(e),
                Some(_) => {}
            }
        }
        report.after_bytes = self.packs_bytes()?;
        Ok(report)
    }

    /// Makes the checkpoints that retired packs wait for. Returns how many went.
    fn let_retired_go(&self) -> Result<usize> {
        let before = self.index.state().retired.len();
        for _ in 0..super::care::CHECKPOINTS_KEPT {
            if !self.index.state().retired.is_empty() {
                self.checkpoint_beyond()?;
            }
        }
        self.delete_retired()?;
        Ok(before.saturating_sub(self.index.state().retired.len()))
    }

    /// Forgets, and rewrites every pack with dead bytes, or only those `among` them; the old ones are retired.
    /// Returns why some were left, if it was for want of room.
    pub(crate) fn rewrite_packs(
        &self,
        control: &Control,
        report: &mut GcReport,
        among: Option<&BTreeSet<PackId>>,
    ) -> Result<Option<Error>> {
        let mut no_room = None;
        self.check_writable()?;
        let mut gc = self.gc.lock();
        *gc = GcState::default();
        control.begin("forgetting");
        while self.free_some()? {
            control.advance(0)?;
        }
        self.chunks.finish_pack().map_err(|e| self.poisoned(&e))?;
        control.begin("rewriting packs");
        control.expect(report.before_bytes);
        while let Some(mut work) = self.choose(&mut gc.judged, 0, among)? {
            self.borrow_for(&mut gc, &work);
            while !work.is_done() {
                match self.rewrite_some(&mut work, STEP_BYTES) {
                    Ok(copied) => report.copied_bytes += copied,
                    Err(e) => {
                        if let Error::NoSpace(what) = &e {
                            no_room = Some(Error::NoSpace(what.clone()));
                        }
                        self.give_up(&mut gc, &work, e)?;
                        break;
                    }
                }
                control.advance(STEP_BYTES)?;
            }
            if work.is_done() {
                self.retire(&mut gc, &work)?;
                report.packs += u64::from(!work.leaves_some());
            }
            if gc.lent.is_some() {
                self.let_retired_go()?;
                gc.lent = None;
            }
        }
        Ok(no_room)
    }

    fn would_free(&self) -> Result<GcReport> {
        let mut report = GcReport { before_bytes: self.packs_bytes()?, ..GcReport::default() };
        let retired = self.index.state().retired.clone();
        let mut freed = 0;
        for (id, len, _) in self.pack_sizes(PackId(u64::MAX))? {
            if retired.contains_key(&id) {
                freed += len;
                continue;
            }
            let work = self.work_on(id)?;
            if work.dead_bytes > 0 {
                report.packs += 1;
                report.copied_bytes += work.live_bytes;
                freed += len.saturating_sub(work.live_bytes);
            }
        }
        report.after_bytes = report.before_bytes.saturating_sub(freed);
        Ok(report)
    }
}

/// Room that a checkpoint takes beside what the index has to write.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// Dead part of a pack from which on it is rewritten when less is free than is to be.
const WANTED_DEAD_PERCENT: u64 = 10;
