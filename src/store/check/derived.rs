//! What `apply` keeps beside the versions and could be computed from them: digest, counters, the dead list,
//! pending rows, stages, what is being erased.

use std::collections::BTreeMap;

use super::Findings;
use super::sweep::{Sweep, Totals, ended_hash};
use crate::store::Store;
use crate::store::index::Frozen;
use crate::store::index::frozen::EndedRow;
use crate::store::index::keys::{self, Family};
use crate::store::index::rows::{Stored, Volume};
use crate::store::model::Recipe;
use crate::store::problem::Part;
use crate::types::{Ino, Lsn, Result, VolumeId};

impl Store {
    /// Compares what is stored with what all versions come to.
    pub(super) fn check_derived(&self, frozen: &Frozen<'_>, sweep: &Sweep, findings: &mut Findings) {
        if sweep.digest != frozen.state.digest {
            findings.problem(Part::Derived, "the index's digest is not the sum of its versions");
        }
        for (vol, volume) in &frozen.state.volumes {
            let none = Totals::default();
            let totals = sweep.totals.get(vol).unwrap_or(&none);
            for (what, kept, found) in [
                ("live bytes", volume.live_bytes, totals.live_bytes),
                ("history bytes", volume.history_bytes, totals.history_bytes),
                ("inodes", volume.inodes, totals.inodes),
            ] {
                if kept != found {
                    let text = format!("volume {}: {kept} {what} stored, {found} found", volume.name);
                    findings.problem(Part::Derived, text);
                }
            }
        }
        for checked in [
            check_dead_list(frozen, sweep, findings),
            check_pending(frozen, sweep, findings),
            check_stages(frozen, findings),
            check_purges(frozen, findings),
        ] {
            if let Err(e) = checked {
                findings.problem(Part::Index, e);
            }
        }
    }
}

/// Every version of the history stands in the dead list once, where forgetting will look for it.
fn check_dead_list(frozen: &Frozen<'_>, sweep: &Sweep, findings: &mut Findings) -> Result<()> {
    let mut listed: BTreeMap<VolumeId, (u64, u128)> = BTreeMap::new();
    frozen.ended(|row| {
        let (count, sum) = listed.entry(row.vol).or_default();
        *count += 1;
        *sum = sum.wrapping_add(ended_hash(&row.head, row.end));
        let Some(volume) = frozen.state.volumes.get(&row.vol).filter(|v| !v.deleted) else { return Ok(()) };
        let version = frozen.ended_version(&row.head, row.end)?;
        if let Some(wrong) = wrong_row(volume, &row, version.as_ref()) {
            let inode = keys::ino_of(&row.head).unwrap_or_default();
            let text = format!("volume {}, dead list, inode {inode}, end {}: {wrong}", volume.name, row.end);
            findings.problem(Part::Derived, text);
        }
        Ok(())
    })?;
    // The sweep of a deleted volume takes its dead list first.
    for (vol, volume) in frozen.state.volumes.iter().filter(|(_, v)| !v.deleted) {
        let (count, sum) = listed.get(vol).copied().unwrap_or_default();
        let (versions, expected) = sweep.totals.get(vol).map_or((0, 0), |t| t.history);
        if (count, sum) != (versions, expected) {
            let name = &volume.name;
            let text = format!(
                "volume {name}: {versions} versions in the history, the dead list has {count} and not the same"
            );
            findings.problem(Part::Derived, text);
        }
    }
    Ok(())
}

fn wrong_row(volume: &Volume, row: &EndedRow, version: Option<&Stored>) -> Option<String> {
    let Some(version) = version else { return Some("there is no such version".into()) };
    let bytes = match keys::family_of(&row.head) {
        Some(Family::Block) => Recipe::join_public(&version.public).map_or(0, |r| r.data_bytes()),
        _ => 0,
    };
    // A rebind may have made zeros of small holes since.
    if row.bytes > bytes {
        return Some(format!("{} data bytes stored, {bytes} found", row.bytes));
    }
    misplaced(volume, row.first, version.since, row.end)
}

