//! Restoring: by hand, of random directories at random moments of random histories against the model, and cut
//! short.

mod cut;
mod seen;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config as Proptest, TestError, TestRunner};

use super::model::{Model, Node, compare_all};
use super::ops::{Op, Setup, op, setup};
use super::run::{Outcome, Run, pick};
use super::*;
use crate::volume::restore::{Counts, Restore, Restored};

fn path(text: &str) -> Vec<Vec<u8>> {
    text.split('/').filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()).collect()
}

pub fn of(at: Lsn, text: &str) -> Restore {
    Restore { at, path: path(text), to: None, actor: None }
}

impl Bench {
    /// Time passes between all that is done by hand.
    pub fn point(&self, name: &str) -> Lsn {
        let at = self.snapshot(name);
        self.clock.advance(1_000_000);
        at
    }

    pub fn restore(&self, restore: &Restore) -> FsResult<Restored> {
        self.clock.advance(1_000_000);
        self.volumes().restore(self.main(), restore, false, &mut |_, _, _| {})
    }

    pub fn find(&self, at: Option<Lsn>, text: &str) -> FsResult<Ino> {
        path(text).iter().try_fold(Ino::ROOT, |dir, name| Ok(self.main().lookup(at, dir, name)?.ino))
    }

    pub fn content(&self, text: &str) -> Vec<u8> {
        self.read(None, self.find(None, text).unwrap())
    }

    /// What a mount does when the kernel has let go of everything.
    pub fn let_go(&self) {
        self.main().remove_stages().unwrap();
        loop {
            let orphans = self.main().orphans().unwrap();
            if orphans.is_empty() {
                return;
            }
            for ino in orphans {
                while self.main().empty_orphan(ino).unwrap().is_some() {}
                self.main().remove_orphan(ino).unwrap();
            }
        }
    }

    /// Whether every inode that there is can be reached: nothing has leaked.
    pub fn nothing_leaked(&self) -> Outcome {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![Ino::ROOT]);
        while let Some(ino) = todo.pop() {
            if !seen.insert(ino) || self.main().getattr(None, ino).unwrap().attrs.kind != FileKind::Dir {
                continue;
            }
            let add = |entry: DirEntry| {
                todo.extend((entry.name != b"." && entry.name != b"..").then_some(entry.ino));
                Ok(true)
            };
            self.main().readdir(None, ino, 0, add).unwrap();
        }
        let state = self.store().index().state();
        let inodes = state.volumes.get(&self.main().id()).unwrap().inodes;
        if inodes == seen.len() as u64 {
            Ok(())
        } else {
            Err(format!("{inodes} inodes, {} named", seen.len()))
        }
    }
}

