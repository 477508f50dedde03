//! Moments as people write them: `NAME`, `@2026-11-21T10:00:00Z`, `@10m`, `@lsn:N`; and the text form of
//! times, which is RFC 3339 in UTC everywhere a program may read it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::clock::Timestamp;
use super::ids::Lsn;
use super::limits::SNAPSHOT_NAME_BYTES_MAX;

/// The longest text a point can be: a snapshot name; every `@` form is shorter.
pub const POINT_BYTES_MAX: usize = SNAPSHOT_NAME_BYTES_MAX;

/// A moment of a volume, as it was named by the user and not yet resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// The snapshot of that name.
    Name(String),
    /// A wall-clock moment.
    Time(Timestamp),
    /// That long before the moment of asking; whole seconds.
    Ago(Duration),
    /// The state at that LSN.
    Lsn(Lsn),
}

/// Why a text is not a point, as the end of the sentence "`x` …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointError {
    /// Nothing was given.
    #[error("is empty")]
    Empty,
    /// A name over [`SNAPSHOT_NAME_BYTES_MAX`].
    #[error("is longer than {SNAPSHOT_NAME_BYTES_MAX} bytes")]
    Long,
    /// A name with a slash or a NUL byte.
    #[error("must not contain '/' or a NUL byte")]
    Slash,
    /// A new name that nobody could read or type.
    #[error("must not be blank, nor contain control characters")]
    Unseen,
    /// A name that would look like a point or be hidden.
    #[error("must not start with '@' or '.'")]
    Start,
    /// A time without its zone, which would mean another moment on another machine.
    #[error("has no time zone; end it with Z or an offset such as +02:00")]
    NoZone,
    /// No form that is known.
    #[error("is neither @TIME (2026-11-21T10:00:00Z), @AGE (90s, 10m, 2h, 3d) nor @lsn:N")]
    Form,
}

/// Checks a snapshot or volume name: 1 to 128 bytes, no `/`, not starting with `@` or `.`. NUL is refused
/// too, because the name becomes a path component under `.snapshots`.
pub fn check_name(name: &str) -> Result<(), PointError> {
    match name.as_bytes() {
        [] => Err(PointError::Empty),
        bytes if bytes.len() > SNAPSHOT_NAME_BYTES_MAX => Err(PointError::Long),
        [b'@' | b'.', ..] => Err(PointError::Start),
        bytes if bytes.iter().any(|b| matches!(b, b'/' | 0)) => Err(PointError::Slash),
        _ => Ok(()),
    }
}

/// As [`check_name`], for a name that is to be given: also something to see, and on one line.
pub fn check_new_name(name: &str) -> Result<(), PointError> {
    check_name(name)?;
    let unseen = name.chars().all(char::is_whitespace) || name.chars().any(char::is_control);
    if unseen { Err(PointError::Unseen) } else { Ok(()) }
}

impl FromStr for Point {
    type Err = PointError;

    fn from_str(text: &str) -> Result<Point, PointError> {
        let Some(form) = text.strip_prefix('@') else {
            check_name(text)?;
            return Ok(Point::Name(text.to_owned()));
        };
        if form.len() > POINT_BYTES_MAX {
            return Err(PointError::Long);
        }
        if let Some(lsn) = form.strip_prefix("lsn:") {
            return decimal(lsn).map(|n| Point::Lsn(Lsn(n))).ok_or(PointError::Form);
        }
        match parse_age(form) {
            Some(age) => Ok(Point::Ago(age)),
            None => parse_rfc3339(form).map(Point::Time),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Name(name) => f.write_str(name),
            Point::Time(time) => write!(f, "@{}", rfc3339(*time)),
            Point::Ago(age) => write!(f, "@{}", age_text(age.as_secs())),
            Point::Lsn(lsn) => write!(f, "@lsn:{lsn}"),
        }
    }
}

/// Digits only: `parse` alone would take a sign.
fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

