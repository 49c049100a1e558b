//! The way of a call: its items are taken in key order, one after another; it waits where something
//! is in its way; it ends with a grant, or with everything that it added taken back.

use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use super::call::{Ancestors, CallId, EngineCall, Stage};
use super::entry::{Entry, Position};
use super::holders::{Holder, NONE};
use super::slices::Released;
use super::state::{EngineState, Started, bind_changed};
use super::steps::step;
use super::txn::{NESTED_MAX, TxnHolds};
use super::types::{Grant, ItemGrant, LockRequest, OwnerPart, WaitPolicy};
use crate::clock::Time;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{FencingToken, TableId, TxnId};
use crate::key::{Key, LockItem, LockMode, compare_ends, compare_starts};

/// How far a call got.
enum Advance {
    Complete,
    Blocked(Position),
    /// The slice is used up.
    Unfinished,
}

/// What is to become of a call.
#[allow(
    clippy::large_enum_variant,
    reason = "the grant is the common case and must not cost an allocation"
)]
enum Next {
    Grant(Grant),
    Wait(Position),
    AwaitToken,
    /// It goes on in another slice.
    Unfinished,
    Refuse(Error),
}

/// Checks a request's items and brings them into the order in which they are taken, without
/// duplicates. Before the engine's mutex is taken: this can take as long as everything under it.
pub(super) fn put_in_order(items: &mut Vec<LockItem>, most: usize) -> Result<()> {
    if items.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "a lock request names nothing: give at least one row or range",
        ));
    }
    if items.len() > most {
        return Err(Error::new(
            // Not `ResourceExhausted`: no later time is better.
            ErrorKind::InvalidArgument,
            "a request names too many rows and ranges: ask for fewer, or for a range",
        )
        .with("items", items.len())
        .with("items_per_request_max", most));
    }
    // Covering items first, so that what they cover is nothing new.
    items.sort_by(|a, b| {
        compare_starts(a.start(), b.start())
            .then_with(|| compare_ends(b.end(), a.end()))
            .then_with(|| is_range(a).cmp(&is_range(b)))
    });
    items.dedup();
    Ok(())
}

