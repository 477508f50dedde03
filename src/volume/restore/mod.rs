//! Bringing back what was: a tree at a point takes the place of the live one, in one step and by metadata.
//!
//! `plan` compares both trees, `stage` prepares out of sight what has to come back, `switch` makes it visible by
//! one record behind a barrier, right after a snapshot of what that replaces. `clean` removes what was replaced,
//! and what a restore that was cut short had prepared.
//!
//! The plan is made while programs go on. What they change after it and before the barrier is in the snapshot, so
//! nothing of it is lost; where it concerns a directory that the record changes, the plan is made anew; otherwise
//! it counts as done after the restore.

mod clean;
mod kept;
mod plan;
mod rights;
mod stage;
mod switch;
mod walk;

pub use clean::Emptied;

use super::user::User;
use super::{FsError, FsResult, SnapshotRow, Volume, Volumes};
use crate::types::{Ino, Lsn};
use plan::Planner;

/// How often the plan is made anew because programs changed what it is about.
const TRIES: usize = 8;

/// Told what is done, how many inodes of how many.
type Progress<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

/// What is to be brought back.
#[derive(Clone, Debug)]
pub struct Restore {
    /// From which point, which must be readable.
    pub at: Lsn,
    /// The names that lead to it from the volume's root.
    pub path: Vec<Vec<u8>>,
    /// Where a copy of it goes, if it is not to be put in its own place: a live directory and a name that nothing
    /// has in it.
    pub to: Option<(Ino, Vec<u8>)>,
    /// Who asks, if that is somebody without privilege.
    pub actor: Option<User>,
}

/// What a restore does, in names; a directory counts as replaced when it only gets its attributes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Names that did not exist, or did as something else.
    pub brought_back: u64,
    /// Names of files whose content or attributes were others.
    pub replaced: u64,
    /// Names that were not there at the point.
    pub removed: u64,
    /// Bytes of data in what comes back; none of them is copied.
    pub bytes: u64,
}

/// What a kernel that has seen the tree must be told to forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Names, with their directories.
    pub entries: Vec<(Ino, Vec<u8>)>,
    /// Inodes whose attributes changed.
    pub inodes: Vec<Ino>,
    /// Of them those that have lost their last name.
    pub orphans: Vec<Ino>,
}

/// What a restore came to.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The snapshot of what was replaced; none if nothing was.
    pub snapshot: Option<SnapshotRow>,
    /// What was done, or would be.
    pub counts: Counts,
    /// For the kernel.
    pub touched: Touched,
}

impl Volumes {
    /// Brings back a file or a tree, durable and visible when this returns, or with `dry_run` says what that
    /// would change.
    ///
    /// # Errors
    /// [`FsError::Refused`] with the reason, [`FsError::Denied`] for want of rights, [`FsError::Stale`] when the
    /// point is or was forgotten meanwhile, [`FsError::Exists`] for the name of a copy. Then nothing has changed.
    pub fn restore(
        &self,
        volume: &Volume,
        restore: &Restore,
        dry_run: bool,
        progress: Progress<'_>,
    ) -> FsResult<Restored> {
        if !dry_run {
            volume.check_writable()?;
        }
        let _one = volume.restoring.lock();
        for _ in 0..TRIES {
            // The plan compares what is committed.
            if self.shared.store.read_only().is_none() {
                self.shared.flush_all()?;
            }
            let plan = Planner::new(volume, restore).run()?;
            if !volume.is_readable(restore.at) {
                return Err(FsError::Stale);
            }
            let counts = plan.counts;
            if dry_run || plan.is_empty() {
                return Ok(Restored { counts, ..Restored::default() });
            }
            // What comes back has a history, so points are to show where it lies.
            if let Some((dir, _)) = &restore.to
                && volume.shows(*dir)?
            {
                continue;
            }
            let stage = volume.stage(restore, &plan, progress)?;
            if let Some(restored) = self.switch(volume, restore, &plan, stage)? {
                return Ok(restored);
            }
        }
        Err(FsError::Refused("programs change the tree all the time; stop them and try again".into()))
    }
}
