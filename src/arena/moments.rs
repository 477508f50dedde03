//! The view numbers that `@POINT` names were given, so that files which are open under them outlive the
//! server.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::Shape;
use super::map::Map;
use crate::types::Lsn;

/// Moments that are kept; those beyond them end with the server.
const ROWS: usize = 1024;
/// Bytes of a row: number and volume, LSN, length of the text and flags, unused, the text.
const ROW_BYTES: usize = 128;
const TEXT: usize = 32;
const TEXT_BYTES_MAX: usize = ROW_BYTES - TEXT;
/// Bytes of the table.
pub(super) const BYTES: usize = ROWS * ROW_BYTES;
const FLAG_RELATIVE: u64 = 1 << 32;

/// What a view number of a volume means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The volume.
    pub volume: u32,
    /// The view number, never 0.
    pub number: u32,
    /// The point.
    pub at: Lsn,
    /// Whether the name counts back from now.
    pub relative: bool,
    /// The name.
    pub text: String,
}

#[derive(Debug, Default)]
struct Rows {
    of: HashMap<(u32, u32), usize>,
    free: Vec<usize>,
}

/// The table's bookkeeping.
#[derive(Debug)]
pub struct Moments {
    rows: Mutex<Rows>,
    inherited: Mutex<Vec<Moment>>,
}

fn place(row: usize) -> usize {
    Shape::MOMENTS + row * ROW_BYTES
}

impl Moments {
    pub(super) fn new() -> Moments {
        let rows = Rows { of: HashMap::new(), free: (0..ROWS).rev().collect() };
        Moments { rows: Mutex::new(rows), inherited: Mutex::default() }
    }

    pub(super) fn remember(&self, map: &Map, moment: &Moment) {
        if moment.text.len() > TEXT_BYTES_MAX {
            return;
        }
        let mut rows = self.rows.lock();
        let Some(row) = rows.free.pop() else { return };
        rows.of.insert((moment.volume, moment.number), row);
        let flags = if moment.relative { FLAG_RELATIVE } else { 0 };
        map.put(place(row) + TEXT, moment.text.as_bytes());
        map.word(place(row) + 8).store(moment.at.0, Ordering::Relaxed);
        map.word(place(row) + 16).store(moment.text.len() as u64 | flags, Ordering::Relaxed);
        let id = u64::from(moment.volume) << 32 | u64::from(moment.number);
        map.word(place(row)).store(id, Ordering::Release);
    }

    pub(super) fn forget(&self, map: &Map, volume: u32, number: u32) {
        let mut rows = self.rows.lock();
        if let Some(row) = rows.of.remove(&(volume, number)) {
            map.word(place(row)).store(0, Ordering::Release);
            rows.free.push(row);
        }
    }

    pub(super) fn recover(&self, map: &Map) {
        let mut rows = self.rows.lock();
        let mut inherited = self.inherited.lock();
        rows.free.clear();
        for row in (0..ROWS).rev() {
            let word = |n: usize| map.word(place(row) + n).load(Ordering::Acquire);
            let (id, info) = (word(0), word(16));
            let (volume, number) = ((id >> 32) as u32, id as u32);
            let len = (info as u32 as usize).min(TEXT_BYTES_MAX);
            match std::str::from_utf8(map.bytes(place(row) + TEXT, len)) {
                Ok(text) if number != 0 => {
                    rows.of.insert((volume, number), row);
                    let relative = info & FLAG_RELATIVE != 0;
                    inherited.push(Moment {
                        volume,
                        number,
                        at: Lsn(word(8)),
                        relative,
                        text: text.to_owned(),
                    });
                }
                _ => {
                    map.word(place(row)).store(0, Ordering::Release);
                    rows.free.push(row);
                }
            }
        }
    }

    /// The moments of a volume that the server before had; to be asked once.
    pub fn inherited(&self, volume: u32) -> Vec<Moment> {
        let mut all = self.inherited.lock();
        let (mine, others) = all.drain(..).partition(|m| m.volume == volume);
        *all = others;
        mine
    }
}
