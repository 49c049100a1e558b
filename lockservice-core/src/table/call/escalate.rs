//! Escalation: at a limit of memory, the rows of a transaction in a table become one range.
//!
//! It never waits. So it is refused if another transaction holds a conflicting lock in the range,
//! or waits for one ahead of the call. Then the call fails as it would have without it.
//!
//! It is done under one hold of the mutex, because a call is all or nothing: the range is held,
//! under a token of its own, before the rows are released. No other transaction sees a row free
//! that was held. The rows of earlier calls cannot come back. So a roll-back of the call leaves the
//! range, if it stands for any of them.
//!
//! A refusal takes as much work as an escalation. After one the next attempts of the transaction
//! are refused without a look, one for each [`LOOK_ROWS`] of its rows.

use std::ops::Bound;

use super::EngineCall;
use crate::key::{Key, KeyRange, LockItem, LockMode, compare_ends, compare_starts};
use crate::table::holder::Holder;
use crate::table::memory::{held_bytes, hold_bytes};
use crate::table::slices::Released;
use crate::table::state::EngineState;
use crate::table::types::ItemGrant;
use crate::table::uncontended::HoldSeq;

/// See the module.
const LOOK_ROWS: usize = 4_096;

impl EngineState {
    /// Makes the call's transaction hold one range instead of its rows in the table and of the
    /// call's items. False, and nothing has changed, if that would have to wait, would not fit, or
    /// the table has no token.
    pub(super) fn escalate(&mut self, call: &mut EngineCall) -> bool {
        if let Some(txn) = self.txns.get_mut(&call.txn)
            && let Some(left) = txn.escalation_pause.checked_sub(1)
        {
            txn.escalation_pause = left;
            return false;
        }
        let is_done = self.try_escalate(call);
        if let Some(txn) = self.txns.get_mut(&call.txn) {
            let rows = txn.items_in(call.table).map_or(0, |held| held.len());
            txn.escalation_pause = if is_done { 0 } else { rows / LOOK_ROWS };
        }
        is_done
    }

    fn try_escalate(&mut self, call: &mut EngineCall) -> bool {
        let Some(range) = self.range_of_rows(call) else { return false };
        let item = LockItem::Range(range.clone());
        // Also makes the transaction's own rows known that were locked meanwhile.
        self.inflate(call.table, &item);
        let replaced = self.replaced(call);
        let (mode, first_call) = self.strongest(call, &replaced);
        let is_possible = self.fits(call, &item, &replaced) && self.is_free_for(call, &item, mode);
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        let token = if is_possible { table.tokens.take() } else { None };
        let Some(token) = token else {
            self.retire(call.table, &item);
            return false;
        };
        self.bytes += hold_bytes(&item);
        self.held += 1;
        let txn = self.txns.get_or_new(call.txn, &mut self.bytes);
        let slot = txn.add(call.table, item.clone(), first_call);
        let mut holder = Holder::pending(call.txn, slot, mode, first_call);
        holder.grant(token);
        table.entry_or_new(&item, &mut self.bytes).add(holder);
        let replaced_count = replaced.len();
        for item in replaced {
            self.slice.spend();
            self.release(call.txn, call.table, item);
        }
        // The next item is in no queue any more, and is not held: the waiters behind it go on.
        let next = call.items[call.next].clone();
        self.retire(call.table, &next);
        self.released.push((call.table, Released::Item(next)));
        // Of calls before this one it stands for nothing, so that a roll-back can end it.
        let is_of_call = call.changes.iter().all(|change| change.before.is_none())
            && call.changes.len() == replaced_count;
        call.changes.clear();
        if is_of_call {
            call.changes.push(ItemGrant { item, before: None });
        }
        call.skipped.clear();
        (call.token, call.without_token, call.next) = (Some(token), 0, call.items.len());
        call.escalated = Some(Box::new(range));
        true
    }

    /// The rows that the transaction holds in the table.
    fn rows_of(&self, call: &EngineCall) -> impl Iterator<Item = &LockItem> {
        let held = self.txns.get(&call.txn).and_then(|txn| txn.items_in(call.table));
        held.into_iter().flat_map(|held| held.iter()).filter(|item| item.as_row().is_some())
    }

    /// The smallest range around the rows of the transaction in the table and the items of the
    /// call. `None` if it would be one row.
    fn range_of_rows(&self, call: &EngineCall) -> Option<KeyRange> {
        let mut bounds: Option<(Bound<&Key>, Bound<&Key>)> = None;
        for item in self.rows_of(call).chain(&call.items) {
            let (start, end) = bounds.unwrap_or((item.start(), item.end()));
            let starts_before = compare_starts(item.start(), start).is_lt();
            let ends_after = compare_ends(item.end(), end).is_gt();
            bounds = Some((
                if starts_before { item.start() } else { start },
                if ends_after { item.end() } else { end },
            ));
        }
        let (start, end) = bounds?;
        let is_row = start == end && start != Bound::Unbounded;
        if is_row { None } else { KeyRange::new(start.cloned(), end.cloned()).ok() }
    }

    /// What the range stands for: the rows, and what the call has added or upgraded so far.
    fn replaced(&self, call: &EngineCall) -> Vec<LockItem> {
        let ranges = call.changes.iter().map(|change| &change.item);
        let ranges = ranges.filter(|item| item.as_row().is_none());
        self.rows_of(call).chain(ranges).cloned().collect()
    }

    /// The mode in which the range is held, and the number of the call from which on it counts: as
    /// strong as each of the holds that it replaces, and for as long.
    fn strongest(&self, call: &EngineCall, replaced: &[LockItem]) -> (LockMode, HoldSeq) {
        let table = &self.tables[&call.table];
        let holds = replaced.iter().filter_map(|item| table.entry(item)?.holder(call.txn));
        holds.fold((call.mode, call.seq), |(mode, first_call), own| {
            (mode.max(own.mode), first_call.min(own.first_call()))
        })
    }

    /// True if the range keeps the limits once the holds that it replaces are released.
    fn fits(&self, call: &EngineCall, item: &LockItem, replaced: &[LockItem]) -> bool {
        let sum = |of: fn(&LockItem) -> usize| replaced.iter().map(of).sum::<usize>();
        let of_txn = self.txns.get(&call.txn).map_or(0, |txn| txn.bytes);
        // Others may share the entries of the rows, which stay then.
        let most = self.most_of_hold(call, item);
        self.bytes + most - sum(hold_bytes) <= self.settings.lock_bytes_max
            && of_txn + held_bytes(item) - sum(held_bytes) <= self.settings.txn_lock_bytes_max
    }

    /// True if the range is free for the transaction: it conflicts with no holder, and with no
    /// waiter that would be passed. False if the transaction holds exactly this range already.
    fn is_free_for(&mut self, call: &mut EngineCall, item: &LockItem, mode: LockMode) -> bool {
        let table = &self.tables[&call.table];
        let is_held = table.entry(item).is_some_and(|entry| entry.holder(call.txn).is_some());
        if is_held || table.conflicts(item, call.txn, mode).held_by.is_some() {
            return false;
        }
        if table.waiting.is_empty() {
            return true;
        }
        let items = std::mem::replace(&mut call.items, vec![item.clone()]);
        let next = std::mem::take(&mut call.next);
        let of_call = std::mem::replace(&mut call.mode, mode);
        let waiter = self.must_wait_behind(call);
        (call.items, call.next, call.mode) = (items, next, of_call);
        waiter.is_none()
    }
}
