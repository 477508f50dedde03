//! The thread that does what policies say: marks, schedules, retention, limits of space.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::alarm::Alarms;
use super::completed::Completed;
use super::retention::{self, Candidate, minute};
use super::space::{LOOK_PRESSED, Shortage};
use crate::store::index::steps::STEP_NANOS_MIN;
use crate::store::model::{Edit, Policy, SnapshotKind, SnapshotSpec};
use crate::types::error::IoContext;
use crate::types::limits::{POINTS_MAX, SWEEP_ITEMS_MAX};
use crate::types::point::{about_text, rfc3339};
use crate::types::{Error, Lsn, Timestamp, VolumeId};
use crate::volume::protect::{check_may_go, may_go};
use crate::volume::snapshot::SnapshotCreate;
use crate::volume::{FsResult, Shared};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Seconds for which a moment stays that was read.
const READ_SECS: u64 = 60;
/// Seconds for which reading alone keeps a moment.
const READ_SECS_MAX: u64 = 24 * 3600;
/// Moments of a volume that are remembered as being read.
const READ_MAX: usize = 4096;
/// Seconds by which the clock may run ahead of the time that passed before nothing is let go because of its age.
const JUMP_SECS: i64 = 300;
/// For how long then.
const JUMP_PAUSE: Duration = Duration::from_secs(3600);
/// Seconds by which the clock may stand before the latest record without that being told.
const BEHIND_SECS: i64 = 5;
/// For how long it is told.
const BEHIND_TOLD_SECS: i64 = 24 * 3600;

/// Which moments are being read.
#[derive(Default)]
pub(in crate::volume) struct Readers {
    /// First and last time.
    of: Mutex<HashMap<(VolumeId, Lsn), (Instant, Instant)>>,
}

impl Readers {
    pub fn touch(&self, vol: VolumeId, at: Lsn) {
        let now = Instant::now();
        let mut of = self.of.lock();
        if of.len() < READ_MAX || of.contains_key(&(vol, at)) {
            of.entry((vol, at)).or_insert((now, now)).1 = now;
        }
    }

    /// The moments of `vol` that are read, oldest first.
    fn current(&self, vol: VolumeId) -> Vec<Lsn> {
        let mut of = self.of.lock();
        of.retain(|_, (_, last)| last.elapsed().as_secs() < READ_SECS);
        let held = |first: &Instant| first.elapsed().as_secs() < READ_SECS_MAX;
        let mine = of.iter().filter(|((v, _), (first, _))| *v == vol && held(first));
        let mut found: Vec<Lsn> = mine.map(|((_, at), _)| *at).collect();
        found.sort_unstable();
        found
    }
}

/// What the keeper's rounds remember, and tell others.
#[derive(Default)]
pub(in crate::volume) struct Keeping {
    problems: Mutex<Vec<String>>,
    pub(super) completed: Completed,
    pub(in crate::volume) alarms: Alarms,
    wake: (Mutex<()>, Condvar),
    /// How often the disk was looked at.
    pub(super) looks: AtomicU64,
}

impl Keeping {
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.lock().clone();
        problems.extend(self.alarms.problems());
        problems
    }

    /// How often the disk was looked at: a keeper looks at a full one in each of its rounds.
    pub(in crate::volume) fn looks(&self) -> u64 {
        self.looks.load(Ordering::Acquire)
    }

    /// Has the next round begin soon.
    pub(in crate::volume) fn wake(&self) {
        self.wake.1.notify_all();
    }
}

/// What one keeper remembers from round to round.
#[derive(Default)]
pub(in crate::volume) struct Rounds {
    /// Of each volume the schedule's slot that was last looked at, with the schedule.
    slots: HashMap<VolumeId, (u64, i64)>,
    /// The minute in which retention was last done, and by which policy.
    retained: HashMap<VolumeId, (i64, Policy)>,
    pub(super) shortage: Shortage,
    /// Nothing goes because of its age before.
    ages_wait_until: Option<Instant>,
}

