//! `fsck`: reads the structure and says what does not hold. Nothing is changed.

use std::collections::HashMap;

use super::chunks::pack::{self, Trust};
use super::index::keys::{self, Family};
use super::index::scan::VersionRow;
use super::model::{Dirent, FileKind, Inode, Recipe, Xattr};
use super::open::Progress;
use super::{Index, Store};
use crate::types::{ChunkId, Ino, Lsn, Result, VolumeId};

/// Problems listed one by one; beyond it they are counted.
pub const PROBLEMS_MAX: usize = 1000;

/// What `fsck` saw.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// One sentence each.
    pub problems: Vec<String>,
    /// Problems beyond [`PROBLEMS_MAX`].
    pub more_problems: u64,
    /// Versions of items read and verified.
    pub versions: u64,
    /// Chunks whose references were counted.
    pub chunks: u64,
    /// Journal records whose checksum and chain were verified.
    pub records: u64,
    /// Pack frames whose checksums were verified.
    pub frames: u64,
    /// Chunks that nothing names; their bytes await the rewriting of their packs.
    pub dead_chunks: u64,
    /// Pack bytes of such chunks, those never named by any record included.
    pub dead_bytes: u64,
}

impl Findings {
    fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        } else {
            self.more_problems += 1;
        }
    }
}

#[derive(Default)]
struct Node {
    kind: Option<FileKind>,
    nlink: u32,
    entries: u64,
    named: u32,
    subdirs: u32,
    found_entries: u64,
}

#[derive(Default)]
struct Sweep {
    references: HashMap<ChunkId, u64>,
    digest: u128,
    nodes: HashMap<(VolumeId, Ino), Node>,
}

impl Store {
    /// Verifies journal, index, packs and reference counts against each other. On a store that is being
    /// written the caller holds off writers.
    ///
    /// # Errors
    /// Only what stops the check itself; everything that does not hold is in the findings.
    pub fn check(&self, progress: Progress<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        progress("checking the journal", 0);
        self.check_journal(&mut findings);
        progress("checking the index", 25);
        let sweep = self.check_versions(&mut findings)?;
        progress("counting references", 50);
        let stored = self.check_chunks(&sweep, &mut findings)?;
        progress("checking the packs", 75);
        self.check_packs(&stored, &mut findings)?;
        check_tree(&self.index, &sweep, &mut findings);
        progress("checked", 100);
        Ok(findings)
    }

    fn check_journal(&self, findings: &mut Findings) {
        let records = match self.journal.read_from(self.journal.oldest()) {
            Ok(records) => records,
            Err(e) => return findings.problem(e.to_string()),
        };
        for record in records {
            match record {
                Ok(_) => findings.records += 1,
                Err(e) => return findings.problem(e.to_string()),
            }
        }
        if let Some(reason) = self.read_only.as_ref().filter(|r| r.contains("damaged")) {
            findings.problem(reason.clone());
        }
    }

    fn check_versions(&self, findings: &mut Findings) -> Result<Sweep> {
        let mut sweep = Sweep::default();
        self.index.versions(|row| {
            findings.versions += 1;
            sweep.digest = sweep.digest.wrapping_add(Index::digest_of(&row));
            if let Err(e) = self.check_version(&row, &mut sweep) {
                findings.problem(e.to_string());
            }
            Ok(())
        })?;
        if sweep.digest != self.index.state().digest {
            findings.problem("the index's digest is not the sum of its versions".into());
        }
        Ok(sweep)
    }

    fn check_version(&self, row: &VersionRow<'_>, sweep: &mut Sweep) -> Result<()> {
        let vol = keys::volume_of(row.key);
        let ino = keys::ino_of(row.key).unwrap_or_default();
        let head = row.end.is_none();
        match keys::family_of(row.key) {
            Some(Family::Block) => {
                let recipe: Recipe = self.index.verified_item(row)?;
                for id in recipe.chunks() {
                    *sweep.references.entry(*id).or_insert(0) += 1;
                }
            }
            Some(Family::Inode) => {
                let inode: Inode = self.index.verified_item(row)?;
                if head {
                    let node = sweep.nodes.entry((vol, ino)).or_default();
                    node.kind = Some(inode.attrs.kind);
                    node.nlink = inode.attrs.nlink;
                    node.entries = inode.attrs.entries;
                }
            }
            Some(Family::Dirent) => {
                let entry: Dirent = self.index.verified_item(row)?;
                if head {
                    let parent = sweep.nodes.entry((vol, ino)).or_default();
                    parent.found_entries += 1;
                    parent.subdirs += u32::from(entry.kind == FileKind::Dir);
                    sweep.nodes.entry((vol, entry.ino)).or_default().named += 1;
                }
            }
            Some(Family::Xattr) => drop(self.index.verified_item::<Xattr>(row)?),
            None => {
                return Err(crate::types::Error::corrupt(
                    "index key",
                    crate::types::ids::hex(row.key),
                    "no family has such keys",
                ));
            }
        }
        Ok(())
    }

