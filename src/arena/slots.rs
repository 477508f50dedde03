//! Slots: runs of a file's bytes that are written and not yet committed. Each has a descriptor beside its
//! bytes that says whose they are, so that the next server can take them up.
//!
//! What makes them safe to find half-way: a descriptor's sequence number is stored last and cleared first; a
//! slot's extent (which of its bytes count) is one word; and what a record will do to a slot is noted in it,
//! with the record's LSN, *before* the record is appended. Whoever finds the note asks the journal whether the
//! record is there.

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Arena, DESCRIPTOR_BYTES, PAGE_BYTES, SLAB_BYTES, SLAB_PAGES, Shape, nanos, timestamp};
use crate::types::{Ino, Lsn, Timestamp, VolumeId};

/// From this many bytes on a slot is a whole slab.
const BIG_BYTES: usize = SLAB_BYTES / 2;

/// Words of a descriptor. 0 in `SEQ` means free.
const SEQ: usize = 0;
/// Volume in the lower half, flags in the upper.
const VOLUME: usize = 8;
const INO: usize = 16;
/// Where in the file the slot's first byte belongs, whether it counts or not.
const BASE: usize = 24;
/// First byte that counts in the upper half, one past the last in the lower.
const EXTENT: usize = 32;
/// When it was last written.
const TIME: usize = 40;
/// The LSN of the record that changes the extent, 0 for none.
const AFTER_LSN: usize = 48;
/// The extent once that record is there; empty frees the slot.
const AFTER_EXTENT: usize = 56;

const FLAG_BIG: u64 = 1 << 32;
/// The write took setuid and setgid away.
const FLAG_KILL: u64 = 1 << 33;

/// There is no free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Whose bytes are written, and when.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The file's volume.
    pub volume: VolumeId,
    /// The file.
    pub ino: Ino,
    /// When; becomes the file's mtime if a new server takes the bytes up.
    pub time: Timestamp,
    /// Whether this write takes setuid and setgid away.
    pub kill: bool,
}

/// Which pages are free. A slab is one big slot, or serves small ones, or is free.
#[derive(Debug)]
pub(super) struct Free {
    slabs: Vec<usize>,
    /// Slabs of small slots that have a free page.
    partial: BTreeSet<usize>,
    /// The used pages of each slab, a bit each; all set for a big slot.
    used: Vec<u32>,
}

impl Free {
    pub(super) fn new(slabs: usize) -> Free {
        Free { slabs: (0..slabs).rev().collect(), partial: BTreeSet::new(), used: vec![0; slabs] }
    }

    fn take_small(&mut self) -> Option<usize> {
        let slab = match self.partial.first() {
            Some(slab) => *slab,
            None => {
                let slab = self.slabs.pop()?;
                self.partial.insert(slab);
                slab
            }
        };
        let used = self.used.get_mut(slab)?;
        let page = used.trailing_ones() as usize;
        *used |= 1 << page;
        if *used == u32::MAX {
            self.partial.remove(&slab);
        }
        Some(slab * SLAB_PAGES + page)
    }

    fn take_big(&mut self) -> Option<usize> {
        let slab = self.slabs.pop()?;
        *self.used.get_mut(slab)? = u32::MAX;
        Some(slab * SLAB_PAGES)
    }

    fn give(&mut self, page: usize, big: bool) {
        let (slab, bit) = (page / SLAB_PAGES, page % SLAB_PAGES);
        let Some(used) = self.used.get_mut(slab) else { return };
        *used = if big { 0 } else { *used & !(1 << bit) };
        if *used == 0 {
            self.partial.remove(&slab);
            self.slabs.push(slab);
        } else {
            self.partial.insert(slab);
        }
    }

    /// Takes a slot that recovery found; false when it overlaps another.
    fn claim(&mut self, page: usize, big: bool) -> bool {
        let (slab, bit) = (page / SLAB_PAGES, page % SLAB_PAGES);
        let Some(used) = self.used.get_mut(slab) else { return false };
        let wanted = if big { u32::MAX } else { 1 << bit };
        if *used & wanted != 0 || (big && bit != 0) {
            return false;
        }
        *used |= wanted;
        true
    }

    /// Sorts the slabs after all claims.
    fn settle(&mut self) {
        let all = self.used.iter().enumerate();
        self.partial = all.clone().filter(|(_, u)| **u != 0 && **u != u32::MAX).map(|(i, _)| i).collect();
        self.slabs = all.filter(|(_, u)| **u == 0).map(|(i, _)| i).rev().collect();
    }
}

/// Bytes of a file in the arena; freed when dropped.
#[derive(Debug)]
pub struct Slot {
    arena: Arc<Arena>,
    page: usize,
    big: bool,
    /// As in the descriptor.
    base: u64,
    from: u32,
    to: u32,
}

