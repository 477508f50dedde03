//! Erasing inodes from the whole history, and their bytes from the disk.
//!
//! ```text
//! (they have lost their names and are gone from the present) → entries of the history, so that no point shows
//!   them → their inodes → their blocks → packs with their chunks written anew → index compacted → journal cut
//! ```
//!
//! Every step can be repeated: what is erased is found by looking for what is left.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::Store;
use super::affected::affected_but;
use super::care::CHECKPOINTS_KEPT;
use super::chunks::pack;
use super::control::Control;
use super::gc::GcReport;
use super::index::Buckets;
use super::index::keys::{self, Family};
use super::index::rows::{Stored, Volume};
use super::model::{Dirent, Edit, PastVersion, Recipe};
use crate::types::limits::{PURGE_CHUNKS_MAX, SWEEP_ITEMS_MAX};
use crate::types::{ChunkId, Error, Ino, Lsn, PackId, Result, VolumeId};

/// How often all is looked for again before what cannot be erased counts as damage.
const ROUNDS_MAX: usize = 16;
/// Bytes of file data, in all versions of all files, up to which other files with the same chunks are looked for.
const SEARCH_BYTES_MAX: u64 = 64 << 30;
/// Versions that one record erases.
const ROWS_PER_RECORD: usize = if cfg!(test) { 5 } else { SWEEP_ITEMS_MAX };
/// How often packs are tried to be written anew, and how long between two times: longer than what is written stays
/// uncommitted.
const PACK_TRIES: usize = 8;
const PACK_PAUSE: Duration = Duration::from_millis(300);
/// Part of the packs that headers and footers take at most.
const OVERHEAD_PERCENT: u64 = 3;

/// What is to be erased.
#[derive(Clone, Debug, Default)]
pub struct Purge {
    /// The volume.
    pub vol: VolumeId,
    /// Its inodes.
    pub inodes: BTreeSet<Ino>,
    /// Every name that one of them has or had: directory and hash.
    pub names: BTreeSet<(Ino, [u8; 16])>,
}

/// The data of files in all their versions.
#[derive(Clone, Debug, Default)]
pub struct PurgeData {
    /// Bytes of data in all versions of their blocks.
    pub bytes: u64,
    /// The chunks, and how often those versions name each.
    chunks: HashMap<ChunkId, u64>,
    /// Whether there are more chunks.
    incomplete: bool,
}

/// A file: its volume and its path.
pub type NamedFile = (String, Vec<u8>);

/// Edits that gather to a record.
struct Batch<'a> {
    store: &'a Store,
    vol: VolumeId,
    edits: Vec<Edit>,
    erased: u64,
    unlisted: u64,
    buckets: Buckets,
    told: &'a mut dyn FnMut(u64),
}

impl Batch<'_> {
    fn commit(&mut self) -> Result<()> {
        if !self.edits.is_empty() {
            self.erased += self.edits.len() as u64;
            self.store.commit(std::mem::take(&mut self.edits), None)?;
            (self.told)(self.erased);
        }
        Ok(())
    }

    fn push(&mut self, version: PastVersion) -> Result<()> {
        self.edits.push(Edit::Erase { vol: self.vol, version });
        if self.edits.len() >= ROWS_PER_RECORD { self.commit() } else { Ok(()) }
    }

    /// Erases the history of items whose keys begin with `prefix`, as far as it is `wanted`.
    fn erase(&mut self, prefix: &[u8], wanted: impl Fn(&Stored) -> bool) -> Result<()> {
        let mut from = Vec::new();
        loop {
            let index = &self.store.index;
            let page = index.past_page(prefix, &from, SWEEP_ITEMS_MAX, &wanted, &mut self.buckets)?;
            self.unlisted += page.unlisted;
            for version in page.versions {
                self.push(version)?;
            }
            match page.next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }
}

impl Store {
    /// The data of the files that are to be erased.
    ///
    /// # Errors
    /// From the index.
    pub fn purge_data(&self, purge: &Purge) -> Result<PurgeData> {
        let mut data = PurgeData::default();
        for ino in &purge.inodes {
            let prefix = keys::prefix(purge.vol, Family::Block, *ino);
            self.index.visit_versions(&prefix, |key, _, stored| {
                let recipe = Recipe::join_public(&stored.public)
                    .map_err(|e| Error::corrupt("index", crate::types::ids::hex(key), e.to_string()))?;
                data.bytes = data.bytes.saturating_add(recipe.data_bytes());
                for id in recipe.chunks() {
                    if data.chunks.len() < PURGE_CHUNKS_MAX || data.chunks.contains_key(id) {
                        *data.chunks.entry(*id).or_insert(0) += 1;
                    } else {
                        data.incomplete = true;
                    }
                }
                Ok(())
            })?;
        }
        Ok(data)
    }

    /// The chunks that other files name as well, and their bytes. Of data before it is erased.
    ///
    /// # Errors
    /// From the index.
    pub fn purge_shared(&self, data: &PurgeData) -> Result<(HashSet<ChunkId>, u64)> {
        let (mut shared, mut bytes) = (HashSet::new(), 0);
        for (id, own) in &data.chunks {
            if let Some(entry) = self.index.chunk(id)?.filter(|entry| entry.refs > *own) {
                bytes += u64::from(entry.location.raw_len);
                shared.insert(*id);
            }
        }
        Ok((shared, bytes))
    }

