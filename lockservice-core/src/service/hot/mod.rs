//! [`HotKeys`]: the rows and ranges of this node for which lock calls waited longest, in bounded
//! memory.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`HotKeys`]: sketches in stripes; [`HotKey`]: a line of the list |
//! | `sketch.rs` | [`Sketch`]: the counters of a stripe, and who has one; pure |
//! | `panes.rs` | [`Panes`](panes::Panes): the waits of a counter in the last minute, or in the last ten; pure |
//!
//! # The algorithm
//! A stripe is a *Space-Saving* summary (Metwally, Agrawal, El Abbadi: Efficient Computation of
//! Frequent and Top-k Elements in Data Streams, ICDT 2005), weighted by wait time, under *forward
//! decay* (Cormode, Shkapenyuk, Srivastava, Xu: Forward Decay, ICDE 2009):
//!
//! 1. A wait that has ended adds its time to the counter of its key.
//! 2. A key without a counter takes that of the key with the smallest weight. It starts at that
//!    weight, which is also its *error*: the most that an earlier stay of the key can have had.
//! 3. A wait weighs half as much after each ten minutes, so that yesterday's keys give way.
//!
//! With k counters, and W the decayed wait time of all keys of the stripe, at any time:
//!
//! - The decayed wait time of a key with a counter is its weight, or up to its error less.
//! - No error is larger than W / k.
//! - A key whose decayed wait time is larger than W / k has a counter.
//!
//! Decay decides which key has a counter, and a sliding window what is shown: an operator can
//! compare "12 s in the last minute" with what users saw, and a decayed sum with nothing. So each
//! counter also has exact counts of what it was given, in panes. If the key has had its counter
//! for as long as the window, its line is exact. Otherwise [`missed`](HotCounts::missed) bounds the
//! wait time that the line lacks. It follows from the error: no wait of the window has decayed
//! further than the window is long.
//!
//! # Implementation details
//! - Only a call that waited comes here, after its wait. It locks the mutex of one stripe, chosen
//!   by the hash of table and item, for some hundred nanoseconds. Calls that waited for one key
//!   meet there, and calls that waited for others mostly do not.
//! - Stripes share no key, so a list takes the lines of one stripe after another, and no error is
//!   added by that.
//! - The whole wait of a call counts for the item of the first holder or waiter that it conflicted
//!   with. That is not always an item of the call: the waits for many rows of one locked range
//!   count for the range.
//! - The seed of the hash is an argument. Clients must not know it, or they could choose keys of
//!   one stripe.

mod panes;
mod sketch;
#[cfg(all(test, not(loom)))]
mod tests;

use std::hash::BuildHasher as _;
use std::time::Duration;

use self::sketch::Sketch;
use crate::clock::Time;
use crate::id::TableRef;
use crate::key::LockItem;
use crate::sync::{Mutex, Padded};

/// Most stripes.
const STRIPES_MAX: usize = 16;

/// The least number of counters of a stripe: fewer would make its error large.
const COUNTERS_MIN: usize = 32;

/// The time over which the waits of a key are added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum HotWindow {
    /// The last 60 to 70 seconds.
    Minute,
    /// The last ten to eleven minutes.
    #[default]
    TenMinutes,
}

/// The waits for a key that ended within a [`HotWindow`], however long ago they began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HotCounts {
    /// The number of calls that waited: at least so many.
    pub waits: u64,
    /// The sum of their times, to the microsecond: at least so much.
    pub waited: Duration,
    /// The longest of their times.
    pub longest: Duration,
    /// What `waited` can lack at most. Zero: all three are exact.
    pub missed: Duration,
}

/// A row or range for which lock calls waited.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HotKey {
    /// The table.
    pub table: TableRef,
    /// The row or range of those that the calls conflicted with. The calls may have waited for
    /// others that overlap it.
    pub item: LockItem,
    /// The last minute.
    pub minute: HotCounts,
    /// The last ten minutes.
    pub ten_minutes: HotCounts,
    /// The time since the last wait ended.
    pub last: Duration,
    /// The number of calls that wait now for the item, or for one that overlaps it: at least so
    /// many. They are counted among the waits when their wait is over.
    pub waiting: usize,
}

impl HotKey {
    /// The counts of a window.
    pub const fn counts(&self, window: HotWindow) -> &HotCounts {
        match window {
            HotWindow::Minute => &self.minute,
            HotWindow::TenMinutes => &self.ten_minutes,
        }
    }

    /// Orders lines of a window: those for which calls waited longest come first.
    pub(in crate::service) fn rank(&self, window: HotWindow) -> (Duration, u64) {
        let counts = self.counts(window);
        (counts.waited, counts.waits)
    }
}

/// A wait that is over.
#[derive(Clone, Copy, Debug)]
pub(in crate::service) struct EndedWait<'a> {
    pub(in crate::service) table: &'a TableRef,
    /// The item of the first conflicting holder or waiter.
    pub(in crate::service) item: &'a LockItem,
    pub(in crate::service) waited: Duration,
    /// When it ended.
    pub(in crate::service) at: Time,
}

/// See the module. Each of its mutexes is a leaf.
#[derive(Debug)]
pub(in crate::service) struct HotKeys {
    /// Empty if nothing is counted.
    stripes: Box<[Padded<Mutex<Sketch>>]>,
    hash: foldhash::quality::FixedState,
}

impl HotKeys {
    /// Counters for at least `keys_max` keys, and for less than `STRIPES_MAX` more; 0 counts
    /// nothing.
    pub(in crate::service) fn new(keys_max: usize, seed: u64) -> Self {
        let stripes = match keys_max {
            0 => 0,
            some => (some / COUNTERS_MIN).clamp(1, STRIPES_MAX),
        };
        let counters_max = keys_max.div_ceil(stripes.max(1));
        let stripe = |_| Padded(Mutex::new(Sketch::new(counters_max)));
        let hash = foldhash::quality::FixedState::with_seed(seed);
        Self { stripes: (0..stripes).map(stripe).collect(), hash }
    }

    /// Counts a wait.
    pub(in crate::service) fn note(&self, wait: &EndedWait<'_>) {
        if self.stripes.is_empty() {
            return;
        }
        let hash = self.hash.hash_one((wait.table, wait.item));
        // The table of a stripe uses the lowest and the highest bits.
        let stripe = (hash >> 32) as usize % self.stripes.len();
        self.stripes[stripe].0.lock().note(hash, wait);
    }

    /// The keys for which calls waited longest in `window`, of one table if `table` is given: at
    /// most `most`, the hottest first. [`waiting`](HotKey::waiting) is 0.
    pub(in crate::service) fn list(
        &self,
        table: Option<&TableRef>,
        window: HotWindow,
        most: usize,
        now: Time,
    ) -> Vec<HotKey> {
        let mut lines: Vec<HotKey> = Vec::new();
        for stripe in &self.stripes {
            lines.extend(stripe.0.lock().list(table, window, most, now));
        }
        lines.sort_by_key(|line| std::cmp::Reverse(line.rank(window)));
        lines.truncate(most);
        lines
    }
}
