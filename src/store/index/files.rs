//! The index's files: checkpoints, comparing with checksums, writing tables anew.

use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    BottommostLevelCompaction, Cache, ColumnFamilyDescriptor, CompactOptions, DB, Options,
    WaitForCompactOptions,
};

use super::{CHECKPOINT_CACHE_BYTES, FAMILIES, HEADS, HISTORY, Index, family_options, index_error};
use crate::store::keys::Sealer;
use crate::store::sums::{Advance, Seen, Sums};
use crate::types::error::IoContext;
use crate::types::{Error, Lsn, Result};

impl Index {
    /// Opens a checkpoint for reading, without a write.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn open_checkpoint(path: &Path, sealer: Arc<Sealer>) -> Result<Index> {
        let cache = Cache::new_lru_cache(CHECKPOINT_CACHE_BYTES);
        let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache)));
        let mut options = Options::default();
        // One that is passed in or removed at the same time must not keep many files open.
        options.set_max_open_files(64);
        let db = DB::open_cf_descriptors_read_only(&options, path, families, false).map_err(index_error)?;
        Index::assemble(db, path, sealer, cache)
    }

    /// Makes a checkpoint (hard links) of what is on disk, in `path`, which must not exist. Unflushed
    /// changes are not part of it: it has its own applied LSN inside.
    pub fn checkpoint(&self, path: &Path) -> Result<()> {
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&self.db).map_err(index_error)?;
        checkpoint.create_checkpoint_with_log_size(path, u64::MAX).map_err(index_error)
    }

    /// What was found changed in its lists when it was opened, one sentence each. RocksDB could use them, and
    /// has written others since.
    pub fn changed(&self) -> &[String] {
        &self.changed
    }

    /// Writes all tables anew, from rows that RocksDB verifies as it reads them.
    ///
    /// # Errors
    /// From RocksDB.
    pub fn rewrite_tables(&self) -> Result<()> {
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        for family in FAMILIES {
            self.db.compact_range_cf_opt(self.family(family)?, None::<&[u8]>, None::<&[u8]>, &options);
        }
        self.db.wait_for_compact(&WaitForCompactOptions::default()).map_err(index_error)
    }

    /// Writes the tables anew that hold items whose keys lie in one of the ranges, so that values that were
    /// replaced or deleted leave the files. What is not flushed yet is not concerned. Returns whether they all
    /// did: somebody who reads the index as it was keeps them.
    ///
    /// # Errors
    /// From RocksDB; [`Error::NoSpace`] without room for copies of all tables of a family, with nothing done.
    pub fn compact(&self, ranges: &[(Vec<u8>, Vec<u8>)], room: impl Fn(u64) -> Result<()>) -> Result<bool> {
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        for family in [HEADS, HISTORY] {
            room(self.number(family, rocksdb::properties::LIVE_SST_FILES_SIZE)?)?;
            for (from, below) in ranges {
                self.db.compact_range_cf_opt(self.family(family)?, Some(from), Some(below), &options);
            }
        }
        self.db.wait_for_compact(&WaitForCompactOptions::default()).map_err(index_error)?;
        Ok(self.number("default", rocksdb::properties::NUM_SNAPSHOTS)? == 0)
    }

    /// As [`Index::checkpoint`], with the checksums of its files.
    ///
    /// # Errors
    /// From RocksDB or the disk.
    pub fn summed_checkpoint(&self, path: &Path) -> Result<()> {
        self.checkpoint(path)?;
        let mut known = self.sums.lock();
        let all = Sums::of(path, known.as_ref().unwrap_or(&Sums::default()))?;
        all.store(path)?;
        if let Some(known) = known.as_mut() {
            known.learn(&all);
        }
        Ok(())
    }

    /// Compares the files in `dir`, its own or a checkpoint just made of it, with what is known of its tables.
    ///
    /// # Errors
    /// What `advance` said.
    pub fn compare_tables(&self, dir: &Path, seen: &mut Seen, advance: Advance<'_>) -> Result<Vec<Error>> {
        let known = self.sums.lock().clone().unwrap_or_default();
        known.compare(dir, seen, advance)
    }
}

/// The applied LSN inside a checkpoint, which is opened without a write. Its rows outside the default family
/// are not read.
///
/// # Errors
/// As [`Index::open`].
pub fn checkpoint_reaches(checkpoint: &Path, sealer: &Arc<Sealer>) -> Result<Lsn> {
    Ok(Index::open_checkpoint(checkpoint, sealer.clone())?.state().applied)
}

/// Compares a checkpoint's files with their sums.
///
/// # Errors
/// [`Error::Corrupt`] for the first that differs; what `advance` said.
pub fn compare_checkpoint(checkpoint: &Path, seen: &mut Seen, advance: Advance<'_>) -> Result<()> {
    let problems = Sums::load(checkpoint)?.compare(checkpoint, seen, advance)?;
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// Copies a checkpoint to where the index lives: hard links for the immutable tables, copies for the rest.
pub fn restore_checkpoint(checkpoint: &Path, index: &Path) -> Result<()> {
    std::fs::create_dir_all(index).at("creating", index)?;
    for entry in std::fs::read_dir(checkpoint).at("listing", checkpoint)? {
        let from = entry.at("listing", checkpoint)?.path();
        let Some(name) = from.file_name() else { continue };
        let to = index.join(name);
        if from.extension().is_some_and(|e| e == "sst") {
            std::fs::hard_link(&from, &to).at("linking", &to)?;
        } else {
            std::fs::copy(&from, &to).at("copying", &to)?;
        }
    }
    Ok(())
}
