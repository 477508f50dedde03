//! From the files of a store to a journal, an index that fits it and the chunks: tries the index as it is,
//! then the checkpoints, newest first, then an empty one, and replays the journal over each until one holds.
//!
//! Where nothing may be written (the store is opened for reading, or its journal is damaged) an index that
//! must be rebuilt is rebuilt beside the real one, which then is still there to be looked at.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Problems;
use super::chunks::ChunkStore;
use super::chunks::pack;
use super::config::Config;
use super::index::{self, Index, IndexOptions};
use super::journal::{Chain, Journal, JournalOptions, Outcome, RecoveryReport, UnorderedTail};
use super::keys::Sealer;
use super::layout::{Layout, remove_tree};
use super::problem::{Part, Problem};
use super::replay::{Replay, Replayed};
use super::room::Room;
use crate::types::{Disk, Error, Lsn, Result, StoreUuid, limits};

pub use super::replay::Progress;

/// How large the store's files get.
#[derive(Clone, Copy, Debug)]
pub struct FileBytes {
    /// A journal segment.
    pub segment: u64,
    /// A pack.
    pub pack: u64,
}

impl Default for FileBytes {
    fn default() -> FileBytes {
        FileBytes { segment: limits::SEGMENT_BYTES, pack: limits::PACK_BYTES }
    }
}

/// What an open store consists of.
pub(super) struct Base {
    pub(super) journal: Journal,
    pub(super) index: Index,
    pub(super) chunks: ChunkStore,
    /// Bytes of packs that were read for the replay.
    pub(super) scanned_bytes: u64,
    /// What does not hold on the disk and was not mended.
    pub(super) damage: Vec<Problem>,
    /// What the next opening for writing will do by itself.
    pub(super) notes: Vec<String>,
}

pub(super) struct Opener<'a> {
    pub(super) layout: &'a Layout,
    pub(super) id: StoreUuid,
    pub(super) sealer: &'a Arc<Sealer>,
    pub(super) config: &'a Config,
    pub(super) disk: &'a Arc<dyn Disk>,
    pub(super) room: &'a Arc<Room>,
    pub(super) file_bytes: FileBytes,
    pub(super) wants_writes: bool,
    pub(super) give_up_chunks: bool,
}

/// Why there is no index, if there is none.
const MISSING: &str = "it is missing";

/// An index to begin replay from, in place of the one that is there.
enum Candidate {
    Checkpoint(Lsn, PathBuf),
    Empty,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Candidate::Checkpoint(lsn, _) => write!(f, "the checkpoint at {lsn}"),
            Candidate::Empty => f.write_str("the journal"),
        }
    }
}

