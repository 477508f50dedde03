//! What a point that stays is called and carries.

use crate::types::limits::{SNAPSHOT_NAME_BYTES_MAX, TAG_BYTES_MAX, TAGS_MAX};
use crate::types::wire::{Decoder, Encoder, WireError};

/// Who made a point, which decides what may take it away again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SnapshotKind {
    /// Somebody asked for it: it goes when somebody says so, or for want of room.
    #[default]
    Manual = 0,
    /// The schedule: retention thins these.
    Scheduled = 1,
    /// A rule that watches for completed files; stays as one that was asked for.
    OnClose = 2,
    /// A restore, of what it was about to replace; stays as one that was asked for.
    BeforeRestore = 3,
    /// The continuous window: has no name and is only found by its moment.
    Mark = 4,
}

impl SnapshotKind {
    fn from_u8(v: u8) -> Result<SnapshotKind, WireError> {
        use SnapshotKind::*;
        [Manual, Scheduled, OnClose, BeforeRestore, Mark]
            .into_iter()
            .find(|k| *k as u8 == v)
            .ok_or(WireError::Bad("snapshot kind"))
    }
}

/// What a snapshot is called and carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// Its name; empty for a mark.
    pub name: String,
    /// The number of its view in FUSE node ids; 0 for a mark.
    pub view: u32,
    /// Tags in the order given.
    pub tags: Vec<(String, String)>,
    /// Whether only `snapshot release` lets it be deleted.
    pub hold: bool,
    /// Who made it.
    pub kind: SnapshotKind,
}

pub(super) fn get_bool(d: &mut Decoder<'_>) -> Result<bool, WireError> {
    match d.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Bad("flag")),
    }
}

pub(super) fn get_text(d: &mut Decoder<'_>, max: usize) -> Result<String, WireError> {
    let bytes = d.bytes(max, "text")?;
    String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Bad("text"))
}

impl SnapshotSpec {
    pub(in crate::store) fn encode(&self, e: &mut Encoder) {
        e.bytes(self.name.as_bytes()).u32(self.view).u8(u8::from(self.hold)).u8(self.kind as u8);
        e.varint(self.tags.len() as u64);
        for (k, v) in &self.tags {
            e.bytes(k.as_bytes()).bytes(v.as_bytes());
        }
    }

    pub(in crate::store) fn decode(d: &mut Decoder<'_>) -> Result<SnapshotSpec, WireError> {
        let name = get_text(d, SNAPSHOT_NAME_BYTES_MAX)?;
        let view = d.u32()?;
        let hold = get_bool(d)?;
        let kind = SnapshotKind::from_u8(d.u8()?)?;
        let count = d.count(TAGS_MAX, "tag count")?;
        let tags = (0..count)
            .map(|_| Ok((get_text(d, TAG_BYTES_MAX)?, get_text(d, TAG_BYTES_MAX)?)))
            .collect::<Result<_, WireError>>()?;
        Ok(SnapshotSpec { name, view, tags, hold, kind })
    }
}
