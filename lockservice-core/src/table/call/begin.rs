//! The begin of a call: a request is checked, its items are brought into order, and the call is
//! registered with its transaction, its ancestors and its table.

use super::advance::Next;
use super::refusal::{bind_changed, call_in_flight};
use super::{Ancestors, Arrival, EngineCall, Stage, is_range};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{FencingToken, TxnId};
use crate::key::{compare_ends, compare_starts};
use crate::table::call::CallId;
use crate::table::entry::Position;
use crate::table::state::{EngineState, Started};
use crate::table::txn::NESTED_MAX;
use crate::table::types::{LockRequest, WaitPolicy};
use crate::table::uncontended::HoldSeq;

/// Checks a request's items and brings them into the order in which they are taken, without
/// duplicates.
///
/// The caller does not hold the engine's mutex yet, for this can take as long as all work under it.
pub(in crate::table) fn put_in_order(request: &mut LockRequest, most: usize) -> Result<()> {
    let items = &mut request.items;
    if items.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "a lock request names nothing: give at least one row or range",
        ));
    }
    if items.len() > most {
        return Err(Error::new(
            // `ResourceExhausted` would promise that the request can succeed later.
            ErrorKind::InvalidArgument,
            "a request names too many rows and ranges: request fewer, or a range",
        )
        .with("items", items.len())
        .with("items_per_request_max", most));
    }
    if request.wait == WaitPolicy::SkipLocked && items.iter().any(is_range) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "a request that skips locked rows names a range: name rows, or do not skip",
        ));
    }
    // A covering item comes first, so that the items that it covers add nothing.
    items.sort_by(|a, b| {
        compare_starts(a.start(), b.start())
            .then_with(|| compare_ends(b.end(), a.end()))
            .then_with(|| is_range(a).cmp(&is_range(b)))
    });
    items.dedup();
    Ok(())
}

impl EngineState {
    /// Begins a call, whose items are [in order](put_in_order). A call that is granted here, in one
    /// slice, never conflicted with any other.
    pub(in crate::table) fn lock(
        &mut self,
        (txn, seq): (TxnId, HoldSeq),
        request: LockRequest,
        ancestors: &[TxnId],
        arrival: Arrival,
        now: Time,
    ) -> Started {
        let mut call = match self.accept((txn, seq), request, ancestors, arrival, now) {
            Ok(accepted) => accepted,
            Err(error) => return Started::Done(Err(error)),
        };
        let advanced = self.advance(&mut call);
        self.recheck_nested(&call, 0);
        let next = match self.next(&mut call, advanced) {
            Next::Grant(grant) => return Started::Done(Ok(grant)),
            Next::Refuse(error) if self.roll_back_call(&mut call) => {
                self.forget_if_idle(call.txn);
                return Started::Done(Err(error));
            }
            next => next,
        };
        let id = self.calls.insert(Box::new(call));
        self.register(id);
        self.follow(id, next);
        Started::Kept(id)
    }

    fn accept(
        &self,
        (txn, seq): (TxnId, HoldSeq),
        request: LockRequest,
        ancestors: &[TxnId],
        arrival: Arrival,
        now: Time,
    ) -> Result<EngineCall> {
        self.check_not_sealed()?;
        let LockRequest { table, version, items, mode, wait, escalate } = request;
        if self.tables.get(&table).is_none_or(|table| table.bind.version != version) {
            return Err(bind_changed(table));
        }
        if self.txns.get(&txn).is_some_and(|txn| txn.call.is_some()) {
            // T2: one lock call of a transaction is decided at a time.
            return Err(call_in_flight(txn));
        }
        let (ancestors, linked) = self.ancestors(txn, ancestors);
        Ok(EngineCall {
            txn,
            ancestors,
            linked,
            table,
            seq,
            items,
            next: 0,
            mode,
            wait,
            changes: Vec::new(),
            covered: FencingToken::new(0),
            token: None,
            without_token: 0,
            arrival,
            waited: false,
            conflict: None,
            prev_commit: None,
            skipped: Vec::new(),
            escalate,
            escalated: None,
            since: now,
            position: Position::LAST,
            stage: Stage::Moving,
            waker: None,
            bytes: 0,
        })
    }

    /// The ancestors of a call of `txn`, and the number of those that have room for it among their
    /// nested calls. Those come first.
    fn ancestors(&self, txn: TxnId, named: &[TxnId]) -> (Ancestors, usize) {
        // A transaction is no ancestor of its own call.
        let mut ancestors: Ancestors =
            named.iter().copied().filter(|ancestor| *ancestor != txn).collect();
        ancestors.sort_unstable();
        ancestors.dedup();
        let is_full =
            |txn: &TxnId| self.txns.get(txn).is_some_and(|txn| txn.nested.len() >= NESTED_MAX);
        ancestors.sort_by_key(is_full);
        let linked = ancestors.iter().take_while(|ancestor| !is_full(ancestor)).count();
        (ancestors, linked)
    }

    /// Registers a call with its transaction, its ancestors and its table.
    fn register(&mut self, id: CallId) {
        let call = &self.calls[id];
        self.txns.get_or_new(call.txn, &mut self.bytes).call = Some(id);
        self.nested_calls += usize::from(!call.ancestors.is_empty());
        for ancestor in &call.ancestors[..call.linked] {
            self.txns.get_or_new(*ancestor, &mut self.bytes).nested.push(id);
        }
        self.tables.get_mut(&call.table).expect("calls end with their table").calls.insert(id, ());
    }
}