const AGE_UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// A time span as [`parse_age`] reads it, in the largest unit that it is a whole number of.
pub fn age_text(secs: u64) -> String {
    let unit = AGE_UNITS.into_iter().skip(1).find(|(_, unit)| secs.is_multiple_of(*unit));
    unit.map_or(format!("{secs}s"), |(name, unit)| format!("{}{name}", secs / unit))
}

/// A time span to the nearest whole number of the largest unit that fits, for people.
pub fn about_text(secs: u64) -> String {
    let unit = AGE_UNITS.into_iter().skip(1).find(|(_, unit)| secs >= *unit);
    unit.map_or("0s".to_owned(), |(name, unit)| format!("{}{name}", (secs + unit / 2) / unit))
}

/// `90s`, `10m`, `2h`, `3d`, `1w`. None for other forms and for ages past 2^64 seconds.
pub fn parse_age(text: &str) -> Option<Duration> {
    let (number, unit_secs) =
        AGE_UNITS.into_iter().find_map(|(unit, secs)| Some((text.strip_suffix(unit)?, secs)))?;
    decimal(number)?.checked_mul(unit_secs).map(Duration::from_secs)
}

/// A moment from RFC 3339: full date, `T`, full time, up to nine digits of fraction, and a zone.
pub fn parse_rfc3339(text: &str) -> Result<Timestamp, PointError> {
    let zone = text.get(19..).map(|tail| {
        let tail =
            tail.strip_prefix('.').map_or(tail, |t| t.trim_start_matches(|c: char| c.is_ascii_digit()));
        tail.to_owned()
    });
    // The parser below also takes shorter and annotated forms; a name that is kept for years should have
    // one meaning, so the shape is fixed first.
    let date_shape = text.bytes().take(19).enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    });
    match zone.as_deref() {
        None => return Err(PointError::Form),
        Some(_) if !date_shape => return Err(PointError::Form),
        Some("") => return Err(PointError::NoZone),
        Some("Z") => {}
        Some(offset) => {
            let offset_shape = offset.len() == 6
                && offset.bytes().enumerate().all(|(at, byte)| match at {
                    0 => matches!(byte, b'+' | b'-'),
                    3 => byte == b':',
                    _ => byte.is_ascii_digit(),
                });
            if !offset_shape {
                return Err(PointError::Form);
            }
        }
    }
    let moment: jiff::Timestamp = text.parse().map_err(|_| PointError::Form)?;
    // jiff counts nanoseconds in the direction of the seconds, a Timestamp always forward.
    let (secs, nanos) = (moment.as_second(), moment.subsec_nanosecond());
    Ok(if nanos < 0 {
        Timestamp { secs: secs - 1, nanos: (nanos + 1_000_000_000).unsigned_abs() }
    } else {
        Timestamp { secs, nanos: nanos.unsigned_abs() }
    })
}

/// RFC 3339 in UTC with as many digits of fraction as are needed. A moment outside the years -9999 to 9999
/// cannot be written so and becomes the nearest that can.
pub fn rfc3339(time: Timestamp) -> String {
    moment(time).to_string()
}

/// The name a snapshot gets when none was given: its moment with milliseconds, without the colons that
/// other systems refuse in file names. Two in one millisecond are told apart by the caller.
pub fn default_snapshot_name(time: Timestamp) -> String {
    moment(time).strftime("%Y-%m-%dT%H-%M-%S.%3fZ").to_string()
}

/// The name of a scheduled snapshot: `auto-`, and its moment to the second.
pub fn scheduled_snapshot_name(time: Timestamp) -> String {
    moment(time).strftime("auto-%Y-%m-%dT%H-%M-%SZ").to_string()
}

