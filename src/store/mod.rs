//! The store: one journal, one index, one set of packs, one keyring. Volumes live above it and know only
//! [`Store::commit`], [`Store::view`], [`Store::sync`] and the chunks.
//!
//! ```text
//! commit: encode → (append lock) check authority and poison → seal → append → apply → publish the LSN
//! sync:   packs, then journal (group commit) → durable LSN
//! ```

mod affected;
pub mod care;
pub mod check;
pub mod chunks;
mod commit;
pub mod config;
pub mod control;
mod create;
pub mod gc;
pub mod index;
pub mod journal;
pub mod keys;
pub mod last_scrub;
mod layout;
pub mod model;
mod open;
mod opener;
pub mod problem;
mod purge;
mod rates;
mod rebind;
pub mod repair;
mod replay;
mod requests;
mod room;
pub mod scrub;
pub mod sums;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::types::error::IoContext;
use crate::types::wire::Encoder;
use crate::types::{Clock, Disk, Error, Lsn, NodeUuid, PackId, Result, Space, StoreUuid, Term, VolumeId};
use chunks::ChunkStore;
use config::Config;
use index::{Index, View};
use journal::Journal;
use keys::Sealer;
use model::Edit;
use room::Room;

pub use affected::{Affected, FilePlace, When};
pub use create::{CreateOptions, Created, create};
pub use index::Locate;
pub use layout::{Layout, identify, node_of};
pub use open::{FileBytes, OpenMode, OpenOptions, Progress};
pub use purge::{NamedFile, Purge, PurgeData};
pub use room::Pressure;

/// What opening found that an operator should know.
pub type Problems = Vec<String>;

/// Room that a flush of the index takes beside the changes themselves: manifest, options, logs.
const FLUSH_SPARE_BYTES: u64 = 1 << 20;

/// An open store. Closing it (dropping the last handle) releases its lock.
pub struct Store {
    layout: Layout,
    id: StoreUuid,
    node: NodeUuid,
    config: Config,
    sealer: Arc<Sealer>,
    recovery_exported: AtomicBool,
    journal: Journal,
    index: Arc<Index>,
    chunks: ChunkStore,
    clock: Arc<dyn Clock>,
    disk: Arc<dyn Disk>,
    room: Arc<Room>,
    /// Why nothing may be committed, if so.
    read_only: Option<String>,
    /// What was found damaged on the disk when it was opened, and is so still.
    damage: Vec<problem::Problem>,
    /// What the next opening for writing will do by itself, if this one is for reading.
    notes: Vec<String>,
    /// Whether it was opened for writing.
    wants_writes: bool,
    /// Set once, when memory and disk may disagree; only a restart clears it.
    poison: OnceLock<String>,
    /// The last record that is durable together with the chunks it names. The journal's own mark may be ahead.
    durable: AtomicU64,
    /// The last record that was applied: a later one in the journal may still be taken back.
    settled: AtomicU64,
    /// The append lock: one record at a time is appended and applied, in the same order. Lock order: after
    /// every lock of the layers above, before the journal's and the index's own.
    commit: Mutex<Committed>,
    care: care::CareState,
    gc: Mutex<gc::GcState>,
    scrubbed: last_scrub::Memory,
    opening_problems: Mutex<Problems>,
    _lock: open::Lock,
}

struct Committed {
    term: Term,
}

/// What binds a sealed record to its place.
fn record_aad(lsn: Lsn, term: Term) -> Vec<u8> {
    let mut aad = Encoder::with_capacity(22);
    aad.raw(b"record").u64(lsn.0).u64(term.0);
    aad.finish()
}

impl Store {
    /// Stops all further changes: what is in memory may no longer be what is on disk.
    fn poisoned(&self, cause: &Error) -> Error {
        let reason = self.poison.get_or_init(|| cause.to_string()).clone();
        tracing::error!(%reason, "the store is read-only from now on");
        Error::Poisoned(reason)
    }

    fn check_writable(&self) -> Result<()> {
        if let Some(reason) = self.poison.get() {
            return Err(Error::Poisoned(reason.clone()));
        }
        match &self.read_only {
            Some(reason) => Err(Error::ReadOnly(reason.clone())),
            None => Ok(()),
        }
    }

