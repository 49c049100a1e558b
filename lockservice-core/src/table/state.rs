//! The engine's pure state: every table of the node, every transaction that holds or waits, every call in flight.
//!
//! Nothing here reads a clock, awaits or wakes: wakers are collected and fired by the shell, after its mutex is free.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::task::Waker;
use std::time::Duration;

use super::call::{Call, CallId, Calls, Stage};
use super::entry::{Holder, Place};
use super::hash::IdMap;
use super::lock_table::LockTable;
use super::txn::Txn;
use super::types::{EngineSettings, Grant, ItemGrant, LockRequest, WaitPolicy};
use crate::allocator::{Bind, TokenBlock};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, FencingToken, TableId, TxnId};
use crate::key::{Key, LockItem, LockMode, compare_ends, compare_starts};

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: EngineSettings,
    pub(super) tables: IdMap<TableId, LockTable>,
    pub(super) txns: IdMap<TxnId, Txn>,
    pub(super) calls: Calls,
    /// The last version of each table that was ever installed here (B5).
    versions: IdMap<TableId, BindVersion>,
    sealed: Option<fn() -> Error>,
    /// Calls that wait for a lock or a token.
    in_flight: usize,
    /// Estimated memory of all locks and waits.
    bytes: usize,
    /// Places already given out, at both ends of the queue.
    first: i64,
    last: i64,
    /// Items that something left: waiters that overlap them may have become grantable.
    pub(super) left: Vec<(TableId, LockItem)>,
    /// Waiters that may have become grantable, in queue order.
    pub(super) candidates: BTreeSet<(Place, CallId)>,
    /// Whom to wake once the mutex is free.
    pub(super) wake: Vec<Waker>,
}

/// What became of a lock call at once.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the grant is the common case and must not cost an allocation")]
pub(super) enum Begun {
    /// It is over.
    Done(Result<Grant>),
    /// It is kept under this id; its outcome is to be taken from there.
    Kept(CallId),
}

/// How far a call got.
enum Advance {
    Complete,
    Blocked(Place),
}

impl State {
    pub(super) fn new(settings: EngineSettings) -> Self {
        Self {
            settings,
            tables: IdMap::default(),
            txns: IdMap::default(),
            calls: Calls::default(),
            versions: IdMap::default(),
            sealed: None,
            in_flight: 0,
            bytes: 0,
            first: 0,
            last: 0,
            left: Vec::new(),
            candidates: BTreeSet::new(),
            wake: Vec::new(),
        }
    }

    pub(super) fn install(&mut self, bind: Bind, tokens: Option<TokenBlock>, known_after: Option<TxnId>) -> Result<()> {
        self.check_not_sealed()?;
        let (table, version) = (bind.id, bind.version);
        // B5: a (table, version) is installed empty at most once.
        if let Some(last) = self.versions.get(&table)
            && version <= *last
        {
            return Err(Error::new(
                ErrorKind::BindChanged,
                "this version of the table, or a later one, was already served here: bind it anew",
            )
            .with("table", &bind.table)
            .with("version", version)
            .with("last", *last));
        }
        self.drop_table(table);
        self.versions.insert(table, version);
        self.tables.insert(table, LockTable::new(bind, tokens, known_after));
        Ok(())
    }

    pub(super) fn remove(&mut self, table: TableId, version: BindVersion) {
        if self.tables.get(&table).is_some_and(|installed| installed.bind.version == version) {
            self.drop_table(table);
        }
    }

    fn drop_table(&mut self, table: TableId) {
        let Some(dropped) = self.tables.remove(&table) else { return };
        for id in self.calls.ids() {
            let call = &self.calls[id];
            // A grant that nobody has received yet is as void as one still waited for (T4).
            let concerned = call.table == table && !matches!(call.stage, Stage::Done(Err(_)));
            if concerned {
                self.finish(id, Err(bind_changed(table)));
            }
        }
        let mut holders = BTreeSet::new();
        dropped.for_each(|_, entry| holders.extend(entry.holders().iter().map(|holder| holder.txn)));
        for id in holders {
            let Some(txn) = self.txns.get_mut(&id) else { continue };
            if let Some(at) = txn.held.iter().position(|(held, _)| *held == table) {
                let (_, items) = txn.held.swap_remove(at);
                let bytes = items.iter().map(hold_bytes).sum::<usize>();
                txn.count -= items.len();
                txn.bytes -= bytes;
                self.bytes -= bytes;
            }
            self.forget_if_idle(id);
        }
    }

