//! Every bug that the histories found, as the few steps that show it.

use super::ops::{Op, Op::*, Setup};
use super::points::history;
use super::*;

const PLAIN: Setup = Setup { encryption: false, window: true, eager: false, small: false, thorough: true };

fn check(setup: Setup, ops: &[Op]) {
    if let Err(e) = history(setup, ops) {
        panic!("{e}");
    }
}

/// The cut of a deleted inode went into its last version, which then seemed cut at points before.
#[test]
fn removing_a_large_orphan_leaves_it_readable_in_snapshots() {
    let ops = [
        Make { dir: 0, name: 0, kind: 0, mode: 0 },
        Remove { entry: 0, wrong: false },
        Write { file: 0, offset: 16_777_216, len: 1, seed: 1 },
        Snapshot { hold: false },
        RemoveOrphan { orphan: 0 },
    ];
    check(PLAIN, &ops);
}

/// The lengths of all packs.
fn pack_lengths(bench: &Bench) -> Vec<(std::path::PathBuf, u64)> {
    let packs = &bench.store().layout().packs;
    let all = std::fs::read_dir(packs).unwrap().map(|e| e.unwrap());
    all.map(|e| (e.path(), e.metadata().unwrap().len())).collect()
}

/// A store with a synced file, then one whose chunks are packed and named but not synced, then a name.
fn unsynced_chunks(then_sync: bool) -> (Bench, Vec<(std::path::PathBuf, u64)>, Ino, Ino) {
    let bench = Bench::new(quiet());
    let first = bench.file(Ino::ROOT, "first");
    bench.write(first, 0, &noise(1, 400_000));
    bench.volumes().sync().unwrap();
    let second = bench.file(Ino::ROOT, "temporary");
    bench.volumes().sync().unwrap();
    let lengths = pack_lengths(&bench);
    bench.write(second, 0, &noise(2, 400_000));
    bench
        .main()
        .rename((Ino::ROOT, b"temporary"), (Ino::ROOT, b"second"), RenameMode::Replace, None)
        .unwrap();
    bench.file(Ino::ROOT, "third");
    if then_sync {
        bench.volumes().sync().unwrap();
        bench.file(Ino::ROOT, "fourth");
    }
    (bench, lengths, first, second)
}

fn lose_pack_tails(lengths: &[(std::path::PathBuf, u64)]) {
    for (path, len) in lengths {
        std::fs::File::options().write(true).open(path).unwrap().set_len(*len).unwrap();
    }
}

/// A power cut keeps journal pages and loses pack pages: the records are there, their chunks are not.
#[test]
fn a_journal_tail_whose_chunks_were_lost_is_cut() {
    let (mut bench, lengths, first, second) = unsynced_chunks(false);
    bench.drop_all();
    lose_pack_tails(&lengths);
    bench.open();
    assert_eq!(bench.read(None, first), noise(1, 400_000));
    let main = bench.main().clone();
    assert_eq!(main.lookup(None, Ino::ROOT, b"temporary").unwrap().ino, second);
    assert_eq!(main.getattr(None, second).unwrap().attrs.size, 0);
    assert!(main.lookup(None, Ino::ROOT, b"third").is_err());
    drop(main);
    bench.fsck();
    bench.write(second, 0, &noise(3, 300_000));
    bench.volumes().sync().unwrap();
    bench.crash();
    assert_eq!(bench.read(None, second), noise(3, 300_000));
    bench.fsck();
}

#[test]
fn a_lost_chunk_that_was_durable_is_damage_and_not_cut_away() {
    let (mut bench, lengths, ..) = unsynced_chunks(true);
    bench.drop_all();
    lose_pack_tails(&lengths);
    let e = bench.try_open().unwrap_err().to_string();
    assert!(e.contains("is in no pack"), "{e}");
}