    /// Some of the other files that name such chunks, found by reading all recipes: none where that takes too long.
    ///
    /// # Errors
    /// From the index.
    pub fn purge_sharers(
        &self,
        purge: &Purge,
        chunks: &HashSet<ChunkId>,
    ) -> Result<Option<BTreeSet<NamedFile>>> {
        let all = |v: &Volume| v.live_bytes.saturating_add(v.history_bytes);
        let bytes: u64 = self.index.state().volumes.values().map(all).sum();
        if bytes > SEARCH_BYTES_MAX {
            return Ok(None);
        }
        let frozen = self.index.freeze();
        let own = |vol, ino| vol == purge.vol && purge.inodes.contains(&ino);
        let found = affected_but(&self.index, &frozen, chunks, &own, &|| Ok(()))?;
        let places = found.into_values().flat_map(|affected| affected.files);
        Ok(Some(places.map(|place| (place.volume, place.path)).collect()))
    }

    /// The packs that hold chunks which nothing names any more; none where they are not all known. Of data after
    /// it was erased.
    ///
    /// # Errors
    /// From the index, and from committing.
    pub fn purge_packs(&self, data: &PurgeData) -> Result<Option<BTreeSet<PackId>>> {
        // Versions of other files that name the same chunks may be due. Rewriting forgets them before anything else, and
        // then nothing would name these chunks, in packs that were not chosen.
        while self.free_some()? {}
        let mut packs = BTreeSet::new();
        for id in data.chunks.keys() {
            if let Some(entry) = self.index.chunk(id)?.filter(|e| e.refs == 0 && !e.location.is_lost()) {
                packs.insert(entry.location.pack);
            }
        }
        Ok((!data.incomplete).then_some(packs))
    }

