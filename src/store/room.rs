//! Room on the disk. Some of it is kept back in a file of its own ([`Layout::reserve`](super::Layout)): when
//! the filesystem is full, what frees space gives that file up and goes on, and everything else is refused
//! until it could be taken back.
//!
//! A file and not a sum of `statvfs`, because others fill the same filesystem.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::model::{Edit, Source};
use crate::types::error::IoContext;
use crate::types::{Disk, Error, Result};

/// The reserve is at most this part of the filesystem.
const RESERVE_PART: u64 = 16;
/// A pack is at most this part of the reserve: what is given up is enough to copy what any pack still holds, and as
/// much again for the index and the checkpoints that must forget the pack.
const PACK_PART: u64 = 2;
/// Smallest size at which packs are closed.
const PACK_BYTES_MIN: u64 = 1 << 20;
/// Free space, beside the reserve, from which on a disk that was full counts as one that is not.
const SLACK_BYTES: u64 = 1 << 20;

/// What a change does to the space that the store takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It gives space back, now or once the background has worked off what it leaves.
    Frees,
    /// Next to nothing: attributes. May go on with half of the reserve, so that a `chmod` of everything does
    /// not keep anyone from deleting.
    Keeps,
    /// It needs more.
    Grows,
}

impl Use {
    /// What a record of these edits does.
    pub(super) fn of(edits: &[Edit]) -> Use {
        let mut result = Use::Keeps;
        for edit in edits {
            match edit {
                Edit::PutDirent { .. }
                | Edit::PutXattr { .. }
                | Edit::Rebind { .. }
                | Edit::SnapshotCreate { .. }
                | Edit::VolumeCreate { .. } => return Use::Grows,
                Edit::PatchBlock { pieces, .. } if pieces.iter().any(|p| p.source != Source::Hole) => {
                    return Use::Grows;
                }
                Edit::PutInode { .. } | Edit::SnapshotHold { .. } => {}
                _ => result = Use::Frees,
            }
        }
        result
    }
}

/// How nearly full the disk is, as whoever looks at it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// There is history or dead space that could be given back.
    pub yields: bool,
    /// So little is free that programs are to wait for that.
    pub tight: bool,
    /// Seconds of history that stay although room is wanted.
    pub spared: u64,
}

/// The room of one store.
pub(super) struct Room {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    file: PathBuf,
    /// Size of the reserve; 0: there is none.
    bytes: u64,
    /// Whether the reserve is there. Changed under `change`.
    held: AtomicBool,
    /// How many wait for somebody to go on with what was given up: it is not taken back meanwhile.
    lent: AtomicUsize,
    /// Whether something found no room, and none was seen since.
    full: AtomicBool,
    /// Whether less is free than is to be: space is given back sooner.
    wanted: AtomicBool,
    /// Whether so little is free that programs are to wait for what is being given back.
    tight: AtomicBool,
    /// Whether there is history or dead space that could be given back.
    yields: AtomicBool,
    /// Seconds of history that stay although room is wanted.
    spared: AtomicU64,
    /// One thread gives up or takes back. Innermost of all locks.
    change: Mutex<()>,
}

impl Room {
    /// The room for the store in `root`, with a reserve of up to `wanted` bytes in `file`; where nothing is
    /// to be written there is none, and `file` is left alone.
    ///
    /// # Errors
    /// [`Error::Io`] when the filesystem cannot be asked, or a reserve that is not wanted not be removed.
    pub(super) fn open(disk: Arc<dyn Disk>, root: &Path, file: &Path, wanted: Option<u64>) -> Result<Room> {
        let total = disk.space(root).at("measuring the filesystem of", root)?.total;
        let room = Room {
            bytes: wanted.unwrap_or(0).min(total / RESERVE_PART),
            held: AtomicBool::new(false),
            lent: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            tight: AtomicBool::new(false),
            yields: AtomicBool::new(false),
            spared: AtomicU64::new(u64::MAX),
            change: Mutex::new(()),
            root: root.to_owned(),
            file: file.to_owned(),
            disk,
        };
        if wanted.is_some() && room.bytes == 0 {
            room.remove_file().at("removing", &room.file)?;
        }
        Ok(room)
    }

