//! Every operation of a workload of appends, syncs and rolls goes wrong once, in several ways; what recovery
//! finds must be a prefix of what was appended, and hold all that was synced.

use super::faulty::{Fault, FaultyDisk, Keep};
use super::*;

const DIR: &str = "/journal";
const SEGMENT: u64 = 6000;

/// What the program above the journal knows.
#[derive(Default)]
struct Known {
    appended: Vec<Vec<u8>>,
    /// Bodies of the call during which the power went.
    in_flight: Vec<Vec<u8>>,
    synced: usize,
    removed_before: u64,
}

fn cut() -> JournalOptions {
    JournalOptions { unordered_tail: UnorderedTail::Cut, ..options(SEGMENT) }
}

fn length(i: u64) -> usize {
    [3, 700, 150, 1900, 40, 0, 300][(i % 7) as usize]
}

/// Appends one by one and in batches, syncs now and then, removes old segments once. Goes on after errors.
fn work(disk: &FaultyDisk, known: &mut Known, start: u64, steps: u64, options: JournalOptions) {
    let Ok((journal, _)) = Journal::open(Arc::new(disk.clone()), Path::new(DIR), STORE, options) else {
        return;
    };
    for i in start..start + steps {
        let bodies: Vec<_> =
            (0..1 + u64::from(i % 4 == 3) * 2).map(|k| body(i * 10 + k, length(i + k))).collect();
        let batch: Vec<_> = bodies.iter().map(|b| (Term(1), b.as_slice())).collect();
        let next = journal.next_lsn();
        match journal.append_many(&batch) {
            Ok(made) => {
                assert_eq!(made[0].lsn, next);
                known.appended.extend(bodies);
            }
            Err(_) => {
                assert_eq!(journal.next_lsn(), next);
                // After a power cut or a poisoning, only the first refused call reached the disk.
                if known.in_flight.is_empty() {
                    known.in_flight = bodies;
                }
            }
        }
        if i % 3 == 0
            && let Ok(durable) = journal.sync(journal.last().0)
        {
            known.synced = durable.0 as usize;
        }
        known.synced = known.synced.max(journal.durable().0 as usize);
        if i == start + steps / 2 {
            // From here on these may be gone, whether the call fails or not.
            known.removed_before = journal.durable().0 / 2;
            let _ = journal.remove_before(Lsn(known.removed_before));
        }
    }
}

/// `refused_may_survive`: the power went during a call, or a sync failed, so its outcome is unknown.
fn check(
    disk: &FaultyDisk,
    known: &Known,
    refused_may_survive: bool,
    options: JournalOptions,
    what: &str,
) -> usize {
    let (journal, report) = Journal::open(Arc::new(disk.clone()), Path::new(DIR), STORE, options).unwrap();
    assert!(!matches!(report.outcome, Outcome::Damaged(_)), "{what}: {report:?}");
    let last = report.last.0 as usize;
    assert!(last >= known.synced, "{what}: {last} left of {} synced: {report:?}", known.synced);
    assert!(report.oldest.0 <= known.removed_before.max(1), "{what}: {report:?}");
    let mut possible = known.appended.clone();
    if refused_may_survive {
        possible.extend(known.in_flight.iter().cloned());
    }
    assert!(last <= possible.len(), "{what}: {last} of {}", possible.len());
    let mut lsn = report.oldest;
    for record in journal.read_from(report.oldest).unwrap() {
        let record = record.unwrap();
        assert_eq!(record.lsn, lsn, "{what}");
        assert_eq!(record.body, possible[lsn.0 as usize - 1], "{what}: record {lsn}");
        lsn = lsn.next();
    }
    assert_eq!(lsn, report.last.next(), "{what}");
    assert_eq!(journal.durable(), report.last, "{what}: what was found was made durable");
    last
}

