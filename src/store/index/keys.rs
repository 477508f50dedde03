//! Keys of the index. All numbers are big-endian, so that RocksDB's byte order is ours; every family has a
//! fixed key length, so one family's keys are never prefixes of each other (docs/FORMAT.md, "Index").
//!
//! | family | column family | key |
//! |---|---|---|
//! | inode | heads | `vol 4 ‖ 'i' ‖ ino 8` |
//! | entry | heads | `vol 4 ‖ 'd' ‖ parent 8 ‖ name hash 16` |
//! | block | heads | `vol 4 ‖ 'b' ‖ ino 8 ‖ block 8` |
//! | xattr | heads | `vol 4 ‖ 'x' ‖ ino 8 ‖ name hash 16` |
//! | history | history | `head key ‖ end LSN 8` |
//! | ended | history | `vol 4 ‖ 'E' ‖ first point 8 ‖ end LSN 8 ‖ head key without vol` |
//! | chunk | chunks | `chunk id 32` |
//! | others | default | see [`meta`] |

use crate::store::model::ItemKey;
use crate::types::{Ino, Lsn, PackId, VolumeId};

/// Bytes of the volume number that starts every versioned key.
const VOL: usize = 4;
/// Bytes of an LSN in a key.
const LSN: usize = 8;

/// Families of versioned items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// File data.
    Block = b'b',
    /// Directory entries.
    Dirent = b'd',
    /// Inodes.
    Inode = b'i',
    /// Extended attributes.
    Xattr = b'x',
}

const ENDED: u8 = b'E';

fn start(vol: VolumeId, family: u8, ino: Ino, room: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(VOL + 1 + 8 + room);
    key.extend_from_slice(&vol.0.to_be_bytes());
    key.push(family);
    key.extend_from_slice(&ino.0.to_be_bytes());
    key
}

/// Key of an inode.
pub fn inode(vol: VolumeId, ino: Ino) -> Vec<u8> {
    start(vol, Family::Inode as u8, ino, LSN)
}

/// Key of a directory entry.
pub fn dirent(vol: VolumeId, parent: Ino, hash: &[u8; 16]) -> Vec<u8> {
    let mut key = start(vol, Family::Dirent as u8, parent, 16 + LSN);
    key.extend_from_slice(hash);
    key
}

/// Key of a file block.
pub fn block(vol: VolumeId, ino: Ino, block: u64) -> Vec<u8> {
    let mut key = start(vol, Family::Block as u8, ino, 8 + LSN);
    key.extend_from_slice(&block.to_be_bytes());
    key
}

/// Key of an extended attribute.
pub fn xattr(vol: VolumeId, ino: Ino, hash: &[u8; 16]) -> Vec<u8> {
    let mut key = start(vol, Family::Xattr as u8, ino, 16 + LSN);
    key.extend_from_slice(hash);
    key
}

/// Key of an item.
pub fn of_item(vol: VolumeId, item: &ItemKey) -> Vec<u8> {
    match item {
        ItemKey::Inode(ino) => inode(vol, *ino),
        ItemKey::Entry(parent, hash) => dirent(vol, *parent, hash),
        ItemKey::Block(ino, number) => block(vol, *ino, *number),
        ItemKey::Xattr(ino, hash) => xattr(vol, *ino, hash),
    }
}

/// The item of a head key.
pub fn item_of(key: &[u8]) -> Option<ItemKey> {
    let ino = ino_of(key)?;
    Some(match family_of(key)? {
        Family::Inode => ItemKey::Inode(ino),
        Family::Dirent => ItemKey::Entry(ino, hash_of(key)?),
        Family::Block => ItemKey::Block(ino, block_of(key)?),
        Family::Xattr => ItemKey::Xattr(ino, hash_of(key)?),
    })
}

/// What the keys of one inode (or of one directory's entries) in a family begin with.
pub fn prefix(vol: VolumeId, family: Family, ino: Ino) -> Vec<u8> {
    start(vol, family as u8, ino, 24)
}

/// What all keys of a family begin with.
pub fn family(vol: VolumeId, family: Family) -> Vec<u8> {
    let mut key = volume(vol);
    key.push(family as u8);
    key
}

/// What all keys of a volume begin with.
pub fn volume(vol: VolumeId) -> Vec<u8> {
    vol.0.to_be_bytes().to_vec()
}

/// The volume that a versioned key belongs to.
pub fn volume_of(key: &[u8]) -> VolumeId {
    VolumeId(key.first_chunk::<VOL>().map_or(0, |b| u32::from_be_bytes(*b)))
}

/// The family of a head key.
pub fn family_of(key: &[u8]) -> Option<Family> {
    match key.get(VOL)? {
        b'b' => Some(Family::Block),
        b'd' => Some(Family::Dirent),
        b'i' => Some(Family::Inode),
        b'x' => Some(Family::Xattr),
        _ => None,
    }
}