#[test]
fn a_deleted_tree_comes_back_with_its_directories_and_an_overwritten_file_as_it_was() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let deep = bench.make(dir, "deep", FileKind::Dir);
    let file = bench.file(deep, "f");
    bench.write(file, 0, &noise(1, 700_000));
    bench.write(file, 5 << 20, b"behind a hole");
    let other = bench.file(dir, "other");
    bench.write(other, 0, b"old");
    let at = bench.point("s");
    let main = bench.main();
    main.unlink(deep, b"f", None).unwrap();
    main.rmdir(dir, b"deep", None).unwrap();
    bench.write(other, 0, b"newer");
    bench.file(dir, "extra");
    let before = bench.store().packs_bytes().unwrap();
    let done = bench.restore(&of(at, "d")).unwrap();
    assert_eq!(done.counts.brought_back, 2);
    assert_eq!((done.counts.replaced, done.counts.removed), (2, 1), "the file and the directory's times");
    assert!(done.snapshot.unwrap().spec.name.starts_with("before-restore-"));
    assert_eq!(bench.store().packs_bytes().unwrap(), before, "no byte was copied");
    let now = bench.content("d/deep/f");
    assert!(now == bench.read(Some(at), file) && now.len() > 5 << 20);
    assert_eq!(bench.content("d/other"), b"old");
    assert!(matches!(bench.find(None, "d/extra"), Err(FsError::NotFound)));
    assert_eq!(bench.read(None, other), b"newer", "whoever has it open keeps it");
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
    // The directories above may be gone as well.
    main.unlink(dir, b"other", None).unwrap();
    let deep = bench.find(None, "d/deep").unwrap();
    main.unlink(deep, b"f", None).unwrap();
    main.rmdir(dir, b"deep", None).unwrap();
    main.rmdir(Ino::ROOT, b"d", None).unwrap();
    bench.restore(&of(at, "d/deep/f")).unwrap();
    assert!(bench.content("d/deep/f") == now);
    assert!(matches!(bench.find(None, "d/other"), Err(FsError::NotFound)), "only what leads to it");
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn what_has_not_changed_keeps_its_inode_and_names_of_one_file_stay_names_of_one() {
    let bench = Bench::new(quiet());
    let (a, b) = (bench.make(Ino::ROOT, "a", FileKind::Dir), bench.make(Ino::ROOT, "b", FileKind::Dir));
    let same = bench.file(a, "same");
    let linked = bench.file(a, "one");
    bench.write(linked, 0, b"linked");
    bench.main().link(linked, b, b"two", None).unwrap();
    bench.main().link(linked, b, b"three", None).unwrap();
    let at = bench.point("s");
    assert!(bench.restore(&of(at, "")).unwrap().snapshot.is_none(), "nothing to be done, nothing done");
    bench.main().unlink(b, b"two", None).unwrap();
    bench.restore(&of(at, "")).unwrap();
    let found = ["a/one", "b/two", "b/three"].map(|name| bench.find(None, name).unwrap());
    assert!(found.iter().all(|ino| *ino == found[0] && *ino != linked), "{found:?}");
    assert_eq!(bench.main().getattr(None, found[0]).unwrap().attrs.nlink, 3);
    assert_eq!(bench.find(None, "a/same").unwrap(), same);
    let again = bench.restore(&of(at, "")).unwrap();
    assert_eq!((again.snapshot, again.counts), (None, Counts::default()), "it is as it was by now");
    // Of names outside of what is restored none changes.
    bench.write(found[0], 0, b"change");
    bench.restore(&of(at, "a")).unwrap();
    assert_eq!((bench.content("a/one"), bench.content("b/two")), (b"linked".to_vec(), b"change".to_vec()));
    assert_eq!(bench.main().getattr(None, found[0]).unwrap().attrs.nlink, 2);
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn a_change_too_large_for_one_record_replaces_whole_directories() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    for i in 0..60 {
        let file = bench.file(dir, &format!("f{i}"));
        bench.write(file, 0, format!("old {i}").as_bytes());
    }
    let at = bench.point("s");
    for i in 0..60 {
        bench.write(bench.find(None, &format!("d/f{i}")).unwrap(), 0, b"NEW");
    }
    let done = bench.restore(&of(at, "d")).unwrap();
    assert_eq!(done.counts.replaced, 60);
    assert_eq!(done.touched.entries, [(Ino::ROOT, b"d".to_vec())], "one name");
    for i in 0..60 {
        assert_eq!(bench.content(&format!("d/f{i}")), format!("old {i}").as_bytes());
    }
    assert!(bench.main().orphans().unwrap().contains(&dir), "the old tree, with all that is in it");
    bench.fsck();
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn a_copy_gets_a_new_name_and_takes_no_other() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "f");
    bench.write(file, 0, b"then");
    let at = bench.point("s");
    bench.write(file, 0, b"now!");
    let to = |name: &str| Restore { to: Some((Ino::ROOT, name.as_bytes().to_vec())), ..of(at, "d") };
    assert!(matches!(bench.restore(&to("d")), Err(FsError::Exists)));
    let done = bench.restore(&to("copy")).unwrap();
    assert!(done.snapshot.is_none(), "nothing was replaced");
    assert_eq!((bench.content("copy/f"), bench.content("d/f")), (b"then".to_vec(), b"now!".to_vec()));
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

