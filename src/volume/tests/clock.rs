//! A clock that is wrong or is set back.

use super::policy::{keep, points};
use super::*;
use crate::store::model::SnapshotKind;
use crate::types::point::Point;
use crate::volume::policy::Setting;
use crate::volume::policy::keeper::Rounds;

const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3600;

fn pass(bench: &Bench, secs: i64) {
    bench.clock.advance(secs * SECOND);
}

fn write(bench: &Bench, file: Ino, n: u8) -> Lsn {
    bench.write(file, 0, &[n]);
    bench.volumes().sync().unwrap();
    bench.store().last()
}

fn ago(bench: &Bench, secs: u64) -> FsResult<Lsn> {
    bench.main().resolve(&Point::Ago(std::time::Duration::from_secs(secs)))
}

fn time(bench: &Bench, time: Timestamp) -> FsResult<Lsn> {
    bench.main().resolve(&Point::Time(time))
}

fn refused(found: FsResult<Lsn>, why: &str) {
    match found {
        Err(FsError::NoSuchPoint(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{other:?}"),
    }
}

/// A first hour, a clock that is a year ahead, and the right one again.
#[test]
fn a_clock_that_is_set_back_never_makes_a_moment_mean_another_state() {
    let mut bench = Bench::new(Config { window_seconds: 4 * HOUR as u64, ..quiet() });
    let file = bench.file(Ino::ROOT, "f");
    pass(&bench, 10);
    let old = write(&bench, file, 1);
    let right = bench.clock.now();
    pass(&bench, HOUR + 365 * 24 * HOUR);
    let wrong = write(&bench, file, 2);
    pass(&bench, 20);
    let last = write(&bench, file, 3);
    pass(&bench, 4);
    assert_eq!(ago(&bench, 8).unwrap(), wrong);
    // Set back; nothing was written since.
    pass(&bench, -365 * 24 * HOUR);
    let stepped = bench.clock.now();
    refused(ago(&bench, 8), "the clock stands before the last record");
    refused(time(&bench, right), "the clock stands before the last record");
    // The keeper notes it within a second.
    let problems = keep(&bench, &mut Rounds::default());
    assert!(
        problems.iter().any(|p| p.contains("the clock stands 365d before the time of record")),
        "{problems:?}"
    );
    pass(&bench, 10);
    let new = write(&bench, file, 4);
    pass(&bench, 5);
    for _ in 0..2 {
        assert_eq!(ago(&bench, 2).unwrap(), new, "after the step");
        assert!((last.next()..new).contains(&ago(&bench, 10).unwrap()), "after the step, before the write");
        let both = format!("by the clock of then it means @lsn:{old}, by the time that passed @lsn:{wrong}");
        refused(ago(&bench, 20), &both);
        assert_eq!(ago(&bench, 3600).unwrap(), old, "both ways");
        assert_eq!(time(&bench, right).unwrap(), old, "both ways");
        assert!(time(&bench, stepped).unwrap() >= last);
        refused(time(&bench, Timestamp { secs: stepped.secs + 60, ..stepped }), "has not come yet");
        // The steps are of the records: every index has them.
        let layout = bench.store().layout().clone();
        bench.volumes().close().unwrap();
        bench.drop_all();
        std::fs::remove_dir_all(&layout.index).unwrap();
        for checkpoint in std::fs::read_dir(&layout.checkpoints).unwrap() {
            std::fs::remove_dir_all(checkpoint.unwrap().path()).unwrap();
        }
        bench.open();
    }
    // What is long after the step is as always, and the window goes on.
    pass(&bench, 5 * HOUR);
    let later = write(&bench, file, 5);
    pass(&bench, 60);
    bench.care();
    assert_eq!(ago(&bench, 30).unwrap(), later);
    assert!((new..later).contains(&ago(&bench, 3 * 3600).unwrap()));
    assert!(!bench.main().is_readable(wrong), "four hours are kept");
    let tells = || keep(&bench, &mut Rounds::default()).iter().any(|p| p.contains("the clock stands"));
    assert!(tells());
    pass(&bench, 20 * HOUR);
    assert!(!tells(), "for a day");
    bench.fsck();
}

/// A machine without a battery for its clock starts in 1970, and is told the time soon after.
#[test]
fn a_clock_that_is_wrong_only_at_the_start_changes_no_moment() {
    let mut bench = Bench::new(Config { window_seconds: 4 * HOUR as u64, ..quiet() });
    let file = bench.file(Ino::ROOT, "f");
    let old = write(&bench, file, 1);
    pass(&bench, HOUR);
    write(&bench, file, 2);
    pass(&bench, HOUR);
    let away = bench.clock.now().secs - 100;
    pass(&bench, -away);
    bench.crash();
    pass(&bench, 20);
    let at_the_start = write(&bench, file, 3);
    pass(&bench, 10);
    assert_eq!(ago(&bench, 5).unwrap(), at_the_start);
    pass(&bench, away);
    for _ in 0..2 {
        assert_eq!(ago(&bench, 5400).unwrap(), old);
        let new = write(&bench, file, 4);
        pass(&bench, 2);
        assert_eq!(ago(&bench, 1).unwrap(), new);
        assert!(!keep(&bench, &mut Rounds::default()).iter().any(|p| p.contains("the clock stands")));
        bench.crash();
    }
}

/// What lies before the window is found by the points' times, which do run backwards.
#[test]
fn points_from_before_the_clock_was_set_back_are_no_older_ones() {
    let bench = Bench::new(Config { window_seconds: 0, ..quiet() });
    let file = bench.file(Ino::ROOT, "f");
    write(&bench, file, 1);
    bench.snapshot("old");
    pass(&bench, 2 * HOUR);
    write(&bench, file, 2);
    let ahead = bench.snapshot("ahead");
    pass(&bench, 60);
    write(&bench, file, 3);
    pass(&bench, -HOUR);
    write(&bench, file, 4);
    let new = bench.snapshot("new");
    pass(&bench, 60);
    write(&bench, file, 5);
    bench.care();
    pass(&bench, 1);
    assert_eq!(ago(&bench, 30).unwrap(), new);
    refused(ago(&bench, 65), &format!("by the time that passed @lsn:{ahead}"));
}

#[test]
fn a_clock_that_is_adjusted_by_a_second_moves_no_moment() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    pass(&bench, 10);
    let first = write(&bench, file, 1);
    pass(&bench, 10);
    write(&bench, file, 2);
    pass(&bench, -1);
    let last = write(&bench, file, 3);
    pass(&bench, 3);
    assert!(bench.store().index().state().steps.is_empty());
    assert_eq!((ago(&bench, 1).unwrap(), ago(&bench, 4).unwrap()), (last, first));
}

#[test]
fn a_snapshot_of_a_moment_to_come_is_deleted_like_any_other() {
    let bench = Bench::new(quiet());
    let set = |text: &str| {
        let settings = Setting::all(&[text.to_owned()]).unwrap();
        bench.main().set_policy(&settings, false).unwrap();
    };
    set("immutable=1h");
    set("immutable=off");
    pass(&bench, 2 * 24 * HOUR);
    bench.snapshot("ahead");
    pass(&bench, -24 * HOUR);
    assert_eq!(bench.main().snapshot_named("ahead").unwrap().immutable_until, None);
    bench.main().delete_snapshots(&["ahead"], None).unwrap();
}

/// Marks go on after a step back; else the continuous window would have a hole until the clock has caught up.
#[test]
fn marks_are_made_also_when_the_clock_was_set_back() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    let mut rounds = Rounds::default();
    let marks = || points(&bench).values().filter(|(_, _, kind)| *kind == SnapshotKind::Mark).count();
    write(&bench, file, 1);
    keep(&bench, &mut rounds);
    let before = marks();
    pass(&bench, -HOUR);
    write(&bench, file, 2);
    keep(&bench, &mut rounds);
    assert_eq!(marks(), before + 1);
}
