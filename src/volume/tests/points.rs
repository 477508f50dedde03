//! Steps that look back, stop, crash and come back; and the histories themselves.

use std::collections::BTreeSet;
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{Config as Proptest, TestError, TestRunner};

use super::model::{Node, PAGE, compare_all};
use super::ops::{Op, Setup, op, setup};
use super::run::{Outcome, Run, Snap, agree, pick};
use super::*;

/// What must be the same after the index was brought up again: applied, digest, bytes and inodes.
#[derive(Debug, PartialEq, Eq)]
pub struct Fingerprint {
    applied: Lsn,
    digest: u128,
    volume: (u64, u64, u64, Lsn, usize),
}

impl Run {
    fn fingerprint(&self) -> Fingerprint {
        let state = self.bench.store().index().state();
        let v = state.volumes.get(&self.bench.main().id()).unwrap();
        let volume = (v.live_bytes, v.history_bytes, v.inodes, v.floor, v.points.len());
        Fingerprint { applied: state.applied, digest: state.digest, volume }
    }

    pub fn sync(&mut self) -> Outcome {
        self.bench.volumes().sync().map_err(|e| e.to_string())?;
        if self.bench.volumes().dirty_bytes() != 0 {
            return Err(format!("{} bytes are dirty after a sync", self.bench.volumes().dirty_bytes()));
        }
        self.doubtful.clear();
        self.remember();
        Ok(())
    }

    /// Commits everything, and says what the index then is.
    pub fn flushed_fingerprint(&mut self, close: bool) -> Outcome<Fingerprint> {
        // A round of the care thread that began before it was paused must not add a record any more.
        self.bench.rest();
        self.sync()?;
        if close {
            self.bench.volumes().close().map_err(|e| format!("close: {e}"))?;
        }
        Ok(self.fingerprint())
    }

    /// Opens again, and compares with before.
    pub fn come_back(&mut self, before: Fingerprint) -> Outcome {
        self.bench.try_open().map_err(|e| format!("opening: {e}"))?;
        let mut after = self.fingerprint();
        if after.applied != before.applied.next() {
            return Err(format!("record {} was the last, {} is now", before.applied, after.applied));
        }
        after.applied = before.applied;
        if after != before {
            return Err(format!("came back as {after:?}, was {before:?}"));
        }
        let orphans: BTreeSet<Ino> =
            self.volume().orphans().map_err(|e| e.to_string())?.into_iter().collect();
        if orphans != self.model.orphans() {
            return Err(format!("orphans {orphans:?}, expected {:?}", self.model.orphans()));
        }
        self.look(true)
    }

    /// After a crash: each byte of a file that was being written is one that it had since it was last
    /// surely committed. The model goes on with what there is.
    pub fn adopt_doubtful(&mut self) -> Outcome {
        let volume = self.volume();
        for (ino, mut states) in std::mem::take(&mut self.doubtful) {
            let now = self.model.get(ino).clone();
            states.push(now.clone());
            let attrs = volume.getattr(None, ino).map_err(|e| format!("{ino}: {e}"))?.attrs;
            let (least, most) = states.iter().fold((u64::MAX, 0), |(a, b), s| (a.min(s.size), b.max(s.size)));
            if attrs.size < least || attrs.size > most {
                return Err(format!(
                    "inode {ino} came back with {} bytes, had {least} to {most}",
                    attrs.size
                ));
            }
            let mut node = Node { size: 0, pages: Default::default(), ..now.clone() };
            let pages: BTreeSet<u64> = states.iter().flat_map(|s| s.pages.keys().copied()).collect();
            for page in pages.into_iter().filter(|p| p * PAGE < attrs.size) {
                let found = volume.read(None, ino, page * PAGE, PAGE as usize).map_err(|e| e.to_string())?;
                let all: Vec<Vec<u8>> = states
                    .iter()
                    .map(|s| {
                        let mut bytes = s.read(page * PAGE, PAGE as usize);
                        bytes.resize(PAGE as usize, 0);
                        bytes
                    })
                    .collect();
                if let Some(bad) = (0..found.len()).find(|i| all.iter().all(|s| s[*i] != found[*i])) {
                    let at = page * PAGE + bad as u64;
                    return Err(format!("inode {ino} came back with a byte at {at} that it never had"));
                }
                node.write(page * PAGE, &found);
            }
            node.size = attrs.size;
            (node.mtime, node.ctime) = (attrs.mtime, attrs.ctime);
            *self.model.node(ino) = node;
        }
        self.look(false)
    }

