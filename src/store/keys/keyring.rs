//! The file `keyring` of a store: its secrets, wrapped under one or more keys.
//!
//! Two levels: every slot wraps one random master key, and the master key seals the blob that holds the data
//! keys. A whole-file BLAKE3 comes last, so that damage (a wrong checksum) is told from a wrong key (no slot
//! opens). All bytes before the blob are its AAD, so nobody without a key can add, drop or relabel slots.
//!
//! The keyring of an unencrypted store holds only the random key of its hashes, in plain.

use super::keyfile::KeyMaterial;
use super::secrets::{EpochKey, Secret, Secrets, Wrapping, random_secret};
use super::slots::{Slot, SlotInfo, SlotKind, wrapping_key};
use super::xaes::{NONCE_BYTES, TAG_BYTES, Xaes};
use crate::types::disk::{Disk, read_file, replace_file};
use crate::types::error::IoContext as _;
use crate::types::limits::{FORMAT_VERSION, KEY_SLOTS_MAX};
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Error, Result, StoreUuid, Timestamp};
use std::path::Path;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"RWFSKEYS";
const KIND_PLAIN: u8 = 0;
const KIND_ENCRYPTED: u8 = 1;
const FLAG_RECOVERY_EXPORTED: u8 = 1;
const CHECKSUM_BYTES: usize = 32;
/// Bytes of the header: magic, version, kind, flags, store id, slot count.
const HEADER_BYTES: usize = 8 + 4 + 1 + 1 + 16 + 1;
/// Rotations a keyring can hold: one a day for eleven years.
const EPOCHS_MAX: usize = 4096;
/// Bounds what is read and what a damaged length can allocate; 4096 epochs take 136 KiB.
const KEYRING_BYTES_MAX: usize = 256 * 1024;

/// \[master key\]: the key that seals the blob.
const CONTEXT_BLOB: &str = "rewindfs 2026-11 v1 keyring blob key";

/// The decoded keyring. Everything that changes it needs the [`Secrets`] that [`Keyring::unlock`] gave, and
/// on an error leaves both as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    store: StoreUuid,
    recovery_exported: bool,
    body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    Plain { dedup_key: PlainKey },
    Encrypted { slots: Vec<Slot>, blob: Vec<u8> },
}

/// The hash key of an unencrypted store: not secret on its disk, but not for logs either.
#[derive(Clone, PartialEq, Eq)]
struct PlainKey([u8; 32]);

impl std::fmt::Debug for PlainKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PlainKey(..)")
    }
}

impl Keyring {
    /// A keyring of a new encrypted store, with one slot for the key file that is returned.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel gives no random bytes.
    pub fn create_encrypted(store: StoreUuid, now: Timestamp) -> Result<(Keyring, KeyMaterial)> {
        let key = KeyMaterial::generate()?;
        Ok((Keyring::create_encrypted_with(store, &key, now)?, key))
    }

    /// As [`Keyring::create_encrypted`], under a key that exists already.
    ///
    /// # Errors
    /// As there.
    pub fn create_encrypted_with(store: StoreUuid, key: &KeyMaterial, now: Timestamp) -> Result<Keyring> {
        let mut secrets = Secrets {
            dedup_key: random()?,
            epochs: vec![EpochKey { epoch: 1, key: random()? }],
            wrapping: Some(Wrapping { master: random()?, recovery: random()?, slots: Vec::new() }),
        };
        let body = Body::Encrypted { slots: Vec::new(), blob: Vec::new() };
        let mut keyring = Keyring { store, recovery_exported: false, body };
        keyring.add_slot(&mut secrets, SlotKind::KeyFile, key, now)?;
        Ok(keyring)
    }

    /// A keyring of a new store without encryption.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel gives no random bytes.
    pub fn create_plain(store: StoreUuid) -> Result<Keyring> {
        let body = Body::Plain { dedup_key: PlainKey(*random()?) };
        Ok(Keyring { store, recovery_exported: false, body })
    }

    /// The store it belongs to.
    pub fn store(&self) -> StoreUuid {
        self.store
    }

