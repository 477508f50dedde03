//! Edits: the effects that records consist of.

use super::inode::{get_block, get_ino};
use super::snapshot::{get_bool, get_text};
use super::{Attrs, Dirent, ForgetFrom, PastVersion, Piece, Policy, Recipe, SnapshotSpec, Xattr};
use crate::types::limits::{BLOCK_BYTES, SNAPSHOT_NAME_BYTES_MAX, SWEEP_ITEMS_MAX};
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Ino, Lsn, Timestamp, VolumeId};

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Sets an inode's attributes, creating it where it was absent.
    PutInode {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// All of its attributes.
        attrs: Attrs,
    },
    /// Ends an inode and its extended attributes; its blocks are ended by `DropBlocks` or `Cut`.
    DelInode {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
    },
    /// Sets a directory entry.
    PutDirent {
        /// The volume.
        vol: VolumeId,
        /// The directory.
        parent: Ino,
        /// The keyed hash of the name.
        hash: [u8; 16],
        /// The entry.
        dirent: Dirent,
    },
    /// Ends a directory entry.
    DelDirent {
        /// The volume.
        vol: VolumeId,
        /// The directory.
        parent: Ino,
        /// The keyed hash of the name.
        hash: [u8; 16],
    },
    /// Writes pieces over a block's bytes from `offset` on. The same record puts the inode.
    PatchBlock {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// The block.
        block: u64,
        /// The first byte within the block.
        offset: u32,
        /// What is written there.
        pieces: Vec<Piece>,
    },
    /// Ends the blocks `from..to`, few of them (`DIRECT_REMOVE_BLOCKS_MAX`).
    DropBlocks {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// The first block.
        from: u64,
        /// The block behind the last.
        to: u64,
    },
    /// Ends the blocks `from..to` as of this record, however many: `Reap` records do the work later. The same
    /// record puts the inode before, or deletes it after.
    Cut {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// The first block.
        from: u64,
        /// The block behind the last.
        to: u64,
    },
    /// Does a bounded part of the work that the cut at `cut` left.
    Reap {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// The LSN of the cut.
        cut: Lsn,
        /// Blocks at most, up to [`SWEEP_ITEMS_MAX`].
        items: u32,
    },
    /// Sets an extended attribute. The same record puts the inode.
    PutXattr {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// The keyed hash of the name.
        hash: [u8; 16],
        /// The attribute.
        xattr: Xattr,
    },
    /// Ends an extended attribute. The same record puts the inode.
    DelXattr {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// The keyed hash of the name.
        hash: [u8; 16],
    },
    /// Notes that an inode without a name is (or is no longer) kept for those who have it open.
    Orphan {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// Whether it is kept.
        orphan: bool,
    },
    /// Notes that the inodes `from..to` are being prepared out of sight and belong to no tree yet, or that they
    /// now do. What is still noted when nobody prepares it any more is removed.
    Stage {
        /// The volume.
        vol: VolumeId,
        /// The first inode number.
        from: Ino,
        /// The number behind the last.
        to: Ino,
        /// Whether they are being prepared.
        staged: bool,
    },
    /// Gives a block version, named by its `since`, another representation of the same bytes.
    Rebind {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// The block.
        block: u64,
        /// The LSN at which the version began.
        since: Lsn,
        /// Its new representation.
        recipe: Recipe,
    },
    /// Makes this record's LSN a point: a snapshot or a mark.
    SnapshotCreate {
        /// The volume.
        vol: VolumeId,
        /// What it is called and carries.
        spec: SnapshotSpec,
    },
    /// Begins to forget the snapshot at `at`.
    SnapshotDelete {
        /// The volume.
        vol: VolumeId,
        /// The LSN of the snapshot.
        at: Lsn,
    },
    /// Sets or lifts a hold.
    SnapshotHold {
        /// The volume.
        vol: VolumeId,
        /// The LSN of the snapshot.
        at: Lsn,
        /// Whether it is held.
        hold: bool,
    },
    /// Moves the continuous window's floor: no LSN before it stays readable for its own sake.
    Window {
        /// The volume.
        vol: VolumeId,
        /// The oldest LSN that stays readable.
        floor: Lsn,
        /// The moment it stands for.
        since: Timestamp,
    },
    /// Does a bounded part of the forgetting that deletions and the window left.
    Forget {
        /// The volume.
        vol: VolumeId,
        /// Versions at most, up to [`SWEEP_ITEMS_MAX`].
        items: u32,
        /// Where the look for them begins.
        from: ForgetFrom,
    },
    /// Makes a volume; the same record puts its root.
    VolumeCreate {
        /// The volume.
        vol: VolumeId,
        /// Its name.
        name: String,
    },
    /// Gives up a volume; `VolumeSweep` records do the work.
    VolumeDelete {
        /// The volume.
        vol: VolumeId,
    },
    /// Does a bounded part of a volume's removal.
    VolumeSweep {
        /// The volume.
        vol: VolumeId,
    },
    /// Sets a volume's policy.
    PolicySet {
        /// The volume.
        vol: VolumeId,
        /// All of it.
        policy: Box<Policy>,
    },
    /// Notes that every version of an inode is being erased, or that nothing is left of it.
    Purge {
        /// The volume.
        vol: VolumeId,
        /// The inode.
        ino: Ino,
        /// Whether something is left.
        pending: bool,
    },
    /// Frees a version of the history although points may still show it.
    Erase {
        /// The volume.
        vol: VolumeId,
        /// Which.
        version: PastVersion,
    },
    /// A new reign begins.
    Term,
}

