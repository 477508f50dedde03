//! `diff` against two full walks.

mod paths;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config as Proptest, TestRunner};

use super::ops::{Op, Setup, op, setup};
use super::run::{Outcome, Run, name};
use super::*;

/// What a walk finds: of each name (directory, name) its path and inode.
type Walked = BTreeMap<(Ino, Vec<u8>), (Vec<u8>, Ino)>;

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// Every name at or below the scope, with paths from it on.
fn walk(volume: &Volume, at: Lsn, scope: &Scope) -> Walked {
    let mut found = Walked::new();
    let mut left = Vec::new();
    match scope {
        Scope::Dir(dir) => left.push((*dir, Vec::new())),
        Scope::Name((parent, hash)) => {
            if let Some(entry) = volume.view(Some(at)).dirent(*parent, hash).unwrap() {
                found.insert((*parent, entry.name.clone()), (entry.name.clone(), entry.ino));
                if entry.kind == FileKind::Dir {
                    left.push((entry.ino, entry.name));
                }
            }
        }
        Scope::Nothing => {}
    }
    while let Some((dir, path)) = left.pop() {
        if !volume.getattr(Some(at), dir).is_ok_and(|a| a.attrs.nlink > 0) {
            continue;
        }
        let visit = |entry: DirEntry| {
            if entry.cookie > 2 {
                let path = below(&path, &entry.name);
                if entry.kind == FileKind::Dir {
                    left.push((entry.ino, path.clone()));
                }
                found.insert((dir, entry.name), (path, entry.ino));
            }
            Ok(true)
        };
        volume.readdir(Some(at), dir, 0, visit).unwrap();
    }
    found
}

fn bytes_differ(volume: &Volume, inodes: (Ino, Ino), points: (Lsn, Lsn), size: u64) -> bool {
    let read = |at, ino, offset| volume.read(Some(at), ino, offset, 1 << 20).unwrap();
    (0..size).step_by(1 << 20).any(|at| read(points.0, inodes.0, at) != read(points.1, inodes.1, at))
}

