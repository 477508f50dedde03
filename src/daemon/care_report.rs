//! What `fsck` and `scrub` answer; as in `report`, what `--json` prints of it is a stable format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::store::check::{DamagedChunk, Findings};
use crate::store::{FilePlace, When};

/// Problems that one report lists; the others are only counted.
pub const FSCK_PROBLEMS_MAX: usize = 1000;
/// Bytes of paths in one report: what is beyond them is only counted, so that a reply stays within its limit.
const PATH_BYTES_MAX: usize = 4 << 20;

/// One thing that `fsck` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckProblem {
    /// Kind of object ("journal record", "reference count").
    pub what: String,
    /// File and offset, or key.
    pub place: String,
    /// What did not hold.
    pub detail: String,
}

impl FsckProblem {
    /// Takes the sentence of the store layer ("damaged WHAT in PLACE: DETAIL") apart where it has that form.
    pub fn of(text: &str) -> FsckProblem {
        let parts = text.strip_prefix("damaged ").and_then(|t| t.split_once(" in "));
        let (what, place, detail) = match parts.and_then(|(what, rest)| Some((what, rest.split_once(": ")?)))
        {
            Some((what, (place, detail))) => (what, place, detail),
            None => {
                let (place, detail) = text.split_once(": ").unwrap_or(("", text));
                ("structure", place, detail)
            }
        };
        FsckProblem { what: what.to_owned(), place: place.to_owned(), detail: detail.to_owned() }
    }
}

/// A file that needs a damaged chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffectedFile {
    /// The volume's name.
    pub volume: String,
    /// The snapshot; None when it is the file as it is now, or as the window still has it.
    pub snapshot: Option<String>,
    /// The file as it is now.
    pub live: bool,
    /// Its path from the volume's root; bytes that are no UTF-8 are replaced.
    pub path: String,
}

impl From<&FilePlace> for AffectedFile {
    fn from(place: &FilePlace) -> AffectedFile {
        let snapshot = match &place.when {
            When::Snapshot(name) => Some(name.clone()),
            When::Live | When::Window => None,
        };
        let path = String::from_utf8_lossy(&place.path).into_owned();
        AffectedFile { volume: place.volume.clone(), snapshot, live: place.when == When::Live, path }
    }
}

/// A chunk that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedChunkReport {
    /// Its name, in hex.
    pub chunk: String,
    /// What did not hold, with pack and offset.
    pub detail: String,
    /// The files that need it, live and in snapshots.
    pub files: Vec<AffectedFile>,
    /// How many more there are.
    pub files_more: u64,
}

/// What `fsck` or `scrub` found, as `--json` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckReport {
    /// The store's directory.
    pub store: String,
    /// The record at which it was looked at.
    #[serde(default)]
    pub lsn: u64,
    /// Nothing is wrong.
    pub clean: bool,
    /// What was looked at: kind and count.
    pub checked: BTreeMap<String, u64>,
    /// What is wrong; at most [`FSCK_PROBLEMS_MAX`].
    pub problems: Vec<FsckProblem>,
    /// How many more there are.
    pub problems_more: u64,
    /// What is not as it should be and does no harm.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The chunks that cannot be read, with the files that need them; each is among the problems, too.
    #[serde(default)]
    pub damaged: Vec<DamagedChunkReport>,
    /// How many more there are.
    #[serde(default)]
    pub damaged_more: u64,
}

impl FsckReport {
    /// The report of what was found in the store at `store`.
    pub fn of(store: String, findings: &Findings) -> FsckReport {
        let listed = findings.problems.iter().take(FSCK_PROBLEMS_MAX);
        let checked = [
            ("versions", findings.versions),
            ("chunks", findings.chunks),
            ("records", findings.records),
            ("frames", findings.frames),
            ("dead_chunks", findings.dead_chunks),
            ("dead_bytes", findings.dead_bytes),
        ];
        let (damaged, damaged_more) = damaged_chunks(&findings.damaged);
        FsckReport {
            store,
            lsn: findings.at.0,
            clean: findings.clean(),
            checked: checked.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            problems: listed.map(|p| FsckProblem::of(&p.text)).collect(),
            problems_more: findings.more_problems,
            notes: findings.notes.iter().take(FSCK_PROBLEMS_MAX).cloned().collect(),
            damaged,
            damaged_more,
        }
    }

