//! The rows of a table: its shards, its published ranges, and what a grant says of its history.

use std::hash::BuildHasher;
use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use super::shard::Shard;
use crate::clock::Time;
use crate::guarded_map::KeyHasher;
use crate::id::{BindVersion, CommitTimestamp};
use crate::key::{Key, KeyRange};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, Padded, RwLock};
use crate::table::counts::{Granted, add};
use crate::table::interval::IntervalMap;
use crate::table::types::Commit;

/// See the module.
pub(in crate::table) struct TableRows {
    shards: Box<[Padded<Mutex<Shard>>]>,
    hasher: KeyHasher,
    /// Ranges that the state has an entry for.
    published: RwLock<IntervalMap<()>>,
    pub(in crate::table) history: History,
}

/// What a grant says of the commits in a table (C5).
///
/// Each word is written before the lock of a row is released, and read after it was granted. So the
/// mutex of the row's shard orders the two: `Relaxed` is enough.
#[derive(Debug, Default)]
pub(in crate::table) struct History {
    /// Nanoseconds since the clock's origin, and 1; 0 if all of the history is known.
    since: AtomicU64,
    /// The largest commit timestamp that an unlock carried.
    commit: LargestTimestamp,
    /// The largest one whose commit changed the definition of the table.
    definition: LargestTimestamp,
}

/// The largest of the timestamps that were noted.
#[derive(Debug, Default)]
struct LargestTimestamp {
    /// True if `timestamp` is one. Written after it; partner: `timestamp`.
    is_some: AtomicBool,
    /// Partner: `is_some`.
    timestamp: AtomicU64,
}

impl LargestTimestamp {
    fn reset(&self) {
        self.is_some.store(false, Ordering::Relaxed);
        self.timestamp.store(0, Ordering::Relaxed);
    }

    fn get(&self) -> Option<CommitTimestamp> {
        let is_some = self.is_some.load(Ordering::Acquire);
        is_some.then(|| CommitTimestamp::new(self.timestamp.load(Ordering::Relaxed)))
    }

    fn note(&self, timestamp: CommitTimestamp) {
        // A look is cheaper than a write, which takes the line away from the other threads.
        if self.timestamp.load(Ordering::Relaxed) < timestamp.get() {
            self.timestamp.fetch_max(timestamp.get(), Ordering::Relaxed);
        }
        if !self.is_some.load(Ordering::Relaxed) {
            self.is_some.store(true, Ordering::Release);
        }
    }
}

impl History {
    fn reset(&self, since: Option<Time>) {
        self.since.store(0, Ordering::Relaxed);
        self.commit.reset();
        self.definition.reset();
        if let Some(since) = since {
            self.unknown_until(since);
        }
    }

    /// Since when the history is known; `None`: all of it is.
    pub(in crate::table) fn since(&self) -> Option<Time> {
        let nanos = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Time::from_origin(Duration::from_nanos(nanos)))
    }

    /// Marks the history up to `now` as unknown.
    pub(in crate::table) fn unknown_until(&self, now: Time) {
        let nanos = u64::try_from(now.since_origin().as_nanos()).unwrap_or(u64::MAX);
        self.since.fetch_max(nanos.saturating_add(1), Ordering::Relaxed);
    }

    /// The largest commit timestamp that was noted.
    pub(in crate::table) fn commit_ts(&self) -> Option<CommitTimestamp> {
        self.commit.get()
    }

    /// The largest timestamp of a commit that changed the definition of the table.
    pub(in crate::table) fn definition_ts(&self) -> Option<CommitTimestamp> {
        self.definition.get()
    }

    /// Notes a commit.
    pub(in crate::table) fn note_commit(&self, commit: Commit) {
        self.commit.note(commit.timestamp);
        if commit.definition_changed {
            self.definition.note(commit.timestamp);
        }
    }
}

impl TableRows {
    pub(super) fn new(shards: usize, hasher: KeyHasher) -> Self {
        Self {
            shards: (0..shards).map(|_| Padded(Mutex::new(Shard::default()))).collect(),
            hasher,
            published: RwLock::new(IntervalMap::new()),
            history: History::default(),
        }
    }