    /// Erases the history of what is gone from the present. First no point shows it by a name any more, then it is
    /// gone, which `gone` is told, and its data is freed. `told` hears how many versions are erased.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the dead list lacks versions that the history has; from committing.
    pub fn purge_history(
        &self,
        purge: &Purge,
        gone: &mut dyn FnMut(),
        told: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            let mut batch = Batch {
                store: self,
                vol: purge.vol,
                edits: Vec::new(),
                erased: 0,
                unlisted: 0,
                buckets: Buckets::default(),
                told,
            };
            let names_one =
                |stored: &Stored| Dirent::ino_of(&stored.public).is_ok_and(|ino| purge.inodes.contains(&ino));
            for (dir, hash) in &purge.names {
                batch.erase(&keys::dirent(purge.vol, *dir, hash), names_one)?;
            }
            batch.commit()?;
            for family in [Family::Inode, Family::Xattr] {
                for ino in &purge.inodes {
                    batch.erase(&keys::prefix(purge.vol, family, *ino), |_| true)?;
                }
            }
            batch.commit()?;
            gone();
            for ino in &purge.inodes {
                batch.erase(&keys::prefix(purge.vol, Family::Block, *ino), |_| true)?;
            }
            batch.commit()?;
            if batch.erased == 0 && batch.unlisted == 0 {
                return Ok(());
            }
        }
        let place = format!("volume {}", purge.vol);
        Err(Error::corrupt("dead list", place, "it lacks versions that are to be erased; run fsck --repair"))
    }

    /// Works off the cuts of inodes that are gone, and whatever blocks they have left in the present.
    ///
    /// # Errors
    /// From committing.
    pub fn purge_blocks(&self, purge: &Purge) -> Result<()> {
        let (vol, items) = (purge.vol, SWEEP_ITEMS_MAX as u32);
        loop {
            let found = self.index.reaps_of(vol, &purge.inodes)?;
            if found.is_empty() {
                break;
            }
            for item in found {
                self.commit(vec![Edit::Reap { vol, ino: item.ino, cut: item.cut, items }], None)?;
            }
        }
        for ino in &purge.inodes {
            loop {
                let blocks = self.index.live_blocks(vol, *ino, SWEEP_ITEMS_MAX)?;
                if blocks.is_empty() {
                    break;
                }
                let drop = |block: &u64| Edit::DropBlocks {
                    vol,
                    ino: *ino,
                    from: *block,
                    to: block.saturating_add(1),
                };
                self.commit(blocks.iter().map(drop).collect(), None)?;
            }
        }
        Ok(())
    }

    /// Has the bytes of what was erased leave the disk: `packs` (or all with dead bytes) are written anew, tables of
    /// the index that held its rows likewise, and journal and checkpoints from before go. `is_quiet` says, perhaps
    /// after some time, whether nobody needs the records before that one any more. Returns what keeps some of the
    /// bytes for now, each to be read as "the bytes go when …".
    ///
    /// # Errors
    /// From the store. It can be done again.
    pub fn purge_bytes(
        &self,
        purge: &Purge,
        packs: Option<&BTreeSet<PackId>>,
        is_quiet: &dyn Fn(Lsn) -> bool,
        control: &Control,
    ) -> Result<Vec<String>> {
        let mut left = Vec::new();
        if !self.purge_packs_now(packs, control)? {
            left.push("there is room on the disk to write their packs anew".to_owned());
        }
        control.begin("writing the index anew");
        if let Err(e) = self.flush_index() {
            return without_room(e, left);
        }
        let room = |bytes| match self.room.has(bytes) {
            true => Ok(()),
            false => Err(Error::NoSpace("the index".to_owned())),
        };
        match self.index.compact(&ranges(purge), room) {
            Ok(true) => {}
            Ok(false) => left.push("the check that reads the index just now has ended".to_owned()),
            Err(Error::NoSpace(_)) => {
                left.push("there is room on the disk to write the index anew".to_owned());
            }
            Err(e) => return Err(e),
        }
        control.begin("cutting the journal");
        let from = {
            let _committed = self.commit.lock();
            match self.journal.begin_segment() {
                Ok(from) => from,
                Err(e) => return without_room(e, left),
            }
        };
        if is_quiet(from) {
            for _ in 0..CHECKPOINTS_KEPT {
                if let Err(e) = self.checkpoint_beyond() {
                    return without_room(e, left);
                }
            }
            self.delete_retired()?;
        } else {
            left.push("programs have their answers to requests from before".to_owned());
        }
        if self.layout.checkpoint_scrubbed.exists() {
            left.push("the scrub that reads the index just now has ended".to_owned());
        }
        if left.is_empty() && self.journal.oldest() < from {
            left.push("the journal's records from before have gone".to_owned());
        }
        let stay = self.packs_left(packs).len();
        if left.is_empty() && stay > 0 {
            left.push(format!(
                "{stay} packs can be written anew; they are damaged, or being written to (see scrub, then gc)"
            ));
        }
        Ok(left)
    }

    /// Writes packs anew. One in which somebody has chunks that no record names yet cannot be: a moment later it can.
    /// Returns whether there was room.
    fn purge_packs_now(&self, packs: Option<&BTreeSet<PackId>>, control: &Control) -> Result<bool> {
        let mut wanted = packs.cloned();
        for again in 0..PACK_TRIES {
            if again > 0 {
                std::thread::sleep(PACK_PAUSE);
            }
            let mut report = GcReport { before_bytes: self.packs_bytes()?, ..GcReport::default() };
            if self.rewrite_packs(control, &mut report, wanted.as_ref())?.is_some() {
                return Ok(false);
            }
            let retired = self.index.state().retired.clone();
            let mut left = self.packs_left(packs);
            left.retain(|id| !retired.contains_key(id));
            if left.is_empty() {
                break;
            }
            wanted = Some(left);
        }
        Ok(true)
    }

    /// Those of the packs that are on the disk.
    fn packs_left(&self, packs: Option<&BTreeSet<PackId>>) -> BTreeSet<PackId> {
        let packs = packs.into_iter().flatten().copied();
        packs.filter(|id| pack::pack_path(&self.layout.packs, *id).exists()).collect()
    }

    /// What may hold bytes of files that were erased, and is not the purge's to take: one sentence each.
    ///
    /// # Errors
    /// From the disk.
    pub fn purge_notes(&self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let packs = self.packs_bytes()?;
        let live: u64 = self.index.state().packs.values().map(|stat| stat.live_bytes).sum();
        let dead = packs.saturating_sub(live);
        if dead.saturating_mul(100) > packs.saturating_mul(OVERHEAD_PERCENT) {
            notes.push(format!(
                "about {dead} bytes of packs are of versions forgotten before, of any file; rewindfs gc removes them"
            ));
        }
        let aside = std::fs::read_dir(&self.layout.root).into_iter().flatten().flatten();
        let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("repair-")).count();
        if aside > 0 {
            notes.push(format!("{aside} directories repair-* in the store may hold it; delete them"));
        }
        Ok(notes)
    }
}

fn without_room(e: Error, mut left: Vec<String>) -> Result<Vec<String>> {
    match e {
        Error::NoSpace(_) => {
            left.push("there is room on the disk to write the index and cut the journal".to_owned());
            Ok(left)
        }
        e => Err(e),
    }
}

/// The parts of the index in which rows of what was erased lay: from the lowest number to the highest.
fn ranges(purge: &Purge) -> Vec<(Vec<u8>, Vec<u8>)> {
    let spans = [
        (Family::Inode, &purge.inodes),
        (Family::Xattr, &purge.inodes),
        (Family::Block, &purge.inodes),
        (Family::Dirent, &purge.names.iter().map(|(dir, _)| *dir).collect()),
    ];
    let range = |(family, inodes): (Family, &BTreeSet<Ino>)| {
        let (first, last) = (inodes.first()?, inodes.last()?);
        let below = keys::after_prefix(&keys::prefix(purge.vol, family, *last));
        Some((keys::prefix(purge.vol, family, *first), below))
    };
    spans.into_iter().filter_map(range).collect()
}