/// Recovers, works on, loses everything unsynced, recovers again.
fn check_twice(disk: &FaultyDisk, known: &Known, survive: bool, options: &JournalOptions, what: &str) {
    let last = check(disk, known, survive, options.clone(), what);
    let mut appended = known.appended.clone();
    appended.extend(known.in_flight.iter().cloned());
    appended.truncate(last);
    let mut again =
        Known { appended, synced: last, removed_before: known.removed_before, ..Known::default() };
    work(disk, &mut again, 1000, 8, options.clone());
    assert!(again.appended.len() > last, "{what}: works on");
    check(&disk.crash(Keep::Nothing), &again, false, options.clone(), what);
    check(disk, &again, false, options.clone(), what);
}

fn operations() -> u64 {
    let disk = FaultyDisk::new();
    let mut known = Known::default();
    work(&disk, &mut known, 0, 24, options(SEGMENT));
    assert!(known.removed_before > 4 && known.in_flight.is_empty());
    assert!(disk.list(Path::new(DIR)).unwrap().len() > 2);
    disk.ops()
}

#[test]
fn after_a_power_cut_at_every_operation_the_journal_is_a_prefix_with_all_that_was_synced() {
    for at in 0..=operations() {
        for part in [0, 1, 20, 128, 250, 255] {
            let disk = FaultyDisk::new();
            disk.set_fault(at, Fault::Power(part));
            let mut known = Known::default();
            work(&disk, &mut known, 0, 24, options(SEGMENT));
            for keep in [Keep::Nothing, Keep::All] {
                let what = format!("power cut at {at}, {part}/255 written, {keep:?}");
                check_twice(&disk.crash(keep), &known, true, &options(SEGMENT), &what);
            }
        }
    }
}

#[test]
fn after_a_power_cut_that_keeps_pages_by_chance_the_cut_option_recovers() {
    for at in 0..=operations() {
        for seed in 0..24 {
            let disk = FaultyDisk::new();
            disk.set_fault(at, Fault::Power(255));
            let mut known = Known::default();
            work(&disk, &mut known, 0, 24, cut());
            let keep = Keep::Some((at * 100 + seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let what = format!("power cut at {at}, seed {seed}");
            check_twice(&disk.crash(keep), &known, true, &cut(), &what);
        }
    }
}

#[test]
fn a_power_cut_that_keeps_pages_by_chance_is_never_proven_damage() {
    let mut unproven = 0;
    for at in 0..=operations() {
        for seed in 0..8 {
            let disk = FaultyDisk::new();
            disk.set_fault(at, Fault::Power(255));
            work(&disk, &mut Known::default(), 0, 24, cut());
            let after = disk.crash(Keep::Some((at * 77 + seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let opened = Journal::open_read_only(Arc::new(after), Path::new(DIR), STORE, options(SEGMENT));
            if let Outcome::Damaged(damage) = opened.unwrap().1.outcome {
                assert!(!damage.proven, "{at} {seed}: {damage:?}");
                unproven += 1;
            }
        }
    }
    assert!(unproven > 0, "this is why row 5 exists");
}

#[test]
fn after_an_error_at_every_operation_nothing_refused_is_read_back() {
    for at in 0..=operations() {
        for errno in [libc::EIO, libc::ENOSPC] {
            // A write that found no room was never whole; one that failed otherwise may have been.
            let parts: &[u8] = if errno == libc::EIO { &[0, 128, 255] } else { &[0, 20, 128, 254] };
            for &part in parts {
                let disk = FaultyDisk::new();
                disk.set_fault(at, Fault::Once(errno, part));
                let mut known = Known::default();
                work(&disk, &mut known, 0, 24, options(SEGMENT));
                let what = format!("errno {errno} at {at}, {part}/255 written");
                // The refused call of a poisoned journal is unknown: it may be the one whose cut failed.
                let poisoned = disk.list(Path::new(DIR)).unwrap().iter().any(|n| n == "sync-failed");
                for keep in [Keep::All, Keep::Nothing] {
                    check_twice(&disk.crash(keep), &known, poisoned, &options(SEGMENT), &what);
                }
            }
        }
    }
}
