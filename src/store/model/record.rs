//! Records: one atomic change as its effects. Applying the same records in the same order gives the same
//! tree everywhere; nothing here is evaluated against anything but the index itself.

use super::{Edit, RequestId};
use crate::types::limits::RECORD_EDITS_MAX;
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Lsn, Timestamp};

/// One atomic change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was committed.
    pub time: Timestamp,
    /// The LSN that was known durable when it was committed: recovery may drop a tail only behind it.
    pub durable: Lsn,
    /// The kernel request it answers, if any.
    pub request: Option<RequestId>,
    /// Its effects, at most one for each key.
    pub edits: Vec<Edit>,
}

impl Record {
    /// The record's bytes, before sealing.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::with_capacity(256);
        e.i64(self.time.secs).u32(self.time.nanos).varint(self.durable.0);
        match self.request {
            None => e.u8(0),
            Some(r) => e.u8(1).u64(r.connection).u64(r.unique),
        };
        e.varint(self.edits.len() as u64);
        for edit in &self.edits {
            edit.encode(&mut e);
        }
        e.finish()
    }

    /// Reads what [`Record::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Record, WireError> {
        let mut d = Decoder::new(bytes);
        let time = Timestamp { secs: d.i64()?, nanos: d.u32()? };
        if time.nanos >= 1_000_000_000 {
            return Err(WireError::Bad("nanoseconds"));
        }
        let durable = Lsn(d.varint()?);
        let request = match d.u8()? {
            0 => None,
            1 => Some(RequestId { connection: d.u64()?, unique: d.u64()? }),
            _ => return Err(WireError::Bad("request flag")),
        };
        let count = d.count(RECORD_EDITS_MAX, "edit count")?;
        let mut edits = Vec::with_capacity(count.min(256));
        for _ in 0..count {
            edits.push(Edit::decode(&mut d)?);
        }
        d.end()?;
        Ok(Record { time, durable, request, edits })
    }
}