impl EngineState {
    /// Begins a call, whose items are [in order](put_in_order). One that is granted here, in one
    /// slice, was never in anybody's way.
    pub(super) fn lock(&mut self, request: LockRequest, ancestors: &[TxnId], now: Time) -> Started {
        let mut call = match self.accept(request, ancestors, now) {
            Ok(accepted) => accepted,
            Err(error) => return Started::Done(Err(error)),
        };
        let advanced = self.advance(&mut call);
        self.look_again_at_nested(&call, 0);
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

    /// What is to become of a call that got so far.
    fn next(&mut self, call: &mut EngineCall, advanced: Result<Advance>) -> Next {
        // One that has waited has its room.
        let has_waited = call.bytes > 0;
        let position = match advanced {
            Err(error) => return Next::Refuse(error),
            Ok(Advance::Unfinished) => return Next::Unfinished,
            Ok(Advance::Blocked(_)) if call.wait == WaitPolicy::NoWait => {
                return Next::Refuse(match self.conflicting_ancestor(call) {
                    Some(ancestor) => held_by_ancestor(call, ancestor),
                    None => conflict(call),
                });
            }
            Ok(Advance::Blocked(position)) => Some(position),
            Ok(Advance::Complete) if !self.take_token(call) && call.wait == WaitPolicy::NoWait => {
                return Next::Refuse(no_token());
            }
            Ok(Advance::Complete) if call.token.is_none() && !call.changes.is_empty() => None,
            Ok(Advance::Complete) => return self.grant(call).map_or(Next::Unfinished, Next::Grant),
        };
        let room = match position {
            _ if has_waited => Ok(()),
            Some(_) => self.check_worth_waiting(call),
            None => self.check_room_to_wait(call),
        };
        room.map_or_else(Next::Refuse, |()| position.map_or(Next::AwaitToken, Next::Wait))
    }

    fn follow(&mut self, id: CallId, next: Next) {
        match next {
            Next::Grant(grant) => self.finish(id, Ok(grant)),
            Next::Wait(position) => self.begin_wait(id, position),
            Next::AwaitToken => {
                self.enter_flight(id);
                self.hold_up_for_token(id);
            }
            Next::Unfinished => self.pause(id),
            Next::Refuse(error) => self.fail(id, error),
        }
    }

    fn accept(&self, request: LockRequest, ancestors: &[TxnId], now: Time) -> Result<EngineCall> {
        self.check_not_sealed()?;
        let LockRequest { txn, table, version, items, mode, wait } = request;
        if self.tables.get(&table).is_none_or(|table| table.bind.version != version) {
            return Err(bind_changed(table));
        }
        if self.txns.get(&txn).is_some_and(|txn| txn.call.is_some()) {
            // T2: one lock call of a transaction is being decided at a time.
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a lock call of this transaction is still in flight: wait for it, or cancel it",
            )
            .with("txn", txn));
        }
        let (ancestors, linked) = self.ancestors(txn, ancestors);
        Ok(EngineCall {
            txn,
            ancestors,
            linked,
            table,
            items,
            next: 0,
            mode,
            wait,
            changes: Vec::new(),
            covered: FencingToken::new(0),
            token: None,
            without_token: 0,
            waited: false,
            conflict: None,
            prev_commit_ts: None,
            since: now,
            position: Position::LAST,
            stage: Stage::Moving,
            waker: None,
            bytes: 0,
        })
    }

    /// The ancestors of a call of `txn`, and how many of them, the first ones, have room for it
    /// among their nested calls.
    fn ancestors(&self, txn: TxnId, named: &[TxnId]) -> (Ancestors, usize) {
        // Its own is no ancestor, whatever the caller says.
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

    /// Takes item after item until one is not to be had, or the slice is used up.
    fn advance(&mut self, call: &mut EngineCall) -> Result<Advance> {
        while let Some(item) = call.items.get(call.next) {
            if !self.slice.has_steps() {
                return Ok(Advance::Unfinished);
            }
            self.slice.spend();
            if let LockItem::Row(key) = item
                && self.take_free_row(
                    call.txn,
                    call.table,
                    key,
                    call.mode,
                    call.next + 1 == call.items.len(),
                    &mut call.token,
                )
            {
                call.without_token = call.changes.len();
                call.changes.push(ItemGrant { item: item.clone(), before: None });
                call.next += 1;
                continue;
            }
            let table = &self.tables[&call.table];
            let conflicts = table.conflicts(item, call.txn, call.mode);
            if let Some(token) = conflicts.covered {
                call.covered = call.covered.max(token);
                call.next += 1;
                continue;
            }
            if let Some(holder) = conflicts.held_by {
                call.conflict.get_or_insert(holder);
                return Ok(Advance::Blocked(self.next_position(conflicts.upgrade)));
            }
            // An upgrade goes ahead of everybody who waits.
            if !conflicts.upgrade
                && !table.waiting.is_empty()
                && let Some(waiter) = self.must_wait_behind(call)
            {
                call.conflict.get_or_insert_with(|| self.calls[waiter].wants());
                return Ok(Advance::Blocked(self.next_position(false)));
            }
            self.take_item(call)?;
        }
        Ok(Advance::Complete)
    }

    /// Makes a transaction hold a row that is free, with the call's token if it is the `last` one.
    /// False if it takes a closer look.
    fn take_free_row(
        &mut self,
        id: TxnId,
        table_id: TableId,
        key: &Key,
        mode: LockMode,
        last: bool,
        token: &mut Option<FencingToken>,
    ) -> bool {
        let bytes = HOLD_BYTES + 2 * key_heap_bytes(key);
        let txn = self.txns.entry(id).or_default();
        if self.bytes + bytes > self.settings.lock_bytes_max
            || txn.bytes + bytes > self.settings.txn_lock_bytes_max
        {
            return false;
        }
        let slot = txn.next_slot(table_id);
        let holder = Holder { txn: id, token: NONE, slot, mode, pending: true, beneath: NONE };
        let table = self.tables.get_mut(&table_id).expect("calls end with their table");
        let Some(taken) = table.take_free_row(key, holder, last) else { return false };
        *token = taken;
        txn.add(table_id, LockItem::Row(key.clone()), bytes);
        self.bytes += bytes;
        true
    }

    /// A place for a wait that begins now.
    pub(super) fn next_position(&mut self, upgrade: bool) -> Position {
        if upgrade {
            self.first -= 1;
            Position(self.first)
        } else {
            self.last += 1;
            Position(self.last)
        }
    }

    /// Makes the call's transaction hold the next item.
    pub(super) fn take_item(&mut self, call: &mut EngineCall) -> Result<()> {
        let item = &call.items[call.next];
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        if let Some(own) = table.entry_mut(item).and_then(|entry| entry.holder_mut(call.txn)) {
            call.changes
                .push(ItemGrant { item: item.clone(), before: Some((own.mode, own.token)) });
            own.beneath = own.token;
            own.mode = call.mode;
            own.pending = true;
        } else {
            let bytes = hold_bytes(item);
            let txn = self.txns.entry(call.txn).or_default();
            let over = if self.bytes + bytes > self.settings.lock_bytes_max {
                Some("lock_bytes_max")
            } else if txn.bytes + bytes > self.settings.txn_lock_bytes_max {
                Some("txn_lock_bytes_max")
            } else {
                None
            };
            if let Some(limit) = over {
                return Err(exhausted(limit).with("txn", call.txn));
            }
            self.bytes += bytes;
            let slot = txn.add(call.table, item.clone(), bytes);
            let (txn, mode) = (call.txn, call.mode);
            let holder = Holder { txn, token: NONE, slot, mode, pending: true, beneath: NONE };
            table.entry_or_new(item).add(holder);
            call.changes.push(ItemGrant { item: item.clone(), before: None });
        }
        call.next += 1;
        Ok(())
    }

    /// Takes the token of a call that has all its items (F1: after the last key was granted), if it
    /// needs one and has none. False if the table has none left.
    fn take_token(&mut self, call: &mut EngineCall) -> bool {
        if call.token.is_none() && !call.changes.is_empty() {
            let table = self.tables.get_mut(&call.table).expect("calls end with their table");
            call.token = table.take_token();
            call.without_token = call.changes.len();
        }
        call.token.is_some() || call.changes.is_empty()
    }

    /// Gives what a call added its token, as much as the slice allows; the grant once that is all.
    fn grant(&mut self, call: &mut EngineCall) -> Option<Grant> {
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        let token = call.token.unwrap_or(call.covered);
        while let Some(last) = call.without_token.checked_sub(1) {
            if !self.slice.has_steps() {
                return None;
            }
            self.slice.spend();
            let own = table
                .entry_mut(&call.changes[last].item)
                .and_then(|entry| entry.holder_mut(call.txn));
            let own = own.expect("what a call added is held until the call is over");
            own.token = token;
            own.pending = false;
            call.without_token = last;
        }
        Some(Grant {
            bind: table.bind.clone(),
            token,
            newly_locked: !call.changes.is_empty(),
            waited: call.waited.then_some(Duration::ZERO),
            conflict: call.conflict.take().map(|first| (first.txn, first.item)),
            prev_commit_ts: call.prev_commit_ts,
            table_commit_ts: table.commit_ts,
            history_unknown: table.history_since.is_some(),
            owner: OwnerPart {
                changes: std::mem::take(&mut call.changes),
                history_since: table.history_since,
                tokens_left: table.tokens_left(),
            },
        })
    }

    /// Takes back what an unfinished call added, as much as the slice allows. True once that is
    /// all.
    fn roll_back_call(&mut self, call: &mut EngineCall) -> bool {
        while self.slice.has_steps()
            && let Some(change) = call.changes.pop()
        {
            self.slice.spend();
            self.roll_back_item(
                call.txn,
                call.table,
                change.item,
                call.token.unwrap_or(NONE),
                true,
            );
        }
        call.changes.is_empty()
    }

    /// Takes back what the grant under that token did to a hold; of a call in flight also what it
    /// did without a token so far.
    ///
    /// An upgrade lies on what was held before. Whichever of the two is taken back, the other one
    /// stays; nothing is held once both are.
    fn roll_back_item(
        &mut self,
        txn: TxnId,
        id: TableId,
        item: LockItem,
        token: FencingToken,
        in_flight: bool,
    ) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let Some(own) = table.entry_mut(&item).and_then(|entry| entry.holder_mut(txn)) else {
            return;
        };
        let is_on_top = if own.pending { in_flight } else { own.token == token };
        if !is_on_top {
            if !in_flight && own.beneath == token {
                own.drop_beneath();
            }
        } else if own.beneath == NONE {
            self.release(txn, id, item);
        } else {
            own.uncover();
            self.released.push((id, Released::Item(item)));
        }
    }

    /// Ends a transaction's hold on an item, if it has one.
    pub(super) fn release(&mut self, id: TxnId, table_id: TableId, item: LockItem) {
        let Some(table) = self.tables.get_mut(&table_id) else { return };
        let Some(holder) = table.take_hold(&item, id) else { return };
        let bytes = hold_bytes(&item);
        self.bytes -= bytes;
        let txn = self.txns.get_mut(&id).expect("a holder's transaction is known");
        if let Some(moved) = txn.remove(table_id, holder.slot, bytes) {
            let moved = table.entry_mut(moved).and_then(|entry| entry.holder_mut(id));
            moved.expect("what a transaction's list names is held").slot = holder.slot;
        }
        if !table.waiting.is_empty() {
            self.released.push((table_id, Released::Item(item)));
        }
    }

    fn check_room_to_wait(&self, call: &EngineCall) -> Result<()> {
        if self.in_flight >= self.settings.waiters_max {
            return Err(exhausted("waiters_max"));
        }
        if self.bytes + wait_bytes(call) > self.settings.lock_bytes_max {
            return Err(exhausted("lock_bytes_max"));
        }
        Ok(())
    }

    /// Fails if there is no room to wait, or if the wait would be for nothing: the limits would end
    /// the call when its turn comes, however much others leave.
    fn check_worth_waiting(&self, call: &EngineCall) -> Result<()> {
        self.check_room_to_wait(call)?;
        let held = self.txns.get(&call.txn).map_or(0, |txn| txn.bytes);
        let (txn_left, left) = (
            self.settings.txn_lock_bytes_max.saturating_sub(held),
            self.settings.lock_bytes_max.saturating_sub(held + wait_bytes(call)),
        );
        // Nearly always there is room for all of it, whatever of it is new.
        let most = call.items[call.next..].iter().map(hold_bytes).sum::<usize>();
        if most <= txn_left.min(left) {
            return Ok(());
        }
        let needed = self.bytes_to_come(call);
        let limit = match (needed > txn_left, needed > left) {
            (true, _) => "txn_lock_bytes_max",
            (_, true) => "lock_bytes_max",
            _ => return Ok(()),
        };
        Err(Error::new(
            ErrorKind::ResourceExhausted,
            "the request does not fit into a limit of the lock engine, however long it waits: \
             ask for less, release locks first, or raise the limit",
        )
        .with("limit", limit)
        .with("txn", call.txn))
    }

    /// What a call that waits for its next item has still to add to its transaction's holds.
    fn bytes_to_come(&self, call: &EngineCall) -> usize {
        let table = &self.tables[&call.table];
        let mut bytes = 0;
        // Items come in the order of their starts: one that ends no later than an earlier one is
        // covered by it.
        let mut furthest: Option<Bound<&Key>> = None;
        for item in &call.items[call.next..] {
            if furthest.is_some_and(|end| compare_ends(item.end(), end).is_le()) {
                continue;
            }
            furthest = Some(item.end());
            let upgraded = table.entry(item).is_some_and(|entry| entry.holder(call.txn).is_some());
            if !upgraded && table.conflicts(item, call.txn, call.mode).covered.is_none() {
                bytes += hold_bytes(item);
            }
        }
        bytes
    }

    /// Makes a call known to its transaction, its ancestors and its table.
    fn register(&mut self, id: CallId) {
        let call = &self.calls[id];
        self.txns.entry(call.txn).or_default().call = Some(id);
        self.nested += usize::from(!call.ancestors.is_empty());
        for ancestor in &call.ancestors[..call.linked] {
            self.txns.entry(*ancestor).or_default().nested.push(id);
        }
        self.tables.get_mut(&call.table).expect("calls end with their table").calls.insert(id, ());
    }

    /// Counts a call among those in flight, the first time that it has to wait for anything.
    fn enter_flight(&mut self, id: CallId) {
        let call = &mut self.calls[id];
        if call.bytes == 0 {
            call.bytes = wait_bytes(call);
            self.bytes += call.bytes;
            self.in_flight += 1;
        }
    }

    fn hold_up_for_token(&mut self, id: CallId) {
        let position = self.next_position(false);
        let call = &mut self.calls[id];
        call.stage = Stage::AwaitingToken;
        call.position = position;
        self.tables
            .get_mut(&call.table)
            .expect("calls end with their table")
            .awaiting_token
            .insert(position, id);
    }

    /// Puts a call into the queue of its next item and resolves what cycles that closes. Its end,
    /// if it comes at once, is its stage.
    fn begin_wait(&mut self, id: CallId, position: Position) {
        self.enter_flight(id);
        let call = &mut self.calls[id];
        call.stage = Stage::Waiting;
        call.waited = true;
        self.enqueue(id, position);
        self.resolve_wait(id);
    }

    /// A call has added `changes[from..]` to what its transaction holds. If calls wait on behalf of
    /// that, whoever waits for it now waits for them: a cycle can be closed although no wait
    /// begins.
    fn look_again_at_nested(&mut self, call: &EngineCall, from: usize) {
        if self.nested == 0 {
            return;
        }
        let (Some(txn), Some(table)) = (self.txns.get(&call.txn), self.tables.get(&call.table))
        else {
            return;
        };
        let mut is_waited_for = false;
        let mut gained = call.changes[from..].iter();
        while !is_waited_for
            && !txn.nested.is_empty()
            && let Some(change) = gained.next()
        {
            table.overlapping_queues(&change.item, |_, _| {
                is_waited_for = true;
                ControlFlow::Break(())
            });
        }
        if is_waited_for {
            self.look_again.extend(&txn.nested);
        }
    }

    /// Ends a wait that cannot end by itself, or breaks the cycles that it closes.
    pub(super) fn resolve_wait(&mut self, id: CallId) {
        match self.conflicting_ancestor(&self.calls[id]) {
            Some(ancestor) => {
                let error = held_by_ancestor(&self.calls[id], ancestor);
                self.fail(id, error);
            }
            None => self.resolve_cycles(id),
        }
    }

    /// An ancestor of a call whose lock is in the way of its next item, if there is one.
    fn conflicting_ancestor(&self, call: &EngineCall) -> Option<TxnId> {
        if call.ancestors.is_empty() {
            return None;
        }
        let table = &self.tables[&call.table];
        let excludes = |entry: &Entry, ancestor: TxnId| {
            entry.holder(ancestor).is_some_and(|held| !held.mode.is_compatible(call.mode))
        };
        if is_range(call.item()) {
            // A range can overlap everything that is locked; what the ancestors hold is less.
            return call.ancestors.iter().copied().find(|ancestor| {
                let held = self.txns.get(ancestor).into_iter().flat_map(|txn| &txn.held);
                let mut items =
                    held.filter(|(id, _)| *id == call.table).flat_map(|(_, items)| items);
                items.any(|item| {
                    step();
                    item.overlaps(call.item())
                        && table.entry(item).is_some_and(|entry| excludes(entry, *ancestor))
                })
            });
        }
        let mut found = None;
        table.overlapping(call.item(), |_, entry| {
            found = call.ancestors.iter().copied().find(|ancestor| excludes(entry, *ancestor));
            if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found
    }

    /// Puts a call into the queue of its next item, at `position`.
    pub(super) fn enqueue(&mut self, id: CallId, position: Position) {
        let call = &mut self.calls[id];
        call.position = position;
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        table.enqueue(call.item(), position, id, call.mode, self.commits);
    }

    /// Takes a call out of the queue in which it waits. It learns of the commits there since its
    /// wait began (C5).
    pub(super) fn dequeue(&mut self, call: &mut EngineCall) {
        let Some(table) = self.tables.get_mut(&call.table) else { return };
        let commit_ts = table.dequeue(call.item(), call.position, call.mode);
        call.prev_commit_ts = call.prev_commit_ts.max(commit_ts);
    }

    /// Goes on with a call whose waited-for item has just become free: takes it, and what follows,
    /// until it must wait again, is over, or has used the slice up.
    pub(super) fn continue_call(&mut self, id: CallId) {
        let mut call = self.calls.take(id);
        let before = call.changes.len();
        self.dequeue(&mut call);
        call.stage = Stage::Moving;
        let advanced = match self.take_item(&mut call) {
            Ok(()) => self.advance(&mut call),
            Err(error) => {
                // It left the queue of that item, and does not hold it: those behind it have nobody
                // else to look at them.
                self.released.push((call.table, Released::Item(call.item().clone())));
                Err(error)
            }
        };
        self.proceed(id, call, before, advanced);
    }

    /// Goes on with a call between two slices that takes what is free.
    pub(super) fn move_on(&mut self, id: CallId) {
        let mut call = self.calls.take(id);
        let before = call.changes.len();
        let advanced = self.advance(&mut call);
        self.proceed(id, call, before, advanced);
    }

    /// A call has got so far, and has added `changes[before..]` by that.
    fn proceed(
        &mut self,
        id: CallId,
        mut call: Box<EngineCall>,
        before: usize,
        advanced: Result<Advance>,
    ) {
        self.look_again_at_nested(&call, before);
        let next = self.next(&mut call, advanced);
        self.calls.put(id, call);
        self.follow(id, next);
    }

    /// Ends a call without a grant: takes it out of its queue and takes back what it added.
    pub(super) fn fail(&mut self, id: CallId, error: Error) {
        self.end_wait(id, Some(error));
        if !self.give_up(id) {
            self.pause(id);
        }
    }

    /// Takes a call out of wherever it waits. It only gives back what it added from here on, also
    /// if that was granted and not received.
    pub(super) fn end_wait(&mut self, id: CallId, why: Option<Error>) {
        let mut call = self.calls.take(id);
        match std::mem::replace(&mut call.stage, Stage::Failing(why)) {
            Stage::Waiting => {
                self.dequeue(&mut call);
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

    /// Takes back what a call added that fails, and ends it. False if that takes another slice.
    pub(super) fn give_up(&mut self, id: CallId) -> bool {
        if !self.give_back(id) {
            return false;
        }
        if let Stage::Failing(Some(why)) =
            std::mem::replace(&mut self.calls[id].stage, Stage::Failing(None))
        {
            self.finish(id, Err(why));
        }
        true
    }

    fn give_back(&mut self, id: CallId) -> bool {
        let mut call = self.calls.take(id);
        let is_all = self.roll_back_call(&mut call);
        self.calls.put(id, call);
        is_all
    }

    /// Keeps a call's outcome for whoever polls it, and has them woken. It is in no queue any more.
    pub(super) fn finish(&mut self, id: CallId, outcome: Result<Grant>) {
        self.leave_flight(id);
        let call = &mut self.calls[id];
        if matches!(call.stage, Stage::Moving | Stage::Failing(_)) {
            self.unfinished.remove(&call.position);
        }
        call.stage = Stage::Done(outcome);
        call.changes = Vec::new();
        call.items = Vec::new();
        self.wake.extend(call.waker.take());
    }

    fn leave_flight(&mut self, id: CallId) {
        let call = &mut self.calls[id];
        if call.bytes > 0 {
            self.bytes -= std::mem::take(&mut call.bytes);
            self.in_flight -= 1;
        }
    }

    /// Takes a call that is over out of the state.
    fn discard(&mut self, id: CallId) -> Stage {
        let call = self.calls.remove(id);
        if let Some(txn) = self.txns.get_mut(&call.txn) {
            txn.call = None;
        }
        if let Some(table) = self.tables.get_mut(&call.table) {
            table.calls.remove(&id);
        }
        self.nested -= usize::from(!call.ancestors.is_empty());
        for ancestor in &call.ancestors {
            if let Some(txn) = self.txns.get_mut(ancestor) {
                txn.nested.retain(|nested| *nested != id);
            }
            self.forget_if_idle(*ancestor);
        }
        self.forget_if_idle(call.txn);
        call.stage
    }

    pub(super) fn forget_if_idle(&mut self, id: TxnId) {
        if self.txns.get(&id).is_some_and(TxnHolds::is_idle) {
            self.txns.remove(&id);
        }
    }

    /// The owner of a call is gone: its claim is withdrawn, or the grant that it did not receive is
    /// taken back. True once the call is gone; its owner goes on until then.
    pub(super) fn abandon(&mut self, id: CallId) -> bool {
        self.end_wait(id, None);
        let is_all = self.give_back(id);
        if is_all {
            self.leave_flight(id);
            self.discard(id);
        }
        is_all
    }

    /// Takes back some of the changes of a grant, the last one first.
    pub(super) fn undo(
        &mut self,
        txn: TxnId,
        table: TableId,
        grant: &Grant,
        changes: &[ItemGrant],
    ) {
        if self
            .tables
            .get(&table)
            .is_none_or(|installed| installed.bind.version != grant.bind.version)
        {
            return;
        }
        for change in changes.iter().rev() {
            self.slice.spend();
            self.roll_back_item(txn, table, change.item.clone(), grant.token, false);
        }
        self.forget_if_idle(txn);
    }

    /// Takes the outcome of a call that is over.
    pub(super) fn take_outcome(&mut self, id: CallId) -> Option<Result<Grant>> {
        if !self.calls[id].is_done() {
            return None;
        }
        match self.discard(id) {
            Stage::Done(outcome) => Some(outcome),
            Stage::Waiting | Stage::AwaitingToken | Stage::Moving | Stage::Failing(_) => None,
        }
    }
}

fn is_range(item: &LockItem) -> bool {
    matches!(item, LockItem::Range(_))
}

/// Estimated memory of one hold with short keys: the entry, the holder, and the transaction's own
/// list.
const HOLD_BYTES: usize = 240;

pub(super) fn hold_bytes(item: &LockItem) -> usize {
    HOLD_BYTES + 2 * item_heap_bytes(item)
}

fn wait_bytes(call: &EngineCall) -> usize {
    // An ancestor may be known by this alone.
    let ancestors = call.ancestors.len() * (size_of::<(TxnId, TxnHolds)>() + size_of::<CallId>());
    320 + ancestors
        + call.items.iter().map(|item| size_of::<LockItem>() + item_heap_bytes(item)).sum::<usize>()
}

fn item_heap_bytes(item: &LockItem) -> usize {
    let bound = |bound: Bound<&Key>| match bound {
        Bound::Included(at) | Bound::Excluded(at) => key_heap_bytes(at),
        Bound::Unbounded => 0,
    };
    match item {
        LockItem::Row(key) => key_heap_bytes(key),
        LockItem::Range(range) => bound(range.start()) + bound(range.end()),
    }
}

/// What a key takes beyond the bytes that are kept inline.
fn key_heap_bytes(key: &Key) -> usize {
    let bytes = key.as_bytes().len();
    if bytes > 22 { bytes + 16 } else { 0 }
}

fn exhausted(limit: &'static str) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "a limit of the lock engine is reached: try later, ask for less, or raise the limit",
    )
    .with("limit", limit)
}

fn no_token() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the table has no fencing token left until the store answers: try again, or wait for the \
            lock",
    )
}

fn held_by_ancestor(call: &EngineCall, ancestor: TxnId) -> Error {
    Error::new(
        ErrorKind::HeldByAncestor,
        "the lock is held by the very work that asks for it and waits for this call to end, so it \
         would never come: \
         use the lock that the outer call holds, and do not ask for it again",
    )
    .with("item", call.item())
    .with("holder", ancestor)
}

fn conflict(call: &EngineCall) -> Error {
    let error =
        Error::new(ErrorKind::Conflict, "a lock is not free: try again later, or wait for it");
    match &call.conflict {
        Some(blocker) => error.with_detail(Detail::Blocked(blocker.clone())),
        None => error,
    }
}
