//! What a restore in place leaves alone: live items that are excluded were not there at any point, but nothing
//! could bring them back.

use super::plan::{Dir, Planner, shown};
use super::walk::Entries;
use crate::store::model::{Dirent, FileKind};
use crate::types::Ino;
use crate::volume::{FsError, FsResult, Volume};

impl Volume {
    /// Makes a directory that is to hold a copy ordinary. Whether that changed something.
    pub(super) fn shows(&self, dir: Ino) -> FsResult<bool> {
        let _gate = self.enter();
        let _names = self.namespace.lock();
        let excluded = self.inode(None, dir)?.item.attrs.excluded;
        if excluded {
            self.reveal_above(dir)?;
        }
        Ok(excluded)
    }
}

impl Planner<'_> {
    /// Whether nothing may take away what is there now, as a whole.
    fn is_kept(&self, now: &Dirent) -> FsResult<bool> {
        Ok(now.excluded || (now.kind == FileKind::Dir && self.volume.holds_excluded(now.ino)?))
    }

    /// Fails where what is there now would have to go as a whole, and must not.
    pub(super) fn check_may_go(&self, now: Option<&Dirent>) -> FsResult<()> {
        let Some(now) = now else { return Ok(()) };
        if !self.is_kept(now)? {
            return Ok(());
        }
        let (name, place) = (String::from_utf8_lossy(&now.name), shown(&self.restore.path));
        Err(FsError::Refused(format!(
            "{name} (in {place}) is in the way: it is excluded from the history or holds what is, and nothing could \
             bring that back; move it away first"
        )))
    }

    /// Whether two directories are compared by what is in them, and not one put in the place of the other.
    pub(super) fn looks_into(&self, source: &Dirent, now: &Dirent) -> FsResult<bool> {
        let dirs = source.kind == FileKind::Dir && now.kind == FileKind::Dir && !now.excluded;
        Ok(dirs && (!self.whole || self.is_kept(now)?))
    }

    /// Takes away what was not there at the point; a directory that holds something excluded stays, with only that.
    pub(super) fn remove(&mut self, dir: Dir, now: Dirent) -> FsResult<()> {
        if !self.is_kept(&now)? {
            return self.remove_whole(dir, now);
        }
        let mut left = if now.excluded { Vec::new() } else { vec![now.ino] };
        while let Some(dir) = left.pop() {
            let mut entries = Entries::of(dir);
            while let Some((_, now)) = entries.next(&self.live)? {
                if !self.is_kept(&now)? {
                    self.remove_whole((dir, None), now)?;
                } else if !now.excluded {
                    left.push(now.ino);
                }
            }
        }
        Ok(())
    }
}
