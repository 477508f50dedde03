//! One record's changes on their way into one RocksDB batch: reads see what the record already wrote, ended
//! versions go to the history or free their chunks, and the digest and the counters follow.

use std::collections::HashMap;

use rocksdb::WriteBatch;

use super::keys::{self, Family, meta};
use super::rows::{ChunkEntry, Stored};
use super::{CHUNKS, HEADS, HISTORY, Index, State, damaged, index_error};
use crate::store::chunks::pack::Location;
use crate::store::model::{Dirent, Inode, Item, Recipe, Split};
use crate::types::limits::{INLINE_KEEP_BYTES, RECIPE_PIECES_TARGET};
use crate::types::{ChunkId, Error, Ino, Lsn, Result, VolumeId};

/// Finds chunks that were packed but that no record named yet.
pub trait Locate {
    /// Where the chunk lies, if it was packed since the index last learned of packs.
    fn locate(&self, id: &ChunkId) -> Option<Location>;
}

/// A record being applied. Dropping it without [`Txn::finish`] leaves the index as it was, but not
/// `state`: the caller then has it read anew.
pub(super) struct Txn<'a> {
    pub(super) index: &'a Index,
    pub(super) state: &'a mut State,
    pub(super) lsn: Lsn,
    locate: &'a dyn Locate,
    batch: WriteBatch,
    heads: HashMap<Vec<u8>, Option<Stored>>,
    /// A range of keys whose heads were read together.
    read: Option<HeadRange>,
    /// Chunks whose counts this record changes, or is about to; `None`: not there.
    chunks: HashMap<ChunkId, Option<ChunkEntry>>,
    /// The blocks that end now are of an excluded file, which may be gone.
    pub(super) unkept: bool,
}

/// The heads of a range of keys, as they were before the record.
struct HeadRange {
    from: Vec<u8>,
    below: Vec<u8>,
    heads: HashMap<Vec<u8>, Stored>,
}

/// Whether a block version should be given another representation in the background.
pub fn wants_rebind(recipe: &Recipe) -> bool {
    recipe.inline_bytes() > INLINE_KEEP_BYTES || recipe.pieces().len() > RECIPE_PIECES_TARGET
}

/// What a history entry adds to the digest: its version's check, tied to the LSN at which it ended.
pub(super) fn history_check(check: u128, end: Lsn) -> u128 {
    check.wrapping_mul((u128::from(end.0) << 1) | 1)
}

impl Index {
    /// The keyed hash of a version.
    pub(super) fn check(&self, key: &[u8], since: Lsn, split: &Split) -> u128 {
        let mut hasher = blake3::Hasher::new_keyed(&self.digest_key);
        hasher.update(&since.0.to_le_bytes());
        for part in [key, &split.public, &split.secret] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let mut check = [0; 16];
        hasher.finalize_xof().fill(&mut check);
        u128::from_le_bytes(check)
    }

    /// A stored version's item.
    pub fn item<T: Item>(&self, key: &[u8], stored: &Stored) -> Result<T> {
        let secret = if stored.sealed.is_empty() {
            Vec::new()
        } else {
            self.sealer.open(key, &stored.sealed).map_err(|e| damaged(key, e))?
        };
        T::join(&stored.public, &secret).map_err(|e| damaged(key, e))
    }

    pub(super) fn stored(&self, key: &[u8], since: Lsn, split: Split) -> Result<Stored> {
        let check = self.check(key, since, &split);
        let mut sealed = Vec::new();
        if !split.secret.is_empty() {
            self.sealer.seal_into(key, &split.secret, &mut sealed).map_err(index_error)?;
        }
        Ok(Stored { since, check, public: split.public, sealed })
    }
}

