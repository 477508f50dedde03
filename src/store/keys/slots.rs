//! Key slots: each holds the keyring's master key, wrapped under one key file or the recovery key.

use super::keyfile::KeyMaterial;
use super::secrets::Secret;
use super::xaes::{NONCE_BYTES, TAG_BYTES, Xaes};
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{StoreUuid, Timestamp};
use zeroize::Zeroizing;

/// \[store id ‖ slot id ‖ key material\]: the key that wraps the master key in that slot.
const CONTEXT_WRAP: &str = "rewindfs 2026-11 v1 keyring slot wrapping key";
/// Starts the AAD of a wrapped master key.
const AAD_SLOT: &[u8] = b"rewindfs keyring slot";

/// What kind of key opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// A key file, for daily use.
    KeyFile = 1,
    /// The recovery key, printed and kept away from the machine.
    Recovery = 2,
}

/// What may be known about a slot without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Names the slot in commands; 0-15, the lowest free one when it was made.
    pub id: u8,
    /// What opens it.
    pub kind: SlotKind,
    /// When it was made.
    pub created: Timestamp,
}

/// A sealed 32-byte key: nonce ‖ ciphertext ‖ tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrapped {
    nonce: [u8; NONCE_BYTES],
    key: [u8; 32],
    tag: [u8; TAG_BYTES],
}

/// A slot as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) info: SlotInfo,
    wrapped: Wrapped,
}

/// The key that wraps the master key in slot `id` of this store. Deriving it, instead of using the key
/// itself, lets a user give one key file to several stores without one store's master opening another.
pub(super) fn wrapping_key(store: StoreUuid, id: u8, key: &KeyMaterial) -> Secret {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_WRAP);
    hasher.update(&store.0).update(&[id]).update(key.bytes());
    Zeroizing::new(*hasher.finalize().as_bytes())
}

impl Slot {
    /// Wraps `master` under `wrapping`.
    pub(super) fn wrap(
        store: StoreUuid,
        info: SlotInfo,
        wrapping: &Secret,
        master: &Secret,
    ) -> Result<Slot, getrandom::Error> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)?;
        let mut key = **master;
        let tag = Xaes::new(wrapping).encrypt(&nonce, &aad(store, &info), &mut key);
        // Thirty-two bytes are never too long.
        let tag = tag.map_err(|_| getrandom::Error::UNEXPECTED)?;
        Ok(Slot { info, wrapped: Wrapped { nonce, key, tag } })
    }

    /// The master key, if `wrapping` is this slot's key.
    pub(super) fn unwrap_master(&self, store: StoreUuid, wrapping: &Secret) -> Option<Secret> {
        let mut key = Zeroizing::new(self.wrapped.key);
        let Wrapped { nonce, tag, .. } = &self.wrapped;
        let opened = Xaes::new(wrapping).decrypt(nonce, &aad(store, &self.info), key.as_mut_slice(), tag);
        opened.ok().map(|()| key)
    }

    pub(super) fn encode(&self, e: &mut Encoder) {
        encode_info(&self.info, e);
        e.raw(&self.wrapped.nonce).raw(&self.wrapped.key).raw(&self.wrapped.tag);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Slot, WireError> {
        let id = d.u8()?;
        let kind = match d.u8()? {
            1 => SlotKind::KeyFile,
            2 => SlotKind::Recovery,
            _ => return Err(WireError::Bad("slot kind")),
        };
        let created = Timestamp { secs: d.i64()?, nanos: d.u32()? };
        if created.nanos >= 1_000_000_000 {
            return Err(WireError::Bad("slot time"));
        }
        let wrapped = Wrapped { nonce: d.array()?, key: d.array()?, tag: d.array()? };
        Ok(Slot { info: SlotInfo { id, kind, created }, wrapped })
    }
}

fn encode_info(info: &SlotInfo, e: &mut Encoder) {
    e.u8(info.id).u8(info.kind as u8).i64(info.created.secs).u32(info.created.nanos);
}

fn aad(store: StoreUuid, info: &SlotInfo) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(AAD_SLOT).raw(&store.0);
    encode_info(info, &mut e);
    e.finish()
}