    pub(super) fn seal(&mut self, error: fn() -> Error) {
        self.sealed = Some(error);
        for id in self.calls.ids() {
            match &self.calls[id].stage {
                Stage::Waiting | Stage::Starved => self.fail(id, error()),
                Stage::Done(Ok(grant)) => {
                    // B2: a sealed owner answers nothing else, not even a grant made just before.
                    let (txn, grant) = (self.calls[id].txn, grant.clone());
                    self.calls[id].stage = Stage::Done(Err(error()));
                    self.undo(txn, grant.bind.id, &grant);
                }
                Stage::Done(Err(_)) => {}
            }
        }
        // Nobody waits any more: nothing is to be granted.
        self.left.clear();
        self.candidates.clear();
    }

    fn check_not_sealed(&self) -> Result<()> {
        self.sealed.map_or(Ok(()), |error| Err(error()))
    }

    pub(super) fn add_tokens(&mut self, table: TableId, version: BindVersion, block: TokenBlock) {
        let Some(installed) = self.tables.get_mut(&table).filter(|table| table.bind.version == version) else { return };
        installed.add_tokens(block);
        while let Some(table) = self.tables.get_mut(&table) {
            if table.tokens_left() == 0 {
                break;
            }
            let Some(id) = table.starved.pop_front() else { break };
            let mut call = self.calls.take(id);
            let grant = self.grant(&mut call).expect("the table has a token");
            self.calls.put(id, call);
            self.finish(id, Ok(grant));
        }
    }

