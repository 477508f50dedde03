//! A workload on a disk that remembers, with what the program above knows at each moment: the tree as it was
//! committed, and the record up to which it was told that everything is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::judge::{Found, judge};
use super::life::{Life, Moment, State};
use super::*;
use crate::store::control::Control;
use crate::store::gc::GcReport;
use crate::store::index::restore_checkpoint;
use crate::types::disk::faulty::medium::Change;
use crate::volume::tests::model::Model;
use crate::volume::tests::ops::{Op, Setup};
use crate::volume::tests::run::Run;

/// Files with uncommitted bytes at one time; what a sync has done of them when the power goes is any subset.
const DIRTY_MAX: usize = 3;
/// Small files, so that segments and packs are finished and begun all the time.
const FILE_BYTES: FileBytes = FileBytes { segment: 60_000, pack: 200_000 };

/// One step of a workload.
#[derive(Clone, Debug)]
pub enum Step {
    Do(Op),
    /// What was written is committed, and not synced.
    Commit,
    /// The parts of [`Op::Gc`].
    Rewrite,
    CheckpointBeyond,
    Delete,
}

/// A recorded workload of one or more lives.
pub struct Tape {
    pub run: Run,
    pub lives: Vec<Life>,
}

impl Tape {
    /// A new store on a new disk, all of whose operations are remembered.
    pub fn new(setup: Setup, disk: FaultyDisk) -> Tape {
        let mut run = Run::new(setup);
        run.bench.drop_all();
        run.bench.config.sealer_threads = 1;
        run.bench.file_bytes = FILE_BYTES;
        put(&run.bench.root(), &Moment::default());
        let first = Life {
            disk: disk.clone(),
            states: Vec::new(),
            promises: Vec::new(),
            moments: vec![Moment::default()],
            known: BTreeSet::new(),
        };
        run.bench.disk = Arc::new(disk);
        run.bench.open();
        run.model = Model::new(run.bench.main());
        let mut tape = Tape { run, lives: vec![first] };
        tape.note(None, 0);
        tape
    }

    fn life(&mut self) -> &mut Life {
        self.lives.last_mut().unwrap()
    }

