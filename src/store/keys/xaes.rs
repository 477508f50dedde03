//! XAES-256-GCM: AES-256-GCM with a 24-byte nonce, so that nonces can be drawn at random for ever.
//!
//! Source: C2SP, `XAES-256-GCM.md`. The first 12 bytes of the nonce derive a key of this message (the
//! KDF of NIST SP 800-108r1 in counter mode over CMAC), the last 12 are the GCM nonce under that key.

use aes::Aes256;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;
/// Bytes of a nonce.
pub(super) const NONCE_BYTES: usize = 24;
/// Bytes of an authentication tag.
pub(super) const TAG_BYTES: usize = 16;

/// The message is longer than GCM allows (64 GiB), or its tag does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// One key, with what derivation needs from it computed once.
pub(super) struct Xaes {
    cipher: Aes256,
    /// The CMAC subkey K1. Both blocks that are ever MACed are whole, so K2 is not needed.
    k1: Zeroizing<[u8; 16]>,
}

impl Xaes {
    /// Expands `key`.
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Xaes {
        let cipher = Aes256::new(&Array::from(*key));
        let mut block = Array::from([0u8; 16]);
        cipher.encrypt_block(&mut block);
        let l = u128::from_be_bytes(block.into());
        // Doubling in GF(2^128): the bit shifted out comes back as the reduction polynomial.
        let k1 = (l << 1) ^ ((l >> 127) * 0x87);
        Xaes { cipher, k1: Zeroizing::new(k1.to_be_bytes()) }
    }

    /// The GCM instance of this nonce, and the rest of the nonce.
    fn message_cipher(&self, nonce: &[u8; NONCE_BYTES]) -> (Aes256Gcm, [u8; 12]) {
        let (head, tail) = halves(nonce);
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        let (blocks, _) = key.as_chunks_mut::<16>();
        for (counter, out) in (1u8..).zip(blocks) {
            // Counter, the label "X", a zero byte, and the context.
            let mut message = [0u8; 16];
            let (prefix, context) = message.split_at_mut(4);
            prefix.copy_from_slice(&[0, counter, b'X', 0]);
            context.copy_from_slice(&head);
            for (byte, k) in message.iter_mut().zip(self.k1.iter()) {
                *byte ^= k;
            }
            let mut block = Array::from(message);
            self.cipher.encrypt_block(&mut block);
            *out = block.into();
        }
        let gcm: Aes256Gcm = KeyInit::new(&Array::from(*key));
        (gcm, tail)
    }

    /// Encrypts `data` where it lies and returns the tag. The nonce must be fresh.
    pub(super) fn encrypt(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Refused> {
        let (gcm, tail) = self.message_cipher(nonce);
        let tag = gcm.encrypt_inout_detached(&Nonce::from(tail), aad, InOutBuf::from(data));
        Ok(tag.map_err(|_| Refused)?.into())
    }

    /// Checks the tag, then decrypts `data` where it lies; on a mismatch `data` is left as it was.
    pub(super) fn decrypt(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Refused> {
        let (gcm, tail) = self.message_cipher(nonce);
        let tag: Tag = Array::from(*tag);
        gcm.decrypt_inout_detached(&Nonce::from(tail), aad, InOutBuf::from(data), &tag).map_err(|_| Refused)
    }
}

fn halves(nonce: &[u8; NONCE_BYTES]) -> ([u8; 12], [u8; 12]) {
    let mut parts = nonce.as_chunks::<12>().0.iter().copied();
    // Two dozen bytes are two twelves; the defaults are never used.
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ids::hex;

    /// Plaintext and nonce of both example vectors in the C2SP specification.
    fn vector(key: u8, aad: &[u8]) -> String {
        let mut data = *b"XAES-256-GCM";
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let tag = Xaes::new(&[key; 32]).encrypt(nonce, aad, &mut data).unwrap();
        let sealed = hex(&data) + &hex(&tag);
        Xaes::new(&[key; 32]).decrypt(nonce, aad, &mut data, &tag).unwrap();
        assert_eq!(&data, b"XAES-256-GCM");
        sealed
    }

    #[test]
    fn c2sp_vector_with_a_clear_top_bit() {
        assert_eq!(vector(1, b""), "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
    }

    #[test]
    fn c2sp_vector_with_a_set_top_bit() {
        let expected = "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d";
        assert_eq!(vector(3, b"c2sp.org/XAES-256-GCM"), expected);
    }

    #[test]
    fn a_wrong_tag_leaves_the_data_alone() {
        let mut data = *b"abc";
        let refused = Xaes::new(&[1; 32]).decrypt(&[0; 24], b"", &mut data, &[0; 16]);
        assert_eq!(refused, Err(Refused));
        assert_eq!(&data, b"abc");
    }
}
