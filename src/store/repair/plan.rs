//! What is to be done about what `fsck` found, decided without a single write.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::store::Store;
use crate::store::check::{DamagedChunk, Findings};
use crate::store::index::{self, Index};
use crate::store::journal::segment::{first_of, path_of};
use crate::store::journal::{Chain, Damage, Journal, JournalOptions, Outcome, UnorderedTail};
use crate::store::problem::Part;
use crate::store::sums::Seen;
use crate::types::error::IoContext;
use crate::types::{ChunkId, Lsn, PackId, Result};

/// One thing that a repair does. Whatever it takes out of the store's way lies in the repair's own folder
/// afterwards; nothing is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Moves a checkpoint aside.
    Checkpoint {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Moves the index aside; the next opening builds another one.
    Index,
    /// Ends the journal before a damaged record.
    CutTail {
        /// The record, which and all behind it are lost.
        lost_from: Lsn,
        /// The segment that it is in, and where: what lies behind is moved aside. At 0 the whole file is.
        cut: Option<(PathBuf, u64)>,
        /// Later segments.
        segments: Vec<PathBuf>,
    },
    /// Moves segments aside whose records the index has.
    DropFront {
        /// Them.
        segments: Vec<PathBuf>,
    },
    /// Moves the whole journal aside and begins another one behind what the index has.
    BeginAnew {
        /// Its first record.
        first: Lsn,
        /// The chain before it.
        before: Chain,
        /// All segments.
        segments: Vec<PathBuf>,
    },
    /// Writes the footer of a pack anew.
    Footer {
        /// The pack.
        pack: PackId,
    },
    /// Counts chunks that cannot be read as lost.
    GiveUp {
        /// Them; those that only the journal still names are found when it is replayed.
        chunks: Vec<ChunkId>,
    },
    /// Writes the index's tables anew.
    Rewrite,
    /// Computes counters and lists of the index anew.
    Recount,
}

fn names(paths: &[PathBuf]) -> String {
    let names: Vec<String> =
        paths.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned()).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Checkpoint { path, why } => {
                write!(f, "move the checkpoint {} aside: {why}", names(std::slice::from_ref(path)))
            }
            Step::Index => f.write_str("move the index aside and build it anew from checkpoint and journal"),
            Step::CutTail { lost_from, cut, segments } => {
                write!(
                    f,
                    "end the journal before record {lost_from}, which and all later changes are lost: "
                )?;
                if let Some((path, at)) = cut {
                    write!(f, "cut {} at offset {at}, ", names(std::slice::from_ref(path)))?;
                }
                write!(f, "move aside {}", names(segments))
            }
            Step::DropFront { segments } => {
                write!(f, "move journal segments aside whose records the index has: {}", names(segments))
            }
            Step::BeginAnew { first, segments, .. } => write!(
                f,
                "move the journal aside ({}) and begin a new one at record {first}: the index has all before",
                names(segments)
            ),
            Step::Footer { pack } => write!(f, "write the footer of pack {:016x} anew", pack.0),
            Step::GiveUp { chunks } if chunks.is_empty() => {
                f.write_str("count the chunks as lost that the journal names and no pack has")
            }
            Step::GiveUp { chunks } => write!(
                f,
                "count {} unreadable chunks as lost: the files listed go on giving EIO there until they are \
                 written anew or removed",
                chunks.len()
            ),
            Step::Rewrite => {
                f.write_str("write the tables of the index anew, from rows that can all be read")
            }
            Step::Recount => f.write_str("compute the counters and lists of the index anew"),
        }
    }
}

/// What a repair would do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// What it can do nothing about, one sentence each.
    pub cannot: Vec<String>,
    /// The chunks that cannot be read, with the files that need them.
    pub damaged: Vec<DamagedChunk>,
}

impl Plan {
    /// Names the plan, so that what was agreed to is what is done.
    pub fn id(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for step in &self.steps {
            hasher.update(format!("{step:?}\n").as_bytes());
        }
        hasher.finalize().to_hex().chars().take(16).collect()
    }
}

impl Store {
    /// Decides what is to be done about `findings` of this store, which was opened for reading.
    ///
    /// # Errors
    /// The journal cannot be read at all.
    pub(super) fn plan_repair(&self, findings: &Findings) -> Result<Plan> {
        let mut plan = Plan { damaged: findings.damaged.clone(), ..Plan::default() };
        let oldest = self.plan_journal(&mut plan)?;
        self.plan_checkpoints(oldest, &mut plan);
        if findings.has(Part::Index) {
            plan.steps.push(Step::Index);
        } else {
            if findings.has(Part::Table) {
                plan.steps.push(Step::Rewrite);
            }
            if findings.has(Part::Derived) {
                plan.steps.push(Step::Recount);
            }
        }
        plan.steps.extend(findings.footers.iter().map(|pack| Step::Footer { pack: *pack }));
        let unreadable: Vec<ChunkId> = findings.damaged.iter().filter(|d| !d.lost).map(|d| d.id).collect();
        if !unreadable.is_empty() || self.damage.iter().any(|d| d.part == Part::Pack) {
            plan.steps.push(Step::GiveUp { chunks: unreadable });
        }
        let lost = findings.damaged.iter().filter(|d| d.lost).count();
        if lost > 0 {
            plan.cannot.push(format!("{lost} lost chunks stay lost until their bytes are written again"));
        }
        for problem in findings.problems.iter().filter(|p| p.part == Part::Small) {
            plan.cannot.push(format!("{}: put it back from a copy", problem.text));
        }
        self.keep_witness(findings, &mut plan);
        Ok(plan)
    }

