//! Inodes, directory entries and extended attributes.

use super::{Item, Split};
use crate::types::limits::{
    CUTS_MAX, FILE_BLOCKS_MAX, FILE_BYTES_MAX, INO_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX,
    XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX,
};
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Ino, Lsn, Timestamp};

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    File = 1,
    /// Directory.
    Dir = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Unix socket.
    Socket = 5,
    /// Character device.
    Char = 6,
    /// Block device.
    Block = 7,
}

/// In the byte of the kind: there is no history of it.
const EXCLUDED: u8 = 0x80;
/// In the byte of a directory's kind: it has a [`Hidden`].
const HIDES: u8 = 0x40;

impl FileKind {
    /// The kind, and which of the bits `marks` stand beside it.
    fn marked(v: u8, marks: u8) -> Result<(FileKind, u8), WireError> {
        Ok((FileKind::from_u8(v & !marks)?, v & marks))
    }

    fn from_u8(v: u8) -> Result<FileKind, WireError> {
        use FileKind::*;
        [File, Dir, Symlink, Fifo, Socket, Char, Block]
            .into_iter()
            .find(|k| *k as u8 == v)
            .ok_or(WireError::Bad("file kind"))
    }
}

/// What of a directory no point shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// How many of its entries are excluded.
    pub entries: u64,
    /// How many of these are directories.
    pub dirs: u32,
}

/// The attributes a record carries for an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attrs {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, including setuid, setgid and sticky (12 bits).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links; for a directory 2 plus its subdirectories.
    pub nlink: u32,
    /// Size in bytes (of a symlink: of its target).
    pub size: u64,
    /// Last access (relatime).
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Device number of a device node.
    pub rdev: u32,
    /// The term in which the inode was created: the FUSE generation.
    pub generation: u64,
    /// The directory of its name (of the root, itself). Of a file with several names: of the one given last; 0
    /// when that one was removed.
    pub parent: Ino,
    /// The keyed hash of that name; zeros for the root, and where `parent` is 0.
    pub name: [u8; 16],
    /// Who last changed the content: a user id.
    pub author: u32,
    /// Of a directory, the number of its entries.
    pub entries: u64,
    /// The number of its extended attributes; 0 spares every look-up.
    pub xattrs: u32,
    /// Target of a symlink.
    pub target: Vec<u8>,
    /// There is no history of it: no point shows it, and what it was before a change is gone with that. Set when it
    /// is made or never; taken away once it gets a name that is not excluded.
    pub excluded: bool,
    /// Of a directory below which something excluded lies or lay: what is hidden. None spares every search.
    pub hidden: Option<Hidden>,
}

/// Blocks `from..to` written before `lsn` count as holes: the constant-time part of a truncate or unlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// First block.
    pub from: u64,
    /// Block after the last.
    pub to: u64,
    /// The record that cut.
    pub lsn: Lsn,
}

/// An inode as the index holds it: the record's attributes and what `apply` derives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// From the record.
    pub attrs: Attrs,
    /// Bytes of file data in its blocks (holes do not count); kept by `apply`.
    pub data_bytes: u64,
    /// Cuts not yet reaped; kept by `apply`.
    pub cuts: Vec<Cut>,
}

impl Inode {
    /// The newest LSN at which `block` was cut, or zero.
    pub fn cut_at(&self, block: u64) -> Lsn {
        self.cuts.iter().filter(|c| c.from <= block && block < c.to).map(|c| c.lsn).max().unwrap_or(Lsn::ZERO)
    }

    /// Only whether there is no history of it, out of the public half.
    pub fn is_excluded(public: &[u8]) -> bool {
        public.first().is_some_and(|kind| kind & EXCLUDED != 0)
    }

    /// What a point shows of it: nothing of what is excluded, and no count of that.
    pub fn at_point(mut self) -> Option<Inode> {
        let attrs = &mut self.attrs;
        if let Some(hidden) = attrs.hidden.take() {
            attrs.entries = attrs.entries.saturating_sub(hidden.entries);
            attrs.nlink = attrs.nlink.saturating_sub(hidden.dirs);
        }
        (!attrs.excluded).then_some(self)
    }
}

fn put_time(e: &mut Encoder, t: Timestamp) {
    e.i64(t.secs).u32(t.nanos);
}