/// The inode (of an entry: the directory) that a head key belongs to.
pub fn ino_of(key: &[u8]) -> Option<Ino> {
    number_at(key, VOL + 1).map(Ino)
}

/// The block number of a block key.
pub fn block_of(key: &[u8]) -> Option<u64> {
    number_at(key, VOL + 1 + 8)
}

/// The name hash of an entry key.
pub fn hash_of(key: &[u8]) -> Option<[u8; 16]> {
    key.get(VOL + 1 + 8..)?.first_chunk().copied()
}

fn number_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*key.get(at..)?.first_chunk()?))
}

/// The smallest key above all keys that begin with `prefix`.
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return end;
        }
        end.pop();
    }
    vec![0xff; 64]
}

/// Key of the history entry of `head` that ended at `end`.
pub fn history(head: &[u8], end: Lsn) -> Vec<u8> {
    let mut key = Vec::with_capacity(head.len() + LSN);
    key.extend_from_slice(head);
    key.extend_from_slice(&end.0.to_be_bytes());
    key
}

/// A history key's head key and end.
pub fn split_history(key: &[u8]) -> Option<(&[u8], Lsn)> {
    let (head, end) = key.split_last_chunk::<LSN>()?;
    Some((head, Lsn(u64::from_be_bytes(*end))))
}

/// Key of the dead-list item of `head`'s version that ended at `end` and whose first point is `first`.
pub fn ended(vol: VolumeId, first: Lsn, end: Lsn, head: &[u8]) -> Vec<u8> {
    let mut key = ended_from(vol, first, end);
    key.extend_from_slice(head.get(VOL..).unwrap_or_default());
    key
}

/// What dead-list keys of `first` and an end of at least `end` are not below.
pub fn ended_from(vol: VolumeId, first: Lsn, end: Lsn) -> Vec<u8> {
    let mut key = Vec::with_capacity(VOL + 1 + LSN + LSN + 25);
    key.extend_from_slice(&vol.0.to_be_bytes());
    key.push(ENDED);
    key.extend_from_slice(&first.0.to_be_bytes());
    key.extend_from_slice(&end.0.to_be_bytes());
    key
}

/// A dead-list key taken apart: first point, end, head key.
pub fn split_ended(key: &[u8]) -> Option<(Lsn, Lsn, Vec<u8>)> {
    if key.get(VOL) != Some(&ENDED) {
        return None;
    }
    let first = number_at(key, VOL + 1)?;
    let end = number_at(key, VOL + 1 + LSN)?;
    let mut head = key.get(..VOL)?.to_vec();
    head.extend_from_slice(key.get(VOL + 1 + LSN + LSN..)?);
    Some((Lsn(first), Lsn(end), head))
}

/// Keys of the default column family: what is not versioned.
pub mod meta {
    use super::{Ino, Lsn, PackId, VolumeId};

    /// The applied LSN and all that goes with it. A capital, so that no other row's first byte begins it.
    pub const STATE: &[u8] = b"STATE";
    /// First byte of volume rows: `'v' ‖ vol 4`.
    pub const VOLUME: u8 = b'v';
    /// First byte of snapshot rows: `'s' ‖ vol 4 ‖ lsn 8`.
    pub const SNAPSHOT: u8 = b's';
    /// First byte of orphan rows: `'o' ‖ vol 4 ‖ ino 8`.
    pub const ORPHAN: u8 = b'o';
    /// First byte of stage rows: `'g' ‖ vol 4 ‖ first ino 8`.
    pub const STAGE: u8 = b'g';
    /// First byte of reap rows: `'r' ‖ vol 4 ‖ cut lsn 8 ‖ ino 8`.
    pub const REAP: u8 = b'r';
    /// First byte of rows of blocks that want a rebind: `'p' ‖ vol 4 ‖ ino 8 ‖ block 8 ‖ since 8`.
    pub const PENDING: u8 = b'p';
    /// First byte of pack rows: `'k' ‖ pack 8`.
    pub const PACK: u8 = b'k';
    /// First byte of rows of packs that may be deleted: `'d' ‖ pack 8`.
    pub const RETIRED: u8 = b'd';
    /// First byte of policy rows: `'y' ‖ vol 4`.
    pub const POLICY: u8 = b'y';
    /// First byte of rows of inodes that are being erased: `'e' ‖ vol 4 ‖ ino 8`.
    pub const PURGE: u8 = b'e';
    /// First byte of time marks: `'t' ‖ centiseconds since the epoch, sign bit flipped, 8`.
    pub const TIME: u8 = b't';
    /// First byte of rows of the clock's steps back: `'c' ‖ lsn 8`.
    pub const STEP: u8 = b'c';

    fn row(kind: u8, vol: VolumeId, numbers: &[u64]) -> Vec<u8> {
        let mut key = Vec::with_capacity(5 + numbers.len() * 8);
        key.push(kind);
        key.extend_from_slice(&vol.0.to_be_bytes());
        for n in numbers {
            key.extend_from_slice(&n.to_be_bytes());
        }
        key
    }

