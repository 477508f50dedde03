//! `fsck`: reads the structure and says what does not hold. Nothing is changed, and writers go on: what is
//! compared is the index as it was at one record, the journal up to it, and the packs, which only grow.
//!
//! `sweep` reads every version, `derived` compares what `apply` derives from them, `packs` the chunks.

mod derived;
mod packs;
mod sweep;

use std::collections::{BTreeSet, HashSet};

use super::affected::{Affected, GoOn, affected};
use super::chunks::pack;
use super::index::Frozen;
use super::journal;
use super::keys::Keyring;
use super::layout::{identify, is_ghost, node_of};
use super::problem::{Part, Problem};
use super::replay::Progress;
use super::sums::{Seen, edited_settings};
use super::{Config, Store};
use crate::types::{ChunkId, Error, Lsn, OsDisk, PackId, Result};

/// Problems listed one by one; beyond it they are counted.
pub const PROBLEMS_MAX: usize = 1000;

/// A chunk that some recipe names and that cannot be read.
#[derive(Clone, Debug)]
pub struct DamagedChunk {
    /// Its name.
    pub id: ChunkId,
    /// What did not hold, with pack and offset.
    pub detail: String,
    /// Whether it was given up already; see [`pack::Location::LOST`].
    pub lost: bool,
    /// Who needs it.
    pub affected: Affected,
}

/// What `fsck` saw.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The record at which the store was looked at.
    pub at: Lsn,
    /// What does not hold.
    pub problems: Vec<Problem>,
    /// Problems beyond [`PROBLEMS_MAX`].
    pub more_problems: u64,
    /// The parts that all of them are in.
    pub parts: BTreeSet<Part>,
    /// What does not hold and does no harm, one sentence each.
    pub notes: Vec<String>,
    /// Chunks that are named and cannot be read; each is among the problems, too.
    pub damaged: Vec<DamagedChunk>,
    /// Checkpoints that cannot be used.
    pub checkpoints: Vec<Lsn>,
    /// Packs whose frames are whole and whose footer is not.
    pub footers: Vec<PackId>,
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
    /// Whether everything holds.
    pub fn clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether something in that part does not hold.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    pub(super) fn problem(&mut self, part: Part, text: impl ToString) {
        self.parts.insert(part);
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { part, text: text.to_string() });
        } else {
            self.more_problems += 1;
        }
    }
}

impl Store {
    /// Verifies journal, index, packs and reference counts against each other. Writers may go on.
    ///
    /// # Errors
    /// Only what stops the check itself; everything that does not hold is in the findings.
    pub fn check(&self, progress: Progress<'_>) -> Result<Findings> {
        let frozen = self.index.freeze();
        // After the index was frozen: everything that it names lies below this.
        let end = self.chunks.end();
        let mut findings = Findings { at: frozen.state.applied, ..Findings::default() };
        for problem in &self.damage {
            findings.problem(problem.part, &problem.text);
        }
        findings.notes.extend(self.notes.iter().cloned());
        self.check_small_files(&mut findings);
        progress("checking the journal", 0);
        self.check_journal(findings.at, &mut findings, |_| Ok(Ok(())))?;
        progress("checking the index", 25);
        if let Some(sweep) = self.check_versions(&frozen, &mut findings) {
            progress("counting references", 50);
            self.check_derived(&frozen, &sweep, &mut findings);
            progress("checking the packs", 75);
            self.check_packs(&frozen, &sweep, end, &mut findings)?;
        }
        self.check_index_files(&mut findings)?;
        self.name_files(&frozen, &mut findings, &|| Ok(()))?;
        progress("checked", 100);
        Ok(findings)
    }

