//! A lock call in flight.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the call, its stage, and the slots in which calls are kept |
//! | `begin.rs` | a request is checked and becomes a call |
//! | `advance.rs` | the way of a call from item to item, and its token |
//! | `wait.rs` | its waits |
//! | `end.rs` | its outcome, or its roll-back |
//! | `escalate.rs` | the rows of a transaction become one range |
//! | `conflict.rs` | the first conflict of a call |
//! | `limits.rs` | the room that a wait needs |
//! | `refusal.rs` | errors |
//!
//! ```text
//!               ┌────────── continue_call ─────────┐
//!               ▼                                  │
//!   accept ─▶ Moving ──────── begin_wait ─────▶ Waiting
//!               │ │ ▲
//!               │ │ └─ serve_awaiting_token ──┐
//!               │ └──── begin_token_wait ─▶ AwaitingToken
//!               ▼
//!          Done(grant)
//!
//!   any of these ─── end_wait ─▶ Failing ─── roll_back_and_finish ─▶ Done(error)
//! ```
//!
//! A call whose table is removed becomes `Done(error)` at once: no hold is left to roll back.

mod advance;
mod begin;
mod conflict;
mod end;
mod escalate;
mod limits;
mod refusal;
mod wait;

use std::ops::{Index, IndexMut};
use std::task::Waker;

use smallvec::SmallVec;

use self::conflict::Conflict;
use super::entry::Position;
use super::types::{Commit, Grant, ItemGrant, WaitPolicy};
use super::uncontended::HoldSeq;
use crate::clock::Time;
use crate::error::{Blocker, Error, Result};
use crate::id::{FencingToken, TableId, TxnId};
use crate::key::{Key, KeyRange, LockItem, LockMode};

pub(super) use self::begin::put_in_order;
pub(super) use self::end::Outcome;
pub(super) use self::refusal::{bind_changed, call_in_flight};

/// The slot of a call. It is used again after the outcome of the call was taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(super) struct CallId(u32);

/// A call in flight. See the module.
#[derive(Debug)]
pub(super) struct EngineCall {
    pub(super) txn: TxnId,
    /// The transactions whose work waits for this call to end.
    pub(super) ancestors: Ancestors,
    /// The number of those, the first ones, that are part of the wait graph.
    pub(super) linked: usize,
    pub(super) table: TableId,
    /// Its number in its transaction.
    pub(super) seq: HoldSeq,
    /// In key order, without duplicates.
    pub(super) items: Vec<LockItem>,
    /// The index of the item that is taken next, or that the call waits for.
    pub(super) next: usize,
    pub(super) mode: LockMode,
    pub(super) wait: WaitPolicy,
    /// The holds that the call has added or upgraded so far.
    pub(super) changes: Vec<ItemGrant>,
    /// The largest token under which an item was already held.
    pub(super) covered: FencingToken,
    /// The call's token, once it has all its items.
    pub(super) token: Option<FencingToken>,
    /// The number of changes, the first ones, that do not have the token yet.
    pub(super) without_token: usize,
    pub(super) arrival: Arrival,
    pub(super) waited: bool,
    /// The first conflicting holder or waiter that it met.
    pub(super) conflict: Option<Conflict>,
    /// What it has learned of the commits of those that it waited for.
    pub(super) prev_commit: Option<Commit>,
    /// The rows that it left out, because they were not free.
    pub(super) skipped: Vec<Key>,
    /// True if its transaction's rows may become one range.
    pub(super) escalate: bool,
    /// The range that they became.
    pub(super) escalated: Option<Box<KeyRange>>,
    /// When the call was made, here or at an earlier incarnation.
    pub(super) since: Time,
    /// Its queue position while it waits, or its position among the unfinished calls between two
    /// slices.
    pub(super) position: Position,
    pub(super) stage: Stage,
    pub(super) waker: Option<Waker>,
    /// The memory that it was counted with when its wait began, in bytes; 0 if it never waited.
    pub(super) bytes: usize,
}

/// How a call came here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    New,
    /// It has waited at an earlier incarnation of the node, and keeps its place (P6).
    Earlier,
    /// It claims, under this token, and draws none (P6).
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    Claim(FencingToken),
}