    /// Key of a volume row.
    pub fn volume(vol: VolumeId) -> Vec<u8> {
        row(VOLUME, vol, &[])
    }

    /// Key of a snapshot row.
    pub fn snapshot(vol: VolumeId, at: Lsn) -> Vec<u8> {
        row(SNAPSHOT, vol, &[at.0])
    }

    /// Key of a volume's policy.
    pub fn policy(vol: VolumeId) -> Vec<u8> {
        row(POLICY, vol, &[])
    }

    /// Key of an orphan row.
    pub fn orphan(vol: VolumeId, ino: Ino) -> Vec<u8> {
        row(ORPHAN, vol, &[ino.0])
    }

    /// Key of a stage row.
    pub fn stage(vol: VolumeId, from: Ino) -> Vec<u8> {
        row(STAGE, vol, &[from.0])
    }

    /// Key of the row of an inode that is being erased.
    pub fn purge(vol: VolumeId, ino: Ino) -> Vec<u8> {
        row(PURGE, vol, &[ino.0])
    }

    /// Key of a reap row.
    pub fn reap(vol: VolumeId, cut: Lsn, ino: Ino) -> Vec<u8> {
        row(REAP, vol, &[cut.0, ino.0])
    }

    /// Key of a pending row.
    pub fn pending(vol: VolumeId, ino: Ino, block: u64, since: Lsn) -> Vec<u8> {
        row(PENDING, vol, &[ino.0, block, since.0])
    }

    /// Key of a pack row.
    pub fn pack(pack: PackId) -> Vec<u8> {
        of_pack(PACK, pack)
    }

    /// Key of the row of a pack that may be deleted.
    pub fn retired(pack: PackId) -> Vec<u8> {
        of_pack(RETIRED, pack)
    }

    fn of_pack(kind: u8, pack: PackId) -> Vec<u8> {
        let mut key = vec![kind];
        key.extend_from_slice(&pack.0.to_be_bytes());
        key
    }

    /// Key of the time mark of a hundredth of a second.
    pub fn time(centiseconds: i64) -> Vec<u8> {
        let mut key = vec![TIME];
        key.extend_from_slice(&(centiseconds.cast_unsigned() ^ (1 << 63)).to_be_bytes());
        key
    }

    /// Key of the row of a step back of the clock.
    pub fn step(lsn: Lsn) -> Vec<u8> {
        let mut key = vec![STEP];
        key.extend_from_slice(&lsn.0.to_be_bytes());
        key
    }

    /// What all rows of a kind and volume begin with.
    pub fn of_volume(kind: u8, vol: VolumeId) -> Vec<u8> {
        row(kind, vol, &[])
    }

    /// The volume and the numbers of a row's key.
    pub fn split<const N: usize>(key: &[u8]) -> Option<(VolumeId, [u64; N])> {
        let (vol, mut rest) = key.get(1..)?.split_first_chunk::<4>()?;
        let mut numbers = [0; N];
        for n in &mut numbers {
            let (head, tail) = rest.split_first_chunk::<8>()?;
            *n = u64::from_be_bytes(*head);
            rest = tail;
        }
        rest.is_empty().then_some((VolumeId(u32::from_be_bytes(*vol)), numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        let head = block(VolumeId(3), Ino(9), 77);
        let key = history(&head, Lsn(500));
        assert_eq!(split_history(&key), Some((&head[..], Lsn(500))));
        let dead = ended(VolumeId(3), Lsn(4), Lsn(5), &head);
        assert_eq!(split_ended(&dead), Some((Lsn(4), Lsn(5), head.clone())));
        assert_eq!((volume_of(&head), ino_of(&head), block_of(&head)), (VolumeId(3), Some(Ino(9)), Some(77)));
        for key in [inode(VolumeId(3), Ino(9)), dirent(VolumeId(3), Ino(9), &[5; 16]), head] {
            assert_eq!(item_of(&key).map(|item| of_item(VolumeId(3), &item)), Some(key));
        }
        let row = meta::pending(VolumeId(1), Ino(2), 3, Lsn(4));
        assert_eq!(meta::split::<3>(&row), Some((VolumeId(1), [2, 3, 4])));
        assert_eq!(meta::split::<2>(&row), None);
    }

    #[test]
    fn times_before_the_epoch_sort_first() {
        assert!(meta::time(-1) < meta::time(0));
        assert!(meta::time(i64::MIN) < meta::time(-1));
    }

    #[test]
    fn after_prefix_is_above_every_key_with_it() {
        assert_eq!(after_prefix(&[1, 2]), vec![1, 3]);
        assert_eq!(after_prefix(&[1, 0xff]), vec![2]);
        assert!(after_prefix(&[0xff]) > vec![0xff; 40]);
    }
}