    /// Whether the store is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.body, Body::Encrypted { .. })
    }

    /// Whether the recovery key was ever printed; readable without a key, so that `status` can remind.
    pub fn recovery_exported(&self) -> bool {
        self.recovery_exported
    }

    /// The slots, oldest first; none in an unencrypted store.
    pub fn slots(&self) -> Vec<SlotInfo> {
        self.slot_list().iter().map(|s| s.info).collect()
    }

    fn slot_list(&self) -> &[Slot] {
        match &self.body {
            Body::Plain { .. } => &[],
            Body::Encrypted { slots, .. } => slots,
        }
    }

    /// The secrets of the store. `key` is not looked at if the store is not encrypted.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if no slot opens, or a key is needed and none given; [`Error::Corrupt`] if a slot
    /// opens but the blob does not: the file was changed by someone without the key, checksum included.
    pub fn unlock(&self, store_path: &Path, key: Option<&KeyMaterial>) -> Result<Secrets> {
        let (slots, blob) = match &self.body {
            Body::Plain { dedup_key } => return Ok(Secrets::plain(dedup_key.0)),
            Body::Encrypted { slots, blob } => (slots, blob),
        };
        let wrong = |detail: &str| Error::WrongKey { store: store_path.to_owned(), detail: detail.into() };
        let key =
            key.ok_or_else(|| wrong("the store is encrypted and no key was given; use its key file"))?;
        let master = slots
            .iter()
            .find_map(|slot| slot.unwrap_master(self.store, &wrapping_key(self.store, slot.info.id, key)));
        let master = master.ok_or_else(|| {
            wrong("it opens none of the key slots; use the key file of this store or its recovery key")
        })?;
        let changed = |detail: String| {
            Error::corrupt("keyring", store_path.join("keyring").display().to_string(), detail)
        };
        let plain = open_blob(&self.head_bytes(), blob, &master).ok_or_else(|| {
            changed("its slots or its sealed part were changed by someone without a key".into())
        })?;
        decode_blob(&plain, master).map_err(|e| changed(e.to_string()))
    }

    /// The recovery key, always the same one until its slot is removed. Makes its slot if there is none and
    /// sets [`Keyring::recovery_exported`]: save the keyring before the key is shown.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the store is not encrypted or all slots are taken.
    pub fn export_recovery(&mut self, secrets: &mut Secrets, now: Timestamp) -> Result<KeyMaterial> {
        let key = KeyMaterial::from_secret(&wrapping(secrets)?.recovery);
        if !self.slot_list().iter().any(|s| s.info.kind == SlotKind::Recovery) {
            self.add_slot(secrets, SlotKind::Recovery, &key, now)?;
        }
        let mut keyring = self.clone();
        keyring.recovery_exported = true;
        keyring.reseal(secrets)?;
        *self = keyring;
        Ok(key)
    }

    /// Adds a slot for `key` and returns its id.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the store is not encrypted or all slots are taken.
    pub fn add_slot(
        &mut self,
        secrets: &mut Secrets,
        kind: SlotKind,
        key: &KeyMaterial,
        now: Timestamp,
    ) -> Result<u8> {
        let store = self.store;
        let taken: Vec<u8> = self.slot_list().iter().map(|s| s.info.id).collect();
        let free = (0..KEY_SLOTS_MAX as u8).find(|id| !taken.contains(id));
        let id = free.ok_or_else(|| {
            Error::Invalid(format!("all {KEY_SLOTS_MAX} key slots are taken; remove one first"))
        })?;
        let mut next = secrets.clone();
        let unlocked = wrapping_mut(&mut next)?;
        let key = wrapping_key(store, id, key);
        let info = SlotInfo { id, kind, created: now };
        let slot = Slot::wrap(store, info, &key, &unlocked.master).map_err(no_random)?;
        unlocked.slots.push((id, key));
        let mut keyring = self.clone();
        if let Body::Encrypted { slots, .. } = &mut keyring.body {
            slots.push(slot);
        }
        keyring.reseal(&next)?;
        (*self, *secrets) = (keyring, next);
        Ok(id)
    }

    /// Removes a slot. The master key is replaced, so that the removed key together with an old copy of the
    /// keyring does not open new ones; for new *data* to be out of its reach too, [`Keyring::rotate`].
    /// Removing the recovery slot also replaces the recovery key: the old print is void.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such slot or it is the last one.
    pub fn remove_slot(&mut self, secrets: &mut Secrets, id: u8) -> Result<()> {
        let found = self.slot_list().iter().find(|s| s.info.id == id);
        let kind = found.ok_or_else(|| Error::Invalid(format!("there is no key slot {id}")))?.info.kind;
        if self.slot_list().len() == 1 {
            return Err(Error::Invalid(format!(
                "key slot {id} is the last one; without it nothing could open the store; add another first"
            )));
        }
        let mut next = secrets.clone();
        let unlocked = wrapping_mut(&mut next)?;
        unlocked.slots.retain(|(slot, _)| *slot != id);
        if kind == SlotKind::Recovery {
            unlocked.recovery = random()?;
        }
        let mut keyring = self.clone();
        if let Body::Encrypted { slots, .. } = &mut keyring.body {
            slots.retain(|s| s.info.id != id);
        }
        keyring.recovery_exported &= kind != SlotKind::Recovery;
        keyring.replace_master(&mut next)?;
        (*self, *secrets) = (keyring, next);
        Ok(())
    }

    /// Starts a new key epoch, which all new data is sealed in, and replaces the master key in every slot.
    /// Old epochs stay readable and every key stays valid. Returns the new epoch.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the store is not encrypted or has had 4096 epochs.
    pub fn rotate(&mut self, secrets: &mut Secrets) -> Result<u16> {
        let mut next = secrets.clone();
        wrapping(&next)?;
        if next.epochs.len() >= EPOCHS_MAX {
            return Err(Error::Invalid(format!("the keyring holds no more than {EPOCHS_MAX} key epochs")));
        }
        // Epochs are consecutive from 1, so the limit above keeps this far from overflowing.
        let epoch = next.current_epoch().saturating_add(1);
        next.epochs.push(EpochKey { epoch, key: random()? });
        let mut keyring = self.clone();
        keyring.replace_master(&mut next)?;
        (*self, *secrets) = (keyring, next);
        Ok(epoch)
    }

    fn replace_master(&mut self, secrets: &mut Secrets) -> Result<()> {
        let store = self.store;
        let unlocked = wrapping_mut(secrets)?;
        unlocked.master = random()?;
        if let Body::Encrypted { slots, .. } = &mut self.body {
            for slot in slots {
                let key = unlocked.slots.iter().find(|(id, _)| *id == slot.info.id);
                let (_, key) = key.ok_or_else(stale_secrets)?;
                *slot = Slot::wrap(store, slot.info, key, &unlocked.master).map_err(no_random)?;
            }
        }
        self.reseal(secrets)
    }

    /// Seals the blob anew; its AAD covers the header and the slots, so this follows every change of them.
    fn reseal(&mut self, secrets: &Secrets) -> Result<()> {
        let head = self.head_bytes();
        let unlocked = wrapping(secrets)?;
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(no_random)?;
        let mut plain = encode_blob(secrets, unlocked);
        let xaes = Xaes::new(&blob_key(&unlocked.master));
        let tag = xaes.encrypt(&nonce, &head, &mut plain);
        let tag = tag.map_err(|_| Error::Invalid("the keyring is too long to be sealed".into()))?;
        if let Body::Encrypted { blob, .. } = &mut self.body {
            *blob = [&nonce[..], &plain[..], &tag[..]].concat();
        }
        Ok(())
    }

    /// Everything before the blob (or, in a plain keyring, before the dedup key).
    fn head_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::with_capacity(HEADER_BYTES);
        let kind = if self.is_encrypted() { KIND_ENCRYPTED } else { KIND_PLAIN };
        let flags = if self.recovery_exported { FLAG_RECOVERY_EXPORTED } else { 0 };
        e.raw(MAGIC).u32(FORMAT_VERSION).u8(kind).u8(flags).raw(&self.store.0);
        // At most 16.
        e.u8(self.slot_list().len() as u8);
        self.slot_list().iter().for_each(|s| s.encode(&mut e));
        e.finish()
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(&self.head_bytes());
        match &self.body {
            Body::Plain { dedup_key } => e.raw(&dedup_key.0),
            Body::Encrypted { blob, .. } => e.u32(blob.len() as u32).raw(blob),
        };
        let mut bytes = e.finish();
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads the bytes of the file at `path`, which is only for messages.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the file, [`Error::Version`].
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Keyring> {
        let damaged = |detail: &str| Error::corrupt("keyring", path.display().to_string(), detail);
        let split = bytes.split_last_chunk::<CHECKSUM_BYTES>();
        let (content, checksum) = split.ok_or_else(|| damaged("it is cut short"))?;
        if !content.starts_with(MAGIC) {
            return Err(damaged("it does not start as a keyring does"));
        }
        if blake3::hash(content) != *checksum {
            return Err(damaged("its checksum does not match"));
        }
        let mut d = Decoder::new(content);
        let version = d.raw(MAGIC.len()).and_then(|_| d.u32());
        let version = version.map_err(|e| damaged(&e.to_string()))?;
        if version != FORMAT_VERSION {
            return Err(Error::Version { path: path.to_owned(), found: version, expected: FORMAT_VERSION });
        }
        decode_content(d).map_err(|e| damaged(&e.to_string()))
    }

    /// Reads the keyring at `path`.
    ///
    /// # Errors
    /// As [`Keyring::decode`], and [`Error::Io`].
    pub fn load(disk: &dyn Disk, path: &Path) -> Result<Keyring> {
        match read_file(disk, path, KEYRING_BYTES_MAX) {
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(Error::corrupt("keyring", path.display().to_string(), "it is too long"))
            }
            r => Keyring::decode(&r.at("reading", path)?, path),
        }
    }

    /// Replaces the keyring at `path`: after a crash it is the old or the new one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn save(&self, disk: &dyn Disk, path: &Path) -> Result<()> {
        replace_file(disk, path, &self.encode()).at("writing", path)
    }
}