fn moment(time: Timestamp) -> jiff::Timestamp {
    let nanos = i32::try_from(time.nanos).unwrap_or(0);
    let edge = if time.secs < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
    jiff::Timestamp::new(time.secs, nanos).unwrap_or(edge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(text: &str) -> Timestamp {
        match text.parse() {
            Ok(Point::Time(t)) => t,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn forms() {
        assert_eq!("before-run".parse(), Ok(Point::Name("before-run".into())));
        assert_eq!("@90s".parse(), Ok(Point::Ago(Duration::from_secs(90))));
        assert_eq!("@10m".parse(), Ok(Point::Ago(Duration::from_secs(600))));
        assert_eq!("@2h".parse(), Ok(Point::Ago(Duration::from_secs(7200))));
        assert_eq!("@3d".parse(), Ok(Point::Ago(Duration::from_secs(259_200))));
        assert_eq!("@2w".parse(), Ok(Point::Ago(Duration::from_secs(1_209_600))));
        assert_eq!("@lsn:42".parse(), Ok(Point::Lsn(Lsn(42))));
        assert_eq!(time("@1970-01-01T00:00:01.5Z"), Timestamp { secs: 1, nanos: 500_000_000 });
        assert_eq!(time("@1970-01-01T02:00:00+02:00"), Timestamp::default());
        assert_eq!(time("@1969-12-31T23:59:59.25Z"), Timestamp { secs: -1, nanos: 250_000_000 });
    }

    #[test]
    fn new_names_can_be_seen() {
        for name in [" ", "\u{a0}\t", "a\nb", "a\u{7f}", "\u{85}"] {
            assert_eq!(check_new_name(name), Err(PointError::Unseen), "{name:?}");
            assert_eq!(check_name(name), Ok(()), "one that is there can be named: {name:?}");
        }
        assert_eq!(check_new_name(" a b "), Ok(()));
        assert_eq!(check_new_name("@x"), Err(PointError::Start));
        assert_eq!("@1w".parse::<Point>().map(|point| point.to_string()), Ok("@7d".into()));
    }

    #[test]
    fn spans_for_people_are_rounded() {
        let spans = [0, 1, 89, 91, 5400, 86_399, 86_400, 31_535_996];
        assert_eq!(spans.map(about_text), ["0s", "1s", "1m", "2m", "2h", "24h", "1d", "365d"]);
    }

    #[test]
    fn refusals_name_the_reason() {
        let bad = |text: &str| text.parse::<Point>().unwrap_err();
        assert_eq!(bad(""), PointError::Empty);
        assert_eq!(bad(".x"), PointError::Start);
        assert_eq!(bad("a/b"), PointError::Slash);
        assert_eq!(bad(&"x".repeat(129)), PointError::Long);
        assert_eq!(bad("@2026-11-21T10:00:00"), PointError::NoZone);
        for text in [
            "@",
            "@s",
            "@-5s",
            "@+5s",
            "@1.5h",
            "@lsn:",
            "@lsn:-1",
            "@lsn:+1",
            "@99999999999999999999d",
            "@400000000000000000d",
            "@2026-11-21",
            "@2026-11-21T10:00Z",
            "@2026-13-21T10:00:00Z",
            "@2026-11-21t10:00:00Z",
            "@2026-11-21T10:00:00Z[UTC]",
            "@2026-11-21T10:00:00+02",
            "@é",
        ] {
            assert_eq!(bad(text), PointError::Form, "{text}");
        }
    }

    #[test]
    fn default_name_is_a_valid_name() {
        let name = default_snapshot_name(time("@2026-11-21T10:00:00.123456Z"));
        assert_eq!(name, "2026-11-21T10-00-00.123Z");
        assert_eq!(check_name(&name), Ok(()));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_points_round_trip(text in "@?\\PC{0,40}") {
            if let Ok(point) = text.parse::<Point>() {
                prop_assert_eq!(point.to_string().parse::<Point>(), Ok(point));
            }
        }

        #[test]
        fn times_round_trip(secs in -60_000_000_000i64..250_000_000_000, nanos in 0u32..1_000_000_000) {
            let t = Timestamp { secs, nanos };
            prop_assert_eq!(parse_rfc3339(&rfc3339(t)), Ok(t));
        }
    }
}
