//! The envelope around every stored secret, and every keyed hash of the store.
//!
//! An envelope says under which epoch's key it is, so old data stays readable after a rotation; it does not
//! say where it lies, so standbys and object stores copy it as it is. What it *is* (a chunk with this id, a
//! record at this LSN) is the additional data (AAD) that the caller gives to both sides.
//!
//! | bytes | encrypted store | unencrypted store |
//! |---|---|---|
//! | 2 | epoch, little-endian, 1 or more | 0 |
//! | 24 | nonce, random | absent |
//! | n | ciphertext | plaintext |
//! | 16 | GCM tag | start of BLAKE3(AAD length u64 LE ‖ AAD ‖ plaintext) |

use super::secrets::{Secret, Secrets};
use super::xaes::{NONCE_BYTES, TAG_BYTES, Xaes};
use crate::types::ChunkId;
use std::fmt;
use zeroize::Zeroizing;

// Contexts of `blake3::derive_key`; part of the format, so never changed. Key material in brackets.

/// \[epoch key\]: the XAES-256-GCM key of an epoch.
const CONTEXT_EPOCH: &str = "rewindfs 2026-11 v1 seal epoch key";
/// \[dedup key\]: names chunks.
const CONTEXT_CHUNK: &str = "rewindfs 2026-11 v1 chunk id key";
/// \[dedup key\]: hashes names into index keys.
const CONTEXT_NAME: &str = "rewindfs 2026-11 v1 name hash key";
/// \[dedup key\]: places the cuts of content-defined chunking.
const CONTEXT_CHUNKER: &str = "rewindfs 2026-11 v1 chunker seed";
/// \[dedup key\]: the digest of the logical state.
const CONTEXT_DIGEST: &str = "rewindfs 2026-11 v1 state digest key";

const EPOCH_BYTES: usize = 2;
const EPOCH_PLAIN: u16 = 0;

/// Why something could not be sealed or opened. The caller adds the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes for a nonce")]
    Random,
    /// More than AES-GCM can take under one nonce (64 GiB).
    #[error("it is too long to be sealed")]
    TooLong,
    /// Fewer bytes than the envelope has without content.
    #[error("its sealed form is cut short")]
    Short,
    /// No key of that epoch is in the keyring, or the envelope is plain in an encrypted store, or the
    /// reverse.
    #[error("it is sealed in key epoch {0}, which this keyring does not have")]
    UnknownEpoch(u16),
    /// The bytes are not what was sealed, or were sealed as something else.
    #[error("its authentication tag does not match")]
    Tampered,
}

/// Seals, opens and hashes with the keys of one store. Share it behind an `Arc`; all methods take `&self`.
pub struct Sealer {
    /// Ascending by epoch, the last one seals; empty in an unencrypted store.
    epochs: Vec<(u16, Xaes)>,
    chunk_key: Secret,
    name_key: Secret,
    digest_key: Secret,
    chunker_seed: u64,
}

impl Sealer {
    /// The most bytes that sealing adds; see also [`Sealer::overhead`].
    pub const OVERHEAD: usize = EPOCH_BYTES + NONCE_BYTES + TAG_BYTES;

    /// A sealer with the keys of an unlocked store; one that does not encrypt if the store is plain.
    pub fn new(secrets: &Secrets) -> Sealer {
        let derive = |context| Zeroizing::new(blake3::derive_key(context, secrets.dedup_key.as_slice()));
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = *derive(CONTEXT_CHUNKER);
        let epochs = secrets.epochs.iter().map(|e| {
            let key = Zeroizing::new(blake3::derive_key(CONTEXT_EPOCH, e.key.as_slice()));
            (e.epoch, Xaes::new(&key))
        });
        Sealer {
            epochs: epochs.collect(),
            chunk_key: derive(CONTEXT_CHUNK),
            name_key: derive(CONTEXT_NAME),
            digest_key: derive(CONTEXT_DIGEST),
            chunker_seed: u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
        }
    }

    /// A sealer that does not encrypt but still detects damage. `dedup_key` is the store's own.
    pub fn plain(dedup_key: [u8; 32]) -> Sealer {
        Sealer::new(&Secrets::plain(dedup_key))
    }

    /// Whether sealed bytes are encrypted.
    pub fn is_encrypted(&self) -> bool {
        !self.epochs.is_empty()
    }

    /// The epoch that [`Sealer::seal`] uses now; 0 if it does not encrypt.
    pub fn current_epoch(&self) -> u16 {
        self.epochs.last().map_or(EPOCH_PLAIN, |(epoch, _)| *epoch)
    }

