//! Bursts: much more of a volume is removed or written over than is usual for it, as when a program encrypts
//! files, or a script removes the wrong tree.
//!
//! What happens is counted over the last ten minutes and compared with the highest such count of the last seven
//! days. It is a burst when it is over three times that, and over a part of the volume that is worth a look
//! anyway: a larger one in the first day, while nothing is known.

use std::collections::VecDeque;

use crate::types::text::bytes_text;
use crate::types::wire::{Decoder, Encoder, WireError};

/// Seconds that are counted together.
const SLOT_SECS: i64 = 10;
/// Seconds of the sum that is compared.
pub const SPAN_SECS: i64 = 600;
/// For how many hours the highest sums are remembered.
const HOURS: usize = 7 * 24;
/// Hours of watching after which what is usual is known.
const LEARNING_HOURS: i64 = 24;
/// What is usual may be exceeded by this factor.
const FACTOR: u64 = 3;
/// The hours just past of which the sums do not count as usual yet: a burst must not hide itself.
const FRESH_HOURS: i64 = 2;
/// A volume of fewer files, or a burst of fewer, is never worth a word.
const FILES_MIN: u64 = 1000;
/// As [`FILES_MIN`], in bytes.
const BYTES_MIN: u64 = 256 << 20;
/// Seconds for which a burst that has ended is still told.
const TOLD_SECS: i64 = 24 * 3600;
const VERSION: u8 = 1;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Files that lost their last name, by removal or by another that was renamed over them.
    RemovedFiles,
    /// Their bytes.
    RemovedBytes,
    /// Bytes of files that were written over or cut off.
    OverwrittenBytes,
    /// Bytes that cannot be compressed, written over others: what encryption in place does.
    ScrambledBytes,
}

/// Every kind.
pub const KINDS: [Kind; 4] =
    [Kind::RemovedFiles, Kind::RemovedBytes, Kind::OverwrittenBytes, Kind::ScrambledBytes];

impl Kind {
    /// As metrics and messages to machines call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::RemovedFiles => "removed_files",
            Kind::RemovedBytes => "removed_bytes",
            Kind::OverwrittenBytes => "overwritten_bytes",
            Kind::ScrambledBytes => "scrambled_bytes",
        }
    }

    /// As metrics explain it.
    pub fn help(self) -> &'static str {
        match self {
            Kind::RemovedFiles => "Files that were removed, or replaced by renaming.",
            Kind::RemovedBytes => "Bytes of files that were removed, or replaced by renaming.",
            Kind::OverwrittenBytes => "Bytes of files that were written over or cut off.",
            Kind::ScrambledBytes => "Bytes that cannot be compressed, written over others.",
        }
    }

    /// What happened to so much of it, as a sentence begins.
    pub fn happened(self, count: u64) -> String {
        match self {
            Kind::RemovedFiles => format!("{count} files were removed or replaced"),
            Kind::RemovedBytes => format!("files of {} were removed or replaced", self.amount(count)),
            Kind::OverwrittenBytes => format!("{} were written over or cut off", self.amount(count)),
            Kind::ScrambledBytes => {
                format!("{} were written over with bytes that look encrypted", self.amount(count))
            }
        }
    }

    /// So much of it, for people.
    pub fn amount(self, count: u64) -> String {
        if self == Kind::RemovedFiles { format!("{count} files") } else { bytes_text(count) }
    }

    /// The hundredths of the volume from which on it may be a burst: once it is known what is usual, and before.
    fn percent(self, learning: bool) -> u64 {
        match (self, learning) {
            (Kind::ScrambledBytes, false) => 1,
            (Kind::ScrambledBytes, true) => 10,
            (_, false) => 5,
            (Kind::OverwrittenBytes, true) => 50,
            (_, true) => 25,
        }
    }

    fn least(self, size: Size, learning: bool) -> u64 {
        let (min, all) = match self {
            Kind::RemovedFiles => (FILES_MIN, size.files),
            _ => (BYTES_MIN, size.bytes),
        };
        min.max((u128::from(all) * u128::from(self.percent(learning)) / 100) as u64)
    }
}

/// How much of each kind happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; KINDS.len()]);

impl Tally {
    /// Adds to one kind.
    pub fn add(&mut self, kind: Kind, count: u64) {
        if let Some(of) = self.0.get_mut(kind as usize) {
            *of = of.saturating_add(count);
        }
    }

    /// What came after `earlier`.
    pub fn since(&self, earlier: &Tally) -> Tally {
        let mut added = *self;
        added.0.iter_mut().zip(earlier.0).for_each(|(now, then)| *now = now.saturating_sub(then));
        added
    }

    /// Of one kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0.get(kind as usize).copied().unwrap_or(0)
    }
}

/// How large a volume is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Inodes.
    pub files: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Of what.
    pub kind: Kind,
    /// The second in which the limit was passed.
    pub since: i64,
    /// The last second in which it was.
    pub last: i64,
    /// The highest sum.
    pub peak: u64,
    /// What was exceeded.
    pub limit: u64,
}

