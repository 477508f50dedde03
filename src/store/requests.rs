//! Which requests of programs are in the journal.

use super::model::{Edit, Record, RequestId};
use super::{Store, record_aad};
use crate::types::{Error, Lsn, Result, Term};

impl Store {
    /// The records behind `after` that carry out a request, with what they did, oldest first.
    ///
    /// # Errors
    /// The journal does not reach back so far, or is damaged.
    pub fn requests_after(&self, after: Lsn) -> Result<Vec<(RequestId, Vec<Edit>)>> {
        let mut found = Vec::new();
        if after >= self.last() {
            return Ok(found);
        }
        for framed in self.journal.read_from(after.next())? {
            let framed = framed?;
            let bad =
                |detail: String| Error::corrupt("journal record", format!("lsn {}", framed.lsn), detail);
            let plain = self
                .sealer
                .open(&record_aad(framed.lsn, framed.term), &framed.body)
                .map_err(|e| bad(e.to_string()))?;
            let record = Record::decode(&plain).map_err(|e| bad(e.to_string()))?;
            if let Some(request) = record.request {
                found.push((request, record.edits));
            }
        }
        Ok(found)
    }

    /// The last record at or behind `from`, or the one before it, that no later server than that of `term`
    /// wrote: terms only grow along the journal.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn last_of(&self, term: Term, from: Lsn) -> Result<Lsn> {
        let from = from.max(self.journal.oldest());
        let mut last = Lsn(from.0.saturating_sub(1));
        if from > self.last() {
            return Ok(last);
        }
        for framed in self.journal.read_from(from)? {
            let framed = framed?;
            if framed.term > term {
                break;
            }
            last = framed.lsn;
        }
        Ok(last)
    }
}
