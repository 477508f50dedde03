//! Steps of a history that set policies and let them work.

use std::collections::{BTreeMap, BTreeSet};

use super::model::PATTERNS;
use super::policy::{keep, points, stays};
use super::run::{Outcome, Run, Snap, agree};
use super::*;
use crate::store::model::SnapshotKind;
use crate::volume::policy::Setting;

impl Run {
    pub fn set_policy(&mut self, every: u16, continuous: u16, kept: u8, immutable: u16) -> Outcome {
        let period = |minutes: u16| if minutes == 0 { "off".to_owned() } else { format!("{minutes}m") };
        let settings = [
            format!("every={}", period(every)),
            format!("continuous={}", period(continuous)),
            format!("hourly={}", kept % 4),
            format!("daily={}", kept / 4 % 4),
            format!("weekly={}", kept / 16 % 4),
            format!("monthly={}", kept / 64),
            format!("immutable={}", period(immutable)),
        ];
        let settings = Setting::all(&settings).map_err(|e| e.to_string())?;
        let before = points(&self.bench);
        agree("policy", self.volume().set_policy(&settings, false), Ok(()))?;
        self.adopt_new(&before)?;
        self.immutable.push((self.now(), i64::from(immutable) * 60));
        Ok(())
    }

    /// Sets which of the model's patterns are in force.
    pub fn exclude(&mut self, patterns: u8) -> Outcome {
        let all = PATTERNS.iter().enumerate().filter(|(i, _)| patterns & (1 << i) != 0);
        let mut settings: Vec<String> = all.map(|(_, pattern)| format!("exclude={pattern}")).collect();
        if settings.is_empty() {
            settings.push("exclude=off".into());
        }
        let settings = Setting::all(&settings).map_err(|e| e.to_string())?;
        agree("policy", self.volume().set_policy(&settings, false), Ok(()))?;
        self.model.patterns = patterns;
        Ok(())
    }

    /// Until when a point made at `made` must stay, from all periods there ever were.
    pub fn immutable_until(&self, made: Timestamp) -> Timestamp {
        let ended = |i: usize| self.immutable.get(i + 1).is_some_and(|(next, _)| *next <= made);
        let steps = self.immutable.iter().enumerate().filter(|(i, _)| !ended(*i));
        let secs = steps.map(|(_, (_, secs))| *secs).max().unwrap_or(0);
        Timestamp { secs: made.secs + secs, ..made }
    }

    /// Takes points that were made by themselves into the model.
    fn adopt_new(&mut self, before: &BTreeMap<Lsn, (String, Timestamp, SnapshotKind)>) -> Outcome {
        for (lsn, (name, time, kind)) in points(&self.bench) {
            if before.contains_key(&lsn) {
                continue;
            }
            // A barrier: what was written before is committed.
            self.doubtful.clear();
            match kind {
                SnapshotKind::Scheduled => {
                    let model = self.model.clone();
                    let staged = BTreeSet::new();
                    self.snaps.push(Snap { name, lsn, hold: false, time, model, staged });
                }
                SnapshotKind::Mark => self.moments.push((lsn, self.model.clone())),
                kind => return Err(format!("{kind:?} {name} was made by itself")),
            }
        }
        Ok(())
    }

    pub fn keep(&mut self, minutes: u32) -> Outcome {
        self.bench.clock.advance(i64::from(minutes) * 60_000_000_000);
        let before = points(&self.bench);
        let mut rounds = std::mem::take(&mut self.rounds);
        let problems = keep(&self.bench, &mut rounds);
        self.rounds = rounds;
        if !problems.is_empty() {
            return Err(format!("{problems:?}"));
        }
        self.adopt_new(&before)?;
        let after = points(&self.bench);
        let policy = self.volume().policy().map_err(|e| e.to_string())?;
        let mut ever = before;
        ever.extend(after.clone());
        let all: Vec<(i64, SnapshotKind)> = ever.values().map(|(_, time, kind)| (time.secs, *kind)).collect();
        let now = self.now();
        for (i, (lsn, (name, time, _))) in ever.iter().enumerate() {
            let held = self.snaps.iter().any(|s| s.lsn == *lsn && s.hold);
            let immutable = self.immutable_until(*time) > now;
            let stays = held || immutable || stays(&policy, now.secs, &all, i);
            match (after.contains_key(lsn), stays) {
                (false, true) => return Err(format!("point {lsn} {name:?} should have stayed")),
                // Retention is worked off once a minute.
                (true, false) if minutes > 0 => return Err(format!("point {lsn} {name:?} should be gone")),
                _ => {}
            }
        }
        self.snaps.retain(|s| after.contains_key(&s.lsn));
        Ok(())
    }
}
