//! Appending to packs.

use super::frame::{PACK_HEADER_BYTES, Salt, SealedChunk, encode_footer, encode_pack_header};
use super::{Location, list, pack_path};
use crate::types::error::IoContext as _;
use crate::types::limits::{PACK_BYTES, PACK_CHUNKS_MAX};
use crate::types::{ChunkId, Disk, DiskFile, Error, PackId, Result, StoreUuid};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Appends sealed chunks to the packs of a store; shared by all sealer threads.
///
/// Frames are written under the lock, one write call each, so a pack never has a hole between two frames
/// that were appended: what a crash leaves is a prefix of whole frames, then at most what was not synced.
/// (Reserving offsets and writing outside the lock would let a crash leave gaps of unknown length among
/// frames; the expensive part, sealing, is outside the lock either way.)
///
/// Lock order: `turn`, then `state`. No I/O other than appending happens under `state`.
pub struct PackWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store: StoreUuid,
    /// A pack that would grow beyond this is finished and a new one begun.
    pack_bytes: u64,
    state: Mutex<State>,
    /// Held by the thread that syncs; the others wait here and mostly find their work done.
    turn: Mutex<()>,
}

struct State {
    open: Option<OpenPack>,
    /// Number of the next pack.
    next: PackId,
    /// Packs that are full but not yet synced and without a footer.
    retired: Vec<OpenPack>,
    /// Whether a file was made since the directory was synced.
    new_names: bool,
    /// Frames appended since the writer was opened, and how many of the first of them are durable.
    appended: u64,
    synced: u64,
    /// The first failed sync. After it the kernel may have dropped dirty pages and calls them clean, so
    /// nothing that was not synced before can be trusted any more.
    poison: Option<String>,
}

struct OpenPack {
    id: PackId,
    path: PathBuf,
    salt: Salt,
    file: Arc<dyn DiskFile>,
    end: u64,
    entries: Vec<(ChunkId, Location)>,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.poison {
            Some(why) => Err(Error::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    fn retire(&mut self) {
        self.retired.extend(self.open.take());
    }
}

impl PackWriter {
    /// A writer for the packs in `dir`. It starts a new pack with the first append, numbered `at_least` or
    /// higher: pass the highest number ever used plus one, as the index knows it, because the files alone
    /// forget packs that were deleted.
    ///
    /// # Errors
    /// [`Error::Io`] naming the directory.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, store: StoreUuid, at_least: PackId) -> Result<PackWriter> {
        let last = list(&*disk, dir)?.last().map_or(0, |p| p.0.saturating_add(1));
        let state = State {
            open: None,
            next: PackId(last.max(at_least.0)),
            retired: Vec::new(),
            new_names: false,
            appended: 0,
            synced: 0,
            poison: None,
        };
        let (state, turn) = (Mutex::new(state), Mutex::new(()));
        Ok(PackWriter { disk, dir: dir.to_owned(), store, pack_bytes: PACK_BYTES, state, turn })
    }

    /// Makes the next pack's number at least `pack`: files alone forget packs that were deleted.
    pub fn skip_to(&self, pack: PackId) {
        let mut state = self.state.lock();
        state.next = state.next.max(pack);
    }

    /// Finishes packs at this size instead of [`PACK_BYTES`].
    #[must_use]
    pub fn with_pack_bytes(mut self, pack_bytes: u64) -> PackWriter {
        self.pack_bytes = pack_bytes;
        self
    }

    /// Appends a chunk. Readable at once, durable after the next [`PackWriter::sync`].
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]: nothing was appended, and later appends may succeed.
    /// [`Error::Poisoned`] after a failed sync.
    pub fn append(&self, mut chunk: SealedChunk) -> Result<Location> {
        let mut state = self.state.lock();
        state.check()?;
        let frame_bytes = chunk.header().location(PackId(0), 0).frame_bytes();
        if let Some(pack) = &state.open
            && (pack.end + frame_bytes > self.pack_bytes || pack.entries.len() >= PACK_CHUNKS_MAX)
        {
            state.retire();
        }
        let mut pack = match state.open.take() {
            Some(pack) => pack,
            None => self.create(&mut state)?,
        };
        let at = chunk.header().location(pack.id, pack.end);
        match pack.file.write_all_at(chunk.frame_for(pack.salt), pack.end) {
            Ok(()) => {
                pack.end += frame_bytes;
                pack.entries.push((chunk.id(), at));
                state.appended += 1;
                state.open = Some(pack);
                Ok(at)
            }
            Err(e) => {
                let error = Error::io("appending to", &pack.path, e);
                // A part of the frame may be there; the next one must not be followed by its rest.
                match pack.file.set_len(pack.end) {
                    Ok(()) => state.open = Some(pack),
                    Err(_) => state.retired.push(pack),
                }
                Err(error)
            }
        }
    }

