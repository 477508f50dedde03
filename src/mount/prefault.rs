//! Memory that fuser reads requests into is made present before the kernel copies to it.
//!
//! A server that is killed while the kernel copies a request to a page that is not there yet loses the
//! request: the page fault of a dying process fails, and the program that asked gets EIO instead of a pause.
//! fuser allocates its buffers zeroed, which is to say not at all; so the allocator touches what a request can
//! fill.

use std::alloc::{GlobalAlloc, Layout, System};

/// What fuser 0.18 allocates for each thread that reads (`read_buf.rs`): 16 MiB and a page.
const BUFFER_BYTES: usize = (16 << 20) + 4096;
/// The largest request, its header, and what aligning moves.
const REQUEST_BYTES: usize = (1 << 20) + 4 * 4096;
const PAGE_BYTES: usize = 4096;

/// The system's allocator, but for fuser's buffers.
struct Prefault;

#[global_allocator]
static ALLOCATOR: Prefault = Prefault;

// SAFETY: every call goes to the system's allocator as it is; what is written lies within the new allocation,
// which is zeroed and stays so.
unsafe impl GlobalAlloc for Prefault {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let start = unsafe { System.alloc_zeroed(layout) };
        if layout.size() == BUFFER_BYTES && !start.is_null() {
            for at in (0..REQUEST_BYTES).step_by(PAGE_BYTES) {
                // SAFETY: within the allocation. Volatile, or the compiler knows that it is zero already.
                unsafe { start.add(at).write_volatile(0) };
            }
        }
        start
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_fusers_size_is_present() {
        let buffer = vec![0u8; BUFFER_BYTES];
        let page = buffer.as_ptr() as usize / PAGE_BYTES * PAGE_BYTES;
        let mut present = vec![0u8; REQUEST_BYTES / PAGE_BYTES];
        let start = std::ptr::with_exposed_provenance_mut(page);
        // SAFETY: asks about mapped memory, one byte of answer for each page.
        let done = unsafe { libc::mincore(start, REQUEST_BYTES, present.as_mut_ptr()) };
        assert_eq!(done, 0);
        assert!(present.iter().all(|p| p & 1 == 1), "a page is missing: has fuser's buffer another size?");
        assert!(buffer.iter().step_by(64).all(|b| *b == 0));
    }
}