    /// Begins a call. Everything happens under the engine's mutex, so a call that is granted here was never in anybody's way.
    pub(super) fn lock(&mut self, request: LockRequest, now: Time) -> Begun {
        let (mut call, policy) = match self.accept(request, now) {
            Ok(accepted) => accepted,
            Err(error) => return Begun::Done(Err(error)),
        };
        let refused = match self.advance(&mut call) {
            Ok(Advance::Complete) => match self.grant(&mut call) {
                Some(grant) => return Begun::Done(Ok(grant)),
                None => match self.check_room_to_wait(&call) {
                    Ok(()) => return Begun::Kept(self.starve(call)),
                    Err(error) => error,
                },
            },
            Ok(Advance::Blocked(_)) if policy == WaitPolicy::NoWait => conflict(&call),
            Ok(Advance::Blocked(place)) => match self.check_room_to_wait(&call) {
                Ok(()) => {
                    let id = self.calls.insert(Box::new(call));
                    self.begin_wait(id, place);
                    self.settle();
                    return Begun::Kept(id);
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        self.revert(&mut call);
        self.forget_if_idle(call.txn);
        self.settle();
        Begun::Done(Err(refused))
    }

    fn accept(&self, request: LockRequest, now: Time) -> Result<(Call, WaitPolicy)> {
        self.check_not_sealed()?;
        let LockRequest { txn, table, version, mut items, mode, wait } = request;
        if items.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a lock request names nothing: give at least one row or range",
            ));
        }
        if items.len() > self.settings.items_per_request_max {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "a request names too many rows and ranges: ask for fewer, or for a range",
            )
            .with("items", items.len())
            .with("items_per_request_max", self.settings.items_per_request_max));
        }
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
        if items.len() > 1 {
            // Covering items first, so that what they cover is nothing new.
            items.sort_by(|a, b| {
                compare_starts(a.start(), b.start())
                    .then_with(|| compare_ends(b.end(), a.end()))
                    .then_with(|| is_range(a).cmp(&is_range(b)))
            });
            items.dedup();
        }
        let call = Call {
            txn,
            table,
            items,
            next: 0,
            mode,
            changes: Vec::new(),
            covered: FencingToken::new(0),
            token: None,
            waited: false,
            conflict: None,
            prev_commit_ts: None,
            since: now,
            place: Place::LAST,
            stage: Stage::Waiting,
            waker: None,
            bytes: 0,
        };
        Ok((call, wait))
    }

    /// Takes item after item until one is not to be had.
    fn advance(&mut self, call: &mut Call) -> Result<Advance> {
        while let Some(item) = call.items.get(call.next) {
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
                call.changes.push(ItemGrant { item: item.clone(), before: None });
                call.next += 1;
                continue;
            }
            let table = &self.tables[&call.table];
            let survey = table.survey(item, call.txn, call.mode);
            if let Some(token) = survey.covered {
                call.covered = call.covered.max(token);
                call.next += 1;
                continue;
            }
            if let Some(holder) = survey.held_by {
                call.conflict.get_or_insert(holder);
                return Ok(Advance::Blocked(self.next_place(survey.upgrade)));
            }
            // An upgrade goes ahead of everybody who waits.
            if !survey.upgrade
                && table.waiting > 0
                && let Some(waiter) = self.must_wait_behind(call)
            {
                let waiter = &self.calls[waiter];
                call.conflict.get_or_insert_with(|| (waiter.txn, waiter.item().clone()));
                return Ok(Advance::Blocked(self.next_place(false)));
            }
            self.take_item(call)?;
        }
        Ok(Advance::Complete)
    }

    /// Makes a transaction hold a row that is free, with the call's token if it is the `last` one. False if it takes a closer look.
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
        if self.bytes + bytes > self.settings.lock_bytes_max || txn.bytes + bytes > self.settings.txn_lock_bytes_max {
            return false;
        }
        let slot = txn.next_slot(table_id);
        let holder = Holder { txn: id, token: FencingToken::new(0), slot, mode, pending: true };
        let table = self.tables.get_mut(&table_id).expect("calls end with their table");
        let Some(taken) = table.take_free_row(key, holder, last) else { return false };
        *token = taken;
        txn.add(table_id, LockItem::Row(key.clone()), bytes);
        self.bytes += bytes;
        true
    }

    /// A place for a wait that begins now.
    fn next_place(&mut self, upgrade: bool) -> Place {
        if upgrade {
            self.first -= 1;
            Place(self.first)
        } else {
            self.last += 1;
            Place(self.last)
        }
    }

    /// Places before all others, for `count` waiters.
    pub(super) fn first_places(&mut self, count: usize) -> impl Iterator<Item = Place> + use<> {
        let end = self.first;
        self.first -= count as i64;
        (self.first..end).map(Place)
    }

    /// Makes the call's transaction hold the next item.
    pub(super) fn take_item(&mut self, call: &mut Call) -> Result<()> {
        let item = &call.items[call.next];
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        if let Some(own) = table.entry_mut(item).and_then(|entry| entry.holder_mut(call.txn)) {
            call.changes.push(ItemGrant { item: item.clone(), before: Some((own.mode, own.token)) });
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
            let holder = Holder { txn: call.txn, token: FencingToken::new(0), slot, mode: call.mode, pending: true };
            table.entry_or_new(item).add(holder);
            call.changes.push(ItemGrant { item: item.clone(), before: None });
        }
        call.next += 1;
        Ok(())
    }

    /// Gives a call that has all its items its token (F1: after the last key was granted), or nothing if the table has none left.
    fn grant(&mut self, call: &mut Call) -> Option<Grant> {
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        let (token, without) = match call.token {
            // The last item has it already.
            Some(token) => (token, &call.changes[..call.changes.len() - 1]),
            None if call.changes.is_empty() => (call.covered, &[][..]),
            None => (table.take_token()?, &call.changes[..]),
        };
        for change in without {
            let own = table.entry_mut(&change.item).and_then(|entry| entry.holder_mut(call.txn));
            let own = own.expect("what a call added is held until the call is over");
            own.token = token;
            own.pending = false;
        }
        let history_unknown =
            table.known_after.is_some_and(|last| call.txn.origin != last.origin || call.txn.counter <= last.counter);
        Some(Grant {
            bind: table.bind.clone(),
            token,
            newly_locked: !call.changes.is_empty(),
            waited: call.waited.then_some(Duration::ZERO),
            conflict: call.conflict.take(),
            prev_commit_ts: call.prev_commit_ts,
            table_commit_ts: table.commit_ts,
            history_unknown,
            changes: std::mem::take(&mut call.changes),
            tokens_left: table.tokens_left(),
        })
    }

    /// Takes back what an unfinished call added.
    fn revert(&mut self, call: &mut Call) {
        for change in call.changes.drain(..).rev() {
            self.take_back_item(call.txn, call.table, change, None);
        }
    }

    /// Takes back one change, if the hold is still what the change made it: under that token, or pending if there is none.
    fn take_back_item(&mut self, txn: TxnId, id: TableId, change: ItemGrant, token: Option<FencingToken>) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let Some(own) = table.entry_mut(&change.item).and_then(|entry| entry.holder_mut(txn)) else { return };
        if token.map_or(!own.pending, |token| own.pending || own.token != token) {
            return;
        }
        match change.before {
            Some((mode, token)) => {
                (own.mode, own.token, own.pending) = (mode, token, false);
                self.left.push((id, change.item));
            }
            None => self.release(txn, id, change.item),
        }
    }

    /// Ends a transaction's hold on an item, if it has one.
    fn release(&mut self, id: TxnId, table_id: TableId, item: LockItem) {
        let Some(table) = self.tables.get_mut(&table_id) else { return };
        let Some(holder) = table.take_hold(&item, id) else { return };
        let bytes = hold_bytes(&item);
        self.bytes -= bytes;
        let txn = self.txns.get_mut(&id).expect("a holder's transaction is known");
        if let Some(moved) = txn.remove(table_id, holder.slot, bytes) {
            let moved = table.entry_mut(moved).and_then(|entry| entry.holder_mut(id));
            moved.expect("what a transaction's list names is held").slot = holder.slot;
        }
        if table.waiting > 0 {
            self.left.push((table_id, item));
        }
    }

    fn check_room_to_wait(&self, call: &Call) -> Result<()> {
        if self.in_flight >= self.settings.waiters_max {
            return Err(exhausted("waiters_max"));
        }
        if self.bytes + wait_bytes(call) > self.settings.lock_bytes_max {
            return Err(exhausted("lock_bytes_max"));
        }
        Ok(())
    }

    /// Counts a call among those in flight, the first time that it has to wait for anything.
    fn enter_flight(&mut self, id: CallId) {
        let call = &mut self.calls[id];
        if call.bytes == 0 {
            call.bytes = wait_bytes(call);
            self.bytes += call.bytes;
            self.in_flight += 1;
            self.txns.entry(call.txn).or_default().call = Some(id);
        }
    }

    fn starve(&mut self, call: Call) -> CallId {
        let id = self.calls.insert(Box::new(call));
        self.enter_flight(id);
        self.hold_up_for_token(id);
        id
    }

    fn hold_up_for_token(&mut self, id: CallId) {
        let call = &mut self.calls[id];
        call.stage = Stage::Starved;
        self.tables.get_mut(&call.table).expect("calls end with their table").starved.push_back(id);
    }

    /// Puts a call into the queue of its next item and resolves what cycles that closes. Its end, if it comes at once, is its stage.
    fn begin_wait(&mut self, id: CallId, place: Place) {
        self.enter_flight(id);
        let call = &mut self.calls[id];
        call.stage = Stage::Waiting;
        call.waited = true;
        call.place = place;
        let somebody_waits = self.is_waited_for(id);
        let call = &self.calls[id];
        let (table, item, mode) = (call.table, call.item().clone(), call.mode);
        self.enqueue(id, table, &item, place, mode);
        if somebody_waits {
            self.resolve_cycles(id);
        }
    }

    pub(super) fn enqueue(&mut self, id: CallId, table: TableId, item: &LockItem, place: Place, mode: LockMode) {
        let table = self.tables.get_mut(&table).expect("calls end with their table");
        table.waiting += 1;
        table.entry_or_new(item).enqueue(place, id, mode);
    }

    pub(super) fn dequeue(&mut self, table: TableId, item: &LockItem, place: Place) {
        if let Some(table) = self.tables.get_mut(&table) {
            table.waiting -= 1;
            if let Some(entry) = table.entry_mut(item) {
                entry.dequeue(place);
            }
            table.drop_if_empty(item);
        }
    }

    /// Goes on with a call whose waited-for item has just become free: takes it, and what follows, until it must wait again or is over.
    pub(super) fn resume(&mut self, id: CallId) {
        let mut call = self.calls.take(id);
        let item = call.item().clone();
        self.dequeue(call.table, &item, call.place);
        let advanced = match self.take_item(&mut call) {
            Ok(()) => self.advance(&mut call),
            Err(error) => Err(error),
        };
        let granted = match &advanced {
            Ok(Advance::Complete) => self.grant(&mut call),
            _ => None,
        };
        // Not in any queue now: `fail` and `finish` must not look for it there.
        call.stage = Stage::Starved;
        self.calls.put(id, call);
        match (advanced, granted) {
            (Ok(Advance::Complete), Some(grant)) => self.finish(id, Ok(grant)),
            (Ok(Advance::Complete), None) => self.hold_up_for_token(id),
            (Ok(Advance::Blocked(place)), _) => self.begin_wait(id, place),
            (Err(error), _) => self.fail(id, error),
        }
    }

    /// Ends a call in flight without a grant: takes it out of its queue and takes back what it added.
    pub(super) fn fail(&mut self, id: CallId, error: Error) {
        self.withdraw(id);
        self.finish(id, Err(error));
    }

    /// Takes a call in flight out of its queue and takes back what it added.
    fn withdraw(&mut self, id: CallId) {
        let mut call = self.calls.take(id);
        match call.stage {
            Stage::Waiting => {
                let item = call.item().clone();
                self.dequeue(call.table, &item, call.place);
                self.left.push((call.table, item));
            }
            Stage::Starved => {
                if let Some(table) = self.tables.get_mut(&call.table) {
                    table.starved.retain(|starved| *starved != id);
                }
            }
            Stage::Done(_) => {}
        }
        self.revert(&mut call);
        self.calls.put(id, call);
    }

    /// Keeps a call's outcome for whoever polls it, and has them woken. It is in no queue any more.
    fn finish(&mut self, id: CallId, outcome: Result<Grant>) {
        self.leave_flight(id);
        let call = &mut self.calls[id];
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
        self.forget_if_idle(call.txn);
        call.stage
    }

    fn forget_if_idle(&mut self, id: TxnId) {
        if self.txns.get(&id).is_some_and(Txn::is_idle) {
            self.txns.remove(&id);
        }
    }

    /// The owner of a call is gone: its claim is withdrawn, or the grant that it did not receive is handed on.
    pub(super) fn abandon(&mut self, id: CallId) {
        self.withdraw(id);
        self.leave_flight(id);
        let (txn, table) = (self.calls[id].txn, self.calls[id].table);
        if let Stage::Done(Ok(grant)) = self.discard(id) {
            self.undo(txn, table, &grant);
        }
        self.settle();
    }

    pub(super) fn take_back(&mut self, txn: TxnId, table: TableId, grant: &Grant) {
        self.undo(txn, table, grant);
        self.settle();
    }

    fn undo(&mut self, txn: TxnId, table: TableId, grant: &Grant) {
        if self.tables.get(&table).is_none_or(|installed| installed.bind.version != grant.bind.version) {
            return;
        }
        for change in grant.changes.iter().rev() {
            self.take_back_item(txn, table, change.clone(), Some(grant.token));
        }
        self.forget_if_idle(txn);
    }

    pub(super) fn unlock(&mut self, txn: TxnId, table: TableId, items: &[LockItem]) {
        for item in items {
            let entry = self.tables.get(&table).and_then(|table| table.entry(item));
            // What a call still in flight has added is that call's business.
            if entry.and_then(|entry| entry.holder(txn)).is_some_and(|own| !own.pending) {
                self.release(txn, table, item.clone());
            }
        }
        self.forget_if_idle(txn);
        self.settle();
    }

    /// Ends the wait of a transaction, if it waits.
    pub(super) fn cancel_wait(&mut self, id: TxnId) {
        if let Some(call) = self.txns.get(&id).and_then(|txn| txn.call) {
            self.fail(
                call,
                Error::new(ErrorKind::Cancelled, "the transaction ended while it waited for a lock").with("txn", id),
            );
            self.settle();
        }
    }

    /// C5: in the tables where `id` holds locks, the history up to now is unknown.
    pub(super) fn forget_history(&mut self, id: TxnId, known_after: TxnId) {
        let Some(txn) = self.txns.get(&id) else { return };
        for (table_id, _) in &txn.held {
            if let Some(table) = self.tables.get_mut(table_id) {
                table.known_after = Some(known_after);
            }
        }
    }

    pub(super) fn unlock_all(&mut self, id: TxnId, commit_ts: Option<u64>) {
        let Some(txn) = self.txns.get(&id) else { return };
        if let Some(call) = txn.call {
            let error =
                Error::new(ErrorKind::Cancelled, "the transaction ended while its call for a lock was in flight");
            match self.calls[call].stage {
                Stage::Waiting | Stage::Starved => self.fail(call, error.with("txn", id)),
                // What it was granted goes with everything else; nobody may hear of it any more.
                Stage::Done(Ok(_)) => self.finish(call, Err(error.with("txn", id))),
                Stage::Done(Err(_)) => {}
            }
        }
        if let Some(ts) = commit_ts {
            self.note_commit(id, ts);
        }
        if let Some(txn) = self.txns.remove(&id) {
            self.bytes -= txn.bytes;
            for (table_id, items) in txn.held {
                let Some(table) = self.tables.get_mut(&table_id) else { continue };
                for item in items {
                    table.take_hold(&item, id);
                    if table.waiting > 0 {
                        self.left.push((table_id, item));
                    }
                }
            }
            if txn.call.is_some() {
                // Known until the outcome is taken.
                self.txns.insert(id, Txn { call: txn.call, ..Txn::default() });
            }
        }
        self.settle();
    }

    /// Tells the tables, and everybody in whose way the transaction stands, that it committed at `ts` (C5).
    fn note_commit(&mut self, id: TxnId, ts: u64) {
        let Some(txn) = self.txns.get(&id) else { return };
        for (table_id, items) in &txn.held {
            let Some(table) = self.tables.get_mut(table_id) else { continue };
            table.commit_ts = table.commit_ts.max(Some(ts));
            if table.waiting == 0 {
                continue;
            }
            for item in items {
                let Some(own) = table.entry(item).and_then(|entry| entry.holder(id)) else { continue };
                let mode = own.mode;
                table.overlapping(item, |_, entry| {
                    for waiter in entry.wanted_by(mode) {
                        let waiter = &mut self.calls[waiter];
                        waiter.prev_commit_ts = waiter.prev_commit_ts.max(Some(ts));
                    }
                    ControlFlow::Continue(())
                });
            }
        }
    }

    /// Takes the outcome of a call that is over.
    pub(super) fn take_outcome(&mut self, id: CallId) -> Option<Result<Grant>> {
        if !self.calls[id].is_done() {
            return None;
        }
        match self.discard(id) {
            Stage::Done(outcome) => Some(outcome),
            Stage::Waiting | Stage::Starved => None,
        }
    }
}

fn is_range(item: &LockItem) -> bool {
    matches!(item, LockItem::Range(_))
}

/// Estimated memory of one hold with short keys: the entry, the holder, and the transaction's own list.
const HOLD_BYTES: usize = 240;

fn hold_bytes(item: &LockItem) -> usize {
    HOLD_BYTES + 2 * item_heap_bytes(item)
}

fn wait_bytes(call: &Call) -> usize {
    320 + call.items.iter().map(|item| size_of::<LockItem>() + item_heap_bytes(item)).sum::<usize>()
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

fn bind_changed(table: TableId) -> Error {
    Error::new(
        ErrorKind::BindChanged,
        "this version of the table's bind is not served here: end the transaction and start it again",
    )
    .with("table", table)
}

fn exhausted(limit: &'static str) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "a limit of the lock engine is reached: try later, ask for less, or raise the limit",
    )
    .with("limit", limit)
}

fn conflict(call: &Call) -> Error {
    let error = Error::new(ErrorKind::Conflict, "a lock is not free: try again later, or wait for it");
    match &call.conflict {
        Some((txn, item)) => error.with("item", item).with("txn", txn),
        None => error,
    }
}
