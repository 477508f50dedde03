//! Rewriting packs: dead bytes go, nothing else does, whatever ends the process meanwhile.

use super::*;
use crate::store::control::Control;
use crate::store::gc::GcReport;

const PACK_BYTES: u64 = 200_000;

/// A store with small packs.
fn bench(config: Config) -> Bench {
    let mut bench = Bench::new(config);
    bench.drop_all();
    bench.file_bytes = FileBytes { pack: PACK_BYTES, ..FileBytes::default() };
    bench.open();
    bench
}

fn quick() -> Config {
    Config { window_seconds: 0, ..quiet() }
}

fn gc(bench: &Bench) -> GcReport {
    bench.rest();
    bench.store().gc(&Control::new(0), false).unwrap()
}

fn packs(bench: &Bench) -> u64 {
    bench.store().packs_bytes().unwrap()
}

fn dead(bench: &Bench) -> u64 {
    bench.rest();
    let found = bench.store().check(&mut |_, _| {}).unwrap();
    assert!(found.clean(), "{:?}", found.problems);
    found.dead_bytes
}

fn content(i: u64) -> Vec<u8> {
    noise(i + 1, 60_000 + (i as usize * 7919) % 90_000)
}

/// Files of their own contents, committed into packs.
fn fill(bench: &Bench, range: std::ops::Range<u64>) {
    for i in range {
        let file = bench.file(Ino::ROOT, &format!("f{i}"));
        bench.write(file, 0, &content(i));
    }
    bench.volumes().sync().unwrap();
    bench.care();
}

fn remove(bench: &Bench, i: u64) {
    let gone = bench.main().unlink(Ino::ROOT, format!("f{i}").as_bytes(), None).unwrap().unwrap();
    bench.main().remove_orphan(gone).unwrap();
}

fn remains(bench: &Bench, range: impl Iterator<Item = u64>) {
    for i in range {
        let attr = bench.main().lookup(None, Ino::ROOT, format!("f{i}").as_bytes()).unwrap();
        assert!(bench.read(None, attr.ino) == content(i), "file {i}");
    }
}

#[test]
fn what_is_removed_gives_its_space_back_and_the_rest_stays() {
    let mut bench = bench(quick());
    fill(&bench, 0..40);
    let full = packs(&bench);
    (0..40).filter(|i| i % 4 != 0).for_each(|i| remove(&bench, i));
    bench.care();
    assert!(dead(&bench) > full / 2);
    let would = bench.store().gc(&Control::new(0), true).unwrap();
    let report = gc(&bench);
    assert!(report.packs > 5 && report.copied_bytes > 0, "{report:?}");
    assert_eq!((would.before_bytes, report.before_bytes), (full, full));
    assert!(would.after_bytes.abs_diff(report.after_bytes) < full / 20, "{would:?}, {report:?}");
    assert_eq!(report.after_bytes, packs(&bench));
    assert!(packs(&bench) < full / 3, "{full} bytes became {}", packs(&bench));
    assert_eq!(dead(&bench), 0);
    let kept = || (0..40).step_by(4);
    remains(&bench, kept());
    let again = gc(&bench);
    assert_eq!((again.packs, again.copied_bytes), (0, 0), "nothing is left to be done");
    bench.reopen();
    remains(&bench, kept());
    bench.crash();
    remains(&bench, kept());
    assert_eq!(dead(&bench), 0);
}

#[test]
fn every_index_from_before_and_after_finds_its_chunks() {
    let mut bench = bench(quick());
    fill(&bench, 0..20);
    bench.store().checkpoint().unwrap();
    (0..20).filter(|i| i % 2 == 0).for_each(|i| remove(&bench, i));
    bench.care();
    gc(&bench);
    fill(&bench, 20..24);
    // From the checkpoints, then from the journal alone, which still names what is gone for good.
    for lost in ["index", "checkpoints"] {
        bench.volumes().sync().unwrap();
        bench.drop_all();
        for part in ["index", lost] {
            let _ = std::fs::remove_dir_all(bench.root().join(part));
        }
        std::fs::create_dir_all(bench.root().join("checkpoints")).unwrap();
        bench.open();
        assert_eq!(bench.store().read_only(), None, "without {lost}");
        remains(&bench, (1..20).step_by(2).chain(20..24));
        bench.fsck();
    }
}

#[test]
fn what_a_snapshot_needs_stays_until_it_is_deleted() {
    let bench = bench(quick());
    fill(&bench, 0..10);
    let at = bench.snapshot("s");
    let files: Vec<Ino> = (0..10)
        .map(|i| bench.main().lookup(None, Ino::ROOT, format!("f{i}").as_bytes()).unwrap().ino)
        .collect();
    (0..10).for_each(|i| remove(&bench, i));
    bench.care();
    gc(&bench);
    for (i, ino) in files.iter().enumerate() {
        assert!(bench.read(Some(at), *ino) == content(i as u64), "file {i}");
    }
    bench.main().delete_snapshots(&["s"], None).unwrap();
    gc(&bench);
    assert!(packs(&bench) < PACK_BYTES, "{}", packs(&bench));
    assert_eq!(dead(&bench), 0);
}

