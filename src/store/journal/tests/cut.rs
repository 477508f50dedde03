//! Records cut off because what they refer to elsewhere is lost.

use super::*;

const SEGMENT: u64 = 6000;

fn filled(dir: &Path) -> Vec<Record> {
    let (journal, _) = open(dir, SEGMENT);
    for n in 0..20 {
        journal.append(Term(1), &body(n, 900)).unwrap();
    }
    journal.sync(journal.last().0).unwrap();
    all(&journal)
}

fn open_cut(dir: &Path, at: u64) -> (Journal, RecoveryReport) {
    let options = JournalOptions { cut_after: Some(Lsn(at)), ..options(SEGMENT) };
    Journal::open(Arc::new(OsDisk), dir, STORE, options).unwrap()
}

#[test]
fn every_cut_leaves_the_records_before_it_and_can_be_continued() {
    for at in 0..=21 {
        let dir = tempfile::tempdir().unwrap();
        let records = filled(dir.path());
        assert!(std::fs::read_dir(dir.path()).unwrap().count() > 2, "several segments");
        let kept = &records[..(at as usize).min(20)];
        let (journal, report) = open_cut(dir.path(), at);
        assert_eq!(report.last, Lsn(kept.len() as u64));
        assert_eq!(all(&journal), kept);
        let made = journal.append(Term(2), b"new").unwrap();
        assert_eq!(made.lsn, report.last.next());
        journal.sync(made.lsn).unwrap();
        drop(journal);
        let (journal, report) = open(dir.path(), SEGMENT);
        assert_eq!(report.outcome, Outcome::Clean, "cut at {at}");
        assert_eq!(all(&journal).len(), kept.len() + 1);
    }
}

#[test]
fn nothing_is_removed_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    let records = filled(dir.path());
    let options = JournalOptions { cut_after: Some(Lsn(3)), ..options(SEGMENT) };
    let (journal, _) = Journal::open_read_only(Arc::new(OsDisk), dir.path(), STORE, options).unwrap();
    assert_eq!(all(&journal), records[..3]);
    assert_eq!(all(&open(dir.path(), SEGMENT).0), records);
}

#[test]
fn row_16_a_journal_that_ends_before_its_witness_is_damage_for_reading_and_for_writing() {
    let dir = tempfile::tempdir().unwrap();
    let records = filled(dir.path());
    for open in [Journal::open_read_only, Journal::open] {
        let options = JournalOptions { must_reach: Lsn(21), ..options(SEGMENT) };
        let (journal, report) = open(Arc::new(OsDisk), dir.path(), STORE, options).unwrap();
        let Outcome::Damaged(damage) = report.outcome else { panic!("{:?}", report.outcome) };
        assert_eq!((damage.lsn_expected, damage.proven), (Lsn(21), true));
        assert!(matches!(journal.append(Term(2), b"new"), Err(Error::ReadOnly(_))));
        assert_eq!(all(&journal), records);
    }
}

#[test]
fn a_journal_can_be_looked_at_without_its_front() {
    let dir = tempfile::tempdir().unwrap();
    let records = filled(dir.path());
    let options = JournalOptions { ignore_before: Lsn(2), ..options(SEGMENT) };
    let (journal, report) = Journal::open_read_only(Arc::new(OsDisk), dir.path(), STORE, options).unwrap();
    assert_eq!(report.outcome, Outcome::Clean);
    let front = journal.oldest().0 as usize - 1;
    assert!(front > 0 && front < records.len());
    assert_eq!(all(&journal), records[front..]);
}
