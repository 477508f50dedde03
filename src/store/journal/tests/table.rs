//! One test for each row of the recovery table, on real files.

use std::fs;
use std::os::unix::fs::FileExt;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::journal::frame::FRAME_HEADER_BYTES;
use crate::store::journal::segment::{SEGMENT_HEADER_BYTES, path_of};
use crate::types::limits::FORMAT_VERSION;

const SMALL: u64 = 6000;
const BODY: usize = 400;
const FRAME: u64 = (FRAME_HEADER_BYTES + BODY) as u64;

/// A closed journal of `n` records, each synced when `sync`.
fn made(n: u64, segment_bytes: u64, sync: bool) -> TempDir {
    let dir = TempDir::new().unwrap();
    let (journal, report) = open(dir.path(), segment_bytes);
    assert_eq!(report.outcome, Outcome::Created);
    for i in 1..=n {
        let made = journal.append(Term(1), &body(i, BODY)).unwrap();
        assert_eq!(made.lsn, Lsn(i));
        if sync {
            journal.sync(made.lsn).unwrap();
        }
    }
    dir
}

fn file(dir: &TempDir, first: u64) -> PathBuf {
    path_of(dir.path(), Lsn(first))
}

fn poke(path: &Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Changes one byte for sure.
fn flip(path: &Path, at: u64) {
    let mut byte = [0];
    fs::File::open(path).unwrap().read_exact_at(&mut byte, at).unwrap();
    poke(path, at, &[byte[0] ^ 0x40]);
}

fn frame_at(n: u64) -> u64 {
    SEGMENT_HEADER_BYTES + n * FRAME
}

/// Every file of the directory with its bytes.
fn snapshot(dir: &TempDir) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect();
    files.sort();
    files
}

/// Opens read-only (nothing may change) and for writing: both must say the same.
fn reopen(dir: &TempDir, segment_bytes: u64) -> (Journal, RecoveryReport) {
    let before = snapshot(dir);
    let (checked, look) =
        Journal::open_read_only(Arc::new(OsDisk), dir.path(), STORE, options(segment_bytes)).unwrap();
    assert!(matches!(checked.append(Term(1), b"x"), Err(Error::ReadOnly(_))));
    let seen = all(&checked);
    assert_eq!(before, snapshot(dir));
    let (journal, report) = open(dir.path(), segment_bytes);
    assert_eq!(look.outcome, report.outcome);
    assert_eq!(look.last, report.last);
    assert_eq!(seen, all(&journal));
    (journal, report)
}

fn expect_damage(dir: &TempDir, path: &Path, offset: u64, lsn: u64, detail: &str, proven: bool) {
    let before = snapshot(dir);
    let (journal, report) = reopen(dir, SMALL);
    let Outcome::Damaged(damage) = &report.outcome else { panic!("{report:?}") };
    assert_eq!((damage.file.as_path(), damage.offset, damage.lsn_expected), (path, offset, Lsn(lsn)));
    assert!(damage.detail.contains(detail), "{}", damage.detail);
    assert_eq!(damage.proven, proven);
    assert_eq!(journal.last().0, Lsn(lsn - 1));
    assert!(journal.read_only().is_some());
    assert!(matches!(journal.append(Term(1), b"x"), Err(Error::ReadOnly(_))));
    assert!(matches!(journal.sync(Lsn(1)), Err(Error::ReadOnly(_))));
    assert!(matches!(journal.remove_before(Lsn(99)), Err(Error::ReadOnly(_))));
    assert!(all(&journal).iter().enumerate().all(|(i, r)| r.body == body(i as u64 + 1, BODY)));
    assert_eq!(before, snapshot(dir), "damage is left as it is");
}

/// The journal holds `n` records, takes more, and is clean afterwards.
fn expect_works(dir: &TempDir, journal: Journal, n: u64) {
    assert_eq!(all(&journal).len() as u64, n);
    for i in n + 1..=n + 5 {
        journal.append(Term(2), &body(i, BODY)).unwrap();
    }
    journal.sync(Lsn(n + 5)).unwrap();
    drop(journal);
    let (journal, report) = reopen(dir, SMALL);
    assert_eq!(report.outcome, Outcome::Clean);
    let records = all(&journal);
    assert_eq!(records.len() as u64, n + 5);
    assert!(records.iter().all(|r| r.body == body(r.lsn.0, BODY)));
}

