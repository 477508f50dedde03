//! Every version of every item: does it decode, does its check hold, and what follows from all of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Findings;
use crate::store::Store;
use crate::store::index::frozen::VersionRow;
use crate::store::index::keys::{self, Family};
use crate::store::index::{Frozen, Index, wants_rebind};
use crate::store::model::{Dirent, FileKind, Hidden, Inode, Recipe, Xattr};
use crate::store::problem::Part;
use crate::types::limits::INLINE_KEEP_BYTES;
use crate::types::{ChunkId, Error, Ino, Lsn, Result, VolumeId};

/// An inode as it says of itself, and as others say of it.
#[derive(Default)]
pub(super) struct Node {
    pub(super) kind: Option<FileKind>,
    pub(super) nlink: u32,
    pub(super) entries: u64,
    pub(super) data_bytes: u64,
    pub(super) named: u32,
    pub(super) subdirs: u32,
    pub(super) found_entries: u64,
    pub(super) found_data: u64,
    /// The directory and the hash of the name that it remembers.
    pub(super) place: (Ino, [u8; 16]),
    /// Those of the last name found.
    pub(super) found_place: (Ino, [u8; 16]),
    pub(super) excluded: bool,
    pub(super) hidden: Option<Hidden>,
    pub(super) found_hidden: Hidden,
    /// Entries that points show.
    pub(super) named_openly: u32,
    /// Versions of it, of its blocks or attributes in the history.
    pub(super) past: u64,
}

/// Sums over one volume.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) live_bytes: u64,
    pub(super) history_bytes: u64,
    pub(super) inodes: u64,
    /// Versions in the history, and the sum of their [`ended_hash`]es.
    pub(super) history: (u64, u128),
}

/// A block version: inode, block, birth.
pub(super) type BlockVersion = (VolumeId, Ino, u64, Lsn);

/// What all versions together come to.
#[derive(Default)]
pub(super) struct Sweep {
    pub(super) references: HashMap<ChunkId, u64>,
    pub(super) digest: u128,
    pub(super) nodes: HashMap<(VolumeId, Ino), Node>,
    pub(super) totals: BTreeMap<VolumeId, Totals>,
    /// Block versions that want another representation, and whether they must get it.
    pub(super) wanting: HashMap<BlockVersion, bool>,
    pub(super) unreadable: HashSet<Vec<u8>>,
}

/// Names one version of the history, so that two lists of them can be compared by their sums.
pub(super) fn ended_hash(head: &[u8], end: Lsn) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&end.0.to_le_bytes()).update(head);
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    u128::from_le_bytes(out)
}

impl Store {
    /// Reads all versions; `None` when the index cannot be read to its end.
    pub(super) fn check_versions(&self, frozen: &Frozen<'_>, findings: &mut Findings) -> Option<Sweep> {
        let mut sweep = Sweep::default();
        let read = frozen.versions(|row| {
            findings.versions += 1;
            sweep.digest = sweep.digest.wrapping_add(Index::digest_of(&row));
            if let Err(e) = self.check_version(frozen, &row, &mut sweep) {
                sweep.unreadable.insert(row.key.to_vec());
                findings.problem(Part::Index, e);
            }
            Ok(())
        });
        if let Err(e) = read {
            findings.problem(Part::Index, e);
            return None;
        }
        check_tree(frozen, &sweep, findings);
        Some(sweep)
    }

    fn check_version(&self, frozen: &Frozen<'_>, row: &VersionRow<'_>, sweep: &mut Sweep) -> Result<()> {
        let vol = keys::volume_of(row.key);
        let ino = keys::ino_of(row.key).unwrap_or_default();
        let head = row.end.is_none();
        let bad_key = |detail| Error::corrupt("index key", crate::types::ids::hex(row.key), detail);
        if !frozen.state.volumes.contains_key(&vol) {
            return Err(bad_key("its volume does not exist"));
        }
        let totals = sweep.totals.entry(vol).or_default();
        if let Some(end) = row.end {
            totals.history.0 += 1;
            totals.history.1 = totals.history.1.wrapping_add(ended_hash(row.key, end));
            // The heads came before.
            let node = sweep.nodes.get_mut(&(vol, ino));
            if let Some(node) = node.filter(|_| keys::family_of(row.key) != Some(Family::Dirent)) {
                node.past += 1;
            }
        }
        match keys::family_of(row.key) {
            Some(Family::Block) => {
                let recipe: Recipe = self.index.verified_item(row)?;
                let bytes = recipe.data_bytes();
                *(if head { &mut totals.live_bytes } else { &mut totals.history_bytes }) += bytes;
                if head {
                    sweep.nodes.entry((vol, ino)).or_default().found_data += bytes;
                }
                for id in recipe.chunks() {
                    *sweep.references.entry(*id).or_insert(0) += 1;
                }
                if wants_rebind(&recipe) {
                    let must = recipe.inline_bytes() > INLINE_KEEP_BYTES;
                    let block = keys::block_of(row.key).unwrap_or_default();
                    sweep.wanting.insert((vol, ino, block, row.stored.since), must);
                }
            }
            Some(Family::Inode) => {
                let inode: Inode = self.index.verified_item(row)?;
                if head {
                    totals.inodes += 1;
                    let node = sweep.nodes.entry((vol, ino)).or_default();
                    node.kind = Some(inode.attrs.kind);
                    node.nlink = inode.attrs.nlink;
                    node.entries = inode.attrs.entries;
                    node.data_bytes = inode.data_bytes;
                    node.place = (inode.attrs.parent, inode.attrs.name);
                    (node.excluded, node.hidden) = (inode.attrs.excluded, inode.attrs.hidden);
                }
            }
            Some(Family::Dirent) => {
                let entry: Dirent = self.index.verified_item(row)?;
                if head {
                    let parent = sweep.nodes.entry((vol, ino)).or_default();
                    parent.found_entries += 1;
                    parent.subdirs += u32::from(entry.kind == FileKind::Dir);
                    parent.found_hidden.entries += u64::from(entry.excluded);
                    parent.found_hidden.dirs += u32::from(entry.excluded && entry.kind == FileKind::Dir);
                    let named = sweep.nodes.entry((vol, entry.ino)).or_default();
                    named.named += 1;
                    named.named_openly += u32::from(!entry.excluded);
                    named.found_place = (ino, keys::hash_of(row.key).unwrap_or_default());
                }
            }
            Some(Family::Xattr) => drop(self.index.verified_item::<Xattr>(row)?),
            None => return Err(bad_key("no family has such keys")),
        }
        Ok(())
    }
}

