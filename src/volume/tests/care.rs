//! Checking, scrubbing and recounting a store that is in use.

use super::*;
use crate::store::control::Control;
use crate::types::{ChunkId, PackId};

/// A tree with a history: versions that only a snapshot needs, and shared chunks.
fn lived_in() -> (Bench, Ino) {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, &noise(1, 900_000));
    bench.volumes().sync().unwrap();
    bench.snapshot("s");
    bench.write(file, 100_000, &noise(2, 300_000));
    bench.main().setattr(file, &SetAttr { size: Some(700_000), ..SetAttr::default() }, None).unwrap();
    bench.volumes().sync().unwrap();
    bench.care();
    (bench, file)
}

#[test]
fn writers_go_on_while_the_store_is_checked() {
    let (bench, file) = lived_in();
    bench.rest();
    let mut rounds = 0;
    let found = bench.store().check(&mut |_, _| {
        // Would wait for ever if the check held writers off.
        rounds += 1;
        bench.write(file, rounds * 1000, &noise(rounds, 200_000));
        bench.main().fsync(file).unwrap();
        bench.snapshot(&format!("during-{rounds}"));
        bench.main().unlink(Ino::ROOT, format!("gone-{}", rounds - 1).as_bytes(), None).ok();
        bench.file(Ino::ROOT, &format!("gone-{rounds}"));
    });
    let found = found.unwrap();
    assert!(found.clean(), "{:?}", found.problems);
    assert!(rounds >= 4, "{rounds} phases");
    assert!(found.at < bench.store().last(), "what came later is not looked at");
    bench.fsck();
}

#[test]
fn derived_rows_that_are_wrong_are_found_and_counted_anew() {
    let (mut bench, _) = lived_in();
    bench.fsck();
    let harms = bench.store().index().falsify();
    let problems = bench.problems();
    assert!(problems.len() >= harms, "{harms} rows are wrong, found: {problems:#?}");
    for word in ["references", "dead list", "data bytes", "pending", "digest", "live bytes", "history bytes"]
    {
        assert!(problems.iter().any(|p| p.contains(word)), "{word}: {problems:#?}");
    }
    bench.store().index().recount().unwrap();
    bench.fsck();
    bench.reopen();
    bench.fsck();
}

/// All chunks that the index knows.
fn chunks(bench: &Bench) -> Vec<ChunkId> {
    let mut all = Vec::new();
    let read = bench.store().index().freeze().chunks(|id, _| {
        all.push(id);
        Ok(())
    });
    read.unwrap();
    all
}

#[test]
fn chunks_given_up_are_counted_and_forgotten_like_others() {
    let (mut bench, file) = lived_in();
    let all = chunks(&bench);
    bench.store().index().give_up(&all).unwrap();
    bench.reopen();
    let found = bench.store().check(&mut |_, _| {}).unwrap();
    assert!(!found.damaged.is_empty() && found.damaged.iter().all(|d| d.lost), "{:?}", found.problems);
    assert_eq!(found.problems.len(), found.damaged.len(), "nothing else is wrong: {:?}", found.problems);
    let size = bench.main().getattr(None, file).unwrap().attrs.size as usize;
    assert!(bench.main().read(None, file, 0, size).is_err());
    // The same bytes bring back what named them, also in the snapshot.
    let again = bench.file(Ino::ROOT, "again");
    bench.write(again, 0, &noise(1, 900_000));
    bench.volumes().sync().unwrap();
    let at = bench.main().snapshot_named("s").unwrap().lsn;
    assert!(bench.read(Some(at), file) == noise(1, 900_000));
    for ino in [file, again] {
        let name = if ino == file { "f" } else { "again" };
        bench.main().unlink(Ino::ROOT, name.as_bytes(), None).unwrap();
        bench.main().remove_orphan(ino).unwrap();
    }
    bench.main().delete_snapshots(&["s"], None).unwrap();
    bench.clock.advance(3_600_000_000_000);
    bench.care();
    bench.fsck();
}

