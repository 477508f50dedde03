//! What is written out: a tree of the past, as a mount shows it, or read from a store that is opened here.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Whence, lseek};

use super::xattr::{self, Xattrs};
use crate::store::model::FileKind;
use crate::types::{Ino, Lsn};
use crate::volume::{FsError, Seek, Volume};

/// A file, directory or link: by its path below the root, and by its number.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) path: PathBuf,
    pub(super) ino: u64,
}

/// What it is.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) nlink: u64,
    pub(super) size: u64,
    pub(super) rdev: u64,
    /// Access and modification: seconds and nanoseconds.
    pub(super) times: [(i64, i64); 2],
}

/// The bytes of a file.
pub(super) trait Content {
    /// The first run of data at or behind `from`; none up to the end.
    fn data(&mut self, from: u64) -> io::Result<Option<(u64, u64)>>;
    /// Fills `buf` from `offset`; fewer bytes are an error.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// A tree.
pub(super) trait Source {
    fn node(&self, at: &Spot) -> io::Result<Node>;
    /// The entries of a directory, in the order of their names.
    fn entries(&self, at: &Spot) -> io::Result<Vec<Spot>>;
    fn target(&self, at: &Spot) -> io::Result<Vec<u8>>;
    fn xattrs(&self, at: &Spot) -> io::Result<Xattrs>;
    fn content(&self, at: &Spot, size: u64) -> io::Result<Box<dyn Content + '_>>;
}

/// A tree that the kernel shows.
pub(super) struct Shown {
    pub(super) root: PathBuf,
}

impl Shown {
    fn at(&self, spot: &Spot) -> PathBuf {
        if spot.path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(&spot.path) }
    }
}

struct Opened(File, u64);

impl Content for Opened {
    fn data(&mut self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let seek = |from: u64, whence| -> io::Result<Option<u64>> {
            match lseek(self.0.as_fd(), i64::try_from(from).unwrap_or(i64::MAX), whence) {
                Ok(at) => Ok(u64::try_from(at).ok()),
                Err(nix::errno::Errno::ENXIO) => Ok(None),
                Err(e) => Err(e.into()),
            }
        };
        if from >= self.1 {
            return Ok(None);
        }
        let Some(start) = seek(from, Whence::SeekData)? else { return Ok(None) };
        let end = seek(start, Whence::SeekHole)?.unwrap_or(self.1);
        Ok(Some((start, end)))
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

impl Source for Shown {
    fn node(&self, at: &Spot) -> io::Result<Node> {
        let m = fs::symlink_metadata(self.at(at))?;
        let kind = match m.file_type() {
            t if t.is_dir() => FileKind::Dir,
            t if t.is_symlink() => FileKind::Symlink,
            t if t.is_fifo() => FileKind::Fifo,
            t if t.is_socket() => FileKind::Socket,
            t if t.is_char_device() => FileKind::Char,
            t if t.is_block_device() => FileKind::Block,
            _ => FileKind::File,
        };
        Ok(Node {
            kind,
            mode: m.mode() & 0o7777,
            owner: (m.uid(), m.gid()),
            nlink: m.nlink(),
            size: m.size(),
            rdev: m.rdev(),
            times: [(m.atime(), m.atime_nsec()), (m.mtime(), m.mtime_nsec())],
        })
    }

    fn entries(&self, at: &Spot) -> io::Result<Vec<Spot>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.at(at))? {
            let entry = entry?;
            // Of what lies in a snapshot, the listing and lstat have the same number.
            let ino = entry.metadata()?.ino();
            found.push(Spot { path: at.path.join(entry.file_name()), ino });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn target(&self, at: &Spot) -> io::Result<Vec<u8>> {
        Ok(fs::read_link(self.at(at))?.into_os_string().into_vec())
    }

    fn xattrs(&self, at: &Spot) -> io::Result<Xattrs> {
        xattr::all(&self.at(at))
    }

    fn content(&self, at: &Spot, size: u64) -> io::Result<Box<dyn Content + '_>> {
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(self.at(at))?;
        Ok(Box::new(Opened(file, size)))
    }
}

/// A tree of a store that is open in this process.
pub(super) struct Stored {
    pub(super) volume: Arc<Volume>,
    pub(super) at: Lsn,
}

fn io_error(error: FsError) -> io::Error {
    match error {
        FsError::Store(crate::types::Error::Io { source, .. }) => source,
        e => io::Error::other(e.to_string()),
    }
}

struct Bytes<'a>(&'a Stored, Ino);

