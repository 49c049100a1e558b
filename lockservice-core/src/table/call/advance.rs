//! The way of a call: it takes its items in key order, one after another, until one conflicts, the
//! slice is used up, or it has all of them and gets its token.

use std::ops::ControlFlow;
use std::time::Duration;

use super::conflict::Conflict;
use super::refusal::{conflict, exhausted, held_by_ancestor, no_token};
use super::{CallId, EngineCall, Stage};
use crate::error::{Error, Result};
use crate::id::FencingToken;
use crate::key::{Key, LockItem};
use crate::table::holder::Holder;
use crate::table::memory::{held_bytes, hold_bytes};
use crate::table::slices::Released;
use crate::table::state::EngineState;
use crate::table::types::{Grant, OwnerPart, WaitPolicy};

/// The progress of a call in one slice.
pub(super) enum Advance {
    /// It has all its items.
    Complete,
    /// Its next item conflicts. True if that would be an upgrade.
    Blocked { upgrade: bool },
    /// The slice is used up.
    Unfinished,
}

/// The next step of a call.
#[allow(
    clippy::large_enum_variant,
    reason = "the grant is the common case and must not cost an allocation"
)]
pub(super) enum Next {
    Grant(Grant),
    /// It waits for its next item, as an upgrade or not.
    Wait {
        upgrade: bool,
    },
    AwaitToken,
    /// It goes on in another slice.
    Unfinished,
    Refuse(Error),
}

impl EngineState {
    /// Takes item after item until one conflicts, or the slice is used up.
    pub(super) fn advance(&mut self, call: &mut EngineCall) -> Result<Advance> {
        while let Some(item) = call.items.get(call.next) {
            if !self.slice.has_steps() {
                return Ok(Advance::Unfinished);
            }
            self.slice.spend();
            self.inflate(call.table, item);
            if let LockItem::Row(key) = item
                && let Some(token) = self.take_free_row(call, item, key)
            {
                call.token = token;
                call.without_token = call.changes.len();
                call.note_change(None);
                call.next += 1;
                continue;
            }
            let table = &self.tables[&call.table];
            let conflicts = table.conflicts(item, call.txn, call.mode);
            if let Some(token) = conflicts.covered {
                call.covered = call.covered.max(token);
                self.retire(call.table, item);
                call.next += 1;
                continue;
            }
            // An upgrade goes ahead of all waiters.
            let goes_ahead = conflicts.upgrade || table.waiting.is_empty();
            let blocker = conflicts.held_by.or_else(|| {
                let waiter = match call.wait {
                    _ if goes_ahead => None,
                    // A row that is waited for is not free, whoever the waiter waits for.
                    WaitPolicy::SkipLocked => self.first_waiter(call),
                    WaitPolicy::Wait | WaitPolicy::NoWait => self.must_wait_behind(call),
                };
                waiter.map(|waiter| self.calls[waiter].as_blocker())
            });
            match blocker {
                None => {
                    if self.take_item_or_escalate(call)? {
                        return Ok(Advance::Complete);
                    }
                }
                Some(blocker) => {
                    let of_call = || Conflict::of(blocker, &call.items, call.next);
                    call.conflict.get_or_insert_with(of_call);
                    if call.wait != WaitPolicy::SkipLocked {
                        return Ok(Advance::Blocked { upgrade: conflicts.upgrade });
                    }
                    self.skip(call);
                }
            }
        }
        Ok(Advance::Complete)
    }

    /// Leaves the next item of a call out.
    fn skip(&mut self, call: &mut EngineCall) {
        let item = &call.items[call.next];
        self.retire(call.table, item);
        // The request named rows alone.
        call.skipped.extend(item.as_row().cloned());
        call.next += 1;
    }

    /// Makes the call's transaction hold the next item. At a limit of memory, if the call allows
    /// it, the rows of the transaction become one range instead, which includes all items of the
    /// call: then this returns true.
    fn take_item_or_escalate(&mut self, call: &mut EngineCall) -> Result<bool> {
        match self.take_item(call) {
            Ok(()) => Ok(false),
            Err(_) if call.escalate && self.escalate(call) => Ok(true),
            Err(full) => Err(full),
        }
    }