/// What was written after the plan was made, and before the record, is in the snapshot at least.
#[test]
fn what_is_written_while_a_restore_prepares_is_never_lost() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "f");
    bench.write(file, 0, b"then");
    let at = bench.point("s");
    bench.write(file, 0, b"now!");
    let (mut rounds, main) = (0, bench.main().clone());
    let done = bench
        .volumes()
        .restore(&main, &of(at, "d"), false, &mut |_, _, _| {
            rounds += 1;
            bench.clock.advance(1000);
            main.write(file, 0, format!("late {rounds}").as_bytes(), Writer::ROOT).unwrap();
            if rounds < 3 {
                bench.file(dir, &format!("new{rounds}"));
            }
        })
        .unwrap();
    let snapshot = done.snapshot.unwrap().lsn;
    assert!(rounds >= 3, "a new name makes the plan be made anew");
    assert_eq!(bench.read(Some(snapshot), file), format!("late {rounds}").as_bytes());
    assert!(bench.find(Some(snapshot), "d/new2").is_ok() && bench.find(None, "d/new2").is_err());
    assert_eq!(bench.content("d/f"), b"then");
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn who_restores_needs_the_rights_to_do_it_by_hand() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "f");
    let suid = SetAttr { mode: Some(0o4755), ..SetAttr::default() };
    main.setattr(file, &suid, None).unwrap();
    let at = bench.point("s");
    main.unlink(dir, b"f", None).unwrap();
    let as_user =
        |uid, group, text| Restore { actor: Some(User { uid, gid: group, groups: vec![] }), ..of(at, text) };
    let denied = |restore: &Restore| {
        let result = bench.restore(restore);
        assert!(matches!(result, Err(FsError::Denied(_))), "{result:?}");
    };
    // The bench's files belong to 7:8, mode 0640.
    denied(&as_user(9, 8, "d"));
    denied(&as_user(9, 9, "d/f"));
    denied(&as_user(7, 9, "d/f"));
    let may_all = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    main.setattr(dir, &may_all, None).unwrap();
    let at = {
        let back = bench.restore(&of(at, "d/f")).unwrap();
        assert_eq!(back.counts, Counts { brought_back: 1, ..Counts::default() });
        bench.point("t")
    };
    main.unlink(dir, b"f", None).unwrap();
    let own = Restore { at, ..as_user(7, 8, "d/f") };
    bench.restore(&own).unwrap();
    let found = main.getattr(None, bench.find(None, "d/f").unwrap()).unwrap().attrs;
    assert_eq!((found.mode, found.uid), (0o755, 7), "nobody but root gets setuid bits by it");
    let root = SetAttr { uid: Some(0), ..SetAttr::default() };
    main.setattr(bench.find(None, "d/f").unwrap(), &root, None).unwrap();
    denied(&own);
}

/// Whether a name is excluded, or that of a directory in which only such are.
fn is_left_alone(volume: &Volume, dir: Ino, name: &[u8]) -> bool {
    let entry = volume.entry(None, dir, name).unwrap().unwrap();
    let mut below = Vec::new();
    if entry.kind == FileKind::Dir {
        let add = |entry: DirEntry| {
            below.extend((entry.name != b"." && entry.name != b"..").then_some(entry.name));
            Ok(true)
        };
        volume.readdir(None, entry.ino, 0, add).unwrap();
    }
    entry.excluded || (!below.is_empty() && below.iter().all(|name| is_left_alone(volume, entry.ino, name)))
}