/// A slot that a server left.
#[derive(Debug)]
pub struct Recovered {
    /// Whose bytes they are.
    pub owner: Owner,
    /// The bytes. Not freed by what fails before they are taken up.
    pub slot: ManuallyDrop<Slot>,
    /// Later slots lie over earlier ones.
    pub seq: u64,
}

fn extent(from: u32, to: u32) -> u64 {
    u64::from(from) << 32 | u64::from(to)
}

impl Arena {
    /// A slot whose first bytes are `data`, as many as fit; they belong at `offset` of the owner's file.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn put(self: &Arc<Self>, owner: Owner, offset: u64, data: &[u8]) -> Result<Slot, NoRoom> {
        let (page, big) = {
            let mut free = self.free.lock();
            let big = if data.len() >= BIG_BYTES { free.take_big() } else { None };
            match big {
                Some(page) => (page, true),
                None => (free.take_small().ok_or(NoRoom)?, false),
            }
        };
        let mut slot = Slot { arena: self.clone(), page, big, base: offset, from: 0, to: 0 };
        self.used.fetch_add(slot.capacity() as u64, Ordering::AcqRel);
        let len = data.len().min(slot.capacity());
        self.map.put(slot.place(), data.get(..len).unwrap_or(data));
        slot.to = len as u32;
        let flags = if big { FLAG_BIG } else { 0 } | if owner.kill { FLAG_KILL } else { 0 };
        for (word, value) in [
            (VOLUME, u64::from(owner.volume.0) | flags),
            (INO, owner.ino.0),
            (BASE, offset),
            (EXTENT, extent(0, slot.to)),
            (TIME, nanos(owner.time)),
            (AFTER_LSN, 0),
        ] {
            slot.word(word).store(value, Ordering::Relaxed);
        }
        slot.word(SEQ).store(self.seq.fetch_add(1, Ordering::Relaxed), Ordering::Release);
        Ok(slot)
    }

    /// Bytes in the slots that another process left or uses, without taking them over.
    pub(super) fn bytes_left(&self) -> u64 {
        let left = |page: usize| {
            let at = Shape::DESCRIPTORS + page * DESCRIPTOR_BYTES;
            let [seq, extent] = [SEQ, EXTENT].map(|word| self.map.word(at + word).load(Ordering::Acquire));
            let (from, to) = (extent >> 32, extent & u64::from(u32::MAX));
            if seq == 0 { 0 } else { to.min(SLAB_BYTES as u64).saturating_sub(from) }
        };
        (0..self.shape.pages()).map(left).sum()
    }

    /// See [`Arena::noted`].
    pub(super) fn lowest_note(&self) -> Option<Lsn> {
        let note = |page: usize| {
            let at = Shape::DESCRIPTORS + page * DESCRIPTOR_BYTES;
            let word = |word: usize| self.map.word(at + word).load(Ordering::Acquire);
            Some(word(AFTER_LSN)).filter(|lsn| *lsn != 0 && word(SEQ) != 0)
        };
        (0..self.shape.pages()).filter_map(note).min().map(Lsn)
    }

    /// See [`Arena::recover`].
    pub(super) fn recover_slots(self: &Arc<Self>, last: Lsn) -> Vec<Recovered> {
        let mut found = Vec::new();
        let mut top = 0;
        for page in 0..self.shape.pages() {
            let at = Shape::DESCRIPTORS + page * DESCRIPTOR_BYTES;
            let word = |word: usize| self.map.word(at + word).load(Ordering::Acquire);
            let seq = word(SEQ);
            if seq == 0 {
                continue;
            }
            let after = word(AFTER_LSN);
            let kept = if after != 0 && after <= last.0 { word(AFTER_EXTENT) } else { word(EXTENT) };
            let (from, to) = ((kept >> 32) as u32, kept as u32);
            let (volume, base) = (word(VOLUME), word(BASE));
            let big = volume & FLAG_BIG != 0;
            let capacity = if big { SLAB_BYTES } else { PAGE_BYTES } as u32;
            let fits = base.checked_add(u64::from(capacity)).is_some();
            if from >= to || to > capacity || !fits || !self.free.lock().claim(page, big) {
                self.map.word(at + SEQ).store(0, Ordering::Release);
                continue;
            }
            let slot = ManuallyDrop::new(Slot { arena: self.clone(), page, big, base, from, to });
            // In this order: whoever is killed in between leaves a slot that the next one finds the same.
            slot.word(EXTENT).store(extent(from, to), Ordering::Release);
            slot.word(AFTER_LSN).store(0, Ordering::Release);
            self.used.fetch_add(slot.capacity() as u64, Ordering::AcqRel);
            top = top.max(seq);
            let owner = Owner {
                volume: VolumeId(volume as u32),
                ino: Ino(word(INO)),
                time: timestamp(word(TIME)),
                kill: volume & FLAG_KILL != 0,
            };
            found.push(Recovered { owner, slot, seq });
        }
        self.free.lock().settle();
        self.seq.store(top.saturating_add(1), Ordering::Relaxed);
        found.sort_unstable_by_key(|r| std::cmp::Reverse(r.seq));
        found
    }
}

