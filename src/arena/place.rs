//! Where the arena lies: finding the one that a store's last server left, making a new one, putting a stale
//! one aside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;

use super::map::Map;
use super::{Arena, Files, MAGIC, Shape};
use crate::types::ids::{hex, unhex};
use crate::types::{Error, NodeUuid, Result, error::IoContext};

/// The file in the store that names the arena which belongs to it.
const SESSION: &str = "session";
/// An arena may be made smaller than asked for where tmpfs is small, down to this.
const CAPACITY_MIN: u64 = 8 << 20;
/// Words of the header: magic (2), slabs, the id (2).
const SLABS: usize = 16;
const ID: usize = 24;

/// An arena and what is to be said about how it was found.
#[derive(Debug)]
pub struct Opened {
    /// The arena.
    pub arena: Arc<Arena>,
    /// What an operator should know: acknowledged writes that could not be taken up, or no tmpfs.
    pub problem: Option<String>,
}

/// Directories in memory that outlive a process, the best first.
fn directories() -> Vec<PathBuf> {
    let mut dirs = vec![PathBuf::from("/dev/shm")];
    if geteuid().is_root() {
        dirs.push(PathBuf::from("/run"));
    } else if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR") {
        dirs.push(PathBuf::from(dir));
    }
    dirs.retain(|dir| dir.is_absolute() && statfs(dir).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC));
    dirs
}

fn file_name(node: NodeUuid) -> String {
    format!("rewindfs-{node}")
}

/// The arena that a server of the store in `root` left, if there is one, and how many bytes of acknowledged
/// writes are in it. It is only looked at.
pub fn pending(root: &Path, node: NodeUuid) -> Option<(PathBuf, u64)> {
    let id = fs::read_to_string(root.join(SESSION)).ok().and_then(|text| unhex::<16>(text.trim()))?;
    directories().into_iter().find_map(|dir| {
        let path = dir.join(file_name(node));
        let (arena, found) = existing(&path).ok().flatten()?;
        (found == id).then(|| (path, arena.bytes_left()))
    })
}

/// An arena of ours at `path` and its id. None when there is nothing, or nothing of this kind.
///
/// # Errors
/// Something of another user's lies there.
fn existing(path: &Path) -> io::Result<Option<(Arena, [u8; 16])>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 || meta.nlink() != 1 {
        return Err(io::Error::other(format!("{} is not ours", path.display())));
    }
    let len = usize::try_from(meta.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    if len < (Shape { slabs: 1 }).bytes() {
        return Ok(None);
    }
    let map = Map::shared(&file, len)?;
    let word = |at: usize| map.word(at).load(Ordering::Acquire);
    let slabs = usize::try_from(word(SLABS)).unwrap_or(usize::MAX);
    // Bounded by the file's length, so that the multiplication in `bytes` cannot overflow.
    let whole = slabs >= 1 && slabs <= len && Shape { slabs }.bytes() == len;
    if [word(0), word(8)] != MAGIC || !whole {
        return Ok(None);
    }
    let mut id = [0; 16];
    for (place, half) in id.chunks_exact_mut(8).zip([word(ID), word(ID + 8)]) {
        place.copy_from_slice(&half.to_le_bytes());
    }
    Ok(Some((Arena::over(map, Shape { slabs }, None), id)))
}

/// A new arena at `path`, which nothing may lie at.
fn make(path: &Path, capacity: u64, id: [u8; 16]) -> io::Result<Arena> {
    let shape = Shape::for_bytes(capacity);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let made = fill(&file, shape, id);
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    Ok(Arena::over(made?, shape, None))
}

fn fill(file: &File, shape: Shape, id: [u8; 16]) -> io::Result<Map> {
    let len = shape.bytes();
    // All of it now: a page that tmpfs cannot give later would be a SIGBUS in the middle of a write.
    fallocate(file, FallocateFlags::empty(), 0, len as i64)?;
    let map = Map::shared(file, len)?;
    map.word(SLABS).store(shape.slabs as u64, Ordering::Relaxed);
    for (at, half) in [ID, ID + 8].into_iter().zip(id.chunks_exact(8)) {
        let half = half.try_into().map(u64::from_le_bytes).map_err(io::Error::other)?;
        map.word(at).store(half, Ordering::Relaxed);
    }
    map.word(8).store(MAGIC[1], Ordering::Relaxed);
    map.word(0).store(MAGIC[0], Ordering::Release);
    Ok(map)
}

/// Takes up the arena of the store in `root`, or makes one for `capacity` bytes. The caller has the store
/// open for writing, so nobody else does this.
///
/// # Errors
/// The store's directory cannot be written. No tmpfs is not an error: the arena is volatile then.
pub fn open(root: &Path, node: NodeUuid, capacity: u64) -> Result<Opened> {
    let session = root.join(SESSION);
    let expected = match fs::read_to_string(&session) {
        Ok(text) => unhex::<16>(text.trim()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io("reading", &session, e)),
    };
    let mut problem = None;
    for dir in directories() {
        let path = dir.join(file_name(node));
        match existing(&path) {
            Ok(Some((mut arena, id))) if expected == Some(id) => {
                arena.files = Some(Files { arena: path, session });
                return Ok(Opened { arena: Arc::new(arena), problem });
            }
            Ok(Some((arena, _))) => problem = put_aside(&path, arena).or(problem),
            // Not an arena, or one whose making was interrupted.
            Ok(None) => drop(fs::remove_file(&path)),
            Err(e) => tracing::warn!(path = %path.display(), error = %e, "no arena there"),
        }
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::other).at("drawing random bytes for", root)?;
    for dir in directories() {
        let path = dir.join(file_name(node));
        let mut size = capacity.max(CAPACITY_MIN);
        let made = loop {
            match make(&path, size, id) {
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && size / 2 >= CAPACITY_MIN => size /= 2,
                made => break made,
            }
        };
        match made {
            Ok(mut arena) => {
                // The next opening must not find half a name; without a sync, which only a power cut needs.
                let new = root.join("session.new");
                fs::write(&new, hex(&id)).at("writing", &new)?;
                fs::rename(&new, &session).at("renaming", &session)?;
                arena.files = Some(Files { arena: path, session });
                return Ok(Opened { arena: Arc::new(arena), problem });
            }
            Err(e) => tracing::warn!(path = %path.display(), error = %e, "no arena there"),
        }
    }
    let arena = Arena::volatile(capacity).at("mapping memory for", root)?;
    let text =
        "there is no room in tmpfs (/dev/shm), so every write is journaled before it is answered: slow";
    Ok(Opened { arena, problem: Some(problem.unwrap_or_else(|| text.to_owned())) })
}

/// Keeps a stale arena that holds something beside its place, for a human.
fn put_aside(path: &Path, arena: Arena) -> Option<String> {
    let arena = Arc::new(arena);
    let left = arena.recover_slots(crate::types::Lsn::ZERO);
    let bytes: usize = left.iter().map(|r| r.slot.len()).sum();
    // Looking at it must not empty it.
    let _ = ManuallyDrop::new(left);
    if bytes == 0 {
        let _ = fs::remove_file(path);
        return None;
    }
    let aside = path.with_extension("stale");
    let _ = fs::rename(path, &aside);
    Some(format!(
        "{bytes} bytes that were acknowledged and never fsynced were not taken up, because the store was opened \
         elsewhere since; they are kept in {}",
        aside.display()
    ))
}