    /// A journal that ends too early is only as good as the index that knows more; where that is damaged as
    /// well, nothing is done.
    fn keep_witness(&self, findings: &Findings, plan: &mut Plan) {
        let relies = |s: &Step| matches!(s, Step::DropFront { .. } | Step::BeginAnew { .. });
        let scratch = self.index.path() == self.layout.index_scratch;
        if findings.has(Part::Index) && !scratch && plan.steps.iter().any(relies) {
            plan.steps.clear();
            plan.cannot.push(
                "journal and index are both damaged: mount it read-only and copy out what can be read".into(),
            );
        }
    }

    /// Adds what the journal needs. Returns its oldest record afterwards.
    fn plan_journal(&self, plan: &mut Plan) -> Result<Lsn> {
        let (reached, chain) = {
            let state = self.index.state();
            (state.applied, Chain(state.chain))
        };
        let (whole, report) = self.look_at_journal(Lsn::ZERO)?;
        let segments = self.segments()?;
        let paths = |from: Lsn, below: Lsn| -> Vec<PathBuf> {
            let kept = segments.iter().filter(|first| **first >= from && **first < below);
            kept.map(|first| path_of(&self.layout.journal, *first)).collect()
        };
        let damage = match report.outcome {
            Outcome::Damaged(damage) => damage,
            _ if whole.last().0 >= reached => return Ok(whole.oldest()),
            // It is whole and ends before what the index has.
            _ => {
                let first = reached.next();
                let segments = paths(Lsn::ZERO, Lsn::MAX);
                plan.steps.push(Step::BeginAnew { first, before: chain, segments });
                return Ok(first);
            }
        };
        if reached < damage.lsn_expected {
            plan.steps.push(self.cut_tail(&damage, &segments, &paths));
            return Ok(whole.oldest());
        }
        let behind = segments.iter().find(|first| path_of(&self.layout.journal, **first) > damage.file);
        if let Some(first) = behind.copied().filter(|first| *first <= reached.next())
            && self.goes_on_from(first, reached, &chain)?
        {
            plan.steps.push(Step::DropFront { segments: paths(Lsn::ZERO, first) });
            return Ok(first);
        }
        let first = reached.next();
        plan.steps.push(Step::BeginAnew { first, before: chain, segments: paths(Lsn::ZERO, Lsn::MAX) });
        Ok(first)
    }

    fn cut_tail(&self, damage: &Damage, segments: &[Lsn], paths: &impl Fn(Lsn, Lsn) -> Vec<PathBuf>) -> Step {
        let in_file = segments.iter().find(|first| path_of(&self.layout.journal, **first) == damage.file);
        let cut = (damage.offset > 0).then(|| (damage.file.clone(), damage.offset));
        let from = match in_file {
            Some(first) if cut.is_some() => first.next(),
            Some(first) => *first,
            None => damage.lsn_expected,
        };
        Step::CutTail { lost_from: damage.lsn_expected, cut, segments: paths(from, Lsn::MAX) }
    }

    /// Whether the segments from `first` on are a journal that follows what the index has.
    fn goes_on_from(&self, first: Lsn, reached: Lsn, chain: &Chain) -> Result<bool> {
        let (rest, report) = self.look_at_journal(first)?;
        if matches!(report.outcome, Outcome::Damaged(_)) || rest.last().0 < reached {
            return Ok(false);
        }
        if rest.oldest() <= reached {
            let record = rest.read_from(reached)?.next().transpose()?;
            return Ok(record.is_some_and(|r| r.chain == *chain));
        }
        match rest.read_from(reached.next())?.next().transpose()? {
            Some(r) => Ok(chain.after(r.lsn, r.term, &r.body) == r.chain),
            None => Ok(rest.last().1 == *chain),
        }
    }

    /// Verifies every record of the segments from `first` on.
    fn look_at_journal(&self, first: Lsn) -> Result<(Journal, crate::store::journal::RecoveryReport)> {
        let options = JournalOptions {
            unordered_tail: UnorderedTail::Cut,
            ignore_before: first,
            ..JournalOptions::default()
        };
        Journal::open_read_only(self.disk.clone(), &self.layout.journal, self.id, options)
    }

    fn segments(&self) -> Result<Vec<Lsn>> {
        let dir = &self.layout.journal;
        let names = self.disk.list(dir).at("listing", dir)?;
        let mut firsts: Vec<Lsn> = names.iter().filter_map(|n| first_of(n.to_str()?)).collect();
        firsts.sort_unstable();
        Ok(firsts)
    }

    /// Adds the checkpoints that are damaged, or too old for a journal that begins at `oldest`.
    fn plan_checkpoints(&self, oldest: Lsn, plan: &mut Plan) {
        for (lsn, path) in self.layout.checkpoints_made() {
            let why = match verify_checkpoint(&path, &self.sealer) {
                Err(e) => e.to_string(),
                Ok(reached) if reached < lsn => format!("it holds records up to {reached} only"),
                Ok(reached) if reached.next() < oldest => {
                    format!("the journal will begin at record {oldest}, and it ends at {reached}")
                }
                Ok(_) => continue,
            };
            plan.steps.push(Step::Checkpoint { path, why });
        }
    }
}

/// Reads all of a checkpoint; returns the record that it reaches.
fn verify_checkpoint(path: &Path, sealer: &Arc<crate::store::keys::Sealer>) -> Result<Lsn> {
    let reached = index::checkpoint_reaches(path, sealer)?;
    index::compare_checkpoint(path, &mut Seen::new(), &|_| Ok(()))?;
    Index::open_checkpoint(path, sealer.clone())?.freeze().read_all(|_| Ok(()))?;
    Ok(reached)
}