    pub(super) const fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    pub(super) fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The number of the shard of a hash. The index of a shard uses other bits.
    pub(super) fn shard_of(&self, hash: u64) -> u32 {
        (hash >> 40) as u32 & (self.shards.len() as u32 - 1)
    }

    pub(super) fn shard(&self, number: u32) -> &Mutex<Shard> {
        &self.shards[number as usize].0
    }

    pub(super) const fn shard_count(&self) -> u32 {
        self.shards.len() as u32
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = &Mutex<Shard>> {
        self.shards.iter().map(|shard| &shard.0)
    }

    /// Begins to serve a version, without holds.
    pub(in crate::table) fn open(&self, version: BindVersion, history_since: Option<Time>) {
        self.history.reset(history_since);
        *self.published.write() = IntervalMap::new();
        self.shards().for_each(|shard| shard.lock().open(version));
    }

    /// Ends that. All holds end. Returns their memory, with the unused credit, in bytes, and the
    /// grants that were not taken yet.
    pub(in crate::table) fn close(&self) -> (usize, Granted) {
        *self.published.write() = IntervalMap::new();
        let (mut bytes, mut granted) = (0, Granted::default());
        for shard in self.shards() {
            let mut shard = shard.lock();
            add(&mut granted, shard.take_granted());
            bytes += shard.clear();
        }
        (bytes, granted)
    }

    /// The number of holds, and the grants since this was last called. Locks one shard after the
    /// other.
    pub(in crate::table) fn take_counts(&self) -> (usize, Granted) {
        let (mut held, mut granted) = (0, Granted::default());
        for shard in self.shards() {
            let mut shard = shard.lock();
            held += shard.held();
            add(&mut granted, shard.take_granted());
        }
        (held, granted)
    }

    /// Grants nothing while it is not open. The holds stay.
    pub(in crate::table) fn set_open(&self, open: bool) {
        self.shards().for_each(|shard| shard.lock().is_open = open);
    }

    /// The number of holds.
    pub(in crate::table) fn held(&self) -> usize {
        self.shards().map(|shard| shard.lock().held()).sum()
    }

    /// The number of grants since the table was opened.
    pub(in crate::table) fn grants(&self) -> u64 {
        self.shards().fold(0, |sum, shard| sum + shard.lock().grants())
    }

    /// Collects the credit of all shards that is not used, in bytes.
    pub(in crate::table) fn collect_credit(&self) -> usize {
        self.shards().map(|shard| std::mem::take(&mut shard.lock().credit)).sum()
    }

    /// True if a published range covers the row.
    pub(super) fn is_in_range(&self, key: &Key) -> bool {
        let at = Bound::Included(key);
        self.published.read().overlapping(at, at, &mut |_, ()| ControlFlow::Break(())).is_break()
    }

    /// Publishes a range in the index.
    pub(super) fn add_range(&self, range: &KeyRange) {
        self.published.write().insert(range.clone(), ());
    }

    pub(super) fn is_published(&self, range: &KeyRange) -> bool {
        self.published.read().get(range).is_some()
    }

    /// Removes a range from the index.
    pub(super) fn remove_range(&self, range: &KeyRange) {
        self.published.write().remove(range);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_history_keeps_the_latest_time_and_the_largest_timestamp() {
        let history = History::default();
        assert_eq!((history.since(), history.commit_ts()), (None, None));
        history.unknown_until(Time::ZERO);
        assert_eq!(history.since(), Some(Time::ZERO));
        let later = Time::from_origin(Duration::from_nanos(12_345_678_901));
        history.unknown_until(later);
        history.unknown_until(Time::ZERO);
        assert_eq!(history.since(), Some(later));
        for (ts, expected) in [(0, 0), (7, 7), (3, 7), (u64::MAX, u64::MAX)] {
            history.note_commit(Commit::at(CommitTimestamp::new(ts)));
            assert_eq!(history.commit_ts().map(CommitTimestamp::get), Some(expected));
        }
        assert_eq!(history.definition_ts(), None);
        let timestamp = CommitTimestamp::new(5);
        history.note_commit(Commit { timestamp, definition_changed: true });
        assert_eq!(history.definition_ts(), Some(timestamp));
        history.reset(None);
        assert_eq!((history.since(), history.commit_ts()), (None, None));
        assert_eq!(history.definition_ts(), None);
    }
}