macro_rules! tags {
    ($($name:ident = $value:literal),+ $(,)?) => { $(const $name: u8 = $value;)+ };
}
tags!(
    PUT_INODE = 1,
    DEL_INODE = 2,
    PUT_DIRENT = 3,
    DEL_DIRENT = 4,
    PATCH_BLOCK = 5,
    DROP_BLOCKS = 6,
    CUT = 7,
    REAP = 8,
    PUT_XATTR = 9,
    DEL_XATTR = 10,
    ORPHAN = 11,
    REBIND = 12,
    SNAPSHOT_CREATE = 13,
    SNAPSHOT_DELETE = 14,
    SNAPSHOT_HOLD = 15,
    WINDOW = 16,
    FORGET = 17,
    VOLUME_CREATE = 18,
    VOLUME_DELETE = 19,
    VOLUME_SWEEP = 20,
    TERM = 21,
    POLICY_SET = 22,
    STAGE = 23,
    PURGE = 24,
    ERASE = 25,
);

fn head(e: &mut Encoder, tag: u8, vol: VolumeId) -> &mut Encoder {
    e.u8(tag).varint(u64::from(vol.0))
}

fn get_vol(d: &mut Decoder<'_>) -> Result<VolumeId, WireError> {
    u32::try_from(d.varint()?).map(VolumeId).map_err(|_| WireError::Bad("volume"))
}

fn get_items(d: &mut Decoder<'_>) -> Result<u32, WireError> {
    let items = d.varint()?;
    let known = u32::try_from(items).ok().filter(|n| (1..=SWEEP_ITEMS_MAX as u32).contains(n));
    known.ok_or(WireError::Bad("number of items"))
}

impl Edit {
    /// The volume whose items or points it changes; `None` for what concerns volumes as such, and for what
    /// only works off or rewrites what is there.
    pub(in crate::store) fn volume_of_item(&self) -> Option<VolumeId> {
        use Edit::*;
        match self {
            PutInode { vol, .. }
            | DelInode { vol, .. }
            | PutDirent { vol, .. }
            | DelDirent { vol, .. }
            | PatchBlock { vol, .. }
            | DropBlocks { vol, .. }
            | Cut { vol, .. }
            | PutXattr { vol, .. }
            | DelXattr { vol, .. }
            | Orphan { vol, .. }
            | Stage { vol, .. }
            | SnapshotCreate { vol, .. }
            | SnapshotDelete { vol, .. }
            | SnapshotHold { vol, .. }
            | Window { vol, .. }
            | PolicySet { vol, .. }
            | Purge { vol, .. }
            | Erase { vol, .. }
            | Forget { vol, .. } => Some(*vol),
            Reap { .. } | Rebind { .. } => None,
            VolumeCreate { .. } | VolumeDelete { .. } | VolumeSweep { .. } | Term => None,
        }
    }

