//! The index: RocksDB, and nothing outside this folder knows it. It is a view of the journal: [`apply`] is
//! its only writer, and it may be thrown away and rebuilt from a checkpoint and the journal.
//!
//! RocksDB's own log is off and its column families are flushed together; it never flushes by itself, so
//! that what it holds on disk is never ahead of the synced journal ([`Index::begin_flush`]).

pub mod apply;
mod blocks;
mod erase;
mod files;
mod forget;
pub mod frozen;
pub mod keys;
mod mend;
mod only;
mod options;
pub mod past;
mod path;
pub mod relocate;
pub mod rows;
pub mod scan;
pub mod steps;
mod txn;
pub mod view;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rocksdb::{
    Cache, ColumnFamily, ColumnFamilyDescriptor, DB, FlushOptions, ReadOptions, WriteBatch, WriteOptions,
};

use crate::store::keys::Sealer;
use crate::store::model::Policy;
use crate::store::sums::{self, Sums};
use crate::types::wire::WireError;
use crate::types::{Error, Lsn, PackId, Result, VolumeId};
use keys::meta;
use options::{db_options, family_options, hash_memory_tables};
use rows::{PackStat, Snapshot, State, Step, Stored, Volume};

pub use erase::{Buckets, PastPage};
pub use files::{checkpoint_reaches, compare_checkpoint, restore_checkpoint};
pub use frozen::Frozen;
pub use only::OnlyKept;
pub use past::{Ended, Named, Span};
pub use txn::{Locate, wants_rebind};
pub use view::{Version, View};

const HEADS: &str = "heads";
const HISTORY: &str = "history";
const CHUNKS: &str = "chunks";
const FAMILIES: [&str; 4] = ["default", HEADS, HISTORY, CHUNKS];
/// Block cache of a checkpoint that is being looked at.
const CHECKPOINT_CACHE_BYTES: usize = 8 << 20;
/// How often a waiting flush is looked at.
const FLUSH_POLL: std::time::Duration = std::time::Duration::from_millis(1);
/// Looks between two questions whether RocksDB still writes at all.
const FLUSH_POLLS_PER_PROBE: u32 = 100;
/// A memory table that grows beyond this is flushed by RocksDB itself, which must never happen: much larger
/// than what `Store` lets them grow to.
const MEMTABLE_BYTES_MAX: &str = "4294967296";
/// Free space at which RocksDB tries again what found none: it takes the size that the tables are opened with.
pub(super) const RESUME_FREE_BYTES: usize = 4 << 20;
/// What an entry takes in a table beside its key and value.
const ENTRY_BYTES: u64 = 32;
/// Sizes of RocksDB's memory; see `store::config`.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// Block cache: data, index and filter blocks of all column families.
    pub block_cache_bytes: usize,
    /// Whether tables are merged in the background; not by those who only look.
    pub compacts: bool,
}

/// What the index was asked for, so that costs can be compared without a clock.
#[derive(Debug, Default)]
pub struct Counters {
    /// Point look-ups.
    pub gets: AtomicU64,
    /// Iterators positioned.
    pub seeks: AtomicU64,
    /// Bytes of the values returned by either.
    pub bytes: AtomicU64,
}

/// The open index.
pub struct Index {
    db: DB,
    path: PathBuf,
    pub(super) sealer: Arc<Sealer>,
    digest_key: [u8; 32],
    cache: Cache,
    /// Lock order: taken last; held while a batch is written, so that rows and versions change together.
    state: RwLock<State>,
    /// RocksDB refused a write or a flush and has not been seen to take one since.
    stopped: AtomicBool,
    /// Its count of failures in the background when the last flush began.
    failures: AtomicU64,
    /// Bytes of the batches written since the last flush began, and of those that flush is to write.
    unwritten: [AtomicU64; 2],
    /// The record up to which it was on disk when it was opened.
    opened_at: Lsn,
    /// Lists that were not what was closed; RocksDB has replaced them.
    changed: Vec<String>,
    /// Of the tables, where it is not a checkpoint: those are not written.
    sums: Mutex<Option<Sums>>,
    /// Where forgetting goes on, by volume.
    forgotten: Mutex<HashMap<VolumeId, forget::Known>>,
    /// Costs so far.
    pub counters: Counters,
}

