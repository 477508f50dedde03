//! Chunks: file bytes cut by content, named by their keyed hash, stored once, compressed and sealed in
//! packs. [`ChunkStore`] is the door: bytes in, names out, and back.

pub mod chunker;
pub mod codec;
mod fresh;
pub mod pack;
pub mod pool;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::config::Config;
use super::index::Index;
use super::index::Locate;
use super::keys::Sealer;
use super::room::{Room, Use};
use crate::types::error::IoContext;
use crate::types::{ChunkId, Disk, Error, PackId, Result, StoreUuid};
use chunker::Chunker;
use fresh::Fresh;
use pack::{Location, PackReader, PackWriter, SealedChunk};
use pool::Pool;

/// Room a cached chunk takes beside its bytes.
const CACHE_ENTRY_BYTES: u64 = 128;

#[derive(Clone)]
struct ByBytes;

impl Weighter<ChunkId, Arc<Vec<u8>>> for ByBytes {
    fn weight(&self, _: &ChunkId, bytes: &Arc<Vec<u8>>) -> u64 {
        bytes.len() as u64 + CACHE_ENTRY_BYTES
    }
}

/// What sealing did so far.
#[derive(Debug, Default)]
pub struct ChunkCounters {
    /// Plain bytes given to [`ChunkStore::store`].
    pub stored_bytes: AtomicU64,
    /// Of them, bytes that were there already.
    pub duplicate_bytes: AtomicU64,
    /// Bytes appended to packs.
    pub packed_bytes: AtomicU64,
    /// Chunks read from packs.
    pub reads: AtomicU64,
    /// Chunks served from the cache.
    pub cache_hits: AtomicU64,
}

struct Inner {
    sealer: Arc<Sealer>,
    /// `None` when nothing can be stored.
    writer: Option<(PackWriter, Arc<Room>)>,
    reader: PackReader,
    level: i32,
    fresh: Fresh,
    cache: Cache<ChunkId, Arc<Vec<u8>>, ByBytes>,
    counters: ChunkCounters,
}

/// The chunk store.
pub struct ChunkStore {
    inner: Arc<Inner>,
    chunker: Chunker,
    pool: Pool,
}

/// Chunks that were stored for a record not yet committed, in order, with their lengths. While this lives
/// they are pinned: a record may name them. Drop it after the commit, or instead of it.
pub struct Stored {
    inner: Arc<Inner>,
    /// Name and length of each.
    chunks: Vec<(ChunkId, u32)>,
    raw_bytes: u64,
}

impl Stored {
    /// The chunks and their lengths.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        self.chunks.iter().copied()
    }

    /// Bytes of those that were not there before and that cannot be compressed.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.inner.fresh.unpin(self.chunks.iter().map(|(id, _)| id));
    }
}

