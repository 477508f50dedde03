//! The clock set back. Record times are mapped to a time that never runs backwards: it goes on with the clock, and
//! where the clock steps back it goes on from where it was. Time marks and points are compared by that time, so that
//! a later record is never taken for an older one. From the records alone, so that every index has the same steps.

use super::rows::{State, Step};
use crate::types::{Lsn, Timestamp};

/// By less than this the clock may run back without that counting as a step: adjustments of a running clock.
pub const STEP_NANOS_MIN: i64 = 2_000_000_000;

impl Step {
    /// By how much the time that never runs backwards is ahead of the clock from here on, in nanoseconds.
    fn ahead(&self) -> i64 {
        self.at.as_nanos_saturating().saturating_sub(self.set_to.as_nanos_saturating())
    }
}

/// What a moment means that somebody names by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// When the clock last said it.
    pub told: Timestamp,
    /// When it was, reckoned back from the clock as it is now.
    pub passed: Timestamp,
    /// The last step back, if the moment lies before it.
    pub before: Option<Step>,
}

fn plus(time: Timestamp, nanos: i64) -> Timestamp {
    if nanos == 0 { time } else { Timestamp::from_nanos(time.as_nanos_saturating().saturating_add(nanos)) }
}

impl State {
    /// The time of a record (`lsn`) that never runs backwards, from what the clock said when it was made.
    pub fn time_of(&self, lsn: Lsn, clock: Timestamp) -> Timestamp {
        let step = self.steps.iter().rev().find(|step| step.lsn <= lsn);
        plus(clock, step.map_or(0, Step::ahead))
    }

    /// What a moment by the clock means.
    pub fn meaning(&self, moment: Timestamp) -> Meaning {
        let since = |step: Option<&Step>| plus(moment, step.map_or(0, Step::ahead));
        let last = self.steps.last();
        Meaning {
            told: since(self.steps.iter().rev().find(|step| step.set_to <= moment)),
            passed: since(last),
            before: last.filter(|step| moment < step.set_to).copied(),
        }
    }

    /// What the clock said when the last record was made.
    pub fn clock(&self) -> Timestamp {
        plus(self.time, self.steps.last().map_or(0, |step| step.ahead().saturating_neg()))
    }

    /// The latest that the clock ever said, as far as is known, and the last record that was made by then.
    pub fn latest_clock(&self) -> (Timestamp, Lsn) {
        let before = self.steps.iter().scan(0, |ahead, step| {
            let said = plus(step.at, i64::saturating_neg(*ahead));
            *ahead = step.ahead();
            Some((said, Lsn(step.lsn.0.saturating_sub(1))))
        });
        before.chain([(self.clock(), self.applied)]).max().unwrap_or_default()
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

    #[test]
    fn moments_before_a_step_have_two_meanings_and_later_ones_one() {
        // 1000 to 1100, set back to 500, on to 900, set back to 700.
        let steps = vec![
            Step { lsn: Lsn(10), at: at(1100), set_to: at(500) },
            Step { lsn: Lsn(20), at: at(1500), set_to: at(700) },
        ];
        let state = State { steps, time: at(1510), applied: Lsn(30), ..State::default() };
        assert_eq!(state.clock(), at(710));
        assert_eq!(state.latest_clock(), (at(1100), Lsn(9)));
        assert_eq!(state.behind(at(700)), 10_000_000_000);
        assert_eq!([9, 10, 20].map(|lsn| state.time_of(Lsn(lsn), at(800)).secs), [800, 1400, 1600]);
        let meaning = |secs| {
            let Meaning { told, passed, before } = state.meaning(at(secs));
            (told.secs, passed.secs, before.map(|step| step.lsn.0))
        };
        assert_eq!(meaning(705), (1505, 1505, None));
        assert_eq!(meaning(700), (1500, 1500, None));
        assert_eq!(meaning(600), (1200, 1400, Some(20)));
        assert_eq!(meaning(400), (400, 1200, Some(20)));
    }

    #[test]
    fn rows_of_steps_are_read_back() {
        let step = Step { lsn: Lsn(7), at: Timestamp { secs: -5, nanos: 3 }, set_to: at(2) };
        assert_eq!(Step::decode(Lsn(7), &step.encode()), Ok(step));
        assert!(Step::decode(Lsn(7), &[0; 23]).is_err() && Step::decode(Lsn(7), &[0; 25]).is_err());
    }
}