#[test]
fn row_1_and_2_created_and_clean() {
    let dir = made(20, SMALL, true);
    assert!(fs::read_dir(dir.path()).unwrap().count() > 3, "several segments");
    let (journal, report) = reopen(&dir, SMALL);
    assert_eq!(report.outcome, Outcome::Clean);
    assert_eq!((report.oldest, report.last, report.records_verified), (Lsn(1), Lsn(20), 20));
    expect_works(&dir, journal, 20);
}

#[test]
fn row_2_an_empty_new_journal_is_clean() {
    let dir = made(0, SMALL, true);
    let (journal, report) = reopen(&dir, SMALL);
    assert_eq!(report.outcome, Outcome::Clean);
    assert_eq!(report.oldest, Lsn(1));
    expect_works(&dir, journal, 0);
}

#[test]
fn row_3_a_tail_torn_at_any_byte_is_cut_and_overwritten() {
    for cut in 1..FRAME {
        let dir = made(2, SMALL, true);
        let path = file(&dir, 1);
        let zeros = vec![0u8; (FRAME - cut) as usize];
        poke(&path, frame_at(1) + cut, &zeros);
        let left = fs::read(&path).unwrap();
        let (journal, report) = reopen(&dir, SMALL);
        // A frame begins with the segment's salt, whose first byte is a zero once in 256 times: then nothing is left.
        if left.iter().skip(frame_at(1) as usize).all(|byte| *byte == 0) {
            assert_eq!((report.outcome, report.last), (Outcome::Clean, Lsn(1)), "{cut}");
            continue;
        }
        let Outcome::TornTail(torn) = &report.outcome else { panic!("{cut}: {report:?}") };
        assert_eq!((torn.file.as_path(), torn.offset, torn.lsn), (path.as_path(), frame_at(1), Lsn(2)));
        assert_eq!(fs::metadata(&path).unwrap().len(), frame_at(1));
        assert_eq!(journal.next_lsn(), Lsn(2));
        if cut % 97 == 1 {
            expect_works(&dir, journal, 1);
        }
    }
}

#[test]
fn row_3_every_flipped_byte_of_the_last_frame_is_named() {
    for at in 0..FRAME {
        let dir = made(2, SMALL, true);
        flip(&file(&dir, 1), frame_at(1) + at);
        let (journal, report) = reopen(&dir, SMALL);
        let Outcome::TornTail(torn) = &report.outcome else { panic!("{at}: {report:?}") };
        assert_eq!((torn.offset, torn.lsn, journal.last().0), (frame_at(1), Lsn(2), Lsn(1)));
    }
}

#[test]
fn row_3_when_the_first_frame_of_the_segment_is_torn_the_file_is_replaced() {
    let dir = made(1, SMALL, true);
    let path = file(&dir, 1);
    let salt = fs::read(&path).unwrap()[12..16].to_vec();
    flip(&path, frame_at(0) + 80);
    let (journal, report) = reopen(&dir, SMALL);
    assert!(matches!(report.outcome, Outcome::TornTail(_)), "{report:?}");
    assert_ne!(fs::read(&path).unwrap()[12..16], salt[..], "a fresh salt");
    expect_works(&dir, journal, 0);
}

#[test]
fn row_3_a_file_cut_short_is_a_torn_tail() {
    let dir = made(2, SMALL, true);
    fs::OpenOptions::new().write(true).open(file(&dir, 1)).unwrap().set_len(frame_at(2) - 1).unwrap();
    let (journal, report) = reopen(&dir, SMALL);
    let Outcome::TornTail(torn) = &report.outcome else { panic!("{report:?}") };
    assert_eq!(torn.bytes, FRAME - 1);
    expect_works(&dir, journal, 1);
}

