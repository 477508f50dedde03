//! Several threads at once, on files of their own and on shared ones, while snapshots come and go and the
//! background work runs. Each thread knows what its own files must hold at every moment; snapshots must be
//! consistent in themselves.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::model::Node;
use super::*;
use crate::store::control::Control;

const THREADS: u64 = 4;
const STRIPE: u64 = 700_000;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

fn now() -> Timestamp {
    Timestamp::default()
}

/// One thread's own directory.
struct Own<'a> {
    bench: &'a Bench,
    dir: Ino,
    shared: Ino,
    number: u64,
    random: Random,
    files: Vec<(Ino, Node)>,
    stripe: Node,
    generation: u64,
    pair: [Ino; 2],
}

/// What the generation's file holds: its number and bytes that belong to it.
fn generation_bytes(generation: u64) -> Vec<u8> {
    let len = 1000 + generation * 7919 % 300_000;
    [generation.to_le_bytes().to_vec(), noise(generation, len as usize)].concat()
}

fn check_generation(bytes: &[u8]) -> u64 {
    let generation = u64::from_le_bytes(*bytes.first_chunk().expect("a whole file"));
    assert!(bytes == generation_bytes(generation), "generation {generation} is torn");
    generation
}

impl<'a> Own<'a> {
    fn new(bench: &'a Bench, shared: Ino, number: u64, seed: u64) -> Own<'a> {
        let dir = bench.make(Ino::ROOT, &format!("t{number}"), FileKind::Dir);
        let files = (0..3)
            .map(|i| (bench.file(dir, &format!("f{i}")), Node::new(FileKind::File, 0, (0, 0), now())))
            .collect();
        let pair = [bench.file(dir, "first"), bench.file(dir, "second")];
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number << 32) | 1);
        let stripe = Node::new(FileKind::File, 0, (0, 0), now());
        let mut own = Own { bench, dir, shared, number, random, files, stripe, generation: 0, pair };
        own.replace();
        own.count();
        own
    }

    fn step(&mut self) {
        self.bench.clock.advance(300_000);
        let i = self.random.below(self.files.len() as u64) as usize;
        let (offset, len) = (self.random.below(600_000), self.random.below(120_000) + 1);
        let main = self.bench.main();
        let seed = self.random.below(50);
        let ino = self.files[i].0;
        match self.random.below(13) {
            0..=2 => {
                let data = noise(seed, len as usize);
                main.write(ino, offset, &data, Writer::ROOT).unwrap();
                self.files[i].1.write(offset, &data);
            }
            3 => {
                let set = SetAttr { size: Some(offset), ..SetAttr::default() };
                main.setattr(ino, &set, None).unwrap();
                self.files[i].1.resize(offset);
            }
            4 => {
                main.allocate(ino, offset, len, Allocate::Punch, Writer::ROOT, None).unwrap();
                let end = (offset + len).min(self.files[i].1.size);
                self.files[i].1.clear(offset, end);
            }
            5 => {
                let from = &self.files[(i + 1) % self.files.len()];
                let (source, data) = (from.0, from.1.read(offset / 2, len as usize));
                let source = CopySource { at: None, ino: source, offset: offset / 2 };
                assert_eq!(
                    main.copy_range(source, ino, offset, len, Writer::ROOT).unwrap(),
                    data.len() as u64
                );
                self.files[i].1.write(offset, &data);
            }
            6 => main.fsync(ino).unwrap(),
            7 | 8 => {
                let at = offset % (STRIPE - len);
                let data = noise(seed, len as usize);
                main.write(self.shared, self.number * STRIPE + at, &data, Writer::ROOT).unwrap();
                self.stripe.write(at, &data);
            }
            9 => self.replace(),
            10 => self.count(),
            11 => {
                main.link(ino, self.dir, b"again", None).unwrap();
                main.rename(
                    (self.dir, b"again"),
                    (Ino::ROOT, self.name("x").as_bytes()),
                    RenameMode::Replace,
                    None,
                )
                .unwrap();
                main.unlink(Ino::ROOT, self.name("x").as_bytes(), None).unwrap();
            }
            _ => main.fsync(self.shared).unwrap(),
        }
        self.look(i, offset, len);
    }

    fn name(&self, what: &str) -> String {
        format!("{what}{}", self.number)
    }

    /// Writes a new file and puts it in the old one's place.
    fn replace(&mut self) {
        self.generation += 1;
        let main = self.bench.main();
        let made = self.bench.file(self.dir, "new");
        main.write(made, 0, &generation_bytes(self.generation), Writer::ROOT).unwrap();
        let gone =
            main.rename((self.dir, b"new"), (self.dir, b"current"), RenameMode::Replace, None).unwrap();
        if let Some(gone) = gone {
            main.remove_orphan(gone).unwrap();
        }
    }

    /// Writes a number to one file, then to another.
    fn count(&mut self) {
        self.generation += 1;
        for ino in self.pair {
            self.bench.write(ino, 0, &self.generation.to_le_bytes());
        }
    }

    fn look(&self, i: usize, offset: u64, len: u64) {
        let main = self.bench.main();
        let (ino, node) = &self.files[i];
        assert_eq!(main.getattr(None, *ino).unwrap().attrs.size, node.size);
        let found = main.read(None, *ino, offset, len as usize).unwrap();
        assert!(found == node.read(offset, len as usize), "file {ino} at {offset}, {len} bytes");
        let at = offset % STRIPE;
        let len = len.min(self.stripe.size.saturating_sub(at));
        let found = main.read(None, self.shared, self.number * STRIPE + at, len as usize).unwrap();
        assert!(found == self.stripe.read(at, len as usize), "stripe {} at {at}, {len} bytes", self.number);
    }

    fn look_at_all(&self) {
        for i in 0..self.files.len() {
            self.look(i, 0, self.files[i].1.size.max(1));
        }
        self.look(0, 0, STRIPE);
    }
}