#[test]
fn a_pinned_chunk_stays_although_nothing_names_it() {
    let bench = bench(quick());
    fill(&bench, 0..1);
    remove(&bench, 0);
    bench.care();
    let store = bench.store();
    let bytes = Arc::new(content(0));
    let cuts = store.chunks().cuts(&bytes, true);
    // As a writer does that finds its bytes in the index.
    let stored = store.chunks().store(store.index(), bytes.clone(), &cuts).unwrap();
    assert_eq!(store.chunks().counters().packed_bytes.load(Ordering::Relaxed) as usize / bytes.len(), 1);
    gc(&bench);
    for (id, _) in stored.chunks() {
        assert!(store.index().chunk(&id).unwrap().is_some(), "chunk {id} has gone");
    }
    let ids: Vec<_> = stored.chunks().map(|(id, _)| id).collect();
    drop(stored);
    gc(&bench);
    assert!(ids.iter().all(|id| store.index().chunk(id).unwrap().is_none()));
    assert!(store.chunks().hold(store.index(), ids.into_iter()).unwrap().is_none(), "what is gone is told");
    assert_eq!(dead(&bench), 0);
}

#[test]
fn numbers_of_deleted_packs_are_not_used_again() {
    let mut bench = bench(quick());
    let names = |bench: &Bench| {
        let names = std::fs::read_dir(bench.root().join("packs")).unwrap();
        names
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect::<std::collections::BTreeSet<_>>()
    };
    fill(&bench, 0..6);
    let before = names(&bench);
    (0..6).for_each(|i| remove(&bench, i));
    gc(&bench);
    assert_eq!(names(&bench), std::collections::BTreeSet::new());
    bench.reopen();
    fill(&bench, 0..2);
    assert!(names(&bench).first() > before.last(), "{:?}, {before:?}", names(&bench));
}

#[test]
fn in_the_background_mostly_dead_packs_are_rewritten_and_then_it_rests() {
    let bench = bench(Config { gc_bytes_per_second: 1 << 30, ..quick() });
    fill(&bench, 0..12);
    let full = packs(&bench);
    (0..12).filter(|i| i % 6 != 0).for_each(|i| remove(&bench, i));
    bench.rest();
    bench.store().gc_soon();
    bench.care();
    // Two checkpoints on, as a busy store makes them by itself.
    for i in 100..102 {
        fill(&bench, i..i + 1);
        bench.store().checkpoint().unwrap();
    }
    // Its pauses are of real time.
    let small = |mode| {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        bench.main().setattr(Ino::ROOT, &set, None).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        bench.store().checkpoint().unwrap();
        bench.care();
        packs(&bench) < full * 2 / 3
    };
    assert!((0o700..0o777).any(small), "{full} bytes, then {}", packs(&bench));
    let rests = |_| {
        let last = bench.store().last();
        std::thread::sleep(std::time::Duration::from_millis(20));
        bench.care();
        bench.store().last() == last
    };
    assert!((0..200).any(rests), "nothing to do makes no records");
    remains(&bench, (0..12).step_by(6).chain(100..102));
    bench.fsck();
}

#[test]
fn a_pack_with_damage_is_left_alone_and_the_others_are_not() {
    let bench = bench(quick());
    fill(&bench, 0..12);
    bench.store().checkpoint().unwrap();
    (0..12).filter(|i| i % 3 != 0).for_each(|i| remove(&bench, i));
    bench.care();
    // A byte in the middle of a chunk that is still needed.
    let attr = bench.main().lookup(None, Ino::ROOT, b"f3").unwrap();
    let recipe = bench.main().view(None);
    let inode = recipe.inode(attr.ino).unwrap().unwrap().item;
    let id = *recipe.block(&inode, attr.ino, 0).unwrap().chunks().next().unwrap();
    let at = bench.store().index().chunk(&id).unwrap().unwrap().location;
    let path = bench.root().join(format!("packs/{:016x}.pack", at.pack.0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at.offset as usize + 100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let before = packs(&bench);
    gc(&bench);
    assert!(path.exists() && packs(&bench) < before / 2, "{before} bytes, then {}", packs(&bench));
    remains(&bench, [0, 6, 9].into_iter());
    let found = bench.store().check(&mut |_, _| {}).unwrap();
    assert_eq!(found.damaged.iter().map(|d| d.id).collect::<Vec<_>>(), vec![id], "{:?}", found.problems);
}
