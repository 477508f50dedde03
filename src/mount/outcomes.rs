//! What became of requests that the server before carried out and did not answer. The kernel sends them
//! again, and they are answered from here instead of being carried out a second time.

use std::collections::HashMap;
use std::io;

use crate::store::model::Edit;
use crate::types::Ino;
use crate::volume::Volume;

/// What a record did, as far as an answer needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// What got a name.
    pub(super) named: Option<Ino>,
    /// What lost its last name.
    pub(super) orphan: Option<Ino>,
}

/// By request number, without the bit of repetition.
#[derive(Debug, Default)]
pub(super) struct Outcomes(HashMap<u64, Outcome>);

impl Outcomes {
    /// Of the requests of a connection that were under way when the server before ended.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub(super) fn of(volume: &Volume, connection: u64) -> io::Result<Outcomes> {
        let Some(after) = volume.arena().in_flight().inherited() else { return Ok(Outcomes::default()) };
        let records = volume.store().requests_after(after).map_err(io::Error::other)?;
        let ours = records.into_iter().filter(|(request, _)| request.connection == connection);
        Ok(Outcomes(ours.map(|(request, edits)| (request.unique, outcome(&edits))).collect()))
    }

    pub(super) fn of_request(&self, unique: u64) -> Option<&Outcome> {
        self.0.get(&unique)
    }
}

fn outcome(edits: &[Edit]) -> Outcome {
    let mut outcome = Outcome::default();
    for edit in edits {
        match edit {
            Edit::PutDirent { dirent, .. } => outcome.named = Some(dirent.ino),
            Edit::Orphan { ino, orphan: true, .. } => outcome.orphan = Some(*ino),
            _ => {}
        }
    }
    outcome
}
