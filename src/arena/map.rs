//! A mapping of memory and the only unsafe access to it: single words as atomics, and runs of bytes that
//! their slot owns alone.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Mapped memory.
#[derive(Debug)]
pub(super) struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that lives as long as `Map`. Words are only reached as atomics; runs of
// bytes only through `Slot`, which owns its run, so the rules for references hold across threads.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Zeroed memory of this process alone; the kernel gives pages as they are touched.
    pub(super) fn private(len: usize) -> io::Result<Map> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let start =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Map { start: start.cast(), len })
    }

    /// The first `len` bytes of a file, shared with whoever maps it. They must be allocated: a missing page
    /// would be a SIGBUS.
    pub(super) fn shared(file: &File, len: usize) -> io::Result<Map> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: as above; nobody cuts the file, which belongs to us and has mode 0600.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Map { start: start.cast(), len })
    }

    /// The word at byte `at`, a multiple of 8.
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len, "a word inside the arena");
        // SAFETY: in bounds and aligned, and words are reached as atomics only.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// Copies `data` to byte `at`. The caller owns these bytes.
    pub(super) fn put(&self, at: usize, data: &[u8]) {
        assert!(at <= self.len && data.len() <= self.len - at, "bytes inside the arena");
        // SAFETY: in bounds; `data` is no memory of the arena's that the caller may write, and no reference
        // to the target exists while its owner writes.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.start.as_ptr().add(at), data.len()) };
    }

    /// The bytes from `at` on. The caller owns them and lets nobody write them while it looks.
    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at <= self.len && len <= self.len - at, "bytes inside the arena");
        // SAFETY: in bounds, always initialised (mapped memory), and not written meanwhile, says the caller.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; no reference outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
