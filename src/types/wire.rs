//! The binary codec of every structure we store: little-endian fixed-width integers and length-prefixed
//! bytes. Decoding never allocates more than the input is long and never panics.

/// Why a decoder stopped; the caller adds the place and turns it into [`super::Error::Corrupt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ended inside a field.
    #[error("it ends inside a field")]
    Short,
    /// Bytes were left over.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A field holds a value that no writer produces.
    #[error("bad {0}")]
    Bad(&'static str),
}

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// An empty buffer.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// An empty buffer with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Encoder {
        Encoder(Vec::with_capacity(bytes))
    }

    /// The bytes written so far.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Eight bytes, little-endian, two's complement.
    pub fn i64(&mut self, v: i64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// An unsigned LEB128 number: 7 bits a byte, least significant first.
    pub fn varint(&mut self, mut v: u64) -> &mut Self {
        while v >= 0x80 {
            self.0.push((v as u8) | 0x80);
            v >>= 7;
        }
        self.u8(v as u8)
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A varint length, then the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.varint(bytes.len() as u64).raw(bytes)
    }
}

/// Takes fields off a slice.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    /// Reads from `input`.
    pub fn new(input: &'a [u8]) -> Decoder<'a> {
        Decoder(input)
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// Fails unless everything was read.
    pub fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.0.len())) }
    }

    /// The next `n` bytes.
    pub fn raw(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(WireError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(WireError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian, two's complement.
    pub fn i64(&mut self) -> Result<i64, WireError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// An unsigned LEB128 number of at most 10 bytes.
    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(WireError::Bad("varint"));
            }
            v |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(v);
            }
        }
        Err(WireError::Bad("varint"))
    }

    /// A varint that must not exceed `max`: the bound that keeps a damaged count from allocating.
    pub fn count(&mut self, max: usize, what: &'static str) -> Result<usize, WireError> {
        let n = self.varint()?;
        usize::try_from(n).ok().filter(|&n| n <= max).ok_or(WireError::Bad(what))
    }

    /// A varint that no writer makes larger than `max`, so that reckoning with it cannot overflow.
    pub fn number(&mut self, max: u64, what: &'static str) -> Result<u64, WireError> {
        Some(self.varint()?).filter(|n| *n <= max).ok_or(WireError::Bad(what))
    }

    /// A varint length of at most `max`, then that many bytes.
    pub fn bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let n = self.count(max, what)?;
        self.raw(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_round_trip(v: u64, i: i64, b: Vec<u8>) {
            let mut e = Encoder::new();
            e.varint(v).i64(i).bytes(&b).u16(7);
            let buf = e.finish();
            let mut d = Decoder::new(&buf);
            prop_assert_eq!(d.varint().unwrap(), v);
            prop_assert_eq!(d.i64().unwrap(), i);
            prop_assert_eq!(d.bytes(b.len(), "b").unwrap(), &b[..]);
            prop_assert_eq!(d.u16().unwrap(), 7);
            prop_assert!(d.end().is_ok());
        }

        #[test]
        fn hostile_input_is_an_error_and_not_a_panic(b: Vec<u8>) {
            let mut d = Decoder::new(&b);
            let _ = d.varint();
            let _ = d.bytes(16, "b");
            let _ = d.u64();
        }
    }

    #[test]
    fn an_overlong_varint_is_refused() {
        assert_eq!(Decoder::new(&[0xff; 11]).varint(), Err(WireError::Bad("varint")));
        assert_eq!(Decoder::new(&[0x80]).varint(), Err(WireError::Short));
    }
}
