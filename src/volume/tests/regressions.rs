//! Every bug that the histories found, as the few steps that show it.

use super::ops::{Op, Setup};
use super::points::history;
use super::*;
use crate::types::DiskFile;
use std::path::Path;

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
        Op::Make { dir: 0, name: 0, kind: 0, mode: 0 },
        Op::Remove { entry: 0, wrong: false },
        Op::Write { file: 0, offset: 16_777_216, len: 1, seed: 1 },
        Op::Snapshot { hold: false },
        Op::RemoveOrphan { orphan: 0 },
    ];
    check(PLAIN, &ops);
}

/// The lengths of all packs.
fn pack_lengths(bench: &Bench) -> Vec<(PathBuf, u64)> {
    let packs = &bench.store().layout().packs;
    let all = std::fs::read_dir(packs).unwrap().map(|e| e.unwrap());
    all.map(|e| (e.path(), e.metadata().unwrap().len())).collect()
}

/// A store with a synced file, then one whose chunks are packed and named but not synced, then a name.
fn unsynced_chunks(then_sync: bool) -> (Bench, Vec<(PathBuf, u64)>, Ino, Ino) {
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

fn lose_pack_tails(lengths: &[(PathBuf, u64)]) {
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
    let (mut bench, lengths, first, second) = unsynced_chunks(true);
    bench.drop_all();
    lose_pack_tails(&lengths);
    bench.open();
    let reason = bench.store().read_only().unwrap_or_default();
    assert!(reason.contains("are in no pack"), "{reason}");
    assert_eq!(bench.read(None, first), noise(1, 400_000));
    let lost = bench.main().read(None, second, 0, 400_000).map(|b| b.len());
    assert!(matches!(lost, Err(FsError::Store(_))), "{lost:?}");
}

/// The most pieces that a block of the volume is in.
fn most_pieces(bench: &Bench, ino: Ino) -> usize {
    let view = bench.main().view(None);
    let inode = view.inode(ino).unwrap().unwrap().item;
    let mut most = 0;
    view.blocks(&inode, ino, 0, |_, recipe| {
        most = most.max(recipe.pieces().len());
        Ok(true)
    })
    .unwrap();
    most
}

/// A recipe of more pieces than a decoder accepted, and a record of more edits, could be written but not
/// read: the store did not open any more.
#[test]
fn scattered_bytes_are_joined_into_few_pieces() {
    let mut bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    let mut expected = vec![0; 240_001];
    for i in (0..=240_000).step_by(2) {
        bench.write(file, i, &[i as u8 | 1]);
        expected[i as usize] = i as u8 | 1;
    }
    bench.volumes().sync().unwrap();
    assert!(most_pieces(&bench, file) < 40, "{}", most_pieces(&bench, file));
    bench.crash();
    assert_eq!(bench.read(None, file), expected);
    bench.fsck();
}

#[test]
fn bytes_written_and_synced_one_by_one_do_not_pile_up() {
    let mut bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    let mut expected = vec![0; 6001];
    for i in (0..=6000).step_by(2) {
        bench.write(file, i, &[i as u8 | 1]);
        bench.main().commit_file(file).unwrap();
        expected[i as usize] = i as u8 | 1;
    }
    assert!(most_pieces(&bench, file) <= 1024, "{}", most_pieces(&bench, file));
    let at = bench.snapshot("s");
    for i in (0..=6000).step_by(5) {
        bench.main().allocate(file, i, 1, Allocate::Punch, Writer::ROOT, None).unwrap();
        expected[i as usize] = 0;
    }
    let copy = bench.file(Ino::ROOT, "copy");
    let source = |offset| CopySource { at: None, ino: file, offset };
    for i in (0..=6000).step_by(3) {
        bench.main().copy_range(source(i), copy, i, 1, Writer::ROOT).unwrap();
    }
    assert!(most_pieces(&bench, copy) <= 1024);
    bench.fsck();
    bench.care();
    bench.fsck();
    bench.crash();
    assert_eq!(bench.read(None, file), expected);
    assert_eq!(bench.read(Some(at), file).iter().filter(|b| **b != 0).count(), 3001);
    let copied: Vec<u8> = (0..=6000).map(|i| if i % 3 == 0 { expected[i] } else { 0 }).collect();
    assert_eq!(bench.read(None, copy), copied);
}

#[test]
fn a_file_of_very_many_runs_takes_several_records() {
    let mut bench = Bench::new(Config { index_flush_records: 1_000_000, ..quiet() });
    let file = bench.file(Ino::ROOT, "f");
    for i in 0..110_000u64 {
        bench.write(file, i * 20_000, b"x");
    }
    bench.volumes().sync().unwrap();
    bench.crash();
    assert_eq!(bench.main().getattr(None, file).unwrap().attrs.size, 109_999 * 20_000 + 1);
    for i in (0..110_000u64).step_by(997) {
        assert_eq!(bench.main().read(None, file, i * 20_000 - i.min(1), 3).unwrap()[i.min(1) as usize], b'x');
    }
}

/// Copying what small fsyncs had journaled inline made one record of up to 64 MiB, which none may be.
#[test]
fn copying_much_inline_data_takes_several_records() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    let len = 20 << 20;
    for i in 0..len / 60_000 + 1 {
        bench.write(file, i * 60_000, &noise(i, 60_000));
        bench.main().commit_file(file).unwrap();
    }
    let copy = bench.file(Ino::ROOT, "copy");
    let source = CopySource { at: None, ino: file, offset: 0 };
    assert_eq!(bench.main().copy_range(source, copy, 5, len, Writer::ROOT).unwrap(), len);
    let read = |ino, at| bench.main().read(None, ino, at, len as usize).unwrap();
    assert!(read(copy, 5) == read(file, 0));
}

