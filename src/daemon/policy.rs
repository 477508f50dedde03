//! Policies over the control socket.

use serde::{Deserialize, Serialize};

use super::control::Caller;
use super::handler::Handler;
use super::protocol::{ControlError, Response, Target};
use super::report::WindowReport;
use super::rights::control_error;
use crate::types::Ino;
use crate::volume::policy::{Kept, Setting};
use crate::volume::{FsError, READ, Volume};

/// A policy, as `policy show --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// Of which volume.
    pub volume: String,
    /// Only what it would be.
    pub dry_run: bool,
    /// The settings in the form in which they are set: name and value; `on-close` once for each glob.
    pub settings: Vec<(String, String)>,
    /// What is really kept.
    pub kept: WindowReport,
}

/// What is really kept of a volume's history.
pub(super) fn window(volume: &Volume) -> Result<WindowReport, FsError> {
    let Kept { records_since, marks_since, marks, history_since } = volume.kept()?;
    let created = volume.getattr(None, Ino::ROOT)?.attrs.btime;
    Ok(WindowReport {
        oldest: history_since.unwrap_or(created),
        continuous: records_since.unwrap_or(created),
        minutes: marks_since.into_iter().chain(records_since).min().unwrap_or(created),
        marks,
    })
}

/// `policy show` and, with settings, `policy set`.
pub(super) fn policy(
    handler: &Handler,
    caller: &Caller,
    target: &Target,
    settings: &[String],
    dry_run: bool,
) -> Result<Response, ControlError> {
    if !settings.is_empty() {
        handler.admin(caller, "changing a policy")?;
    }
    let settings = Setting::all(settings).map_err(|e| ControlError::usage(e.to_string()))?;
    let volume = handler.volume(caller, target, READ)?;
    let failed = |e| control_error(&format!("policy of volume {}", volume.name()), e);
    let policy = volume.set_policy(&settings, dry_run || settings.is_empty()).map_err(failed)?;
    let texts = Setting::of(&policy).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let kept = window(&volume).map_err(failed)?;
    Ok(Response::Policy(PolicyInfo { volume: volume.name().to_owned(), dry_run, settings: texts, kept }))
}
