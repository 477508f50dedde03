//! A disk with a cache: what was written and not flushed is lost, or kept sector by sector, when the power
//! goes. Pure memory; [`super::process`] shows it as a file.

use std::collections::HashMap;
use std::sync::Arc;

use crate::harness::Rng;

/// Bytes that are kept or lost together.
pub const SECTOR: usize = 512;
const PAGE: usize = 4096;
/// Unflushed bytes beyond which the oldest are written back unasked, as a real disk would.
const CACHE_BYTES_MAX: usize = 64 << 20;

/// What of the unflushed sectors is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    All,
    /// By chance, in any order; the seed says which.
    Some(u64),
}

impl Keep {
    /// As one word, for the control connection.
    pub fn word(self) -> String {
        match self {
            Keep::Nothing => "nothing".to_owned(),
            Keep::All => "all".to_owned(),
            Keep::Some(seed) => seed.to_string(),
        }
    }

    /// Back from the word.
    pub fn parse(word: &str) -> Option<Keep> {
        match word {
            "nothing" => Some(Keep::Nothing),
            "all" => Some(Keep::All),
            seed => seed.parse().ok().map(Keep::Some),
        }
    }
}

/// Pages that were ever written.
type Pages = HashMap<u64, Arc<[u8; PAGE]>>;

/// The disk. Bytes never written are zeros.
#[derive(Clone, Default)]
pub struct Image {
    now: Pages,
    durable: Pages,
    /// Writes since the last flush, in order.
    unflushed: Vec<(u64, Vec<u8>)>,
    unflushed_bytes: usize,
}

fn read(pages: &Pages, offset: u64, out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let within = at as usize % PAGE;
        let len = (PAGE - within).min(out.len() - done);
        match pages.get(&(at / PAGE as u64)) {
            Some(page) => out[done..done + len].copy_from_slice(&page[within..within + len]),
            None => out[done..done + len].fill(0),
        }
        done += len;
    }
}

fn write(pages: &mut Pages, offset: u64, data: &[u8]) {
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let within = at as usize % PAGE;
        let len = (PAGE - within).min(data.len() - done);
        let page = pages.entry(at / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
        Arc::make_mut(page)[within..within + len].copy_from_slice(&data[done..done + len]);
        done += len;
    }
}

impl Image {
    /// Reads what was written last.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        read(&self.now, offset, out);
    }

    /// Writes into the cache.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        write(&mut self.now, offset, data);
        self.unflushed_bytes += data.len();
        self.unflushed.push((offset, data.to_vec()));
        if self.unflushed_bytes > CACHE_BYTES_MAX {
            let half = self.unflushed.len().div_ceil(2);
            for (offset, data) in self.unflushed.drain(..half) {
                write(&mut self.durable, offset, &data);
                self.unflushed_bytes -= data.len();
            }
        }
    }

    /// Makes all of it durable.
    pub fn flush(&mut self) {
        for (offset, data) in self.unflushed.drain(..) {
            write(&mut self.durable, offset, &data);
        }
        self.unflushed_bytes = 0;
    }

    /// Writes in the cache.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// What is there when the power comes back. By chance: sectors, pages or whole writes are kept, a few of
    /// them or most.
    #[must_use]
    pub fn after(&self, keep: Keep) -> Image {
        let mut durable = self.durable.clone();
        match keep {
            Keep::Nothing => {}
            Keep::All => self.unflushed.iter().for_each(|(at, data)| write(&mut durable, *at, data)),
            Keep::Some(seed) => {
                let mut rng = Rng::new(seed);
                let unit = *rng.pick(&[SECTOR, PAGE, usize::MAX]);
                let kept = *rng.pick(&[10, 50, 90, 99]);
                for (at, data) in &self.unflushed {
                    for (i, part) in data.chunks(unit.min(data.len().max(1))).enumerate() {
                        if rng.below(100) < kept {
                            write(&mut durable, at + (i * unit.min(data.len())) as u64, part);
                        }
                    }
                }
            }
        }
        Image { now: durable.clone(), durable, ..Image::default() }
    }
}

#[test]
fn the_image_loses_what_was_not_flushed_and_keeps_the_rest() {
    let mut image = Image::default();
    image.write(1000, &[1; 5000]);
    image.flush();
    image.write(0, &[2; 4 * SECTOR]);
    let bytes = |image: &Image| {
        let mut out = vec![0; 7000];
        image.read(0, &mut out);
        out
    };
    let (old, new) = (bytes(&image.after(Keep::Nothing)), bytes(&image.after(Keep::All)));
    assert!(old[999..1001] == [0, 1] && old[5999..6001] == [1, 0]);
    assert!(new == bytes(&image) && new[..2048] == [2; 2048] && new[2048..] == old[2048..]);
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..500 {
        let some = bytes(&image.after(Keep::Some(seed)));
        let from = |i: usize, all: &[u8]| some[i * SECTOR..][..SECTOR] == all[i * SECTOR..][..SECTOR];
        let which: Vec<bool> = (0..4).map(|i| from(i, &new)).collect();
        assert!((0..4).all(|i| from(i, &new) || from(i, &old)) && some[2048..] == old[2048..]);
        kinds.insert(which);
    }
    assert!(kinds.len() == 16, "every subset of sectors: {}", kinds.len());
}