#[test]
fn row_4_a_bad_frame_that_was_synced_is_damage_at_every_byte() {
    for at in 0..FRAME {
        let dir = made(3, SMALL, true);
        flip(&file(&dir, 1), frame_at(1) + at);
        // Record 3 was made when 2 was durable.
        expect_damage(&dir, &file(&dir, 1), frame_at(1), 2, "records up to 2 were synced", true);
    }
}

#[test]
fn row_5_a_bad_frame_never_known_synced_is_as_the_option_says() {
    let dir = made(3, SMALL, false);
    flip(&file(&dir, 1), frame_at(1) + 100);
    expect_damage(&dir, &file(&dir, 1), frame_at(1), 2, "1 intact frames follow", false);
    let cut = JournalOptions { unordered_tail: UnorderedTail::Cut, ..options(SMALL) };
    let (journal, report) = Journal::open(Arc::new(OsDisk), dir.path(), STORE, cut).unwrap();
    let Outcome::TornTail(torn) = &report.outcome else { panic!("{report:?}") };
    assert!(torn.detail.contains("intact frames follow"));
    expect_works(&dir, journal, 1);
}

#[test]
fn row_6_an_intact_frame_that_does_not_follow_is_damage() {
    for (lsn, chain, detail) in [(2, [9; 32], "hash chain"), (7, [9; 32], "of LSN 7")] {
        let dir = made(1, SMALL, true);
        let path = file(&dir, 1);
        let salt = u32::from_le_bytes(fs::read(&path).unwrap()[12..16].try_into().unwrap());
        let mut forged = Vec::new();
        frame::encode(&mut forged, salt, Lsn(1), (Lsn(lsn), Term(1), Chain(chain)), b"forged");
        poke(&path, frame_at(1), &forged);
        expect_damage(&dir, &path, frame_at(1), 2, detail, true);
    }
}

#[test]
fn row_7_a_bad_frame_in_an_earlier_segment_is_damage_at_every_byte() {
    for at in 0..FRAME {
        // Four frames fill a segment of 6000 bytes; the fifth record begins the next.
        let dir = made(5, SMALL, true);
        flip(&file(&dir, 1), frame_at(3) + at);
        expect_damage(&dir, &file(&dir, 1), frame_at(3), 4, "the next segment begins at record 5", true);
    }
}

#[test]
fn row_8_a_missing_segment_is_damage() {
    let dir = made(13, SMALL, true);
    fs::remove_file(file(&dir, 5)).unwrap();
    expect_damage(&dir, &file(&dir, 1), frame_at(4), 5, "the next segment begins at record 9", true);
}

#[test]
fn row_9_segments_that_overlap_are_damage() {
    let dir = made(5, SMALL, true);
    let next = fs::read(file(&dir, 5)).unwrap();
    let old = fs::read(file(&dir, 1)).unwrap();
    let salt = u32::from_le_bytes(old[12..16].try_into().unwrap());
    let (header, b) =
        frame::decode(&next[4096..], u32::from_le_bytes(next[12..16].try_into().unwrap())).unwrap();
    let mut twin = Vec::new();
    frame::encode(&mut twin, salt, Lsn(0), (header.lsn, header.term, header.chain), b);
    poke(&file(&dir, 1), frame_at(4), &twin);
    expect_damage(&dir, &file(&dir, 1), frame_at(4), 5, "begins here too", true);
}

/// Makes the header of a segment say something else, with a good checksum.
fn reheader(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut header = fs::read(path).unwrap()[..76].to_vec();
    change(&mut header[..72]);
    let crc = crc32c::crc32c(&header[..72]);
    header[72..].copy_from_slice(&crc.to_le_bytes());
    poke(path, 0, &header);
}

#[test]
fn row_10_a_header_of_another_chain_or_lsn_is_damage() {
    let dir = made(5, SMALL, true);
    reheader(&file(&dir, 5), |h| h[40] ^= 1);
    expect_damage(&dir, &file(&dir, 5), 0, 5, "the records before it end in", true);
    let dir = made(5, SMALL, true);
    reheader(&file(&dir, 5), |h| h[32] ^= 1);
    expect_damage(&dir, &file(&dir, 5), 0, 5, "beginning at record 4", true);
    let dir = made(1, SMALL, true);
    reheader(&file(&dir, 1), |h| h[40] ^= 1);
    expect_damage(&dir, &file(&dir, 1), 0, 1, "the records before it end in", true);
}

