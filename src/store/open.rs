//! Opening a store: keys, lock, index, journal, replay. What cannot be trusted is rebuilt; what cannot be
//! rebuilt is said.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

use super::care::CareState;
use super::chunks::ChunkStore;
use super::chunks::pack::{self, Trust};
use super::config::Config;
use super::index::apply::Place;
use super::index::scan::PendingBlock;
use super::index::{self, Index, IndexOptions, Locate};
use super::journal::{Chain, Journal, JournalOptions, Outcome, RecoveryReport, UnorderedTail};
use super::keys::{KeyMaterial, Keyring, Sealer, keyfile};
use super::layout::{Layout, identify, node_of};
use super::model::{Edit, Record, Source};
use super::{Committed, Problems, Store, record_aad};
use crate::types::error::IoContext;
use crate::types::{
    ChunkId, Clock, Disk, Error, Lsn, OsDisk, PackId, Result, StoreUuid, SystemClock, Term, limits,
};

/// Told how far a long opening is: what is done, and hundredths.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64);

/// What the store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Everything.
    ReadWrite,
    /// No record is committed. The index is still brought up to the journal.
    ReadOnly,
}

/// How to open a store.
#[derive(Clone)]
pub struct OpenOptions {
    /// What for.
    pub mode: OpenMode,
    /// The key file, unless it lies where [`keyfile::default_path`] says.
    pub key_file: Option<PathBuf>,
    /// The disk below journal and packs.
    pub disk: Arc<dyn Disk>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The settings, instead of those in `config.toml`.
    pub config: Option<Config>,
    /// Opens, read-only, even what has lost its newest records.
    pub salvage: bool,
    /// When a file is finished and the next one begun.
    pub file_bytes: FileBytes,
}

/// How large the store's files get.
#[derive(Clone, Copy, Debug)]
pub struct FileBytes {
    /// A journal segment.
    pub segment: u64,
    /// A pack.
    pub pack: u64,
}

impl Default for FileBytes {
    fn default() -> FileBytes {
        FileBytes { segment: limits::SEGMENT_BYTES, pack: limits::PACK_BYTES }
    }
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            mode: OpenMode::ReadWrite,
            key_file: None,
            disk: Arc::new(OsDisk),
            clock: Arc::new(SystemClock),
            config: None,
            salvage: false,
            file_bytes: FileBytes::default(),
        }
    }
}

fn lock(layout: &Layout) -> Result<Flock<File>> {
    let path = &layout.lock;
    let file = File::options().create(true).truncate(false).write(true).open(path).at("opening", path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        nix::errno::Errno::EWOULDBLOCK => Error::InUse(layout.root.clone()),
        e => Error::io("locking", path, e.into()),
    })
}

/// Unlocks the keys; also says whether a recovery key was exported and what to tell the operator.
fn unlock(
    layout: &Layout,
    id: StoreUuid,
    key_file: Option<&Path>,
    problems: &mut Problems,
) -> Result<(Sealer, bool)> {
    let keyring = Keyring::load(&OsDisk, &layout.keyring)?;
    if keyring.store() != id {
        let place = layout.keyring.display().to_string();
        return Err(Error::corrupt("keyring", place, "it belongs to another store"));
    }
    let key: Option<KeyMaterial> = if keyring.is_encrypted() {
        let path = match key_file {
            Some(path) => path.to_owned(),
            None => keyfile::default_path(id)?,
        };
        let loaded = keyfile::read(&path).map_err(|e| Error::WrongKey {
            store: layout.root.clone(),
            detail: format!("{e}; put the key file or the exported recovery key there"),
        })?;
        if loaded.exposed {
            problems.push(format!("others may read the key file {}: chmod 600 it", path.display()));
        }
        Some(loaded.key)
    } else {
        None
    };
    let secrets = keyring.unlock(&layout.root, key.as_ref())?;
    Ok((Sealer::new(&secrets), keyring.recovery_exported()))
}

