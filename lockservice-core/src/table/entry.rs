//! One row or range that is held or waited for: its holders and its queue. Also queue positions.

use super::call::CallId;
use super::holder::Holder;
use super::holders::Holders;
use super::queue::{CommitNumber, Queue};
use super::types::Commit;
use crate::clock::Time;
use crate::id::TxnId;
use crate::key::LockMode;

/// The position of a waiter in the one queue order of the node. Smaller is earlier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Position(pub(super) i64);

impl Position {
    /// Before every waiter.
    pub(super) const FIRST: Self = Self(i64::MIN);
    /// Behind every waiter.
    pub(super) const LAST: Self = Self(i64::MAX);
}

/// The positions that were given out, in three parts of the order: upgrades, calls that waited at
/// an earlier incarnation of the node (P6), and all others.
#[derive(Debug)]
pub(super) struct Positions {
    upgrade: i64,
    /// The number of positions among those of an earlier incarnation.
    earlier: i64,
    last: i64,
}

/// The first position of a call that waited at an earlier incarnation. There is room for 2^40
/// milliseconds of the clock, 34 years.
const EARLIER: i64 = i64::MIN / 2;

/// The bits of such a position that distinguish calls that came in the same millisecond.
const EARLIER_BITS: u32 = 22;

impl Default for Positions {
    fn default() -> Self {
        Self { upgrade: i64::MIN, earlier: 0, last: 0 }
    }
}

impl Positions {
    /// The position of a wait that begins now: behind the other upgrades for an upgrade, else
    /// behind all.
    pub(super) const fn next(&mut self, upgrade: bool) -> Position {
        let last = if upgrade { &mut self.upgrade } else { &mut self.last };
        *last += 1;
        Position(*last)
    }

    /// The position of a call that came at `came` to an earlier incarnation of the node (P6): ahead
    /// of all that came here first, and among those like it in the order in which they came there,
    /// to a millisecond. After four million of them the others are behind all, for no position is
    /// given out twice.
    pub(super) fn next_earlier(&mut self, came: Time) -> Position {
        if self.earlier >= 1 << EARLIER_BITS {
            return self.next(false);
        }
        let most = (-EARLIER >> EARLIER_BITS) - 1;
        let millis = i64::try_from(came.since_origin().as_millis()).unwrap_or(most).min(most);
        let position = EARLIER + (millis << EARLIER_BITS) + self.earlier;
        self.earlier += 1;
        Position(position)
    }
}

/// A row or range. An entry without holders and waiters is removed.
#[derive(Debug, Default)]
pub(super) struct Entry {
    holders: Holders,
    queue: Option<Box<Queue>>,
}

impl Entry {
    pub(super) fn held_by(holder: Holder) -> Self {
        Self { holders: Holders::One(holder), queue: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.queue.is_none()
    }

    pub(super) const fn holders(&self) -> &Holders {
        &self.holders
    }

    pub(super) fn holder(&self, txn: TxnId) -> Option<&Holder> {
        self.holders.get(txn)
    }

    /// Changes the hold of a transaction, if it has one.
    pub(super) fn change<R>(
        &mut self,
        txn: TxnId,
        change: impl FnOnce(&mut Holder) -> R,
    ) -> Option<R> {
        self.holders.change(txn, change)
    }

    /// Adds a holder. Its transaction holds nothing here yet.
    pub(super) fn add(&mut self, holder: Holder) {
        self.holders.add(holder);
    }

    /// Ends the hold of a transaction.
    pub(super) fn take(&mut self, txn: TxnId) -> Option<Holder> {
        self.holders.take(txn)
    }

    /// The conflicting holders of a request of `txn` in `mode`, of later transactions than `after`.
    pub(super) fn conflicting(
        &self,
        txn: TxnId,
        mode: LockMode,
        after: Option<TxnId>,
    ) -> impl Iterator<Item = &Holder> {
        // All holders are in the way of an exclusive request. Any other one shares with sharers, of
        // whom there may be many, so that only the holder that is none decides.
        let all = mode == LockMode::Exclusive;
        let strongest = self.holders.strongest().filter(|holder| {
            !all && !mode.is_compatible(holder.mode) && after.is_none_or(|txn| holder.txn > txn)
        });
        let holders = all.then(|| self.holders.after(after)).into_iter().flatten();
        holders.chain(strongest).filter(move |holder| holder.txn != txn)
    }

    pub(super) fn queue(&self) -> Option<&Queue> {
        self.queue.as_deref()
    }

    pub(super) fn queue_mut(&mut self) -> Option<&mut Queue> {
        self.queue.as_deref_mut()
    }

    /// The first waiter that is incompatible with `mode`.
    pub(super) fn first_conflicting_waiter(&self, mode: LockMode) -> Option<(Position, CallId)> {
        self.queue().and_then(|queue| queue.first_incompatible(mode))
    }

    /// Puts a waiter into the queue. It will learn of the commits after number `commits`.
    pub(super) fn enqueue(
        &mut self,
        position: Position,
        id: CallId,
        mode: LockMode,
        commits: CommitNumber,
    ) {
        self.queue.get_or_insert_default().insert(position, id, mode, commits);
    }

    /// Takes a waiter out of the queue. Returns what it learns of commits, if there were any.
    pub(super) fn dequeue(&mut self, position: Position, mode: LockMode) -> Option<Commit> {
        let queue = self.queue.as_mut()?;
        let learned = queue.remove(position, mode);
        if queue.is_empty() {
            self.queue = None;
        }
        learned
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_of_an_earlier_incarnation_are_behind_upgrades_and_ahead_of_all_others() {
        let mut positions = Positions::default();
        let mut at =
            |millis| positions.next_earlier(Time::from_origin(Duration::from_millis(millis)));
        let earlier = [at(0), at(7), at(7), at(9), at(1 << 39), at(u64::MAX)];
        assert!(earlier.is_sorted_by(|a, b| a < b), "{earlier:?}");
        let before = at(8);
        assert!(earlier[2] < before && before < earlier[3]);
        assert!(positions.next(true) < earlier[0]);
        assert!(earlier[5] < positions.next(false));
    }

    #[test]
    fn no_position_is_given_out_twice() {
        let mut positions = Positions { earlier: (1 << EARLIER_BITS) - 1, ..Positions::default() };
        let came = Time::from_origin(Duration::from_secs(1));
        let last = positions.next_earlier(came);
        let first = Positions::default().next_earlier(came + Duration::from_millis(1));
        assert!(last < first, "the next millisecond begins behind the last of this one");
        assert_eq!(positions.next_earlier(came), Position(1), "behind all");
        assert_eq!(positions.next(false), Position(2));
    }
}