    fn remove_file(&self) -> io::Result<()> {
        match self.disk.remove(&self.file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Bytes that can be written beside the reserve; none where the filesystem does not tell.
    pub(super) fn free(&self) -> u64 {
        self.disk.space(&self.root).map_or(0, |space| space.usable)
    }

    /// The size at which packs are to be closed, if not at `most`.
    pub(super) fn pack_bytes(&self, most: u64) -> u64 {
        if self.bytes == 0 { most } else { most.min((self.bytes / PACK_PART).max(PACK_BYTES_MIN)) }
    }

    fn held(&self) -> bool {
        self.bytes == 0 || self.held.load(Ordering::Acquire)
    }

    /// Takes the reserve, if it is not held and there is room for it. Returns whether it is held.
    pub(super) fn take(&self) -> bool {
        if self.held() {
            return true;
        }
        let _one = self.change.lock();
        if self.held() {
            return true;
        }
        if self.lent.load(Ordering::Acquire) > 0 {
            return false;
        }
        // A reserve that an earlier server left counts as used already.
        let there = self.disk.open(&self.file, false).and_then(|f| f.len()).unwrap_or(0);
        if there < self.bytes && self.free() < self.bytes.saturating_add(SLACK_BYTES) {
            return false;
        }
        match self.disk.set_aside(&self.file, self.bytes) {
            Ok(()) => {}
            // Where room cannot be set aside, being refused for want of it is all that is left.
            Err(e) if is_unsupported(&e) => drop(self.remove_file()),
            Err(e) => {
                tracing::debug!(error = %e, "the reserve cannot be taken");
                let _ = self.remove_file();
                return false;
            }
        }
        self.held.store(true, Ordering::Release);
        true
    }

    /// Gives the reserve up. Returns whether that made room.
    pub(super) fn give_up(&self) -> bool {
        let _one = self.change.lock();
        if self.bytes == 0 || !self.held.swap(false, Ordering::AcqRel) {
            return false;
        }
        self.full.store(true, Ordering::Release);
        match self.remove_file() {
            Ok(()) => {
                tracing::warn!(
                    bytes = self.bytes,
                    "the disk is full: deleting goes on with what was kept back"
                );
                true
            }
            Err(e) => {
                tracing::error!(error = %e, "the reserve cannot be given up");
                false
            }
        }
    }

    /// Whether a change may begin. What it then needs may still not be there.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn admit(&self, what: Use) -> Result<()> {
        let enough = match what {
            Use::Frees => true,
            Use::Keeps => self.held() || self.free() >= self.bytes / 2,
            Use::Grows => self.held() || self.take(),
        };
        if enough { Ok(()) } else { Err(self.none("what is left of the disk is kept for deleting")) }
    }

    /// Whether more data may be taken from programs: not while the last attempt to store some found no room.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn admit_data(&self) -> Result<()> {
        if self.is_full() { Err(self.none(&self.root.display().to_string())) } else { Ok(()) }
    }

    /// Whether the index may write `bytes` without touching what deleting needs.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn spare(&self, bytes: u64) -> Result<()> {
        if self.has(bytes) { Ok(()) } else { Err(self.none("the index")) }
    }

    /// Whether `bytes` can be written without touching what deleting needs.
    pub(super) fn has(&self, bytes: u64) -> bool {
        let lent = self.lent.load(Ordering::Acquire) > 0;
        let kept = if self.held() || lent { 0 } else { self.bytes / 2 };
        self.free() >= bytes.saturating_add(kept)
    }

    /// Sees to it that `bytes` can be written that the store cannot do without, giving the reserve up if
    /// that helps.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn make(&self, bytes: u64) -> Result<()> {
        let free = self.free();
        if free >= bytes {
            return Ok(());
        }
        let kept = if self.held() { self.bytes } else { 0 };
        if free.saturating_add(kept) >= bytes && self.give_up() {
            return Ok(());
        }
        Err(self.none("the index"))
    }

    /// Keeps what is given up from being taken back, until the guard is dropped: whoever looks at the free space
    /// meanwhile would find enough of it to take, and he who needs it none again.
    pub(super) fn lend(self: &Arc<Room>) -> Lent {
        self.lent.fetch_add(1, Ordering::AcqRel);
        Lent(self.clone())
    }

    /// On a full disk: room for `bytes` that give back more than that, out of the reserve if need be; none where that
    /// does not help.
    pub(super) fn lend_for(self: &Arc<Room>, bytes: u64) -> Option<Lent> {
        let lent = self.lend();
        (self.is_full() && self.make(bytes).is_ok()).then_some(lent)
    }

    /// Something found no room. Who comes after it waits, if there is something to wait for.
    fn found_none(&self) {
        self.full.store(true, Ordering::Release);
        if self.yields.load(Ordering::Relaxed) {
            self.tight.store(true, Ordering::Relaxed);
        }
    }

    fn none(&self, what: &str) -> Error {
        self.found_none();
        Error::NoSpace(what.to_owned())
    }

    /// Remembers that something found no room.
    pub(super) fn noticed<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::NoSpace(_)) = &result {
            self.found_none();
        }
        result
    }

    /// Says whether less is free than is to be.
    pub(super) fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Says how the disk is.
    pub(super) fn press(&self, pressure: Pressure) {
        let Pressure { yields, tight, spared } = pressure;
        self.yields.store(yields, Ordering::Relaxed);
        self.tight.store(tight, Ordering::Relaxed);
        self.spared.store(spared, Ordering::Relaxed);
    }

    /// Whether programs are to wait for what is being given back.
    pub(super) fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// Seconds of history that stay although room is wanted: none on a disk that is full to the end, which is worse.
    pub(super) fn spared(&self) -> u64 {
        if self.is_full() { 0 } else { self.spared.load(Ordering::Relaxed) }
    }

    /// Whether space is to be given back soon.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) || self.is_full()
    }

    /// Whether something found no room and there is none yet.
    pub(super) fn is_full(&self) -> bool {
        if !self.full.load(Ordering::Acquire) {
            return false;
        }
        let full = !self.take() || self.free() < SLACK_BYTES;
        if !full {
            self.full.store(false, Ordering::Release);
        }
        full
    }

    /// What an operator should know.
    pub(super) fn problem(&self) -> Option<String> {
        let free = self.is_full().then(|| self.free())?;
        Some(format!(
            "the disk below {} is full ({free} bytes are free): deleting works, writing does not until there is room",
            self.root.display()
        ))
    }
}

/// See [`Room::lend`].
pub(super) struct Lent(Arc<Room>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::AcqRel);
    }
}

fn is_unsupported(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::Unsupported || e.raw_os_error() == Some(libc::EOPNOTSUPP)
}
