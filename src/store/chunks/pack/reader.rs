//! Serving chunks out of packs.

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Salt, SealedChunk, check_lengths};
use super::{Location, pack_path};
use crate::store::keys::Sealer;
use crate::types::{ChunkId, Disk, DiskFile, Error, PackId, Result, StoreUuid};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Packs kept open at once: 64 GiB of full packs, and far below the usual limit of descriptors.
pub const OPEN_PACKS_MAX: usize = 256;

/// Reads and verifies chunks; shared by all threads.
pub struct PackReader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store: StoreUuid,
    sealer: Arc<Sealer>,
    /// Held for look-ups only, never while reading.
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    packs: HashMap<PackId, (Arc<dyn DiskFile>, u64)>,
    /// Grows with each use; the pack with the lowest number was used longest ago.
    clock: u64,
}

impl PackReader {
    /// A reader of the packs in `dir`.
    pub fn new(disk: Arc<dyn Disk>, dir: &Path, store: StoreUuid, sealer: Arc<Sealer>) -> PackReader {
        PackReader { disk, dir: dir.to_owned(), store, sealer, cache: Mutex::default() }
    }

    /// The plain bytes of the chunk `id`, which the index says is at `at`. They are proven to be the bytes
    /// that the id names, whatever the disk returned.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming pack and offset; [`Error::Io`] if the pack cannot be read.
    pub fn read(&self, at: &Location, id: &ChunkId) -> Result<Vec<u8>> {
        let chunk = self.read_frame(at, id)?;
        chunk.open(&self.sealer).map_err(|e| self.damaged(at, id, &e))
    }

    /// The chunk as it is stored, to be copied to another pack, node or object store. Its checksums have been
    /// verified, its seal has not: that needs the key, which a copy does not.
    ///
    /// # Errors
    /// As [`PackReader::read`].
    pub fn read_sealed(&self, at: &Location, id: &ChunkId) -> Result<SealedChunk> {
        let chunk = self.read_frame(at, id)?;
        if crc32c::crc32c(chunk.body()) != chunk.header().body_crc {
            return Err(self.damaged(at, id, &"its body checksum does not match"));
        }
        Ok(chunk)
    }

    fn read_frame(&self, at: &Location, id: &ChunkId) -> Result<SealedChunk> {
        if at.is_lost() {
            return Err(Error::corrupt("chunk", id.to_string(), "its bytes are lost"));
        }
        check_lengths(at.stored_len, at.raw_len).map_err(|e| self.damaged(at, id, &e))?;
        let file = self.file(at.pack)?;
        let mut frame = vec![0; FRAME_HEADER_BYTES + at.stored_len as usize];
        file.read_exact_at(&mut frame, at.offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged(at, id, &"the file ends before it does"),
            _ => Error::io("reading", &pack_path(&self.dir, at.pack), e),
        })?;
        let salt = Salt::new(self.store, at.pack);
        let header = FrameHeader::decode(&frame, salt).map_err(|e| self.damaged(at, id, &e))?;
        if header.id != *id {
            return Err(self.damaged(at, id, &format_args!("chunk {} is there", header.id)));
        }
        if header.location(at.pack, at.offset) != *at {
            return Err(self.damaged(at, id, &"its lengths or codec are not those in the index"));
        }
        Ok(SealedChunk::from_read(header, frame))
    }

    fn damaged(&self, at: &Location, id: &ChunkId, detail: &dyn std::fmt::Display) -> Error {
        let path = pack_path(&self.dir, at.pack);
        let place = format!("{} at offset {}", path.display(), at.offset);
        Error::corrupt("chunk", place, format!("chunk {id}: {detail}"))
    }

    fn file(&self, pack: PackId) -> Result<Arc<dyn DiskFile>> {
        {
            let mut cache = self.cache.lock();
            cache.clock += 1;
            let now = cache.clock;
            if let Some((file, used)) = cache.packs.get_mut(&pack) {
                *used = now;
                return Ok(file.clone());
            }
        }
        // Opened without the lock; two threads that miss at once both open it, and one copy is dropped.
        let path = pack_path(&self.dir, pack);
        let file = self.disk.open(&path, false).map_err(|e| Error::io("opening", &path, e))?;
        let mut cache = self.cache.lock();
        if cache.packs.len() >= OPEN_PACKS_MAX {
            let oldest = cache.packs.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            oldest.and_then(|id| cache.packs.remove(&id));
        }
        let now = cache.clock;
        cache.packs.insert(pack, (file.clone(), now));
        Ok(file)
    }

    /// Closes a pack that is about to be deleted, so that its space is freed; reads in flight finish.
    pub fn forget(&self, pack: PackId) {
        self.cache.lock().packs.remove(&pack);
    }

    /// Packs open now; for metrics and tests.
    pub fn open_packs(&self) -> usize {
        self.cache.lock().packs.len()
    }
}

impl std::fmt::Debug for PackReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackReader").field("dir", &self.dir).finish_non_exhaustive()
    }
}