impl Opener<'_> {
    /// Whether damage in that part keeps the store from being written.
    pub(super) fn blocks_writing(&self, part: Part) -> bool {
        part == Part::Journal || (part == Part::Pack && !self.give_up_chunks)
    }

    fn open_index(&self, path: &Path) -> Result<Index> {
        let options = IndexOptions {
            block_cache_bytes: self.config.index_cache_bytes as usize,
            compacts: self.wants_writes,
        };
        Index::open(path, self.sealer.clone(), options)
    }

    fn journal(&self, proven: (Lsn, Lsn), cut_after: Option<Lsn>) -> Result<(Journal, RecoveryReport)> {
        let (verify_from, must_reach) = proven;
        let options = JournalOptions {
            verify_from,
            must_reach,
            cut_after,
            unordered_tail: UnorderedTail::Cut,
            segment_bytes: self.file_bytes.segment,
            ..JournalOptions::default()
        };
        let open = if self.wants_writes { Journal::open } else { Journal::open_read_only };
        open(self.disk.clone(), &self.layout.journal, self.id, options)
    }

    /// Opens everything so that the index is at the journal's end and on its chain.
    ///
    /// # Errors
    /// No index can be had at all, or something cannot be read.
    pub(super) fn base(&self, problems: &mut Problems, progress: Progress<'_>) -> Result<Base> {
        remove_tree(&self.layout.index_scratch)?;
        let present = self.layout.index.join("CURRENT").exists();
        let mut first = self.first_index(present)?;
        let applied = first.as_ref().map_or(Lsn::ZERO, |i| i.state().applied);
        let checkpoints = self.layout.checkpoints_made();
        let witness = checkpoints.first().map_or(applied, |(at, _)| applied.max(*at));
        let (mut journal, report) = self.journal((applied, witness), None)?;
        let mut damage: Vec<Problem> = journal_damage(&report.outcome, applied).into_iter().collect();
        let mut notes = if self.wants_writes { Vec::new() } else { tail_note(&report.outcome) };
        let damaged = !damage.is_empty();
        let writable = self.wants_writes && !damaged;
        let (disk, packs) = (self.disk.clone(), &self.layout.packs);
        let writing = writable.then(|| (self.room.pack_bytes(self.file_bytes.pack), self.room.clone()));
        let chunks = ChunkStore::open(disk, packs, self.id, self.sealer.clone(), self.config, writing)?;
        if first.is_ok() && applied < witness {
            // Packs that it names may have been rewritten since; behind damage the journal cannot bring it up.
            first = Err(format!("it is at record {applied}, behind the checkpoint at {witness}"));
        }
        let search = Search { opener: self, journal: &journal, chunks: &chunks, damaged, writable };
        let found = search.index(first, checkpoints, progress)?;
        if let Some(problem) = damage.first().filter(|_| found.index.state().volumes.is_empty()) {
            let (shown, nothing) = ("what is shown is the state before it", "nothing is left to be shown");
            return Err(Error::Invalid(problem.text.replace(shown, nothing)));
        }
        if let Some(cut_after) = found.replayed.cut_after {
            drop(journal);
            journal = self.journal((cut_after, cut_after), Some(cut_after))?.0;
        }
        damage.extend(found.replayed.lost_problem());
        if let Some(text) = found.rebuilt {
            match (writable, present) {
                (true, _) => problems.push(text),
                (false, true) => damage.push(Problem::new(Part::Index, text)),
                // It may be missing at any time; the next mount makes it anew.
                (false, false) => notes.push(text),
            }
        }
        let scanned_bytes = found.replayed.scanned_bytes;
        Ok(Base { journal, index: found.index, chunks, scanned_bytes, damage, notes })
    }

    /// The index as it lies there, or why it cannot be used.
    fn first_index(&self, present: bool) -> Result<Result<Index, String>> {
        Ok(match present.then(|| self.open_index(&self.layout.index)) {
            None => Err(MISSING.to_owned()),
            Some(Ok(index)) => Ok(index),
            // A full disk is no reason to throw an index away, and one that fails now may not the next time.
            Some(Err(e)) if is_full(&e) => {
                let index = self.layout.index.display();
                return Err(Error::NoSpace(match self.wants_writes {
                    true => index.to_string(),
                    false => {
                        format!("{index}, where a look writes a little; a mount has room kept back for it")
                    }
                }));
            }
            Some(Err(e)) if is_unreadable(&e) => return Err(self.unreadable(&e)),
            Some(Err(e)) => Err(e.to_string()),
        })
    }

    fn unreadable(&self, e: &Error) -> Error {
        let index = self.layout.index.display();
        Error::Index(format!(
            "{index} cannot be read ({e}); nothing was changed; if the disk works again, removing {index} has it rebuilt"
        ))
    }

    /// Says that an index was rebuilt: for good, or beside the one that does not hold.
    fn rebuilt_text(&self, from: &Candidate, why: &str, for_good: bool) -> String {
        if for_good {
            return format!("the index was rebuilt from {from}: {why}");
        }
        let place = self.layout.index.display();
        format!("damaged index in {place}: {why}; what is shown was rebuilt from {from}")
    }

    /// Whether replay can go on from the index: it is not ahead of the journal, the records behind it are
    /// there, and the chain at its LSN is the journal's.
    fn fits(&self, journal: &Journal, index: &Index, journal_damaged: bool) -> Result<()> {
        let (applied, chain) = {
            let state = index.state();
            (state.applied, Chain(state.chain))
        };
        let (last, last_chain) = journal.last();
        let refuse =
            |detail: String| Err(Error::corrupt("index", self.layout.index.display().to_string(), detail));
        if applied > last {
            // Of a damaged journal the index may know more than can be read; it is then the better witness.
            return if journal_damaged {
                Ok(())
            } else {
                refuse(format!("it is at record {applied}, the journal ends at {last}"))
            };
        }
        if applied.next() < journal.oldest() {
            return refuse(format!("it is at record {applied}, the journal begins at {}", journal.oldest()));
        }
        let expected = if applied == last {
            Some(last_chain)
        } else if applied == Lsn::ZERO {
            None
        } else if applied >= journal.oldest() {
            journal.read_from(applied)?.next().transpose()?.map(|r| r.chain)
        } else {
            None
        };
        if applied != Lsn::ZERO && expected.is_some_and(|e| e != chain) {
            return refuse(format!(
                "its record {applied} is not the journal's: two halves of different stores"
            ));
        }
        Ok(())
    }
}

/// What to bring an index up with.
struct Search<'a> {
    opener: &'a Opener<'a>,
    journal: &'a Journal,
    chunks: &'a ChunkStore,
    /// The journal ends in damage.
    damaged: bool,
    /// An index may be put in place of the one that is there.
    writable: bool,
}

/// An index at the journal's end.
struct Found {
    index: Index,
    replayed: Replayed,
    /// That it is not the one that was there, and why; of a new store nothing is said.
    rebuilt: Option<String>,
}