/// In what two inodes differ, by all that a program can see of them.
fn what(volume: &Volume, points: (Lsn, Lsn), old: Ino, new: Ino) -> What {
    let (was, is) =
        (volume.getattr(Some(points.0), old).unwrap(), volume.getattr(Some(points.1), new).unwrap());
    let (was, is) = (was.attrs, is.attrs);
    let xattrs = |at, ino| {
        let names = volume.listxattr(Some(at), ino).unwrap();
        let names = names.split(|b| *b == 0).filter(|n| !n.is_empty());
        names.map(|n| (n.to_vec(), volume.getxattr(Some(at), ino, n).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let content = match is.kind {
        FileKind::File if old == new => {
            (was.size, was.mtime) != (is.size, is.mtime) || bytes_differ(volume, (old, new), points, is.size)
        }
        FileKind::File => was.size != is.size || bytes_differ(volume, (old, new), points, is.size),
        FileKind::Symlink => was.target != is.target,
        _ => was.rdev != is.rdev,
    };
    What {
        content,
        mode: was.mode != is.mode,
        owner: was.uid != is.uid,
        group: was.gid != is.gid,
        xattrs: xattrs(points.0, old) != xattrs(points.1, new),
    }
}

fn expected(volume: &Volume, points: (Lsn, Lsn), [before, after]: &[Scope; 2]) -> Vec<Change> {
    let (was, is) = (walk(volume, points.0, before), walk(volume, points.1, after));
    let size = |at, ino| {
        let attrs = volume.getattr(Some(at), ino).unwrap().attrs;
        matches!(attrs.kind, FileKind::File | FileKind::Symlink).then_some(attrs.size)
    };
    let mut changes = Vec::new();
    let mut told = |how, path: &[u8], from: Option<&[u8]>, old: Option<Ino>, new: Option<Ino>| {
        let at = if new.is_some() { points.1 } else { points.0 };
        let what = old.zip(new).map_or(What::default(), |(old, new)| what(volume, points, old, new));
        if how == How::Modified && what.is_empty() {
            return;
        }
        changes.push(Change {
            how,
            path: path.to_vec(),
            from: from.map(<[u8]>::to_vec),
            kind: volume.getattr(Some(at), new.or(old).unwrap()).unwrap().attrs.kind,
            size_before: old.and_then(|ino| size(points.0, ino)),
            size_after: new.and_then(|ino| size(points.1, ino)),
            what,
        });
    };
    if let (Scope::Dir(old), Scope::Dir(new)) = (before, after)
        && [(points.0, old), (points.1, new)]
            .iter()
            .all(|(at, dir)| volume.getattr(Some(*at), **dir).is_ok_and(|a| a.attrs.nlink > 0))
    {
        told(How::Modified, b"", None, Some(*old), Some(*new));
    }
    let is_one = before == after;
    let mut removed: BTreeMap<&[u8], Ino> = BTreeMap::new();
    let mut added: BTreeMap<&[u8], Ino> = BTreeMap::new();
    let all: BTreeSet<Ino> = was.values().chain(is.values()).map(|(_, ino)| *ino).collect();
    for ino in all {
        let of = |walked: &'_ Walked| -> BTreeSet<(Ino, Vec<u8>)> {
            walked.iter().filter(|(_, (_, i))| *i == ino).map(|(place, _)| place.clone()).collect()
        };
        let (then, now) = (of(&was), of(&is));
        // Where two things are compared only paths count.
        let kept = then.intersection(&now).filter(|_| is_one);
        let kept: BTreeSet<(Ino, Vec<u8>)> = kept.cloned().collect();
        for place in &kept {
            told(How::Modified, &is[place].0, None, Some(ino), Some(ino));
        }
        let mut gone: BTreeSet<&[u8]> = then.difference(&kept).map(|place| &was[place].0[..]).collect();
        let mut came: BTreeSet<&[u8]> = now.difference(&kept).map(|place| &is[place].0[..]).collect();
        // In other directories, under the same path.
        let same: Vec<&[u8]> = gone.intersection(&came).copied().collect();
        for path in same {
            told(How::Modified, path, None, Some(ino), Some(ino));
            gone.remove(path);
            came.remove(path);
        }
        let (gone, came): (Vec<&[u8]>, Vec<&[u8]>) = (gone.into_iter().collect(), came.into_iter().collect());
        let renamed = if is_one { gone.len().min(came.len()) } else { 0 };
        for (from, to) in gone.iter().zip(&came).take(renamed) {
            told(How::Renamed, to, Some(from), Some(ino), Some(ino));
        }
        removed.extend(gone[renamed..].iter().map(|path| (*path, ino)));
        added.extend(came[renamed..].iter().map(|path| (*path, ino)));
    }
    let kind = |at, ino| volume.getattr(Some(at), ino).unwrap().attrs.kind;
    for (path, ino) in &removed {
        match added.get(path).filter(|new| kind(points.0, *ino) == kind(points.1, **new)) {
            Some(new) => {
                told(How::Modified, path, None, Some(*ino), Some(*new));
                added.remove(path);
            }
            None => told(How::Removed, path, None, Some(*ino), None),
        }
    }
    for (path, ino) in &added {
        told(How::Added, path, None, None, Some(*ino));
    }
    sorted(changes)
}

fn sorted(mut changes: Vec<Change>) -> Vec<Change> {
    changes.sort_by(|a, b| (&a.path, a.how, &a.from).cmp(&(&b.path, b.how, &b.from)));
    changes
}

/// Bytes that were written again as they were count as changed content: a walk cannot tell.
fn agree(found: &[Change], expected: &[Change]) -> Result<(), String> {
    let mut rest: Vec<&Change> = expected.iter().collect();
    for change in found {
        let plain = Change { what: What { content: false, ..change.what }, ..change.clone() };
        match rest.iter().position(|e| *e == change || **e == plain) {
            Some(at) => drop(rest.remove(at)),
            None if change.how == How::Modified && plain.what.is_empty() && change.kind == FileKind::File => {
            }
            None => return Err(format!("found {change:?}, which is none of {expected:#?}")),
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(format!("did not find {rest:#?}, but {found:#?}")) }
}

fn check(volume: &Volume, points: (Lsn, Lsn), scopes: [Scope; 2]) -> Outcome {
    let found = volume.diff(points.0, points.1, scopes, None).map_err(|e| e.to_string())?;
    if sorted(found.clone()) != found {
        return Err(format!("not in order: {found:?}"));
    }
    agree(&found, &expected(volume, points, &scopes))
        .map_err(|e| format!("between {} and {}, {scopes:?}: {e}", points.0, points.1))
}

fn history(setup: Setup, ops: &[Op], picks: &[(u8, u8, u8)]) -> Outcome {
    let mut run = Run::new(setup);
    for (i, op) in ops.iter().enumerate() {
        run.step(op).map_err(|e| format!("step {i}, {op:?}: {e}"))?;
    }
    run.sync()?;
    let volume = run.volume();
    let mut points: Vec<Lsn> = run.snaps.iter().map(|s| s.lsn).collect();
    points.extend(run.moments.iter().map(|(lsn, _)| *lsn));
    points.push(volume.latest());
    points.retain(|at| volume.is_readable(*at));
    points.sort_unstable();
    points.dedup();
    let dirs = run.dirs();
    for (a, b, scope) in picks {
        let (a, b) = (points[*a as usize % points.len()], points[*b as usize % points.len()]);
        let dir = dirs[*scope as usize / 4 % dirs.len()];
        let other = dirs[*scope as usize / 7 % dirs.len()];
        let scopes = match scope % 6 {
            0 => [Scope::Dir(Ino::ROOT); 2],
            1 => [Scope::Dir(dir); 2],
            2 => [Scope::Dir(dir), Scope::Dir(other)],
            3 => [Scope::Nothing, Scope::Name((dir, volume.name_hash(&name(scope % 7))))],
            4 => [dir, other].map(|dir| Scope::Name((dir, volume.name_hash(&name(scope % 6))))),
            _ => [Scope::Name((dir, volume.name_hash(&name(scope % 6)))); 2],
        };
        check(&volume, (a.min(b), a.max(b)), scopes)?;
    }
    Ok(())
}

#[test]
fn comparing_points_of_histories_agrees_with_walking_both() {
    let config = Proptest { cases: cases(60), failure_persistence: None, ..Proptest::default() };
    let picks = prop::collection::vec(any::<(u8, u8, u8)>(), 12);
    let strategy = (setup(), prop::collection::vec(op(), 1..80), picks);
    TestRunner::new(config)
        .run(&strategy, |(setup, ops, picks)| history(setup, &ops, &picks).map_err(TestCaseError::fail))
        .unwrap();
}

/// Lines as the command prints them, without sizes.
fn lines(bench: &Bench, a: Lsn, scope: Scope, user: Option<&User>) -> Vec<String> {
    bench.main().commit_all().unwrap();
    lines_between(bench, a, bench.main().latest(), scope, user)
}

pub fn lines_between(bench: &Bench, a: Lsn, b: Lsn, scope: Scope, user: Option<&User>) -> Vec<String> {
    let changes = bench.main().diff(a, b, [scope; 2], user).unwrap();
    let line = |c: &Change| {
        let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
        let from = c.from.as_ref().map_or(String::new(), |from| format!("{} -> ", text(from)));
        let content = if c.what.content { "*" } else { "" };
        format!("{:?} {from}{}{content}", c.how, text(&c.path))
    };
    changes.iter().map(line).collect()
}

const ROOT: Scope = Scope::Dir(Ino::ROOT);

fn rename(bench: &Bench, from: (Ino, &str), to: (Ino, &str)) {
    let (from, to) = ((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()));
    bench.main().rename(from, to, RenameMode::Replace, None).unwrap();
}

#[test]
fn a_file_written_aside_and_renamed_over_another_is_that_one_modified() {
    let bench = Bench::new(quiet());
    let old = bench.file(Ino::ROOT, "f");
    bench.write(old, 0, b"old");
    let a = bench.snapshot("a");
    let new = bench.file(Ino::ROOT, "f.tmp");
    bench.write(new, 0, b"newer");
    rename(&bench, (Ino::ROOT, "f.tmp"), (Ino::ROOT, "f"));
    assert_eq!(lines(&bench, a, ROOT, None), ["Modified f*"]);
    let changes = bench.main().diff(a, bench.main().latest(), [ROOT; 2], None).unwrap();
    assert_eq!((changes[0].size_before, changes[0].size_after), (Some(3), Some(5)));
}

#[test]
fn a_renamed_directory_is_one_change_and_what_changed_below_it_another() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let files = ["x", "y", "z"].map(|name| bench.file(dir, name));
    let a = bench.snapshot("a");
    rename(&bench, (Ino::ROOT, "d"), (Ino::ROOT, "e"));
    bench.write(files[1], 0, b"changed");
    assert_eq!(lines(&bench, a, ROOT, None), ["Renamed d -> e", "Modified e/y*"]);
    assert_eq!(lines(&bench, a, Scope::Dir(dir), None), ["Modified y*"]);
    let by_name = Scope::Name((Ino::ROOT, bench.main().name_hash(b"d")));
    assert_eq!(lines(&bench, a, by_name, None), ["Removed d", "Removed d/x", "Removed d/y", "Removed d/z"]);
}

#[test]
fn every_name_of_a_changed_file_is_told_and_of_others_the_names_that_came_and_went() {
    let bench = Bench::new(quiet());
    let (d, e) = (bench.make(Ino::ROOT, "d", FileKind::Dir), bench.make(Ino::ROOT, "e", FileKind::Dir));
    let (f, g) = (bench.file(d, "f1"), bench.file(d, "g1"));
    for (ino, dir, name) in [(f, d, "f2"), (f, e, "f3"), (g, e, "g2"), (g, e, "g3")] {
        bench.main().link(ino, dir, name.as_bytes(), None).unwrap();
    }
    let a = bench.snapshot("a");
    bench.write(f, 0, b"x");
    bench.main().unlink(e, b"g3", None).unwrap();
    bench.main().link(g, d, b"g4", None).unwrap();
    bench.main().unlink(d, b"g1", None).unwrap();
    assert_eq!(
        lines(&bench, a, ROOT, None),
        ["Modified d/f1*", "Modified d/f2*", "Renamed d/g1 -> d/g4", "Modified e/f3*", "Removed e/g3"]
    );
}

#[test]
fn what_only_takes_another_form_in_the_index_has_not_changed() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, &noise(3, 20_000));
    // Inline, and with a small hole that becomes zeros when it is stored anew.
    for i in 0..40 {
        bench.write(file, 30_000 + i * 64, b"x");
    }
    bench.main().fsync(file).unwrap();
    bench.main().setattr(file, &SetAttr { size: Some(100 << 20), ..SetAttr::default() }, None).unwrap();
    bench.main().setattr(file, &SetAttr { size: Some(1 << 20), ..SetAttr::default() }, None).unwrap();
    let a = bench.snapshot("a");
    bench.main().setattr(file, &SetAttr { mode: Some(0o600), ..SetAttr::default() }, None).unwrap();
    bench.care();
    assert_eq!(lines(&bench, a, ROOT, None), ["Modified f"]);
    let read = bench.main().accessed(file, AccessTimes::Always).unwrap();
    assert!(read);
    bench.main().setattr(file, &SetAttr { mode: Some(0o640), ..SetAttr::default() }, None).unwrap();
    assert_eq!(lines(&bench, a, ROOT, None), Vec::<String>::new());
}