#[test]
fn a_scrub_reads_everything_and_remembers_that_all_was_well() {
    let (mut bench, _) = lived_in();
    bench.rest();
    let control = Control::new(0);
    let found = bench.store().scrub(&control, PackId(0)).unwrap();
    assert!(found.clean(), "{:?}", found.problems);
    assert_eq!(found.frames, chunks(&bench).len() as u64, "every chunk of the index was read");
    let position = control.position();
    assert!(position.done > 900_000 && position.done <= position.total, "{position:?}");
    let last = bench.store().last_scrub();
    assert!(last.ended > Timestamp::default() && last.problem.is_empty());
    bench.reopen();
    assert_eq!(bench.store().last_scrub(), last, "over a restart");
}

#[test]
fn a_cancelled_scrub_changes_nothing_that_is_remembered() {
    let (bench, _) = lived_in();
    let before = bench.store().last_scrub();
    let control = Control::new(0);
    control.cancel();
    assert!(bench.store().scrub(&control, PackId(0)).is_err());
    assert_eq!(bench.store().last_scrub(), before);
}

/// Damage in an old segment, behind which everything is in the index: the front of the journal goes, and
/// nothing is lost.
#[test]
fn segments_whose_records_the_index_has_are_moved_aside() {
    use crate::store::repair::{Step, repair};
    let mut bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    // Inline bytes, until there are three segments of 64 MiB.
    let segments = |bench: &Bench| {
        let entries = std::fs::read_dir(&bench.store().layout().journal).unwrap();
        let mut found: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    let mut written = 0;
    while segments(&bench).len() < 3 {
        bench.write(file, 0, &noise(written, 60_000));
        bench.main().fsync(file).unwrap();
        written += 1;
        assert!(written < 5000, "the journal grows");
    }
    bench.volumes().close().unwrap();
    let (expected, first) = (bench.read(None, file), segments(&bench).remove(0));
    bench.drop_all();
    let mut bytes = std::fs::read(&first).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    let planned = repair(&bench.root(), &bench.options(), None, &mut |_, _| {}).unwrap();
    assert!(!planned.findings.clean());
    let steps = &planned.plan.steps;
    assert_eq!(steps.as_slice(), [Step::DropFront { segments: vec![first.clone()] }]);
    assert!(std::fs::read(&first).unwrap() == bytes, "a plan changes nothing");
    assert!(repair(&bench.root(), &bench.options(), Some("another plan"), &mut |_, _| {}).is_err());
    let agreed = planned.plan.id();
    let done = repair(&bench.root(), &bench.options(), Some(&agreed), &mut |_, _| {}).unwrap();
    assert_eq!(done.failed, None);
    assert!(done.findings.clean(), "{:?}", done.findings.problems);
    let kept = done.aside.unwrap().join(first.file_name().unwrap());
    assert!(std::fs::read(kept).unwrap() == bytes);
    bench.open();
    assert!(bench.read(None, file) == expected);
    bench.fsck();
}

#[test]
fn what_an_opening_had_to_read_packs_for_is_not_read_by_the_next() {
    let mut bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    for i in 0..5 {
        bench.write(file, i * 5_000_000, &noise(i, 5_000_000));
    }
    bench.volumes().sync().unwrap();
    let (committed, flushed) = (bench.store().last(), bench.store().index().opened_at());
    assert!(
        committed.0 - flushed.0 < 100,
        "few records, but many bytes in a pack that a kill leaves unfinished"
    );
    bench.crash();
    assert_eq!(bench.store().index().opened_at(), flushed, "the first opening replays");
    bench.store().care_round(Lsn::ZERO).unwrap();
    bench.crash();
    assert!(bench.store().index().opened_at() >= committed, "the second one does not");
    assert!(bench.read(None, file)[20_000_000..] == noise(4, 5_000_000));
    bench.fsck();
}

#[test]
fn what_is_left_of_removed_checkpoints_goes_with_the_next_one() {
    let (bench, _) = lived_in();
    let checkpoints = bench.store().path().join("checkpoints");
    let ghost = checkpoints.join(format!("{:016x}", 1));
    std::fs::create_dir_all(&ghost).unwrap();
    std::fs::write(ghost.join("LOG"), b"RocksDB was here").unwrap();
    bench.store().checkpoint().unwrap();
    assert!(!ghost.exists());
    assert_eq!(std::fs::read_dir(&checkpoints).unwrap().count(), 1, "the one that was made");
    bench.fsck();
}