    /// Makes every record up to `upto`, and the chunks they name, durable. One disk flush serves all who
    /// wait for it.
    ///
    /// # Errors
    /// A failed sync poisons the store: what it covered may or may not be on the disk.
    pub fn sync(&self, upto: Lsn) -> Result<Lsn> {
        if self.durable() >= upto {
            return Ok(self.durable());
        }
        if let Some(reason) = self.poison.get() {
            return Err(Error::Poisoned(reason.clone()));
        }
        // The journal's sync may cover records that came later than this, and whose chunks the packs' sync
        // just missed: they are durable only when somebody asks for them.
        let covered = self.settled();
        self.chunks.sync().map_err(|e| self.poisoned(&e))?;
        let journaled = self.journal.sync(upto).map_err(|e| self.poisoned(&e))?;
        self.durable.fetch_max(journaled.min(covered).0, Ordering::AcqRel);
        Ok(self.durable())
    }

    /// Makes everything committed so far durable.
    pub fn sync_all(&self) -> Result<Lsn> {
        self.sync(self.settled())
    }

    fn settled(&self) -> Lsn {
        Lsn(self.settled.load(Ordering::Acquire))
    }

    /// Whether more data may be taken from programs.
    ///
    /// # Errors
    /// [`Error::NoSpace`] while the disk is full.
    pub fn admit_data(&self) -> Result<()> {
        self.room.admit_data()
    }

    /// The tree of a volume as it is, or as it was at `at` (which the caller has resolved).
    pub fn view(&self, vol: VolumeId, at: Option<Lsn>) -> View {
        View::new(self.index.clone(), vol, at)
    }

    /// The index, for reading.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// The chunks.
    pub fn chunks(&self) -> &ChunkStore {
        &self.chunks
    }