fn get_time(d: &mut Decoder<'_>) -> Result<Timestamp, WireError> {
    let (secs, nanos) = (d.i64()?, d.u32()?);
    if nanos >= 1_000_000_000 {
        return Err(WireError::Bad("nanoseconds"));
    }
    Ok(Timestamp { secs, nanos })
}

/// An inode number that can have been handed out, or 0.
pub(super) fn get_ino(d: &mut Decoder<'_>) -> Result<Ino, WireError> {
    d.number(INO_MAX, "inode number").map(Ino)
}

/// The number of a block that a file can have, or of the one behind the last.
pub(super) fn get_block(d: &mut Decoder<'_>) -> Result<u64, WireError> {
    d.number(FILE_BLOCKS_MAX, "block number")
}

impl Attrs {
    /// Notes that the name with that hash in `parent` was removed, and that others may be left.
    pub fn unname(&mut self, parent: Ino, hash: &[u8; 16]) {
        if self.nlink > 0 && (self.parent, &self.name) == (parent, hash) {
            (self.parent, self.name) = (Ino(0), [0; 16]);
        }
    }

    /// Counts an excluded entry that a directory gains or loses.
    pub fn count_hidden(&mut self, sign: i32, kind: FileKind) {
        let hidden = self.hidden.get_or_insert_default();
        hidden.entries = hidden.entries.saturating_add_signed(i64::from(sign));
        if kind == FileKind::Dir {
            hidden.dirs = hidden.dirs.saturating_add_signed(sign);
        }
    }

    /// Appends the public fields.
    pub(super) fn encode_public(&self, e: &mut Encoder) {
        let excluded = if self.excluded { EXCLUDED } else { 0 };
        let hides = if self.hidden.is_some() { HIDES } else { 0 };
        e.u8(self.kind as u8 | excluded | hides).u16(self.mode).u32(self.uid).u32(self.gid).u32(self.nlink);
        e.varint(self.size);
        for t in [self.atime, self.mtime, self.ctime, self.btime] {
            put_time(e, t);
        }
        e.u32(self.rdev).varint(self.generation).varint(self.parent.0).raw(&self.name).u32(self.author);
        e.varint(self.entries).varint(u64::from(self.xattrs));
        if let Some(hidden) = self.hidden {
            e.varint(hidden.entries).varint(u64::from(hidden.dirs));
        }
    }

    /// Reads what [`Attrs::encode_public`] wrote; the target is left empty.
    pub(super) fn decode_public(d: &mut Decoder<'_>) -> Result<Attrs, WireError> {
        let (kind, marks) = FileKind::marked(d.u8()?, EXCLUDED | HIDES)?;
        let hidden = |d: &mut Decoder<'_>| {
            let entries = d.number(INO_MAX, "entry count")?;
            Ok(Hidden { entries, dirs: d.number(u64::from(u32::MAX), "link count")? as u32 })
        };
        Ok(Attrs {
            kind,
            mode: d.u16()?,
            uid: d.u32()?,
            gid: d.u32()?,
            nlink: d.u32()?,
            size: d.number(FILE_BYTES_MAX, "size")?,
            atime: get_time(d)?,
            mtime: get_time(d)?,
            ctime: get_time(d)?,
            btime: get_time(d)?,
            rdev: d.u32()?,
            generation: d.varint()?,
            parent: get_ino(d)?,
            name: d.array()?,
            author: d.u32()?,
            entries: d.number(INO_MAX, "entry count")?,
            xattrs: d.number(XATTR_LIST_BYTES_MAX as u64, "xattr count")? as u32,
            target: Vec::new(),
            excluded: marks & EXCLUDED != 0,
            hidden: if marks & HIDES != 0 { Some(hidden(d)?) } else { None },
        })
    }

    pub(super) fn encode(&self, e: &mut Encoder) {
        self.encode_public(e);
        e.bytes(&self.target);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Attrs, WireError> {
        let mut attrs = Attrs::decode_public(d)?;
        attrs.target = d.bytes(SYMLINK_BYTES_MAX, "link target")?.to_vec();
        Ok(attrs)
    }
}

impl Item for Inode {
    fn split(&self) -> Split {
        let mut e = Encoder::with_capacity(112);
        self.attrs.encode_public(&mut e);
        e.varint(self.data_bytes).varint(self.cuts.len() as u64);
        for cut in &self.cuts {
            e.varint(cut.from).varint(cut.to).varint(cut.lsn.0);
        }
        Split { public: e.finish(), secret: self.attrs.target.clone() }
    }

