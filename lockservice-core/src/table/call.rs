//! A lock call in flight, and where such calls are kept.

use std::ops::{Index, IndexMut};
use std::task::Waker;

use smallvec::SmallVec;

use super::entry::Position;
use super::types::{Grant, ItemGrant, WaitPolicy};
use crate::clock::Time;
use crate::error::{Blocker, Error, Result};
use crate::id::{FencingToken, TableId, TxnId};
use crate::key::{LockItem, LockMode};

/// Where a call is kept. Used again after the call's owner has taken its outcome.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(super) struct CallId(u32);

/// A call that takes its items one after another.
#[derive(Debug)]
pub(super) struct EngineCall {
    pub(super) txn: TxnId,
    /// The transactions whose work waits for this call to end.
    pub(super) ancestors: Ancestors,
    /// So many of them, the first ones, are part of the wait graph.
    pub(super) linked: usize,
    pub(super) table: TableId,
    /// In key order, without duplicates.
    pub(super) items: Vec<LockItem>,
    /// The item that is to be taken next, or is waited for.
    pub(super) next: usize,
    pub(super) mode: LockMode,
    pub(super) wait: WaitPolicy,
    /// What has been added so far.
    pub(super) changes: Vec<ItemGrant>,
    /// The largest token under which an item was already held.
    pub(super) covered: FencingToken,
    /// The call's token, once it has all its items.
    pub(super) token: Option<FencingToken>,
    /// Of the changes, so many, the first ones, do not have the token yet.
    pub(super) without_token: usize,
    pub(super) waited: bool,
    /// The first that stood in its way.
    pub(super) conflict: Option<Blocker>,
    pub(super) prev_commit_ts: Option<u64>,
    /// When the call was made.
    pub(super) since: Time,
    /// Its place in the queue while it waits, or among the unfinished calls between two slices.
    pub(super) position: Position,
    pub(super) stage: Stage,
    pub(super) waker: Option<Waker>,
    /// What its waiting was counted with.
    pub(super) bytes: usize,
}

/// The transactions on whose behalf a call is made: while it waits, so do they.
pub(super) type Ancestors = SmallVec<[TxnId; 1]>;

/// How far a call has come.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a call that waits ends with a grant nearly always")]
pub(super) enum Stage {
    /// Waits for others to leave its next item.
    Waiting,
    /// Has all its items; waits for a fencing token.
    AwaitingToken,
    /// Waits for nothing: it takes what is free, or is between two slices of that.
    Moving,
    /// Gives back what it added, or is between two slices of that, and ends with this error then.
    /// Without one its owner is gone, and takes it out of the state then.
    Failing(Option<Error>),
    /// Over; the outcome has not been taken yet.
    Done(Result<Grant>),
}

impl EngineCall {
    /// The item it waits for. Only for a call that waits.
    pub(super) fn item(&self) -> &LockItem {
        &self.items[self.next]
    }

    /// What it is told as to those in whose way it waits; its names are not known here.
    pub(super) fn wants(&self) -> Blocker {
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

    /// Those whose locks others wait for until this call has ended: its transaction, then the
    /// ancestors that are part of the graph.
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

/// All calls in flight, and those whose outcome has not been taken.
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
                // `waiters_max` and memory end long before 2^32 calls.
                CallId((self.slots.len() - 1) as u32)
            }
        }
    }

    pub(super) fn get(&self, id: CallId) -> Option<&EngineCall> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    /// Takes a call out to work on it; [`put`](Self::put) brings it back.
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
