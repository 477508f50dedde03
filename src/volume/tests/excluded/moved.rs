//! What leaves an excluded place gets a history, and what has one keeps it.

use std::collections::BTreeSet;

use super::*;
use crate::volume::revealing::Revealing;

fn paths(changes: Vec<Change>) -> Vec<(How, String)> {
    changes.into_iter().map(|c| (c.how, String::from_utf8(c.path).unwrap())).collect()
}

#[test]
fn a_temporary_file_that_is_renamed_into_place_has_its_whole_history_there() {
    let bench = excluding(&["**/*.tmp"]);
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let mut points = Vec::new();
    for i in 0..4u64 {
        let temp = bench.file(dir, "f.tmp");
        bench.write(temp, 0, &noise(i, 40_000));
        bench.snapshot(&format!("half{i}"));
        bench.write(temp, 40_000, &noise(i + 10, 300_000));
        bench.main().setxattr(temp, b"user.i", &i.to_le_bytes(), XattrMode::Set, None).unwrap();
        rename(&bench, (dir, "f.tmp"), (dir, "f"));
        assert!(!is_excluded(&bench, temp));
        points.push((bench.snapshot(&format!("whole{i}")), temp));
        bench.write(temp, 7, b"later");
    }
    for (i, (at, ino)) in points.iter().enumerate() {
        let found = bench.main().lookup(Some(*at), dir, b"f").unwrap();
        assert_eq!((found.ino, names(&bench, Some(*at), dir)), (*ino, vec!["f".to_owned()]));
        let whole = [noise(i as u64, 40_000), noise(i as u64 + 10, 300_000)].concat();
        assert!(bench.read(Some(*at), *ino) == whole, "{i}");
        assert_eq!(bench.main().getxattr(Some(*at), *ino, b"user.i").unwrap(), (i as u64).to_le_bytes());
    }
    let half = bench.main().snapshot_named("half0").unwrap().lsn;
    assert!(names(&bench, Some(half), dir).is_empty());
    let scope = Scope::Dir(Ino::ROOT);
    // It was made before the point, and seen after it.
    let changes = bench.main().diff(half, points[0].0, [scope; 2], None).unwrap();
    assert_eq!(paths(changes), [(How::Added, "d/f".to_owned())]);
    bench.fsck();
}

/// Directories within each other, with entries that take several records.
fn tree(bench: &Bench, dir: Ino) -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    let mut level = vec![(dir, String::new())];
    for _ in 0..3 {
        let mut next = Vec::new();
        for (dir, path) in &level {
            for i in 0..3 {
                let name = format!("f{i}");
                let file = bench.file(*dir, &name);
                bench.write(file, 0, format!("{path}{name}").as_bytes());
                made.insert(format!("{path}{name}"));
                let sub = format!("d{i}");
                next.push((bench.make(*dir, &sub, FileKind::Dir), format!("{path}{sub}/")));
            }
            bench.file(*dir, "left.tmp");
        }
        level = next;
    }
    made
}

/// The files below a directory at a point, all of which hold their paths.
fn files(bench: &Bench, at: Lsn, dir: Ino) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![(dir, String::new())];
    while let Some((dir, path)) = todo.pop() {
        for name in names(bench, Some(at), dir) {
            let attr = bench.main().lookup(Some(at), dir, name.as_bytes()).unwrap();
            let here = format!("{path}{name}");
            if attr.attrs.kind == FileKind::Dir {
                todo.push((attr.ino, format!("{here}/")));
            } else {
                assert_eq!(bench.read(Some(at), attr.ino), here.as_bytes());
                found.insert(here);
            }
        }
    }
    found
}