    /// Makes the call's transaction hold a row that is free, with the call's token if it is the
    /// last item. Returns the token that the call has then. Returns `None` if the row is not known
    /// to be free or does not fit: then the general way decides.
    fn take_free_row(
        &mut self,
        call: &EngineCall,
        item: &LockItem,
        key: &Key,
    ) -> Option<Option<FencingToken>> {
        if self.limit_of_hold(call, item).is_some() {
            return None;
        }
        let slot = self.txns.get(&call.txn).map_or(0, |txn| txn.next_slot(call.table));
        let holder = Holder::pending(call.txn, slot, call.mode, call.seq);
        // A claim draws no token.
        let is_last = call.next + 1 == call.items.len() && call.claimed().is_none();
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        let token = table.take_free_row(key, holder, is_last)?;
        let txn = self.txns.get_or_new(call.txn, &mut self.bytes);
        txn.add(call.table, item.clone(), call.seq);
        self.held += 1;
        self.bytes += held_bytes(item);
        Some(token)
    }

    /// Takes the memory back that shards have on credit, if `bytes` more bytes do not fit.
    pub(super) fn make_room(&mut self, bytes: usize) {
        if self.bytes + bytes > self.settings.lock_bytes_max {
            self.collect_credit();
        }
    }

    /// Makes the call's transaction hold the next item.
    pub(in crate::table) fn take_item(&mut self, call: &mut EngineCall) -> Result<()> {
        let item = &call.items[call.next];
        self.make_room(self.most_of_hold(call, item));
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        let upgraded = table.entry_mut(item).and_then(|entry| {
            entry.change(call.txn, |own| {
                let before = (own.mode, own.token());
                own.upgrade(call.mode, call.seq);
                before
            })
        });
        if upgraded.is_some() {
            call.note_change(upgraded);
            let txn = self.txns.get_or_new(call.txn, &mut self.bytes);
            txn.upgrades_end = txn.upgrades_end.max(call.seq.next());
        } else {
            if let Some(limit) = self.limit_of_hold(call, item) {
                return Err(exhausted(limit).with("txn", call.txn));
            }
            self.bytes += hold_bytes(item);
            self.held += 1;
            let txn = self.txns.get_or_new(call.txn, &mut self.bytes);
            let slot = txn.add(call.table, item.clone(), call.seq);
            let holder = Holder::pending(call.txn, slot, call.mode, call.seq);
            let table = self.tables.get_mut(&call.table).expect("calls end with their table");
            table.entry_or_new(item, &mut self.bytes).add(holder);
            call.note_change(None);
        }
        call.next += 1;
        Ok(())
    }

    /// Takes the token of a call that has all its items (F1: after the last key was granted), if it
    /// needs one and has none. False if the table has none left.
    fn take_token(&mut self, call: &mut EngineCall) -> bool {
        if call.token.is_none() && !call.changes.is_empty() {
            let table = self.tables.get_mut(&call.table).expect("calls end with their table");
            call.token = call.claimed().or_else(|| table.tokens.take());
            call.without_token = call.changes.len();
        }
        call.token.is_some() || call.changes.is_empty()
    }

    /// Gives the call's token to the items that it added, to as many as the slice allows. Returns
    /// the grant once all of them have it.
    fn grant(&mut self, call: &mut EngineCall) -> Option<Grant> {
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        let token = call.token.unwrap_or(call.covered);
        while let Some(last) = call.without_token.checked_sub(1) {
            if !self.slice.has_steps() {
                return None;
            }
            self.slice.spend();
            let entry = table.entry_mut(&call.changes[last].item);
            let own = entry.and_then(|entry| entry.change(call.txn, |own| own.grant(token)));
            own.expect("an item that a call added is held until the call is over");
            call.without_token = last;
        }
        let granted = call.changes.len().max(usize::from(call.escalated.is_some()));
        self.counts.granted[call.mode.index()] += granted as u64;
        let history = &table.table_rows().history;
        let conflict = call.conflict.take();
        Some(Grant {
            bind: table.bind.clone(),
            token,
            newly_locked: !call.changes.is_empty() || call.escalated.is_some(),
            waited: call.waited.then_some(Duration::ZERO),
            conflict: conflict.map(|first| (first.txn, first.item(&call.items))),
            prev_commit_ts: call.prev_commit.map(|commit| commit.timestamp),
            prev_definition_changed: call.prev_commit.is_some_and(|prev| prev.definition_changed),
            table_commit_ts: history.commit_ts(),
            table_definition_ts: history.definition_ts(),
            skipped: std::mem::take(&mut call.skipped),
            escalated: call.escalated.take(),
            history_unknown: history.since().is_some(),
            owner: OwnerPart {
                changes: std::mem::take(&mut call.changes),
                history_since: history.since(),
                tokens_left: table.tokens.remaining(),
                made_at: None,
            },
        })
    }

    /// Decides the next step of a call after `advanced`. If the call is refused, the entry of its
    /// next item is retired.
    pub(super) fn next(&mut self, call: &mut EngineCall, advanced: Result<Advance>) -> Next {
        let next = self.decide(call, advanced);
        if let (Next::Refuse(_), Some(item)) = (&next, call.items.get(call.next)) {
            self.retire(call.table, item);
        }
        next
    }