    /// Bytes that sealing adds.
    pub fn overhead(&self) -> usize {
        if self.is_encrypted() { Self::OVERHEAD } else { EPOCH_BYTES + TAG_BYTES }
    }

    /// The envelope of `plain`; opening it needs the same `aad`.
    ///
    /// # Errors
    /// [`SealError::Random`], [`SealError::TooLong`].
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut out = Vec::with_capacity(plain.len() + self.overhead());
        self.seal_into(aad, plain, &mut out)?;
        Ok(out)
    }

    /// Appends the envelope of `plain` to `out`; on an error `out` is as it was.
    ///
    /// # Errors
    /// As [`Sealer::seal`].
    pub fn seal_into(&self, aad: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        out.reserve(plain.len() + self.overhead());
        let Some((epoch, xaes)) = self.epochs.last() else {
            out.extend_from_slice(&EPOCH_PLAIN.to_le_bytes());
            out.extend_from_slice(plain);
            out.extend_from_slice(&plain_tag(aad, plain));
            return Ok(());
        };
        let start = out.len();
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SealError::Random)?;
        out.extend_from_slice(&epoch.to_le_bytes());
        out.extend_from_slice(&nonce);
        let body = out.len();
        out.extend_from_slice(plain);
        let tag = out
            .get_mut(body..)
            .ok_or(SealError::TooLong)
            .and_then(|data| xaes.encrypt(&nonce, aad, data).map_err(|_| SealError::TooLong));
        match tag {
            Ok(tag) => out.extend_from_slice(&tag),
            Err(e) => {
                out.truncate(start);
                return Err(e);
            }
        }
        Ok(())
    }

    /// The plain bytes of an envelope.
    ///
    /// # Errors
    /// Whatever is not exactly what [`Sealer::seal`] made with the same `aad` and a key of this store.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let parts = Parts::split(self.is_encrypted(), sealed)?;
        let mut plain = parts.body.to_vec();
        self.check(aad, parts.epoch, &parts.nonce, &mut plain, &parts.tag)?;
        Ok(plain)
    }

    /// As [`Sealer::open`], decrypting where the bytes lie: the result is a part of `sealed`.
    ///
    /// # Errors
    /// As [`Sealer::open`]; the buffer is then unchanged.
    pub fn open_in_place<'a>(&self, aad: &[u8], sealed: &'a mut [u8]) -> Result<&'a mut [u8], SealError> {
        let parts = Parts::split(self.is_encrypted(), sealed)?;
        let (epoch, nonce, tag, len) = (parts.epoch, parts.nonce, parts.tag, parts.body.len());
        let start = self.overhead() - TAG_BYTES;
        let body = sealed.get_mut(start..start + len).ok_or(SealError::Short)?;
        self.check(aad, epoch, &nonce, body, &tag)?;
        Ok(body)
    }

    fn check(
        &self,
        aad: &[u8],
        epoch: u16,
        nonce: &[u8; NONCE_BYTES],
        body: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), SealError> {
        // An encrypted store must not accept a plain envelope: anyone could have made it.
        if !self.is_encrypted() && epoch == EPOCH_PLAIN {
            return if plain_tag(aad, body) == *tag { Ok(()) } else { Err(SealError::Tampered) };
        }
        let found = self.epochs.iter().rev().find(|(e, _)| *e == epoch);
        let (_, xaes) = found.ok_or(SealError::UnknownEpoch(epoch))?;
        xaes.decrypt(nonce, aad, body, tag).map_err(|_| SealError::Tampered)
    }

    /// The name of a chunk: a keyed BLAKE3 of its plain bytes, under a key that never changes.
    pub fn chunk_id(&self, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.chunk_key, plain).as_bytes())
    }

    /// A keyed hash that stands for `name` in an index key; `context` keeps equal names in different places
    /// (directories, attribute lists) apart.
    pub fn name_hash(&self, context: &[u8], name: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.name_key);
        hasher.update(&(context.len() as u64).to_le_bytes()).update(context).update(name);
        first_half(&hasher.finalize())
    }

    /// Seed of the content-defined chunker, so that chunk borders tell nothing about known contents.
    pub fn chunker_seed(&self) -> u64 {
        self.chunker_seed
    }

    /// Key of the digest of the logical state.
    pub fn digest_key(&self) -> [u8; 32] {
        *self.digest_key
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("current_epoch", &self.current_epoch()).finish_non_exhaustive()
    }
}

/// An envelope taken apart.
struct Parts<'a> {
    epoch: u16,
    /// Zeros in an unencrypted store.
    nonce: [u8; NONCE_BYTES],
    body: &'a [u8],
    tag: [u8; TAG_BYTES],
}