fn check_tree(frozen: &Frozen<'_>, sweep: &Sweep, findings: &mut Findings) {
    let state = &frozen.state;
    let mut stages = Vec::new();
    let listed = frozen.stages(|vol, from, to| {
        stages.push((vol, from, to));
        Ok(())
    });
    if let Err(e) = listed {
        findings.problem(Part::Index, e);
    }
    for ((vol, ino), node) in &sweep.nodes {
        let Some(volume) = state.volumes.get(vol).filter(|v| !v.deleted) else { continue };
        let place = format!("volume {}, inode {ino}", volume.name);
        let Some(kind) = node.kind else {
            // Of an inode that is gone, blocks may wait for the reaper.
            if node.named > 0 || node.found_entries > 0 {
                findings.problem(Part::Index, format!("{place}: an entry names it, but it does not exist"));
            }
            continue;
        };
        let staged = |ino: Ino| stages.iter().any(|(v, from, to)| v == vol && (*from..*to).contains(&ino.0));
        if staged(*ino) {
            // Its names are counted when it belongs to the tree.
            if node.named > 0 && !staged(node.found_place.0) {
                let text = format!("{place}: an entry names it, but it is only being prepared");
                findings.problem(Part::Index, text);
            }
            continue;
        }
        let root = *ino == Ino::ROOT;
        let expected = match kind {
            FileKind::Dir => {
                if node.entries != node.found_entries {
                    let (kept, found) = (node.entries, node.found_entries);
                    findings.problem(Part::Index, format!("{place}: {kept} entries stored, {found} found"));
                }
                if node.named + u32::from(root) == 0 { 0 } else { 2 + node.subdirs }
            }
            _ => node.named,
        };
        if node.nlink != expected {
            let text = format!("{place}: {} links stored, {expected} found", node.nlink);
            findings.problem(Part::Index, text);
        }
        // Of several names only one is remembered, and perhaps none after that was removed.
        if node.named == 1 && node.place.0 != Ino(0) && node.place != node.found_place {
            let text =
                format!("{place}: its name is in directory {}, not in {}", node.found_place.0, node.place.0);
            findings.problem(Part::Index, text);
        }
        if node.data_bytes != node.found_data {
            let (kept, found) = (node.data_bytes, node.found_data);
            findings.problem(Part::Derived, format!("{place}: {kept} data bytes stored, {found} found"));
        }
        let above =
            sweep.nodes.get(&(*vol, node.place.0)).filter(|_| kind == FileKind::Dir && node.named > 0);
        for wrong in wrongly_hidden(node, above) {
            findings.problem(Part::Index, format!("{place}: {wrong}"));
        }
    }
    for (vol, volume) in &state.volumes {
        for at in volume.points.keys() {
            if *at > state.applied || *at == Lsn::ZERO {
                let text = format!("volume {vol}: a snapshot lies at the impossible record {at}");
                findings.problem(Part::Index, text);
            }
        }
    }
}

/// What does not hold of what no point shows.
fn wrongly_hidden(node: &Node, above: Option<&Node>) -> Vec<String> {
    let mut wrong = Vec::new();
    let (kept, found) = (node.hidden.unwrap_or_default(), node.found_hidden);
    if kept != found {
        wrong.push(format!("{kept:?} entries stored, {found:?} found"));
    }
    if node.hidden.is_some() && above.is_some_and(|above| above.hidden.is_none()) {
        wrong.push("something excluded may lie below, which its directory does not know".to_owned());
    }
    if node.excluded && node.named_openly > 0 {
        wrong.push("it is excluded, an entry that names it is not".to_owned());
    }
    if node.excluded && node.past > 0 {
        wrong.push(format!("it is excluded, but the history has {} versions of it", node.past));
    }
    wrong
}
