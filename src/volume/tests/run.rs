//! Runs histories on the model and on a store.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Model, Node, PAGE, compare, compare_all};
use super::ops::{Op, Setup};
use super::*;
use crate::store::control::Control;
use crate::volume::policy::Setting;
use crate::volume::policy::keeper::Rounds;

pub type Outcome<T = ()> = Result<T, String>;

/// Moments kept to look back at.
const MOMENTS_MAX: usize = 12;

#[derive(Clone)]
pub struct Snap {
    pub name: String,
    pub lsn: Lsn,
    pub hold: bool,
    /// When it was taken.
    pub time: Timestamp,
    pub model: Model,
    /// What the restore that took it had prepared by then: inodes with numbers, to which no name leads.
    pub staged: BTreeSet<Ino>,
}

impl Snap {
    /// Compares what the volume shows at it with the model.
    pub fn compare(&self, volume: &Volume, known: &BTreeSet<Ino>, seeks: bool) -> Outcome {
        let known = known.difference(&self.staged).copied().collect();
        compare_all(volume, Some(self.lsn), &self.model, &known, seeks)
            .map_err(|e| format!("snapshot {}: {e}", self.name))
    }
}

pub struct Run {
    pub bench: Bench,
    pub model: Model,
    pub known: BTreeSet<Ino>,
    pub snaps: Vec<Snap>,
    pub moments: Vec<(Lsn, Model)>,
    /// Of files with writes that may not be committed: what they were since they last surely were.
    pub doubtful: BTreeMap<Ino, Vec<Node>>,
    pub settled: Lsn,
    pub made: u64,
    pub rounds: Rounds,
    /// Every immutable period that was set, in seconds, and when.
    pub immutable: Vec<(Timestamp, i64)>,
}

/// A name of an error that the model can foresee.
pub fn kind(e: &FsError) -> &'static str {
    match e {
        FsError::NotFound => "not found",
        FsError::Exists => "exists",
        FsError::NotDir => "not dir",
        FsError::IsDir => "is dir",
        FsError::NotEmpty => "not empty",
        FsError::Invalid(_) => "invalid",
        FsError::NotPermitted(_) => "not permitted",
        FsError::NoAttribute => "no attribute",
        FsError::Held(_) => "held",
        _ => "another",
    }
}

pub fn agree<T>(what: &str, found: FsResult<T>, expected: Result<(), &'static str>) -> Outcome<Option<T>> {
    match (found, expected) {
        (Ok(value), Ok(())) => Ok(Some(value)),
        (Err(e), Err(k)) if kind(&e) == k => Ok(None),
        (Ok(_), Err(k)) => Err(format!("{what} succeeded, expected: {k}")),
        (Err(e), expected) => Err(format!("{what} failed with {e:?}, expected {expected:?}")),
    }
}

pub fn pick<T: Copy>(of: &[T], n: u8) -> Option<T> {
    (!of.is_empty()).then(|| of[n as usize % of.len()])
}

pub fn name(n: u8) -> Vec<u8> {
    vec![b'a' + n % 26]
}

/// What a write of that seed and length writes: noise, zeros, or one byte all over.
pub fn content(seed: u8, len: u32) -> Vec<u8> {
    match seed {
        0 => vec![0; len as usize],
        1 => vec![7; len as usize],
        _ => noise(u64::from(seed), len as usize),
    }
}

impl Run {
    pub fn new(setup: Setup) -> Run {
        let config = Config {
            window_seconds: if setup.window { 1_000_000 } else { 0 },
            commit_interval_ms: if setup.eager { 10 } else { 600_000 },
            seal_run_bytes: if setup.small { 256 << 10 } else { 1 << 20 },
            index_flush_records: if setup.small { 10 } else { 100_000 },
            checkpoint_journal_bytes: if setup.small { 1 } else { 256 << 20 },
            ..quiet()
        };
        let bench = Bench::with(config, setup.encryption);
        // How full the machine's disk is must not matter.
        let settings = Setting::all(&["free-min=0".into(), "history-max=100%".into()]).unwrap();
        bench.main().set_policy(&settings, false).unwrap();
        let model = Model::new(bench.main());
        Run {
            known: BTreeSet::from([Ino::ROOT]),
            snaps: Vec::new(),
            moments: Vec::new(),
            doubtful: BTreeMap::new(),
            settled: Lsn::ZERO,
            made: 0,
            rounds: Rounds::default(),
            immutable: vec![(Timestamp { secs: i64::MIN, nanos: 0 }, 0)],
            model,
            bench,
        }
    }