/// Why a version that lived from `since` to `end` does not belong where its row has it.
fn misplaced(volume: &Volume, first: Lsn, since: Lsn, end: Lsn) -> Option<String> {
    if since >= end {
        return Some(format!("it begins at {since}"));
    }
    let until = if first == Lsn::ZERO { end } else { first };
    // Snapshots only come behind all ends and only go: who needs a version is known when it ends.
    if let Some((at, _)) = volume.points.range(since..until.max(since)).find(|(_, s)| !s.deleting) {
        return Some(format!("the snapshot at {at} needs it, its row says {first}"));
    }
    let kept = first == Lsn::ZERO || (first < end && volume.points.range(first..end).next().is_some());
    (!kept).then(|| format!("its row says that the snapshot at {first} needs it, which is gone"))
}

/// Every pending row names a block version that wants it; what must not stay as it is has a row.
fn check_pending(frozen: &Frozen<'_>, sweep: &Sweep, findings: &mut Findings) -> Result<()> {
    let mut wanting = sweep.wanting.clone();
    let deleted = |vol: &VolumeId| frozen.state.volumes.get(vol).is_none_or(|v| v.deleted);
    frozen.pending(|vol, [ino, block, since]| {
        if wanting.remove(&(vol, Ino(ino), block, Lsn(since))).is_none() && !deleted(&vol) {
            let text = format!("volume {vol}, inode {ino}, block {block}: pending, but no version wants it");
            findings.problem(Part::Derived, text);
        }
        Ok(())
    })?;
    for ((vol, ino, block, _), must) in wanting {
        if must && !deleted(&vol) {
            let text = format!("volume {vol}, inode {ino}, block {block}: its inline bytes are not pending");
            findings.problem(Part::Derived, text);
        }
    }
    Ok(())
}

/// A stage's numbers are used up, each by one stage: what is left of it can be removed by number.
fn check_stages(frozen: &Frozen<'_>, findings: &mut Findings) -> Result<()> {
    let mut before: Option<(VolumeId, u64)> = None;
    frozen.stages(|vol, from, to| {
        let Some(volume) = frozen.state.volumes.get(&vol).filter(|v| !v.deleted) else { return Ok(()) };
        let overlaps = before.is_some_and(|(v, end)| v == vol && from < end);
        if overlaps || from <= Ino::ROOT.0 || from >= to || to > volume.next_ino {
            let text = format!("volume {}: a stage has inodes {from} to {to}, which cannot be", volume.name);
            findings.problem(Part::Derived, text);
        }
        before = Some((vol, to));
        Ok(())
    })
}

/// What is being erased was once made, and is no root.
fn check_purges(frozen: &Frozen<'_>, findings: &mut Findings) -> Result<()> {
    frozen.purges(|vol, ino| {
        let volume = frozen.state.volumes.get(&vol).filter(|v| !v.deleted);
        if let Some(volume) = volume.filter(|v| ino <= Ino::ROOT || ino.0 >= v.next_ino) {
            let text = format!("volume {}: inode {ino} is being erased, and cannot be", volume.name);
            findings.problem(Part::Derived, text);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::rows::Snapshot;
    use crate::store::model::SnapshotSpec;
    use crate::types::Timestamp;

    #[test]
    fn a_version_stands_with_the_first_snapshot_that_needs_it() {
        let mut volume = Volume::new("v".into(), Lsn(1));
        for (at, deleting) in [(10, false), (20, true), (30, false)] {
            let spec = SnapshotSpec { name: at.to_string(), view: 1, ..SnapshotSpec::default() };
            let point = Snapshot { spec, time: Timestamp::default(), deleting, next_ino: 2 };
            volume.points.insert(Lsn(at), point);
        }
        let wrong = |first, since, end| misplaced(&volume, Lsn(first), Lsn(since), Lsn(end)).is_some();
        assert!(!wrong(10, 5, 11) && !wrong(10, 5, 40) && !wrong(30, 11, 31) && !wrong(0, 11, 25));
        assert!(!wrong(12, 11, 31), "of a snapshot that was deleted; 30 has it now");
        assert!(wrong(0, 5, 11) && wrong(30, 5, 31), "the snapshot at 10 needs it");
        assert!(wrong(22, 21, 25), "no snapshot will let go of it");
        assert!(wrong(0, 9, 9), "no life at all");
    }
}