    /// The keys' uses: sealing and keyed hashes.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The clock.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.layout.root
    }

    /// The paths of its parts.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What all replicas share.
    pub fn id(&self) -> StoreUuid {
        self.id
    }

    /// What only this copy has.
    pub fn node(&self) -> NodeUuid {
        self.node
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.commit.lock().term
    }

    /// The last record committed.
    pub fn last(&self) -> Lsn {
        self.settled()
    }

    /// The last record known to be on the disk.
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// Why nothing can be written, if so.
    pub fn read_only(&self) -> Option<String> {
        self.poison.get().cloned().or_else(|| self.read_only.clone())
    }

    /// Why nothing can be written although it should be, if so.
    pub fn trouble(&self) -> Option<String> {
        self.poison.get().or(self.read_only.as_ref().filter(|_| self.wants_writes)).cloned()
    }

    /// Notes that the recovery key was exported.
    pub fn set_recovery_exported(&self) {
        self.recovery_exported.store(true, Ordering::Relaxed);
    }

    /// What an operator should see to.
    pub fn problems(&self) -> Problems {
        let mut problems = self.opening_problems.lock().clone();
        let trouble = self.trouble();
        if let Some(reason) = &trouble {
            problems.push(format!("the store is read-only: {reason}"));
        }
        problems.extend(self.room.problem());
        let others = self.damage.iter().filter(|d| trouble.as_ref() != Some(&d.text));
        problems.extend(others.map(|d| d.text.clone()));
        if self.sealer.is_encrypted() && !self.recovery_exported.load(Ordering::Relaxed) {
            problems.push(format!(
                "no recovery key was exported; without one a lost key file loses everything: rewindfs key export {}",
                self.layout.root.display()
            ));
        }
        problems.extend(self.care.problems());
        problems.extend(Some(self.scrubbed.get().problem).filter(|p| !p.is_empty()));
        problems
    }

    /// Notes something that an operator should know.
    pub fn note_problem(&self, problem: String) {
        self.opening_problems.lock().push(problem);
    }

    /// Says whether less of the disk is free than is to be: then dead space is given back sooner.
    pub fn want_room(&self, wanted: bool) {
        self.room.want(wanted);
    }

    /// Says how nearly full the disk is.
    pub fn press(&self, pressure: Pressure) {
        self.room.press(pressure);
    }

    /// Whether programs are to wait for what is being given back.
    pub fn is_tight(&self) -> bool {
        self.room.is_tight()
    }

    /// Seconds of history that stay although room is wanted.
    pub fn spared_secs(&self) -> u64 {
        self.room.spared()
    }

    /// The size at which packs are closed.
    pub fn pack_bytes_max(&self) -> u64 {
        self.room.pack_bytes(crate::types::limits::PACK_BYTES)
    }

    /// Whether something found no room and there is none yet.
    pub fn is_full(&self) -> bool {
        self.room.is_full()
    }

    /// The size of the filesystem that the store lies on, and what of it is free.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn space(&self) -> Result<Space> {
        self.disk.space(&self.layout.root).at("measuring the filesystem of", &self.layout.root)
    }

    /// Bytes of the journal's files.
    pub fn journal_bytes(&self) -> u64 {
        self.journal.bytes()
    }

    /// Bytes of the pack files.
    pub fn packs_bytes(&self) -> Result<u64> {
        let packs = chunks::pack::list(&*self.disk, &self.layout.packs)?;
        packs.into_iter().map(|pack| self.pack_bytes(pack)).sum()
    }

    fn pack_bytes(&self, pack: PackId) -> Result<u64> {
        let path = chunks::pack::pack_path(&self.layout.packs, pack);
        self.disk.open(&path, false).and_then(|f| f.len()).at("reading", &path)
    }

    /// Writes the index to disk: the journal is synced first, so that the index is never ahead of it.
    /// Returns the record up to which it is on disk.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: nothing is lost, it can be tried again.
    pub fn flush_index(&self) -> Result<Lsn> {
        self.flush(false)
    }

    /// As [`Store::flush_index`]; if it is `urgent`, in any case with what is kept back.
    fn flush(&self, urgent: bool) -> Result<Lsn> {
        // RocksDB stops when it runs out of room in the middle: it is not even asked without.
        let unwritten = self.index.unwritten_bytes();
        let needed = unwritten.saturating_add(FLUSH_SPARE_BYTES);
        let urgent = urgent || unwritten > self.unwritten_bytes_max();
        let room = if urgent { self.room.make(needed) } else { self.room.spare(needed) };
        room.inspect_err(|_| self.care.starve(true))?;
        // Most of the sync happens before the lock, so that writers wait only for the rest.
        self.sync_all()?;
        let applied = {
            let _committed = self.commit.lock();
            self.sync_all()?;
            self.index.begin_flush().map_err(|e| self.flush_failed(e))?;
            self.index.state().applied
        };
        self.index.end_flush().map_err(|e| self.flush_failed(e))?;
        self.care.starve(false);
        self.care.flushed(applied);
        Ok(applied)
    }

    fn flush_failed(&self, cause: Error) -> Error {
        match cause {
            Error::NoSpace(_) => self.no_room_for_index(cause),
            _ => self.poisoned(&cause),
        }
    }

    /// Makes everything durable and writes the index; what a clean stop does last.
    pub fn close(&self) -> Result<()> {
        if self.check_writable().is_err() {
            return Ok(());
        }
        let start = Instant::now();
        self.sync_all()?;
        // A record that says what was durable before it: without one, rot in the last records would look
        // like a tail that a power cut tore.
        let last = self.commit(vec![Edit::Term], None)?;
        if let Err(e) = self.flush_index() {
            if let Error::NoSpace(_) = &e {
                self.sync(last)?;
            }
            if self.durable() < last {
                return Err(e);
            }
            tracing::warn!(error = %e, "the index could not be written; the next opening takes it from the journal");
        }
        tracing::info!(elapsed_ms = start.elapsed().as_millis() as u64, "store closed");
        Ok(())
    }
}

/// Where a path names a store, its directory.
pub fn is_store(path: &Path) -> Option<PathBuf> {
    let layout = Layout::new(path);
    layout.identity.is_file().then_some(layout.root)
}
