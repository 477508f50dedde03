//! History within its limits: the oldest goes first, so that programs never meet a disk that history filled.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::store::Pressure;
use crate::store::model::SnapshotKind;
use crate::types::{Lsn, Result, Space, Timestamp, VolumeId};
use crate::volume::protect::may_go;
use crate::volume::{FsResult, Shared};

/// Between two looks at the disk.
const LOOK: Duration = Duration::from_secs(1);
/// The same while programs wait for room, or soon will.
pub(super) const LOOK_PRESSED: Duration = Duration::from_millis(250);
/// How long dead space is waited for that the background is giving back, before more history goes.
const GIVING_BACK: Duration = Duration::from_secs(120);
/// The youngest points stay, whatever the limits of history say, until the disk is nearly full: seconds.
const YOUNG_SECS: u64 = 15 * 60;
/// Nearly full: less is free than this part of what is to be …
const PRESSED_PART: u64 = 4;
/// … and than so much.
const PRESSED_BYTES_MAX: u64 = 16 << 30;
/// Of what is to be free and in bytes: programs wait below it, as long as space is being given back.
const TIGHT_PART: u64 = 8;
const TIGHT_BYTES_MAX: u64 = 1 << 30;
/// Packs for whose copies there must be room by then, where they are not too large a part of the disk.
const TIGHT_PACKS: u64 = 2;
const TIGHT_PACKS_PART: u64 = 16;
/// Programs wait for dead space only where it comes to this part of a pack.
const DEAD_PART: u64 = 8;
/// How long programs wait without anything being given back.
const STANDSTILL: Duration = Duration::from_secs(10);
/// What is missing at least on a disk on which something found no room.
const FULL_MISSING_BYTES: u64 = 64 << 20;
/// Points that one look lets go.
const POINTS_PER_LOOK: usize = 64;

/// What is remembered of a disk with too little room.
#[derive(Default)]
pub(super) struct Shortage {
    next_look: Option<Instant>,
    waiting_since: Option<Instant>,
    /// On a disk that is nearly full.
    pressed: Option<Pressed>,
    /// What the last look found that an operator should know: it holds until the next.
    told: Vec<String>,
}

/// What is done on a disk that is nearly full.
#[derive(Clone, Copy, Debug)]
struct Pressed {
    /// Bytes that are missing until the disk is not nearly full.
    missing: u64,
    /// Seconds of history that still stay: less and less, as nothing older is left.
    spared: u64,
    /// The most that was free, and the least that history took.
    best: (u64, u64),
    /// When one of these was last reached.
    progress: Instant,
}

/// How a store's bytes are spread, as far as can be told without counting each chunk's users.
#[derive(Clone, Copy, Debug)]
struct Usage {
    disk: Space,
    /// Bytes in packs that something names.
    named: u64,
    /// File bytes of all volumes, live and past, before deduplication and compression.
    logical: u64,
}

impl Usage {
    /// What so many past file bytes take in packs, if they compress and repeat as all do.
    fn stored(&self, history: u64) -> u64 {
        if self.logical == 0 {
            return 0;
        }
        (u128::from(self.named) * u128::from(history) / u128::from(self.logical)) as u64
    }
}

impl Shared {
    /// Lets the oldest points go where history takes more than it may or less is free than is to be.
    pub(super) fn keep_within_limits(
        &self,
        volumes: &[VolumeId],
        now: Timestamp,
        shortage: &mut Shortage,
        problems: &mut Vec<String>,
    ) -> FsResult<()> {
        if shortage.next_look.is_none_or(|at| Instant::now() >= at) || self.store.is_full() {
            shortage.told.clear();
            self.look_at_space(volumes, now, shortage)?;
            self.keeping.looks.fetch_add(1, Ordering::Release);
            let pause = if shortage.is_pressed() { LOOK_PRESSED } else { LOOK };
            shortage.next_look = Some(Instant::now() + pause);
        }
        problems.extend(shortage.told.iter().cloned());
        Ok(())
    }

