//! [`LimitedHolds`]: since when a transaction holds locks in tables with a limit, and when it made
//! its last call.

use smallvec::SmallVec;

use crate::clock::Time;
use crate::id::{TableId, TableRef};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug, Default)]
pub(in crate::service) struct LimitedHolds {
    held: Mutex<SmallVec<[HeldTable; 1]>>,
    /// When the last call of the transaction was made.
    ///
    /// ORDERING: `Relaxed`, without a partner: the sweep may see a call one look later, and kills
    /// nobody for less than a whole limit without a call.
    last_call: AtomicU64,
}

/// A table with a limit, in which a transaction holds locks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::service) struct HeldTable {
    pub(super) id: TableId,
    pub(super) table: TableRef,
    /// Since when it has held something there.
    pub(super) since: Time,
}

impl LimitedHolds {
    /// Notes that something is held in a table `now`, if that `is_limited`.
    pub(super) fn note(
        &self,
        id: TableId,
        table: &TableRef,
        now: Time,
        is_limited: impl FnOnce() -> bool,
    ) {
        let mut held = self.held.lock();
        if !held.iter().any(|known| known.id == id) && is_limited() {
            held.push(HeldTable { id, table: table.clone(), since: now });
        }
    }

    /// Notes a call. It never goes back.
    pub(in crate::service) fn note_call(&self, now: Time) {
        self.last_call.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    pub(super) fn last_call(&self) -> Time {
        Time::from_nanos(self.last_call.load(Ordering::Relaxed))
    }

    /// What is noted.
    pub(super) fn tables(&self) -> SmallVec<[HeldTable; 1]> {
        self.held.lock().clone()
    }

    /// Forgets the tables in which nothing is held any more. A grant that comes meanwhile is noted
    /// after that.
    pub(super) fn retain(&self, is_held: impl Fn(&HeldTable) -> bool) {
        self.held.lock().retain(|held| is_held(held));
    }
}
