//! Directory streams.

use super::{FsError, FsResult, Volume};
use crate::store::model::FileKind;
use crate::types::{Ino, Lsn};

/// An entry of a directory stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// The name.
    pub name: Vec<u8>,
    /// Where the stream goes on behind it.
    pub cookie: u64,
}

/// Cookies below this are for `.` and `..`.
const FIRST: u64 = 2;

/// The cookie behind an entry: the top 62 bits of its name hash. It stays valid whatever comes and goes.
fn cookie(hash: &[u8; 16]) -> u64 {
    hash.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b) >> 2) + FIRST + 1
}

/// The first hash behind a cookie.
fn hash_after(cookie: u64) -> Option<[u8; 16]> {
    let top = cookie.saturating_sub(FIRST);
    (top < 1 << 62).then(|| {
        let mut hash = [0; 16];
        if let Some(start) = hash.first_chunk_mut::<8>() {
            *start = (top << 2).to_be_bytes();
        }
        hash
    })
}

impl Volume {
    /// The directory that a live directory is in, and its name there; none for one that was removed.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`].
    pub fn name_of(&self, dir: Ino) -> FsResult<Option<(Ino, Vec<u8>)>> {
        let attrs = self.inode(None, dir)?.item.attrs;
        if attrs.kind != FileKind::Dir {
            return Err(FsError::NotDir);
        }
        let entry = self.view(None).dirent(attrs.parent, &attrs.name)?;
        Ok(entry.filter(|entry| entry.ino == dir).map(|entry| (attrs.parent, entry.name)))
    }

    /// Visits a directory's entries behind `cookie` (0: from the start, `.` and `..` first) while `visit`
    /// says true. An entry that was there all the time is met exactly once, whatever changes meanwhile.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`].
    pub fn readdir(
        &self,
        at: Option<Lsn>,
        dir: Ino,
        from: u64,
        mut visit: impl FnMut(DirEntry) -> FsResult<bool>,
    ) -> FsResult<()> {
        let attrs = self.inode(at, dir)?.item.attrs;
        if attrs.kind != FileKind::Dir {
            return Err(FsError::NotDir);
        }
        for (cookie, name, ino) in [(1, b".".as_slice(), dir), (FIRST, b"..", attrs.parent)] {
            if from < cookie && !visit(DirEntry { ino, kind: FileKind::Dir, name: name.to_vec(), cookie })? {
                return Ok(());
            }
        }
        let Some(start) = hash_after(from.max(FIRST)) else { return Ok(()) };
        let mut failed = None;
        // One entry is held back: where two share a cookie, the first must not claim to be the end of both.
        let mut held: Option<DirEntry> = None;
        let mut open = true;
        self.view(at).readdir(dir, &start, |hash, dirent| {
            let next =
                DirEntry { ino: dirent.ino, kind: dirent.kind, name: dirent.name, cookie: cookie(&hash) };
            if let Some(mut entry) = held.take() {
                if entry.cookie == next.cookie {
                    entry.cookie -= 1;
                }
                match visit(entry) {
                    Ok(more) => open = more,
                    Err(e) => {
                        failed = Some(e);
                        open = false;
                    }
                }
            }
            held = Some(next);
            Ok(open)
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        if let Some(entry) = held.filter(|_| open) {
            visit(entry)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stream_goes_on_behind_the_entry_it_stopped_at(hash: [u8; 16], other: [u8; 16]) {
            let start = hash_after(cookie(&hash));
            prop_assert!(start.is_none_or(|s| s > hash));
            if cookie(&other) > cookie(&hash) {
                prop_assert!(start.is_some_and(|s| s <= other));
            }
        }
    }
}
