//! Purging what has or had a path, whatever became of the directories on it.

use super::*;

/// Makes `a/b/f` with that content in new directories, or in those that there are.
fn make_deep(bench: &Bench, seed: u64) -> Ino {
    let deep = ["a", "b"].iter().fold(Ino::ROOT, |dir, name| {
        let there = bench.main().lookup(None, dir, name.as_bytes());
        there.map_or_else(|_| bench.make(dir, name, FileKind::Dir), |attr| attr.ino)
    });
    let file = bench.file(deep, "f");
    bench.write(file, 0, &noise(seed, 50_000));
    file
}

fn find(bench: &Bench, at: Option<Lsn>, path: &str) -> FsResult<Ino> {
    let names = path.split('/');
    names.into_iter().try_fold(Ino::ROOT, |dir, name| Ok(bench.main().lookup(at, dir, name.as_bytes())?.ino))
}

/// A path is what its directories made of it: removed and made again, replaced, moved away, restored.
#[test]
fn a_file_goes_from_every_directory_that_its_path_ever_led_through() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let rename = |from: (Ino, &str), to: (Ino, &str), mode| {
        main.rename((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), mode, None).unwrap();
    };
    let mut files = BTreeSet::new();
    let mut points = Vec::new();
    files.insert(make_deep(&bench, 1));
    let first = bench.snapshot("removed");
    points.push(first);
    let (a, b) = (find(&bench, None, "a").unwrap(), find(&bench, None, "a/b").unwrap());
    main.unlink(b, b"f", None).unwrap();
    main.rmdir(a, b"b", None).unwrap();
    main.rmdir(Ino::ROOT, b"a", None).unwrap();
    files.insert(make_deep(&bench, 2));
    points.push(bench.snapshot("made again"));
    // Another directory takes the place of the upper one, which gets a name of its own and new contents.
    let other = bench.make(Ino::ROOT, "other", FileKind::Dir);
    let other_b = bench.make(other, "b", FileKind::Dir);
    let third = bench.file(other_b, "f");
    bench.write(third, 0, &noise(3, 50_000));
    files.insert(third);
    rename((Ino::ROOT, "other"), (Ino::ROOT, "a"), RenameMode::Exchange);
    let moved = find(&bench, None, "other/b").unwrap();
    main.unlink(moved, b"f", None).unwrap();
    let bystander = bench.file(moved, "f");
    bench.write(bystander, 0, &noise(9, 50_000));
    points.push(bench.snapshot("replaced"));
    // A file takes a directory's name for a while.
    rename((Ino::ROOT, "a"), (Ino::ROOT, "aside"), RenameMode::NoReplace);
    bench.file(Ino::ROOT, "a");
    points.push(bench.snapshot("a file"));
    main.unlink(Ino::ROOT, b"a", None).unwrap();
    bench.clock.advance(1_000_000);
    let restore = Restore { at: first, path: vec![b"a".to_vec()], to: None, actor: None };
    bench.volumes().restore(main, &restore, false, &mut |_, _, _| {}).unwrap();
    files.insert(find(&bench, None, "a/b/f").unwrap());
    points.push(bench.snapshot("restored"));
    let path = bench.main().name_path(Ino::ROOT, &["a", "b", "f"]).unwrap();
    assert_eq!(main.files_of(&path).unwrap(), files);
    let mut told = Vec::new();
    let mut visit = |v: FileVersion| {
        told.push((String::from_utf8(v.path).unwrap(), v.snapshots.join(",")));
        Ok(true)
    };
    main.versions(&path, None, &mut visit).unwrap();
    let told: Vec<_> = told.iter().map(|(path, snapshots)| (path.as_str(), snapshots.as_str())).collect();
    // Each was first made, and then written.
    let snapshots = ["restored", "replaced", "", "made again", "", "removed", ""];
    assert_eq!(told, snapshots.map(|names| ("a/b/f", names)));
    let chunks = bench.chunks_of(&files);
    let done = bench.purge(&path).unwrap();
    all_erased(&done);
    let names: Vec<_> = done.names.iter().map(|n| (String::from_utf8_lossy(&n.path), n.live)).collect();
    let expected = [("a/b/f", true), ("aside/b/f", true), ("other/b/f", false)];
    assert_eq!(names, expected.map(|(name, live)| (name.into(), live)));
    bench.nothing_left(&files, &chunks).unwrap();
    for at in points.into_iter().map(Some).chain([None]) {
        assert!(find(&bench, at, "a/b/f").is_err(), "at {at:?}");
        assert!(find(&bench, at, "aside/b/f").is_err(), "at {at:?}");
    }
    assert!(bench.read(None, find(&bench, None, "other/b/f").unwrap()) == noise(9, 50_000));
    assert!(matches!(bench.purge(&path), Err(FsError::NotFound)));
    bench.fsck();
}

#[test]
fn what_a_path_meant_before_it_was_a_directory_is_within_reach_once_that_is_gone() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let file = bench.file(Ino::ROOT, "k");
    bench.write(file, 0, &noise(1, 50_000));
    let point = bench.snapshot("s");
    main.unlink(Ino::ROOT, b"k", None).unwrap();
    bench.make(Ino::ROOT, "k", FileKind::Dir);
    let path = main.name_path(Ino::ROOT, &["k"]).unwrap();
    let told = || main.versions(&path, None, &mut |_| Ok(true));
    assert!(matches!(bench.purge(&path), Err(FsError::IsDir)) && matches!(told(), Err(FsError::IsDir)));
    main.rmdir(Ino::ROOT, b"k", None).unwrap();
    told().unwrap();
    all_erased(&bench.purge(&path).unwrap());
    assert!(find(&bench, Some(point), "k").is_err());
    assert!(matches!(told(), Err(FsError::IsDir)), "it only ever meant a directory");
    bench.fsck();
}

/// It was removed and still open when the snapshot was made.
#[test]
fn a_held_snapshot_does_not_keep_what_it_does_not_show() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, &noise(1, 50_000));
    main.unlink(Ino::ROOT, b"f", None).unwrap();
    bench.snapshot("held");
    main.hold_snapshot("held", true).unwrap();
    main.remove_orphan(file).unwrap();
    let purged = bench.purge(&main.name_path(Ino::ROOT, &["f"]).unwrap()).unwrap();
    all_erased(&purged);
    assert_eq!(purged.snapshots_total, 0);
    bench.fsck();
}

/// Longer than anything that a comparison tells, let alone a program can name.
#[test]
fn a_name_at_the_end_of_a_very_long_path_keeps_nobody_from_purging() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let file = bench.file(Ino::ROOT, "f");
    let long = "L".repeat(252);
    let deep = (0..70).fold(Ino::ROOT, |dir, _| bench.make(dir, &long, FileKind::Dir));
    main.link(file, deep, b"again", None).unwrap();
    bench.snapshot("s");
    let purged = bench.purge(&main.name_path(Ino::ROOT, &["f"]).unwrap()).unwrap();
    all_erased(&purged);
    let names: Vec<_> = purged.names.iter().map(|n| String::from_utf8_lossy(&n.path).into_owned()).collect();
    assert_eq!(names, [".../again", "f"]);
    bench.fsck();
}
