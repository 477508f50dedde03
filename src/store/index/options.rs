//! How RocksDB is set up.

use rocksdb::{BlockBasedIndexType, BlockBasedOptions, Cache, MemtableFactory, Options, SliceTransform};

use super::{RESUME_FREE_BYTES, index_error};
use crate::types::Result;

/// The part of `MEMTABLE_BYTES_MAX` that a memory table's bloom filter takes, 2 MiB: most look-ups are of what is not
/// in it.
const MEMTABLE_BLOOM_RATIO: f64 = 1.0 / 2048.0;
/// Of a chunk's name, what is hashed in memory tables, and into how many buckets: about one for each row that a
/// flush writes at most.
const CHUNK_PREFIX_BYTES: usize = 8;
const CHUNK_BUCKETS: usize = 1 << 18;
/// A part of a table's index or filter.
const METADATA_BLOCK_BYTES: usize = 8 * 1024;
/// More tables in level 0 than there ever are, and so no limit.
const LEVEL_0_FILES_MAX: i32 = 1 << 20;

pub(super) fn db_options() -> Result<Options> {
    // No flush when closing either: after a failed sync the index must not get ahead of the journal. The
    // crate has no setter for it.
    let mut o = Options::default()
        .get_options_from_string("avoid_flush_during_shutdown=true")
        .map_err(index_error)?;
    o.create_if_missing(true);
    o.create_missing_column_families(true);
    o.set_atomic_flush(true);
    o.set_max_open_files(512);
    o.set_keep_log_file_num(2);
    o.set_max_log_file_size(4 << 20);
    o.set_max_background_jobs(2);
    // Or the disk gets a whole table at once, and whoever syncs the journal waits for all of it.
    o.set_bytes_per_sync(1 << 20);
    o.set_max_total_wal_size(0);
    // Not possible with tables that hash; and there is one writer at a time.
    o.set_allow_concurrent_memtable_write(false);
    // No flush but ours: the write buffers are larger than what `Store` lets them grow to.
    o.set_db_write_buffer_size(0);
    Ok(o)
}

/// For keys that are hashes and hardly ever listed: a look-up in such a table costs the same however many it holds,
/// and each record looks up and writes a row for every chunk that it names.
pub(super) fn hash_memory_tables(family: &mut Options) {
    family.set_prefix_extractor(SliceTransform::create_fixed_prefix(CHUNK_PREFIX_BYTES));
    family.set_memtable_factory(MemtableFactory::HashLinkList { bucket_count: CHUNK_BUCKETS });
}

pub(super) fn family_options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In parts: the whole filter of a table is a megabyte, read and verified for one look-up when it is not cached.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(METADATA_BLOCK_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    table.set_block_size(8 * 1024);
    table.set_format_version(5);
    let mut o = Options::default();
    o.set_block_based_table_factory(&table);
    o.set_write_buffer_size(RESUME_FREE_BYTES);
    o.set_memtable_whole_key_filtering(true);
    o.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
    // On a full disk compaction fails while flushes go on: writers must not be made to wait for it, they
    // would wait under the append lock.
    o.set_level_zero_slowdown_writes_trigger(LEVEL_0_FILES_MAX);
    o.set_level_zero_stop_writes_trigger(LEVEL_0_FILES_MAX);
    o.set_soft_pending_compaction_bytes_limit(0);
    o.set_hard_pending_compaction_bytes_limit(0);
    o.set_arena_block_size(1 << 20);
    o.set_max_write_buffer_number(8);
    o.set_min_write_buffer_number_to_merge(1);
    o.set_level_compaction_dynamic_level_bytes(true);
    o
}