    fn create(&self, state: &mut State) -> Result<OpenPack> {
        let id = state.next;
        let path = pack_path(&self.dir, id);
        // Taken even if making the file fails half-way: a number is never used twice.
        state.next = PackId(id.0.saturating_add(1));
        let file = self.disk.create(&path).at("making pack", &path)?;
        if let Err(e) = file.write_all_at(&encode_pack_header(self.store, id), 0) {
            // An empty pack is harmless, so it does not matter if it cannot be removed.
            let _ = self.disk.remove(&path);
            return Err(Error::io("writing", &path, e));
        }
        state.new_names = true;
        let salt = Salt::new(self.store, id);
        Ok(OpenPack { id, path, salt, file, end: PACK_HEADER_BYTES as u64, entries: Vec::new() })
    }

    /// Makes every chunk durable whose append returned before this call. Appends go on meanwhile, and
    /// threads that ask at the same time share one sync.
    ///
    /// # Errors
    /// [`Error::Io`] for the thread that ran the sync, [`Error::Poisoned`] for all later calls: what was
    /// appended since the last good sync may be lost, and only reopening finds out.
    pub fn sync(&self) -> Result<()> {
        let target = {
            let state = self.state.lock();
            state.check()?;
            state.appended
        };
        let _turn = self.turn.lock();
        let mut state = self.state.lock();
        state.check()?;
        if state.synced >= target && state.retired.is_empty() {
            return Ok(());
        }
        let upto = state.appended;
        let retired = std::mem::take(&mut state.retired);
        let open = state.open.as_ref().map(|p| (p.path.clone(), p.file.clone()));
        let new_names = std::mem::take(&mut state.new_names);
        drop(state);

        let done = self.flush(&retired, open, new_names);
        let mut state = self.state.lock();
        match &done {
            Ok(()) => state.synced = upto,
            Err(e) => {
                state.poison = Some(e.to_string());
                mark_failed(&*self.disk, &self.dir);
            }
        }
        drop(state);
        if done.is_ok() {
            retired.iter().for_each(write_footer);
        }
        done
    }

    fn flush(
        &self,
        retired: &[OpenPack],
        open: Option<(PathBuf, Arc<dyn DiskFile>)>,
        new_names: bool,
    ) -> Result<()> {
        for pack in retired {
            pack.file.sync_data().at("syncing", &pack.path)?;
        }
        if let Some((path, file)) = open {
            file.sync_data().at("syncing", &path)?;
        }
        if new_names {
            self.disk.sync_dir(&self.dir).at("syncing", &self.dir)?;
        }
        Ok(())
    }

    /// Finishes the current pack: syncs it and writes its footer. For a clean stop, and before packs are
    /// copied whole; a later append starts a new pack.
    ///
    /// # Errors
    /// As [`PackWriter::sync`].
    pub fn finish(&self) -> Result<()> {
        self.state.lock().retire();
        self.sync()
    }

    /// Where the next frame goes, at the earliest: everything appended before this call lies before it, in
    /// this pack or a lower-numbered one, and everything later lies behind. Recovery may start its scan at a
    /// position that was taken before a completed [`PackWriter::sync`].
    pub fn position(&self) -> (PackId, u64) {
        let state = self.state.lock();
        match &state.open {
            Some(pack) => (pack.id, pack.end),
            None => (state.next, PACK_HEADER_BYTES as u64),
        }
    }