/// Compares the live tree below `live` with the model's below `then`; notes which inode became which.
fn compare_tree(
    volume: &Volume,
    model: &Model,
    (then, live): (Ino, Ino),
    became: &mut BTreeMap<Ino, Ino>,
) -> Outcome {
    let (node, attrs) = (model.get(then), volume.getattr(None, live).map_err(|e| e.to_string())?.attrs);
    let fail = |what: String| Err(format!("inode {live}, which was {then}: {what}"));
    if *became.entry(then).or_insert(live) != live {
        return fail("its names lead to several".into());
    }
    let size = if node.kind == FileKind::Symlink { node.target.len() as u64 } else { node.size };
    let found = (attrs.kind, attrs.mode, (attrs.uid, attrs.gid), attrs.size, attrs.target.clone());
    let expected = (node.kind, node.mode, node.owner, size, node.target.clone());
    if found != expected || attrs.mtime != node.mtime {
        return fail(format!("{found:?} {:?}, expected {expected:?} {:?}", attrs.mtime, node.mtime));
    }
    let names: Vec<u8> = node.xattrs.keys().flat_map(|n| n.iter().copied().chain([0])).collect();
    if volume.listxattr(None, live).unwrap() != names {
        return fail("other xattrs".into());
    }
    for (name, value) in &node.xattrs {
        if volume.getxattr(None, live, name).unwrap() != *value {
            return fail("another xattr value".into());
        }
    }
    if node.kind == FileKind::File {
        let (now, was) = (volume.read(None, live, 0, node.size as usize), node.read(0, node.size as usize));
        return if now.map_err(|e| e.to_string())? == was { Ok(()) } else { fail("other bytes".into()) };
    }
    if node.kind != FileKind::Dir {
        return Ok(());
    }
    let mut entries = BTreeMap::new();
    let add = |entry: DirEntry| {
        entries.insert(entry.name, entry.ino);
        Ok(true)
    };
    volume.readdir(None, live, 0, add).map_err(|e| e.to_string())?;
    entries.retain(|name, _| name != b"." && name != b"..");
    let mut subdirs = 0;
    for ino in entries.values() {
        subdirs += u32::from(volume.getattr(None, *ino).unwrap().attrs.kind == FileKind::Dir);
    }
    if (attrs.entries, attrs.nlink) != (entries.len() as u64, 2 + subdirs) {
        return fail(format!("counts {} and {}", attrs.entries, attrs.nlink));
    }
    // What is excluded was not there, and stays.
    entries.retain(|name, _| node.entries.contains_key(name) || !is_left_alone(volume, live, name));
    if !entries.keys().eq(node.entries.keys()) {
        return fail(format!("entries {:?}, expected {:?}", entries.keys(), node.entries.keys()));
    }
    for (name, child) in &node.entries {
        compare_tree(volume, model, (*child, entries[name]), became)?;
    }
    Ok(())
}

/// The path of a directory that can be reached in a model.
fn path_of(model: &Model, dir: Ino) -> Option<Vec<Vec<u8>>> {
    let (mut path, mut at) = (Vec::new(), dir);
    while at != Ino::ROOT {
        let parent = model.get(at).parent;
        let (name, _) = model.nodes.get(&parent)?.entries.iter().find(|(_, ino)| **ino == at)?;
        path.insert(0, name.clone());
        at = parent;
    }
    Some(path)
}

impl Run {
    /// Restores some directory at some moment, and compares with what the model was then and is now.
    fn restore(&mut self, which: u8, moment: u8) -> Outcome {
        self.sync()?;
        let volume = self.volume();
        let moments = self.moments.iter().filter(|(lsn, _)| volume.is_readable(*lsn)).cloned();
        let all: Vec<(Lsn, Model)> = self
            .snaps
            .iter()
            .map(|s| (s.lsn, s.model.clone()))
            .chain(moments)
            .map(|(at, m)| (at, m.shown()))
            .collect();
        let Some(chosen) = pick(&(0..all.len()).collect::<Vec<_>>(), moment) else { return Ok(()) };
        let (at, then) = &all[chosen];
        let dirs: Vec<Ino> = then.of_kind(|n| n.kind == FileKind::Dir && n.nlink > 0);
        let paths: Vec<_> = dirs.iter().filter_map(|dir| Some((*dir, path_of(then, *dir)?))).collect();
        let Some(chosen) = pick(&(0..paths.len()).collect::<Vec<_>>(), which) else { return Ok(()) };
        let (dir, path) = paths[chosen].clone();
        let before = self.model.clone();
        let restore = Restore { at: *at, path: path.clone(), to: None, actor: None };
        let wanted = self.bench.volumes().restore(&volume, &restore, true, &mut |_, _, _| {});
        let done = match self.bench.restore(&restore) {
            Ok(done) => done,
            // A file has the name of a directory above; many changes in the root.
            Err(FsError::Refused(_)) => return self.look(true),
            Err(e) => return Err(format!("restore: {e}")),
        };
        if wanted.map_err(|e| e.to_string())?.counts != done.counts {
            return Err("the dry run said something else".into());
        }
        if let Some(snapshot) = &done.snapshot {
            compare_all(&volume, Some(snapshot.lsn), &before, &self.known, true)
                .map_err(|e| format!("the snapshot before: {e}"))?;
        }
        let live = path.iter().try_fold(Ino::ROOT, |dir, name| Ok(volume.lookup(None, dir, name)?.ino));
        let live = live.map_err(|e: FsError| e.to_string())?;
        let mut became = BTreeMap::new();
        compare_tree(&volume, then, (dir, live), &mut became)?;
        if became.values().collect::<BTreeSet<_>>().len() != became.len() {
            return Err("two files became one".into());
        }
        self.compare_outside(&before, &path)?;
        self.compare_excluded(&before)?;
        self.bench.let_go();
        self.bench.nothing_leaked()?;
        let problems = self.bench.problems();
        if problems.is_empty() { Ok(()) } else { Err(format!("fsck: {problems:?}")) }
    }

