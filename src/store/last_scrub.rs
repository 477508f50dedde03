//! What is remembered of scrubs over restarts: the file `scrub` of a store, sealed, because it names files.

use std::path::Path;

use parking_lot::Mutex;

use super::keys::Sealer;
use crate::types::disk::{read_file, replace_file};
use crate::types::error::IoContext;
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Disk, PackId, Result, Timestamp};

const AAD: &[u8] = b"scrub";
const VERSION: u8 = 1;
const FILE_BYTES_MAX: usize = 64 * 1024;
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// What the last scrub came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastScrub {
    /// When the last whole round ended; before the first, when the store was first opened for writing.
    pub ended: Timestamp,
    /// What it found, as one sentence; empty when all was well.
    pub problem: String,
    /// The pack at which an interrupted round by itself goes on.
    pub next_pack: PackId,
}

impl LastScrub {
    fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        let text: String = self.problem.chars().take(TEXT_BYTES_MAX / 4).collect();
        e.u8(VERSION).i64(self.ended.secs).u32(self.ended.nanos).u64(self.next_pack.0).bytes(text.as_bytes());
        e.finish()
    }

    fn decode(bytes: &[u8]) -> Result<LastScrub, WireError> {
        let mut d = Decoder::new(bytes);
        if d.u8()? != VERSION {
            return Err(WireError::Bad("version"));
        }
        let ended = Timestamp { secs: d.i64()?, nanos: d.u32()? };
        let next_pack = PackId(d.u64()?);
        let text = d.bytes(TEXT_BYTES_MAX, "sentence")?.to_vec();
        d.end()?;
        let problem = String::from_utf8(text).map_err(|_| WireError::Bad("sentence"))?;
        Ok(LastScrub { ended, problem, next_pack })
    }
}

/// The memory of an open store.
pub struct Memory(Mutex<LastScrub>);

impl Memory {
    /// Reads the file at `path`. One that is missing or unreadable only means that a scrub is due.
    pub(super) fn load(disk: &dyn Disk, path: &Path, sealer: &Sealer) -> Memory {
        let plain = read_file(disk, path, FILE_BYTES_MAX).ok().and_then(|b| sealer.open(AAD, &b).ok());
        let known = plain.and_then(|plain| LastScrub::decode(&plain).ok());
        Memory(Mutex::new(known.unwrap_or_default()))
    }

    /// What is remembered.
    pub fn get(&self) -> LastScrub {
        self.0.lock().clone()
    }

    /// Changes it, here and on the disk.
    pub(super) fn change(
        &self,
        (disk, path, sealer): (&dyn Disk, &Path, &Sealer),
        change: impl FnOnce(&mut LastScrub),
    ) -> Result<()> {
        let mut known = self.0.lock();
        change(&mut known);
        let sealed =
            sealer.seal(AAD, &known.encode()).map_err(|e| crate::types::Error::Invalid(e.to_string()))?;
        replace_file(disk, path, &sealed).at("writing", path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_and_a_long_sentence_is_cut() {
        let last = LastScrub {
            ended: Timestamp { secs: 7, nanos: 8 },
            problem: "scrub found 1 damaged chunk".into(),
            next_pack: PackId(9),
        };
        assert_eq!(LastScrub::decode(&last.encode()), Ok(last.clone()));
        let long = LastScrub { problem: "ü".repeat(TEXT_BYTES_MAX), ..last };
        assert!(LastScrub::decode(&long.encode()).is_ok());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(bytes: Vec<u8>) {
            let _ = LastScrub::decode(&bytes);
        }
    }
}
