//! What a volume does by itself: when points are made and when they go. Part of the journal, so that every
//! replica keeps the same history.

use super::snapshot::get_text;
use crate::types::Timestamp;
use crate::types::limits::{
    GLOB_BYTES_MAX, GLOBS_MAX, IMMUTABLE_STEPS_MAX, POLICY_SECS_MAX, RETENTION_MAX, WEBHOOK_BYTES_MAX,
};
use crate::types::wire::{Decoder, Encoder, WireError};

/// A part of the filesystem that the store lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Hundredths of its size, 0 to 100.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl Share {
    /// What it comes to on a filesystem of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Share::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
            Share::Bytes(bytes) => bytes,
        }
    }

    fn encode(self, e: &mut Encoder) {
        match self {
            Share::Percent(percent) => e.u8(0).u64(u64::from(percent)),
            Share::Bytes(bytes) => e.u8(1).u64(bytes),
        };
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Share, WireError> {
        match (d.u8()?, d.u64()?) {
            (0, percent @ 0..=100) => Ok(Share::Percent(percent as u8)),
            (1, bytes) => Ok(Share::Bytes(bytes)),
            _ => Err(WireError::Bad("share")),
        }
    }
}

/// For how many of the most recent hours, days, … that have one the last scheduled snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Hours.
    pub hourly: u32,
    /// Days, in UTC.
    pub daily: u32,
    /// ISO weeks.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
}

/// From a moment on, the immutable period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImmutableStep {
    /// When it was set.
    pub since: Timestamp,
    /// Seconds; 0: none.
    pub secs: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Seconds between scheduled snapshots; 0: none are taken.
    pub every_secs: u64,
    /// Seconds back from now for which every moment stays readable: to the record for a short time (a setting of
    /// the store), to the minute after that; 0: none.
    pub continuous_secs: u64,
    /// Which scheduled snapshots stay.
    pub retention: Retention,
    /// What history may take at most.
    pub history_max: Share,
    /// What is to stay free.
    pub free_min: Share,
    /// Globs of files of which each completed version gets a snapshot.
    pub on_close: Vec<String>,
    /// Where alerts are sent: the address of a web hook, empty for none.
    pub webhook: String,
    /// The immutable periods that still matter to some point, oldest first. Set through `Policy::set_immutable`.
    pub immutable: Vec<ImmutableStep>,
    /// Globs of what gets no history when it is made, with all that is made below.
    pub exclude: Vec<String>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            every_secs: 3600,
            continuous_secs: 24 * 3600,
            retention: Retention { hourly: 48, daily: 14, weekly: 8, monthly: 12, yearly: 0 },
            history_max: Share::Percent(20),
            free_min: Share::Percent(10),
            on_close: Vec::new(),
            webhook: String::new(),
            immutable: Vec::new(),
            exclude: Vec::new(),
        }
    }
}

fn encode_globs(globs: &[String], e: &mut Encoder) {
    e.varint(globs.len() as u64);
    for glob in globs {
        e.bytes(glob.as_bytes());
    }
}

fn decode_globs(d: &mut Decoder<'_>) -> Result<Vec<String>, WireError> {
    let count = d.count(GLOBS_MAX, "glob count")?;
    (0..count).map(|_| get_text(d, GLOB_BYTES_MAX)).collect()
}

impl Policy {
    /// The immutable period in force: seconds, 0 for none.
    pub fn immutable_secs(&self) -> u64 {
        self.immutable.last().map_or(0, |step| step.secs)
    }