    /// Does the steps; all must go well.
    pub fn play(&mut self, steps: &[Step]) {
        for (i, step) in steps.iter().enumerate() {
            // What the background does, it does as a step.
            drop(self.run.bench.volumes().care.lock().take());
            if self.run.doubtful.len() >= DIRTY_MAX {
                self.step(&Step::Commit).unwrap();
            }
            let steps = match step {
                // What reaches the disk beside the simulated one must be noted where it does.
                Step::Do(Op::Gc) => {
                    &[Step::Rewrite, Step::CheckpointBeyond, Step::CheckpointBeyond, Step::Delete]
                }
                _ => std::slice::from_ref(step),
            };
            for step in steps {
                self.step(step).unwrap_or_else(|e| panic!("step {i}, {step:?}: {e}"));
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let before = self.life().disk.ops();
        match step {
            Step::Do(op) => self.run.step(op)?,
            Step::Commit => {
                self.run.bench.volumes().shared.flush_all().map_err(|e| e.to_string())?;
                self.run.doubtful.clear();
            }
            Step::Rewrite => {
                self.run
                    .bench
                    .store()
                    .rewrite_packs(&Control::new(0), &mut GcReport::default(), None)
                    .map_err(|e| e.to_string())?;
            }
            Step::CheckpointBeyond => {
                self.run.bench.store().checkpoint_beyond().map_err(|e| e.to_string())?;
            }
            Step::Delete => self.run.bench.store().delete_retired().map_err(|e| e.to_string())?,
        }
        self.note(Some(step), before);
        Ok(())
    }

    /// Remembers what is known now, behind a step that began with operation `before`.
    fn note(&mut self, step: Option<&Step>, before: u64) {
        let state = State::of(&self.run, step.map_or("opening".to_owned(), |step| format!("{step:?}")));
        let asked = match step {
            Some(Step::Do(Op::Fsync { .. })) => !self.run.files().is_empty(),
            Some(Step::Do(Op::Sync | Op::Snapshot { .. } | Op::FlushIndex | Op::Checkpoint)) => true,
            _ => false,
        };
        let promised = if asked { state.lsn } else { self.run.bench.store().durable() };
        let flushed = match step {
            None
            | Some(Step::CheckpointBeyond)
            | Some(Step::Do(Op::FlushIndex | Op::Checkpoint | Op::Reopen | Op::Crash { .. })) => {
                Some(self.shelve())
            }
            _ => None,
        };
        let life = self.lives.last_mut().unwrap();
        let ops = life.disk.ops();
        life.known.extend(&self.run.known);
        life.promises.push((ops, promised));
        life.states.push(state);
        if let Some((index, checkpoints)) = flushed {
            let ops = checkpoint_synced(&life.disk, before).unwrap_or(ops);
            life.moments.push(Moment { ops, index: Some(index), checkpoints });
        }
    }

    /// Copies index and checkpoints as they are on disk.
    fn shelve(&self) -> (PathBuf, Vec<PathBuf>) {
        let store = self.run.bench.store();
        let life = self.lives.last().unwrap();
        let shelf = self.run.bench.root().with_file_name("shelf");
        let shelf = shelf.join(format!("{}-{}", self.lives.len(), life.moments.len()));
        std::fs::create_dir_all(&shelf).unwrap();
        let index = shelf.join("index");
        store.index().checkpoint(&index).unwrap();
        let copy = |from: PathBuf| {
            let to = shelf.join(from.file_name().unwrap());
            restore_checkpoint(&from, &to).unwrap();
            to
        };
        (index, entries(&store.layout().checkpoints).into_iter().map(copy).collect())
    }

    /// Cuts the power at operation `n` of the present life; the next life begins with what is found.
    pub fn cut(&mut self, n: u64, keep: Keep) {
        self.run.bench.drop_all();
        let life = self.lives.last().unwrap();
        let disk = life.disk.cuts().at(n, 0, keep);
        let moment = Moment { ops: 0, ..life.moments(n).last().cloned().unwrap_or_default() };
        put(&self.run.bench.root(), &moment);
        self.run.bench.disk = Arc::new(disk.clone());
        let Found { lsn, state } =
            judge(&mut self.run.bench, life, n).unwrap_or_else(|e| panic!("cut at {n}, {keep:?}: {e}"));
        let state = state.unwrap_or_else(|| panic!("cut at {n}, {keep:?}: before the first state"));
        let mut states: Vec<State> = life.states.iter().filter(|s| s.lsn < lsn).cloned().collect();
        self.run.model = state.model.clone();
        self.run.snaps = state.snaps.clone();
        self.run.doubtful.clear();
        self.run.moments.clear();
        let nodes = state.snaps.iter().map(|s| &s.model).chain([&state.model]);
        self.run.known = nodes.flat_map(|m| m.nodes.keys().copied()).collect();
        states.push(State { lsn, dirty: BTreeMap::new(), ..state });
        let (known, promises) = (self.run.known.clone(), vec![(0, lsn)]);
        self.lives.push(Life { disk, states, promises, moments: vec![moment], known });
        self.note(None, 0);
    }
}

/// The operation behind the sync of the checkpoints' directory, if there was one from `before` on.
fn checkpoint_synced(disk: &FaultyDisk, before: u64) -> Option<u64> {
    let cuts = disk.cuts();
    let synced = |n: &u64| matches!(cuts.change(*n), Change::SyncDir(dir) if dir.ends_with("checkpoints"));
    (before..cuts.ops()).find(synced).map(|n| n + 1)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    entries
}

/// Puts a moment's index and checkpoints in the place of a store's.
pub fn put(root: &Path, moment: &Moment) {
    for name in ["index", "checkpoints"] {
        match std::fs::remove_dir_all(root.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{e}"),
            _ => {}
        }
    }
    std::fs::create_dir(root.join("checkpoints")).unwrap();
    let back = |from: &Path, to: &str| {
        restore_checkpoint(from, &root.join(to).join(from.file_name().unwrap())).unwrap();
    };
    moment.index.iter().for_each(|index| back(index, ""));
    moment.checkpoints.iter().for_each(|checkpoint| back(checkpoint, "checkpoints"));
}
