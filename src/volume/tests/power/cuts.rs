//! The workloads that are cut everywhere, and the canaries: disks that break an ordering rule, which the same
//! checks must notice.

use std::path::Path;

use super::sweep::{Swept, sweep};
use super::tape::{Step, Tape};
use super::*;
use crate::volume::tests::ops::{Op, Setup};

/// Cuts by chance for each operation.
const CHANCES: u64 = 4;

/// What a workload is made of: how likely each kind of step is.
#[derive(Clone, Copy, Default)]
struct Mix {
    data: u64,
    names: u64,
    attributes: u64,
    syncs: u64,
    snapshots: u64,
    removal: u64,
    index: u64,
    gc: u64,
}

fn data(c: &mut Chance) -> Op {
    const OFFSETS: [u64; 6] = [0, 5, 4000, 60_000, 262_140, 300_000];
    const LENGTHS: [u32; 6] = [10, 700, 5000, 60_000, 66_000, 150_000];
    let (file, offset, len) = (c.byte(), c.pick(&OFFSETS), c.pick(&LENGTHS));
    match c.below(8) {
        0 => Op::Truncate { file, size: offset },
        1 => Op::Allocate { file, offset, len: u64::from(len), how: c.byte() % 6 },
        2 => Op::Copy { from: c.byte(), moment: c.byte(), at: 0, to: file, offset, len: u64::from(len) },
        _ => Op::Write { file, offset, len, seed: c.byte() % 40 },
    }
}

fn names(c: &mut Chance) -> Op {
    match c.below(8) {
        0..=2 => Op::Make { dir: c.byte(), name: c.byte() % 5, kind: c.byte() % 10, mode: 0o640 },
        3..=4 => Op::Rename { from: c.byte(), to: c.byte(), name: c.byte() % 6, mode: c.byte() % 4 },
        5 => Op::Link { file: c.byte(), dir: c.byte(), name: c.byte() % 6 },
        _ => Op::Remove { entry: c.byte(), wrong: false },
    }
}

fn attributes(c: &mut Chance) -> Op {
    match c.below(3) {
        0 => Op::SetAttr { node: c.byte(), mode: Some(0o600), uid: Some(9), mtime: Some(1_000_000) },
        1 => Op::SetXattr { node: c.byte(), name: c.byte() % 4, len: u16::from(c.byte()) * 8, mode: 2 },
        _ => Op::RemoveXattr { node: c.byte(), name: c.byte() % 4 },
    }
}

fn removal(c: &mut Chance) -> Op {
    match c.below(6) {
        0 => Op::Remove { entry: c.byte(), wrong: false },
        1 | 2 => Op::RemoveOrphan { orphan: c.byte() },
        3 => Op::Advance { secs: 200 },
        _ => Op::Care { rounds: 2 },
    }
}

impl Mix {
    fn step(&self, c: &mut Chance) -> Step {
        let all = [self.data, self.names, self.attributes, self.syncs];
        let all = [all.as_slice(), &[self.snapshots, self.removal, self.index, self.gc]].concat();
        let mut left = c.below(all.iter().sum());
        let chosen = all.iter().position(|n| {
            left < *n || {
                left -= n;
                false
            }
        });
        Step::Do(match chosen {
            Some(0) => data(c),
            Some(1) => names(c),
            Some(2) => attributes(c),
            Some(3) => match c.below(4) {
                0 => return Step::Commit,
                1 => Op::Sync,
                _ => Op::Fsync { file: c.byte() },
            },
            Some(4) => match c.below(3) {
                0 => Op::DeleteSnapshot { which: c.byte() },
                _ => Op::Snapshot { hold: false },
            },
            Some(5) => removal(c),
            Some(7) => Op::Gc,
            _ => match c.below(8) {
                0 => Op::Reopen,
                1 => Op::Crash { flushed: false },
                2..=4 => Op::Checkpoint,
                _ => Op::FlushIndex,
            },
        })
    }

    /// Three files and a directory to begin with, then `count` steps drawn from the mix.
    fn steps(&self, c: &mut Chance, count: usize) -> Vec<Step> {
        let make = |i| Step::Do(Op::Make { dir: 0, name: i, kind: if i == 2 { 5 } else { 0 }, mode: 0o640 });
        (0..4).map(make).chain((0..count).map(|_| self.step(c))).collect()
    }
}