impl Content for Bytes<'_> {
    fn data(&mut self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let Stored { volume, at } = self.0;
        let start = match volume.seek(Some(*at), self.1, from, Seek::Data) {
            Err(FsError::NoSuchOffset) => return Ok(None),
            found => found.map_err(io_error)?,
        };
        let end = volume.seek(Some(*at), self.1, start, Seek::Hole).map_err(io_error)?;
        Ok(Some((start, end)))
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.volume.read(Some(self.0.at), self.1, offset, buf.len()).map_err(io_error)?;
        if bytes.len() != buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Source for Stored {
    fn node(&self, at: &Spot) -> io::Result<Node> {
        let attrs = self.volume.getattr(Some(self.at), Ino(at.ino)).map_err(io_error)?.attrs;
        let rdev = u64::from(attrs.rdev);
        Ok(Node {
            kind: attrs.kind,
            mode: u32::from(attrs.mode),
            owner: (attrs.uid, attrs.gid),
            nlink: u64::from(attrs.nlink),
            size: attrs.size,
            // As the kernel packs a number of 32 bits: minor's low byte, major, the rest of minor.
            rdev: libc::makedev((rdev >> 8 & 0xfff) as u32, ((rdev & 0xff) | (rdev >> 12 & 0xfff00)) as u32),
            times: [attrs.atime, attrs.mtime].map(|t| (t.secs, i64::from(t.nanos))),
        })
    }

    fn entries(&self, at: &Spot) -> io::Result<Vec<Spot>> {
        let mut found = Vec::new();
        let add = |entry: crate::volume::DirEntry| {
            if entry.name != b"." && entry.name != b".." {
                let path = at.path.join(OsStr::from_bytes(&entry.name));
                found.push(Spot { path, ino: entry.ino.0 });
            }
            Ok(true)
        };
        self.volume.readdir(Some(self.at), Ino(at.ino), 0, add).map_err(io_error)?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn target(&self, at: &Spot) -> io::Result<Vec<u8>> {
        self.volume.readlink(Some(self.at), Ino(at.ino)).map_err(io_error)
    }

    fn xattrs(&self, at: &Spot) -> io::Result<Xattrs> {
        let names = self.volume.listxattr(Some(self.at), Ino(at.ino)).map_err(io_error)?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names
            .map(|name| {
                let value = self.volume.getxattr(Some(self.at), Ino(at.ino), name).map_err(io_error)?;
                Ok((name.to_vec(), value))
            })
            .collect()
    }

    fn content(&self, at: &Spot, _size: u64) -> io::Result<Box<dyn Content + '_>> {
        Ok(Box::new(Bytes(self, Ino(at.ino))))
    }
}

/// Whether both have the same bytes, and where `theirs` ends.
pub(super) fn same_bytes(content: &mut dyn Content, size: u64, path: &Path) -> io::Result<bool> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if file.metadata()?.len() != size {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; super::BUFFER_BYTES], vec![0; super::BUFFER_BYTES]);
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(usize::MAX).min(super::BUFFER_BYTES);
        let (Some(a), Some(b)) = (ours.get_mut(..len), theirs.get_mut(..len)) else { return Ok(false) };
        content.read(at, a)?;
        file.read_exact_at(b, at)?;
        if a != b {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}