    fn decide(&mut self, call: &mut EngineCall, advanced: Result<Advance>) -> Next {
        let wait = match advanced {
            Err(error) => return Next::Refuse(error),
            Ok(Advance::Unfinished) => return Next::Unfinished,
            Ok(Advance::Blocked { .. }) if !call.wait.is_patient() => {
                return Next::Refuse(match self.conflicting_ancestor(call) {
                    Some(ancestor) => held_by_ancestor(call, ancestor),
                    None => conflict(call),
                });
            }
            Ok(Advance::Blocked { upgrade }) => Next::Wait { upgrade },
            Ok(Advance::Complete) if !self.take_token(call) && !call.wait.is_patient() => {
                return Next::Refuse(no_token());
            }
            Ok(Advance::Complete) if call.token.is_none() && !call.changes.is_empty() => {
                Next::AwaitToken
            }
            Ok(Advance::Complete) => return self.grant(call).map_or(Next::Unfinished, Next::Grant),
        };
        if call.bytes == 0 {
            self.make_room(self.most_of_wait(call));
        }
        let room = match wait {
            // The room of a call that has waited is counted already.
            _ if call.bytes > 0 => Ok(()),
            // An escalation may make room for the rest.
            Next::Wait { .. } if !call.escalate => self.check_worth_waiting(call),
            _ => self.check_room_to_wait(call),
        };
        room.map_or_else(Next::Refuse, |()| wait)
    }

    /// Takes the next step of a call.
    pub(super) fn follow(&mut self, id: CallId, next: Next) {
        match next {
            Next::Grant(grant) => self.finish(id, Ok(grant)),
            Next::Wait { upgrade } => self.begin_wait(id, upgrade),
            Next::AwaitToken => {
                self.count_wait(id);
                self.begin_token_wait(id);
            }
            Next::Unfinished => self.pause(id),
            Next::Refuse(error) => self.fail(id, error),
        }
    }

    /// Goes on with a waiter whose item has become free: it takes that and the following ones,
    /// until it must wait again, is over, or has used up the slice.
    pub(in crate::table) fn continue_call(&mut self, id: CallId) {
        let mut call = self.calls.take(id);
        let before = call.changes.len();
        self.dequeue(&mut call);
        call.stage = Stage::Moving;
        let advanced = match self.take_item_or_escalate(&mut call) {
            Ok(true) => Ok(Advance::Complete),
            Ok(false) => self.advance(&mut call),
            Err(error) => {
                // The call has left the queue of that item and does not hold it. So the waiters
                // behind it have to become candidates.
                self.released.push((call.table, Released::Item(call.item().clone())));
                Err(error)
            }
        };
        self.proceed(id, call, before, advanced);
    }

    /// Goes on with a call between two slices that takes free items.
    pub(in crate::table) fn move_on(&mut self, id: CallId) {
        let mut call = self.calls.take(id);
        let before = call.changes.len();
        let advanced = self.advance(&mut call);
        self.proceed(id, call, before, advanced);
    }

    /// Makes a call take its next step after `advanced`, in which it added `changes[before..]`.
    fn proceed(
        &mut self,
        id: CallId,
        mut call: Box<EngineCall>,
        before: usize,
        advanced: Result<Advance>,
    ) {
        self.recheck_nested(&call, before);
        let next = self.next(&mut call, advanced);
        self.calls.put(id, call);
        self.follow(id, next);
    }

    /// Schedules another check for cycles of a transaction's nested calls, after a call has added
    /// `changes[from..]` to its holds.
    ///
    /// A waiter for one of these holds now waits for the nested calls too. So a cycle can be closed
    /// although no wait begins.
    pub(super) fn recheck_nested(&mut self, call: &EngineCall, from: usize) {
        if self.nested_calls == 0 {
            return;
        }
        let (Some(txn), Some(table)) = (self.txns.get(&call.txn), self.tables.get(&call.table))
        else {
            return;
        };
        let mut is_waited_for = false;
        let range = call.escalated.as_ref().map(|range| LockItem::Range((**range).clone()));
        // An escalation leaves no changes.
        let mut gained = call.changes.iter().skip(from).map(|change| &change.item).chain(&range);
        while !is_waited_for
            && !txn.nested.is_empty()
            && let Some(item) = gained.next()
        {
            table.overlapping_queues(item, |_, _| {
                is_waited_for = true;
                ControlFlow::Break(())
            });
        }
        if is_waited_for {
            self.recheck.extend(&txn.nested);
        }
    }
}