impl Burst {
    /// Whether it goes on at `now`.
    pub fn goes_on(&self, now: i64) -> bool {
        now.saturating_sub(self.last) <= SPAN_SECS
    }
}

/// One kind's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Series {
    /// Counts of the last minutes, by their slot.
    slots: VecDeque<(i64, u64)>,
    /// The highest sum of each hour.
    hours: VecDeque<(i64, u64)>,
    burst: Option<Burst>,
}

/// The watch over one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// The hour since which it watches.
    since_hour: Option<i64>,
    series: [Series; KINDS.len()],
}

impl Series {
    /// Counts, and returns the sum of the last minutes.
    fn count(&mut self, now: i64, count: u64) -> u64 {
        let slot = now.div_euclid(SLOT_SECS);
        match self.slots.back_mut() {
            Some((last, of)) if *last >= slot => *of = of.saturating_add(count),
            _ => self.slots.push_back((slot, count)),
        }
        // Of the future are those from before a clock was set back.
        self.slots.retain(|(at, _)| *at > slot - SPAN_SECS / SLOT_SECS && *at <= slot);
        let sum = self.slots.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
        let hour = now.div_euclid(3600);
        self.hours.retain(|(at, _)| *at > hour - HOURS as i64 && *at <= hour);
        match self.hours.back_mut() {
            Some((last, peak)) if *last == hour => *peak = sum.max(*peak),
            _ => self.hours.push_back((hour, sum)),
        }
        sum
    }

    fn usual(&self, now: i64) -> u64 {
        let known = now.div_euclid(3600) - FRESH_HOURS;
        self.hours.iter().filter(|(hour, _)| *hour <= known).map(|(_, peak)| *peak).max().unwrap_or(0)
    }
}

impl Watch {
    /// Takes in what happened since the last call. Returns the bursts that began with it.
    pub fn observe(&mut self, now: i64, size: Size, happened: &Tally) -> Vec<Burst> {
        let hour = now.div_euclid(3600);
        let since = *self.since_hour.get_or_insert(hour);
        let learning = hour.saturating_sub(since) < LEARNING_HOURS;
        let mut began = Vec::new();
        for (kind, series) in KINDS.into_iter().zip(&mut self.series) {
            let sum = series.count(now, happened.of(kind));
            // What was removed counts as part of what there was.
            let before = Size {
                files: size.files.saturating_add(if kind == Kind::RemovedFiles { sum } else { 0 }),
                bytes: size.bytes.saturating_add(if kind == Kind::RemovedBytes { sum } else { 0 }),
            };
            let limit = kind.least(before, learning).max(series.usual(now).saturating_mul(FACTOR));
            if sum > limit {
                match series.burst.as_mut().filter(|burst| burst.goes_on(now)) {
                    Some(burst) => (burst.last, burst.peak) = (now, sum.max(burst.peak)),
                    None => {
                        let burst = Burst { kind, since: now, last: now, peak: sum, limit };
                        series.burst = Some(burst);
                        began.push(burst);
                    }
                }
            }
            series.burst = series.burst.filter(|burst| now.saturating_sub(burst.last) < TOLD_SECS);
        }
        began
    }

