//! Chunks: are they counted right, and do their frames hold.

use std::collections::{BTreeMap, HashMap};

use super::sweep::Sweep;
use super::{DamagedChunk, Findings, lost_text};
use crate::store::Store;
use crate::store::affected::Affected;
use crate::store::chunks::pack::{self, Footer, Location, ScanReport, Trust};
use crate::store::index::Frozen;
use crate::store::index::rows::ChunkEntry;
use crate::store::problem::Part;
use crate::types::{ChunkId, PackId, Result};

/// Damaged chunks kept; a store with more has lost a disk.
const DAMAGED_MAX: usize = 1 << 20;

impl Store {
    /// Compares counts with the recipes and every place with the packs. Frames at or behind `end` came later.
    pub(super) fn check_packs(
        &self,
        frozen: &Frozen<'_>,
        sweep: &Sweep,
        end: (PackId, u64),
        findings: &mut Findings,
    ) -> Result<()> {
        let stored = match check_counts(frozen, sweep, findings) {
            Ok(stored) => stored,
            Err(e) => {
                findings.problem(Part::Index, e);
                return Ok(());
            }
        };
        let mut missing: HashMap<ChunkId, ChunkEntry> =
            stored.iter().filter(|(_, e)| !e.location.is_lost()).map(|(id, e)| (*id, *e)).collect();
        for id in pack::list(&*self.disk, &self.layout.packs)? {
            let scanned = pack::scan(
                &*self.disk,
                &self.layout.packs,
                self.id,
                id,
                0,
                Trust::Frames,
                &mut |chunk, location| {
                    if (id, location.offset) >= end {
                        return Ok(());
                    }
                    findings.frames += 1;
                    match stored.get(&chunk) {
                        Some(entry) if entry.location == location => drop(missing.remove(&chunk)),
                        // Packed twice, or never named: dead.
                        _ => findings.dead_bytes += location.frame_bytes(),
                    }
                    Ok(())
                },
            );
            match scanned {
                Ok(report) => judge(id, &report, &missing, &stored, end, findings),
                // Rewritten and deleted meanwhile.
                Err(_) if pack::is_gone(&*self.disk, &self.layout.packs, id) => {}
                Err(e) => findings.problem(Part::Pack, e),
            }
        }
        for (id, entry) in &missing {
            if self.index.chunk(id)?.is_none_or(|now| now.location != entry.location) {
                continue;
            }
            let path = pack::pack_path(&self.layout.packs, entry.location.pack);
            let detail =
                format!("chunk {id} is not in {} at offset {}", path.display(), entry.location.offset);
            findings.damaged_chunk(*id, entry, detail);
        }
        for (id, entry) in &stored {
            if let Some(detail) = lost_text(id, &entry.location).filter(|_| entry.refs > 0) {
                findings.damaged_chunk(*id, entry, detail);
            }
        }
        Ok(())
    }
}

impl Findings {
    /// Notes a chunk that cannot be read.
    pub(in crate::store) fn damaged_chunk(&mut self, id: ChunkId, entry: &ChunkEntry, detail: String) {
        self.problem(Part::Pack, &detail);
        if self.damaged.len() < DAMAGED_MAX {
            let lost = entry.location.is_lost();
            self.damaged.push(DamagedChunk { id, detail, lost, affected: Affected::default() });
        }
    }
}

/// What one pack's scan means.
fn judge(
    id: PackId,
    report: &ScanReport,
    missing: &HashMap<ChunkId, ChunkEntry>,
    stored: &HashMap<ChunkId, ChunkEntry>,
    end: (PackId, u64),
    findings: &mut Findings,
) {
    let finished = report.footer == Footer::Whole;
    for (damage, error) in report.damage.iter().zip(report.errors()) {
        if (id, damage.bytes.start) >= end {
            continue;
        }
        let inside = |at: &Location| at.pack == id && damage.bytes.contains(&at.offset);
        let named = missing.values().any(|e| inside(&e.location))
            || (damage.bytes.start == 0 && stored.values().any(|e| e.location.pack == id));
        if finished || named {
            findings.problem(Part::Pack, error);
        } else {
            // In a pack that a crash ended, what no record names is what a power cut left
            // of writes that nobody had synced.
            findings.dead_bytes += damage.bytes.end.saturating_sub(damage.bytes.start);
        }
    }
    if let Footer::Unusable(why) = &report.footer
        && id < end.0
    {
        // After a crash while it was written this is no sign of a bad disk, and no frame depends on it.
        findings.notes.push(format!("{}: its footer is not usable ({why})", report.path.display()));
        if report.damage.is_empty() {
            findings.footers.push(id);
        }
    }
}

/// Compares counts; returns what the index knows of every chunk.
fn check_counts(
    frozen: &Frozen<'_>,
    sweep: &Sweep,
    findings: &mut Findings,
) -> Result<HashMap<ChunkId, ChunkEntry>> {
    let mut stored = HashMap::new();
    let mut live: BTreeMap<PackId, u64> = BTreeMap::new();
    frozen.chunks(|id, entry| {
        findings.chunks += 1;
        let counted = sweep.references.get(&id).copied().unwrap_or(0);
        if counted != entry.refs {
            let text = format!("chunk {id}: {} references stored, {counted} counted", entry.refs);
            findings.problem(Part::Derived, text);
        }
        if entry.refs == 0 {
            findings.dead_chunks += 1;
            findings.dead_bytes += entry.location.frame_bytes();
        } else if !entry.location.is_lost() {
            *live.entry(entry.location.pack).or_default() += entry.location.frame_bytes();
        }
        stored.insert(id, entry);
        Ok(())
    })?;
    for id in sweep.references.keys().filter(|id| !stored.contains_key(*id)) {
        findings.problem(Part::Index, format!("chunk {id} is named by a recipe and unknown to the index"));
    }
    let packs: BTreeMap<PackId, u64> =
        frozen.state.packs.iter().map(|(id, stat)| (*id, stat.live_bytes)).filter(|(_, n)| *n > 0).collect();
    let known: std::collections::BTreeSet<PackId> = packs.keys().chain(live.keys()).copied().collect();
    for pack in known {
        let (kept, found) = (packs.get(&pack).copied(), live.get(&pack).copied());
        if kept != found {
            let (kept, found) = (kept.unwrap_or(0), found.unwrap_or(0));
            let text = format!("pack {:016x}: {kept} live bytes stored, {found} found", pack.0);
            findings.problem(Part::Derived, text);
        }
    }
    Ok(stored)
}
