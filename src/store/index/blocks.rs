//! What `apply` does to the blocks of files: patches, cuts and their reaping, other representations.

use super::keys::{self, meta};
use super::txn::Txn;
use super::{Index, damaged};
use crate::store::model::{Cut, Edit, Inode, Piece, Recipe};
use crate::types::limits::{CUTS_MAX, DIRECT_REMOVE_BLOCKS_MAX};
use crate::types::{Error, Ino, Lsn, Result, VolumeId};

/// From so many patches on, one look at a range of blocks costs less than one at each.
const PATCHES_READ_TOGETHER: usize = 4;

impl Txn<'_> {
    /// Patches blocks of one inode, which is read and written once for all of them.
    pub(super) fn patch_blocks(&mut self, vol: VolumeId, ino: Ino, patches: &[Edit]) -> Result<()> {
        let pieces = patches.iter().flat_map(|patch| match patch {
            Edit::PatchBlock { pieces, .. } => pieces.as_slice(),
            _ => &[],
        });
        self.read_chunks(pieces.filter_map(Piece::chunk).copied().collect())?;
        self.read_patched(vol, ino, patches)?;
        let inode = self.inode(vol, ino)?;
        let (mut added, mut removed) = (0, 0);
        for patch in patches {
            if let Edit::PatchBlock { block, offset, pieces, .. } = patch {
                let cut = inode.as_ref().map_or(Lsn::ZERO, |i| i.cut_at(*block));
                let (has, had) = self.patch_block(&keys::block(vol, ino, *block), cut, *offset, pieces)?;
                added += has;
                removed += had;
            }
        }
        self.add_data_bytes(vol, ino, added, removed)
    }

    /// Reads the heads of the blocks together where most of a range is patched.
    fn read_patched(&mut self, vol: VolumeId, ino: Ino, patches: &[Edit]) -> Result<()> {
        let block = |patch: &Edit| match patch {
            Edit::PatchBlock { block, .. } => Some(*block),
            _ => None,
        };
        let first = patches.iter().filter_map(block).min().unwrap_or(0);
        let last = patches.iter().filter_map(block).max().unwrap_or(0);
        if patches.len() < PATCHES_READ_TOGETHER || last - first >= 2 * patches.len() as u64 {
            return Ok(());
        }
        self.read_heads(keys::block(vol, ino, first), keys::block(vol, ino, last + 1))
    }

    /// Returns how many data bytes the block has now, and had.
    fn patch_block(&mut self, key: &[u8], cut: Lsn, offset: u32, pieces: &[Piece]) -> Result<(u64, u64)> {
        let old = self.head_item::<Recipe>(key)?;
        let removed = old.as_ref().map_or(0, |(_, recipe)| recipe.data_bytes());
        // A version from before a cut is already over; it only was not reaped yet.
        let (base, end) = match old {
            Some((since, _)) if since < cut => (Recipe::default(), cut),
            Some((_, recipe)) => (recipe, self.lsn),
            None => (Recipe::default(), self.lsn),
        };
        let new = base.overlay(offset, pieces);
        self.put_block(key, &new, end)?;
        Ok((new.data_bytes(), removed))
    }

    fn inode(&mut self, vol: VolumeId, ino: Ino) -> Result<Option<Inode>> {
        Ok(self.head_item::<Inode>(&keys::inode(vol, ino))?.map(|(_, inode)| inode))
    }

    /// Changes the inode's data bytes without making a new version.
    fn add_data_bytes(&mut self, vol: VolumeId, ino: Ino, added: u64, removed: u64) -> Result<()> {
        if added == removed {
            return Ok(());
        }
        if let Some(mut inode) = self.inode(vol, ino)? {
            inode.data_bytes = inode.data_bytes.saturating_add(added).saturating_sub(removed);
            self.amend(&keys::inode(vol, ino), &inode)?;
        }
        Ok(())
    }

    /// Ends the head of a block at `end`; returns its data bytes.
    fn drop_block(&mut self, key: &[u8], end: Lsn) -> Result<u64> {
        match self.delete(key, end)? {
            Some(old) => Ok(self.public_recipe(key, &old)?.data_bytes()),
            None => Ok(0),
        }
    }

    pub(super) fn drop_blocks(&mut self, vol: VolumeId, ino: Ino, from: u64, to: u64) -> Result<()> {
        if to.saturating_sub(from) > DIRECT_REMOVE_BLOCKS_MAX {
            return Err(Error::corrupt(
                "record",
                format!("lsn {}", self.lsn),
                "too many blocks dropped at once",
            ));
        }
        let inode = self.inode(vol, ino)?;
        let mut removed = 0;
        for block in from..to {
            let key = keys::block(vol, ino, block);
            let cut = inode.as_ref().map_or(Lsn::ZERO, |i| i.cut_at(block));
            let since = self.head(&key)?.map(|s| s.since);
            let end = if since.is_some_and(|s| s < cut) { cut } else { self.lsn };
            removed += self.drop_block(&key, end)?;
        }
        self.add_data_bytes(vol, ino, 0, removed)
    }

    pub(super) fn cut(&mut self, vol: VolumeId, ino: Ino, from: u64, to: u64) -> Result<()> {
        // The row outlives the inode: of an inode that is gone, all blocks up to `to` go.
        let head = self.head_item::<Inode>(&keys::inode(vol, ino))?;
        let excluded = head.as_ref().is_some_and(|(_, inode)| inode.attrs.excluded);
        self.put_row(meta::reap(vol, self.lsn, ino), reap_row(from, to, excluded))?;
        // A version that began earlier is about to end with this record; at its own points nothing was cut.
        let head = head.filter(|(since, _)| *since == self.lsn || excluded);
        if let Some((_, mut inode)) = head {
            if inode.cuts.len() >= CUTS_MAX {
                return Err(Error::corrupt("record", format!("lsn {}", self.lsn), "too many cuts"));
            }
            inode.cuts.push(Cut { from, to, lsn: self.lsn });
            self.amend(&keys::inode(vol, ino), &inode)?;
        }
        Ok(())
    }

    pub(super) fn reap(&mut self, vol: VolumeId, ino: Ino, cut: Lsn, items: usize) -> Result<()> {
        let row = meta::reap(vol, cut, ino);
        let Some((from, to, excluded)) = self.index.reap_range(&row)? else { return Ok(()) };
        let below = keys::block(vol, ino, to);
        let found = self.index.keys_between(super::HEADS, &keys::block(vol, ino, from), &below, items)?;
        let mut removed = 0;
        self.unkept = excluded;
        for key in &found {
            if self.head(key)?.is_some_and(|s| s.since < cut) {
                removed += self.drop_block(key, cut)?;
            }
        }
        self.unkept = false;
        self.add_data_bytes(vol, ino, 0, removed)?;
        // Blocks written after the cut stay; go on behind what was looked at.
        let next = found.last().and_then(|k| keys::block_of(k)).map(|b| b.saturating_add(1));
        match next.filter(|_| found.len() >= items) {
            Some(next) => self.put_row(row, reap_row(next, to, excluded)),
            None => {
                self.delete_row(&row);
                if let Some(mut inode) = self.inode(vol, ino)? {
                    inode.cuts.retain(|c| c.lsn != cut);
                    self.amend(&keys::inode(vol, ino), &inode)?;
                }
                Ok(())
            }
        }
    }

    pub(super) fn rebind(&mut self, key: &[u8], since: Lsn, recipe: &Recipe) -> Result<()> {
        let head = self.head(key)?.filter(|s| s.since == since);
        let (old, end) = match head {
            Some(old) => (old, None),
            None => match self.index.history_after(key, since)? {
                Some((end, old)) if old.since == since => (old, Some(end)),
                _ => return Ok(()),
            },
        };
        let before = self.public_recipe(key, &old)?;
        // Small holes may have become zeros; never the other way, which would lose data.
        let (had, has) = (before.data_bytes(), recipe.data_bytes());
        if has < had {
            self.clear_pending(key, since);
            return Ok(());
        }
        for id in recipe.chunks() {
            self.reference(id)?;
        }
        match end {
            None => self.amend(key, recipe)?,
            Some(end) => self.amend_history(key, end, &old, recipe)?,
        }
        self.release_block(key, since, Some(&before))?;
        self.clear_pending(key, since);
        let vol = keys::volume_of(key);
        if let Some(volume) = self.state.volume_mut(vol).filter(|_| has > had) {
            let total = if end.is_none() { &mut volume.live_bytes } else { &mut volume.history_bytes };
            *total = total.saturating_add(has - had);
        }
        match keys::ino_of(key) {
            Some(ino) if end.is_none() => self.add_data_bytes(vol, ino, has, had),
            _ => Ok(()),
        }
    }
}

/// The value of a reap row.
fn reap_row(from: u64, to: u64, excluded: bool) -> Vec<u8> {
    let mut row = [from.to_le_bytes(), to.to_le_bytes()].concat();
    row.extend(excluded.then_some(1u8));
    row
}

impl Index {
    /// The blocks that are still to be reaped, and whether they are of an excluded file.
    pub(super) fn reap_range(&self, row: &[u8]) -> Result<Option<(u64, u64, bool)>> {
        let Some(value) = self.get("default", row)? else { return Ok(None) };
        let mut d = crate::types::wire::Decoder::new(&value);
        let range = d.u64().and_then(|from| Ok((from, d.u64()?, !d.rest().is_empty())));
        range.map(Some).map_err(|e| damaged(row, e))
    }
}
