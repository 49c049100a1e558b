//! The places of tables.
//!
//! A hold of a transaction names its table by a place. A reference count instead would be a word
//! that all threads write. A place, once made, stays as long as the engine, and is used again after
//! its table was removed. So an engine has as many places as it had tables at once.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use super::rows::TableRows;
use crate::guarded_map::KeyHasher;
use crate::segments::Segments;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The number of the next engine of this process. Only uniqueness matters.
static ENGINES: AtomicU64 = AtomicU64::new(0);

/// The number of a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::table) struct TablePlace(pub(in crate::table) u32);

/// Places of the first segment.
const FIRST: usize = 4;

/// See the module.
#[derive(Debug)]
pub(in crate::table) struct TablePlaces {
    rows: Segments<OnceLock<TableRows>, FIRST>,
    hasher: KeyHasher,
    shards: usize,
    /// Credit that shards have returned, and that the state has not taken back, in bytes. The state
    /// takes it under its mutex; no other word depends on it (`Relaxed`).
    returned: AtomicUsize,
    /// A shard may have credit that was not there when all credit was last collected. A hint that
    /// is looked at before it is written; the credit itself is under the mutexes of the shards.
    has_credit: AtomicBool,
    /// The engine: a handle is used with no other one.
    engine: u64,
}

impl TablePlaces {
    pub(in crate::table) fn new() -> Self {
        Self {
            rows: Segments::new(),
            hasher: KeyHasher::default(),
            shards: shards(),
            returned: AtomicUsize::new(0),
            has_credit: AtomicBool::new(false),
            engine: ENGINES.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The number of the engine.
    pub(super) const fn engine(&self) -> u64 {
        self.engine
    }

    /// Notes that a shard has got credit.
    pub(super) fn note_credit(&self) {
        if !self.has_credit.load(Ordering::Relaxed) {
            self.has_credit.store(true, Ordering::Relaxed);
        }
    }

    /// True if a shard has got credit since this was last called.
    pub(super) fn take_credit_note(&self) -> bool {
        self.has_credit.swap(false, Ordering::Relaxed)
    }

    /// Returns credit, in bytes.
    pub(super) fn give_back(&self, bytes: usize) {
        self.returned.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes the credit that was returned, in bytes.
    pub(in crate::table) fn take_returned(&self) -> usize {
        self.returned.swap(0, Ordering::Relaxed)
    }

    /// The rows of the table in a place.
    pub(in crate::table) fn get(&self, place: TablePlace) -> &TableRows {
        self.find(place).expect("a place is named only after it was made")
    }

    /// The rows of the table in a place, if it was made.
    pub(in crate::table) fn find(&self, place: TablePlace) -> Option<&TableRows> {
        self.rows.get(place.0).and_then(OnceLock::get)
    }

    /// Makes a place, if it is not there yet.
    pub(in crate::table) fn make(&self, place: TablePlace) {
        let rows = self.rows.get_or_make(place.0, OnceLock::new);
        rows.get_or_init(|| TableRows::new(self.shards, self.hasher.clone()));
    }
}

/// The shards of a table: so many that two threads of this machine rarely meet in one, and not so
/// many that tables with few locks take much memory (256 bytes a shard).
#[cfg(not(any(loom, shuttle)))]
fn shards() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (threads * 4).next_power_of_two().clamp(8, 16)
}

#[cfg(any(loom, shuttle))]
const fn shards() -> usize {
    2
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_rows_of_its_own() {
        let places = TablePlaces::new();
        (0..100).for_each(|place| places.make(TablePlace(place)));
        let all: Vec<*const TableRows> =
            (0..100).map(|place| std::ptr::from_ref(places.get(TablePlace(place)))).collect();
        for (at, place) in all.iter().enumerate() {
            assert!(!all[..at].contains(place));
        }
    }
}
