//! Criterion benchmarks of the primitives. `cargo bench`; CI only builds them.

#![expect(clippy::unwrap_used, reason = "a benchmark dies where something does not hold")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rewindfs::store::chunks::chunker::Chunker;
use rewindfs::store::chunks::codec;
use rewindfs::store::keys::{Keyring, Sealer};
use rewindfs::store::model::{Item, Piece, Recipe, Source};
use rewindfs::types::{ChunkId, StoreUuid, Timestamp};

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

fn sealer() -> Sealer {
    let (keyring, key) = Keyring::create_encrypted(StoreUuid([1; 16]), Timestamp::default()).unwrap();
    Sealer::new(&keyring.unlock(std::path::Path::new("bench"), Some(&key)).unwrap())
}

fn data(c: &mut Criterion) {
    let (mib, chunk) = (noise(1 << 20), noise(64 * 1024));
    let sealer = sealer();
    let mut group = c.benchmark_group("data");
    group.throughput(Throughput::Bytes(mib.len() as u64));
    let chunker = Chunker::new(sealer.chunker_seed());
    group.bench_function("chunker, 1 MiB", |b| b.iter(|| chunker.cuts(black_box(&mib), true).count()));
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    group.bench_function("chunk id, 64 KiB", |b| b.iter(|| sealer.chunk_id(black_box(&chunk))));
    group.bench_function("seal, 64 KiB", |b| b.iter(|| sealer.seal(b"aad", black_box(&chunk)).unwrap()));
    let sealed = sealer.seal(b"aad", &chunk).unwrap();
    group.bench_function("open, 64 KiB", |b| b.iter(|| sealer.open(b"aad", black_box(&sealed)).unwrap()));
    let text = "epoch loss accuracy 0.125 ".repeat(3000).into_bytes();
    group.throughput(Throughput::Bytes(text.len() as u64));
    let mut scratch = Vec::new();
    group.bench_function("zstd 1, text", |b| {
        b.iter(|| codec::encode(1, black_box(&text), &mut scratch).1.len());
    });
    group.finish();
}

fn recipes(c: &mut Criterion) {
    let piece = |n: u8| Piece { len: 64 * 1024, source: Source::Chunk { id: ChunkId([n; 32]), offset: 0 } };
    let recipe = Recipe::new((0..4).map(piece).collect());
    let split = recipe.split();
    let mut group = c.benchmark_group("recipe");
    group.bench_function("decode", |b| {
        b.iter(|| Recipe::join(black_box(&split.public), black_box(&split.secret)).unwrap());
    });
    let patch = [Piece { len: 4096, source: Source::Inline(vec![7; 4096]) }];
    group.bench_function("overlay 4 KiB", |b| b.iter(|| recipe.overlay(100_000, black_box(&patch))));
    group.finish();
}

fn small(c: &mut Criterion) {
    let sealer = sealer();
    let mut group = c.benchmark_group("small");
    group.bench_function("seal, 20 B", |b| b.iter(|| sealer.seal(b"key", black_box(&[7; 20])).unwrap()));
    group.bench_function("name hash", |b| {
        b.iter(|| sealer.name_hash(b"name", black_box(b"model.safetensors")));
    });
    group.finish();
}

criterion_group!(benches, data, recipes, small);
criterion_main!(benches);
