//! A fast hash for ids.
//!
//! A client chooses which of its transactions stay open, and may name any as an ancestor of a call.
//! So it could choose ids that fall into one bucket. Each process therefore hashes with random
//! words of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// A map keyed by ids. Its order differs between processes, so nothing may depend on it.
pub(super) type IdMap<K, V> = HashMap<K, V, IdState>;

/// The first word and the factor of every hash of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdState(u64, u64);

impl Default for IdState {
    fn default() -> Self {
        static SEED: OnceLock<(u64, u64)> = OnceLock::new();
        let (first, factor) = *SEED.get_or_init(|| {
            if cfg!(feature = "simulation") {
                // Two runs of a simulation are the same.
                return (0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9);
            }
            let random = RandomState::new();
            (random.hash_one(0), random.hash_one(1) | 1)
        });
        Self(first, factor)
    }
}

impl BuildHasher for IdState {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher { state: self.0, factor: self.1 }
    }
}

/// Multiplies each word in, and folds the two halves of the product: each bit of a word reaches the
/// whole hash, by ways that depend on the random words.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdHasher {
    state: u64,
    factor: u64,
}

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
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.state
    }
}
