//! The disk seam: journal and packs reach the filesystem below only through [`Disk`], so that a test can
//! lose unsynced writes, tear the last one, fill the disk or return EIO at any operation.

#[cfg(test)]
pub(crate) mod faulty;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// An open file. All methods may be called from several threads at once.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`, growing the file as needed. Durable only after a sync.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`; a shorter file is [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    let (_, rest) = std::mem::take(&mut buf).split_at_mut(n);
                    buf = rest;
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }
}

/// A directory tree of files.
pub trait Disk: Send + Sync {
    /// Makes a file that must not exist yet, mode 0600, open for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file for reading, and for writing too if asked.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// The names in a directory, in no particular order.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes creations, removals and renames in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes a directory, mode 0700; an existing one is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// How large the filesystem of `dir` is and what of it is free. A disk that cannot tell has room for all.
    fn space(&self, _dir: &Path) -> io::Result<Space> {
        Ok(Space { total: u64::MAX, free: u64::MAX, usable: u64::MAX })
    }
    /// Makes a file of `len` bytes, mode 0600, for which room is taken on the disk; an existing one gets what
    /// it lacks. Nothing is written to it.
    fn set_aside(&self, _path: &Path, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The size of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it, in bytes.
    pub total: u64,
    /// What a process without privileges may still write, in bytes.
    pub free: u64,
    /// What this process may still write, in bytes: more, where some is kept for root and that is who it is.
    pub usable: u64,
}

/// What ext4 keeps for its own purposes: a fiftieth of all blocks, a little more to be sure, but not more than so many.
const EXT4_RESERVED_PART: u64 = 48;
const EXT4_RESERVED_BLOCKS_MAX: u64 = 4096;

/// The operating system's filesystem.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl DiskFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, buf, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                r => return r,
            }
        }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(write).open(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            r => r,
        }
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let found = nix::sys::statvfs::statvfs(dir)?;
        let unit = found.fragment_size();
        let free = found.blocks_available().saturating_mul(unit);
        // ext4 leaves to root what it keeps for him, but not its own reserve (`reserved_clusters` of ext4(5)). What others
        // count in `f_bfree` may be nobody's to use.
        let is_ext4 = nix::sys::statfs::statfs(dir)?.filesystem_type() == nix::sys::statfs::EXT4_SUPER_MAGIC;
        let usable = if is_ext4 && nix::unistd::geteuid().is_root() {
            let own = (found.blocks() / EXT4_RESERVED_PART).min(EXT4_RESERVED_BLOCKS_MAX);
            found.blocks_free().saturating_sub(own).saturating_mul(unit).max(free)
        } else {
            free
        };
        Ok(Space { total: found.blocks().saturating_mul(unit), free, usable })
    }

    fn set_aside(&self, path: &Path, len: u64) -> io::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let len = i64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, len)?)
    }
}

/// Writes a small file so that after a crash either the old or the new content is there: a temporary
/// file, a sync, a rename and a sync of the directory.
pub fn replace_file(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    let temporary = dir.join(temporary);
    match disk.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = disk.create(&temporary)?;
    let written = file.write_all_at(content, 0).and_then(|()| file.sync_data());
    // On a full disk the half of a file is the last thing that should stay.
    written.and_then(|()| disk.rename(&temporary, path)).inspect_err(|_| drop(disk.remove(&temporary)))?;
    disk.sync_dir(dir)
}

/// Reads a whole file of at most `max` bytes; a larger one is [`io::ErrorKind::InvalidData`].
pub fn read_file(disk: &dyn Disk, path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(path, false)?;
    let len = usize::try_from(file.len()?).ok().filter(|&n| n <= max);
    let mut content = vec![0; len.ok_or(io::ErrorKind::InvalidData)?];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}