thread_local! {
    /// Where the codec works; kept so that sealing allocates nothing for it.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl ChunkStore {
    /// Opens the packs in `dir`, which get so long; without `writing` nothing can be stored.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        store: StoreUuid,
        sealer: Arc<Sealer>,
        config: &Config,
        writing: Option<(u64, Arc<Room>)>,
    ) -> Result<ChunkStore> {
        let open = |(pack_bytes, room)| {
            let writer = PackWriter::open(disk.clone(), dir, store, PackId(0))?;
            Ok::<_, Error>((writer.with_pack_bytes(pack_bytes), room))
        };
        let writer = writing.map(open).transpose()?;
        let inner = Inner {
            writer,
            reader: PackReader::new(disk, dir, store, sealer.clone()),
            level: config.zstd_level,
            fresh: Fresh::default(),
            cache: Cache::with_weighter(
                (config.chunk_cache_bytes / 65_536).max(16) as usize,
                config.chunk_cache_bytes,
                ByBytes,
            ),
            counters: ChunkCounters::default(),
            sealer: sealer.clone(),
        };
        Ok(ChunkStore {
            inner: Arc::new(inner),
            chunker: Chunker::new(sealer.chunker_seed()),
            pool: Pool::new("rewindfs-seal", config.sealers()).at("starting threads for", dir)?,
        })
    }

    /// Where content cuts `data`: the end of each chunk. Without `last`, what follows the last content cut
    /// is left for when more data comes.
    pub fn cuts(&self, data: &[u8], last: bool) -> Vec<usize> {
        self.chunker.cuts(data, last).collect()
    }

    /// Stores the chunks of `data` that end at `cuts`, on all cores. They are durable after
    /// [`ChunkStore::sync`].
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`], [`Error::ReadOnly`]; then none of them counts as stored.
    pub fn store(&self, index: &Arc<Index>, data: Arc<Vec<u8>>, cuts: &[usize]) -> Result<Stored> {
        let ranges: Vec<(usize, usize)> =
            cuts.iter().scan(0, |start, &end| Some((std::mem::replace(start, end), end))).collect();
        let (inner, index) = (self.inner.clone(), index.clone());
        let count = ranges.len();
        let results = self.pool.map(count, move |i| {
            let (start, end) = ranges.get(i).copied().unwrap_or_default();
            let plain = data.get(start..end).unwrap_or_default();
            inner.store_one(&index, plain).map(|(id, raw)| (id, plain.len() as u32, raw))
        });
        let mut stored =
            Stored { inner: self.inner.clone(), chunks: Vec::with_capacity(count), raw_bytes: 0 };
        let mut failed = None;
        for result in results {
            match result {
                Ok((id, len, raw)) => {
                    stored.chunks.push((id, len));
                    stored.raw_bytes += if raw { u64::from(len) } else { 0 };
                }
                Err(e) => failed = Some(e),
            }
        }
        // A thread of the pool that died leaves a gap, and all bytes behind it would move.
        if failed.is_none() && stored.chunks.len() != count {
            failed = Some(Error::Invalid("a sealing thread died".into()));
        }
        failed.map_or(Ok(stored), Err)
    }

    /// Pins chunks that are there already, so that a record may name them. None if one of them has gone.
    ///
    /// # Errors
    /// From the index.
    pub fn hold(&self, index: &Index, ids: impl Iterator<Item = ChunkId>) -> Result<Option<Stored>> {
        let mut held = Stored { inner: self.inner.clone(), chunks: Vec::new(), raw_bytes: 0 };
        for id in ids {
            let fresh = self.inner.fresh.pin(&id);
            held.chunks.push((id, 0));
            if !fresh && index.chunk(&id)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(held))
    }

    /// Pins chunks without looking whether they are there: the caller sees, after this, that something in the index
    /// names them, and is to commit nothing if not.
    pub fn pin(&self, ids: impl Iterator<Item = ChunkId>) -> Stored {
        let chunks: Vec<_> = ids.map(|id| (id, 0)).collect();
        self.inner.fresh.pin_all(chunks.iter().map(|(id, _)| *id));
        Stored { inner: self.inner.clone(), chunks, raw_bytes: 0 }
    }

    /// A chunk's plain bytes, verified against its name.
    pub fn read(&self, index: &Index, id: &ChunkId) -> Result<Arc<Vec<u8>>> {
        self.inner.read(index, id)
    }

    /// Reads several chunks at once, on all cores; those not cached are decoded in parallel.
    pub fn read_all(&self, index: &Arc<Index>, ids: Vec<ChunkId>) -> Vec<Result<Arc<Vec<u8>>>> {
        let missing = ids.iter().filter(|id| self.inner.cache.peek(*id).is_none()).count();
        let (inner, shared) = (self.inner.clone(), index.clone());
        if missing < 2 {
            return ids.iter().map(|id| inner.read(&shared, id)).collect();
        }
        let count = ids.len();
        self.pool.map(count, move |i| match ids.get(i) {
            Some(id) => inner.read(&shared, id),
            None => Ok(Arc::default()),
        })
    }

    /// Reads a chunk from its pack and verifies it, past the cache. If it has moved since somebody looked up
    /// where it lies, it is verified there; if it is gone, nobody needs it.
    pub fn verify(&self, index: &Index, location: &Location, id: &ChunkId) -> Result<()> {
        self.inner.reader.read(location, id).map(drop).or_else(|e| match index.chunk(id)? {
            None => Ok(()),
            Some(now) if now.location != *location => self.inner.reader.read(&now.location, id).map(drop),
            Some(_) => Err(e),
        })
    }

    /// Copies a chunk as it is stored to the end of the packs. Only its checksum is verified: the seal and the
    /// name still guard it when it is read.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::NoSpace`], [`Error::Io`].
    pub(super) fn copy(&self, id: &ChunkId, from: &Location) -> Result<Location> {
        let (writer, room) = self.inner.writer()?;
        let sealed = self.inner.reader.read_sealed(from, id)?;
        let place = writer.position();
        // Recovery need not find the copy, but where later chunks may lie must not be taken to be behind it.
        self.inner.fresh.begin(place);
        let appended = room.noticed(writer.append(sealed));
        self.inner.fresh.end(place, None);
        let location = appended?;
        self.inner.counters.packed_bytes.fetch_add(location.frame_bytes(), Ordering::Relaxed);
        Ok(location)
    }

    /// Whether a record about to be committed may name the chunk.
    pub(super) fn is_pinned(&self, id: &ChunkId) -> bool {
        self.inner.fresh.is_pinned(id)
    }

    /// Finishes the pack that is being appended to; the next chunk begins another one.
    pub(super) fn finish_pack(&self) -> Result<()> {
        self.inner.writer.as_ref().map_or(Ok(()), |(writer, _)| writer.finish())
    }

    /// Closes a pack that is about to be deleted.
    pub(super) fn forget_pack(&self, pack: PackId) {
        self.inner.reader.forget(pack);
    }

    /// Makes the next pack's number at least `pack`.
    pub(super) fn skip_to(&self, pack: PackId) {
        if let Some((writer, _)) = &self.inner.writer {
            writer.skip_to(pack);
        }
    }

    /// Makes everything stored so far durable.
    pub fn sync(&self) -> Result<()> {
        self.inner.writer.as_ref().map_or(Ok(()), |(writer, _)| writer.sync())
    }

    /// The lowest place at which a chunk may lie that a record committed from now on names.
    pub fn low_mark(&self) -> (PackId, u64) {
        let end = self.inner.writer.as_ref().map_or((PackId(0), 0), |(writer, _)| writer.position());
        self.inner.fresh.low_mark(end)
    }

    /// Where the packs end: whatever a record names that was applied before this call lies below.
    pub fn end(&self) -> (PackId, u64) {
        self.inner.writer.as_ref().map_or((PackId(u64::MAX), 0), |(writer, _)| writer.position())
    }

    /// Adds a chunk found in a pack by recovery.
    pub fn found(&self, id: ChunkId, location: Location) {
        self.inner.fresh.found(id, location);
    }

    /// Forgets chunks found by recovery that no record named.
    pub fn forget_found(&self) {
        self.inner.fresh.clear();
    }

    /// What was done so far.
    pub fn counters(&self) -> &ChunkCounters {
        &self.inner.counters
    }
}