    /// Sets the immutable period from `now` on. What was in force before stays so for what is older, unless the
    /// new one is longer.
    ///
    /// # Errors
    /// When it was shortened so often that one more change cannot be remembered.
    pub fn set_immutable(&mut self, now: Timestamp, secs: u64) -> Result<(), &'static str> {
        if self.immutable_secs() == secs {
            return Ok(());
        }
        let ends: Vec<Timestamp> = self.immutable.iter().skip(1).map(|s| s.since).chain([now]).collect();
        let steps = self.immutable.iter().zip(ends);
        // A step matters while something made under it may be younger than it asks, and no later one asks for more.
        let matters =
            steps.filter(|(s, end)| end.secs.saturating_add_unsigned(s.secs) > now.secs && s.secs > secs);
        let mut steps: Vec<ImmutableStep> = matters.map(|(step, _)| *step).collect();
        if steps.len() >= IMMUTABLE_STEPS_MAX {
            return Err(
                "the immutable period was shortened too often; wait until some of the periods have run out",
            );
        }
        steps.push(ImmutableStep { since: now, secs });
        self.immutable = steps;
        Ok(())
    }

    /// Until when a point made at `made` must not go; none where no period guards it, also if the clock was set
    /// back since.
    pub fn immutable_until(&self, made: Timestamp) -> Option<Timestamp> {
        let ended_before = |at: usize| self.immutable.get(at + 1).is_some_and(|next| next.since <= made);
        let steps = self.immutable.iter().enumerate();
        let secs = steps.filter(|(at, _)| !ended_before(*at)).map(|(_, step)| step.secs).max();
        let guards = secs.filter(|secs| *secs > 0);
        guards.map(|secs| Timestamp { secs: made.secs.saturating_add_unsigned(secs), nanos: made.nanos })
    }

    /// From when on nothing that was there may go yet, as of `now`; none while no period guards anything.
    pub fn immutable_since(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = self.immutable.iter().skip(1).map(|s| Some(s.since)).chain([None]);
        let guards = self.immutable.iter().zip(ends).filter(|(step, _)| step.secs > 0).map(|(step, end)| {
            let since = Timestamp { secs: now.secs.saturating_sub_unsigned(step.secs), nanos: now.nanos };
            (since, end)
        });
        guards.filter(|(since, end)| end.is_none_or(|end| *since < end)).map(|(since, _)| since).min()
    }

    pub(in crate::store) fn encode(&self, e: &mut Encoder) {
        let r = &self.retention;
        e.u64(self.every_secs).u64(self.continuous_secs);
        e.u32(r.hourly).u32(r.daily).u32(r.weekly).u32(r.monthly).u32(r.yearly);
        self.history_max.encode(e);
        self.free_min.encode(e);
        encode_globs(&self.on_close, e);
        e.bytes(self.webhook.as_bytes());
        e.varint(self.immutable.len() as u64);
        for step in &self.immutable {
            e.i64(step.since.secs).u32(step.since.nanos).u64(step.secs);
        }
        encode_globs(&self.exclude, e);
    }

    /// Reads what [`Policy::encode`] wrote.
    pub(in crate::store) fn decode(d: &mut Decoder<'_>) -> Result<Policy, WireError> {
        let secs = |d: &mut Decoder<'_>| match d.u64()? {
            secs if secs <= POLICY_SECS_MAX => Ok(secs),
            _ => Err(WireError::Bad("period")),
        };
        let kept = |d: &mut Decoder<'_>| match d.u32()? {
            kept if kept <= RETENTION_MAX => Ok(kept),
            _ => Err(WireError::Bad("retention")),
        };
        let periods = (secs(d)?, secs(d)?);
        let retention = Retention {
            hourly: kept(d)?,
            daily: kept(d)?,
            weekly: kept(d)?,
            monthly: kept(d)?,
            yearly: kept(d)?,
        };
        let (history_max, free_min) = (Share::decode(d)?, Share::decode(d)?);
        let on_close = decode_globs(d)?;
        let webhook = get_text(d, WEBHOOK_BYTES_MAX)?;
        let count = d.count(IMMUTABLE_STEPS_MAX, "step count")?;
        let immutable = (0..count)
            .map(|_| {
                let since = Timestamp { secs: d.i64()?, nanos: d.u32()? };
                Ok(ImmutableStep { since, secs: secs(d)? })
            })
            .collect::<Result<_, WireError>>()?;
        let (every_secs, continuous_secs) = periods;
        let exclude = decode_globs(d)?;
        Ok(Policy {
            every_secs,
            continuous_secs,
            retention,
            history_max,
            free_min,
            on_close,
            webhook,
            immutable,
            exclude,
        })
    }

    /// Reads all of a row.
    pub(in crate::store) fn decode_row(row: &[u8]) -> Result<Policy, WireError> {
        let mut d = Decoder::new(row);
        let policy = Policy::decode(&mut d)?;
        d.end().map(|()| policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    #[test]
    fn a_shorter_immutable_period_counts_only_for_what_comes_after() {
        let mut policy = Policy::default();
        assert_eq!(policy.immutable_until(at(5)), None);
        policy.set_immutable(at(1000), 700).unwrap();
        assert_eq!(policy.immutable_until(at(900)), Some(at(1600)), "what is there already is guarded, too");
        policy.set_immutable(at(1100), 10).unwrap();
        assert_eq!(policy.immutable_until(at(1050)), Some(at(1750)), "made before the change");
        assert_eq!(policy.immutable_until(at(1100)), Some(at(1110)));
        policy.set_immutable(at(1200), 5000).unwrap();
        assert_eq!(policy.immutable_until(at(1100)), Some(at(6100)), "a longer one counts for all");
        policy.set_immutable(at(1201), 0).unwrap();
        assert_eq!(policy.immutable_until(at(1150)), Some(at(6150)));
        assert_eq!(policy.immutable_until(at(1201)), None);
        assert_eq!(policy.immutable_secs(), 0);
    }

    #[test]
    fn steps_that_guard_nothing_any_more_go() {
        let mut policy = Policy::default();
        for n in 0..1000 {
            policy.set_immutable(at(n * 100), 1 + n.cast_unsigned() % 50).unwrap();
        }
        assert!(policy.immutable.len() <= 2, "{:?}", policy.immutable);
    }

    #[test]
    fn encoding_round_trips() {
        let mut policy = Policy { on_close: vec!["a/**/*.pt".into()], ..Policy::default() };
        policy.free_min = Share::Bytes(77);
        policy.webhook = "https://example.com/x".into();
        policy.exclude = vec!["scratch/**".into(), "**/*.tmp".into()];
        policy.set_immutable(at(9), 8).unwrap();
        let mut e = Encoder::new();
        policy.encode(&mut e);
        let bytes = e.finish();
        assert_eq!(Policy::decode_row(&bytes), Ok(policy));
        assert!(Policy::decode_row(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn what_must_be_remembered_is_bounded() {
        let mut policy = Policy::default();
        let periods = (1..2 * IMMUTABLE_STEPS_MAX as u64).rev().map(|n| n * 1_000_000);
        let refused = periods.zip(0..).filter(|(secs, now)| policy.set_immutable(at(*now), *secs).is_err());
        assert!(refused.count() > 0 && policy.immutable.len() <= IMMUTABLE_STEPS_MAX);
    }

    #[test]
    fn what_lived_within_a_period_in_force_is_guarded() {
        let mut policy = Policy::default();
        assert_eq!(policy.immutable_since(at(5000)), None);
        policy.set_immutable(at(1000), 700).unwrap();
        assert_eq!(policy.immutable_since(at(5000)), Some(at(4300)));
        policy.set_immutable(at(5000), 0).unwrap();
        assert_eq!(policy.immutable_since(at(5600)), Some(at(4900)), "what was there under it stays guarded");
        assert_eq!(policy.immutable_since(at(5800)), None);
    }

    proptest! {
        #[test]
        fn hostile_policies_are_refused(bytes: Vec<u8>) {
            let _ = Policy::decode_row(&bytes);
        }

        #[test]
        fn no_change_ever_lets_an_older_point_go_sooner(
            steps in prop::collection::vec((1i64..1000, 0u64..5000), 1..12),
            made in 0i64..6000,
        ) {
            let (mut policy, mut now) = (Policy::default(), 0);
            for (later, secs) in steps {
                now += later;
                let before = policy.immutable_until(at(made)).map_or(made, |t| t.secs);
                policy.set_immutable(at(now), secs).unwrap();
                let after = policy.immutable_until(at(made)).map_or(made, |t| t.secs);
                // Only a step that has run out may be dropped.
                prop_assert!(made >= now || after >= before || before <= now, "{before} {after} {now}");
            }
        }
    }
}
