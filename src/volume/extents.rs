//! Bytes of a file that are written but not yet committed, by offset. They lie in the arena.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::arena::{Arena, NoRoom, Owner, Slot};

/// A run that is sealed at once is no longer than this.
const RUN_BYTES_MAX: usize = 16 << 20;

/// Non-overlapping slots, by the offset at which they begin.
#[derive(Debug, Default)]
pub struct Extents {
    slots: BTreeMap<u64, Slot>,
    bytes: u64,
}

/// Consecutive bytes, copied out for sealing.
pub type Run = (u64, Arc<Vec<u8>>);

impl Extents {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Puts `data` at `offset`, over what was there.
    ///
    /// # Errors
    /// [`NoRoom`]; then a part may have been written. To be tried again as a whole.
    pub fn write(
        &mut self,
        arena: &Arc<Arena>,
        owner: Owner,
        mut offset: u64,
        mut data: &[u8],
    ) -> Result<(), NoRoom> {
        while !data.is_empty() {
            let done = self.write_some(arena, &owner, offset, data)?;
            offset += done as u64;
            data = data.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes as much as one slot takes.
    fn write_some(
        &mut self,
        arena: &Arc<Arena>,
        owner: &Owner,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, NoRoom> {
        // In place where there is something: so no two slots ever hold the same byte.
        let before = self.slots.range_mut(..=offset).next_back().map(|(_, slot)| slot);
        let ends_here = match before {
            Some(slot) if offset < slot.end() => return Ok(slot.overwrite(owner, offset, data)),
            Some(slot) if offset == slot.end() => Some(slot.start()),
            _ => None,
        };
        let next = self.slots.range(offset..).next().map_or(u64::MAX, |(at, _)| *at);
        let gap = usize::try_from(next - offset).unwrap_or(usize::MAX);
        let data = data.get(..gap).unwrap_or(data);
        if let Some(slot) = ends_here.and_then(|at| self.slots.get_mut(&at)) {
            let added = slot.append(owner, data);
            self.bytes += added as u64;
            if added > 0 {
                return Ok(added);
            }
        }
        let slot = arena.put(*owner, offset, data)?;
        let added = slot.len();
        self.bytes += added as u64;
        self.slots.insert(offset, slot);
        Ok(added)
    }

    /// Removes everything from `size` on.
    pub fn truncate(&mut self, size: u64) {
        let gone = self.slots.split_off(&size);
        self.bytes -= gone.values().map(|slot| slot.len() as u64).sum::<u64>();
        if let Some((_, slot)) = self.slots.range_mut(..size).next_back()
            && slot.end() > size
        {
            self.bytes -= slot.end() - size;
            slot.trim(slot.start(), size);
        }
    }

    /// The slots, in order.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// Visits what is held of `from..to`, in order.
    pub fn for_range(&self, from: u64, to: u64, visit: impl FnMut(u64, &[u8])) {
        let first = self.slots.range(..=from).next_back().map_or(from, |(at, _)| *at);
        for_range(self.slots.range(first..to.max(first)).map(|(_, slot)| slot), from, to, visit);
    }

    /// Whether any byte of `from..to` is held.
    pub fn touches(&self, from: u64, to: u64) -> bool {
        self.slots.range(..to).next_back().is_some_and(|(_, slot)| slot.end() > from)
    }

    /// Takes everything out.
    pub fn take(&mut self) -> Vec<Slot> {
        self.bytes = 0;
        std::mem::take(&mut self.slots).into_values().collect()
    }

    /// Puts a slot beneath what was written since: its bytes count where nothing else lies.
    pub fn put_back(&mut self, mut old: Slot) {
        let (start, end) = (old.start(), old.end());
        let first = self.slots.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let newer: Vec<u64> = self
            .slots
            .range(first..end.max(first))
            .filter(|(_, slot)| slot.start() < end && slot.end() > start)
            .map(|(at, _)| *at)
            .collect();
        for at in newer {
            let Some(mut new) = self.slots.remove(&at) else { continue };
            if new.start() <= start && new.end() >= end {
                self.slots.insert(at, new);
                return;
            }
            self.bytes -= new.len() as u64;
            let (lo, hi) = (new.start().max(start), new.end().min(end));
            // The newer bytes move into the old slot before the newer slot lets go of them.
            let shared = new.bytes().get((lo - new.start()) as usize..(hi - new.start()) as usize);
            old.take_over(&new, lo, shared.unwrap_or_default());
            if new.start() < start {
                new.trim(new.start(), start);
            } else {
                new.trim(end, new.end());
            }
            if !new.is_empty() {
                self.bytes += new.len() as u64;
                self.slots.insert(new.start(), new);
            }
        }
        self.bytes += old.len() as u64;
        self.slots.insert(start, old);
    }
}

/// Visits what `slots`, in order, hold of `from..to`.
pub fn for_range<'a>(
    slots: impl IntoIterator<Item = &'a Slot>,
    from: u64,
    to: u64,
    mut visit: impl FnMut(u64, &[u8]),
) {
    for slot in slots {
        let (lo, hi) = (slot.start().max(from), slot.end().min(to));
        if lo < hi
            && let Some(part) = slot.bytes().get((lo - slot.start()) as usize..(hi - slot.start()) as usize)
        {
            visit(lo, part);
        }
    }
}

/// Copies slots out, adjacent ones joined.
pub fn runs(slots: &[Slot]) -> Vec<Run> {
    let mut joined: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut left: usize = slots.iter().map(Slot::len).sum();
    for slot in slots {
        match joined.last_mut() {
            Some((start, last))
                if *start + last.len() as u64 == slot.start() && last.len() + slot.len() <= RUN_BYTES_MAX =>
            {
                last.extend_from_slice(slot.bytes());
            }
            _ => {
                let mut run = Vec::with_capacity(left.min(RUN_BYTES_MAX));
                run.extend_from_slice(slot.bytes());
                joined.push((slot.start(), run));
            }
        }
        left -= slot.len();
    }
    joined.into_iter().map(|(at, run)| (at, Arc::new(run))).collect()
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
    use crate::types::{Ino, Timestamp, VolumeId};
    use proptest::prelude::*;

    const OWNER: Owner =
        Owner { volume: VolumeId(1), ino: Ino(2), time: Timestamp { secs: 3, nanos: 4 }, kill: false };

    proptest! {
        #[test]
        fn extents_behave_like_a_sparse_buffer(
            ops in prop::collection::vec((0u8..5, 0u64..40_000, 1u64..9000, any::<u8>()), 1..60),
        ) {
            let arena = Arena::volatile(8 << 20).unwrap();
            let mut extents = Extents::default();
            let mut plain: Vec<Option<u8>> = vec![None; 50_000];
            for (kind, at, len, fill) in ops {
                let range = at as usize..(at + len) as usize;
                match kind {
                    0 | 1 => {
                        extents.write(&arena, OWNER, at, &vec![fill; len as usize]).unwrap();
                        plain[range].fill(Some(fill));
                    }
                    2 => {
                        extents.truncate(at);
                        plain[at as usize..].fill(None);
                    }
                    3 => {
                        let older = arena.put(OWNER, at, &vec![fill; len as usize]).unwrap();
                        plain[at as usize..at as usize + older.len()]
                            .iter_mut()
                            .for_each(|b| { b.get_or_insert(fill); });
                        extents.put_back(older);
                    }
                    _ => {
                        // A failed flush while others write.
                        let taken = extents.take();
                        extents.write(&arena, OWNER, at, &vec![fill; len as usize]).unwrap();
                        plain[range].fill(Some(fill));
                        taken.into_iter().for_each(|slot| extents.put_back(slot));
                    }
                }
                prop_assert_eq!(extents.bytes(), plain.iter().flatten().count() as u64);
            }
            let mut seen = vec![0xeeu8; 50_000];
            extents.for_range(0, 50_000, |at, part| copy_over(at, part, 0, &mut seen));
            for (i, b) in plain.iter().enumerate() {
                prop_assert_eq!(seen[i], b.unwrap_or(0xee));
                prop_assert_eq!(extents.touches(i as u64, i as u64 + 1), b.is_some());
            }
            let taken = extents.take();
            let joined: usize = runs(&taken).iter().map(|(_, run)| run.len()).sum();
            prop_assert_eq!(joined, plain.iter().flatten().count());
            drop(taken);
            prop_assert_eq!(arena.used(), 0);
        }
    }
}