    /// The pack that is being appended to, which must not be repacked or deleted.
    pub fn current(&self) -> Option<PackId> {
        self.state.lock().open.as_ref().map(|p| p.id)
    }
}

/// Left in the directory when a sync failed: the kernel may have dropped pages and call them clean, so a later
/// sync that succeeds proves nothing. The mark need not be durable: after a reboot no such page is left.
const FAILED_MARK: &str = "sync-failed";
/// Bytes rewritten at once.
const REWRITE_BYTES: usize = 1 << 20;

/// Leaves word for the next server that a sync failed. Where even this fails, so will its open.
fn mark_failed(disk: &dyn Disk, dir: &Path) {
    let _ = disk.create(&dir.join(FAILED_MARK));
}

/// Makes durable what an earlier process appended to the packs from `from` on and did not sync. After a failed
/// sync every byte is written again first.
///
/// # Errors
/// [`Error::Io`], [`Error::NoSpace`]; it may be tried again.
pub fn make_durable(disk: &dyn Disk, dir: &Path, from: PackId) -> Result<()> {
    let mark = dir.join(FAILED_MARK);
    let failed = disk.list(dir).at("listing", dir)?.iter().any(|name| name == FAILED_MARK);
    for id in list(disk, dir)?.into_iter().filter(|id| *id >= from) {
        let path = pack_path(dir, id);
        let file = disk.open(&path, true).at("opening", &path)?;
        if failed {
            write_again(&*file).at("rewriting", &path)?;
        }
        file.sync_data().inspect_err(|_| mark_failed(disk, dir)).at("syncing", &path)?;
    }
    disk.sync_dir(dir).inspect_err(|_| mark_failed(disk, dir)).at("syncing", dir)?;
    if failed {
        disk.remove(&mark).at("removing", &mark)?;
    }
    Ok(())
}

/// Makes every page of the file dirty again, with the bytes it has.
fn write_again(file: &dyn DiskFile) -> std::io::Result<()> {
    let len = file.len()?;
    let mut window = Vec::new();
    let mut at = 0;
    while at < len {
        window.resize(usize::try_from(len - at).unwrap_or(usize::MAX).min(REWRITE_BYTES), 0);
        file.read_exact_at(&mut window, at)?;
        file.write_all_at(&window, at)?;
        at += window.len() as u64;
    }
    Ok(())
}

/// Writes the footer of a pack whose frames are durable. Failing costs a scan one day and nothing else: a
/// footer that is not whole is not believed.
fn write_footer(pack: &OpenPack) {
    let footer = encode_footer(&pack.entries, pack.end, pack.salt);
    let written = pack.file.write_all_at(&footer, pack.end).and_then(|()| {
        // A failed append that could not be cut off may have left bytes behind the footer.
        pack.file.set_len(pack.end + footer.len() as u64)?;
        pack.file.sync_data()
    });
    if written.is_err() {
        let _ = pack.file.set_len(pack.end);
    }
}

/// Writes the footer of a pack that nobody writes to any more, in place of what lies behind its frames.
///
/// # Errors
/// [`Error::Io`], [`Error::NoSpace`]; a footer that is not whole is not believed.
pub fn write_footer_anew(
    disk: &dyn Disk,
    path: &Path,
    store: StoreUuid,
    pack: PackId,
    entries: &[(ChunkId, Location)],
    end: u64,
) -> Result<()> {
    let file = disk.open(path, true).at("opening", path)?;
    let footer = encode_footer(entries, end, Salt::new(store, pack));
    // Cut first: the end of an old footer behind a shorter new one would be taken for its end.
    file.set_len(end).and_then(|()| file.sync_data()).at("cutting", path)?;
    file.write_all_at(&footer, end).and_then(|()| file.sync_data()).at("writing", path)
}

impl std::fmt::Debug for PackWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackWriter").field("dir", &self.dir).finish_non_exhaustive()
    }
}
