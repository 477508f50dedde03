//! `config.toml`: what an operator may tune. Every buffer and cache of the store is bounded here.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::disk::{read_file, replace_file};
use crate::types::{Disk, Error, Result};

const CONFIG_BYTES_MAX: usize = 64 * 1024;
const MIB: u64 = 1 << 20;

/// The settings, with their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes written by programs and not yet sealed; a writer beyond them waits.
    pub dirty_bytes_max: u64,
    /// Dirty bytes of one file at which sealing begins without being asked for.
    pub seal_run_bytes: u64,
    /// Decoded chunks kept for readers.
    pub chunk_cache_bytes: u64,
    /// RocksDB's block cache.
    pub index_cache_bytes: u64,
    /// Unflushed index changes at which a flush begins; with the records below they bound replay.
    pub index_flush_bytes: u64,
    /// Records since the last flush of the index at which a flush begins.
    pub index_flush_records: u64,
    /// Journal bytes since the last checkpoint at which the next one is made.
    pub checkpoint_journal_bytes: u64,
    /// Milliseconds after which written data is committed even if nobody asks.
    pub commit_interval_ms: u64,
    /// Seconds for which every moment stays readable.
    pub window_seconds: u64,
    /// Threads that compress and seal; 0: one a core.
    pub sealer_threads: u32,
    /// Threads that serve the kernel's requests of one mount; 0: twice the cores, at least 4.
    pub fuse_threads: u32,
    /// zstd level of new chunks, 1-19.
    pub zstd_level: i32,
    /// Bytes a second that a scrub reads at most. 0: as the default, and never by itself.
    pub scrub_bytes_per_second: u64,
    /// Dead part of a pack, in hundredths, from which on it is rewritten.
    pub gc_dead_percent: u32,
    /// Bytes a second that rewriting packs in the background copies. 0: it is never done by itself.
    pub gc_bytes_per_second: u64,
    /// Bytes the kernel reads ahead of a sequential reader.
    pub readahead_bytes: u64,
    /// Bytes of the disk that are kept back for deleting; at most a sixteenth of the filesystem, 0: none.
    pub reserve_bytes: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            dirty_bytes_max: 128 * MIB,
            seal_run_bytes: 4 * MIB,
            chunk_cache_bytes: 64 * MIB,
            index_cache_bytes: 64 * MIB,
            index_flush_bytes: 48 * MIB,
            index_flush_records: 20_000,
            checkpoint_journal_bytes: 256 * MIB,
            commit_interval_ms: 1000,
            window_seconds: 15 * 60,
            sealer_threads: 0,
            fuse_threads: 0,
            zstd_level: 1,
            scrub_bytes_per_second: 64 * MIB,
            gc_dead_percent: 50,
            gc_bytes_per_second: 64 * MIB,
            readahead_bytes: MIB,
            reserve_bytes: 512 * MIB,
        }
    }
}

impl Config {
    /// Reads the settings; a missing file means the defaults.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the file and the setting, on one line.
    pub fn load(disk: &dyn Disk, path: &Path) -> Result<Config> {
        let text = match read_file(disk, path, CONFIG_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
            Err(e) => return Err(Error::io("reading", path, e)),
        };
        let invalid = |detail: String| {
            let line = detail.split('\n').filter(|l| !l.trim().is_empty()).collect::<Vec<_>>().join(" ");
            Error::Invalid(format!("{}: {line}", path.display()))
        };
        let text = String::from_utf8(text).map_err(|_| invalid("it is not UTF-8".into()))?;
        let config: Config = toml::from_str(&text).map_err(|e| invalid(e.message().to_string()))?;
        config.check().map_err(invalid)?;
        Ok(config)
    }

    /// Writes the settings in full, so that an operator sees what there is to tune.
    pub fn save(&self, disk: &dyn Disk, path: &Path) -> Result<()> {
        let body = toml::to_string(self).map_err(|e| Error::Invalid(e.to_string()))?;
        let text = format!("# Settings of this store; docs/ARCHITECTURE.md explains them.\n{body}");
        replace_file(disk, path, text.as_bytes()).map_err(|e| Error::io("writing", path, e))
    }

    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} = {value} is outside {low}..={high}"))
            }
        };
        within("dirty_bytes_max", self.dirty_bytes_max, 8 * MIB, 1 << 40)?;
        within("seal_run_bytes", self.seal_run_bytes, MIB, self.dirty_bytes_max / 2)?;
        within("chunk_cache_bytes", self.chunk_cache_bytes, MIB, 1 << 40)?;
        within("index_cache_bytes", self.index_cache_bytes, MIB, 1 << 40)?;
        within("index_flush_bytes", self.index_flush_bytes, MIB, 1 << 29)?;
        within("index_flush_records", self.index_flush_records, 100, 100_000_000)?;
        within("checkpoint_journal_bytes", self.checkpoint_journal_bytes, MIB, 1 << 44)?;
        within("commit_interval_ms", self.commit_interval_ms, 10, 60_000)?;
        within("window_seconds", self.window_seconds, 0, 366 * 24 * 3600)?;
        within("sealer_threads", u64::from(self.sealer_threads), 0, 1024)?;
        within("fuse_threads", u64::from(self.fuse_threads), 0, 256)?;
        within("zstd_level", u64::try_from(self.zstd_level).unwrap_or(0), 1, 19)?;
        within("scrub_bytes_per_second", self.scrub_bytes_per_second, 0, 1 << 40)?;
        within("gc_dead_percent", self.gc_dead_percent.into(), 1, 100)?;
        within("gc_bytes_per_second", self.gc_bytes_per_second, 0, 1 << 40)?;
        within("readahead_bytes", self.readahead_bytes, 4096, 1 << 30)?;
        within("reserve_bytes", self.reserve_bytes, 0, 1 << 40)
    }

    /// [`Config::commit_interval_ms`] as a duration.
    pub fn commit_interval(&self) -> Duration {
        Duration::from_millis(self.commit_interval_ms)
    }

    /// Bytes a second that a scrub that was asked for reads.
    pub fn scrub_rate(&self) -> u64 {
        match self.scrub_bytes_per_second {
            0 => Config::default().scrub_bytes_per_second,
            rate => rate,
        }
    }

    /// Threads that seal.
    pub fn sealers(&self) -> usize {
        match self.sealer_threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            n => n as usize,
        }
    }

    /// Threads that serve a mount.
    pub fn fuse_workers(&self) -> usize {
        match self.fuse_threads {
            0 => (2 * std::thread::available_parallelism().map_or(2, usize::from)).max(4),
            n => n as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::OsDisk;
    use proptest::prelude::*;

    fn load(text: &[u8]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&OsDisk, &path)
    }

    #[test]
    fn what_is_saved_is_loaded_and_a_missing_file_means_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(Config::load(&OsDisk, &path).unwrap(), Config::default());
        let config = Config { zstd_level: 3, ..Config::default() };
        config.save(&OsDisk, &path).unwrap();
        assert_eq!(Config::load(&OsDisk, &path).unwrap(), config);
    }

    #[test]
    fn a_bad_setting_is_named_on_one_line() {
        for text in ["zstd_level = 99", "nonsense = 1", "dirty_bytes_max = 'x'", "= ="] {
            let message = load(text.as_bytes()).unwrap_err().to_string();
            assert!(message.contains("config.toml") && !message.contains('\n'), "{message}");
        }
    }

    proptest! {
        #[test]
        fn hostile_settings_are_refused(text: Vec<u8>) {
            let _ = load(&text);
        }
    }
}
