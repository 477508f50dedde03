//! Directories read as the kernel gives them: buffer by buffer, with positions.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// An entry with the position behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `d_ino`.
    pub ino: u64,
    /// `d_off`: where the listing goes on.
    pub next: i64,
    /// `d_type`.
    pub kind: u8,
    /// The name's bytes.
    pub name: Vec<u8>,
}

/// An open directory.
pub struct Listing(pub File);

impl Listing {
    /// Opens one, at its start.
    pub fn open(dir: &Path) -> io::Result<Listing> {
        File::open(dir).map(Listing)
    }

    /// One `getdents64` into a buffer of that size; none at the end.
    pub fn next(&self, buffer: usize) -> io::Result<Vec<Entry>> {
        // Of words, so that every entry is aligned.
        let mut words = vec![0u64; buffer / 8];
        // SAFETY: the buffer has at least the size given.
        let len = unsafe {
            libc::syscall(libc::SYS_getdents64, self.0.as_raw_fd(), words.as_mut_ptr(), words.len() * 8)
        };
        let len = Errno::result(len)? as usize;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take(len).collect();
        let mut rest = &bytes[..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let number = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
            let size = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = CStr::from_bytes_until_nul(&rest[19..size]).expect("names end with NUL");
            let name = name.to_bytes().to_vec();
            entries.push(Entry { ino: number(0), next: number(8) as i64, kind: rest[18], name });
            rest = &rest[size..];
        }
        Ok(entries)
    }

    /// All that follows, by buffers of that size.
    pub fn rest(&self, buffer: usize) -> io::Result<Vec<Entry>> {
        let mut all = Vec::new();
        loop {
            let more = self.next(buffer)?;
            if more.is_empty() {
                return Ok(all);
            }
            all.extend(more);
        }
    }

    /// Goes to a position that an entry named, or to 0.
    pub fn seek(&self, to: i64) -> io::Result<()> {
        Ok(lseek(&self.0, to, Whence::SeekSet).map(drop)?)
    }
}

/// Everything in a directory, dots included.
pub fn listed(dir: &Path) -> io::Result<Vec<Entry>> {
    Listing::open(dir)?.rest(32 * 1024)
}