    pub fn lose_index(&mut self, keep: u8) -> Outcome {
        let fingerprint = self.flushed_fingerprint(keep.is_multiple_of(2))?;
        let layout = self.bench.store().layout().clone();
        self.bench.drop_all();
        std::fs::remove_dir_all(&layout.index).map_err(|e| e.to_string())?;
        let mut checkpoints: Vec<_> =
            std::fs::read_dir(&layout.checkpoints).unwrap().map(|e| e.unwrap().path()).collect();
        checkpoints.sort();
        // All but the newest, or (as what a crash leaves) all but the oldest.
        if keep % 4 < 2 {
            drop(checkpoints.pop());
        } else {
            drop(checkpoints.first().cloned());
        }
        if keep % 4 < 2 {
            for old in &checkpoints {
                std::fs::remove_dir_all(old).map_err(|e| e.to_string())?;
            }
        }
        self.come_back(fingerprint)
    }

    pub fn snapshot(&mut self, hold: bool) -> Outcome {
        let name = format!("s{}", self.made);
        let create = SnapshotCreate {
            name: Some(name.clone()),
            hold,
            tags: vec![("k".into(), "v".into())],
            ..SnapshotCreate::default()
        };
        let row =
            self.bench.volumes().snapshot(&[self.bench.main().id()], &create).map_err(|e| e.to_string())?;
        self.doubtful.clear();
        if self.snaps.iter().any(|s| s.lsn >= row.lsn) {
            return Err("a snapshot's point is not the newest".into());
        }
        let time = row.time;
        let (lsn, model) = (row.lsn, self.model.clone());
        self.snaps.push(Snap { name, lsn, hold, time, model, staged: BTreeSet::new() });
        Ok(())
    }

    pub fn delete_snapshot(&mut self, which: u8) -> Outcome {
        if self.snaps.is_empty() {
            return Ok(());
        }
        let i = which as usize % self.snaps.len();
        let snap = &self.snaps[i];
        let immutable = self.immutable_until(snap.time) > self.now();
        let expected = if snap.hold || immutable { Err("held") } else { Ok(()) };
        if agree("delete", self.volume().delete_snapshots(&[&snap.name], None), expected)?.is_some() {
            self.snaps.remove(i);
        }
        let rows = self.volume().snapshots(Lsn::ZERO, usize::MAX).map_err(|e| e.to_string())?;
        let found: Vec<_> = rows.iter().map(|r| (r.spec.name.clone(), r.lsn, r.spec.hold)).collect();
        let expected: Vec<_> = self.snaps.iter().map(|s| (s.name.clone(), s.lsn, s.hold)).collect();
        if found == expected { Ok(()) } else { Err(format!("snapshots {found:?}, expected {expected:?}")) }
    }

    pub fn look_back(&mut self, which: u8) -> Outcome {
        let volume = self.volume();
        if which.is_multiple_of(2) || self.moments.is_empty() {
            let all: Vec<usize> = (0..self.snaps.len()).collect();
            let Some(i) = pick(&all, which / 2) else { return Ok(()) };
            let snap = &self.snaps[i];
            return snap.compare(&volume, &self.known, true);
        }
        self.moments.retain(|(lsn, _)| volume.is_readable(*lsn));
        let all: Vec<usize> = (0..self.moments.len()).collect();
        let Some(i) = pick(&all, which / 2) else { return Ok(()) };
        let (lsn, model) = &self.moments[i];
        compare_all(&volume, Some(*lsn), model, &self.known, true).map_err(|e| format!("moment {lsn}: {e}"))
    }

    pub fn look(&mut self, seeks: bool) -> Outcome {
        if seeks {
            self.doubtful.clear();
        }
        compare_all(&self.volume(), None, &self.model, &self.known, seeks)
    }

    /// Looks at everything; then gives everything up, of which nothing must remain.
    pub fn finish(mut self, thoroughly: bool) -> Outcome {
        self.step(&Op::Fsck)?;
        self.step(&Op::Gc)?;
        self.look(true)?;
        let volume = self.volume();
        for snap in &self.snaps {
            snap.compare(&volume, &self.known, true)?;
        }
        for (lsn, model) in self.moments.iter().filter(|(lsn, _)| volume.is_readable(*lsn)) {
            compare_all(&volume, Some(*lsn), model, &self.known, true)
                .map_err(|e| format!("moment {lsn}: {e}"))?;
        }
        if !thoroughly {
            return Ok(());
        }
        self.bench.drop_all();
        drop(volume);
        self.bench.config.window_seconds = 0;
        self.bench.try_open().map_err(|e| format!("opening: {e}"))?;
        self.set_policy(0, 0, 0, 0)?;
        // Beyond every immutable period, and every age at which something stays.
        self.keep(60 * 24 * 400)?;
        let volume = self.volume();
        for snap in std::mem::take(&mut self.snaps) {
            volume.hold_snapshot(&snap.name, false).map_err(|e| e.to_string())?;
            volume.delete_snapshots(&[&snap.name], None).map_err(|e| e.to_string())?;
        }
        self.empty(&volume)?;
        for _ in 0..2 {
            self.bench.clock.advance(100_000_000_000);
            let set = SetAttr { mode: Some(0o700), ..SetAttr::default() };
            volume.setattr(Ino::ROOT, &set, None).map_err(|e| e.to_string())?;
            self.bench.clock.advance(100_000_000_000);
            self.bench.care();
        }
        let problems = self.bench.problems();
        if !problems.is_empty() {
            return Err(format!("fsck at the end: {problems:?}"));
        }
        self.nothing_left()
    }

