use super::super::seal::Sealer;
use super::*;
use crate::types::OsDisk;
use proptest::prelude::*;

const STORE: StoreUuid = StoreUuid([7; 16]);
const NOW: Timestamp = Timestamp { secs: 5, nanos: 6 };

fn unlock(keyring: &Keyring, key: &KeyMaterial) -> Result<Secrets> {
    keyring.unlock(Path::new("/s"), Some(key))
}

fn reread(keyring: &Keyring) -> Keyring {
    let read = Keyring::decode(&keyring.encode(), Path::new("/s/keyring")).unwrap();
    assert_eq!(&read, keyring);
    read
}

#[test]
fn create_save_load_unlock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyring");
    let (keyring, key) = Keyring::create_encrypted(STORE, NOW).unwrap();
    keyring.save(&OsDisk, &path).unwrap();
    let loaded = Keyring::load(&OsDisk, &path).unwrap();
    assert_eq!(loaded, keyring);
    assert_eq!(loaded.slots(), [SlotInfo { id: 0, kind: SlotKind::KeyFile, created: NOW }]);
    let sealed = Sealer::new(&unlock(&keyring, &key).unwrap()).seal(b"", b"x").unwrap();
    assert_eq!(Sealer::new(&unlock(&loaded, &key).unwrap()).open(b"", &sealed).unwrap(), b"x");
}

#[test]
fn a_wrong_or_missing_key_is_told_from_damage() {
    let (keyring, key) = Keyring::create_encrypted(STORE, NOW).unwrap();
    let other = KeyMaterial::generate().unwrap();
    assert!(matches!(unlock(&keyring, &other), Err(Error::WrongKey { .. })));
    assert!(matches!(keyring.unlock(Path::new("/s"), None), Err(Error::WrongKey { .. })));
    // Someone without the key relabels the store and mends the checksum.
    let mut relabelled = keyring.clone();
    relabelled.recovery_exported = true;
    assert!(matches!(unlock(&reread(&relabelled), &key), Err(Error::Corrupt { .. })));
}

#[test]
fn every_single_byte_flip_is_damage_and_names_the_file() {
    let mut plain = Keyring::create_plain(STORE).unwrap();
    plain.recovery_exported = false;
    let (encrypted, _) = Keyring::create_encrypted(STORE, NOW).unwrap();
    for bytes in [plain.encode(), encrypted.encode()] {
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            let error = Keyring::decode(&flipped, Path::new("/s/keyring")).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{at}: {error}");
            assert!(error.to_string().contains("/s/keyring"));
            assert!(Keyring::decode(&bytes[..at], Path::new("/s/keyring")).is_err());
        }
    }
}

#[test]
fn another_version_is_named_as_such() {
    let mut bytes = Keyring::create_plain(STORE).unwrap().encode();
    bytes[8] = 9;
    let content = bytes.len() - CHECKSUM_BYTES;
    let sum = *blake3::hash(&bytes[..content]).as_bytes();
    bytes[content..].copy_from_slice(&sum);
    let error = Keyring::decode(&bytes, Path::new("/s/keyring")).unwrap_err();
    assert!(matches!(error, Error::Version { found: 9, .. }));
}

#[test]
fn a_plain_keyring_needs_no_key_and_has_none() {
    let mut keyring = reread(&Keyring::create_plain(STORE).unwrap());
    let mut secrets = keyring.unlock(Path::new("/s"), None).unwrap();
    assert!(!keyring.is_encrypted() && !secrets.is_encrypted() && keyring.slots().is_empty());
    let key = KeyMaterial::generate().unwrap();
    assert!(keyring.rotate(&mut secrets).is_err());
    assert!(keyring.export_recovery(&mut secrets, NOW).is_err());
    assert!(keyring.add_slot(&mut secrets, SlotKind::KeyFile, &key, NOW).is_err());
    assert!(keyring.remove_slot(&mut secrets, 0).is_err());
    let other = Keyring::create_plain(STORE).unwrap().unlock(Path::new("/s"), None).unwrap();
    assert_ne!(Sealer::new(&secrets).chunk_id(b"x"), Sealer::new(&other).chunk_id(b"x"));
}

#[test]
fn recovery_export_is_idempotent_until_its_slot_is_removed() {
    let (mut keyring, key) = Keyring::create_encrypted(STORE, NOW).unwrap();
    let mut secrets = unlock(&keyring, &key).unwrap();
    assert!(!keyring.recovery_exported());
    let first = keyring.export_recovery(&mut secrets, NOW).unwrap();
    let mut again = unlock(&reread(&keyring), &first).unwrap();
    let second = keyring.export_recovery(&mut again, NOW).unwrap();
    assert_eq!(first.to_text(), second.to_text());
    assert!(reread(&keyring).recovery_exported());
    assert_eq!(keyring.slots().len(), 2);
    keyring.remove_slot(&mut again, 1).unwrap();
    assert!(!reread(&keyring).recovery_exported());
    assert!(matches!(unlock(&keyring, &first), Err(Error::WrongKey { .. })));
    assert_ne!(keyring.export_recovery(&mut again, NOW).unwrap().to_text(), first.to_text());
}