impl Slot {
    fn word(&self, word: usize) -> &std::sync::atomic::AtomicU64 {
        self.arena.map.word(Shape::DESCRIPTORS + self.page * DESCRIPTOR_BYTES + word)
    }

    /// Where its bytes lie in the arena.
    fn place(&self) -> usize {
        self.arena.shape.data() + self.page * PAGE_BYTES
    }

    /// Bytes that it takes up.
    pub fn capacity(&self) -> usize {
        if self.big { SLAB_BYTES } else { PAGE_BYTES }
    }

    /// Where in the file its bytes begin.
    pub fn start(&self) -> u64 {
        self.base + u64::from(self.from)
    }

    /// Where in the file they end.
    pub fn end(&self) -> u64 {
        self.base + u64::from(self.to)
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        (self.to - self.from) as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.arena.map.bytes(self.place() + self.from as usize, self.len())
    }

    fn stamp(&self, owner: &Owner) {
        let time = self.word(TIME);
        time.store(time.load(Ordering::Relaxed).max(nanos(owner.time)), Ordering::Release);
        if owner.kill {
            self.word(VOLUME).fetch_or(FLAG_KILL, Ordering::AcqRel);
        }
    }

    /// When it was last written.
    pub fn time(&self) -> Timestamp {
        timestamp(self.word(TIME).load(Ordering::Acquire))
    }

    /// Writes over what it has, from `offset` on; returns how many bytes of `data` that takes.
    pub fn overwrite(&mut self, owner: &Owner, offset: u64, data: &[u8]) -> usize {
        if offset < self.start() || offset >= self.end() {
            return 0;
        }
        let n = data.len().min((self.end() - offset) as usize);
        self.arena.map.put(self.place() + (offset - self.base) as usize, data.get(..n).unwrap_or(data));
        self.stamp(owner);
        n
    }

    /// Writes bytes that a newer slot has as well, from `offset` on.
    pub fn take_over(&mut self, newer: &Slot, offset: u64, data: &[u8]) {
        let volume = newer.word(VOLUME).load(Ordering::Acquire);
        let owner = Owner {
            volume: VolumeId(volume as u32),
            ino: Ino(newer.word(INO).load(Ordering::Acquire)),
            time: newer.time(),
            kill: volume & FLAG_KILL != 0,
        };
        self.overwrite(&owner, offset, data);
    }

    /// Adds to its end; returns how many bytes of `data` had room.
    pub fn append(&mut self, owner: &Owner, data: &[u8]) -> usize {
        let n = data.len().min(self.capacity() - self.to as usize);
        if n > 0 {
            self.arena.map.put(self.place() + self.to as usize, data.get(..n).unwrap_or(data));
            self.stamp(owner);
            self.to += n as u32;
            self.word(EXTENT).store(extent(self.from, self.to), Ordering::Release);
        }
        n
    }

    fn within(&self, offset: u64) -> u32 {
        (offset.saturating_sub(self.base)).clamp(u64::from(self.from), u64::from(self.to)) as u32
    }

    /// Lets go of what lies outside `from..to`.
    pub fn trim(&mut self, from: u64, to: u64) {
        (self.from, self.to) = (self.within(from), self.within(to).max(self.within(from)));
        self.word(EXTENT).store(extent(self.from, self.to), Ordering::Release);
    }

    /// Notes that once record `lsn` is in the journal only `from..to` is left of it, and nothing if that is
    /// empty; LSN 0 takes the note back. [`Slot::trim`] or dropping it follows.
    pub fn note(&self, lsn: Lsn, from: u64, to: u64) {
        if lsn != Lsn::ZERO {
            let (from, to) = (self.within(from), self.within(to));
            let left = if from < to { extent(from, to) } else { 0 };
            self.word(AFTER_EXTENT).store(left, Ordering::Release);
        }
        self.word(AFTER_LSN).store(lsn.0, Ordering::Release);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.arena.left.load(Ordering::Acquire) {
            return;
        }
        self.word(SEQ).store(0, Ordering::Release);
        let mut free = self.arena.free.lock();
        free.give(self.page, self.big);
        self.arena.used.fetch_sub(self.capacity() as u64, Ordering::AcqRel);
        self.arena.freed.notify_all();
    }
}