    /// The bursts of the last day.
    pub fn bursts(&self) -> impl Iterator<Item = Burst> + '_ {
        self.series.iter().filter_map(|series| series.burst)
    }

    /// What a restart must not forget.
    pub fn encode(&self, e: &mut Encoder) {
        e.u8(VERSION).i64(self.since_hour.unwrap_or(i64::MIN));
        for series in &self.series {
            e.varint(series.hours.len() as u64);
            for (hour, peak) in &series.hours {
                e.i64(*hour).u64(*peak);
            }
            e.u8(u8::from(series.burst.is_some()));
            if let Some(burst) = &series.burst {
                e.i64(burst.since).i64(burst.last).u64(burst.peak).u64(burst.limit);
            }
        }
    }

    /// Reads it back.
    ///
    /// # Errors
    /// Anything else than what [`Watch::encode`] made.
    pub fn decode(d: &mut Decoder<'_>) -> Result<Watch, WireError> {
        if d.u8()? != VERSION {
            return Err(WireError::Bad("version"));
        }
        let since = d.i64()?;
        let mut watch = Watch { since_hour: (since != i64::MIN).then_some(since), ..Watch::default() };
        for (kind, series) in KINDS.into_iter().zip(&mut watch.series) {
            for _ in 0..d.count(HOURS, "hours")? {
                series.hours.push_back((d.i64()?, d.u64()?));
            }
            series.burst = match d.u8()? {
                0 => None,
                1 => Some(Burst { kind, since: d.i64()?, last: d.i64()?, peak: d.u64()?, limit: d.u64()? }),
                _ => return Err(WireError::Bad("burst")),
            };
        }
        Ok(watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: Size = Size { files: 100_000, bytes: 1 << 40 };
    const DAY: i64 = 24 * 3600;

    fn tally(kind: Kind, count: u64) -> Tally {
        let mut tally = Tally::default();
        tally.add(kind, count);
        tally
    }

    /// A watch that has seen, for so many days, `count` each hour.
    fn usual(kind: Kind, count: u64, days: i64) -> (Watch, i64) {
        let mut watch = Watch::default();
        for hour in 0..days * 24 {
            assert_eq!(watch.observe(hour * 3600, SIZE, &tally(kind, count)), []);
        }
        (watch, days * DAY)
    }

    #[test]
    fn what_is_usual_is_no_burst_and_three_times_as_much_is() {
        let kind = Kind::RemovedFiles;
        let (mut watch, now) = usual(kind, 20_000, 3);
        assert_eq!(watch.observe(now, SIZE, &tally(kind, 59_000)), []);
        let began = watch.observe(now + 1, SIZE, &tally(kind, 2_000));
        assert_eq!(began, [Burst { kind, since: now + 1, last: now + 1, peak: 61_000, limit: 60_000 }]);
        assert_eq!(watch.observe(now + 2, SIZE, &tally(kind, 5)), [], "said once");
        assert_eq!(watch.bursts().map(|b| b.peak).collect::<Vec<_>>(), [61_005]);
        assert_eq!(watch.observe(now + DAY + 3, SIZE, &Tally::default()), []);
        assert_eq!(watch.bursts().count(), 0, "told for a day");
    }

    #[test]
    fn slow_and_small_things_are_none() {
        let mut watch = Watch::default();
        for second in 0..7200 {
            assert_eq!(watch.observe(second, SIZE, &tally(Kind::RemovedFiles, 1)), []);
        }
        let small = Size { files: 800, bytes: 1 << 20 };
        assert_eq!(watch.observe(7300, small, &tally(Kind::RemovedBytes, 1 << 20)), [], "a small volume");
    }

    #[test]
    fn a_new_volume_is_told_of_what_takes_a_good_part_of_it() {
        let quarter = SIZE.bytes / 4;
        let mut watch = Watch::default();
        assert_eq!(watch.observe(0, SIZE, &tally(Kind::OverwrittenBytes, quarter)), []);
        assert_eq!(watch.observe(1, SIZE, &tally(Kind::ScrambledBytes, quarter)).len(), 1);
        // Half of it is gone when it is looked at.
        let left = Size { files: SIZE.files / 2, ..SIZE };
        assert_eq!(watch.observe(2, left, &tally(Kind::RemovedFiles, SIZE.files / 2)).len(), 1);
    }

    #[test]
    fn a_burst_does_not_make_itself_usual_while_it_lasts() {
        let kind = Kind::ScrambledBytes;
        let (mut watch, mut now) = usual(kind, 0, 2);
        let tenth = SIZE.bytes / 10;
        assert_eq!(watch.observe(now, SIZE, &tally(kind, tenth)).len(), 1);
        for _ in 0..100 {
            now += 60;
            assert_eq!(watch.observe(now, SIZE, &tally(kind, tenth)), [], "it goes on");
        }
        assert!(watch.bursts().all(|burst| burst.last == now));
    }

    #[test]
    fn a_clock_that_is_set_back_or_far_ahead_forgets_and_goes_on() {
        let kind = Kind::RemovedFiles;
        let (mut watch, now) = usual(kind, 30_000, 2);
        assert_eq!(watch.observe(now - DAY, SIZE, &tally(kind, 30_000)), []);
        assert_eq!(watch.observe(now + 400 * DAY, SIZE, &tally(kind, 30_000)).len(), 1);
        assert!(watch.series.iter().all(|s| s.hours.len() <= HOURS && s.slots.len() <= 60));
    }

    #[test]
    fn a_restart_forgets_nothing_but_the_last_minutes() {
        let (mut watch, now) = usual(Kind::RemovedFiles, 20_000, 2);
        watch.observe(now, SIZE, &tally(Kind::ScrambledBytes, SIZE.bytes));
        let mut e = Encoder::new();
        watch.encode(&mut e);
        let mut read = Watch::decode(&mut Decoder::new(&e.finish())).unwrap();
        watch.series.iter_mut().for_each(|s| s.slots.clear());
        assert_eq!(read, watch);
        assert_eq!(read.observe(now + 1, SIZE, &tally(Kind::RemovedFiles, 50_000)), []);
        assert_eq!(read.observe(now + 2, SIZE, &tally(Kind::RemovedFiles, 50_000)).len(), 1);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(bytes: Vec<u8>) {
            let _ = Watch::decode(&mut Decoder::new(&bytes));
        }

        #[test]
        fn no_times_and_counts_panic(steps in prop::collection::vec((any::<i64>(), any::<u64>()), 1..40)) {
            let mut watch = Watch::default();
            for (now, count) in steps {
                let now = now / 4;
                watch.observe(now, Size { files: count, bytes: count }, &tally(Kind::RemovedBytes, count));
            }
        }
    }
}