fn decode_content(mut d: Decoder<'_>) -> Result<Keyring, WireError> {
    let (kind, flags) = (d.u8()?, d.u8()?);
    let store = StoreUuid(d.array()?);
    if flags & !FLAG_RECOVERY_EXPORTED != 0 {
        return Err(WireError::Bad("flags"));
    }
    let count = usize::from(d.u8()?);
    if count > KEY_SLOTS_MAX || (count == 0) == (kind == KIND_ENCRYPTED) {
        return Err(WireError::Bad("slot count"));
    }
    let mut slots: Vec<Slot> = Vec::with_capacity(count);
    for _ in 0..count {
        let slot = Slot::decode(&mut d)?;
        if usize::from(slot.info.id) >= KEY_SLOTS_MAX || slots.iter().any(|s| s.info.id == slot.info.id) {
            return Err(WireError::Bad("slot id"));
        }
        slots.push(slot);
    }
    let body = match kind {
        KIND_PLAIN => Body::Plain { dedup_key: PlainKey(d.array()?) },
        KIND_ENCRYPTED => {
            let len = usize::try_from(d.u32()?).map_err(|_| WireError::Short)?;
            Body::Encrypted { slots, blob: d.raw(len)?.to_vec() }
        }
        _ => return Err(WireError::Bad("kind")),
    };
    d.end()?;
    Ok(Keyring { store, recovery_exported: flags & FLAG_RECOVERY_EXPORTED != 0, body })
}

