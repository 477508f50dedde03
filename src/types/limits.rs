//! Every fixed limit in one place; what an operator may tune is in [`crate::store::config`].

/// Version of the on-disk format; a store of another version is refused.
pub const FORMAT_VERSION: u32 = 2;

/// Bytes of a file block, the unit of the file map. Recipes never cross a block border.
pub const BLOCK_BYTES: u64 = 256 * 1024;
/// Pieces a recipe may have before a background rewrite merges them.
pub const RECIPE_PIECES_TARGET: usize = 32;
/// Pieces at which a block is rewritten before it is patched again, so that patching stays cheap.
pub const RECIPE_PIECES_PATCHED_MAX: usize = 512;
/// Holes smaller than this become zeros when a block of many pieces is rewritten.
pub const SMALL_HOLE_BYTES: u32 = 4096;
/// Pieces a decoder accepts in one recipe: one for each byte, of which there can never be more.
pub const RECIPE_PIECES_MAX: usize = BLOCK_BYTES as usize;
/// Inline bytes that a block may keep for good: smaller than the overhead of a chunk is worth.
pub const INLINE_KEEP_BYTES: usize = 512;

/// Smallest, average and largest chunk that the content-defined chunker cuts.
pub const CHUNK_MIN_BYTES: usize = 16 * 1024;
/// See [`CHUNK_MIN_BYTES`].
pub const CHUNK_AVG_BYTES: usize = 64 * 1024;
/// See [`CHUNK_MIN_BYTES`]; also the largest chunk that a decoder accepts.
pub const CHUNK_MAX_BYTES: usize = 256 * 1024;

/// A pack is closed when it reaches this size.
pub const PACK_BYTES: u64 = 256 * 1024 * 1024;
/// Chunks in one pack; bounds the footer that a reader must hold.
pub const PACK_CHUNKS_MAX: usize = 65_536;

/// A journal segment is closed when it reaches this size.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// The largest record body; a barrier's inline bytes are split over several records.
pub const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Edits in one record.
pub const RECORD_EDITS_MAX: usize = 100_000;

/// Inode numbers have 40 bits (see [`crate::mount::nodeid`]).
pub const INO_MAX: u64 = (1 << 40) - 1;
/// Snapshot view numbers: the lower half of the 22-bit view space; the upper half is for `@POINT` views.
pub const SNAPSHOT_VIEW_MAX: u32 = (1 << 21) - 1;
/// Volumes of one store.
pub const VOLUMES_MAX: usize = 1024;

/// Longest file name, as on every Linux filesystem.
pub const NAME_BYTES_MAX: usize = 255;
/// Directories above each other that are followed: no path that the kernel takes is deeper, and a loop that damage
/// made ends here.
pub const PATH_DEPTH_MAX: usize = 4096;
/// Longest symbolic link target.
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Largest extended attribute value (Linux `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;
/// Extended attribute names of one file, together (Linux `XATTR_LIST_MAX`).
pub const XATTR_LIST_BYTES_MAX: usize = 65_536;
/// Access times that wait for a record, of all volumes together.
pub const ACCESSES_PENDING_MAX: usize = 65_536;
/// Hard links of one file; ext4 stops at 65,000.
pub const LINKS_MAX: u32 = 65_000;
/// Largest file: what `off_t` can address.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Blocks of the largest file.
pub const FILE_BLOCKS_MAX: u64 = FILE_BYTES_MAX.div_ceil(BLOCK_BYTES);

/// Longest address of a web hook.
pub const WEBHOOK_BYTES_MAX: usize = 2048;
/// Largest file that remembers how much usually happens in a store's volumes.
pub const RATES_BYTES_MAX: usize = 32 << 20;

/// Longest snapshot or volume name.
pub const SNAPSHOT_NAME_BYTES_MAX: usize = 128;
/// Tags of one snapshot.
pub const TAGS_MAX: usize = 64;
/// Bytes of one tag, key and value together.
pub const TAG_BYTES_MAX: usize = 1024;

/// Globs of one list of a policy.
pub const GLOBS_MAX: usize = 64;
/// Bytes of one glob.
pub const GLOB_BYTES_MAX: usize = 1024;
/// Longest period of a policy: a hundred years.
pub const POLICY_SECS_MAX: u64 = 100 * 366 * 24 * 3600;
/// Snapshots of one kind that a retention may name.
pub const RETENTION_MAX: u32 = 100_000;
/// Changes of the immutable period that still matter, at once.
pub const IMMUTABLE_STEPS_MAX: usize = 1024;
/// Snapshots and marks of one volume.
pub const POINTS_MAX: usize = 200_000;

/// Items one background record (reaping, forgetting) moves or frees, so that no writer waits long.
pub const SWEEP_ITEMS_MAX: usize = 1000;
/// As many are asked for while programs may be waiting: a record holds up everybody who looks at the index.
pub const SWEEP_ITEMS_BESIDE: u32 = 100;
/// Blocks that unlink and truncate remove in the same record; beyond that they leave a cut and a reap item.
pub const DIRECT_REMOVE_BLOCKS_MAX: u64 = 64;
/// Cuts an inode may carry; the next one first waits for the reaper.
pub const CUTS_MAX: usize = 8;

/// Changes that one comparison of two points tells.
pub const DIFF_CHANGES_MAX: usize = 1_000_000;
/// Inodes, and names of files with several, that one comparison looks at.
pub const DIFF_INODES_MAX: usize = 4_000_000;
/// Longest path that a comparison tells: four times what a program can name at once.
pub const DIFF_PATH_BYTES_MAX: usize = 16 * 1024;
/// Versions that one look at a file's history tells.
pub const LOG_VERSIONS_MAX: usize = 1_000_000;
/// Snapshots named beside one version of a file; of more only their number is told.
pub const LOG_SNAPSHOTS_MAX: usize = 100;

/// Chunks that are counted to tell what deleting snapshots frees; beyond that it is told as a bound.
pub const COUNTED_CHUNKS_MAX: usize = 1_000_000;
/// Chunks that one purge keeps in memory; of a file with more of them all packs with dead bytes are written anew.
pub const PURGE_CHUNKS_MAX: usize = 4_000_000;
/// Names, snapshots and files that the report of a purge lists of each; of more only the number is told.
pub const PURGE_LISTED_MAX: usize = 1000;

/// Bytes of one control-socket request.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Control connections served at once.
pub const CONTROL_CONNECTIONS_MAX: usize = 64;
/// Key slots of a keyring.
pub const KEY_SLOTS_MAX: usize = 16;
/// Names of files with several that one restore keeps in memory.
pub const RESTORE_LINKS_MAX: usize = 1_000_000;