const PLAIN: Setup = Setup { encryption: false, window: false, eager: false, small: false, thorough: false };

/// Workloads of that mix. Each has three lives with a power cut between them; then the cuts, everywhere.
fn workload(setup: Setup, mix: Mix, seed: u64) {
    for more in 0..u64::from(cases(1)) {
        three_lives(setup, mix, seed + 1000 * more);
    }
}

fn three_lives(setup: Setup, mix: Mix, seed: u64) {
    let mut c = Chance(seed);
    let mut tape = Tape::new(setup, FaultyDisk::new());
    tape.play(&mix.steps(&mut c, 60));
    for _ in 0..2 {
        let ops = tape.lives.last().unwrap().disk.ops();
        tape.cut(ops - ops / 8, Keep::Some(c.below(1 << 30)));
        let steps: Vec<Step> = (0..20).map(|_| mix.step(&mut c)).collect();
        tape.play(&steps);
    }
    let swept = sweep(&mut tape, CHANCES).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    eprintln!("seed {seed}: {swept:?}");
    let Swept { operations, cuts, judged } = swept;
    assert!(operations > 60 && cuts > 5 * operations && judged > cuts / 4, "a workload worth cutting");
}

#[test]
fn cuts_among_writes_renames_and_fsyncs() {
    let mix = Mix { data: 8, names: 6, attributes: 2, syncs: 6, ..Mix::default() };
    workload(PLAIN, mix, 11);
}

#[test]
fn cuts_among_snapshots_and_their_deletion() {
    let mix = Mix { data: 6, names: 3, syncs: 2, snapshots: 6, removal: 4, ..Mix::default() };
    workload(Setup { window: true, ..PLAIN }, mix, 22);
}

#[test]
fn cuts_among_unlinks_and_truncates() {
    let mix = Mix { data: 6, names: 3, syncs: 3, snapshots: 1, removal: 9, ..Mix::default() };
    workload(Setup { encryption: true, ..PLAIN }, mix, 33);
}

#[test]
fn cuts_among_checkpoints_index_flushes_and_reopenings() {
    let mix = Mix { data: 8, names: 3, syncs: 3, snapshots: 1, removal: 1, index: 8, ..Mix::default() };
    workload(PLAIN, mix, 44);
}

#[test]
fn cuts_among_rewritings_of_packs() {
    let mix = Mix { data: 10, names: 3, syncs: 2, removal: 8, index: 1, gc: 3, ..Mix::default() };
    workload(PLAIN, mix, 66);
}

/// A workload on a disk that lies must be caught.
fn canary(lie: impl Fn(&str, &Path) -> bool + Send + 'static) -> String {
    let mix = Mix { data: 8, names: 3, syncs: 5, index: 2, ..Mix::default() };
    let disk = FaultyDisk::new();
    let mut tape = Tape::new(PLAIN, disk.clone());
    disk.set_lie(lie);
    tape.play(&mix.steps(&mut Chance(55), 40));
    let caught = sweep(&mut tape, CHANCES).expect_err("a broken rule went unnoticed");
    eprintln!("caught: {caught}");
    caught
}

#[test]
fn packs_that_were_never_synced_are_caught() {
    canary(|what, path| what == "sync" && path.extension().is_some_and(|e| e == "pack"));
}

#[test]
fn a_journal_that_was_never_synced_is_caught() {
    let caught = canary(|what, path| what == "sync" && path.extension().is_some_and(|e| e == "seg"));
    assert!(caught.contains("promised"), "{caught}");
}

#[test]
fn names_of_segments_that_were_never_synced_are_caught() {
    canary(|what, path| what == "sync_dir" && path.ends_with("journal"));
}

#[test]
fn names_of_packs_that_were_never_synced_are_caught() {
    canary(|what, path| what == "sync_dir" && path.ends_with("packs"));
}

/// One sync of many that did nothing is caught by the cuts before the next one.
#[test]
fn a_single_sync_that_was_lost_is_caught() {
    let count = AtomicU64::new(0);
    let caught = canary(move |what, path| {
        let journal = what == "sync" && path.extension().is_some_and(|e| e == "seg");
        journal && count.fetch_add(1, Ordering::Relaxed) == 7
    });
    assert!(caught.contains("promised"), "{caught}");
}