    /// Compares counts; returns where every chunk of the index lies.
    fn check_chunks(
        &self,
        sweep: &Sweep,
        findings: &mut Findings,
    ) -> Result<HashMap<ChunkId, pack::Location>> {
        let mut stored = HashMap::new();
        self.index.chunks(|id, entry| {
            findings.chunks += 1;
            let counted = sweep.references.get(&id).copied().unwrap_or(0);
            if counted != entry.refs {
                findings.problem(format!("chunk {id}: {} references stored, {counted} counted", entry.refs));
            }
            if entry.refs == 0 {
                findings.dead_chunks += 1;
                findings.dead_bytes += entry.location.frame_bytes();
            }
            stored.insert(id, entry.location);
            Ok(())
        })?;
        for id in sweep.references.keys().filter(|id| !stored.contains_key(*id)) {
            findings.problem(format!("chunk {id} is named by a recipe and unknown to the index"));
        }
        Ok(stored)
    }

    fn check_packs(&self, stored: &HashMap<ChunkId, pack::Location>, findings: &mut Findings) -> Result<()> {
        let mut missing = stored.clone();
        for id in pack::list(&*self.disk, &self.layout.packs)? {
            let scanned = pack::scan(
                &*self.disk,
                &self.layout.packs,
                self.id,
                id,
                0,
                Trust::Frames,
                &mut |chunk, location| {
                    findings.frames += 1;
                    match stored.get(&chunk) {
                        Some(at) if *at == location => drop(missing.remove(&chunk)),
                        // Packed twice, or never named: dead.
                        _ => findings.dead_bytes += location.frame_bytes(),
                    }
                    Ok(())
                },
            );
            match scanned {
                Ok(report) => {
                    let finished = report.footer == pack::Footer::Whole;
                    for (damage, error) in report.damage.iter().zip(report.errors()) {
                        let named =
                            missing.values().any(|at| at.pack == id && damage.bytes.contains(&at.offset))
                                || (damage.bytes.start == 0 && stored.values().any(|at| at.pack == id));
                        if finished || named {
                            findings.problem(error.to_string());
                        } else {
                            // In a pack that a crash ended, what no record names is what a power cut left
                            // of writes that nobody had synced.
                            findings.dead_bytes += damage.bytes.end.saturating_sub(damage.bytes.start);
                        }
                    }
                }
                Err(e) => findings.problem(e.to_string()),
            }
        }
        for (id, location) in &missing {
            let path = pack::pack_path(&self.layout.packs, location.pack);
            findings.problem(format!(
                "chunk {id} is not in {} at offset {}",
                path.display(),
                location.offset
            ));
        }
        Ok(())
    }
}

fn check_tree(index: &Index, sweep: &Sweep, findings: &mut Findings) {
    let state = index.state();
    for ((vol, ino), node) in &sweep.nodes {
        let Some(volume) = state.volumes.get(vol).filter(|v| !v.deleted) else { continue };
        let place = format!("volume {}, inode {ino}", volume.name);
        let Some(kind) = node.kind else {
            findings.problem(format!("{place}: an entry names it, but it does not exist"));
            continue;
        };
        let root = *ino == Ino::ROOT;
        let expected = match kind {
            FileKind::Dir => {
                if node.entries != node.found_entries {
                    let (kept, found) = (node.entries, node.found_entries);
                    findings.problem(format!("{place}: {kept} entries stored, {found} found"));
                }
                if node.named + u32::from(root) == 0 { 0 } else { 2 + node.subdirs }
            }
            _ => node.named,
        };
        if node.nlink != expected {
            findings.problem(format!("{place}: {} links stored, {expected} found", node.nlink));
        }
    }
    for (vol, volume) in &state.volumes {
        for at in volume.snapshots.keys() {
            if *at > state.applied || *at == Lsn::ZERO {
                findings.problem(format!("volume {vol}: a snapshot lies at the impossible record {at}"));
            }
        }
    }
}