#[test]
fn a_directory_moved_out_of_an_excluded_place_has_its_whole_history_from_then_on() {
    let bench = excluding(&["scratch/**", "**/*.tmp"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    let set = bench.make(scratch, "set", FileKind::Dir);
    let made = tree(&bench, set);
    let before = bench.snapshot("before");
    assert!(names(&bench, Some(before), scratch).is_empty());
    let out = bench.make(Ino::ROOT, "out", FileKind::Dir);
    rename(&bench, (scratch, "set"), (out, "set"));
    let at = bench.snapshot("moved");
    assert_eq!(files(&bench, at, set), made, "but for what is excluded there as well");
    bench.fsck();
    let first = bench.find(None, "out/set/f1").unwrap();
    bench.write(first, 0, b"changed");
    assert_eq!(files(&bench, at, set), made);
    // A name that is given now is decided by where the directory lies now.
    assert!(!is_excluded(&bench, bench.file(set, "new")));
    assert!(is_excluded(&bench, bench.file(set, "new.tmp")));
    let changes = bench.main().diff(before, at, [Scope::Dir(Ino::ROOT); 2], None).unwrap();
    let added: BTreeSet<String> = paths(changes).into_iter().map(|(_, path)| path).collect();
    assert!(made.iter().all(|file| added.contains(&format!("out/set/{file}"))), "{added:?}");
    // Back again: what has a history keeps it.
    rename(&bench, (out, "set"), (scratch, "set"));
    assert!(!is_excluded(&bench, first) && is_excluded(&bench, bench.file(set, "newer")));
    let back = bench.snapshot("back");
    assert_eq!(files_named(&bench, back, set).len(), made.len() + 1, "with `new`, without `newer`");
    assert_eq!(files(&bench, at, set), made);
    bench.fsck();
}

#[test]
fn a_directory_that_holds_excluded_files_and_is_renamed_itself_reveals_them() {
    let bench = excluding(&["scratch/**"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    let made = tree(&bench, scratch);
    let exchanged = bench.make(Ino::ROOT, "other", FileKind::Dir);
    bench.file(exchanged, "o");
    let main = bench.main();
    main.rename((Ino::ROOT, b"scratch"), (Ino::ROOT, b"other"), RenameMode::Exchange, None).unwrap();
    let at = bench.snapshot("s");
    let found: BTreeSet<String> = files_named(&bench, at, scratch).into_iter().collect();
    assert!(found.is_superset(&made), "all of it");
    assert!(is_excluded(&bench, bench.file(exchanged, "new")), "it is the scratch directory now");
    assert_eq!(names(&bench, Some(bench.snapshot("t")), exchanged), ["o"]);
    bench.fsck();
}

fn files_named(bench: &Bench, at: Lsn, dir: Ino) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![(dir, String::new())];
    while let Some((dir, path)) = todo.pop() {
        for name in names(bench, Some(at), dir) {
            let attr = bench.main().lookup(Some(at), dir, name.as_bytes()).unwrap();
            let here = format!("{path}{name}");
            match attr.attrs.kind {
                FileKind::Dir => todo.push((attr.ino, format!("{here}/"))),
                _ => found.push(here),
            }
        }
    }
    found
}

/// After every number of records a crash leaves a tree that is whole, and the move can be made again.
#[test]
fn a_move_that_a_crash_cuts_short_loses_nothing_and_can_be_made_again() {
    let mut seen = BTreeSet::new();
    for steps in 0.. {
        let mut bench = excluding(&["scratch/**"]);
        let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
        let set = bench.make(scratch, "set", FileKind::Dir);
        let (sub, file) = (bench.make(set, "sub", FileKind::Dir), bench.file(set, "f"));
        for i in 0..8 {
            bench.file(sub, &format!("s{i}"));
        }
        bench.write(file, 0, b"f");
        bench.volumes().sync().unwrap();
        let source = bench.main().entry(None, scratch, b"set").unwrap().unwrap();
        let mut revealing = Revealing::new(&[(source, Some(b"set".to_vec()))]);
        let mut more = true;
        for _ in 0..steps {
            more = more && revealing.step(bench.main()).unwrap();
        }
        drop(revealing);
        bench.crash();
        bench.fsck();
        let half = bench.snapshot("half");
        assert!(names(&bench, Some(half), scratch).is_empty(), "nothing of it is seen yet");
        seen.insert([sub, file].map(|ino| is_excluded(&bench, ino)));
        rename(&bench, (scratch, "set"), (Ino::ROOT, "set"));
        let at = bench.snapshot("whole");
        let found = files_named(&bench, at, set);
        assert_eq!(found.len(), 9, "{found:?}");
        assert_eq!(bench.read(Some(at), file), b"f");
        bench.fsck();
        if !more {
            break;
        }
    }
    assert!(seen.len() >= 2, "{seen:?}");
}

#[test]
fn what_is_made_in_a_directory_while_it_moves_out_does_not_stay_behind() {
    let bench = excluding(&["scratch/**"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    for round in 0..20 {
        let set = bench.make(scratch, "set", FileKind::Dir);
        let subs: Vec<Ino> = (0..6).map(|i| bench.make(set, &format!("d{i}"), FileKind::Dir)).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..60usize {
                    bench.file(subs[i % 6], &format!("f{i}"));
                }
            });
            scope.spawn(|| rename(&bench, (scratch, "set"), (Ino::ROOT, &format!("set{round}"))));
        });
        let at = bench.snapshot(&format!("s{round}"));
        assert_eq!(files_named(&bench, at, set).len(), 60);
    }
    bench.fsck();
}

#[test]
fn a_move_that_fails_reveals_nothing() {
    let bench = excluding(&["scratch/**"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    let set = bench.make(scratch, "set", FileKind::Dir);
    let inside = bench.file(set, "inside");
    let full = bench.make(Ino::ROOT, "full", FileKind::Dir);
    bench.file(full, "f");
    bench.file(Ino::ROOT, "plain");
    let main = bench.main();
    let from: (Ino, &[u8]) = (scratch, b"set");
    let onto = |name: &'static [u8], mode| main.rename(from, (Ino::ROOT, name), mode, None);
    assert!(matches!(onto(b"full", RenameMode::Replace), Err(FsError::NotEmpty)));
    assert!(matches!(onto(b"plain", RenameMode::Replace), Err(FsError::NotDir)));
    assert!(matches!(onto(b"full", RenameMode::NoReplace), Err(FsError::Exists)));
    assert!(matches!(onto(b"none", RenameMode::Exchange), Err(FsError::NotFound)));
    // Of a directory, and of what is gone.
    assert!(matches!(main.link(Ino::ROOT, set, b"l", None), Err(FsError::NotPermitted(_))));
    let gone = bench.file(Ino::ROOT, "gone");
    main.unlink(Ino::ROOT, b"gone", None).unwrap();
    assert!(matches!(main.link(gone, set, b"l", None), Err(FsError::NotFound)));
    assert!(matches!(main.link(full, set, b"inside", None), Err(FsError::NotPermitted(_))));
    let removed = bench.make(Ino::ROOT, "removed", FileKind::Dir);
    main.rmdir(Ino::ROOT, b"removed", None).unwrap();
    let into_removed = main.rename(from, (removed, b"set"), RenameMode::Replace, None);
    assert!(matches!(into_removed, Err(FsError::NotFound)));
    assert!(is_excluded(&bench, set) && is_excluded(&bench, inside));
    bench.fsck();
}

#[test]
fn a_hard_link_out_of_an_excluded_place_gives_the_file_its_history() {
    let bench = excluding(&["scratch/**"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    let file = bench.file(scratch, "f");
    bench.write(file, 0, b"one");
    bench.main().link(file, scratch, b"second", None).unwrap();
    assert!(is_excluded(&bench, file));
    bench.main().link(file, Ino::ROOT, b"out", None).unwrap();
    assert!(!is_excluded(&bench, file));
    let at = bench.snapshot("s");
    bench.write(file, 0, b"two");
    bench.volumes().sync().unwrap();
    assert_eq!(bench.read(Some(at), file), b"one");
    assert_eq!(names(&bench, Some(at), Ino::ROOT), ["out", "scratch"]);
    assert!(names(&bench, Some(at), scratch).is_empty(), "the other names stay hidden");
    bench.fsck();
    bench.main().unlink(scratch, b"f", None).unwrap();
    rename(&bench, (scratch, "second"), (Ino::ROOT, "third"));
    let at = bench.snapshot("t");
    assert_eq!(names(&bench, Some(at), Ino::ROOT), ["out", "scratch", "third"]);
    bench.fsck();
}

#[test]
fn what_has_a_history_keeps_it_in_an_excluded_place() {
    let bench = excluding(&["scratch"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    let job = bench.make(scratch, "job", FileKind::Dir);
    let hidden = bench.file(job, "hidden");
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, b"one");
    let before = bench.snapshot("before");
    rename(&bench, (Ino::ROOT, "f"), (job, "f"));
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    bench.file(dir, "inside");
    rename(&bench, (Ino::ROOT, "d"), (job, "d"));
    bench.main().link(file, job, b"linked", None).unwrap();
    assert!(![file, job, scratch, dir].into_iter().any(|ino| is_excluded(&bench, ino)));
    assert!(is_excluded(&bench, hidden) && is_excluded(&bench, bench.file(dir, "new")));
    let at = bench.snapshot("after");
    bench.write(file, 0, b"two");
    bench.volumes().sync().unwrap();
    assert_eq!(names(&bench, Some(at), job), ["d", "f", "linked"]);
    assert_eq!(names(&bench, Some(at), dir), ["inside"]);
    assert_eq!(
        (bench.read(Some(before), file), bench.read(Some(at), file)),
        (b"one".to_vec(), b"one".to_vec())
    );
    let changes = bench.main().diff(before, at, [Scope::Dir(Ino::ROOT); 2], None).unwrap();
    assert!(paths(changes).contains(&(How::Renamed, "scratch/job/f".to_owned())));
    bench.fsck();
}
