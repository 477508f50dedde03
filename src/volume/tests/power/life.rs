//! What a workload's recorder knows of the time between two power cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::*;
use crate::volume::tests::model::{Model, Node};
use crate::volume::tests::run::{Run, Snap};

/// The tree at one record.
#[derive(Clone)]
pub struct State {
    pub lsn: Lsn,
    /// The step that led there.
    pub behind: String,
    /// As committed.
    pub model: Model,
    /// What files will be once what was written to them is committed. Until then their times are open.
    pub dirty: BTreeMap<Ino, Arc<Node>>,
    pub snaps: Vec<Snap>,
}

impl State {
    pub fn of(run: &Run, behind: String) -> State {
        let (mut model, mut dirty) = (run.model.clone(), BTreeMap::new());
        for (ino, states) in &run.doubtful {
            let (Some(now), Some(then)) = (model.nodes.get(ino).cloned(), states.first()) else { continue };
            let committed = Node { size: then.size, pages: then.pages.clone(), ..Node::clone(&now) };
            model.nodes.insert(*ino, Arc::new(committed));
            dirty.insert(*ino, now);
        }
        State { lsn: run.bench.store().last(), behind, model, dirty, snaps: run.snaps.clone() }
    }
}

/// What RocksDB had on its disk from some operation on: copies of the index, and of the checkpoints.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    pub ops: u64,
    pub index: Option<PathBuf>,
    pub checkpoints: Vec<PathBuf>,
}

/// From one power cut to the next.
pub struct Life {
    pub disk: FaultyDisk,
    /// In order of their records; the first may be from the life before.
    pub states: Vec<State>,
    /// After so many operations of the disk everything up to that record was promised to be durable.
    pub promises: Vec<(u64, Lsn)>,
    /// Oldest first.
    pub moments: Vec<Moment>,
    /// Every inode number that was given out.
    pub known: BTreeSet<Ino>,
}

impl Life {
    /// What had been promised before operation `n` began.
    pub fn promised(&self, n: u64) -> Lsn {
        let made = self.promises.iter().filter(|(ops, _)| *ops <= n);
        made.map(|(_, lsn)| *lsn).max().unwrap_or(Lsn::ZERO)
    }

    /// What RocksDB had on disk at least when operation `n` began, newest last.
    pub fn moments(&self, n: u64) -> &[Moment] {
        &self.moments[..self.moments.partition_point(|m| m.ops <= n)]
    }
}
