//! Whether somebody without privilege may restore: nobody gets by it what the kernel would not let them do with
//! their own hands, and nobody's files are made, replaced or removed but their own.

use crate::store::index::View;
use crate::store::model::{Attrs, FileKind};
use crate::types::Ino;
use crate::volume::acl;
use crate::volume::user::{READ, SEARCH, User, WRITE};
use crate::volume::{FsError, FsResult, Volume};

fn denied<T>(what: &str, shown: &str) -> FsResult<T> {
    Err(FsError::Denied(format!("{what} {shown}")))
}

impl User {
    pub(super) fn owns(&self, attrs: &Attrs) -> bool {
        attrs.uid == self.uid
    }

    /// The bits on an object. Whoever is not its owner has none where an access list decides: a list can also
    /// take away, and it need not be followed to be safe.
    fn has(&self, volume: &Volume, view: &View, ino: Ino, attrs: &Attrs) -> FsResult<u16> {
        let listed = attrs.xattrs > 0 && view.xattr(ino, &volume.xattr_hash(acl::ACCESS))?.is_some();
        Ok(if listed && !self.owns(attrs) { 0 } else { self.by_mode(attrs) })
    }

    /// May pass through a directory.
    pub(super) fn searches(
        &self,
        (volume, view): (&Volume, &View),
        ino: Ino,
        attrs: &Attrs,
        shown: &str,
    ) -> FsResult<()> {
        let granted = self.has(volume, view, ino, attrs)?;
        if granted & SEARCH == 0 { denied("you may not search", shown) } else { Ok(()) }
    }

    /// May change the entries of a directory.
    pub(super) fn changes(
        &self,
        (volume, view): (&Volume, &View),
        ino: Ino,
        attrs: &Attrs,
        shown: &str,
    ) -> FsResult<()> {
        let wanted = WRITE | SEARCH;
        let granted = self.has(volume, view, ino, attrs)?;
        if granted & wanted != wanted { denied("you may not write in", shown) } else { Ok(()) }
    }

    /// May read what was there at the point.
    pub(super) fn reads(
        &self,
        (volume, view): (&Volume, &View),
        ino: Ino,
        attrs: &Attrs,
        shown: &str,
    ) -> FsResult<()> {
        let wanted = match attrs.kind {
            FileKind::Dir => READ | SEARCH,
            FileKind::Symlink => 0,
            _ => READ,
        };
        let granted = self.has(volume, view, ino, attrs)?;
        if granted & wanted != wanted { denied("you could not read", shown) } else { Ok(()) }
    }

    /// May make something with these attributes: nobody makes files of others.
    pub(super) fn makes(&self, attrs: &Attrs, shown: &str) -> FsResult<()> {
        if !self.owns(attrs) || !self.is_in(attrs.gid) {
            return denied("another user or group owned", shown);
        }
        if matches!(attrs.kind, FileKind::Char | FileKind::Block) {
            return denied("only root makes device nodes, as was", shown);
        }
        Ok(())
    }

    /// May remove, replace or set the attributes of what is there now.
    pub(super) fn replaces(&self, attrs: &Attrs, shown: &str) -> FsResult<()> {
        if self.owns(attrs) { Ok(()) } else { denied("another user owns", shown) }
    }

    /// The attributes that it makes something with.
    pub(super) fn limit(&self, attrs: &mut Attrs) {
        if attrs.kind != FileKind::Dir {
            attrs.mode &= !0o6000;
        }
    }
}
