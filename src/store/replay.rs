//! Applying the journal's records behind the index.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Instant;

use super::chunks::ChunkStore;
use super::chunks::pack::{self, Footer, Location, Trust};
use super::index::apply::Place;
use super::index::scan::PendingBlock;
use super::index::{Index, Locate};
use super::journal::Journal;
use super::keys::Sealer;
use super::model::{Edit, Piece, Record};
use super::problem::{Part, Problem};
use super::record_aad;
use crate::types::{ChunkId, Disk, Error, Lsn, PackId, Result, StoreUuid, Term};

/// Told how far a long opening is: what is done, and hundredths.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64);

/// Chunks named in the sentence about lost ones.
const LOST_NAMED: usize = 3;

/// What replay works on.
pub(super) struct Replay<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) packs: &'a std::path::Path,
    pub(super) store: StoreUuid,
    pub(super) sealer: &'a Sealer,
    pub(super) journal: &'a Journal,
    pub(super) chunks: &'a ChunkStore,
    /// Whether the journal ends in damage, so that nothing of it may be cut off.
    pub(super) damaged: bool,
}

/// What replay found.
#[derive(Default)]
pub(super) struct Replayed {
    /// Behind which record the journal is to be cut, because the next names a chunk that a power cut took
    /// from the packs.
    pub(super) cut_after: Option<Lsn>,
    /// Bytes of packs that were read to find chunks, because they have no footers.
    pub(super) scanned_bytes: u64,
    /// Chunks that durable records name and that are in no pack.
    lost: BTreeSet<ChunkId>,
}

impl Replayed {
    /// What is to be said of lost chunks, if there are any.
    pub(super) fn lost_problem(&self) -> Option<Problem> {
        let count = self.lost.len();
        let named: Vec<String> = self.lost.iter().take(LOST_NAMED).map(ChunkId::to_string).collect();
        let more = if count > LOST_NAMED { ", …" } else { "" };
        let text =
            format!("{count} chunks that the journal names are in no pack: {}{more}", named.join(", "));
        (count > 0).then(|| Problem::new(Part::Pack, text))
    }
}

/// Counts as lost what is in no pack.
struct OrLost<'a> {
    chunks: &'a ChunkStore,
    lost: RefCell<BTreeSet<ChunkId>>,
}

impl Locate for OrLost<'_> {
    fn locate(&self, id: &ChunkId) -> Option<Location> {
        Some(self.chunks.locate(id).unwrap_or_else(|| {
            self.lost.borrow_mut().insert(*id);
            Location::LOST
        }))
    }
}

impl Replay<'_> {
    /// Applies the records behind the index.
    pub(super) fn run(&self, index: &Index, progress: Progress<'_>) -> Result<Replayed> {
        let (applied, packed) = {
            let state = index.state();
            (state.applied, state.packed)
        };
        let last = self.journal.last().0;
        let mut replayed = Replayed::default();
        if applied >= last {
            return Ok(replayed);
        }
        let start = Instant::now();
        replayed.scanned_bytes = self.find_chunks(packed)?;
        let locate = OrLost { chunks: self.chunks, lost: RefCell::default() };
        let total = last.0 - applied.0;
        let mut synced = None;
        for (done, framed) in self.journal.read_from(applied.next())?.enumerate() {
            let framed = framed?;
            let record = self.record(framed.lsn, framed.term, &framed.body)?;
            if !self.damaged
                && let Some(missing) = missing_chunk(&record, index, self.chunks)?
                && self.synced_up_to(framed.lsn, &mut synced)? < framed.lsn
            {
                tracing::warn!(lsn = %framed.lsn, chunk = %missing, "a journal tail whose chunks were lost");
                replayed.cut_after = Some(index.state().applied);
                break;
            }
            // The low mark of the first record holds for all: what is behind it was scanned.
            let place = Place { lsn: framed.lsn, term: framed.term, chain: framed.chain.0, packed };
            index.apply(place, &record, &locate)?;
            if done % 4096 == 0 {
                progress("replaying the journal", done as u64 * 100 / total);
            }
        }
        self.chunks.forget_found();
        for id in locate.lost.into_inner() {
            // Of those that nothing names any more the packs have been rewritten.
            if index.chunk(&id)?.is_some_and(|e| e.location.is_lost() && e.refs > 0) {
                replayed.lost.insert(id);
            }
        }
        let (to, ms) = (index.state().applied, start.elapsed().as_millis() as u64);
        tracing::info!(from = %applied, %to, scanned = replayed.scanned_bytes, ms, "journal replayed");
        Ok(replayed)
    }

    /// Learns which chunks lie in the packs from that place on. Returns how many bytes had to be read for it.
    fn find_chunks(&self, from: (PackId, u64)) -> Result<u64> {
        let mut read = 0;
        for id in pack::list(self.disk, self.packs)?.into_iter().filter(|id| *id >= from.0) {
            let at = if id == from.0 { from.1 } else { 0 };
            let mut found = |id, location| {
                self.chunks.found(id, location);
                Ok(())
            };
            let report = pack::scan(self.disk, self.packs, self.store, id, at, Trust::Footer, &mut found)?;
            if report.footer != Footer::Whole {
                read += report.valid_end.saturating_sub(at);
            }
        }
        Ok(read)
    }

    /// The last record that any record from `lsn` on says was durable; the journal's last record says most, so
    /// the answer is the same for all, and `known` once it was found.
    fn synced_up_to(&self, lsn: Lsn, known: &mut Option<Lsn>) -> Result<Lsn> {
        if let Some(synced) = known {
            return Ok(*synced);
        }
        let mut synced = Lsn::ZERO;
        for framed in self.journal.read_from(lsn)? {
            let framed = framed?;
            synced = synced.max(self.record(framed.lsn, framed.term, &framed.body)?.durable);
        }
        *known = Some(synced);
        Ok(synced)
    }

    fn record(&self, lsn: Lsn, term: Term, body: &[u8]) -> Result<Record> {
        open_record(self.sealer, lsn, term, body)
    }
}

/// Opens the body of a journal frame.
///
/// # Errors
/// [`Error::Corrupt`] naming the record.
pub(super) fn open_record(sealer: &Sealer, lsn: Lsn, term: Term, body: &[u8]) -> Result<Record> {
    let bad = |detail: String| Error::corrupt("journal record", format!("lsn {lsn}"), detail);
    let plain = sealer.open(&record_aad(lsn, term), body).map_err(|e| bad(e.to_string()))?;
    Record::decode(&plain).map_err(|e| bad(e.to_string()))
}

/// A chunk that applying the record needs and that is neither in the index nor was found in a pack.
fn missing_chunk(record: &Record, index: &Index, chunks: &ChunkStore) -> Result<Option<ChunkId>> {
    for edit in &record.edits {
        let pieces = match edit {
            Edit::PatchBlock { pieces, .. } => pieces.as_slice(),
            // Of a version that is gone, apply ignores it, and its chunks may be gone as well.
            Edit::Rebind { vol, ino, block, since, recipe } => {
                let item = PendingBlock { vol: *vol, ino: *ino, block: *block, since: *since };
                if index.block_version(&item)?.is_some() { recipe.pieces() } else { &[] }
            }
            _ => &[],
        };
        for id in pieces.iter().filter_map(Piece::chunk) {
            if chunks.locate(id).is_none() && index.chunk(id)?.is_none() {
                return Ok(Some(*id));
            }
        }
    }
    Ok(None)
}