/// The running thread; dropping it ends it after its current round.
pub struct Keeper {
    stop: Arc<Mutex<bool>>,
    shared: Weak<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(shared: &Arc<Shared>) -> FsResult<Keeper> {
        let stop = Arc::new(Mutex::new(false));
        let (weak, stopped) = (Arc::downgrade(shared), stop.clone());
        let thread = std::thread::Builder::new()
            .name("rewindfs-keeper".into())
            .spawn(move || run(&weak, &stopped))
            .at("starting a thread for", shared.store.path())?;
        Ok(Keeper { stop, shared: Arc::downgrade(shared), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        *self.stop.lock() = true;
        if let Some(shared) = self.shared.upgrade() {
            shared.keeping.wake();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Weak<Shared>, stopped: &Mutex<bool>) {
    let mut rounds = Rounds::default();
    let mut last: Option<(Timestamp, Duration)> = None;
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let now = (shared.now(), since_boot());
        if let Some(last) = last.replace(now) {
            rounds.notice_jump(last, now);
        }
        let mut problems = Vec::new();
        if let Err(e) = shared.keep(&mut rounds, &mut problems) {
            problems.push(format!("schedule and retention: {e}"));
        }
        if rounds.ages_wait() {
            problems
                .push("the clock jumped ahead; for an hour nothing is let go because of its age".to_owned());
        }
        {
            let mut told = shared.keeping.problems.lock();
            for problem in problems.iter().filter(|p| !told.contains(p)) {
                tracing::warn!("{problem}");
            }
            *told = problems;
        }
        let mut wake = shared.keeping.wake.0.lock();
        if *stopped.lock() {
            shared.remember_rates();
            return;
        }
        let pause = if rounds.shortage.is_pressed() { LOOK_PRESSED } else { ROUND };
        shared.keeping.wake.1.wait_for(&mut wake, pause);
        if *stopped.lock() {
            shared.remember_rates();
            return;
        }
    }
}

/// Time since the machine started, sleep included.
fn since_boot() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

impl Rounds {
    /// A clock that runs ahead would make everything look old.
    fn notice_jump(&mut self, last: (Timestamp, Duration), now: (Timestamp, Duration)) {
        let passed = i64::try_from(now.1.saturating_sub(last.1).as_secs()).unwrap_or(i64::MAX);
        let told = now.0.secs.saturating_sub(last.0.secs);
        if told.saturating_sub(passed) > JUMP_SECS {
            self.ages_wait_until = Some(Instant::now() + JUMP_PAUSE);
        }
    }

    /// Rounds that do not wait for dead space to be given back.
    #[cfg(test)]
    pub fn impatient() -> Rounds {
        Rounds { shortage: Shortage::impatient(), ..Rounds::default() }
    }

    /// Has the next round look at the disk, whenever the last one did.
    #[cfg(test)]
    pub fn look_at_space(&mut self) {
        self.shortage.look_now();
    }

    fn ages_wait(&self) -> bool {
        self.ages_wait_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the schedule's next moment has come since the round before; after a start, since `last`.
    fn slot_begins(&mut self, vol: VolumeId, every: u64, now: Timestamp, last: Timestamp) -> bool {
        let every_secs = i64::try_from(every.max(1)).unwrap_or(i64::MAX);
        let slot = |time: Timestamp| time.secs.div_euclid(every_secs);
        let before = match self.slots.insert(vol, (every, slot(now))) {
            Some((same, slot)) if same == every => slot,
            _ => slot(last),
        };
        every > 0 && slot(now) > before
    }
}

/// What is to be done for a volume now.
struct Due {
    mark: bool,
    scheduled: bool,
}

impl Shared {
    /// One round over all volumes. `problems` gets what an operator should know.
    ///
    /// # Errors
    /// From the store; what was done stays done.
    pub(in crate::volume) fn keep(&self, rounds: &mut Rounds, problems: &mut Vec<String>) -> FsResult<()> {
        if self.store.trouble().is_some() {
            return Ok(());
        }
        let volumes: Vec<VolumeId> = {
            let state = self.store.index().state();
            state.volumes.iter().filter(|(_, v)| !v.deleted).map(|(vol, _)| *vol).collect()
        };
        let noticed = self.notice_step(problems);
        let now = self.now();
        let kept = noticed.and_then(|()| self.keep_points(&volumes, now, rounds, problems));
        // Also where the rest found no room: this is what makes some.
        let limited = self.keep_within_limits(&volumes, now, &mut rounds.shortage, problems);
        kept.and(limited)
    }

    fn keep_points(
        &self,
        volumes: &[VolumeId],
        now: Timestamp,
        rounds: &mut Rounds,
        problems: &mut Vec<String>,
    ) -> FsResult<()> {
        for vol in volumes {
            let reading = self.readers.current(*vol);
            self.store.hold_window(*vol, reading.first().copied());
            self.make_points(*vol, now, rounds, problems)?;
            if !rounds.ages_wait() && self.retention_is_due(*vol, now, rounds) {
                self.retain(*vol, now, &reading)?;
            }
        }
        self.watch_bursts(volumes, now)?;
        self.snapshot_completed(problems)
    }

    /// Has a record say at once that the clock was set back, so that ages are reckoned from that moment on.
    fn notice_step(&self, problems: &mut Vec<String>) -> FsResult<()> {
        let stands_before = |clock| self.store.index().state().behind(clock) >= STEP_NANOS_MIN;
        if stands_before(self.now()) && self.store.read_only().is_none() {
            // A full disk is said elsewhere.
            match self.store.commit(vec![Edit::Term], None) {
                Ok(_) | Err(Error::NoSpace(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let (latest, lsn, since) = {
            let state = self.store.index().state();
            let (latest, lsn) = state.latest_clock();
            (latest, lsn, state.steps.last().map(|step| step.set_to))
        };
        let now = self.now();
        let behind = latest.secs.saturating_sub(now.secs);
        // Not until it has caught up: that may be years.
        let told = since.is_none_or(|since| now.secs.saturating_sub(since.secs) < BEHIND_TOLD_SECS);
        if behind > BEHIND_SECS && told {
            problems.push(format!(
                "the clock stands {} before the time of record {lsn}, {}: it was set back, or is wrong; ages and \
                 times from before are refused where they could mean two states",
                about_text(behind.unsigned_abs()),
                rfc3339(latest)
            ));
        }
        Ok(())
    }

    fn retention_is_due(&self, vol: VolumeId, now: Timestamp, rounds: &mut Rounds) -> bool {
        let state = self.store.index().state();
        let Some(volume) = state.volumes.get(&vol) else { return false };
        let done = rounds.retained.get(&vol);
        if done.is_some_and(|(at, policy)| *at == minute(now) && *policy == volume.policy) {
            return false;
        }
        rounds.retained.insert(vol, (minute(now), volume.policy.clone()));
        true
    }

    fn due(&self, vol: VolumeId, now: Timestamp, rounds: &mut Rounds) -> Option<(Due, usize)> {
        let state = self.store.index().state();
        let volume = state.volumes.get(&vol)?;
        let newest = volume.points.iter().next_back();
        let changed_since = |lsn: Option<Lsn>| lsn.is_none_or(|lsn| volume.changed > lsn);
        // Not "later": the clock may have been set back.
        let since_minute = newest.is_none_or(|(_, p)| minute(now) != minute(p.time));
        let mark =
            volume.policy.continuous_secs > 0 && since_minute && changed_since(newest.map(|(at, _)| *at));
        let last = volume.snapshots().rev().find(|(_, s)| s.spec.kind == SnapshotKind::Scheduled);
        // A new volume has its first at the next moment of the schedule.
        let last = last.map_or(now, |(_, s)| s.time);
        let begins = rounds.slot_begins(vol, volume.policy.every_secs, now, last);
        let scheduled = begins && changed_since(volume.snapshots().next_back().map(|(at, _)| at));
        Some((Due { mark, scheduled }, volume.points.len()))
    }

    fn make_points(
        &self,
        vol: VolumeId,
        now: Timestamp,
        rounds: &mut Rounds,
        problems: &mut Vec<String>,
    ) -> FsResult<()> {
        let Some((due, points)) = self.due(vol, now, rounds) else { return Ok(()) };
        if points >= POINTS_MAX && (due.scheduled || due.mark) {
            problems.push(format!(
                "a volume has {POINTS_MAX} snapshots and marks, no more are made; delete some"
            ));
            return Ok(());
        }
        let made = if due.scheduled {
            let create = SnapshotCreate { kind: SnapshotKind::Scheduled, ..SnapshotCreate::default() };
            self.snapshot(&[vol], &create).map(drop)
        } else if due.mark {
            let _admin = self.admin.lock();
            self.mark(vol).map(drop)
        } else {
            Ok(())
        };
        // A full disk is said elsewhere, and deleting goes on.
        match made {
            Err(crate::volume::FsError::Store(Error::NoSpace(_))) => Ok(()),
            made => made,
        }
    }

    /// Makes the present a point without a name. The caller holds the admin lock.
    pub(in crate::volume) fn mark(&self, vol: VolumeId) -> FsResult<Lsn> {
        let spec = SnapshotSpec { kind: SnapshotKind::Mark, ..SnapshotSpec::default() };
        self.barrier(|| Ok(self.store.commit(vec![Edit::SnapshotCreate { vol, spec }], None)?))
    }

    /// Lets go of what retention does not keep.
    fn retain(&self, vol: VolumeId, now: Timestamp, reading: &[Lsn]) -> FsResult<()> {
        let expired = {
            let state = self.store.index().state();
            let Some(volume) = state.volumes.get(&vol) else { return Ok(()) };
            let points: Vec<Candidate> = volume
                .points
                .iter()
                .filter(|(_, p)| !p.deleting)
                .map(|(lsn, p)| Candidate { lsn: *lsn, time: p.time, kind: p.spec.kind })
                .collect();
            let expired = retention::expired(&volume.policy, now, &points);
            let may_go = may_go(volume, now, reading);
            expired.into_iter().filter(|at| may_go.contains_key(at)).collect::<Vec<_>>()
        };
        self.delete_points(vol, &expired)
    }

    /// Begins to forget points. A hold or a longer immutability that came since is respected.
    pub(super) fn delete_points(&self, vol: VolumeId, points: &[Lsn]) -> FsResult<()> {
        for part in points.chunks(SWEEP_ITEMS_MAX) {
            let _admin = self.admin.lock();
            let now = self.now();
            let still = {
                let state = self.store.index().state();
                let Some(volume) = state.volumes.get(&vol) else { return Ok(()) };
                let goes = |at: &&Lsn| {
                    volume.points.get(*at).is_some_and(|p| check_may_go(volume, [p], now).is_ok())
                };
                part.iter().filter(goes).copied().collect::<Vec<Lsn>>()
            };
            let edits: Vec<Edit> = still.into_iter().map(|at| Edit::SnapshotDelete { vol, at }).collect();
            if !edits.is_empty() {
                self.store.commit(edits, None)?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// The moments of `vol` that are being read.
    pub(super) fn being_read(&self, vol: VolumeId) -> Vec<Lsn> {
        self.readers.current(vol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    #[test]
    fn a_slot_begins_once_and_one_that_was_missed_begins_at_once() {
        let mut rounds = Rounds::default();
        let vol = VolumeId(1);
        assert!(!rounds.slot_begins(vol, 60, at(119), at(60)), "the same slot as the last snapshot's");
        assert!(rounds.slot_begins(vol, 60, at(120), at(60)));
        assert!(!rounds.slot_begins(vol, 60, at(179), at(60)));
        assert!(
            !rounds.slot_begins(vol, 10, at(179), at(179)),
            "another schedule begins with its next moment"
        );
        assert!(rounds.slot_begins(vol, 10, at(180), at(179)));
        assert!(!rounds.slot_begins(vol, 0, at(999), at(180)), "there is none");
        let mut restarted = Rounds::default();
        assert!(restarted.slot_begins(vol, 60, at(300), at(120)), "missed while nobody served");
        assert!(!restarted.slot_begins(vol, 60, at(200), at(120)), "the clock was set back");
    }

    #[test]
    fn a_clock_that_jumps_ahead_ages_nothing() {
        let mut rounds = Rounds::default();
        let boot = Duration::from_secs;
        rounds.notice_jump((at(0), boot(0)), (at(100_000), boot(100_000)));
        assert!(!rounds.ages_wait(), "a suspended machine's time did pass");
        rounds.notice_jump((at(0), boot(0)), (at(86_400 * 365), boot(1)));
        assert!(rounds.ages_wait());
    }
}