/// What must hold in every snapshot.
fn check_snapshot(main: &Volume, at: Lsn) {
    for number in 0..THREADS {
        let dir = main.lookup(Some(at), Ino::ROOT, format!("t{number}").as_bytes()).unwrap().ino;
        let current = main.lookup(Some(at), dir, b"current").unwrap();
        let bytes = main.read(Some(at), current.ino, 0, current.attrs.size as usize).unwrap();
        check_generation(&bytes);
        let count = |name: &[u8]| {
            let attr = main.lookup(Some(at), dir, name).unwrap();
            let bytes = main.read(Some(at), attr.ino, 0, 8).unwrap();
            u64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0; 8]))
        };
        let (first, second) = (count(b"first"), count(b"second"));
        assert!(
            first >= second,
            "thread {number}: the second write of {second} without the first of {first}"
        );
    }
}

fn run(seed: u64, steps: u64) {
    let config = Config {
        dirty_bytes_max: 8 << 20,
        seal_run_bytes: 256 << 10,
        commit_interval_ms: 10,
        window_seconds: seed % 2 * 1000,
        index_flush_records: 200,
        checkpoint_journal_bytes: 1 << 20,
        ..quiet()
    };
    let mut bench = Bench::new(config);
    bench.drop_all();
    bench.file_bytes = FileBytes { pack: 1 << 20, ..FileBytes::default() };
    bench.open();
    let shared = bench.file(Ino::ROOT, "shared");
    bench.store().pause_care(false);
    let mut owns: Vec<Own<'_>> = (0..THREADS).map(|n| Own::new(&bench, shared, n, seed)).collect();
    let (stop, snapshots) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let background = scope.spawn(|| {
            let mut kept: Vec<(String, Lsn)> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let n = snapshots.fetch_add(1, Ordering::Relaxed);
                let name = format!("s{n}");
                let at = bench.snapshot(&name);
                check_snapshot(bench.main(), at);
                kept.push((name, at));
                if kept.len() > 4 {
                    let (name, _) = kept.remove(n as usize % 4);
                    bench.main().delete_snapshots(&[&name], None).unwrap();
                }
                for (_, at) in &kept {
                    check_snapshot(bench.main(), *at);
                }
                if n % 3 == 2 {
                    bench.store().gc(&Control::new(0), false).unwrap();
                }
            }
        });
        let workers: Vec<_> = owns
            .iter_mut()
            .map(|own| {
                scope.spawn(move || {
                    for _ in 0..steps {
                        own.step();
                    }
                })
            })
            .collect();
        let failed = workers.into_iter().filter_map(|w| w.join().err()).count();
        stop.store(true, Ordering::Relaxed);
        assert!(background.join().is_ok() && failed == 0, "seed {seed}");
    });
    for own in &owns {
        own.look_at_all();
    }
    bench.fsck();
    for own in &owns {
        own.look_at_all();
    }
    let (files, stripes): (Vec<_>, Vec<_>) =
        owns.into_iter().map(|own| (own.files, (own.number, own.stripe))).unzip();
    bench.crash();
    for (ino, node) in files.into_iter().flatten() {
        assert!(bench.read(None, ino) == node.read(0, node.size as usize), "file {ino} after a crash");
    }
    for (number, stripe) in stripes {
        let found = bench.main().read(None, shared, number * STRIPE, stripe.size as usize).unwrap();
        assert!(found == stripe.read(0, stripe.size as usize), "stripe {number} after a crash");
    }
    bench.care();
    bench.fsck();
}

#[test]
fn threads_keep_out_of_each_others_way() {
    for seed in 0..u64::from(cases(8).div_ceil(4)) {
        run(seed, 250);
    }
}