fn index_error(e: impl std::fmt::Display) -> Error {
    let text = e.to_string();
    // RocksDB's error has a kind, but not this one: only its words tell.
    if text.contains("No space left on device") {
        Error::NoSpace("the index".into())
    } else {
        Error::Index(text)
    }
}

/// Writes past RocksDB's own log: the journal is that.
fn write_options() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

fn damaged(key: &[u8], e: impl std::fmt::Display) -> Error {
    Error::corrupt("index value", format!("key {}", crate::types::ids::hex(key)), e.to_string())
}

impl Index {
    /// Opens or creates the index in `path`.
    ///
    /// # Errors
    /// [`Error::Index`] when RocksDB refuses, [`Error::Corrupt`] when a row does not decode.
    pub fn open(path: &Path, sealer: Arc<Sealer>, options: IndexOptions) -> Result<Index> {
        let (tables, changed) = sums::begin(path)?;
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let mut family = family_options(&cache);
        family.set_disable_auto_compactions(!options.compacts);
        let families = FAMILIES.map(|name| {
            let mut family = family.clone();
            if name == CHUNKS {
                hash_memory_tables(&mut family);
            }
            ColumnFamilyDescriptor::new(name, family)
        });
        let db = DB::open_cf_descriptors(&db_options()?, path, families).map_err(index_error)?;
        let mut index = Index::assemble(db, path, sealer, cache)?;
        for family in FAMILIES {
            let larger = [("write_buffer_size", MEMTABLE_BYTES_MAX)];
            index.db.set_options_cf(index.family(family)?, &larger).map_err(index_error)?;
        }
        index.changed = changed.iter().map(ToString::to_string).collect();
        *index.sums.lock() = Some(tables);
        Ok(index)
    }

    fn assemble(db: DB, path: &Path, sealer: Arc<Sealer>, cache: Cache) -> Result<Index> {
        let digest_key = sealer.digest_key();
        let mut index = Index {
            db,
            path: path.to_owned(),
            sealer,
            digest_key,
            cache,
            state: RwLock::new(State::default()),
            stopped: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            unwritten: Default::default(),
            opened_at: Lsn::ZERO,
            changed: Vec::new(),
            sums: Mutex::new(None),
            forgotten: Mutex::default(),
            counters: Counters::default(),
        };
        index.opened_at = index.reload()?;
        Ok(index)
    }

    /// Reads the rows that are kept in memory anew, as after a record that could not be applied. Returns the
    /// last record applied.
    pub fn reload(&self) -> Result<Lsn> {
        let mut state = self.state.write();
        // What it counts as forgotten may not have been written.
        self.forgotten.lock().clear();
        *state = self.load_state()?;
        Ok(state.applied)
    }

    fn load_state(&self) -> Result<State> {
        let Some(row) = self.get("default", meta::STATE)? else { return Ok(State::default()) };
        let mut state = State::decode(&row).map_err(|e| damaged(meta::STATE, e))?;
        self.rows(&[meta::VOLUME], |key, value| {
            let (vol, []) = meta::split::<0>(key).ok_or_else(|| damaged(key, "bad key"))?;
            let row = self.sealer.open(key, value).map_err(|e| damaged(key, e))?;
            let volume = Volume::decode(&row).map_err(|e| damaged(key, e))?;
            state.volumes.insert(vol, Volume { changed: state.applied, ..volume });
            Ok(true)
        })?;
        self.rows(&[meta::SNAPSHOT], |key, value| {
            let (vol, [at]) = meta::split::<1>(key).ok_or_else(|| damaged(key, "bad key"))?;
            let row = self.sealer.open(key, value).map_err(|e| damaged(key, e))?;
            let snapshot = Snapshot::decode(&row).map_err(|e| damaged(key, e))?;
            if let Some(volume) = state.volumes.get_mut(&vol) {
                volume.points.insert(Lsn(at), snapshot);
            }
            Ok(true)
        })?;
        self.rows(&[meta::POLICY], |key, value| {
            let (vol, []) = meta::split::<0>(key).ok_or_else(|| damaged(key, "bad key"))?;
            let row = self.sealer.open(key, value).map_err(|e| damaged(key, e))?;
            if let Some(volume) = state.volumes.get_mut(&vol) {
                volume.policy = Policy::decode_row(&row).map_err(|e| damaged(key, e))?;
            }
            Ok(true)
        })?;
        self.rows(&[meta::STEP], |key, value| {
            let lsn = key.get(1..).and_then(|k| k.first_chunk::<8>()).map(|k| Lsn(u64::from_be_bytes(*k)));
            let step = Step::decode(lsn.ok_or_else(|| damaged(key, "bad key"))?, value);
            state.steps.push(step.map_err(|e| damaged(key, e))?);
            Ok(true)
        })?;
        self.pack_rows(meta::PACK, |pack, live_bytes| {
            state.packs.insert(pack, PackStat { live_bytes });
        })?;
        self.pack_rows(meta::RETIRED, |pack, since| {
            state.retired.insert(pack, Lsn(since));
        })?;
        Ok(state)
    }