impl Locate for ChunkStore {
    fn locate(&self, id: &ChunkId) -> Option<Location> {
        self.inner.fresh.get(id)
    }
}

impl Inner {
    fn writer(&self) -> Result<&(PackWriter, Arc<Room>)> {
        self.writer.as_ref().ok_or_else(|| Error::ReadOnly("it was opened for reading".into()))
    }

    /// Stores one chunk unless it is there, and pins it. Also whether it had to be stored as it is.
    fn store_one(&self, index: &Index, plain: &[u8]) -> Result<(ChunkId, bool)> {
        let id = self.sealer.chunk_id(plain);
        self.counters.stored_bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
        // Before the index is asked: what it then says cannot be rewritten away.
        let fresh = self.fresh.pin(&id);
        let stored = self.store_pinned(index, id, plain, fresh);
        stored.map(|raw| (id, raw)).inspect_err(|_| self.fresh.unpin([&id]))
    }

    fn store_pinned(&self, index: &Index, id: ChunkId, plain: &[u8], fresh: bool) -> Result<bool> {
        if fresh || index.chunk(&id)?.is_some_and(|entry| !entry.location.is_lost()) {
            self.counters.duplicate_bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
            return Ok(false);
        }
        let (writer, room) = self.writer()?;
        room.admit(Use::Grows)?;
        let sealed = SCRATCH.with_borrow_mut(|scratch| {
            SealedChunk::seal(&self.sealer, self.level, id, plain, scratch)
                .map_err(|e| Error::Invalid(e.to_string()))
        })?;
        let place = writer.position();
        self.fresh.begin(place);
        let appended = room.noticed(writer.append(sealed));
        self.fresh.end(place, appended.as_ref().ok().map(|location| (id, *location)));
        let frame_bytes = appended?.frame_bytes();
        self.counters.packed_bytes.fetch_add(frame_bytes, Ordering::Relaxed);
        Ok(frame_bytes >= plain.len() as u64)
    }

    fn read(&self, index: &Index, id: &ChunkId) -> Result<Arc<Vec<u8>>> {
        if let Some(bytes) = self.cache.get(id) {
            self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(bytes);
        }
        // A chunk leaves `fresh` only after the index has it, so in this order it cannot be missed.
        let location = match self.fresh.get(id) {
            Some(location) => location,
            None => {
                let missing = || Error::corrupt("recipe", id.to_string(), "its chunk is in no pack");
                index.chunk(id)?.ok_or_else(missing)?.location
            }
        };
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        let read = self.reader.read(&location, id).or_else(|e| match index.chunk(id)? {
            // Its pack was rewritten and removed meanwhile.
            Some(entry) if entry.location != location => self.reader.read(&entry.location, id),
            _ => Err(e),
        });
        let bytes = Arc::new(read?);
        self.cache.insert(*id, bytes.clone());
        Ok(bytes)
    }
}