impl Search<'_> {
    /// Tries `first`, then the checkpoints, then an empty index.
    fn index(
        &self,
        first: Result<Index, String>,
        checkpoints: Vec<(Lsn, PathBuf)>,
        progress: Progress<'_>,
    ) -> Result<Found> {
        let mut why = match first.map(|index| self.brought_up(index, progress)) {
            Ok(Ok((index, replayed))) => return Ok(Found { index, replayed, rebuilt: None }),
            // Whatever else keeps it from being brought up, another index does not change.
            Ok(Err(e)) if !blames_index(&e) => return Err(e),
            Ok(Err(e)) => e.to_string(),
            Err(why) => why,
        };
        let young = why == MISSING && self.journal.last().0 == Lsn::ZERO;
        if !young {
            tracing::warn!(%why, "rebuilding the index");
            progress("rebuilding the index", 0);
        }
        let checkpoints = checkpoints.into_iter().map(|(lsn, path)| Candidate::Checkpoint(lsn, path));
        for candidate in checkpoints.chain([Candidate::Empty]) {
            self.chunks.forget_found();
            let rebuilt = self.rebuild(&candidate).and_then(|index| self.brought_up(index, progress));
            match rebuilt {
                Ok((index, replayed)) => {
                    let text = self.opener.rebuilt_text(&candidate, &why, self.writable);
                    return Ok(Found { index, replayed, rebuilt: (!young).then_some(text) });
                }
                Err(e) if is_full(&e) => return Err(e),
                Err(e) => {
                    tracing::warn!(error = %e, "an index cannot be used");
                    why = format!("{why}; from {candidate}: {e}");
                }
            }
        }
        Err(Error::corrupt("index", self.opener.layout.index.display().to_string(), why))
    }

    fn brought_up(&self, index: Index, progress: Progress<'_>) -> Result<(Index, Replayed)> {
        let opener = self.opener;
        opener.fits(self.journal, &index, self.damaged)?;
        if self.writable {
            // Opening the journal made the records durable, and from then on they count as that.
            pack::make_durable(&**opener.disk, &opener.layout.packs, index.state().packed.0)?;
        }
        let replay = Replay {
            disk: &**opener.disk,
            packs: &opener.layout.packs,
            store: opener.id,
            sealer: opener.sealer,
            journal: self.journal,
            chunks: self.chunks,
            damaged: self.damaged,
        };
        let replayed = replay.run(&index, progress)?;
        Ok((index, replayed))
    }

    /// Puts an index from elsewhere in place of the one that is there, or beside it.
    fn rebuild(&self, from: &Candidate) -> Result<Index> {
        let layout = self.opener.layout;
        let at = if self.writable { &layout.index } else { &layout.index_scratch };
        if matches!(from, Candidate::Empty) && self.journal.oldest() > Lsn(1) {
            // Before what is there is removed for nothing.
            let text = format!("it begins at record {}", self.journal.oldest());
            return Err(Error::corrupt("journal", layout.journal.display().to_string(), text));
        }
        remove_tree(at)?;
        if let Candidate::Checkpoint(_, path) = from {
            index::restore_checkpoint(path, at)?;
        }
        self.opener.open_index(at)
    }
}

/// Whether another index may do better.
fn blames_index(e: &Error) -> bool {
    match e {
        Error::Index(_) => !is_full(e) && !is_unreadable(e),
        Error::Corrupt { what, .. } => what.starts_with("index") || *what == "chunk count",
        _ => false,
    }
}

fn is_full(e: &Error) -> bool {
    matches!(e, Error::NoSpace(_)) || e.to_string().contains("No space left")
}

/// Whether the disk failed, which says nothing of what lies on it.
fn is_unreadable(e: &Error) -> bool {
    e.to_string().contains("Input/output error")
}

/// What is wrong with the journal, if something is.
fn journal_damage(outcome: &Outcome, applied: Lsn) -> Option<Problem> {
    match outcome {
        Outcome::Damaged(d) => {
            let shown = if applied < d.lsn_expected {
                "what is shown is the state before it"
            } else {
                "what is shown is the state that the index has"
            };
            let (file, at, lsn) = (d.file.display(), d.offset, d.lsn_expected);
            let text =
                format!("damaged journal in {file} at offset {at}: record {lsn}: {}; {shown}", d.detail);
            tracing::error!("{text}");
            Some(Problem::new(Part::Journal, text))
        }
        Outcome::TornTail(t) => {
            tracing::warn!(file = %t.file.display(), lsn = %t.lsn, detail = %t.detail, "a torn journal tail");
            None
        }
        _ => None,
    }
}

/// What a crash left at the journal's end, as long as it is there.
fn tail_note(outcome: &Outcome) -> Vec<String> {
    let note = match outcome {
        Outcome::TornTail(t) => {
            let (file, at, lsn) = (t.file.display(), t.offset, t.lsn);
            Some(format!(
                "{file}: the end of the journal from offset {at} on, record {lsn}, is torn ({}); the next mount cuts it off",
                t.detail
            ))
        }
        Outcome::TornHeader { file } => {
            Some(format!("{}: torn while it was made; the next mount makes it anew", file.display()))
        }
        _ => None,
    };
    note.into_iter().collect()
}