    /// Visits the rows of a kind that have a number for each pack.
    fn pack_rows(&self, kind: u8, mut visit: impl FnMut(PackId, u64)) -> Result<()> {
        self.rows(&[kind], |key, value| {
            let bad = || damaged(key, WireError::Short);
            let pack = key.get(1..).and_then(|k| k.first_chunk::<8>()).ok_or_else(bad)?;
            let number = value.first_chunk::<8>().ok_or_else(bad)?;
            visit(PackId(u64::from_be_bytes(*pack)), u64::from_le_bytes(*number));
            Ok(true)
        })
    }

    /// The rows that are not versioned.
    pub fn state(&self) -> parking_lot::RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// The record up to which it was on disk when it was opened: what was replayed since is not.
    pub fn opened_at(&self) -> Lsn {
        self.opened_at
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily> {
        self.db.cf_handle(name).ok_or_else(|| index_error(format!("no column family {name}")))
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<rocksdb::DBPinnableSlice<'_>>> {
        self.counters.gets.fetch_add(1, Ordering::Relaxed);
        let value = self.db.get_pinned_cf(self.family(family)?, key).map_err(index_error)?;
        if let Some(v) = &value {
            self.counters.bytes.fetch_add(v.len() as u64, Ordering::Relaxed);
        }
        Ok(value)
    }

    /// Several point look-ups at once, which cost less than one after the other.
    fn get_all<'k, K: AsRef<[u8]> + 'k>(
        &self,
        family: &str,
        keys: impl ExactSizeIterator<Item = &'k K>,
    ) -> Vec<Result<Option<rocksdb::DBPinnableSlice<'_>>>> {
        let family = match self.family(family) {
            Ok(family) => family,
            Err(e) => return vec![Err(e)],
        };
        self.counters.gets.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let found = self.db.batched_multi_get_cf(family, keys, false);
        found.into_iter().map(|value| value.map_err(index_error)).collect()
    }