    fn look_at_space(&self, volumes: &[VolumeId], now: Timestamp, shortage: &mut Shortage) -> FsResult<()> {
        let usage = self.usage()?;
        let mut wanted = false;
        self.feel_pressure(volumes, &usage, shortage)?;
        for vol in volumes {
            let Some(over) = self.excess(*vol, &usage, shortage.missing()) else { continue };
            wanted |= over.free_missing > 0;
            if self.store.index().wants_forget(*vol)? {
                continue;
            }
            if over.history_over == 0
                && self.dead_bytes(&usage)? >= over.free_missing
                && shortage.waits_for_dead_space()
            {
                continue;
            }
            let reading = self.being_read(*vol);
            let oldest = self.oldest(*vol, now, &reading, &usage, &over)?;
            if oldest.is_empty() {
                shortage.told.extend(over.problem);
                if let Some(pressed) = &mut shortage.pressed {
                    pressed.spared /= 4;
                }
                continue;
            }
            tracing::info!(volume = %vol, points = oldest.len(), missing = over.bytes(), "history is thinned for want of room");
            self.delete_points(*vol, &oldest)?;
        }
        if !wanted {
            shortage.waiting_since = None;
        }
        self.store.want_room(wanted);
        Ok(())
    }

    /// Where the disk is nearly full, the youngest history goes, too, little by little, and programs wait while space
    /// is being given back: room that history takes is to cost nobody a write.
    fn feel_pressure(&self, volumes: &[VolumeId], usage: &Usage, shortage: &mut Shortage) -> Result<()> {
        let (free_min, bytes, points) = {
            let state = self.store.index().state();
            let known = || volumes.iter().filter_map(|vol| state.volumes.get(vol));
            let free_min = known().map(|v| v.policy.free_min.of(usage.disk.total)).max().unwrap_or(0);
            let points = known().map(|v| v.points.len() as u64).sum::<u64>();
            (free_min, known().map(|v| v.history_bytes).sum::<u64>(), points)
        };
        let history = bytes.saturating_add(points);
        // What programs have written and nobody has stored yet will take some of it.
        let free = usage.disk.free.saturating_sub(self.budget.used());
        let packs = (TIGHT_PACKS * self.store.pack_bytes_max()).min(usage.disk.total / TIGHT_PACKS_PART);
        let tight = (free_min / TIGHT_PART).min(TIGHT_BYTES_MAX).max(packs);
        let pressed = (free_min / PRESSED_PART).min(PRESSED_BYTES_MAX).max(2 * tight);
        if free >= pressed {
            shortage.pressed = None;
            self.store.press(Pressure { yields: bytes > 0, tight: false, spared: u64::MAX });
            return Ok(());
        }
        let now = Instant::now();
        let state = shortage.pressed.get_or_insert(Pressed {
            missing: 0,
            spared: YOUNG_SECS,
            best: (free, history),
            progress: now,
        });
        if free > state.best.0 || history < state.best.1 {
            state.best = (free.max(state.best.0), history.min(state.best.1));
            state.progress = now;
        }
        state.missing = pressed - free;
        let yields = now.duration_since(state.progress) < STANDSTILL
            && (bytes > 0 || self.dead_bytes(usage)? >= self.store.pack_bytes_max() / DEAD_PART);
        self.store.press(Pressure {
            yields,
            tight: yields && (free < tight || self.store.is_full()),
            spared: state.spared,
        });
        Ok(())
    }

    fn usage(&self) -> Result<Usage> {
        let disk = self.store.space()?;
        let state = self.store.index().state();
        let named = state.packs.values().map(|p| p.live_bytes).sum::<u64>();
        let logical = state.volumes.values().map(|v| v.live_bytes.saturating_add(v.history_bytes)).sum();
        Ok(Usage { disk, named, logical })
    }

    /// Bytes in packs that nothing names. Looks at every pack.
    fn dead_bytes(&self, usage: &Usage) -> Result<u64> {
        Ok(self.store.packs_bytes()?.saturating_sub(usage.named))
    }