    pub fn volume(&self) -> Arc<Volume> {
        self.bench.main().clone()
    }

    pub fn now(&self) -> Timestamp {
        self.bench.clock.now()
    }

    pub fn files(&self) -> Vec<Ino> {
        self.model.of_kind(|n| n.kind == FileKind::File)
    }

    pub fn dirs(&self) -> Vec<Ino> {
        self.model.of_kind(|n| n.kind == FileKind::Dir)
    }

    pub fn all(&self) -> Vec<Ino> {
        self.model.of_kind(|_| true)
    }

    pub fn entries(&self) -> Vec<(Ino, u8)> {
        let entry =
            |(dir, n): (&Ino, &Arc<Node>)| n.entries.keys().map(|k| (*dir, k[0] - b'a')).collect::<Vec<_>>();
        self.model.nodes.iter().flat_map(entry).collect()
    }

    /// Every path that a file has or had, as far as the model knows.
    pub fn paths(&self) -> BTreeSet<Vec<Vec<u8>>> {
        let past = self.snaps.iter().map(|s| &s.model).chain(self.moments.iter().map(|(_, model)| model));
        past.chain([&self.model]).flat_map(Model::paths).collect()
    }

    pub fn step(&mut self, op: &Op) -> Outcome {
        self.bench.clock.advance(1_000_003);
        self.apply(op)?;
        if self.doubtful.is_empty() && self.made.is_multiple_of(3) {
            self.remember();
        }
        self.made += 1;
        Ok(())
    }