impl Store {
    /// Opens the store in `root`, bringing the index up to the journal.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::Version`], [`Error::InUse`], [`Error::WrongKey`], [`Error::Corrupt`]
    /// naming what is damaged, [`Error::Io`].
    pub fn open(root: &Path, options: OpenOptions, progress: Progress<'_>) -> Result<Arc<Store>> {
        let root = std::fs::canonicalize(root).map_err(|_| Error::NoStore(root.to_owned()))?;
        let layout = Layout::new(&root);
        let id = identify(&root)?;
        let node = node_of(&root)?;
        let mut problems = Problems::new();
        let lock = lock(&layout)?;
        let (sealer, recovery_exported) = unlock(&layout, id, options.key_file.as_deref(), &mut problems)?;
        let sealer = Arc::new(sealer);
        let config = match options.config {
            Some(config) => config,
            None => Config::load(&*options.disk, &layout.config)?,
        };
        let disk = options.disk;
        let salvage = options.salvage;
        let segment_bytes = options.file_bytes.segment;
        let opener = Opener {
            layout: &layout,
            id,
            sealer: &sealer,
            config: &config,
            disk: &disk,
            salvage,
            segment_bytes,
        };
        let (mut journal, index, damaged) = opener.journal_and_index(&mut problems, progress)?;
        let writable = options.mode == OpenMode::ReadWrite && damaged.is_none();
        let pack_bytes = writable.then_some(options.file_bytes.pack);
        let chunks = ChunkStore::open(disk.clone(), &layout.packs, id, sealer.clone(), &config, pack_bytes)?;
        if writable {
            opener.sync_packs(index.state().packed.0)?;
        }
        if let Some(cut_after) = opener.replay(&journal, &index, &chunks, damaged.is_some(), progress)? {
            drop(journal);
            journal = opener.journal(cut_after, cut_after, Some(cut_after))?.0;
        }
        let read_only = damaged.or_else(|| {
            (options.mode == OpenMode::ReadOnly).then(|| "it was opened for reading only".to_owned())
        });
        let term = index.state().term;
        let (durable, applied) = (journal.durable(), index.state().applied);
        let store = Arc::new(Store {
            care: CareState::new(index.opened_at(), applied),
            layout,
            id,
            node,
            config,
            sealer,
            recovery_exported: AtomicBool::new(recovery_exported),
            journal,
            index: Arc::new(index),
            chunks,
            clock: options.clock,
            disk,
            read_only,
            wants_writes: options.mode == OpenMode::ReadWrite,
            poison: OnceLock::new(),
            durable: AtomicU64::new(durable.0),
            commit: Mutex::new(Committed { term }),
            opening_problems: Mutex::new(problems),
            _lock: lock,
        });
        if writable {
            store.begin_reign(Term(term.0 + 1))?;
        }
        Ok(store)
    }

    /// A new term for each opening: generations and stale writers are told apart by it.
    fn begin_reign(&self, term: Term) -> Result<()> {
        self.commit.lock().term = term;
        self.commit(vec![Edit::Term], None).map(drop)
    }
}

struct Opener<'a> {
    layout: &'a Layout,
    id: StoreUuid,
    sealer: &'a Arc<Sealer>,
    config: &'a Config,
    disk: &'a Arc<dyn Disk>,
    salvage: bool,
    segment_bytes: u64,
}

