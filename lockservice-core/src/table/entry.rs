//! One row or range that is held or waited for: its holders and its queue.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::call::CallId;
use crate::id::{FencingToken, TxnId};
use crate::key::LockMode;

/// A waiter's place in the node's one queue order: smaller is earlier. An upgrade gets one before, an ordinary wait one behind all others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place(pub(super) i64);

impl Place {
    /// Before every waiter.
    pub(super) const FIRST: Self = Self(i64::MIN);
    /// Behind every waiter.
    pub(super) const LAST: Self = Self(i64::MAX);

    /// True for an upgrade's place and for one given by a reordering: it may have waiters behind it from the start.
    pub(super) const fn is_ahead(self) -> bool {
        self.0 < 0
    }
}

/// One transaction's hold on an item.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) txn: TxnId,
    /// Meaningless while `pending`.
    pub(super) token: FencingToken,
    /// Where the transaction's own list names this item.
    pub(super) slot: u32,
    pub(super) mode: LockMode,
    /// Added or upgraded by a call that is still in flight: its token is not taken yet.
    pub(super) pending: bool,
}

/// See the module. Without holders and waiters it is removed.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Ordered by transaction. Either any number of sharers, or one.
    holders: SmallVec<[Holder; 1]>,
    queue: Option<Box<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    all: BTreeMap<Place, CallId>,
    /// Those of `all` that want the item exclusively: the others are found by what lies between them.
    exclusive: BTreeMap<Place, CallId>,
}

impl Entry {
    pub(super) fn held_by(holder: Holder) -> Self {
        Self { holders: smallvec::smallvec![holder], queue: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.queue.is_none()
    }

    pub(super) fn holders(&self) -> &[Holder] {
        &self.holders
    }

    pub(super) fn holder(&self, txn: TxnId) -> Option<&Holder> {
        self.position(txn).ok().map(|at| &self.holders[at])
    }

    pub(super) fn holder_mut(&mut self, txn: TxnId) -> Option<&mut Holder> {
        self.position(txn).ok().map(|at| &mut self.holders[at])
    }

    /// Adds a holder; its transaction has none here.
    pub(super) fn add(&mut self, holder: Holder) {
        match self.position(holder.txn) {
            Ok(_) => debug_assert!(false, "a transaction holds an item once"),
            Err(at) => self.holders.insert(at, holder),
        }
    }

    pub(super) fn take(&mut self, txn: TxnId) -> Option<Holder> {
        self.position(txn).ok().map(|at| self.holders.remove(at))
    }

    /// The holds that keep `txn` from having this item in `mode`.
    pub(super) fn in_the_way(&self, txn: TxnId, mode: LockMode) -> impl Iterator<Item = &Holder> {
        // An exclusive holder is the only one, so the first tells about all.
        let possible = if self.holders.first().is_some_and(|first| !mode.is_compatible(first.mode)) {
            &self.holders[..]
        } else {
            &[]
        };
        possible.iter().filter(move |holder| holder.txn != txn)
    }

    /// All waiters before `place` that are incompatible with `mode`, in order.
    pub(super) fn ahead(&self, mode: LockMode, place: Place) -> impl Iterator<Item = CallId> {
        self.incompatible(mode).into_iter().flat_map(move |queue| queue.range(..place)).map(|(_, id)| *id)
    }

    /// Enough of [`ahead`](Self::ahead) to reach all of it along the waits of those found: back to the nearest exclusive waiter,
    /// which itself waits for everything before it.
    pub(super) fn nearest_ahead(&self, mode: LockMode, place: Place) -> impl Iterator<Item = CallId> {
        self.queue.as_deref().into_iter().flat_map(move |queue| {
            let exclusive = queue.exclusive.range(..place).next_back();
            let from = exclusive.map_or(Place::FIRST, |(at, _)| *at);
            // For a sharer the sharers in between are not in the way.
            let between = if mode == LockMode::Exclusive { from..place } else { place..place };
            let between = queue.all.range(between).map(|(_, id)| *id);
            exclusive.filter(|_| mode == LockMode::Shared).map(|(_, id)| *id).into_iter().chain(between)
        })
    }

    /// All waiters that are incompatible with `mode`.
    pub(super) fn wanted_by(&self, mode: LockMode) -> impl Iterator<Item = CallId> {
        self.ahead(mode, Place::LAST)
    }

    /// Those from whose front one may have become grantable: up to the first exclusive one, which is in the way of all behind it.
    pub(super) fn front(&self) -> impl Iterator<Item = (Place, CallId)> {
        self.queue.as_deref().into_iter().flat_map(|queue| {
            let last = queue.exclusive.first_key_value().map_or(Place::LAST, |(at, _)| *at);
            queue.all.range(..=last).map(|(place, id)| (*place, *id))
        })
    }

    pub(super) fn enqueue(&mut self, place: Place, id: CallId, mode: LockMode) {
        let queue = self.queue.get_or_insert_default();
        queue.all.insert(place, id);
        if mode == LockMode::Exclusive {
            queue.exclusive.insert(place, id);
        }
    }

    pub(super) fn dequeue(&mut self, place: Place) {
        if let Some(queue) = &mut self.queue {
            queue.all.remove(&place);
            queue.exclusive.remove(&place);
            if queue.all.is_empty() {
                self.queue = None;
            }
        }
    }

    fn position(&self, txn: TxnId) -> Result<usize, usize> {
        self.holders.binary_search_by(|holder| holder.txn.cmp(&txn))
    }

    fn incompatible(&self, mode: LockMode) -> Option<&BTreeMap<Place, CallId>> {
        let queue = self.queue.as_deref()?;
        Some(match mode {
            LockMode::Shared => &queue.exclusive,
            LockMode::Exclusive => &queue.all,
        })
    }
}