#[test]
fn row_11_a_last_segment_torn_in_creation_is_made_anew() {
    let whole = fs::read(file(&made(0, SMALL, true), 1)).unwrap();
    for len in [0, 1, 40, 75, 4096, 6000] {
        for (n, first) in [(0, 1), (4, 5)] {
            let dir = made(n, SMALL, true);
            let mut content = whole[..len].to_vec();
            content.iter_mut().skip(8).take(68).for_each(|b| *b = 0);
            fs::write(file(&dir, first), content).unwrap();
            let (journal, report) = reopen(&dir, SMALL);
            assert_eq!(report.outcome, Outcome::TornHeader { file: file(&dir, first) }, "{len}");
            expect_works(&dir, journal, n);
        }
    }
}

#[test]
fn row_12_any_other_bad_header_is_damage() {
    for at in 0..76 {
        let dir = made(5, SMALL, true);
        flip(&file(&dir, 5), at);
        expect_damage(&dir, &file(&dir, 5), 0, 5, "header", true);
    }
    // An earlier one, and a journal that starts later, whose chain nothing else knows.
    let dir = made(5, SMALL, true);
    fs::write(file(&dir, 1), b"").unwrap();
    expect_damage(&dir, &file(&dir, 1), 0, 1, "ends inside the header", true);
    let dir = TempDir::new().unwrap();
    drop(
        Journal::start_at(Arc::new(OsDisk), dir.path(), STORE, options(SMALL), Lsn(9), Chain([1; 32]))
            .unwrap(),
    );
    flip(&file(&dir, 9), 20);
    expect_damage(&dir, &file(&dir, 9), 0, 9, "header checksum", true);
}

#[test]
fn row_13_and_14_foreign_and_newer_journals_are_refused_and_left_alone() {
    let dir = made(5, SMALL, true);
    let before = snapshot(&dir);
    let other = StoreUuid([1; 16]);
    let foreign = Journal::open(Arc::new(OsDisk), dir.path(), other, options(SMALL)).map(|_| ());
    assert!(matches!(foreign, Err(Error::Corrupt { detail, .. }) if detail.contains("belongs to store")));
    assert_eq!(before, snapshot(&dir));
    reheader(&file(&dir, 5), |h| h[8] = 9);
    let before = snapshot(&dir);
    let newer = Journal::open(Arc::new(OsDisk), dir.path(), STORE, options(SMALL)).map(|_| ());
    assert!(matches!(newer, Err(Error::Version { found: 9, expected: FORMAT_VERSION, .. })));
    assert_eq!(before, snapshot(&dir));
}

#[test]
fn names_that_are_not_ours_are_ignored_and_leftovers_removed() {
    let dir = made(3, SMALL, true);
    fs::write(dir.path().join("README"), b"x").unwrap();
    fs::write(dir.path().join("0000000000000004.seg.new"), b"x").unwrap();
    let (journal, report) = reopen(&dir, SMALL);
    assert_eq!(report.outcome, Outcome::Clean);
    assert!(!dir.path().join("0000000000000004.seg.new").exists());
    assert!(dir.path().join("README").exists());
    expect_works(&dir, journal, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn hostile_files_never_panic_and_never_give_a_wrong_record(
        blows in vec((0u64..3, 0u64..6500, vec(any::<u8>(), 1..90)), 1..4),
        unordered in any::<bool>(),
    ) {
        let dir = made(10, SMALL, true);
        for (segment, at, bytes) in blows {
            poke(&file(&dir, 1 + segment * 4), at, &bytes);
        }
        let unordered_tail = if unordered { UnorderedTail::Cut } else { UnorderedTail::Damage };
        let options = JournalOptions { unordered_tail, ..options(SMALL) };
        if let Ok((journal, report)) = Journal::open(Arc::new(OsDisk), dir.path(), STORE, options) {
            let records = all(&journal);
            prop_assert_eq!(records.len() as u64, report.last.0);
            prop_assert!(records.iter().all(|r| r.body == body(r.lsn.0, BODY)));
        }
    }
}