    /// By how much a volume is over its limits.
    fn excess(&self, vol: VolumeId, usage: &Usage, pressing: u64) -> Option<Excess> {
        let state = self.store.index().state();
        let volume = state.volumes.get(&vol)?;
        let history = usage.stored(volume.history_bytes);
        let history_over = history.saturating_sub(volume.policy.history_max.of(usage.disk.total));
        let free_missing = volume.policy.free_min.of(usage.disk.total).saturating_sub(usage.disk.free);
        if history_over == 0 && free_missing == 0 {
            // That the disk is full is said elsewhere.
            let missing = if self.store.is_full() { pressing.max(FULL_MISSING_BYTES) } else { pressing };
            let full = Excess { history_over, free_missing: missing, pressing, problem: None };
            return (missing > 0).then_some(full);
        }
        let name = &volume.name;
        let problem = if free_missing > 0 {
            format!(
                "volume {name}: {} bytes are free, {free_missing} less than free-min asks for, and no more history \
                 may go; delete files or snapshots, or lower free-min",
                usage.disk.free
            )
        } else {
            format!(
                "volume {name}: history takes about {history} bytes, {history_over} more than history-max allows, \
                 and what may go of it is younger than {} minutes; release holds, or raise history-max",
                YOUNG_SECS / 60
            )
        };
        Some(Excess { history_over, free_missing, pressing, problem: Some(problem) })
    }

    /// The oldest points that may go, as many as keep what is over by themselves or as one look may take: those
    /// that were made by themselves before those that somebody asked for.
    fn oldest(
        &self,
        vol: VolumeId,
        now: Timestamp,
        reading: &[Lsn],
        usage: &Usage,
        over: &Excess,
    ) -> Result<Vec<Lsn>> {
        let points: Vec<(bool, Lsn)> = {
            let state = self.store.index().state();
            let Some(volume) = state.volumes.get(&vol) else { return Ok(Vec::new()) };
            let spared = self.store.spared_secs().min(YOUNG_SECS);
            let younger = |p: Timestamp, secs: u64| secs > 0 && now.secs.saturating_sub(p.secs) < secs as i64;
            let mut all: Vec<(bool, Lsn, bool)> = may_go(volume, now, reading)
                .into_iter()
                .filter(|(_, p)| !younger(p.time, spared))
                .map(|(at, p)| (was_asked_for(p.spec.kind), at, younger(p.time, YOUNG_SECS)))
                .filter(|(asked_for, ..)| over.problem.is_some() || !asked_for)
                .collect();
            all.sort_unstable();
            all.into_iter().map(|(_, at, young)| (young, at)).take(POINTS_PER_LOOK).collect()
        };
        // Of the youngest no more than the disk needs; a full one says by itself when it is enough.
        let of_youngest = if self.store.is_full() { over.bytes() } else { over.pressing };
        let (mut chosen, mut freed) = (Vec::new(), 0u64);
        for (young, at) in points {
            if freed >= if young { of_youngest } else { over.bytes() } {
                break;
            }
            freed = freed.saturating_add(usage.stored(self.store.index().bytes_only(vol, at)?));
            chosen.push(at);
        }
        Ok(chosen)
    }
}

fn was_asked_for(kind: SnapshotKind) -> bool {
    !matches!(kind, SnapshotKind::Scheduled | SnapshotKind::Mark)
}

#[derive(Clone, Debug)]
struct Excess {
    history_over: u64,
    free_missing: u64,
    /// What is missing until the disk is not nearly full: so much of the youngest history may go.
    pressing: u64,
    /// What to say where nothing may go. None: the policy asks for nothing, but the disk is full to the end; then
    /// only what was made by itself goes.
    problem: Option<String>,
}

impl Excess {
    fn bytes(&self) -> u64 {
        self.history_over.max(self.free_missing)
    }
}

impl Shortage {
    #[cfg(test)]
    pub(super) fn impatient() -> Shortage {
        Shortage { waiting_since: Instant::now().checked_sub(GIVING_BACK), ..Shortage::default() }
    }

    #[cfg(test)]
    pub(super) fn look_now(&mut self) {
        self.next_look = None;
    }

    pub(super) fn is_pressed(&self) -> bool {
        self.pressed.is_some()
    }

    fn missing(&self) -> u64 {
        self.pressed.map_or(0, |pressed| pressed.missing)
    }

    /// Whether what is dead already may still be given back.
    fn waits_for_dead_space(&mut self) -> bool {
        self.waiting_since.get_or_insert_with(Instant::now).elapsed() < GIVING_BACK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_measured_by_how_all_is_stored() {
        let disk = Space { total: 1000, free: 100, usable: 100 };
        let usage = Usage { disk, named: 300, logical: 900 };
        assert_eq!(usage.stored(450), 150);
        assert_eq!(Usage { logical: 0, ..usage }.stored(7), 0);
    }
}