    /// Removes every name and every orphan.
    fn empty(&mut self, volume: &Volume) -> Outcome {
        while let Some((dir, name, is_dir)) = self.model.nodes.iter().find_map(|(dir, node)| {
            let bottom = |ino: &Ino| self.model.get(*ino).entries.is_empty();
            let (name, ino) = node.entries.iter().find(|(_, ino)| bottom(ino))?;
            Some((*dir, name.clone(), self.model.get(*ino).kind == FileKind::Dir))
        }) {
            let removed =
                if is_dir { volume.rmdir(dir, &name, None) } else { volume.unlink(dir, &name, None) };
            removed.map_err(|e| e.to_string())?;
            self.model.unname(dir, &name, Timestamp::default());
        }
        for name in self.model.get(Ino::ROOT).xattrs.keys() {
            volume.removexattr(Ino::ROOT, name, None).map_err(|e| e.to_string())?;
        }
        for ino in volume.orphans().map_err(|e| e.to_string())? {
            volume.remove_orphan(ino).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn nothing_left(&self) -> Outcome {
        let index = self.bench.store().index();
        let (mut heads, mut history, mut named) = (0, 0, 0);
        let frozen = index.freeze();
        frozen
            .versions(|row| {
                *(if row.end.is_none() { &mut heads } else { &mut history }) += 1;
                Ok(())
            })
            .unwrap();
        frozen
            .chunks(|_, entry| {
                named += entry.refs;
                Ok(())
            })
            .unwrap();
        let state = index.state();
        let v = state.volumes.get(&self.bench.main().id()).unwrap();
        let left = (heads, history, named, v.live_bytes, v.history_bytes, v.inodes, v.points.len());
        if left == (1, 0, 0, 0, 0, 1, 0) { Ok(()) } else { Err(format!("left over: {left:?}")) }
    }
}

/// Runs one history.
pub fn history(setup: Setup, ops: &[Op]) -> Outcome {
    let mut run = Run::new(setup);
    for (i, op) in ops.iter().enumerate() {
        run.step(op).map_err(|e| format!("step {i}, {op:?}: {e}"))?;
    }
    run.finish(setup.thorough)
}

/// Keeps the model's helpers honest: a node read back is what was written.
#[test]
fn the_model_itself_is_right() {
    let mut node = Node::new(FileKind::File, 0, (0, 0), Timestamp::default());
    node.write(PAGE - 2, b"abcd");
    assert_eq!(node.read(PAGE - 3, 9), b"\0abcd");
    node.clear(PAGE - 1, PAGE + 1);
    assert_eq!(node.read(PAGE - 2, 9), b"a\0\0d");
    node.resize(PAGE - 1);
    node.resize(PAGE + 5);
    assert_eq!(node.read(PAGE - 2, 9), b"a\0\0\0\0\0\0");
}

#[test]
fn histories_agree_with_the_model() {
    let cases = cases(40);
    let start = Instant::now();
    let length = std::env::var("REWINDFS_TEST_STEPS").ok().and_then(|v| v.parse().ok()).unwrap_or(60);
    let config = Proptest { cases, failure_persistence: None, max_shrink_iters: 600, ..Proptest::default() };
    let strategy = (setup(), prop::collection::vec(op(), 1..length));
    let result = TestRunner::new(config)
        .run(&strategy, |(setup, ops)| history(setup, &ops).map_err(TestCaseError::fail));
    eprintln!("{cases} histories in {:?}", start.elapsed());
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (setup, ops))) => {
            panic!("{reason}\n{setup:?}, &[\n    {}\n]", format!("{ops:?}").replace("}, ", "},\n    "))
        }
        Err(e) => panic!("{e}"),
    }
}
