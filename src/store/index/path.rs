//! Paths from inode numbers.

use super::View;
use crate::types::limits::PATH_DEPTH_MAX;
use crate::types::{Ino, Result};

impl View {
    /// The path of an inode from the root, without a `/` in front; empty for the root. Of several names it is the
    /// one given last. `None` for what has no name, or of which the name is not remembered.
    pub fn path(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut here = ino;
        while here != Ino::ROOT {
            let Some(inode) = self.inode(here)? else { return Ok(None) };
            let (parent, hash) = (inode.item.attrs.parent, inode.item.attrs.name);
            match self.dirent(parent, &hash)?.filter(|entry| entry.ino == here) {
                Some(entry) if names.len() < PATH_DEPTH_MAX => names.push(entry.name),
                _ => return Ok(None),
            }
            here = parent;
        }
        names.reverse();
        Ok(Some(names.join(&b'/')))
    }
}
