//! What the control socket tells of policies.

use serde::{Deserialize, Serialize};

use super::times::rfc3339;
use crate::types::Timestamp;

/// A policy, as `policy show --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// Of which volume.
    pub volume: String,
    /// Only what it would be.
    pub dry_run: bool,
    /// The settings in the form in which they are set: name and value; `on-close` and `exclude` once for each
    /// glob.
    pub settings: Vec<(String, String)>,
    /// What is really kept.
    pub kept: WindowReport,
}

/// The window of the past that is really kept, besides snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowReport {
    /// The oldest moment that is readable.
    #[serde(with = "rfc3339")]
    pub oldest: Timestamp,
    /// From here on, every record is readable.
    #[serde(with = "rfc3339")]
    pub continuous: Timestamp,
    /// Since when every minute in which something changed is readable.
    #[serde(with = "rfc3339")]
    pub minutes: Timestamp,
    /// Marks of such minutes.
    pub marks: u64,
}