    fn join(public: &[u8], secret: &[u8]) -> Result<Inode, WireError> {
        let mut d = Decoder::new(public);
        let mut attrs = Attrs::decode_public(&mut d)?;
        let data_bytes = d.varint()?;
        let count = d.count(CUTS_MAX, "cut count")?;
        let cuts = (0..count)
            .map(|_| Ok(Cut { from: get_block(&mut d)?, to: get_block(&mut d)?, lsn: Lsn(d.varint()?) }))
            .collect::<Result<_, WireError>>()?;
        d.end()?;
        if secret.len() > SYMLINK_BYTES_MAX {
            return Err(WireError::Bad("link target"));
        }
        attrs.target = secret.to_vec();
        Ok(Inode { attrs, data_bytes, cuts })
    }
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// The inode it names.
    pub ino: Ino,
    /// The inode's kind, so that `readdir` need not fetch it.
    pub kind: FileKind,
    /// The name, without its directory.
    pub name: Vec<u8>,
    /// No point shows it. What it names is excluded, too, unless that has got a name that is not.
    pub excluded: bool,
}

impl Dirent {
    pub(super) fn encode(&self, e: &mut Encoder) {
        self.encode_public(e);
        e.bytes(&self.name);
    }

    fn encode_public(&self, e: &mut Encoder) {
        e.varint(self.ino.0).u8(self.kind as u8 | if self.excluded { EXCLUDED } else { 0 });
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Dirent, WireError> {
        let ino = get_ino(d)?;
        let (kind, marks) = FileKind::marked(d.u8()?, EXCLUDED)?;
        Ok(Dirent {
            ino,
            kind,
            excluded: marks != 0,
            name: match d.bytes(NAME_BYTES_MAX, "name")? {
                [] => return Err(WireError::Bad("name")),
                name => name.to_vec(),
            },
        })
    }
}

impl Dirent {
    /// Only the inode, out of the public half.
    pub fn ino_of(public: &[u8]) -> Result<Ino, WireError> {
        get_ino(&mut Decoder::new(public))
    }

    /// Only what it is and whether no point shows it, out of the public half.
    pub fn kind_of(public: &[u8]) -> Result<(FileKind, bool), WireError> {
        let mut d = Decoder::new(public);
        get_ino(&mut d)?;
        let (kind, marks) = FileKind::marked(d.u8()?, EXCLUDED)?;
        Ok((kind, marks != 0))
    }
}

impl Item for Dirent {
    fn split(&self) -> Split {
        let mut e = Encoder::with_capacity(10);
        self.encode_public(&mut e);
        Split { public: e.finish(), secret: self.name.clone() }
    }

    fn join(public: &[u8], secret: &[u8]) -> Result<Dirent, WireError> {
        let mut d = Decoder::new(public);
        let ino = get_ino(&mut d)?;
        let (kind, marks) = FileKind::marked(d.u8()?, EXCLUDED)?;
        d.end()?;
        if secret.is_empty() || secret.len() > NAME_BYTES_MAX {
            return Err(WireError::Bad("name"));
        }
        Ok(Dirent { ino, kind, name: secret.to_vec(), excluded: marks != 0 })
    }
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Its full name, with the namespace.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

impl Xattr {
    pub(super) fn encode(&self, e: &mut Encoder) {
        e.bytes(&self.name).bytes(&self.value);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Xattr, WireError> {
        Ok(Xattr {
            name: d.bytes(XATTR_LIST_BYTES_MAX, "xattr name")?.to_vec(),
            value: d.bytes(XATTR_VALUE_BYTES_MAX, "xattr value")?.to_vec(),
        })
    }
}

impl Item for Xattr {
    fn split(&self) -> Split {
        let mut e = Encoder::with_capacity(self.name.len() + self.value.len() + 4);
        self.encode(&mut e);
        Split { public: Vec::new(), secret: e.finish() }
    }

    fn join(_public: &[u8], secret: &[u8]) -> Result<Xattr, WireError> {
        let mut d = Decoder::new(secret);
        let xattr = Xattr::decode(&mut d)?;
        d.end()?;
        Ok(xattr)
    }
}