#[test]
fn slots_come_and_go_but_never_the_last() {
    let (mut keyring, first) = Keyring::create_encrypted(STORE, NOW).unwrap();
    let mut secrets = unlock(&keyring, &first).unwrap();
    assert!(keyring.remove_slot(&mut secrets, 0).is_err());
    let second = KeyMaterial::generate().unwrap();
    assert_eq!(keyring.add_slot(&mut secrets, SlotKind::KeyFile, &second, NOW).unwrap(), 1);
    keyring.remove_slot(&mut secrets, 0).unwrap();
    assert!(keyring.remove_slot(&mut secrets, 5).is_err());
    assert!(unlock(&keyring, &first).is_err());
    unlock(&reread(&keyring), &second).unwrap();
    for _ in 1..KEY_SLOTS_MAX {
        keyring.add_slot(&mut secrets, SlotKind::KeyFile, &KeyMaterial::generate().unwrap(), NOW).unwrap();
    }
    assert!(keyring.add_slot(&mut secrets, SlotKind::KeyFile, &first, NOW).is_err());
    unlock(&reread(&keyring), &second).unwrap();
}

#[test]
fn rotation_keeps_keys_old_data_and_hashes() {
    let (mut keyring, key) = Keyring::create_encrypted(STORE, NOW).unwrap();
    let mut secrets = unlock(&keyring, &key).unwrap();
    let recovery = keyring.export_recovery(&mut secrets, NOW).unwrap();
    let before = Sealer::new(&secrets);
    let old = before.seal(b"", b"x").unwrap();
    assert_eq!(keyring.rotate(&mut secrets).unwrap(), 2);
    for key in [&key, &recovery] {
        let after = Sealer::new(&unlock(&reread(&keyring), key).unwrap());
        assert_eq!(after.current_epoch(), 2);
        assert_eq!(after.open(b"", &old).unwrap(), b"x");
        assert_eq!(after.chunk_id(b"x"), before.chunk_id(b"x"));
        assert!(before.open(b"", &after.seal(b"", b"x").unwrap()).is_err());
    }
}

#[test]
fn one_key_file_for_two_stores_wraps_differently() {
    let key = KeyMaterial::generate().unwrap();
    assert_ne!(wrapping_key(STORE, 0, &key), wrapping_key(StoreUuid([8; 16]), 0, &key));
    assert_ne!(wrapping_key(STORE, 0, &key), wrapping_key(STORE, 1, &key));
}

proptest! {
    #[test]
    fn hostile_files_and_blobs_are_errors(content: Vec<u8>) {
        prop_assert!(Keyring::decode(&content, Path::new("k")).is_err());
        // With magic, version and checksum right, so that the fields behind them are reached.
        let mut bytes = [&MAGIC[..], &FORMAT_VERSION.to_le_bytes(), &content].concat();
        let sum = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&sum);
        prop_assert!(Keyring::decode(&bytes, Path::new("k")).is_err());
        prop_assert!(decode_blob(&content, Zeroizing::new([0; 32])).is_err());
    }
}

/// Somebody changes a part and mends the checksum, so that only the seals are left to tell.
#[test]
fn a_changed_slot_or_sealed_part_opens_to_no_key_or_is_damage() {
    let (mut keyring, key) = Keyring::create_encrypted(STORE, NOW).unwrap();
    let mut secrets = unlock(&keyring, &key).unwrap();
    let recovery = keyring.export_recovery(&mut secrets, NOW).unwrap();
    let whole = keyring.encode();
    let change = |at: &[usize]| {
        let mut bytes = whole[..whole.len() - CHECKSUM_BYTES].to_vec();
        at.iter().for_each(|at| bytes[*at] ^= 0x10);
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        Keyring::decode(&bytes, Path::new("/s/keyring")).unwrap()
    };
    let (first, second) = (HEADER_BYTES + 60, HEADER_BYTES + 86 + 60);
    let one = change(&[first]);
    assert!(matches!(unlock(&one, &key), Err(Error::WrongKey { .. })), "its own slot does not open");
    assert!(matches!(unlock(&one, &recovery), Err(Error::Corrupt { .. })), "the other one tells the change");
    for key in [&key, &recovery] {
        assert!(matches!(unlock(&change(&[first, second]), key), Err(Error::WrongKey { .. })));
        let sealed = whole.len() - CHECKSUM_BYTES - 20;
        assert!(matches!(unlock(&change(&[sealed]), key), Err(Error::Corrupt { .. })));
    }
}
