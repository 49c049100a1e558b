//! The end of a call: its outcome is kept until it is taken, or everything that it added is rolled
//! back.

use super::conflict::Conflict;
use super::{CallId, EngineCall, Stage};
use crate::error::{Error, Result};
use crate::id::{TableId, TxnId};
use crate::key::LockItem;
use crate::table::holder::NONE;
use crate::table::release::RollBack;
use crate::table::slices::Released;
use crate::table::state::EngineState;
use crate::table::types::Grant;

/// The outcome of a call that was kept.
#[derive(Debug)]
pub(in crate::table) struct Outcome {
    pub(in crate::table) result: Result<Grant>,
    /// The item of the first conflicting lock or waiter, if the call failed. A grant has its own.
    pub(in crate::table) conflicting: Option<Box<LockItem>>,
}

impl EngineState {
    /// Ends a call without a grant: takes it out of its queue and rolls it back.
    pub(in crate::table) fn fail(&mut self, id: CallId, error: Error) {
        self.end_wait(id, Some(error));
        if !self.roll_back_and_finish(id) {
            self.pause(id);
        }
    }

    /// Ends a call whose future is dropped: its wait is cancelled, or the grant that was not
    /// received is rolled back. True once the call is gone; the caller repeats this until then.
    pub(in crate::table) fn abandon(&mut self, id: CallId) -> bool {
        self.end_wait(id, None);
        let is_all = self.roll_back_kept(id);
        if is_all {
            self.uncount_wait(id);
            self.discard(id);
        }
        is_all
    }

    /// Takes the outcome of a call that is over.
    pub(in crate::table) fn take_outcome(&mut self, id: CallId) -> Option<Outcome> {
        if !self.calls[id].is_done() {
            return None;
        }
        let call = self.discard(id);
        match call.stage {
            Stage::Done(result) => Some(Outcome {
                result: result.map(|grant| *grant),
                conflicting: call.conflict.and_then(Conflict::into_item),
            }),
            Stage::Waiting | Stage::AwaitingToken | Stage::Moving | Stage::Failing(_) => None,
        }
    }

    /// The item of the first conflicting lock or waiter of a call that was not granted; `None` if
    /// it met none.
    pub(in crate::table) fn conflicting_item(&self, id: CallId) -> Option<LockItem> {
        let call = self.calls.get(id).filter(|call| !call.is_done())?;
        call.conflict.as_ref().map(|conflict| conflict.item(&call.items))
    }

    /// Makes a call fail in every stage, and takes it out of its queue. From here on it is only
    /// rolled back, even if it was granted and the grant was not received.
    pub(in crate::table) fn end_wait(&mut self, id: CallId, why: Option<Error>) {
        let mut call = self.calls.take(id);
        match std::mem::replace(&mut call.stage, Stage::Failing(why)) {
            Stage::Waiting => {
                self.dequeue(&mut call);
                self.retire(call.table, call.item());
                self.released.push((call.table, Released::Item(call.item().clone())));
            }
            Stage::AwaitingToken => {
                if let Some(table) = self.tables.get_mut(&call.table) {
                    table.awaiting_token.remove(&call.position);
                }
            }
            Stage::Moving | Stage::Failing(_) => {
                self.unfinished.remove(&call.position);
            }
            Stage::Done(Ok(grant)) => {
                (call.changes, call.token) = (grant.owner.changes, Some(grant.token))
            }
            Stage::Done(Err(_)) => {}
        }
        self.calls.put(id, call);
    }

    /// Retires the entry of an item that a call did not get, unless others hold it or wait for it.
    pub(in crate::table) fn retire(&mut self, table: TableId, item: &LockItem) {
        if let Some(table) = self.tables.get_mut(&table) {
            table.retire(item, &mut self.bytes);
        }
    }

    /// Rolls a failing call back and ends it. False if that takes another slice.
    pub(in crate::table) fn roll_back_and_finish(&mut self, id: CallId) -> bool {
        if !self.roll_back_kept(id) {
            return false;
        }
        if let Stage::Failing(Some(why)) =
            std::mem::replace(&mut self.calls[id].stage, Stage::Failing(None))
        {
            self.finish(id, Err(why));
        }
        true
    }

    /// [Rolls back](Self::roll_back_call) a call that is kept.
    fn roll_back_kept(&mut self, id: CallId) -> bool {
        let mut call = self.calls.take(id);
        let is_all = self.roll_back_call(&mut call);
        self.calls.put(id, call);
        is_all
    }

    /// Rolls back the changes of an unfinished call, as many as the slice allows. True once all of
    /// them are rolled back.
    pub(super) fn roll_back_call(&mut self, call: &mut EngineCall) -> bool {
        while self.slice.has_steps()
            && let Some(change) = call.changes.pop()
        {
            self.slice.spend();
            let how = RollBack { token: call.token.unwrap_or(NONE), in_flight: true };
            self.roll_back_item(call.txn, call.table, change.item, how);
        }
        call.changes.is_empty()
    }

    /// Keeps the outcome of a call that has left its queue, and schedules the wake-up of its task.
    pub(in crate::table) fn finish(&mut self, id: CallId, outcome: Result<Grant>) {
        self.uncount_wait(id);
        let call = &mut self.calls[id];
        if matches!(call.stage, Stage::Moving | Stage::Failing(_)) {
            self.unfinished.remove(&call.position);
        }
        if outcome.is_ok() && call.waker.is_some() {
            self.handed_over.push(id);
        }
        if outcome.is_err()
            && let Some(conflict) = &mut call.conflict
        {
            conflict.keep_item(&call.items);
        }
        call.stage = Stage::Done(outcome.map(Box::new));
        call.changes = Vec::new();
        call.items = Vec::new();
        self.wake.extend(call.waker.take());
    }

    /// Takes a call that is over out of the state.
    fn discard(&mut self, id: CallId) -> Box<EngineCall> {
        let call = self.calls.remove(id);
        if let Some(txn) = self.txns.get_mut(&call.txn) {
            txn.call = None;
        }
        if let Some(table) = self.tables.get_mut(&call.table) {
            table.calls.remove(&id);
        }
        self.nested_calls -= usize::from(!call.ancestors.is_empty());
        for ancestor in &call.ancestors {
            if let Some(txn) = self.txns.get_mut(ancestor) {
                txn.nested.retain(|nested| *nested != id);
            }
            self.forget_if_idle(*ancestor);
        }
        self.forget_if_idle(call.txn);
        call
    }

    /// Drops the record of a transaction that holds nothing and has no call.
    pub(in crate::table) fn forget_if_idle(&mut self, id: TxnId) {
        self.txns.forget_if_idle(id, &mut self.bytes);
    }
}
