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
pub mod config;
mod create;
pub mod index;
pub mod journal;
pub mod keys;
pub mod last_scrub;
mod layout;
pub mod model;
mod open;
mod opener;
pub mod problem;
mod rebind;
pub mod repair;
mod replay;
mod requests;
pub mod scrub;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::types::error::IoContext;
use crate::types::limits::{RECORD_BYTES_MAX, RECORD_EDITS_MAX};
use crate::types::wire::Encoder;
use crate::types::{Clock, Disk, Error, Lsn, NodeUuid, Result, StoreUuid, Term, VolumeId};
use chunks::ChunkStore;
use config::Config;
use index::apply::Place;
use index::{Index, View};
use journal::Journal;
use keys::Sealer;
use model::{Edit, Record, RequestId};

pub use affected::{Affected, FilePlace, When};
pub use create::{CreateOptions, Created, create};
pub use index::Locate;
pub use layout::{Layout, identify, node_of};
pub use open::{FileBytes, OpenMode, OpenOptions, Progress};

/// What opening found that an operator should know.
pub type Problems = Vec<String>;

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
    /// The append lock: one record at a time is appended and applied, in the same order. Lock order: after
    /// every lock of the layers above, before the journal's and the index's own.
    commit: Mutex<Committed>,
    care: care::CareState,
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
    /// Journals the edits as one record and applies it. When this returns, every view shows it and a
    /// process kill loses nothing of it; a power cut may, until [`Store::sync`].
    ///
    /// # Errors
    /// [`Error::NoSpace`] and [`Error::Invalid`] leave everything as it was; [`Error::Poisoned`] and
    /// [`Error::ReadOnly`] as well.
    pub fn commit(&self, edits: Vec<Edit>, request: Option<RequestId>) -> Result<Lsn> {
        self.commit_noted(edits, request, &|_| {})
    }

    /// As [`Store::commit`]. `note` is called with the record's LSN before it is appended, and with
    /// [`Lsn::ZERO`] if it then was not: whoever finds the note after a crash asks the journal whether it
    /// reaches that far. Both under the append lock.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_noted(
        &self,
        edits: Vec<Edit>,
        request: Option<RequestId>,
        note: &dyn Fn(Lsn),
    ) -> Result<Lsn> {
        let record = Record { time: self.clock.now(), durable: self.durable(), request, edits };
        if record.edits.len() > RECORD_EDITS_MAX {
            return Err(Error::Invalid(format!(
                "{} changes are too many for one record",
                record.edits.len()
            )));
        }
        let plain = record.encode();
        #[cfg(test)]
        assert_eq!(Record::decode(&plain).as_ref(), Ok(&record), "a record that recovery could not read");
        if plain.len() > RECORD_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "a change of {} bytes is too large for one record",
                plain.len()
            )));
        }
        let committed = self.commit.lock();
        self.check_writable()?;
        let lsn = self.journal.next_lsn();
        let sealed = self
            .sealer
            .seal(&record_aad(lsn, committed.term), &plain)
            .map_err(|e| Error::Invalid(e.to_string()))?;
        note(lsn);
        let appended = self.journal.append(committed.term, &sealed).inspect_err(|_| note(Lsn::ZERO))?;
        let place = Place {
            lsn: appended.lsn,
            term: committed.term,
            chain: appended.chain.0,
            packed: self.chunks.low_mark(),
        };
        if let Err(e) = self.index.apply(place, &record, &self.chunks) {
            return Err(self.poisoned(&e));
        }
        Ok(appended.lsn)
    }

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
        let covered = self.journal.last().0;
        self.chunks.sync().map_err(|e| self.poisoned(&e))?;
        let journaled = self.journal.sync(upto).map_err(|e| self.poisoned(&e))?;
        self.durable.fetch_max(journaled.min(covered).0, Ordering::AcqRel);
        Ok(self.durable())
    }

    /// Makes everything committed so far durable.
    pub fn sync_all(&self) -> Result<Lsn> {
        self.sync(self.journal.last().0)
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
        self.journal.last().0
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

    /// Bytes of the journal's files.
    pub fn journal_bytes(&self) -> u64 {
        self.journal.bytes()
    }

    /// Bytes of the pack files.
    pub fn packs_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for pack in chunks::pack::list(&*self.disk, &self.layout.packs)? {
            let path = chunks::pack::pack_path(&self.layout.packs, pack);
            total += self.disk.open(&path, false).and_then(|f| f.len()).at("reading", &path)?;
        }
        Ok(total)
    }

    /// Writes the index to disk: the journal is synced first, so that the index is never ahead of it.
    /// Returns the record up to which it is on disk.
    pub fn flush_index(&self) -> Result<Lsn> {
        // Most of the sync happens before the lock, so that writers wait only for the rest.
        self.sync_all()?;
        let applied = {
            let _committed = self.commit.lock();
            self.sync_all()?;
            self.index.begin_flush().map_err(|e| self.poisoned(&e))?;
            self.index.state().applied
        };
        self.index.end_flush().map_err(|e| self.poisoned(&e))?;
        self.care.flushed(applied);
        Ok(applied)
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
        self.commit(vec![Edit::Term], None)?;
        self.flush_index()?;
        tracing::info!(elapsed_ms = start.elapsed().as_millis() as u64, "store closed");
        Ok(())
    }
}

/// Where a path names a store, its directory.
pub fn is_store(path: &Path) -> Option<PathBuf> {
    let layout = Layout::new(path);
    layout.identity.is_file().then_some(layout.root)
}
