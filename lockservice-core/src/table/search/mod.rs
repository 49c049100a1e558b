//! Searches in the wait graph.
//!
//! | file | search |
//! |---|---|
//! | `backwards.rs` | the waiters that wait for a transaction |
//! | `forwards.rs` | the waiters for which a waiter waits |
//!
//! A search walks each queue once, not once for each hold that conflicts with its waiters. The
//! holders of an entry in one mode are one node.

mod backwards;
mod forwards;

use smallvec::SmallVec;

pub(super) use self::backwards::Waiters;
pub(super) use self::forwards::WaitedFor;
use super::call::{CallId, EngineCall};
use super::entry::Entry;
use super::hash::IdMap;
use super::queue::Queue;
use super::state::EngineState;
use super::steps::step;
use crate::id::TxnId;
use crate::key::LockMode;

/// The waits that a search follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// Waits for holders of an incompatible lock.
    Hard,
    /// Also waits for the calls that name such a holder as an ancestor.
    Claimed,
    /// Also waits for conflicting waiters ahead in the queue.
    All,
}

impl Edges {
    /// The transactions for whose locks others wait until a call has ended.
    fn family(self, call: &EngineCall) -> impl Iterator<Item = TxnId> {
        call.family().take(if self == Self::Hard { 1 } else { usize::MAX })
    }
}

/// The identity of an entry or a queue while the state is borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Address(u64);

impl Address {
    pub(super) fn of<T>(value: &T) -> Self {
        Self(std::ptr::from_ref(value).addr() as u64)
    }
}

/// A queue and a mode: the same for all waiters that request the same item in the same mode.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    queue: Option<Address>,
    mode: u32,
}

impl RequestKey {
    pub(super) fn new(queue: Option<&Queue>, mode: LockMode) -> Self {
        Self { queue: queue.map(Address::of), mode: mode as u32 }
    }
}

impl EngineState {
    /// The call of a transaction, if it waits for a lock.
    pub(super) fn waiting_call(&self, txn: TxnId) -> Option<CallId> {
        self.txns
            .get(&txn)?
            .call
            .filter(|id| self.calls.get(*id).is_some_and(|call| call.is_waiting()))
    }

    /// The calls for which a transaction waits: its own call, and those that name it as an
    /// ancestor, each if it waits for a lock. The list is one `None` if there is no such call.
    fn calls_waited_for(&self, txn: TxnId) -> SmallVec<[Option<CallId>; 1]> {
        let mut waits: SmallVec<[Option<CallId>; 1]> = SmallVec::new();
        if let Some(txn) = self.txns.get(&txn) {
            let calls = txn.call.iter().chain(&txn.nested);
            let waiting =
                calls.filter(|id| self.calls.get(**id).is_some_and(EngineCall::is_waiting));
            waits.extend(waiting.map(|id| Some(*id)));
        }
        if waits.is_empty() {
            waits.push(None);
        }
        waits
    }

    /// The queue in which a call waits.
    pub(super) fn queue_of(&self, id: CallId) -> Option<&Queue> {
        let call = &self.calls[id];
        self.tables[&call.table].entry(call.item()).and_then(Entry::queue)
    }

    /// The request of a waiter, as a key.
    pub(super) fn requested_at(&self, id: CallId) -> RequestKey {
        RequestKey::new(self.queue_of(id), self.calls[id].mode)
    }

    /// The waiting calls of the holders of an entry in a mode incompatible with `mode`, except of
    /// `txn`; `None` for each holder that does not wait. If `within` is given and smaller than the
    /// number of holders, only the calls in it are returned.
    pub(super) fn waiting_holders(
        &self,
        entry: &Entry,
        txn: TxnId,
        mode: LockMode,
        within: Option<&IdMap<CallId, Option<CallId>>>,
    ) -> impl Iterator<Item = Option<CallId>> {
        // Only an exclusive request can wait for many holders.
        let within = within
            .filter(|within| mode == LockMode::Exclusive && within.len() < entry.holders().len());
        let holders = within.is_none().then(|| {
            entry.conflicting(txn, mode, None).flat_map(|holder| self.calls_waited_for(holder.txn))
        });
        let waiters = within.map(|within| {
            within.keys().copied().inspect(|_| step()).filter_map(move |id| {
                let mut family = self.calls[id].family();
                family
                    .any(|holder| holder != txn && entry.holder(holder).is_some())
                    .then_some(Some(id))
            })
        });
        holders.into_iter().flatten().chain(waiters.into_iter().flatten())
    }
}
