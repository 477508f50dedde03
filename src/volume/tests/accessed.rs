//! Access times: noted by reading, recorded many at a time.

use super::*;

fn atime(bench: &Bench, at: Option<Lsn>, ino: Ino) -> Timestamp {
    bench.main().getattr(at, ino).unwrap().attrs.atime
}

fn read(bench: &Bench, ino: Ino) -> bool {
    bench.main().accessed(ino, AccessTimes::Relatime).unwrap()
}

/// Some files, made a second before now.
fn files(bench: &Bench, count: usize) -> Vec<Ino> {
    let files = (0..count).map(|i| bench.file(Ino::ROOT, &format!("f{i}"))).collect();
    bench.clock.advance(1_000_000_000);
    files
}

#[test]
fn reading_moves_the_time_once_and_writes_no_record_for_it() {
    let bench = Bench::new(quiet());
    let file = files(&bench, 1)[0];
    let before = (atime(&bench, None, file), bench.store().last());
    assert!(read(&bench, file));
    assert!(atime(&bench, None, file) > before.0);
    assert!(!read(&bench, file), "it is newer than the last change now");
    assert!(!bench.main().accessed(file, AccessTimes::Never).unwrap());
    assert_eq!(bench.store().last(), before.1);
}

#[test]
fn many_times_become_few_records_and_survive_a_clean_stop() {
    let mut bench = Bench::new(quiet());
    let files = files(&bench, 3000);
    assert!(files.iter().all(|ino| read(&bench, *ino)));
    let times: Vec<_> = files.iter().map(|ino| atime(&bench, None, *ino)).collect();
    let before = bench.store().last();
    bench.volumes().sync().unwrap();
    assert!(bench.store().last().0 <= before.0 + 3, "{} records", bench.store().last().0 - before.0);
    bench.reopen();
    assert_eq!(files.iter().map(|ino| atime(&bench, None, *ino)).collect::<Vec<_>>(), times);
    bench.fsck();
}

#[test]
fn a_time_that_is_set_is_not_overruled_by_an_earlier_reading() {
    let bench = Bench::new(quiet());
    let file = files(&bench, 1)[0];
    read(&bench, file);
    let set = SetAttr { atime: Some(Timestamp { secs: 7, nanos: 0 }), ..SetAttr::default() };
    bench.main().setattr(file, &set, None).unwrap();
    bench.volumes().sync().unwrap();
    assert_eq!(atime(&bench, None, file), Timestamp { secs: 7, nanos: 0 });
    read(&bench, file);
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let returned = bench.main().setattr(file, &set, None).unwrap().attrs.atime;
    assert!(returned.secs > 7, "a change of something else keeps the reading");
}

#[test]
fn a_snapshot_has_the_times_of_what_was_read_before_it() {
    let bench = Bench::new(quiet());
    let (file, other) = (files(&bench, 1)[0], bench.make(Ino::ROOT, "d", FileKind::Dir));
    read(&bench, file);
    let time = atime(&bench, None, file);
    let at = bench.snapshot("s");
    bench.clock.advance(200_000_000_000_000);
    assert!(read(&bench, file) && read(&bench, other), "a day later");
    bench.volumes().sync().unwrap();
    assert_eq!(atime(&bench, Some(at), file), time);
    assert!(atime(&bench, None, file) > time);
    bench.fsck();
}

#[test]
fn what_was_read_and_removed_leaves_nothing_behind() {
    let mut bench = Bench::new(quiet());
    let file = files(&bench, 2)[0];
    bench.write(file, 0, b"uncommitted");
    read(&bench, file);
    bench.main().unlink(Ino::ROOT, b"f0", None).unwrap();
    bench.main().remove_orphan(file).unwrap();
    bench.volumes().sync().unwrap();
    bench.reopen();
    bench.fsck();
    assert!(bench.main().getattr(None, file).is_err());
}

#[test]
fn uncommitted_bytes_do_not_become_part_of_the_size_by_reading() {
    let mut bench = Bench::new(quiet());
    let file = files(&bench, 1)[0];
    bench.write(file, 0, b"first");
    bench.main().fsync(file).unwrap();
    bench.write(file, 5, b"second");
    bench.clock.advance(1);
    assert!(read(&bench, file));
    bench.volumes().shared.commit_accesses().unwrap();
    bench.crash();
    assert_eq!(bench.read(None, file), b"first", "no zeros in place of what was lost");
}