/// The transactions on whose behalf a call is made. While the call waits, they wait too.
pub(super) type Ancestors = SmallVec<[TxnId; 1]>;

/// The progress of a call.
#[derive(Debug)]
pub(super) enum Stage {
    /// It waits for its next item.
    Waiting,
    /// It has all its items and waits for a fencing token.
    AwaitingToken,
    /// It takes free items, or is between two slices of that.
    Moving,
    /// It is rolled back, or is between two slices of that, and then ends with this error. Without
    /// an error its future is being dropped, and then removes it.
    Failing(Option<Error>),
    /// It is over; the outcome was not taken yet. In a box: a call that waits stays small.
    Done(Result<Box<Grant>>),
}

impl EngineCall {
    /// The item that it waits for. Only for a call that waits.
    pub(super) fn item(&self) -> &LockItem {
        &self.items[self.next]
    }

    /// The token of a claim.
    pub(super) const fn claimed(&self) -> Option<FencingToken> {
        match self.arrival {
            Arrival::Claim(token) => Some(token),
            Arrival::New | Arrival::Earlier => None,
        }
    }

    /// Notes that the next item was added to the holds of the transaction, or upgraded.
    pub(super) fn note_change(&mut self, before: Option<(LockMode, FencingToken)>) {
        if self.changes.capacity() == 0 {
            // The grant keeps them, perhaps for long. It is not to keep more.
            self.changes.reserve_exact(self.items.len() - self.next);
        }
        self.changes.push(ItemGrant { item: self.items[self.next].clone(), before });
    }

    /// The call as the blocker of another call, without the names, which the engine does not know.
    pub(super) fn as_blocker(&self) -> Blocker {
        let (label, client) = (String::new(), String::new());
        Blocker {
            txn: self.txn,
            item: self.item().clone(),
            mode: self.mode,
            granted: false,
            label,
            client,
        }
    }

    /// The transactions for whose locks others wait until this call has ended: its own, then the
    /// ancestors that are part of the wait graph.
    pub(super) fn family(&self) -> impl Iterator<Item = TxnId> {
        std::iter::once(self.txn).chain(self.ancestors[..self.linked].iter().copied())
    }

    pub(super) const fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    pub(super) const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done(_))
    }
}

/// All calls in flight, and those whose outcome was not taken.
#[derive(Debug, Default)]
pub(super) struct Calls {
    slots: Vec<Option<Box<EngineCall>>>,
    free: Vec<u32>,
}

impl Calls {
    pub(super) fn insert(&mut self, call: Box<EngineCall>) -> CallId {
        match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some(call);
                CallId(at)
            }
            None => {
                self.slots.push(Some(call));
                // `waiters_max` and the memory are reached long before 2^32 calls.
                CallId((self.slots.len() - 1) as u32)
            }
        }
    }

    pub(super) fn get(&self, id: CallId) -> Option<&EngineCall> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, id: CallId) -> Option<&mut EngineCall> {
        self.slots.get_mut(id.0 as usize)?.as_deref_mut()
    }

    /// Takes a call out, to work on it and on the state; [`put`](Self::put) brings it back.
    pub(super) fn take(&mut self, id: CallId) -> Box<EngineCall> {
        self.slots[id.0 as usize].take().expect("a call id is used only while its call is kept")
    }

    pub(super) fn put(&mut self, id: CallId, call: Box<EngineCall>) {
        self.slots[id.0 as usize] = Some(call);
    }

    pub(super) fn remove(&mut self, id: CallId) -> Box<EngineCall> {
        let call = self.take(id);
        self.free.push(id.0);
        call
    }

    pub(super) fn ids(&self) -> Vec<CallId> {
        (0..self.slots.len() as u32).map(CallId).filter(|id| self.get(*id).is_some()).collect()
    }
}

impl Index<CallId> for Calls {
    type Output = EngineCall;

    fn index(&self, id: CallId) -> &EngineCall {
        self.get(id).expect("a call id is used only while its call is kept")
    }
}

impl IndexMut<CallId> for Calls {
    fn index_mut(&mut self, id: CallId) -> &mut EngineCall {
        self.slots[id.0 as usize]
            .as_deref_mut()
            .expect("a call id is used only while its call is kept")
    }
}

fn is_range(item: &LockItem) -> bool {
    matches!(item, LockItem::Range(_))
}