/// Servers that are killed one after the other had more to replay each time.
#[test]
fn what_was_replayed_is_not_replayed_again() {
    let mut bench = Bench::new(quiet());
    for i in 0..1200 {
        bench.file(Ino::ROOT, &format!("f{i}"));
    }
    let last = bench.store().last();
    bench.crash();
    assert!(bench.store().index().opened_at() < last, "all of it was to be replayed");
    bench.store().care_round(Lsn::ZERO).unwrap();
    bench.crash();
    assert!(bench.store().index().opened_at() >= last);
}

#[test]
fn writing_nothing_changes_nothing() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 100, b"");
    assert_eq!(bench.main().getattr(None, file).unwrap().attrs.size, 0);
}

/// Runs once, at the next sync.
type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A disk that does something once, right after a pack was synced.
struct HookDisk {
    hook: Hook,
}

struct HookFile(Arc<dyn DiskFile>, Hook);

impl DiskFile for HookFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()?;
        let hook = self.1.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
}

impl Disk for HookDisk {
    fn create(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
        let file = OsDisk.create(path)?;
        let pack = path.parent().is_some_and(|dir| dir.ends_with("packs"));
        Ok(if pack { Arc::new(HookFile(file, self.hook.clone())) } else { file })
    }
    fn open(&self, path: &Path, write: bool) -> std::io::Result<Arc<dyn DiskFile>> {
        OsDisk.open(path, write)
    }
    fn list(&self, dir: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
        OsDisk.list(dir)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        OsDisk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        OsDisk.sync_dir(dir)
    }
    fn create_dir(&self, dir: &Path) -> std::io::Result<()> {
        OsDisk.create_dir(dir)
    }
}

/// The journal's sync covers records that came after the packs' sync; they are not durable yet.
#[test]
fn a_record_is_durable_only_with_its_chunks() {
    let mut bench = Bench::new(quiet());
    let hook = Arc::new(Mutex::default());
    bench.drop_all();
    bench.disk = Arc::new(HookDisk { hook: hook.clone() });
    bench.open();
    let (first, second) = (bench.file(Ino::ROOT, "first"), bench.file(Ino::ROOT, "second"));
    bench.write(first, 0, &noise(1, 300_000));
    bench.write(second, 0, &noise(2, 300_000));
    let main = bench.main().clone();
    *hook.lock() = Some(Box::new(move || main.commit_file(second).unwrap()));
    bench.main().fsync(first).unwrap();
    let store = bench.store();
    assert!(hook.lock().is_none() && store.durable() < store.last());
    let syncs = Arc::new(AtomicU64::new(0));
    let counter = syncs.clone();
    *hook.lock() = Some(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    bench.main().fsync(second).unwrap();
    assert_eq!((syncs.load(Ordering::SeqCst), store.durable()), (1, store.last()));
}

#[test]
fn a_deleted_volume_cannot_be_changed_by_those_who_have_it_open() {
    let bench = Bench::new(quiet());
    bench.volumes().create("other", (1, 1)).unwrap();
    let other = bench.volumes().open("other").unwrap();
    let make = |name: &[u8]| other.make(Ino::ROOT, name, node(FileKind::File), None);
    let file = make(b"f").unwrap().ino;
    other.write(file, 0, &noise(1, 100_000), Writer::ROOT).unwrap();
    other.fsync(file).unwrap();
    let large = SetAttr { size: Some(1 << 30), ..SetAttr::default() };
    other.setattr(file, &large, None).unwrap();
    other.write(file, 1 << 29, b"x", Writer::ROOT).unwrap();
    let create = SnapshotCreate { name: Some("s".into()), ..SnapshotCreate::default() };
    bench.volumes().snapshot(&[other.id()], &create).unwrap();
    other.setattr(file, &SetAttr { size: Some(5), ..SetAttr::default() }, None).unwrap();
    other.write(file, 0, b"dirty", Writer::ROOT).unwrap();
    bench.volumes().delete("other").unwrap();
    assert!(matches!(make(b"g"), Err(FsError::NotFound)));
    bench.volumes().sync().unwrap();
    bench.care();
    assert!(make(b"h").is_err() && other.write(file, 0, b"more", Writer::ROOT).is_err());
    bench.volumes().sync().unwrap();
    let mut rows = 0;
    bench
        .store()
        .index()
        .freeze()
        .versions(|row| {
            rows += usize::from(crate::store::index::keys::volume_of(row.key) == other.id());
            Ok(())
        })
        .unwrap();
    assert_eq!(rows, 0);
    bench.fsck();
}

/// The flush of the index waited for ever when RocksDB could not write.
#[test]
fn a_failing_index_poisons_the_store_and_nobody_waits() {
    let mut bench = Bench::new(quiet());
    bench.file(Ino::ROOT, "f");
    let index = bench.store().layout().index.clone();
    std::fs::remove_dir_all(&index).unwrap();
    assert!(bench.store().flush_index().is_err());
    assert!(bench.main().make(Ino::ROOT, b"g", node(FileKind::File), None).is_err());
    assert!(bench.store().read_only().is_some());
    bench.volumes().close().unwrap();
    bench.crash();
    bench.main().lookup(None, Ino::ROOT, b"f").unwrap();
    bench.file(Ino::ROOT, "g");
    bench.fsck();
}