    pub fn remember(&mut self) {
        if self.moments.len() >= MOMENTS_MAX {
            let drop = self.made as usize * 7 % MOMENTS_MAX;
            self.moments.remove(drop);
        }
        self.moments.push((self.bench.store().last(), self.model.clone()));
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Make { dir, name, kind, mode } => self.make(dir, name, kind, mode),
            Op::Write { file, offset, len, seed } => self.write(file, offset, len, seed),
            Op::Read { file, offset, len } => {
                let Some(ino) = pick(&self.files(), file) else { return Ok(()) };
                let found = self.volume().read(None, ino, offset, len as usize).map_err(|e| e.to_string())?;
                let same = found == self.model.get(ino).read(offset, len as usize);
                same.then_some(()).ok_or(format!("read of inode {ino} at {offset}"))
            }
            Op::Truncate { file, size } => self.truncate(file, size),
            Op::Allocate { file, offset, len, how } => self.allocate(file, offset, len, how),
            Op::Seek { file } => {
                let Some(ino) = pick(&self.files(), file) else { return Ok(()) };
                self.doubtful.remove(&ino);
                compare(&self.volume(), None, ino, self.model.get(ino), true)
            }
            Op::Copy { from, moment, at, to, offset, len } => self.copy(from, moment, at, (to, offset), len),
            Op::Rename { from, to, name, mode } => self.rename(from, to, name, mode),
            Op::Link { file, dir, name } => self.link(file, dir, name),
            Op::Remove { entry, wrong } => self.remove(entry, wrong),
            Op::RemoveOrphan { orphan } => {
                let orphans: Vec<Ino> = self.model.orphans().into_iter().collect();
                let Some(ino) = pick(&orphans, orphan) else { return Ok(()) };
                agree("remove_orphan", self.volume().remove_orphan(ino), Ok(()))?;
                self.model.nodes.remove(&ino);
                self.doubtful.remove(&ino);
                Ok(())
            }
            Op::SetAttr { node, mode, uid, mtime } => self.setattr(node, mode, uid, mtime),
            Op::SetXattr { node, name, len, mode } => self.setxattr(node, name, len, mode),
            Op::RemoveXattr { node, name } => self.removexattr(node, name),
            Op::Fsync { file } => {
                let Some(ino) = pick(&self.files(), file) else { return Ok(()) };
                agree("fsync", self.volume().fsync(ino), Ok(()))?;
                self.doubtful.remove(&ino);
                Ok(())
            }
            Op::Sync => self.sync(),
            Op::Snapshot { hold } => self.snapshot(hold),
            Op::DeleteSnapshot { which } => self.delete_snapshot(which),
            Op::Hold { which, hold } => {
                let count = self.snaps.len().max(1);
                let Some(snap) = self.snaps.get_mut(which as usize % count) else { return Ok(()) };
                snap.hold = hold;
                let (name, volume) = (snap.name.clone(), self.volume());
                agree("hold", volume.hold_snapshot(&name, hold), Ok(())).map(drop)
            }
            Op::LookBack { which } => self.look_back(which),
            Op::LookNow { seeks } => self.look(seeks),
            Op::Care { rounds } => {
                self.bench.store().pause_care(false);
                for _ in 0..rounds {
                    let busy = self.bench.store().care_round(self.settled).map_err(|e| e.to_string())?;
                    if !busy {
                        self.settled = self.bench.store().last();
                    }
                }
                self.bench.store().pause_care(true);
                Ok(())
            }
            Op::Idle => {
                self.bench.care();
                Ok(())
            }
            Op::Advance { secs } => {
                self.bench.clock.advance(i64::from(secs) * 1_000_000_000);
                Ok(())
            }
            Op::SetPolicy { every, continuous, kept, immutable } => {
                self.set_policy(every, continuous, kept, immutable)
            }
            Op::Exclude { patterns } => self.exclude(patterns),
            Op::Restore { which, moment } => {
                self.bench.clock.advance(1_000_003);
                self.restore(which, moment)
            }
            Op::Keep { minutes } => self.keep(minutes),
            Op::Checkpoint => self.bench.store().checkpoint().map_err(|e| e.to_string()),
            Op::Gc => {
                self.bench.rest();
                let store = self.bench.store();
                store.gc(&Control::new(0), false).map_err(|e| e.to_string())?;
                self.settled = store.last();
                self.doubtful.clear();
                match store.check(&mut |_, _| {}).map_err(|e| e.to_string())? {
                    found if !found.clean() => Err(format!("fsck after gc: {:?}", found.problems)),
                    found if found.dead_bytes > 0 => Err(format!("{} dead bytes after gc", found.dead_bytes)),
                    _ => Ok(()),
                }
            }
            Op::FlushIndex => self.bench.store().flush_index().map(drop).map_err(|e| e.to_string()),
            Op::Reopen => {
                let fingerprint = self.flushed_fingerprint(true)?;
                self.bench.drop_all();
                self.come_back(fingerprint)
            }
            Op::Crash { flushed: true } => {
                let fingerprint = self.flushed_fingerprint(false)?;
                self.bench.drop_all();
                self.come_back(fingerprint)
            }
            Op::Crash { flushed: false } => {
                self.bench.drop_all();
                self.bench.try_open().map_err(|e| format!("opening: {e}"))?;
                self.adopt_doubtful()
            }
            Op::LoseIndex { keep } => self.lose_index(keep),
            Op::Fsck => {
                let problems = self.bench.problems();
                self.doubtful.clear();
                if problems.is_empty() { Ok(()) } else { Err(format!("fsck: {problems:?}")) }
            }
            Op::Pause => {
                std::thread::sleep(std::time::Duration::from_millis(15));
                Ok(())
            }
        }
    }

    fn make(&mut self, dir: u8, n: u8, kind: u8, mode: u16) -> Outcome {
        // Mostly in directories; now and then in what is none, or is gone.
        let parents = if n == 5 { self.all() } else { self.dirs() };
        let Some(parent) = pick(&parents, dir) else { return Ok(()) };
        let kind = match kind {
            0..=4 => FileKind::File,
            5..=7 => FileKind::Dir,
            8 => FileKind::Symlink,
            _ => FileKind::Fifo,
        };
        let target = if kind == FileKind::Symlink { noise(u64::from(mode), 40) } else { Vec::new() };
        let new = NewNode { mode, target: target.clone(), ..node(kind) };
        let found = self.volume().make(parent, &name(n), new, None);
        let dir = self.model.get(parent);
        let expected = match dir {
            d if d.kind != FileKind::Dir => Err("not dir"),
            d if d.nlink == 0 => Err("not found"),
            d if d.entries.contains_key(&name(n)) => Err("exists"),
            _ => Ok(()),
        };
        let (parent_mode, parent_gid) = (dir.mode, dir.owner.1);
        let Some(attr) = agree("make", found, expected)? else { return Ok(()) };
        let now = self.now();
        let mut made = Node::new(kind, mode & 0o7777, (7, 8), now);
        if parent_mode & 0o2000 != 0 {
            made.owner.1 = parent_gid;
            made.mode |= if kind == FileKind::Dir { 0o2000 } else { 0 };
        }
        made.target = target;
        if kind == FileKind::Dir {
            made.parent = parent;
            self.model.node(parent).nlink += 1;
        }
        if !self.known.insert(attr.ino) {
            return Err(format!("inode number {} was used twice", attr.ino));
        }
        made.excluded = true;
        self.model.nodes.insert(attr.ino, Arc::new(made));
        self.model.node(parent).entries.insert(name(n), attr.ino);
        self.model.named(parent, &name(n), true);
        self.model.touch_dir(parent, now);
        Ok(())
    }

    fn write(&mut self, file: u8, offset: u64, len: u32, seed: u8) -> Outcome {
        let Some(ino) = pick(&self.files(), file) else { return Ok(()) };
        let data = content(seed, len);
        agree("write", self.volume().write(ino, offset, &data, Writer::ROOT), Ok(()))?;
        let (now, before) = (self.now(), self.model.get(ino).clone());
        self.doubtful.entry(ino).or_default().push(before);
        let node = self.model.node(ino);
        node.write(offset, &data);
        (node.mtime, node.ctime) = (now, now);
        Ok(())
    }

    fn truncate(&mut self, file: u8, size: u64) -> Outcome {
        let candidates = if file > 250 { self.all() } else { self.files() };
        let Some(ino) = pick(&candidates, file) else { return Ok(()) };
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let expected = match self.model.get(ino).kind {
            FileKind::File => Ok(()),
            FileKind::Dir => Err("is dir"),
            _ => Err("invalid"),
        };
        if agree("truncate", self.volume().setattr(ino, &set, None), expected)?.is_some() {
            let (now, node) = (self.now(), self.model.node(ino));
            node.resize(size);
            (node.mtime, node.ctime) = (now, now);
            self.doubtful.remove(&ino);
        }
        Ok(())
    }

    fn allocate(&mut self, file: u8, offset: u64, len: u64, how: u8) -> Outcome {
        let Some(ino) = pick(&self.files(), file) else { return Ok(()) };
        let keep_size = how.is_multiple_of(2);
        let how = match how {
            0 | 1 => Allocate::Reserve { keep_size },
            2 | 3 => Allocate::Punch,
            _ => Allocate::Zero { keep_size },
        };
        agree("allocate", self.volume().allocate(ino, offset, len, how, Writer::ROOT, None), Ok(()))?;
        self.doubtful.remove(&ino);
        let (now, node) = (self.now(), self.model.node(ino));
        let end = offset + len;
        if !matches!(how, Allocate::Reserve { .. }) {
            node.clear(offset, end.min(node.size));
        }
        if matches!(how, Allocate::Reserve { keep_size: false } | Allocate::Zero { keep_size: false }) {
            node.size = node.size.max(end);
        }
        (node.mtime, node.ctime) = (now, now);
        Ok(())
    }

    fn copy(&mut self, from: u8, moment: u8, at: u64, (to, offset): (u8, u64), len: u64) -> Outcome {
        let Some(to) = pick(&self.files(), to) else { return Ok(()) };
        let past: Vec<usize> = (0..self.snaps.len()).collect();
        let snap = if moment.is_multiple_of(2) { None } else { pick(&past, moment / 2) };
        let (point, source) = match snap {
            Some(i) => (Some(self.snaps[i].lsn), self.snaps[i].model.shown()),
            None => (None, self.model.clone()),
        };
        let sources = source.of_kind(|n| n.kind == FileKind::File);
        let Some(from) = pick(&sources, from) else { return Ok(()) };
        let node = source.get(from);
        let len = len.min(node.size.saturating_sub(at));
        let same = point.is_none() && from == to;
        let overlap = same && at < offset + len && offset < at + len;
        let source = CopySource { at: point, ino: from, offset: at };
        let found = self.volume().copy_range(source, to, offset, len, Writer::ROOT);
        let copied = agree("copy", found, if overlap { Err("invalid") } else { Ok(()) })?;
        // It is committed before the ranges are looked at.
        if point.is_none() {
            self.doubtful.remove(&from);
        }
        let Some(copied) = copied else { return Ok(()) };
        if copied != len {
            return Err(format!("{copied} bytes copied, expected {len}"));
        }
        if len > 0 {
            self.doubtful.remove(&to);
            let now = self.now();
            let target = self.model.node(to);
            // Holes are copied as holes; pages are enough to tell what was data.
            let mut done = 0;
            while done < len {
                let step = (PAGE * 64).min(len - done);
                let end = at + done + step;
                if node.pages.range((at + done) / PAGE..=(end - 1) / PAGE).next().is_none() {
                    target.clear(offset + done, offset + done + step);
                    target.size = target.size.max(offset + done + step);
                } else {
                    target.write(offset + done, &node.read(at + done, step as usize));
                }
                done += step;
            }
            (target.mtime, target.ctime) = (now, now);
        }
        Ok(())
    }
}
