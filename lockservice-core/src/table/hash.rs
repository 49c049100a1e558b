//! A fast hash for ids that this software issued itself.
//!
//! A client chooses which of its transactions stay open, and could keep those whose ids fall into
//! one bucket. So each process hashes with a random word of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// A map keyed by ids. Its order is another one in each process: nothing may depend on it.
pub(super) type IdMap<K, V> = HashMap<K, V, IdState>;

/// What every hash of this process begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdState(u64);

impl Default for IdState {
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        Self(*SEED.get_or_init(|| RandomState::new().hash_one(0)))
    }
}

impl BuildHasher for IdState {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher(self.0)
    }
}

/// Multiplies and rotates each word in.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(29) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The map takes its control bits from the top and its bucket from the bottom, which a product leaves poor.
        self.0 ^ self.0 >> 32
    }
}