    /// Whether all that is excluded is where it was.
    fn compare_excluded(&self, before: &Model) -> Outcome {
        let volume = self.volume();
        let mut todo = vec![Ino::ROOT];
        while let Some(dir) = todo.pop() {
            let node = before.get(dir);
            for (name, ino) in &node.entries {
                todo.extend((before.get(*ino).kind == FileKind::Dir).then_some(*ino));
                if !node.hidden.contains(name) && !node.excluded {
                    continue;
                }
                let found = volume.lookup(None, dir, name).map_err(|e| format!("excluded {ino}: {e}"))?;
                let was = before.get(*ino);
                if found.ino != *ino
                    || volume.read(None, *ino, 0, was.size as usize).ok()
                        != (was.kind == FileKind::File).then(|| was.read(0, was.size as usize))
                {
                    return Err(format!("{ino}, which is excluded, was changed"));
                }
            }
        }
        Ok(())
    }

    /// Whether everything outside of `path` is what it was: names, inodes, contents.
    fn compare_outside(&self, before: &Model, path: &[Vec<u8>]) -> Outcome {
        let volume = self.volume();
        let mut todo = vec![(Ino::ROOT, Vec::new())];
        while let Some((dir, at)) = todo.pop() {
            for (name, ino) in &before.get(dir).entries {
                let here = [at.as_slice(), std::slice::from_ref(name)].concat();
                if here == path || path.is_empty() {
                    continue;
                }
                let found = volume.lookup(None, dir, name).map_err(|e| format!("{here:?}: {e}"))?;
                let node: &Node = before.get(*ino);
                if found.ino != *ino || found.attrs.size != node.size && node.kind == FileKind::File {
                    return Err(format!("{here:?} is another one"));
                }
                if node.kind == FileKind::File
                    && volume.read(None, *ino, 0, node.size as usize).unwrap()
                        != node.read(0, node.size as usize)
                {
                    return Err(format!("{here:?} has changed"));
                }
                if node.kind == FileKind::Dir {
                    todo.push((*ino, here));
                }
            }
        }
        Ok(())
    }
}

fn restored_history(setup: Setup, ops: &[Op], which: u8, moment: u8) -> Outcome {
    let mut run = Run::new(setup);
    for (i, op) in ops.iter().enumerate() {
        run.step(op).map_err(|e| format!("step {i}, {op:?}: {e}"))?;
    }
    run.bench.clock.advance(1_000_003);
    run.restore(which, moment)
}

#[test]
fn a_restored_directory_is_what_the_model_was_and_all_else_what_it_is() {
    let config = Proptest {
        cases: cases(60),
        failure_persistence: None,
        max_shrink_iters: 600,
        ..Proptest::default()
    };
    let strategy = (setup(), prop::collection::vec(op(), 10..80), any::<u8>(), any::<u8>());
    let result = TestRunner::new(config).run(&strategy, |(setup, ops, which, moment)| {
        restored_history(setup, &ops, which, moment).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (setup, ops, which, moment))) => {
            panic!("{reason}\n{setup:?}, {which}, {moment}, &{ops:?}")
        }
        Err(e) => panic!("{e}"),
    }
}