#[test]
fn a_file_whose_times_were_put_back_is_modified_all_the_same() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, b"abc");
    bench.main().setattr(file, &SetAttr { size: Some(1 << 20), ..SetAttr::default() }, None).unwrap();
    bench.main().fsync(file).unwrap();
    let back = SetAttr { mtime: Some(Timestamp { secs: 7, nanos: 0 }), ..SetAttr::default() };
    bench.main().setattr(file, &back, None).unwrap();
    for (name, offset) in [("data", 0), ("a hole", 512 << 10)] {
        let a = bench.snapshot(name);
        bench.write(file, offset, b"xyz");
        bench.main().fsync(file).unwrap();
        bench.main().setattr(file, &back, None).unwrap();
        assert_eq!(lines(&bench, a, ROOT, None), ["Modified f*"], "{name}");
    }
}

#[test]
fn a_user_learns_no_name_below_what_he_may_not_read() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let mode = |ino, mode| {
        main.setattr(ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }, None).unwrap();
    };
    mode(Ino::ROOT, 0o755);
    let dirs = ["closed", "listed", "open", "opened"].map(|name| bench.make(Ino::ROOT, name, FileKind::Dir));
    for (dir, bits) in dirs.iter().zip([0o711, 0o744, 0o755, 0o700]) {
        mode(*dir, bits);
        bench.file(*dir, "gone");
        bench.file(*dir, "kept");
    }
    let a = bench.snapshot("a");
    mode(dirs[3], 0o755);
    for dir in dirs {
        main.unlink(dir, b"gone", None).unwrap();
        let kept = main.lookup(None, dir, b"kept").unwrap().ino;
        bench.write(kept, 0, b"x");
    }
    rename(&bench, (dirs[0], "kept"), (dirs[2], "from closed"));
    let user = User { uid: 1000, gid: 1000, groups: vec![] };
    assert_eq!(
        lines(&bench, a, ROOT, Some(&user)),
        [
            "Added open/from closed",
            "Removed open/gone",
            "Modified open/kept*",
            "Modified opened",
            "Modified opened/kept*"
        ]
    );
    let group = User { groups: vec![8], ..user };
    let mut closed = lines(&bench, a, Scope::Dir(dirs[0]), Some(&group));
    assert_eq!(closed, Vec::<String>::new());
    closed = lines(&bench, a, Scope::Dir(dirs[0]), None);
    assert_eq!(closed, ["Removed gone", "Removed kept"]);
}

#[test]
fn what_moved_into_a_part_of_the_volume_came_with_all_that_it_holds() {
    let bench = Bench::new(quiet());
    let (part, moved) =
        (bench.make(Ino::ROOT, "part", FileKind::Dir), bench.make(Ino::ROOT, "moved", FileKind::Dir));
    let below = bench.make(moved, "below", FileKind::Dir);
    let file = bench.file(below, "file");
    let a = bench.snapshot("a");
    rename(&bench, (Ino::ROOT, "moved"), (part, "here"));
    bench.file(below, "new");
    bench.write(file, 0, b"x");
    let below_part = ["Added here", "Added here/below", "Added here/below/file", "Added here/below/new"];
    assert_eq!(lines(&bench, a, Scope::Dir(part), None), below_part);
    let whole = ["Renamed moved -> part/here", "Modified part/here/below/file*", "Added part/here/below/new"];
    assert_eq!(lines(&bench, a, ROOT, None), whole);
}
