//! A small seeded generator (splitmix64), so that a failed run can be repeated from its seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// Random choices that depend on nothing but the seed.
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same choices.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// Seeded by `REWINDFS_TEST_SEED` or the clock; prints the seed, which the test runner shows on failure.
    pub fn printed() -> Rng {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_micros() as u64);
        let seed = super::setting("REWINDFS_TEST_SEED", clock);
        println!("repeat with REWINDFS_TEST_SEED={seed}");
        Rng(seed)
    }

    /// Any 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `n`, which must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// Bytes that no codec makes smaller.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        out.truncate(len);
        out
    }

    /// Bytes that compress well and repeat, as logs and tables do.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let words = ["epoch ", "loss=", "0.25 ", "step ", "checkpoint\n", "the quick brown fox ", "7 "];
        let mut out = Vec::with_capacity(len + 32);
        while out.len() < len {
            out.extend_from_slice(self.pick(&words).as_bytes());
        }
        out.truncate(len);
        out
    }

    /// A word of lower-case letters that no other data holds by chance.
    pub fn marker(&mut self) -> String {
        (0..24).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }
}