impl Parts<'_> {
    fn split(encrypted: bool, sealed: &[u8]) -> Result<Parts<'_>, SealError> {
        let (epoch, rest) = sealed.split_first_chunk::<EPOCH_BYTES>().ok_or(SealError::Short)?;
        let epoch = u16::from_le_bytes(*epoch);
        if encrypted == (epoch == EPOCH_PLAIN) {
            return Err(SealError::UnknownEpoch(epoch));
        }
        let (nonce, rest) = if encrypted {
            let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Short)?;
            (*nonce, rest)
        } else {
            ([0; NONCE_BYTES], rest)
        };
        let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Short)?;
        Ok(Parts { epoch, nonce, body, tag: *tag })
    }
}

fn plain_tag(aad: &[u8], plain: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(aad.len() as u64).to_le_bytes()).update(aad).update(plain);
    first_half(&hasher.finalize())
}

fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    // A hash of 32 bytes always has a first half.
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::secrets::EpochKey;
    use super::*;
    use proptest::prelude::*;

    fn encrypted(epochs: &[u16]) -> Sealer {
        let epochs = epochs.iter().map(|&e| EpochKey { epoch: e, key: Zeroizing::new([e as u8; 32]) });
        let dedup_key = Zeroizing::new([9; 32]);
        Sealer::new(&Secrets { dedup_key, epochs: epochs.collect(), wrapping: None })
    }

    proptest! {
        #[test]
        fn round_trip_and_every_flip_is_detected(aad: Vec<u8>, plain: Vec<u8>, at: usize, bit in 0..8u8) {
            for sealer in [Sealer::plain([9; 32]), encrypted(&[1, 2])] {
                let mut sealed = sealer.seal(&aad, &plain).unwrap();
                prop_assert_eq!(sealed.len(), plain.len() + sealer.overhead());
                prop_assert_eq!(&sealer.open(&aad, &sealed).unwrap(), &plain);
                let mut copy = sealed.clone();
                prop_assert_eq!(&*sealer.open_in_place(&aad, &mut copy).unwrap(), &plain[..]);
                let at = at % sealed.len();
                sealed[at] ^= 1 << bit;
                prop_assert!(sealer.open(&aad, &sealed).is_err());
                let before = sealed.clone();
                prop_assert!(sealer.open_in_place(&aad, &mut sealed).is_err());
                prop_assert_eq!(before, sealed);
            }
        }

        #[test]
        fn hostile_envelopes_are_errors(aad: Vec<u8>, mut sealed: Vec<u8>) {
            for sealer in [Sealer::plain([9; 32]), encrypted(&[1])] {
                prop_assert!(sealer.open(&aad, &sealed).is_err());
                prop_assert!(sealer.open_in_place(&aad, &mut sealed).is_err());
            }
        }
    }

    #[test]
    fn old_epochs_open_and_unknown_ones_do_not() {
        let old = encrypted(&[1]).seal(b"a", b"x").unwrap();
        assert_eq!(encrypted(&[1, 2]).open(b"a", &old).unwrap(), b"x");
        assert_eq!(encrypted(&[2]).open(b"a", &old), Err(SealError::UnknownEpoch(1)));
        assert_eq!(encrypted(&[1, 2]).open(b"b", &old), Err(SealError::Tampered));
    }

    #[test]
    fn an_encrypted_store_refuses_plain_envelopes_and_the_reverse() {
        let plain = Sealer::plain([9; 32]).seal(b"", b"x").unwrap();
        assert_eq!(encrypted(&[1]).open(b"", &plain), Err(SealError::UnknownEpoch(0)));
        let sealed = encrypted(&[1]).seal(b"", b"x").unwrap();
        assert_eq!(Sealer::plain([9; 32]).open(b"", &sealed), Err(SealError::UnknownEpoch(1)));
    }

    #[test]
    fn hashes_depend_on_key_and_context_and_not_on_the_epoch() {
        let (a, b) = (Sealer::plain([1; 32]), Sealer::plain([2; 32]));
        assert_ne!(a.chunk_id(b"x"), b.chunk_id(b"x"));
        assert_ne!(a.name_hash(b"1", b"x"), a.name_hash(b"2", b"x"));
        assert_ne!(a.name_hash(b"1", b"2x"), a.name_hash(b"12", b"x"));
        assert_ne!(a.chunker_seed(), b.chunker_seed());
        assert_eq!(encrypted(&[1]).chunk_id(b"x"), encrypted(&[1, 2]).chunk_id(b"x"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let shown = format!("{:?} {:?}", Secrets::plain([0xab; 32]), encrypted(&[1]));
        assert!(!shown.contains("171") && !shown.contains("ab, "), "{shown}");
    }
}
