//! The keys of an unlocked store. They live in memory only, are wiped on drop and never printed.

use std::fmt;
use zeroize::Zeroizing;

/// A 32-byte secret, wiped on drop.
pub(super) type Secret = Zeroizing<[u8; 32]>;

/// A fresh random secret.
pub(super) fn random_secret() -> Result<Secret, getrandom::Error> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(secret.as_mut_slice())?;
    Ok(secret)
}

/// The key that data sealed in one epoch is under.
#[derive(Clone)]
pub(super) struct EpochKey {
    /// 1 or more; 0 stands for "not encrypted" in an envelope.
    pub(super) epoch: u16,
    pub(super) key: Secret,
}

/// What an open slot of an encrypted store leads to, besides the data keys.
#[derive(Clone)]
pub(super) struct Wrapping {
    /// Seals the keyring's blob; replaced whenever a slot goes or the keys are rotated.
    pub(super) master: Secret,
    /// The recovery key, kept so that exporting it again prints the same one.
    pub(super) recovery: Secret,
    /// Slot id and the key that wraps the master key in that slot: rotation can rewrap every slot without
    /// asking for every key. These are derived for this store, so they open nothing elsewhere.
    pub(super) slots: Vec<(u8, Secret)>,
}

/// The keys of an unlocked store: made by [`Keyring::unlock`](super::Keyring::unlock), used by
/// [`Sealer::new`](super::Sealer::new).
///
/// Invariant: `epochs` is ascending, and empty exactly if the store is not encrypted.
#[derive(Clone)]
pub struct Secrets {
    /// Root of all keyed hashes; permanent, since chunk ids and directory keys depend on it.
    pub(super) dedup_key: Secret,
    pub(super) epochs: Vec<EpochKey>,
    pub(super) wrapping: Option<Wrapping>,
}

impl Secrets {
    /// Secrets of an unencrypted store with the given dedup key.
    pub fn plain(dedup_key: [u8; 32]) -> Secrets {
        Secrets { dedup_key: Zeroizing::new(dedup_key), epochs: Vec::new(), wrapping: None }
    }

    /// Whether data is encrypted under these secrets.
    pub fn is_encrypted(&self) -> bool {
        !self.epochs.is_empty()
    }

    /// The epoch that new data is sealed in; 0 for an unencrypted store.
    pub fn current_epoch(&self) -> u16 {
        self.epochs.last().map_or(0, |e| e.epoch)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("current_epoch", &self.current_epoch()).finish_non_exhaustive()
    }
}