impl<'a> Txn<'a> {
    pub(super) fn new(index: &'a Index, state: &'a mut State, lsn: Lsn, locate: &'a dyn Locate) -> Txn<'a> {
        Txn {
            index,
            state,
            lsn,
            locate,
            batch: WriteBatch::default(),
            heads: HashMap::new(),
            read: None,
            chunks: HashMap::new(),
            unkept: false,
        }
    }

    /// The head of `key`, this record's own changes included.
    pub(super) fn head(&mut self, key: &[u8]) -> Result<Option<Stored>> {
        if let Some(own) = self.heads.get(key) {
            return Ok(own.clone());
        }
        match self.read.as_ref().filter(|read| (&*read.from..&*read.below).contains(&key)) {
            Some(read) => Ok(read.heads.get(key).cloned()),
            None => self.index.head(key),
        }
    }

    /// Reads the heads of a range at once, most of which are about to be asked for.
    pub(super) fn read_heads(&mut self, from: Vec<u8>, below: Vec<u8>) -> Result<()> {
        let mut heads = HashMap::new();
        self.index.range(HEADS, &from, &below, |key, value| {
            heads.insert(key.to_vec(), Stored::decode(value).map_err(|e| damaged(key, e))?);
            Ok(true)
        })?;
        self.read = Some(HeadRange { from, below, heads });
        Ok(())
    }

    /// The decoded head of `key`.
    pub(super) fn head_item<T: Item>(&mut self, key: &[u8]) -> Result<Option<(Lsn, T)>> {
        match self.head(key)? {
            None => Ok(None),
            Some(stored) => Ok(Some((stored.since, self.index.item(key, &stored)?))),
        }
    }

    /// Begins a new version of `key` at this record, ending the one before at `end` (normally this record).
    pub(super) fn put(&mut self, key: &[u8], item: &impl Item, end: Lsn) -> Result<()> {
        if let Some(old) = self.head(key)? {
            self.end_version(key, &old, end, true)?;
        }
        let stored = self.index.stored(key, self.lsn, item.split())?;
        self.state.digest = self.state.digest.wrapping_add(stored.check);
        self.heads.insert(key.to_vec(), Some(stored));
        Ok(())
    }

    /// Rewrites the head of `key` in place: the version stays the same one (`since` does not change).
    pub(super) fn amend(&mut self, key: &[u8], item: &impl Item) -> Result<()> {
        let Some(old) = self.head(key)? else { return Ok(()) };
        let stored = self.index.stored(key, old.since, item.split())?;
        self.state.digest = self.state.digest.wrapping_sub(old.check).wrapping_add(stored.check);
        self.heads.insert(key.to_vec(), Some(stored));
        Ok(())
    }

    /// Ends the head of `key` at `end`, if there is one.
    pub(super) fn delete(&mut self, key: &[u8], end: Lsn) -> Result<Option<Stored>> {
        let old = self.head(key)?;
        if let Some(old) = &old {
            self.end_version(key, old, end, false)?;
            self.heads.insert(key.to_vec(), None);
        }
        Ok(old)
    }

    /// Begins a new version of a block; an empty recipe only ends the old one. Returns the change in data
    /// bytes.
    pub(super) fn put_block(&mut self, key: &[u8], recipe: &Recipe, end: Lsn) -> Result<()> {
        if recipe.is_empty() {
            self.delete(key, end)?;
            return Ok(());
        }
        // Count the new references before the old ones go, so that a shared chunk never touches zero.
        for id in recipe.chunks() {
            self.reference(id)?;
        }
        self.put(key, recipe, end)?;
        if let Some(volume) = self.state.volume_mut(keys::volume_of(key)) {
            volume.live_bytes += recipe.data_bytes();
        }
        if wants_rebind(recipe) {
            self.note_pending(key, self.lsn)?;
        }
        Ok(())
    }

    /// Takes a version out of the heads: into the history if some point needs it, else away for good.
    fn end_version(&mut self, key: &[u8], old: &Stored, end: Lsn, replaced: bool) -> Result<()> {
        let vol = keys::volume_of(key);
        self.state.digest = self.state.digest.wrapping_sub(old.check);
        let block = keys::family_of(key) == Some(Family::Block);
        let recipe = if block { Some(self.public_recipe(key, old)?) } else { None };
        let bytes = recipe.as_ref().map_or(0, Recipe::data_bytes);
        let first = if old.since < end {
            self.state.volumes.get(&vol).and_then(|v| v.first_point(old.since, end))
        } else {
            None
        };
        let first = if first.is_some() && self.is_excluded(key, old, replaced)? { None } else { first };
        if let Some(volume) = self.state.volume_mut(vol).filter(|_| block) {
            volume.live_bytes = volume.live_bytes.saturating_sub(bytes);
            volume.history_bytes += if first.is_some() { bytes } else { 0 };
        }
        match first {
            Some(first) => {
                let history = self.index.family(HISTORY)?;
                self.batch.put_cf(history, keys::history(key, end), old.encode());
                self.put_ended(vol, first, end, key, bytes)?;
                self.state.digest = self.state.digest.wrapping_add(history_check(old.check, end));
                Ok(())
            }
            None => self.release_block(key, old.since, recipe.as_ref()),
        }
    }

    /// Whether no point needs a version that ends, because none shows what it is of.
    fn is_excluded(&mut self, key: &[u8], old: &Stored, replaced: bool) -> Result<bool> {
        match keys::family_of(key) {
            // Only what makes it ordinary replaces an excluded inode. The last version from before stays where points
            // were made during its life: it says that at these points there was nothing to be seen yet.
            Some(Family::Inode) => Ok(!replaced && Inode::is_excluded(&old.public)),
            Some(Family::Dirent) => {
                Dirent::kind_of(&old.public).map(|(_, excluded)| excluded).map_err(|e| damaged(key, e))
            }
            Some(Family::Block | Family::Xattr) if !self.unkept => {
                let Some(ino) = keys::ino_of(key) else { return Ok(false) };
                let inode = self.head(&keys::inode(keys::volume_of(key), ino))?;
                Ok(inode.is_some_and(|inode| Inode::is_excluded(&inode.public)))
            }
            Some(Family::Block | Family::Xattr) => Ok(true),
            None => Ok(false),
        }
    }

    /// Writes a dead-list item; its value is the version's data bytes.
    pub(super) fn put_ended(
        &mut self,
        vol: VolumeId,
        first: Lsn,
        end: Lsn,
        head: &[u8],
        bytes: u64,
    ) -> Result<()> {
        self.index.note_bucket(vol, first);
        let family = self.index.family(HISTORY)?;
        self.batch.put_cf(family, keys::ended(vol, first, end, head), bytes.to_le_bytes());
        Ok(())
    }

    /// Removes a dead-list item.
    pub(super) fn delete_ended(&mut self, vol: VolumeId, first: Lsn, end: Lsn, head: &[u8]) -> Result<()> {
        let family = self.index.family(HISTORY)?;
        self.batch.delete_cf(family, keys::ended(vol, first, end, head));
        Ok(())
    }

    /// Frees a history entry. Returns whether it was there.
    pub(super) fn free_history(&mut self, head: &[u8], end: Lsn) -> Result<bool> {
        let key = keys::history(head, end);
        let Some(value) = self.index.get(HISTORY, &key)? else { return Ok(false) };
        let old = Stored::decode(&value).map_err(|e| damaged(&key, e))?;
        drop(value);
        self.state.digest = self.state.digest.wrapping_sub(history_check(old.check, end));
        let family = self.index.family(HISTORY)?;
        self.batch.delete_cf(family, &key);
        if keys::family_of(head) == Some(Family::Block) {
            let recipe = self.public_recipe(head, &old)?;
            if let Some(volume) = self.state.volume_mut(keys::volume_of(head)) {
                volume.history_bytes = volume.history_bytes.saturating_sub(recipe.data_bytes());
            }
            self.release_block(head, old.since, Some(&recipe))?;
        }
        Ok(true)
    }

    /// Rewrites a history entry in place.
    pub(super) fn amend_history(&mut self, head: &[u8], end: Lsn, old: &Stored, item: &Recipe) -> Result<()> {
        let stored = self.index.stored(head, old.since, item.split())?;
        self.state.digest = self
            .state
            .digest
            .wrapping_sub(history_check(old.check, end))
            .wrapping_add(history_check(stored.check, end));
        let family = self.index.family(HISTORY)?;
        self.batch.put_cf(family, keys::history(head, end), stored.encode());
        Ok(())
    }

    /// A block version's recipe without opening its inline bytes (which are then empty).
    pub(super) fn public_recipe(&self, key: &[u8], stored: &Stored) -> Result<Recipe> {
        Recipe::join_public(&stored.public).map_err(|e| damaged(key, e))
    }

    /// Lets go of the chunks and the pending row of a block version that no head or history entry holds.
    pub(super) fn release_block(&mut self, key: &[u8], since: Lsn, recipe: Option<&Recipe>) -> Result<()> {
        let Some(recipe) = recipe else { return Ok(()) };
        for id in recipe.chunks() {
            self.unreference(id)?;
        }
        if wants_rebind(recipe) {
            self.clear_pending(key, since);
        }
        Ok(())
    }

    fn pending_key(key: &[u8], since: Lsn) -> Option<Vec<u8>> {
        Some(meta::pending(keys::volume_of(key), keys::ino_of(key)?, keys::block_of(key)?, since))
    }

    fn note_pending(&mut self, key: &[u8], since: Lsn) -> Result<()> {
        if let Some(row) = Self::pending_key(key, since) {
            self.put_row(row, [])?;
        }
        Ok(())
    }

    pub(super) fn clear_pending(&mut self, key: &[u8], since: Lsn) {
        if let Some(row) = Self::pending_key(key, since) {
            self.delete_row(&row);
        }
    }

    /// Writes a row of the default family.
    pub(super) fn put_row(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.batch.put(key, value);
        Ok(())
    }

    /// Writes a row of the default family that holds names: sealed, bound to its key.
    pub(super) fn put_sealed_row(&mut self, key: Vec<u8>, value: &[u8]) -> Result<()> {
        let sealed = self.index.sealer.seal(&key, value).map_err(index_error)?;
        self.put_row(key, sealed)
    }

    /// Deletes a row of the default family.
    pub(super) fn delete_row(&mut self, key: &[u8]) {
        self.batch.delete(key);
    }

    fn chunk(&mut self, id: &ChunkId) -> Result<Option<ChunkEntry>> {
        match self.chunks.get(id) {
            Some(entry) => Ok(*entry),
            None => self.index.chunk(id),
        }
    }

    /// Looks up at once the chunks that are about to be counted.
    pub(super) fn read_chunks(&mut self, mut ids: Vec<ChunkId>) -> Result<()> {
        ids.retain(|id| !self.chunks.contains_key(id));
        ids.sort_unstable();
        ids.dedup();
        let found = self.index.chunks(&ids)?;
        self.chunks.extend(ids.into_iter().zip(found));
        Ok(())
    }

    /// Counts one more recipe piece that names the chunk.
    pub(super) fn reference(&mut self, id: &ChunkId) -> Result<()> {
        let mut entry = match self.chunk(id)? {
            // Lost, and stored again: whoever named it before can read it again, too.
            Some(lost) if lost.location.is_lost() => {
                let location = self.locate.locate(id).unwrap_or(Location::LOST);
                let entry = ChunkEntry { location, refs: lost.refs };
                if entry.refs > 0 {
                    self.pack_changed(&entry, true);
                }
                entry
            }
            Some(entry) => entry,
            None => ChunkEntry {
                location: self.locate.locate(id).ok_or_else(|| {
                    Error::corrupt("record", format!("lsn {}", self.lsn), format!("chunk {id} is in no pack"))
                })?,
                refs: 0,
            },
        };
        if entry.refs == 0 {
            self.pack_changed(&entry, true);
        }
        entry.refs += 1;
        self.chunks.insert(*id, Some(entry));
        Ok(())
    }

    /// Counts one piece less. At zero the chunk stays, dead, until its pack is rewritten.
    fn unreference(&mut self, id: &ChunkId) -> Result<()> {
        let Some(mut entry) = self.chunk(id)?.filter(|e| e.refs > 0) else {
            return Err(Error::corrupt("chunk count", id.to_string(), "a recipe names it, its count is 0"));
        };
        entry.refs -= 1;
        if entry.refs == 0 {
            self.pack_changed(&entry, false);
        }
        self.chunks.insert(*id, Some(entry));
        Ok(())
    }

    fn pack_changed(&mut self, entry: &ChunkEntry, alive: bool) {
        if entry.location.is_lost() {
            return;
        }
        let pack = entry.location.pack;
        let bytes = entry.location.frame_bytes();
        let stat = self.state.packs.entry(pack).or_default();
        stat.live_bytes = if alive { stat.live_bytes + bytes } else { stat.live_bytes.saturating_sub(bytes) };
        self.state.dirty_packs.insert(pack);
    }

    /// Registers an inode number as used.
    pub(super) fn use_ino(&mut self, vol: VolumeId, ino: Ino) {
        if self.state.volumes.get(&vol).is_some_and(|v| v.next_ino <= ino.0)
            && let Some(volume) = self.state.volume_mut(vol)
        {
            volume.next_ino = ino.0.saturating_add(1);
        }
    }

    /// Writes everything in one batch.
    pub(super) fn finish(mut self) -> Result<()> {
        // In order: RocksDB finds the place of the next key from that of the last.
        let heads = self.index.family(HEADS)?;
        let mut changed: Vec<_> = self.heads.iter().collect();
        changed.sort_unstable_by_key(|(key, _)| *key);
        for (key, stored) in changed {
            match stored {
                Some(stored) => self.batch.put_cf(heads, key, stored.encode()),
                None => self.batch.delete_cf(heads, key),
            }
        }
        let chunks = self.index.family(CHUNKS)?;
        let mut counted: Vec<_> =
            self.chunks.iter().filter_map(|(id, entry)| Some((id, entry.as_ref()?))).collect();
        counted.sort_unstable_by_key(|(id, _)| *id);
        for (id, entry) in counted {
            self.batch.put_cf(chunks, id.0, entry.encode());
        }
        for vol in std::mem::take(&mut self.state.dirty_volumes) {
            match self.state.volumes.get(&vol) {
                Some(volume) => {
                    let (key, row) = (meta::volume(vol), volume.encode());
                    self.put_sealed_row(key, &row)?;
                }
                None => self.batch.delete(meta::volume(vol)),
            }
        }
        for pack in std::mem::take(&mut self.state.dirty_packs) {
            let live = self.state.packs.get(&pack).map_or(0, |p| p.live_bytes);
            self.batch.put(meta::pack(pack), live.to_le_bytes());
        }
        self.batch.put(meta::STATE, self.state.encode());
        self.index.write(self.batch)
    }
}
