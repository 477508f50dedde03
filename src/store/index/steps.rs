//! The clock set back. Record times are mapped to a time that never runs backwards: it goes on with the clock, and
//! where the clock steps back it goes on from where it was. Time marks and points are compared by that time, so that
//! a later record is never taken for an older one. From the records alone, so that every index has the same steps.
//!
//! Between two steps is a *stretch*, in which the time is ahead of the clock by as much throughout.

use super::rows::{State, Step};
use crate::types::{Lsn, Timestamp};

/// By less than this the clock may run back without that counting as a step: adjustments of a running clock.
pub const STEP_NANOS_MIN: i64 = 2_000_000_000;
/// A step back of at least this is undone when the clock leaps ahead again to where it would be without it: it was wrong
/// meanwhile, as that of a machine which starts without the time. A lesser one might be a pause in which nothing changed.
const UNDONE_NANOS_MIN: i64 = 600_000_000_000;

/// What a moment means that somebody names by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// When the clock last said it.
    pub told: Timestamp,
    /// When it was, reckoned back from the clock as it is now.
    pub passed: Timestamp,
    /// The last step back since the clock said it.
    pub before: Option<Step>,
}

fn plus(time: Timestamp, nanos: i64) -> Timestamp {
    if nanos == 0 { time } else { Timestamp::from_nanos(time.as_nanos_saturating().saturating_add(nanos)) }
}

impl Step {
    /// By how much the time that never runs backwards is ahead of the clock from here on, in nanoseconds.
    fn ahead(&self) -> i64 {
        self.at.as_nanos_saturating().saturating_sub(self.set_to.as_nanos_saturating())
    }
}

/// The time between two steps.
struct Stretch {
    ahead: i64,
    /// What the clock said first; none of the first stretch.
    from: Option<Timestamp>,
    /// The step that ends it; none of the last.
    end: Option<Step>,
}

impl Stretch {
    fn all(steps: &[Step]) -> Vec<Stretch> {
        let begins = std::iter::once(None).chain(steps.iter().map(Some));
        let ends = steps.iter().map(|step| Some(*step)).chain([None]);
        begins
            .zip(ends)
            .map(|(begin, end)| Stretch {
                ahead: begin.map_or(0, Step::ahead),
                from: begin.map(|step| step.set_to),
                end,
            })
            .collect()
    }

    /// What the clock said last.
    fn to(&self) -> Option<Timestamp> {
        self.end.map(|step| plus(step.last, self.ahead.saturating_neg()))
    }

    fn holds(&self, moment: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= moment) && self.to().is_none_or(|to| moment <= to)
    }

    /// The step that ends it, if that was one back.
    fn set_back(&self) -> Option<Step> {
        self.end.filter(|step| self.to().is_some_and(|to| step.set_to < to))
    }
}

impl State {
    /// The time of a record (`lsn`) that never runs backwards, from what the clock said when it was made.
    pub fn time_of(&self, lsn: Lsn, clock: Timestamp) -> Timestamp {
        let step = self.steps.iter().rev().find(|step| step.lsn <= lsn);
        plus(clock, step.map_or(0, Step::ahead))
    }

    /// The step that a record is which is made now.
    pub(super) fn step_at(&self, clock: Timestamp) -> Option<Step> {
        if self.applied == Lsn::ZERO {
            return None;
        }
        let here = self.steps.last().map_or(0, Step::ahead);
        let earlier = std::iter::once(0).chain(self.steps.iter().map(Step::ahead));
        let earlier = earlier.filter(|ahead| here.saturating_sub(*ahead) >= UNDONE_NANOS_MIN);
        let undone = earlier.map(|ahead| plus(clock, ahead)).filter(|at| *at >= self.time).min();
        let at = undone.or_else(|| (self.behind(clock) >= STEP_NANOS_MIN).then_some(self.time))?;
        Some(Step { lsn: self.applied.next(), last: self.time, at, set_to: clock })
    }

    /// What a moment by the clock means, which says `now`.
    pub fn meaning(&self, moment: Timestamp, now: Timestamp) -> Meaning {
        let mut steps = self.steps.clone();
        steps.extend(self.step_at(now).filter(|step| step.at > step.last));
        let stretches = Stretch::all(&steps);

        // Where the clock leapt over the moment, the state is the one that it leapt from.
        let leapt_from = || {
            let earlier = stretches.iter().enumerate().map(|(i, s)| (s.to(), i));
            earlier.filter(|(to, _)| to.is_some_and(|to| to < moment)).max().map(|(_, i)| i)
        };
        let found = stretches.iter().rposition(|s| s.holds(moment)).or_else(leapt_from).unwrap_or(0);
        let since = stretches.get(found..).unwrap_or_default();
        let told = since.first().map_or(moment, |stretch| {
            let told = plus(moment, stretch.ahead);
            stretch.end.map_or(told, |end| told.min(end.last))
        });
        let passed = plus(moment, steps.last().map_or(0, Step::ahead));
        Meaning { told, passed, before: since.iter().rev().find_map(Stretch::set_back) }
    }