    /// The file whose block it patches.
    pub(in crate::store) fn patched_file(&self) -> Option<(VolumeId, Ino)> {
        match self {
            Edit::PatchBlock { vol, ino, .. } => Some((*vol, *ino)),
            _ => None,
        }
    }

    /// The volume whose tree it changes, as programs see it.
    pub(in crate::store) fn volume_of_content(&self) -> Option<VolumeId> {
        use Edit::*;
        match self {
            SnapshotCreate { .. } | SnapshotDelete { .. } | SnapshotHold { .. } => None,
            Window { .. } | Forget { .. } | PolicySet { .. } | Purge { .. } | Erase { .. } => None,
            _ => self.volume_of_item(),
        }
    }

    pub(super) fn encode(&self, e: &mut Encoder) {
        use Edit::*;
        match self {
            PutInode { vol, ino, attrs } => attrs.encode(head(e, PUT_INODE, *vol).varint(ino.0)),
            DelInode { vol, ino } => {
                head(e, DEL_INODE, *vol).varint(ino.0);
            }
            PutDirent { vol, parent, hash, dirent } => {
                dirent.encode(head(e, PUT_DIRENT, *vol).varint(parent.0).raw(hash));
            }
            DelDirent { vol, parent, hash } => {
                head(e, DEL_DIRENT, *vol).varint(parent.0).raw(hash);
            }
            PatchBlock { vol, ino, block, offset, pieces } => {
                head(e, PATCH_BLOCK, *vol).varint(ino.0).varint(*block).u32(*offset);
                Piece::encode_list(pieces, e);
            }
            DropBlocks { vol, ino, from, to } => {
                head(e, DROP_BLOCKS, *vol).varint(ino.0).varint(*from).varint(*to);
            }
            Cut { vol, ino, from, to } => {
                head(e, CUT, *vol).varint(ino.0).varint(*from).varint(*to);
            }
            Reap { vol, ino, cut, items } => {
                head(e, REAP, *vol).varint(ino.0).varint(cut.0).varint(u64::from(*items));
            }
            PutXattr { vol, ino, hash, xattr } => {
                xattr.encode(head(e, PUT_XATTR, *vol).varint(ino.0).raw(hash));
            }
            DelXattr { vol, ino, hash } => {
                head(e, DEL_XATTR, *vol).varint(ino.0).raw(hash);
            }
            Orphan { vol, ino, orphan } => {
                head(e, ORPHAN, *vol).varint(ino.0).u8(u8::from(*orphan));
            }
            Stage { vol, from, to, staged } => {
                head(e, STAGE, *vol).varint(from.0).varint(to.0).u8(u8::from(*staged));
            }
            Purge { vol, ino, pending } => {
                head(e, PURGE, *vol).varint(ino.0).u8(u8::from(*pending));
            }
            Erase { vol, version } => {
                version.encode(head(e, ERASE, *vol).varint(version.item.ino().0));
            }
            Rebind { vol, ino, block, since, recipe } => {
                head(e, REBIND, *vol).varint(ino.0).varint(*block).varint(since.0);
                Piece::encode_list(recipe.pieces(), e);
            }
            SnapshotCreate { vol, spec } => spec.encode(head(e, SNAPSHOT_CREATE, *vol)),
            SnapshotDelete { vol, at } => {
                head(e, SNAPSHOT_DELETE, *vol).varint(at.0);
            }
            SnapshotHold { vol, at, hold } => {
                head(e, SNAPSHOT_HOLD, *vol).varint(at.0).u8(u8::from(*hold));
            }
            Window { vol, floor, since } => {
                head(e, WINDOW, *vol).varint(floor.0).i64(since.secs).u32(since.nanos);
            }
            Forget { vol, items, from } => from.encode(head(e, FORGET, *vol).varint(u64::from(*items))),
            VolumeCreate { vol, name } => {
                head(e, VOLUME_CREATE, *vol).bytes(name.as_bytes());
            }
            VolumeDelete { vol } => {
                head(e, VOLUME_DELETE, *vol);
            }
            VolumeSweep { vol } => {
                head(e, VOLUME_SWEEP, *vol);
            }
            PolicySet { vol, policy } => policy.encode(head(e, POLICY_SET, *vol)),
            Term => {
                e.u8(TERM);
            }
        }
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Edit, WireError> {
        let tag = d.u8()?;
        if tag == TERM {
            return Ok(Edit::Term);
        }
        let vol = get_vol(d)?;
        match tag {
            SNAPSHOT_CREATE => Ok(Edit::SnapshotCreate { vol, spec: SnapshotSpec::decode(d)? }),
            SNAPSHOT_DELETE => Ok(Edit::SnapshotDelete { vol, at: Lsn(d.varint()?) }),
            SNAPSHOT_HOLD => Ok(Edit::SnapshotHold { vol, at: Lsn(d.varint()?), hold: get_bool(d)? }),
            WINDOW => {
                let floor = Lsn(d.varint()?);
                Ok(Edit::Window { vol, floor, since: Timestamp { secs: d.i64()?, nanos: d.u32()? } })
            }
            FORGET => Ok(Edit::Forget { vol, items: get_items(d)?, from: ForgetFrom::decode(d)? }),
            POLICY_SET => Ok(Edit::PolicySet { vol, policy: Box::new(Policy::decode(d)?) }),
            VOLUME_CREATE => Ok(Edit::VolumeCreate { vol, name: get_text(d, SNAPSHOT_NAME_BYTES_MAX)? }),
            VOLUME_DELETE => Ok(Edit::VolumeDelete { vol }),
            VOLUME_SWEEP => Ok(Edit::VolumeSweep { vol }),
            _ => Edit::decode_of_inode(tag, vol, get_ino(d)?, d),
        }
    }

    /// The edits whose second field is an inode number.
    fn decode_of_inode(tag: u8, vol: VolumeId, ino: Ino, d: &mut Decoder<'_>) -> Result<Edit, WireError> {
        Ok(match tag {
            PUT_INODE => Edit::PutInode { vol, ino, attrs: Attrs::decode(d)? },
            DEL_INODE => Edit::DelInode { vol, ino },
            PUT_DIRENT => Edit::PutDirent { vol, parent: ino, hash: d.array()?, dirent: Dirent::decode(d)? },
            DEL_DIRENT => Edit::DelDirent { vol, parent: ino, hash: d.array()? },
            PATCH_BLOCK => {
                let (block, offset) = (get_block(d)?, d.u32()?);
                let pieces = Piece::decode_list(d)?;
                let len: u64 = pieces.iter().map(|p| u64::from(p.len)).sum();
                if u64::from(offset) + len > BLOCK_BYTES || pieces.is_empty() {
                    return Err(WireError::Bad("patch"));
                }
                Edit::PatchBlock { vol, ino, block, offset, pieces }
            }
            DROP_BLOCKS => Edit::DropBlocks { vol, ino, from: get_block(d)?, to: get_block(d)? },
            CUT => Edit::Cut { vol, ino, from: get_block(d)?, to: get_block(d)? },
            REAP => Edit::Reap { vol, ino, cut: Lsn(d.varint()?), items: get_items(d)? },
            PUT_XATTR => Edit::PutXattr { vol, ino, hash: d.array()?, xattr: Xattr::decode(d)? },
            DEL_XATTR => Edit::DelXattr { vol, ino, hash: d.array()? },
            ORPHAN => Edit::Orphan { vol, ino, orphan: get_bool(d)? },
            STAGE => Edit::Stage { vol, from: ino, to: get_ino(d)?, staged: get_bool(d)? },
            PURGE => Edit::Purge { vol, ino, pending: get_bool(d)? },
            ERASE => Edit::Erase { vol, version: PastVersion::decode(ino, d)? },
            REBIND => {
                let (block, since) = (get_block(d)?, Lsn(d.varint()?));
                Edit::Rebind { vol, ino, block, since, recipe: Recipe::new(Piece::decode_list(d)?) }
            }
            _ => return Err(WireError::Bad("edit kind")),
        })
    }
}
