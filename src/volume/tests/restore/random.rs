//! Restores of random directories at random moments of random histories, against the model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config as Proptest, TestError, TestRunner};

use super::super::model::{Model, Node, compare};
use super::super::ops::{Op, Setup, op, setup};
use super::super::run::{Outcome, Run, Snap, pick};
use super::*;

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
    pub fn restore(&mut self, which: u8, moment: u8) -> Outcome {
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
        self.go_on_with_restored(before, done.snapshot)?;
        let problems = self.bench.problems();
        if problems.is_empty() { Ok(()) } else { Err(format!("fsck: {problems:?}")) }
    }

    /// The model goes on with what there is, which was compared, and with the snapshot that was taken before.
    fn go_on_with_restored(&mut self, before: Model, snapshot: Option<SnapshotRow>) -> Outcome {
        let volume = self.volume();
        self.model = Model::found(&volume, before.patterns).map_err(|e| format!("after a restore: {e}"))?;
        let is_new = |ino: &Ino| !before.nodes.contains_key(ino);
        let staged: BTreeSet<Ino> = self.model.nodes.keys().copied().filter(is_new).collect();
        if staged.iter().any(|ino| !self.known.insert(*ino)) {
            return Err(format!("of {staged:?} some numbers were used before"));
        }
        for (ino, node) in &self.model.nodes {
            let was = before.nodes.get(ino);
            let expected = was.map(|was| (was.excluded, was.hidden.clone())).unwrap_or_default();
            if (node.excluded, node.hidden.clone()) != expected {
                return Err(format!(
                    "{ino} hides {:?}, expected {expected:?}",
                    (node.excluded, &node.hidden)
                ));
            }
        }
        let Some(row) = snapshot else { return Ok(()) };
        let (name, lsn, time) = (row.spec.name, row.lsn, row.time);
        let snap = Snap { name, lsn, hold: false, time, model: before, staged };
        snap.compare(&volume, &self.known, true)?;
        self.snaps.push(snap);
        Ok(())
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

    /// Whether everything outside of `path` is what it was, but for the directories that lead to it and for what
    /// has names in it, too.
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
                if found.ino != *ino {
                    return Err(format!("{here:?} is another one"));
                }
                let is_dir = node.kind == FileKind::Dir;
                if (is_dir && path.starts_with(&here)) || (!is_dir && node.nlink > 1) {
                    let same = is_dir
                        || volume.read(None, *ino, 0, node.size as usize).ok()
                            == (node.kind == FileKind::File).then(|| node.read(0, node.size as usize));
                    same.then_some(()).ok_or_else(|| format!("{here:?} has changed"))?;
                } else {
                    compare(&volume, None, *ino, node, false).map_err(|e| format!("{here:?}: {e}"))?;
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
