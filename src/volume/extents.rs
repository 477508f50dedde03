//! Bytes of a file that are written but not yet committed, by offset.

use std::collections::BTreeMap;
use std::sync::Arc;

/// An extent stops growing here, so that sealing can begin with whole runs.
const EXTENT_BYTES_MAX: usize = 8 << 20;

/// Non-overlapping runs of bytes. Adjacent ones may exist; [`Extents::take_runs`] joins them.
#[derive(Debug, Default)]
pub struct Extents {
    runs: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
}

/// A run taken out for sealing; readers see it until its record is applied.
pub type Run = (u64, Arc<Vec<u8>>);

impl Extents {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Puts `data` at `offset`, over what was there. Returns the bytes that this added.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> u64 {
        if data.is_empty() {
            return 0;
        }
        let before = self.bytes;
        if self.overwrite(offset, data) {
            return 0;
        }
        let end = offset + data.len() as u64;
        self.punch(offset, end);
        self.bytes += data.len() as u64;
        if let Some((at, run)) = self.runs.range_mut(..offset).next_back()
            && at + run.len() as u64 == offset
            && run.len() + data.len() <= EXTENT_BYTES_MAX
        {
            run.extend_from_slice(data);
        } else {
            self.runs.insert(offset, data.to_vec());
        }
        self.bytes.saturating_sub(before)
    }

    /// Writes in place where one run holds the whole range.
    fn overwrite(&mut self, offset: u64, data: &[u8]) -> bool {
        let Some((at, run)) = self.runs.range_mut(..=offset).next_back() else { return false };
        let skip = (offset - at) as usize;
        match run.get_mut(skip..skip + data.len()) {
            Some(place) => {
                place.copy_from_slice(data);
                true
            }
            None => false,
        }
    }

    /// Removes what is held of `from..to`.
    pub fn punch(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        if let Some((&at, run)) = self.runs.range_mut(..from).next_back() {
            let end = at + run.len() as u64;
            if end > from {
                let tail = run.split_off((from - at) as usize);
                self.bytes -= tail.len() as u64;
                if end > to {
                    self.insert_tail(to, &tail, (to - from) as usize);
                }
            }
        }
        while let Some((&at, _)) = self.runs.range(from..to).next() {
            let Some(run) = self.runs.remove(&at) else { break };
            self.bytes -= run.len() as u64;
            if at + run.len() as u64 > to {
                self.insert_tail(to, &run, (to - at) as usize);
            }
        }
    }

    fn insert_tail(&mut self, at: u64, run: &[u8], skip: usize) {
        if let Some(rest) = run.get(skip..).filter(|r| !r.is_empty()) {
            self.bytes += rest.len() as u64;
            self.runs.insert(at, rest.to_vec());
        }
    }

    /// Removes everything from `size` on.
    pub fn truncate(&mut self, size: u64) {
        self.punch(size, u64::MAX);
    }

    /// Visits what is held of `from..to`, in order.
    pub fn for_range(&self, from: u64, to: u64, mut visit: impl FnMut(u64, &[u8])) {
        let first = self.runs.range(..=from).next_back().map_or(from, |(at, _)| *at);
        for (at, run) in self.runs.range(first..to.max(first)) {
            let (lo, hi) = ((*at).max(from), (at + run.len() as u64).min(to));
            if lo < hi
                && let Some(part) = run.get((lo - at) as usize..(hi - at) as usize)
            {
                visit(lo, part);
            }
        }
    }

    /// Whether any byte of `from..to` is held.
    pub fn touches(&self, from: u64, to: u64) -> bool {
        self.runs.range(..to).next_back().is_some_and(|(at, run)| at + run.len() as u64 > from)
    }

    /// Takes everything out, adjacent runs joined.
    pub fn take_runs(&mut self) -> Vec<Run> {
        self.bytes = 0;
        let mut joined: Vec<(u64, Vec<u8>)> = Vec::new();
        for (at, run) in std::mem::take(&mut self.runs) {
            match joined.last_mut() {
                Some((start, last))
                    if *start + last.len() as u64 == at && last.len() + run.len() <= 2 * EXTENT_BYTES_MAX =>
                {
                    last.extend_from_slice(&run);
                }
                _ => joined.push((at, run)),
            }
        }
        joined.into_iter().map(|(at, run)| (at, Arc::new(run))).collect()
    }

    /// Puts back bytes that were taken out and not committed, beneath what was written since. Returns the
    /// bytes that this added.
    pub fn put_back(&mut self, offset: u64, data: &[u8]) -> u64 {
        let before = self.bytes;
        let end = offset + data.len() as u64;
        let mut newer: Vec<(u64, Vec<u8>)> = Vec::new();
        let first = self.runs.range(..=offset).next_back().map_or(offset, |(at, _)| *at);
        for (at, run) in self.runs.range(first..end) {
            newer.push((*at, run.clone()));
        }
        self.write(offset, data);
        for (at, run) in newer {
            self.write(at, &run);
        }
        self.bytes.saturating_sub(before)
    }
}

/// Copies the part of `run`, which lies at `at`, that falls into `out`, which begins at `offset`.
pub fn copy_over(at: u64, run: &[u8], offset: u64, out: &mut [u8]) {
    let (end, run_end) = (offset + out.len() as u64, at + run.len() as u64);
    let (lo, hi) = (at.max(offset), run_end.min(end));
    if lo >= hi {
        return;
    }
    let source = run.get((lo - at) as usize..(hi - at) as usize);
    let target = out.get_mut((lo - offset) as usize..(hi - offset) as usize);
    if let (Some(source), Some(target)) = (source, target) {
        target.copy_from_slice(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn extents_behave_like_a_sparse_buffer(
            ops in prop::collection::vec((0u8..4, 0u64..4000, 1u64..900, any::<u8>()), 1..80),
        ) {
            let mut extents = Extents::default();
            let mut plain: Vec<Option<u8>> = vec![None; 5000];
            for (kind, at, len, fill) in ops {
                let range = at as usize..(at + len) as usize;
                match kind {
                    0 | 1 => {
                        let added = extents.write(at, &vec![fill; len as usize]);
                        let new = plain[range.clone()].iter().filter(|b| b.is_none()).count() as u64;
                        prop_assert_eq!(added, new);
                        plain[range].fill(Some(fill));
                    }
                    2 => {
                        extents.punch(at, at + len);
                        plain[range].fill(None);
                    }
                    _ => {
                        extents.put_back(at, &vec![fill; len as usize]);
                        plain[range].iter_mut().for_each(|b| { b.get_or_insert(fill); });
                    }
                }
                prop_assert_eq!(extents.bytes(), plain.iter().flatten().count() as u64);
            }
            let mut seen = vec![0xeeu8; 5000];
            extents.for_range(0, 5000, |at, part| copy_over(at, part, 0, &mut seen));
            for (i, b) in plain.iter().enumerate() {
                prop_assert_eq!(seen[i], b.unwrap_or(0xee));
                prop_assert_eq!(extents.touches(i as u64, i as u64 + 1), b.is_some());
            }
            let taken: u64 = extents.take_runs().iter().map(|(_, r)| r.len() as u64).sum();
            prop_assert_eq!(taken, plain.iter().flatten().count() as u64);
            prop_assert!(extents.is_empty());
        }
    }
}
