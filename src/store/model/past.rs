//! Names for versions of the history.

use super::inode::get_block;
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Ino, Lsn};

/// Which item of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ItemKey {
    /// An inode.
    Inode(Ino),
    /// A directory's entry, by the hash of its name.
    Entry(Ino, [u8; 16]),
    /// A block of a file.
    Block(Ino, u64),
    /// An extended attribute, by the hash of its name.
    Xattr(Ino, [u8; 16]),
}

/// A version of the history, and where the dead list has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PastVersion {
    /// Of which item.
    pub item: ItemKey,
    /// The first point that needed it when it ended; zero when only the window did.
    pub first: Lsn,
    /// Where it ended.
    pub end: Lsn,
}

/// Where a look for what is to be forgotten begins; zeros: at the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForgetFrom {
    /// The end of the versions that only the window needed.
    pub window: Lsn,
    /// The first point of the versions that a deleted snapshot needed.
    pub first: Lsn,
    /// And their end, within that first point.
    pub end: Lsn,
}

impl ForgetFrom {
    pub(super) fn encode(self, e: &mut Encoder) {
        e.varint(self.window.0).varint(self.first.0).varint(self.end.0);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<ForgetFrom, WireError> {
        Ok(ForgetFrom { window: Lsn(d.varint()?), first: Lsn(d.varint()?), end: Lsn(d.varint()?) })
    }
}

const INODE: u8 = 1;
const ENTRY: u8 = 2;
const BLOCK: u8 = 3;
const XATTR: u8 = 4;

impl ItemKey {
    /// The inode, of an entry the directory.
    pub fn ino(&self) -> Ino {
        match self {
            ItemKey::Inode(ino)
            | ItemKey::Entry(ino, _)
            | ItemKey::Block(ino, _)
            | ItemKey::Xattr(ino, _) => *ino,
        }
    }
}

impl PastVersion {
    /// All but the inode, which every edit of an inode begins with.
    pub(super) fn encode(&self, e: &mut Encoder) {
        match &self.item {
            ItemKey::Inode(_) => e.u8(INODE),
            ItemKey::Entry(_, hash) => e.u8(ENTRY).raw(hash),
            ItemKey::Block(_, block) => e.u8(BLOCK).varint(*block),
            ItemKey::Xattr(_, hash) => e.u8(XATTR).raw(hash),
        };
        e.varint(self.first.0).varint(self.end.0);
    }

    pub(super) fn decode(ino: Ino, d: &mut Decoder<'_>) -> Result<PastVersion, WireError> {
        let item = match d.u8()? {
            INODE => ItemKey::Inode(ino),
            ENTRY => ItemKey::Entry(ino, d.array()?),
            BLOCK => ItemKey::Block(ino, get_block(d)?),
            XATTR => ItemKey::Xattr(ino, d.array()?),
            _ => return Err(WireError::Bad("item kind")),
        };
        let (first, end) = (Lsn(d.varint()?), Lsn(d.varint()?));
        if first >= end {
            return Err(WireError::Bad("past version"));
        }
        Ok(PastVersion { item, first, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_come_back_as_they_were_written() {
        let items = [
            ItemKey::Inode(Ino(7)),
            ItemKey::Entry(Ino(7), [3; 16]),
            ItemKey::Block(Ino(7), 1 << 40),
            ItemKey::Xattr(Ino(7), [9; 16]),
        ];
        for item in items {
            let version = PastVersion { item, first: Lsn(4), end: Lsn(1 << 50) };
            let mut e = Encoder::new();
            version.encode(&mut e);
            let bytes = e.finish();
            let mut d = Decoder::new(&bytes);
            assert_eq!(PastVersion::decode(Ino(7), &mut d), Ok(version));
            assert!(d.end().is_ok() && item.ino() == Ino(7));
            let cut = &bytes[..bytes.len() - 1];
            assert!(PastVersion::decode(Ino(7), &mut Decoder::new(cut)).is_err());
        }
    }

    proptest! {
        #[test]
        fn hostile_versions_are_refused(bytes: Vec<u8>) {
            if let Ok(version) = PastVersion::decode(Ino(2), &mut Decoder::new(&bytes)) {
                prop_assert!(version.first < version.end);
            }
        }
    }
}
