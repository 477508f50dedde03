//! Cuts the power at every operation of a recorded workload, and within it at every sector.

use std::collections::HashSet;
use std::fmt;

use super::judge::judge;
use super::life::Moment;
use super::tape::{Tape, put};
use super::*;
use crate::types::disk::faulty::Cuts;

/// Positions at which one write is torn; of a longer one these are a sample.
const TEARS_MAX: usize = 16;
/// Of so many cuts one is followed by more work and another cut.
const GO_ON_EVERY: u64 = 16;

/// What was tried.
#[derive(Debug, Default)]
pub struct Swept {
    /// Operations of the disk.
    pub operations: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Different disks that they left, each opened and judged.
    pub judged: u64,
}

/// One power cut.
struct Cut {
    life: usize,
    n: u64,
    torn: usize,
    keep: Keep,
    index: Index,
}

/// What RocksDB, whose writes the simulated disk does not see, has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Index {
    Newest,
    Lost,
    /// The newest checkpoints, and the index of that many moments before.
    Older(usize),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut { life, n, torn, keep, index } = self;
        write!(f, "life {life}, operation {n}, {torn} bytes of it done, kept {keep:?}, index {index:?}")
    }
}

fn sample(tears: Vec<usize>, max: usize) -> Vec<usize> {
    let step = tears.len().div_ceil(max).max(1);
    let last = tears.last().copied();
    let mut some: Vec<usize> = tears.into_iter().step_by(step).collect();
    some.extend(last.filter(|l| some.last() != Some(l)));
    some
}

/// The ways in which the power goes during one operation.
fn ways(cuts: &Cuts, n: u64, chances: u64) -> Vec<(usize, Keep)> {
    let tears = if n < cuts.ops() { cuts.change(n).tears() } else { vec![0] };
    let max = TEARS_MAX.max(chances as usize * 3);
    let mut ways = vec![(0, Keep::Nothing)];
    ways.extend(sample(tears.clone(), max).into_iter().map(|torn| (torn, Keep::All)));
    for seed in 0..chances {
        let seed = n * 1_000_003 + seed;
        ways.push((tears[(seed * 31) as usize % tears.len()], Keep::Some(seed)));
    }
    ways
}

/// Cuts the power everywhere, `chances` times with a disk that keeps what it likes. The first cut that broke
/// a promise is the error.
pub fn sweep(tape: &mut Tape, chances: u64) -> Result<Swept, String> {
    let (mut swept, mut seen) = (Swept::default(), HashSet::new());
    tape.run.bench.drop_all();
    for life in 0..tape.lives.len() {
        let mut cuts = tape.lives[life].disk.cuts();
        swept.operations += cuts.ops();
        for n in 0..=cuts.ops() {
            for (torn, keep) in ways(&cuts, n, chances) {
                let moments = tape.lives[life].moments(n).len() as u64;
                let index = match swept.cuts % 4 {
                    0 | 1 => Index::Newest,
                    2 => Index::Lost,
                    _ => Index::Older((swept.cuts / 4 % moments) as usize),
                };
                swept.cuts += 1;
                let disk = cuts.at(n, torn, keep);
                if seen.insert((disk.fingerprint(), index, life, moments, tape.lives[life].promised(n))) {
                    swept.judged += 1;
                    let cut = Cut { life, n, torn, keep, index };
                    try_cut(tape, &cut, disk, swept.judged).map_err(|e| format!("{cut}: {e}"))?;
                }
            }
        }
    }
    Ok(swept)
}

fn try_cut(tape: &mut Tape, cut: &Cut, disk: FaultyDisk, count: u64) -> Result<(), String> {
    let life = &tape.lives[cut.life];
    let moments = life.moments(cut.n);
    let newest = moments.last().cloned().unwrap_or_default();
    let moment = match cut.index {
        Index::Newest => newest,
        Index::Lost => Moment { index: None, ..newest },
        Index::Older(by) => Moment { index: moments[moments.len() - 1 - by].index.clone(), ..newest },
    };
    let bench = &mut tape.run.bench;
    put(&bench.root(), &moment);
    bench.disk = Arc::new(disk.clone());
    let judged = judge(bench, life, cut.n);
    let went_on = match &judged {
        Ok(_) if count.is_multiple_of(GO_ON_EVERY) => go_on(bench, &disk),
        _ => Ok(()),
    };
    bench.drop_all();
    judged.and(went_on)
}

/// The store can be used after the cut, and after the next one that loses all it may.
fn go_on(bench: &mut Bench, disk: &FaultyDisk) -> Result<(), String> {
    let (name, bytes) = (b"after the cut", noise(disk.ops(), 90_000));
    let work = |bench: &Bench| -> FsResult<Ino> {
        let ino = bench.main().make(Ino::ROOT, name, node(FileKind::File), None)?.ino;
        bench.main().write(ino, 0, &bytes, Writer::ROOT)?;
        bench.main().fsync(ino)?;
        Ok(ino)
    };
    let ino = work(bench).map_err(|e| format!("it cannot be used: {e}"))?;
    bench.drop_all();
    bench.disk = Arc::new(disk.crash(Keep::Nothing));
    bench.try_open().map_err(|e| format!("it does not open a second time: {e}"))?;
    let found = bench.main().lookup(None, Ino::ROOT, name).map_err(|e| e.to_string())?;
    let read = bench.main().read(None, found.ino, 0, bytes.len()).map_err(|e| e.to_string())?;
    if (found.ino, &read) != (ino, &bytes) {
        return Err("a file synced after the cut is another one after the next".into());
    }
    match bench.problems() {
        problems if problems.is_empty() => Ok(()),
        problems => Err(format!("fsck after the next cut: {problems:?}")),
    }
}
