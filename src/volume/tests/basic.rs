//! Smoke tests: if these fail, the histories have nothing to say.

use super::*;

#[test]
fn a_file_is_there_after_a_clean_stop_a_crash_and_the_loss_of_the_index() {
    let mut bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "f");
    let data = noise(1, 700_000);
    bench.write(file, 0, &data);
    bench.write(file, 300_000, b"small");
    let mut expected = data;
    expected[300_000..300_005].copy_from_slice(b"small");
    assert_eq!(bench.read(None, file), expected);
    bench.volumes().sync().unwrap();
    assert_eq!(bench.read(None, file), expected);
    bench.fsck();
    bench.crash();
    assert_eq!(bench.read(None, file), expected);
    bench.reopen();
    assert_eq!(bench.store().problems().len(), 1, "only the recovery key: {:?}", bench.store().problems());
    assert_eq!(bench.read(None, file), expected);
    bench.fsck();
    bench.volumes().close().unwrap();
    bench.drop_all();
    std::fs::remove_dir_all(bench.root().join("index")).unwrap();
    bench.open();
    assert_eq!(bench.main().lookup(None, dir, b"f").unwrap().ino, file);
    assert_eq!(bench.read(None, file), expected);
    bench.fsck();
}

#[test]
fn a_clean_stop_leaves_an_index_that_is_used_again() {
    let mut bench = Bench::new(quiet());
    bench.file(Ino::ROOT, "f");
    bench.snapshot("s");
    bench.reopen();
    let problems = bench.store().problems();
    assert!(!problems.iter().any(|p| p.contains("rebuilt")), "{problems:?}");
}

#[test]
fn a_snapshot_keeps_what_was_and_forgetting_it_frees_it() {
    let mut bench = Bench::new(Config { window_seconds: 0, ..quiet() });
    let file = bench.file(Ino::ROOT, "f");
    let old = noise(1, 300_000);
    bench.write(file, 0, &old);
    let at = bench.snapshot("s");
    bench.write(file, 0, &noise(2, 300_000));
    bench.main().unlink(Ino::ROOT, b"f", None).unwrap();
    bench.main().remove_orphan(file).unwrap();
    bench.care();
    assert_eq!(bench.read(Some(at), file), old);
    bench.fsck();
    bench.reopen();
    assert_eq!(bench.read(Some(at), file), old);
    bench.main().delete_snapshots(&["s"], None).unwrap();
    bench.clock.advance(60_000_000_000);
    bench.file(Ino::ROOT, "later");
    bench.clock.advance(60_000_000_000);
    bench.care();
    bench.fsck();
    let state = bench.store().index().state();
    let volume = state.volumes.get(&bench.main().id()).unwrap();
    assert_eq!((volume.live_bytes, volume.history_bytes, volume.points.len()), (0, 0, 0));
    assert!(state.packs.values().all(|p| p.live_bytes == 0));
}

#[test]
fn checkpoints_carry_a_store_without_its_index_and_its_old_journal() {
    let mut bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    for round in 0..4u64 {
        bench.write(file, round * 100_000, &noise(round, 100_000));
        bench.volumes().sync().unwrap();
        bench.store().checkpoint().unwrap();
    }
    bench.file(Ino::ROOT, "after");
    bench.drop_all();
    std::fs::remove_dir_all(bench.root().join("index")).unwrap();
    bench.open();
    let problems = bench.store().problems();
    assert!(problems.iter().any(|p| p.contains("checkpoint")), "{problems:?}");
    assert_eq!(bench.read(None, file), (0..4).flat_map(|r| noise(r, 100_000)).collect::<Vec<_>>());
    bench.main().lookup(None, Ino::ROOT, b"after").unwrap();
    bench.fsck();
}

#[test]
fn a_large_file_is_cut_and_reaped() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    let (block, count) = (BLOCK, 200);
    for i in 0..count {
        bench.write(file, i * block, &noise(i, 1000));
    }
    let at = bench.snapshot("s");
    let set = SetAttr { size: Some(10), ..SetAttr::default() };
    bench.main().setattr(file, &set, None).unwrap();
    bench.main().setattr(file, &SetAttr { size: Some(count * block), ..SetAttr::default() }, None).unwrap();
    let check = |at: Option<Lsn>, expected: &dyn Fn(u64) -> Vec<u8>| {
        for i in 0..count {
            assert_eq!(bench.main().read(at, file, i * block, 1000).unwrap(), expected(i), "block {i}");
        }
    };
    let cut = |i| if i == 0 { [noise(0, 10), vec![0; 990]].concat() } else { vec![0; 1000] };
    check(None, &cut);
    bench.write(file, 5 * block, b"new");
    bench.volumes().sync().unwrap();
    bench.care();
    check(Some(at), &|i| {
        let mut all = noise(i, 1000);
        all.resize(1000, 0);
        all
    });
    assert_eq!(&bench.main().read(None, file, 5 * block, 4).unwrap(), b"new\0");
    bench.fsck();
}

const BLOCK: u64 = crate::types::limits::BLOCK_BYTES;