impl Opener<'_> {
    fn open_index(&self) -> Result<Index> {
        let options = IndexOptions { block_cache_bytes: self.config.index_cache_bytes as usize };
        Index::open(&self.layout.index, self.sealer.clone(), options)
    }

    fn journal(
        &self,
        verify_from: Lsn,
        must_reach: Lsn,
        cut_after: Option<Lsn>,
    ) -> Result<(Journal, RecoveryReport)> {
        let options = JournalOptions {
            verify_from,
            must_reach,
            cut_after,
            unordered_tail: UnorderedTail::Cut,
            segment_bytes: self.segment_bytes,
        };
        Journal::open(self.disk.clone(), &self.layout.journal, self.id, options)
    }

    /// Makes durable what an earlier process appended to packs and did not sync: opening the journal did so
    /// with the records, and from then on they count as durable.
    fn sync_packs(&self, from: PackId) -> Result<()> {
        let packs = &self.layout.packs;
        for id in pack::list(&**self.disk, packs)?.into_iter().filter(|id| *id >= from) {
            let path = pack::pack_path(packs, id);
            self.disk.open(&path, true).and_then(|file| file.sync_data()).at("syncing", &path)?;
        }
        self.disk.sync_dir(packs).at("syncing", packs)
    }

    /// Opens journal and index so that the index is at or behind the journal's end and on its chain. Tries
    /// the index as it is, then the checkpoints, newest first, then an empty one.
    fn journal_and_index(
        &self,
        problems: &mut Problems,
        progress: Progress<'_>,
    ) -> Result<(Journal, Index, Option<String>)> {
        let present = self.layout.index.join("CURRENT").exists();
        let first = match present.then(|| self.open_index()) {
            None => Err("it is missing".to_owned()),
            Some(Ok(index)) => Ok(index),
            // A full disk is no reason to throw an index away.
            Some(Err(e)) if e.to_string().contains("No space left") => {
                return Err(Error::NoSpace(self.layout.index.display().to_string()));
            }
            Some(Err(e)) => Err(e.to_string()),
        };
        let applied = first.as_ref().map_or(Lsn::ZERO, |i| i.state().applied);
        let witness = self.layout.checkpoints_made().first().map_or(applied, |(at, _)| applied.max(*at));
        let (journal, report) = self.journal(applied, witness, None)?;
        let damaged = match &report.outcome {
            Outcome::Damaged(d) => {
                let text = format!(
                    "the journal is damaged at record {} in {} at offset {}: {}",
                    d.lsn_expected,
                    d.file.display(),
                    d.offset,
                    d.detail
                );
                // Without the records behind the damage the tree would be an older one than it was.
                if applied < d.lsn_expected && !self.salvage {
                    let place = d.file.display().to_string();
                    let detail = format!(
                        "record {} at offset {}: {}; nothing was changed; mount it read-only to see the state before",
                        d.lsn_expected, d.offset, d.detail
                    );
                    return Err(Error::corrupt("journal", place, detail));
                }
                Some(text)
            }
            Outcome::TornTail(t) => {
                tracing::warn!(file = %t.file.display(), lsn = %t.lsn, detail = %t.detail, "cut a torn journal tail");
                None
            }
            _ => None,
        };
        let why = match first {
            Ok(index) => match self.fits(&journal, &index, damaged.is_some()) {
                Ok(()) => return Ok((journal, index, damaged)),
                Err(e) => {
                    index.close();
                    e.to_string()
                }
            },
            Err(e) => e,
        };
        let young = !present && journal.last().0 == Lsn::ZERO;
        if !young {
            tracing::warn!(%why, "rebuilding the index");
            progress("rebuilding the index", 0);
        }
        for (lsn, checkpoint) in self.layout.checkpoints_made() {
            match self.restore(&checkpoint).and_then(|index| {
                self.fits(&journal, &index, damaged.is_some())?;
                Ok(index)
            }) {
                Ok(index) => {
                    problems.push(format!("the index was rebuilt from the checkpoint at {lsn}: {why}"));
                    return Ok((journal, index, damaged));
                }
                Err(e) => tracing::warn!(%lsn, error = %e, "a checkpoint cannot be used"),
            }
        }
        self.remove_index()?;
        let index = self.open_index()?;
        self.fits(&journal, &index, damaged.is_some()).map_err(|e| {
            let place = self.layout.index.display().to_string();
            Error::corrupt("index", place, format!("{why}; no checkpoint can replace it ({e})"))
        })?;
        if !young {
            problems.push(format!("the index was rebuilt from the journal: {why}"));
        }
        Ok((journal, index, damaged))
    }

    fn remove_index(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.layout.index) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("removing", &self.layout.index, e))
            }
            _ => Ok(()),
        }
    }

    fn restore(&self, checkpoint: &Path) -> Result<Index> {
        self.remove_index()?;
        index::restore_checkpoint(checkpoint, &self.layout.index)?;
        self.open_index()
    }

    /// Whether replay can go on from the index: it is not ahead of the journal, the records behind it are
    /// there, and the chain at its LSN is the journal's.
    fn fits(&self, journal: &Journal, index: &Index, journal_damaged: bool) -> Result<()> {
        let (applied, chain) = {
            let state = index.state();
            (state.applied, Chain(state.chain))
        };
        let (last, last_chain) = journal.last();
        let refuse =
            |detail: String| Err(Error::corrupt("index", self.layout.index.display().to_string(), detail));
        if applied > last {
            // Of a damaged journal the index may know more than can be read; it is then the better witness.
            return if journal_damaged {
                Ok(())
            } else {
                refuse(format!("it is at record {applied}, the journal ends at {last}"))
            };
        }
        if applied.next() < journal.oldest() {
            return refuse(format!("it is at record {applied}, the journal begins at {}", journal.oldest()));
        }
        let expected = if applied == last {
            Some(last_chain)
        } else if applied == Lsn::ZERO {
            None
        } else if applied >= journal.oldest() {
            journal.read_from(applied)?.next().transpose()?.map(|r| r.chain)
        } else {
            None
        };
        if applied != Lsn::ZERO && expected.is_some_and(|e| e != chain) {
            return refuse(format!(
                "its record {applied} is not the journal's: two halves of different stores"
            ));
        }
        Ok(())
    }

    /// Applies the records behind the index. Returns where the journal is to be cut, if it must be: behind
    /// the record before the first that names a chunk which the packs lost in a power cut.
    fn replay(
        &self,
        journal: &Journal,
        index: &Index,
        chunks: &ChunkStore,
        damaged: bool,
        progress: Progress<'_>,
    ) -> Result<Option<Lsn>> {
        let (applied, packed) = {
            let state = index.state();
            (state.applied, state.packed)
        };
        let last = journal.last().0;
        if applied >= last {
            return Ok(None);
        }
        let start = Instant::now();
        for id in pack::list(&**self.disk, &self.layout.packs)? {
            if id < packed.0 {
                continue;
            }
            let from = if id == packed.0 { packed.1 } else { 0 };
            pack::scan(
                &**self.disk,
                &self.layout.packs,
                self.id,
                id,
                from,
                Trust::Footer,
                &mut |id, location| {
                    chunks.found(id, location);
                    Ok(())
                },
            )?;
        }
        let total = last.0 - applied.0;
        let mut cut = None;
        for (done, framed) in journal.read_from(applied.next())?.enumerate() {
            let framed = framed?;
            let record = self.record(framed.lsn, framed.term, &framed.body)?;
            if !damaged
                && let Some(missing) = missing_chunk(&record, index, chunks)?
                && self.synced_up_to(journal, framed.lsn)? < framed.lsn
            {
                tracing::warn!(lsn = %framed.lsn, chunk = %missing, "cut a journal tail whose chunks were lost");
                cut = Some(index.state().applied);
                break;
            }
            // The low mark of the first record holds for all: what is behind it was scanned.
            let place = Place { lsn: framed.lsn, term: framed.term, chain: framed.chain.0, packed };
            index.apply(place, &record, chunks)?;
            if done % 4096 == 0 {
                progress("replaying the journal", done as u64 * 100 / total);
            }
        }
        chunks.forget_found();
        tracing::info!(from = %applied, to = %index.state().applied, ms = start.elapsed().as_millis() as u64, "journal replayed");
        Ok(cut)
    }

    /// The last record that any record from `lsn` on says was durable.
    fn synced_up_to(&self, journal: &Journal, lsn: Lsn) -> Result<Lsn> {
        let mut synced = Lsn::ZERO;
        for framed in journal.read_from(lsn)? {
            let framed = framed?;
            synced = synced.max(self.record(framed.lsn, framed.term, &framed.body)?.durable);
        }
        Ok(synced)
    }

    fn record(&self, lsn: Lsn, term: Term, body: &[u8]) -> Result<Record> {
        let bad = |detail: String| Error::corrupt("journal record", format!("lsn {lsn}"), detail);
        let plain = self.sealer.open(&record_aad(lsn, term), body).map_err(|e| bad(e.to_string()))?;
        Record::decode(&plain).map_err(|e| bad(e.to_string()))
    }
}

/// A chunk that applying the record needs and that is neither in the index nor was found in a pack.
fn missing_chunk(record: &Record, index: &Index, chunks: &ChunkStore) -> Result<Option<ChunkId>> {
    for edit in &record.edits {
        let pieces = match edit {
            Edit::PatchBlock { pieces, .. } => pieces.as_slice(),
            // Of a version that is gone, apply ignores it, and its chunks may be gone as well.
            Edit::Rebind { vol, ino, block, since, recipe } => {
                let item = PendingBlock { vol: *vol, ino: *ino, block: *block, since: *since };
                if index.block_version(&item)?.is_some() { recipe.pieces() } else { &[] }
            }
            _ => &[],
        };
        for piece in pieces {
            if let Source::Chunk { id, .. } = &piece.source
                && chunks.locate(id).is_none()
                && index.chunk(id)?.is_none()
            {
                return Ok(Some(*id));
            }
        }
    }
    Ok(None)
}