    fn iterate(&self, family: &str, from: &[u8], below: &[u8]) -> Result<rocksdb::DBRawIterator<'_>> {
        self.counters.seeks.fetch_add(1, Ordering::Relaxed);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(below);
        options.set_total_order_seek(true);
        let mut it = self.db.raw_iterator_cf_opt(self.family(family)?, options);
        it.seek(from);
        it.status().map_err(index_error)?;
        Ok(it)
    }

    /// Visits the rows of the default family that begin with `prefix`, in order, while `visit` says true.
    pub fn rows(&self, prefix: &[u8], visit: impl FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
        self.range("default", prefix, &keys::after_prefix(prefix), visit)
    }

    fn range(
        &self,
        family: &str,
        from: &[u8],
        below: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut it = self.iterate(family, from, below)?;
        while let Some((key, value)) = it.item() {
            self.counters.bytes.fetch_add(value.len() as u64, Ordering::Relaxed);
            if !visit(key, value)? {
                return Ok(());
            }
            it.next();
        }
        it.status().map_err(index_error)
    }

    fn head(&self, key: &[u8]) -> Result<Option<Stored>> {
        self.get(HEADS, key)?.map(|v| Stored::decode(&v).map_err(|e| damaged(key, e))).transpose()
    }

    /// Bytes of memory that unflushed changes take.
    fn unflushed_bytes(&self) -> u64 {
        FAMILIES
            .iter()
            .filter_map(|name| self.family(name).ok())
            .filter_map(|cf| {
                self.db.property_int_value_cf(cf, "rocksdb.cur-size-all-mem-tables").ok().flatten()
            })
            .sum()
    }

    /// Begins to write all applied changes to disk. The caller has synced the journal up to the applied LSN
    /// and holds the commit lock, so that nothing later gets in: the in-memory tables are switched before
    /// this returns.
    ///
    /// # Errors
    /// [`Error::NoSpace`] while an earlier flush waits for room.
    pub fn begin_flush(&self) -> Result<()> {
        self.ready()?;
        self.failures.store(self.background_failures()?, Ordering::Relaxed);
        let mut options = FlushOptions::default();
        options.set_wait(false);
        let families = FAMILIES.iter().map(|name| self.family(name)).collect::<Result<Vec<_>>>()?;
        self.db.flush_cfs_opt(&families, &options).map_err(|e| self.stopped_by(e))?;
        let [newer, flushing] = &self.unwritten;
        flushing.fetch_add(newer.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    }

    /// Waits until what [`Index::begin_flush`] began is on disk. Asking RocksDB to flush and wait would switch
    /// the tables again, and write changes whose records are not synced.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: RocksDB keeps what it could not write and tries again by itself once there is room,
    /// then with everything applied until then. Until it succeeded it takes no writes ([`Index::ready`]).
    pub fn end_flush(&self) -> Result<()> {
        let mut polls = 0;
        for family in FAMILIES {
            while self.number(family, rocksdb::properties::NUM_IMMUTABLE_MEM_TABLE)? > 0 {
                // A failed compaction counts as well, and stops nothing.
                let failures = self.background_failures()?;
                let failed = self.failures.swap(failures, Ordering::Relaxed) != failures;
                polls += 1;
                if failed || polls % FLUSH_POLLS_PER_PROBE == 0 {
                    self.stopped.store(true, Ordering::Release);
                    self.ready()?;
                }
                std::thread::sleep(FLUSH_POLL);
            }
        }
        let [_, flushing] = &self.unwritten;
        flushing.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that a flush now would write, at most: the keys and values that were changed since the last one.
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten.iter().map(|part| part.load(Ordering::Relaxed)).sum()
    }

    /// Whether RocksDB takes writes, asked only if it last did not.
    ///
    /// # Errors
    /// [`Error::NoSpace`] while it waits for room; [`Error::Index`] when it has given up.
    pub fn ready(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            self.db.write_opt(WriteBatch::default(), &write_options()).map_err(index_error)?;
            self.stopped.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        let bytes = batch.size_in_bytes() as u64 + batch.len() as u64 * ENTRY_BYTES;
        self.db.write_opt(batch, &write_options()).map_err(|e| self.stopped_by(e))?;
        let [newer, _] = &self.unwritten;
        newer.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn stopped_by(&self, e: rocksdb::Error) -> Error {
        self.stopped.store(true, Ordering::Release);
        index_error(e)
    }

    fn background_failures(&self) -> Result<u64> {
        self.number("default", rocksdb::properties::BACKGROUND_ERRORS)
    }

    fn number(&self, family: &str, property: &rocksdb::properties::PropName) -> Result<u64> {
        let value = self.db.property_int_value_cf(self.family(family)?, property).map_err(index_error)?;
        value.ok_or_else(|| index_error("it has no such property"))
    }

    /// Bytes of memory: block cache in use and memory tables.
    pub fn memory_bytes(&self) -> u64 {
        self.cache.get_usage() as u64 + self.unflushed_bytes()
    }
}

impl Drop for Index {
    /// Sums up the files, which nobody changes from here on.
    fn drop(&mut self) {
        let Some(known) = self.sums.get_mut().take() else { return };
        self.db.cancel_all_background_work(true);
        if let Err(error) = Sums::of(&self.path, &known).and_then(|all| all.store(&self.path)) {
            tracing::debug!(%error, "the index's files are not summed up");
        }
    }
}
