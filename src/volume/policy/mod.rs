//! What volumes do by themselves: snapshots by schedule and of completed files, marks of the continuous window,
//! and letting go of what neither retention nor the limits of space let stay.

pub mod alarm;
pub mod burst;
pub(super) mod completed;
mod globs;
pub(super) mod keeper;
pub mod retention;
mod space;
mod text;

pub use globs::Globs;
pub use text::{Setting, SettingError};

use super::{FsError, FsResult, Volume, Volumes};
use crate::store::model::{Edit, Policy};
use crate::types::{Lsn, Timestamp};

/// What is really kept of a volume's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Since when every record is readable.
    pub records_since: Option<Timestamp>,
    /// The oldest mark.
    pub marks_since: Option<Timestamp>,
    /// Marks.
    pub marks: u64,
    /// The oldest point of all.
    pub history_since: Option<Timestamp>,
}

impl Volume {
    /// Its policy.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when the volume is gone.
    pub fn policy(&self) -> FsResult<Policy> {
        self.with_state(|v| v.policy.clone())
    }

    /// Changes its policy; durable when this returns. With `dry_run` only says what it would be.
    ///
    /// # Errors
    /// [`FsError::Refused`] for what the policy does not allow.
    pub fn set_policy(&self, settings: &[Setting], dry_run: bool) -> FsResult<Policy> {
        self.check_writable()?;
        let _admin = self.shared.admin.lock();
        let before = self.policy()?;
        let mut policy = before.clone();
        let now = self.shared.now();
        for setting in settings {
            setting.apply(&mut policy, now).map_err(|why| FsError::Refused(why.to_owned()))?;
        }
        if dry_run || policy == before {
            return Ok(policy);
        }
        // What the old policy promised of the present must not be lost by the new one.
        if before.continuous_secs > 0 && policy.continuous_secs < before.continuous_secs {
            self.shared.mark(self.vol)?;
        }
        let lsn =
            self.commit(vec![Edit::PolicySet { vol: self.vol, policy: Box::new(policy.clone()) }], None)?;
        self.shared.store.sync(lsn)?;
        self.shared.keeping.wake();
        Ok(policy)
    }

    /// What is really kept.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when the volume is gone.
    pub fn kept(&self) -> FsResult<Kept> {
        self.with_state(|volume| {
            let readable = || volume.points.values().filter(|p| !p.deleting);
            let marks = || readable().filter(|p| p.is_mark());
            let records_since = volume.floor_time;
            let oldest = readable().map(|p| p.time).next();
            Kept {
                records_since,
                marks_since: marks().map(|p| p.time).next(),
                marks: marks().count() as u64,
                history_since: oldest.into_iter().chain(records_since).min(),
            }
        })
    }

    /// Notes that the state at `at` is being read, so that nothing takes it away for a while.
    pub fn touch(&self, at: Lsn) {
        self.shared.readers.touch(self.vol, at);
    }
}

impl Volumes {
    /// Begins to do what the policies say.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start_keeper(&self) -> FsResult<()> {
        if self.shared.store.read_only().is_none() {
            *self.keeper.lock() = Some(keeper::Keeper::start(&self.shared)?);
        }
        Ok(())
    }

    /// Has `listener` hear of bursts from now on.
    pub fn listen(&self, listener: crossbeam_channel::Sender<alarm::Alert>) {
        self.shared.keeping.alarms.listen(listener);
    }

    /// What an operator should know of schedules, retention and bursts.
    pub fn problems(&self) -> Vec<String> {
        self.shared.keeping.problems()
    }
}