fn encode_blob(secrets: &Secrets, unlocked: &Wrapping) -> Zeroizing<Vec<u8>> {
    let count = secrets.epochs.len();
    // Exact, so that growing leaves no copies of keys behind.
    let bytes = 32 + 32 + 1 + unlocked.slots.len() * 33 + 2 + count * 34;
    let mut e = Encoder::with_capacity(bytes);
    e.raw(secrets.dedup_key.as_slice()).raw(unlocked.recovery.as_slice());
    e.u8(unlocked.slots.len() as u8);
    unlocked.slots.iter().for_each(|(id, key)| {
        e.u8(*id).raw(key.as_slice());
    });
    e.u16(count as u16);
    secrets.epochs.iter().for_each(|k| {
        e.u16(k.epoch).raw(k.key.as_slice());
    });
    Zeroizing::new(e.finish())
}

fn decode_blob(plain: &[u8], master: Secret) -> Result<Secrets, WireError> {
    let mut d = Decoder::new(plain);
    let secret = |d: &mut Decoder<'_>| d.array().map(Zeroizing::new);
    let (dedup_key, recovery) = (secret(&mut d)?, secret(&mut d)?);
    let mut slots = Vec::with_capacity(KEY_SLOTS_MAX);
    for _ in 0..d.u8()? {
        slots.push((d.u8()?, secret(&mut d)?));
    }
    let count = usize::from(d.u16()?);
    if count == 0 || count > EPOCHS_MAX {
        return Err(WireError::Bad("epoch count"));
    }
    let mut epochs: Vec<EpochKey> = Vec::with_capacity(count);
    for _ in 0..count {
        let epoch = d.u16()?;
        if epoch <= epochs.last().map_or(0, |e| e.epoch) {
            return Err(WireError::Bad("epoch"));
        }
        epochs.push(EpochKey { epoch, key: secret(&mut d)? });
    }
    d.end()?;
    Ok(Secrets { dedup_key, epochs, wrapping: Some(Wrapping { master, recovery, slots }) })
}

fn open_blob(head: &[u8], blob: &[u8], master: &Secret) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = blob.split_first_chunk::<NONCE_BYTES>()?;
    let (body, tag) = rest.split_last_chunk::<TAG_BYTES>()?;
    let mut plain = Zeroizing::new(body.to_vec());
    Xaes::new(&blob_key(master)).decrypt(nonce, head, &mut plain, tag).ok()?;
    Some(plain)
}

fn blob_key(master: &Secret) -> Secret {
    Zeroizing::new(blake3::derive_key(CONTEXT_BLOB, master.as_slice()))
}

fn wrapping(secrets: &Secrets) -> Result<&Wrapping> {
    secrets.wrapping.as_ref().ok_or_else(not_encrypted)
}

fn wrapping_mut(secrets: &mut Secrets) -> Result<&mut Wrapping> {
    secrets.wrapping.as_mut().ok_or_else(not_encrypted)
}

fn not_encrypted() -> Error {
    Error::Invalid("the store is not encrypted, so it has no keys".into())
}

fn stale_secrets() -> Error {
    Error::Invalid("the keyring was changed since it was unlocked; unlock it again".into())
}

fn random() -> Result<Secret> {
    random_secret().map_err(no_random)
}

fn no_random(e: getrandom::Error) -> Error {
    Error::io("drawing random bytes from", Path::new("getrandom(2)"), e.into())
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
