//! The power goes at some disk operation of journal or packs, and sectors survive as they please: the store
//! opens again with the state at some record, and with everything that was acknowledged as durable.
//!
//! [`tape`] records a workload, [`sweep`] cuts it everywhere, [`judge`] looks at what is left, [`cuts`] are
//! the workloads. Here, one file after the other with a cut at a random operation, again and again.

mod cuts;
mod judge;
mod life;
mod sweep;
mod tape;

use super::*;
use crate::types::disk::faulty::{Fault, FaultyDisk, Keep};

struct Chance(u64);

impl Chance {
    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn content(i: u64) -> Vec<u8> {
    noise(i + 1, (i * 37_123 % 190_000) as usize + 1)
}

/// Makes one file after the other until something fails. Returns how many were begun and how many of them
/// are known to be durable.
fn work(bench: &Bench, chance: &mut Chance, from: u64, count: u64) -> (u64, u64) {
    let (main, mut acknowledged) = (bench.main(), from);
    for i in from..from + count {
        let name = format!("f{i}");
        let step = || -> FsResult<()> {
            let ino = main.make(Ino::ROOT, name.as_bytes(), node(FileKind::File), None)?.ino;
            main.write(ino, 0, &content(i), Writer::ROOT)?;
            main.commit_file(ino)
        };
        if step().is_err() {
            return (i + 1, acknowledged);
        }
        let done = match chance.below(8) {
            0 | 1 => bench.store().sync_all().map(|_| true),
            2 => bench.store().flush_index().map(|_| true),
            3 => bench.store().checkpoint().map(|()| true),
            _ => Ok(false),
        };
        match done {
            Ok(true) => acknowledged = i + 1,
            Ok(false) => {}
            Err(_) => return (i + 1, acknowledged),
        }
    }
    (from + count, acknowledged)
}

/// Looks at what there is: files without a gap, all whole but the last. Returns how many are whole.
fn check(bench: &Bench, begun: u64, acknowledged: u64) -> u64 {
    let main = bench.main();
    let mut whole = 0;
    let mut ended = false;
    for i in 0..begun {
        let Ok(attr) = main.lookup(None, Ino::ROOT, format!("f{i}").as_bytes()) else {
            ended = true;
            continue;
        };
        assert!(!ended, "file {i} is there, one before it is not whole or missing");
        if attr.attrs.size == 0 {
            ended = true;
            continue;
        }
        assert!(bench.read(None, attr.ino) == content(i), "file {i}");
        whole = i + 1;
    }
    assert!(whole >= acknowledged, "{whole} files are whole, {acknowledged} were acknowledged");
    bench.fsck();
    whole
}

fn run(seed: u64) {
    let mut chance = Chance(seed.wrapping_mul(77).wrapping_add(5));
    let mut bench = Bench::with(quiet(), seed.is_multiple_of(3));
    bench.drop_all();
    std::fs::remove_dir_all(bench.root().join("index")).unwrap();
    let mut disk = FaultyDisk::new();
    bench.disk = Arc::new(disk.clone());
    bench.open();
    let (mut begun, mut durable) = (0, 0);
    for round in 0..3 {
        let part = chance.below(256) as u8;
        disk.set_fault(disk.ops() + 1 + chance.below(60), Fault::Power(part));
        let (more, acknowledged) = work(&bench, &mut chance, begun, 15);
        durable = durable.max(acknowledged);
        bench.drop_all();
        let keep = match chance.below(4) {
            0 => Keep::Nothing,
            1 => Keep::All,
            _ => Keep::Some(chance.below(1 << 40)),
        };
        disk = disk.crash(keep);
        bench.disk = Arc::new(disk.clone());
        bench.try_open().unwrap_or_else(|e| panic!("seed {seed}, round {round}, {keep:?}: {e}"));
        assert_eq!(bench.store().read_only(), None, "seed {seed}, round {round}, {keep:?}");
        let whole = check(&bench, more, durable);
        // What is seen now and asked for is durable from now on, whoever had written it.
        bench.store().sync_all().unwrap();
        durable = whole;
        for i in whole..more {
            if let Ok(Some(gone)) = bench.main().unlink(Ino::ROOT, format!("f{i}").as_bytes(), None) {
                bench.main().remove_orphan(gone).unwrap();
            }
        }
        begun = whole;
    }
}

#[test]
fn what_was_acknowledged_survives_every_power_cut() {
    for seed in 0..u64::from(cases(60)) {
        run(seed);
    }
}