    /// How many problems there are.
    pub fn problem_count(&self) -> u64 {
        (self.problems.len() as u64).saturating_add(self.problems_more)
    }
}

/// Those listed, and how many are not.
fn damaged_chunks(found: &[DamagedChunk]) -> (Vec<DamagedChunkReport>, u64) {
    let mut room = PATH_BYTES_MAX;
    let mut listed = Vec::new();
    for damaged in found.iter().take(FSCK_PROBLEMS_MAX) {
        let mut files = Vec::new();
        for place in &damaged.affected.files {
            let bytes = place.path.len() + place.volume.len();
            if bytes > room {
                room = 0;
                break;
            }
            room -= bytes;
            files.push(AffectedFile::from(place));
        }
        let hidden = (damaged.affected.files.len() - files.len()) as u64;
        let files_more = damaged.affected.more.saturating_add(hidden);
        let (chunk, detail) = (damaged.id.to_string(), damaged.detail.clone());
        listed.push(DamagedChunkReport { chunk, detail, files, files_more });
    }
    let more = (found.len() - listed.len()) as u64;
    (listed, more)
}

/// What `fsck --repair` did or would do, as `--json` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// The plan's id.
    pub plan: String,
    /// Nothing was changed.
    pub dry_run: bool,
    /// The steps, as sentences.
    pub steps: Vec<String>,
    /// What no step mends, as sentences.
    pub cannot: Vec<String>,
    /// Where what was moved aside lies.
    pub aside: Option<String>,
    /// The step that failed; those behind it were not done.
    pub failed: Option<String>,
    /// What `fsck` found; after the repair, if there was one.
    pub fsck: FsckReport,
}

/// What is wanted of scrubbing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubAction {
    /// Begin a round, or join the one that runs.
    Start,
    /// Say how far it is.
    Look,
    /// End the round that runs.
    Cancel,
}

/// How far a scrub is, as `--json` shows it; one line each while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubState {
    /// A round runs.
    pub running: bool,
    /// What is being read.
    pub what: String,
    /// Bytes read.
    pub done_bytes: u64,
    /// Bytes there are to read, as far as is known.
    pub total_bytes: u64,
    /// Bytes a second so far.
    pub bytes_per_second: u64,
    /// Seconds left at that rate.
    pub eta_seconds: Option<u64>,
    /// What the last round of this server found; None while the first one runs.
    pub report: Option<FsckReport>,
    /// Why the last round did not come to its end.
    pub failed: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Affected;
    use crate::types::ChunkId;

    #[test]
    fn a_sentence_comes_apart() {
        let problem = FsckProblem::of("damaged pack in /p/1.pack at offset 7: torn; 3 bytes are affected");
        assert_eq!((problem.what.as_str(), problem.place.as_str()), ("pack", "/p/1.pack at offset 7"));
        assert_eq!(FsckProblem::of("no form").detail, "no form");
    }

    #[test]
    fn paths_are_listed_up_to_a_limit_and_counted_beyond() {
        let place = |n: u64| FilePlace {
            volume: "main".into(),
            when: When::Live,
            path: [vec![b'x'; 4096], n.to_be_bytes().to_vec()].concat(),
        };
        let affected = Affected { files: (0..1000).map(place).collect(), more: 5 };
        let damaged = |n| DamagedChunk {
            id: ChunkId([n; 32]),
            detail: "d".into(),
            lost: false,
            affected: affected.clone(),
        };
        let findings = Findings { damaged: (0..4).map(damaged).collect(), ..Findings::default() };
        let report = FsckReport::of("/s".into(), &findings);
        let (shown, more) =
            report.damaged.iter().fold((0, 0), |(s, m), d| (s + d.files.len(), m + d.files_more));
        assert_eq!(shown as u64 + more, 4 * 1005);
        assert!(shown > 900 && shown < 1100, "{shown}");
    }
}
