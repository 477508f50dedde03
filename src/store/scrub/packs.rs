//! Every chunk: read, seal opened, unpacked, hashed again.

use std::collections::{BTreeMap, HashSet};

use super::{STEP_BYTES, forget_cached};
use crate::store::Store;
use crate::store::check::Findings;
use crate::store::chunks::pack::{self, Footer, Trust};
use crate::store::control::Control;
use crate::store::index::Frozen;
use crate::store::problem::Part;
use crate::types::{ChunkId, PackId, Result};

/// How many chunks of a pack there are, and the sum of their names: enough to tell that one is missing without
/// a list of all.
type Tally = (u64, u128);

fn add(tally: &mut Tally, id: &ChunkId) {
    tally.0 += 1;
    tally.1 = tally.1.wrapping_add(id.0.first_chunk().map_or(0, |b| u128::from_le_bytes(*b)));
}

struct Round<'a> {
    store: &'a Store,
    frozen: &'a Frozen<'a>,
    control: &'a Control,
    bad: HashSet<ChunkId>,
    findings: &'a mut Findings,
}

impl Store {
    /// Verifies the chunks below `end`, in the order in which they lie on the disk. Packs below `from` were
    /// read before.
    pub(super) fn scrub_packs(
        &self,
        frozen: &Frozen<'_>,
        (from, end): (PackId, (PackId, u64)),
        control: &Control,
        findings: &mut Findings,
    ) -> Result<()> {
        let mut expected: BTreeMap<PackId, Tally> = BTreeMap::new();
        let mut lost = Vec::new();
        let counted = frozen.chunks(|id, entry| {
            control.advance(0)?;
            match entry.location.is_lost() {
                true if entry.refs > 0 => lost.push((id, entry)),
                true => {}
                false => add(expected.entry(entry.location.pack).or_default(), &id),
            }
            Ok(())
        });
        match counted {
            Err(e) if control.is_cancelled() => return Err(e),
            Err(e) => {
                findings.problem(Part::Index, e);
                return Ok(());
            }
            Ok(()) => {}
        }
        expected.retain(|id, _| *id >= from);
        for (id, entry) in lost {
            let detail = format!("chunk {id}: its bytes are lost; writing them again brings it back");
            findings.damaged_chunk(id, &entry, detail);
        }
        let mut round = Round { store: self, frozen, control, bad: HashSet::new(), findings };
        let mut incomplete: HashSet<PackId> = HashSet::new();
        for id in pack::list(&*self.disk, &self.layout.packs)?.into_iter().filter(|id| *id >= from) {
            let seen = round.pack(id, end)?;
            if expected.remove(&id).is_some_and(|all| all != seen) {
                incomplete.insert(id);
            }
            // The next round by itself goes on here if this one is interrupted.
            self.remember_scrub(|last| last.next_pack = PackId(id.0.saturating_add(1)));
        }
        incomplete.extend(expected.keys());
        round.missing(&incomplete)
    }
}

impl Round<'_> {
    /// Reads one pack from its beginning to its end; returns which chunks of the index were met.
    fn pack(&mut self, id: PackId, end: (PackId, u64)) -> Result<Tally> {
        let store = self.store;
        let packs = &store.layout.packs;
        forget_cached(&pack::pack_path(packs, id));
        let mut seen = Tally::default();
        let scanned =
            pack::scan(&*store.disk, packs, store.id, id, 0, Trust::Frames, &mut |chunk, location| {
                self.control.advance(location.frame_bytes() + STEP_BYTES)?;
                if (id, location.offset) >= end {
                    return Ok(());
                }
                let Some(entry) = self.frozen.chunk(&chunk)?.filter(|e| e.location == location) else {
                    // Packed twice, or never named: dead.
                    return Ok(());
                };
                add(&mut seen, &chunk);
                self.findings.frames += 1;
                if let Err(e) = store.chunks.verify(&store.index, &location, &chunk)
                    && self.bad.insert(chunk)
                {
                    self.findings.damaged_chunk(chunk, &entry, e.to_string());
                }
                Ok(())
            });
        match scanned {
            Ok(report) => {
                // What lies in an unfinished pack and nobody named is what a crash left.
                if report.footer == Footer::Whole {
                    report.errors().for_each(|e| self.findings.problem(Part::Pack, e));
                }
                if let Footer::Unusable(why) = &report.footer
                    && id < end.0
                {
                    let text = format!("{}: its footer is not usable ({why})", report.path.display());
                    self.findings.notes.push(text);
                }
            }
            Err(e) if self.control.is_cancelled() => return Err(e),
            // Rewritten and deleted meanwhile: what it held is looked for where it lies now.
            Err(_) if pack::is_gone(&*store.disk, packs, id) => {}
            Err(e) => self.findings.problem(Part::Pack, e),
        }
        Ok(seen)
    }

    /// Names the chunks of those packs that cannot be read.
    fn missing(&mut self, packs: &HashSet<PackId>) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        self.frozen.chunks(|id, entry| {
            self.control.advance(0)?;
            if packs.contains(&entry.location.pack)
                && let Err(e) = self.store.chunks.verify(&self.store.index, &entry.location, &id)
                && self.bad.insert(id)
            {
                self.findings.damaged_chunk(id, &entry, e.to_string());
            }
            Ok(())
        })
    }
}
