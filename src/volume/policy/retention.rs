//! Which points retention lets go: a pure function of the policy, the time and the points.

use std::collections::HashSet;

use crate::store::model::{Policy, Retention, SnapshotKind};
use crate::types::{Lsn, Timestamp};

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// For how long every scheduled snapshot stays, and a mark a minute.
pub const RECENT_SECS: i64 = DAY;

/// A point as retention sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its place.
    pub lsn: Lsn,
    /// When it was made.
    pub time: Timestamp,
    /// Who made it.
    pub kind: SnapshotKind,
}

/// The number of the minute that a moment lies in.
pub fn minute(time: Timestamp) -> i64 {
    time.secs.div_euclid(MINUTE)
}

/// The points that may go, in the order given (oldest first). Those that somebody asked for stay; a schedule's
/// stay for a day (or for the continuous window, if that is longer), and then the last one of each of the most
/// recent hours, days, … that have one, as many as the policy says; marks stay for the continuous window, one a
/// minute for a day and one an hour beyond. Holds and immutability are the caller's.
pub fn expired(policy: &Policy, now: Timestamp, points: &[Candidate]) -> Vec<Lsn> {
    let continuous = i64::try_from(policy.continuous_secs).unwrap_or(i64::MAX);
    let age = |point: &Candidate| now.secs.saturating_sub(point.time.secs);
    let kept = kept_by_schedule(&policy.retention, points);
    let mut hours = HashSet::new();
    let mut gone = Vec::new();
    for point in points.iter().rev() {
        let stays = match point.kind {
            SnapshotKind::Scheduled => age(point) < RECENT_SECS.max(continuous) || kept.contains(&point.lsn),
            SnapshotKind::Mark if age(point) >= continuous => false,
            SnapshotKind::Mark => age(point) < RECENT_SECS || hours.insert(point.time.secs.div_euclid(HOUR)),
            SnapshotKind::Manual | SnapshotKind::OnClose | SnapshotKind::BeforeRestore => true,
        };
        if !stays {
            gone.push(point.lsn);
        }
    }
    gone.reverse();
    gone
}

fn kept_by_schedule(retention: &Retention, points: &[Candidate]) -> HashSet<Lsn> {
    type Period = fn(i64) -> i64;
    let rules: [(u32, Period); 5] = [
        (retention.hourly, |secs| secs.div_euclid(HOUR)),
        (retention.daily, |secs| secs.div_euclid(DAY)),
        // The epoch was a Thursday; ISO weeks begin on Mondays.
        (retention.weekly, |secs| (secs.div_euclid(DAY) + 3).div_euclid(7)),
        (retention.monthly, |secs| month(secs).0),
        (retention.yearly, |secs| month(secs).1),
    ];
    let mut kept = HashSet::new();
    for (count, period) in rules {
        let mut last = None;
        let mut left = count;
        for point in points.iter().rev().filter(|p| p.kind == SnapshotKind::Scheduled) {
            let of = Some(period(point.time.secs));
            if of == last {
                continue;
            }
            if left == 0 {
                break;
            }
            (last, left) = (of, left - 1);
            kept.insert(point.lsn);
        }
    }
    kept
}

/// The number of a moment's month, counted from the year 0, and its year, in UTC.
fn month(secs: i64) -> (i64, i64) {
    let edge = if secs < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
    let moment = jiff::Timestamp::from_second(secs).unwrap_or(edge).to_zoned(jiff::tz::TimeZone::UTC);
    let year = i64::from(moment.year());
    (year * 12 + i64::from(moment.month()), year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        crate::types::point::parse_rfc3339(text).unwrap().secs
    }

    fn points(kind: SnapshotKind, times: impl IntoIterator<Item = i64>) -> Vec<Candidate> {
        let numbered = times.into_iter().zip(1..);
        numbered
            .map(|(secs, n)| Candidate { lsn: Lsn(n), time: Timestamp { secs, nanos: 0 }, kind })
            .collect()
    }

    fn left(policy: &Policy, now: i64, points: &[Candidate]) -> Vec<i64> {
        let gone = expired(policy, Timestamp { secs: now, nanos: 0 }, points);
        points.iter().filter(|p| !gone.contains(&p.lsn)).map(|p| p.time.secs).collect()
    }

    fn retention(hourly: u32, daily: u32, weekly: u32, monthly: u32, yearly: u32) -> Policy {
        let retention = Retention { hourly, daily, weekly, monthly, yearly };
        Policy { retention, continuous_secs: 0, ..Policy::default() }
    }

    #[test]
    fn the_last_of_each_of_the_most_recent_periods_stays() {
        let now = at("2026-11-21T12:00:00Z");
        let all = points(SnapshotKind::Scheduled, (0..24 * 100).map(|h| now - (24 * 100 - h) * HOUR));
        let left = left(&retention(0, 3, 2, 3, 1), now, &all);
        let old: Vec<i64> = left.into_iter().filter(|t| now - t >= DAY).collect();
        let expected =
            ["2026-09-30T23:00:00Z", "2026-10-31T23:00:00Z", "2026-11-15T23:00:00Z", "2026-11-19T23:00:00Z"];
        assert_eq!(old, expected.map(at));
    }

    #[test]
    fn periods_without_a_snapshot_do_not_count() {
        let now = at("2026-11-21T12:00:00Z");
        let all =
            points(SnapshotKind::Scheduled, [now - 90 * DAY, now - 60 * DAY, now - 50 * DAY, now - 2 * DAY]);
        assert_eq!(
            left(&retention(3, 0, 0, 0, 0), now, &all),
            [now - 60 * DAY, now - 50 * DAY, now - 2 * DAY]
        );
        assert_eq!(left(&retention(0, 0, 0, 0, 0), now, &all), Vec::<i64>::new());
    }

    #[test]
    fn what_was_asked_for_stays() {
        for kind in [SnapshotKind::Manual, SnapshotKind::OnClose, SnapshotKind::BeforeRestore] {
            assert_eq!(left(&retention(0, 0, 0, 0, 0), 1_000_000_000, &points(kind, [0, 5])), [0, 5]);
        }
    }

    #[test]
    fn marks_stay_for_the_window_and_thin_out_after_a_day() {
        let now = at("2026-11-21T12:00:00Z");
        let all = points(SnapshotKind::Mark, (0..3 * 24 * 60).map(|m| now - (3 * 24 * 60 - m) * MINUTE));
        let policy = Policy { continuous_secs: 2 * DAY as u64, ..Policy::default() };
        let left = left(&policy, now, &all);
        assert_eq!(left.iter().filter(|t| now - **t < DAY).count(), 24 * 60 - 1);
        let older: Vec<i64> = left.into_iter().filter(|t| now - t >= DAY).collect();
        assert!(older.iter().all(|t| now - t < 2 * DAY));
        assert!(older.windows(2).all(|w| w[1].div_euclid(HOUR) > w[0].div_euclid(HOUR)), "two of one hour");
        assert!((23..=25).contains(&older.len()), "{}", older.len());
    }
}