    /// Whether what was read once, when the store was opened, is still what lies on the disk.
    pub(super) fn check_small_files(&self, findings: &mut Findings) {
        let identity = identify(&self.layout.root).and_then(|id| match id == self.id {
            true => Ok(()),
            false => Err(Error::corrupt(
                "store identity",
                self.layout.identity.display().to_string(),
                "it is another store's",
            )),
        });
        let keyring = Keyring::load(&OsDisk, &self.layout.keyring).map(drop);
        let config = Config::load(&OsDisk, &self.layout.config).map(drop);
        let node = node_of(&self.layout.root).map(drop);
        for e in [identity, keyring, config, node].into_iter().filter_map(Result::err) {
            findings.problem(Part::Small, e);
        }
        findings.notes.extend(edited_settings(&self.layout.root));
    }

    /// Verifies checksum and chain of the records up to `last`, and what `verify` says of each; its outer error
    /// ends the reading.
    pub(super) fn check_journal(
        &self,
        last: Lsn,
        findings: &mut Findings,
        mut verify: impl FnMut(&journal::Record) -> Result<Result<()>>,
    ) -> Result<()> {
        let mut next = self.journal.oldest();
        while next <= last {
            let records = self.journal.read_from(next)?;
            for record in records.take_while(|r| r.as_ref().map_or(true, |r| r.lsn <= last)) {
                let verified = match record {
                    Ok(record) => verify(&record)?.map(|()| record.lsn),
                    Err(e) => Err(e),
                };
                match verified {
                    Ok(lsn) => {
                        findings.records += 1;
                        next = lsn.next();
                    }
                    // Let go of meanwhile, because no checkpoint needs it any more.
                    Err(_) if self.journal.oldest() > next => break,
                    Err(e) => {
                        findings.problem(Part::Journal, e);
                        return Ok(());
                    }
                }
            }
            next = next.max(self.journal.oldest());
            if self.journal.last().0 < next {
                break;
            }
        }
        Ok(())
    }

    /// Compares all files of index and checkpoints with their sums.
    fn check_index_files(&self, findings: &mut Findings) -> Result<()> {
        let mut seen = Seen::new();
        for problem in self.index.compare_tables(self.index.path(), &mut seen, &|_| Ok(()))? {
            findings.problem(Part::Table, problem);
        }
        findings.notes.extend(self.index.changed().iter().map(|text| format!("{text}; it was replaced")));
        self.check_checkpoints(&mut seen, findings);
        Ok(())
    }

    fn check_checkpoints(&self, seen: &mut Seen, findings: &mut Findings) {
        for (lsn, path) in self.layout.checkpoints_made() {
            let reached = super::index::checkpoint_reaches(&path, &self.sealer)
                .and_then(|at| super::index::compare_checkpoint(&path, seen, &|_| Ok(())).map(|()| at));
            // One that retention has removed meanwhile is no problem.
            if is_ghost(&path) {
                continue;
            }
            let wrong = match reached {
                Ok(at) if at >= lsn => continue,
                Ok(at) => format!("it holds records up to {at} only"),
                Err(e) => e.to_string(),
            };
            findings.checkpoints.push(lsn);
            let place = path.display().to_string();
            findings.problem(Part::Checkpoint, Error::corrupt("checkpoint", place, wrong));
        }
    }

    /// Looks up which files need the chunks that cannot be read.
    pub(super) fn name_files(
        &self,
        frozen: &Frozen<'_>,
        findings: &mut Findings,
        go_on: GoOn<'_>,
    ) -> Result<()> {
        let ids: HashSet<ChunkId> = findings.damaged.iter().map(|d| d.id).collect();
        let mut found = affected(&self.index, frozen, &ids, go_on)?;
        for damaged in &mut findings.damaged {
            damaged.affected = found.remove(&damaged.id).unwrap_or_default();
        }
        Ok(())
    }
}

/// What a chunk without readable bytes is called.
fn lost_text(id: &ChunkId, location: &pack::Location) -> Option<String> {
    location.is_lost().then(|| format!("chunk {id}: its bytes are lost; writing them again brings it back"))
}