    /// What the clock said when the last record was made.
    pub fn clock(&self) -> Timestamp {
        plus(self.time, self.steps.last().map_or(0, |step| step.ahead().saturating_neg()))
    }

    /// The latest that the clock ever said, as far as is known, and the last record that was made by then.
    pub fn latest_clock(&self) -> (Timestamp, Lsn) {
        let stretches = Stretch::all(&self.steps);
        let ends = stretches.iter().filter_map(|s| Some((s.to()?, Lsn(s.end?.lsn.0.saturating_sub(1)))));
        ends.chain([(self.clock(), self.applied)]).max().unwrap_or_default()
    }

    /// By how many nanoseconds the clock stands before the last record.
    pub fn behind(&self, clock: Timestamp) -> i64 {
        self.clock().as_nanos_saturating().saturating_sub(clock.as_nanos_saturating())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    fn step(lsn: u64, last: i64, to: i64, set_to: i64) -> Step {
        Step { lsn: Lsn(lsn), last: at(last), at: at(to), set_to: at(set_to) }
    }

    fn meaning(state: &State, moment: i64, now: i64) -> (i64, i64, Option<u64>) {
        let Meaning { told, passed, before } = state.meaning(at(moment), at(now));
        (told.secs, passed.secs, before.map(|step| step.lsn.0))
    }

    #[test]
    fn moments_before_a_step_have_two_meanings_and_later_ones_one() {
        // 1000 to 1100, set back to 500, on to 900, set back to 700.
        let steps = vec![step(10, 1100, 1100, 500), step(20, 1500, 1500, 700)];
        let state = State { steps, time: at(1510), applied: Lsn(30), ..State::default() };
        assert_eq!(state.clock(), at(710));
        assert_eq!(state.latest_clock(), (at(1100), Lsn(9)));
        assert_eq!(state.behind(at(700)), 10_000_000_000);
        assert_eq!([9, 10, 20].map(|lsn| state.time_of(Lsn(lsn), at(800)).secs), [800, 1400, 1600]);
        assert_eq!(meaning(&state, 705, 720), (1505, 1505, None));
        assert_eq!(meaning(&state, 700, 720), (1500, 1500, None));
        assert_eq!(meaning(&state, 600, 720), (1200, 1400, Some(20)));
        assert_eq!(meaning(&state, 400, 720), (400, 1200, Some(20)));
        assert_eq!(state.step_at(at(600)), Some(step(31, 1510, 1510, 600)));
        assert_eq!(state.step_at(at(709)), None);
    }

    #[test]
    fn a_clock_that_was_behind_for_a_while_was_wrong() {
        // To 100,000, started with 50, and told the time after 20 seconds.
        let steps = vec![step(10, 100_000, 100_000, 50)];
        let mut state = State { steps, time: at(100_020), applied: Lsn(12), ..State::default() };
        let undone = step(13, 100_020, 100_500, 100_500);
        assert_eq!(state.step_at(at(100_500)), Some(undone));
        assert_eq!(state.step_at(at(100_010)), None, "not yet where it would be");
        for _ in 0..2 {
            assert_eq!(
                meaning(&state, 90_000, 100_501),
                (90_000, 90_000, Some(10)),
                "as if nothing had been"
            );
            assert_eq!(meaning(&state, 60, 100_501).0, 100_010, "when it said so last");
            assert_eq!(meaning(&state, 100_200, 100_501).0, 100_000);
            (state.time, state.applied) = (undone.at, undone.lsn);
            state.steps.push(undone);
        }
        assert_eq!(state.latest_clock(), (at(100_500), Lsn(13)));
    }

    #[test]
    fn a_pause_after_a_small_step_undoes_nothing() {
        let steps = vec![step(10, 1000, 1000, 990)];
        let state = State { steps, time: at(1000), applied: Lsn(12), ..State::default() };
        assert_eq!(state.step_at(at(5000)), None);
    }

    #[test]
    fn rows_of_steps_are_read_back() {
        let step = Step { last: Timestamp { secs: -5, nanos: 3 }, ..step(7, 0, 1, 2) };
        assert_eq!(Step::decode(Lsn(7), &step.encode()), Ok(step));
        assert!(Step::decode(Lsn(7), &[0; 35]).is_err() && Step::decode(Lsn(7), &[0; 37]).is_err());
    }
}
