//! The engine's pure state: every table of the node, every transaction that holds or waits, every
//! call in flight.
//!
//! Nothing here reads a clock, awaits or wakes: wakers are collected and fired by the shell, after
//! its mutex is free.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Waker;

use super::call::{CallId, Calls, Stage};
use super::entry::Position;
use super::hash::IdMap;
use super::lock_table::LockTable;
use super::locking::hold_bytes;
use super::slices::{Released, Slice};
use super::txn::TxnHolds;
use super::types::{EngineSettings, Grant};
use crate::allocator::{Bind, TokenBlock};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, TableId, TxnId};
use crate::key::LockItem;

/// See the module.
#[derive(Debug)]
pub(super) struct EngineState {
    pub(super) settings: EngineSettings,
    pub(super) tables: IdMap<TableId, LockTable>,
    /// The tables in order, for lists.
    pub(super) table_ids: BTreeSet<TableId>,
    pub(super) txns: IdMap<TxnId, TxnHolds>,
    pub(super) calls: Calls,
    /// The last version of each table that is installed here (B5).
    versions: IdMap<TableId, BindVersion>,
    /// The highest version that was removed. Versions only grow, whatever the table: so none that
    /// was served is served again (B5), and nothing is kept of each table that has gone.
    removed_to: BindVersion,
    sealed: Option<fn() -> Error>,
    /// Calls that wait for a lock or a token.
    pub(super) in_flight: usize,
    /// Estimated memory of all locks and waits.
    pub(super) bytes: usize,
    /// How many commits with a timestamp there were.
    pub(super) commits: u64,
    /// Places already given out, at both ends of the queue.
    pub(super) first: i64,
    pub(super) last: i64,
    /// How many calls in flight have ancestors.
    pub(super) nested: usize,
    /// Nested calls of transactions that hold more than when these began to wait.
    pub(super) look_again: Vec<CallId>,
    /// Items that something left: waiters that overlap them may have become grantable.
    pub(super) released: Vec<(TableId, Released)>,
    /// Waiters that may have become grantable, in queue order.
    pub(super) candidates: BTreeSet<(Position, CallId)>,
    /// Calls between two slices of their work, first come first.
    pub(super) unfinished: BTreeMap<Position, CallId>,
    /// Tables that have got tokens for which calls wait.
    pub(super) fed: Vec<TableId>,
    /// What this hold of the mutex may still do.
    pub(super) slice: Slice,
    /// Somebody goes on, hold after hold, until nothing is left to settle.
    pub(super) draining: bool,
    /// Whom to wake once the mutex is free.
    pub(super) wake: Vec<Waker>,
}

/// What became of a lock call at once.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the grant is the common case and must not cost an allocation"
)]
pub(super) enum Started {
    /// It is over.
    Done(Result<Grant>),
    /// It is kept under this id; its outcome is to be taken from there.
    Kept(CallId),
}

impl EngineState {
    pub(super) fn new(settings: EngineSettings, slice: Slice) -> Self {
        Self {
            settings,
            tables: IdMap::default(),
            table_ids: BTreeSet::new(),
            txns: IdMap::default(),
            calls: Calls::default(),
            versions: IdMap::default(),
            removed_to: BindVersion::default(),
            sealed: None,
            in_flight: 0,
            bytes: 0,
            commits: 0,
            first: 0,
            last: 0,
            nested: 0,
            look_again: Vec::new(),
            released: Vec::new(),
            candidates: BTreeSet::new(),
            unfinished: BTreeMap::new(),
            fed: Vec::new(),
            slice,
            draining: false,
            wake: Vec::new(),
        }
    }

    pub(super) fn install(
        &mut self,
        bind: Bind,
        tokens: Option<TokenBlock>,
        history_since: Option<Time>,
    ) -> Result<()> {
        self.check_not_sealed()?;
        let (table, version) = (bind.id, bind.version);
        // B5: a (table, version) is installed empty at most once.
        let last = self.versions.get(&table).copied().unwrap_or(self.removed_to);
        if version <= last {
            return Err(Error::new(
                ErrorKind::BindChanged,
                "this version of the table, or a later one, was already served here: bind it anew",
            )
            .with("table", &bind.table)
            .with("version", version)
            .with("last", last));
        }
        self.drop_table(table);
        self.versions.insert(table, version);
        self.tables.insert(table, LockTable::new(bind, tokens, history_since));
        self.table_ids.insert(table);
        Ok(())
    }

    pub(super) fn remove(&mut self, table: TableId, version: BindVersion) {
        if self.tables.get(&table).is_some_and(|installed| installed.bind.version == version) {
            self.drop_table(table);
            self.versions.remove(&table);
            self.removed_to = self.removed_to.max(version);
        }
    }

    fn drop_table(&mut self, table: TableId) {
        let Some(dropped) = self.tables.remove(&table) else { return };
        self.table_ids.remove(&table);
        for id in dropped.calls.keys() {
            // A grant that nobody has received yet is as void as one still waited for (T4).
            if !matches!(self.calls[*id].stage, Stage::Done(Err(_))) {
                self.finish(*id, Err(bind_changed(table)));
            }
        }
        let mut holders = BTreeSet::new();
        dropped
            .for_each(|_, entry| holders.extend(entry.holders().iter().map(|holder| holder.txn)));
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
                // B2: a sealed owner answers nothing else, not even a grant made just before.
                Stage::Waiting | Stage::AwaitingToken | Stage::Moving | Stage::Done(Ok(_)) => {
                    self.fail(id, error())
                }
                Stage::Failing(_) | Stage::Done(Err(_)) => {}
            }
        }
    }

    pub(super) const fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    pub(super) fn check_not_sealed(&self) -> Result<()> {
        self.sealed.map_or(Ok(()), |error| Err(error()))
    }

    pub(super) fn add_tokens(&mut self, table: TableId, version: BindVersion, block: TokenBlock) {
        let Some(installed) =
            self.tables.get_mut(&table).filter(|table| table.bind.version == version)
        else {
            return;
        };
        installed.add_tokens(block);
        self.fed.push(table);
    }

    pub(super) fn unlock(
        &mut self,
        txn: TxnId,
        table: TableId,
        items: &[LockItem],
        commit_ts: Option<u64>,
    ) -> usize {
        let held = |state: &Self| state.txns.get(&txn).map_or(0, |txn| txn.count);
        let before = held(self);
        let mut goes = Vec::new();
        for item in items {
            self.slice.spend();
            let entry = self.tables.get_mut(&table).and_then(|table| table.entry_mut(item));
            match entry.and_then(|entry| entry.holder_mut(txn)) {
                Some(own) if !own.pending => goes.push(item.clone()),
                // What a call still in flight has added is that call's business; what was held
                // before is not.
                Some(own) => own.drop_beneath(),
                None => {}
            }
        }
        if let Some(ts) = commit_ts
            && !goes.is_empty()
            && let Some(table) = self.tables.get_mut(&table)
        {
            self.commits += 1;
            table.note_commit(txn, &goes, self.commits, ts);
        }
        for item in goes {
            self.release(txn, table, item);
        }
        let released = before - held(self);
        self.forget_if_idle(txn);
        released
    }

    /// Ends the wait of a transaction, if it waits.
    pub(super) fn cancel_wait(&mut self, id: TxnId) {
        let call = self.txns.get(&id).and_then(|txn| txn.call);
        // One that is over only waits to be received: its outcome stands.
        let in_flight =
            |call: &CallId| !matches!(self.calls[*call].stage, Stage::Failing(_) | Stage::Done(_));
        if let Some(call) = call.filter(in_flight) {
            self.fail(
                call,
                Error::new(
                    ErrorKind::Cancelled,
                    "the transaction ended while it waited for a lock",
                )
                .with("txn", id),
            );
        }
    }

    /// C5: in the tables where `id` holds locks, the history up to `now` is unknown.
    pub(super) fn forget_history(&mut self, id: TxnId, now: Time) {
        let Some(txn) = self.txns.get(&id) else { return };
        for (table_id, _) in &txn.held {
            if let Some(table) = self.tables.get_mut(table_id) {
                table.history_since = table.history_since.max(Some(now));
            }
        }
    }

    /// Ends the call of a transaction and releases what it holds, as much of it as the slice
    /// allows; counts that in `released`. True once nothing is left.
    pub(super) fn unlock_all(
        &mut self,
        id: TxnId,
        commit_ts: Option<u64>,
        released: &mut usize,
    ) -> bool {
        if !self.end_call(id) {
            return false;
        }
        while self.slice.has_steps()
            && let Some(txn) = self.txns.get_mut(&id)
            && let Some((table_id, items)) = txn.take_some(self.slice.steps())
        {
            *released += items.len();
            self.release_some(id, table_id, &items, commit_ts);
        }
        if self.txns.get(&id).is_some_and(|txn| txn.count > 0) {
            return false;
        }
        self.forget_if_idle(id);
        true
    }

    /// Ends the call of a transaction that ends, if it has one. False if that takes another slice.
    fn end_call(&mut self, id: TxnId) -> bool {
        let Some(call) = self.txns.get(&id).and_then(|txn| txn.call) else { return true };
        let error = Error::new(
            ErrorKind::Cancelled,
            "the transaction ended while its call for a lock was in flight",
        )
        .with("txn", id);
        match self.calls[call].stage {
            Stage::Waiting | Stage::AwaitingToken | Stage::Moving | Stage::Failing(_) => {
                self.end_wait(call, Some(error));
                self.give_up(call)
            }
            // What it was granted goes with everything else; nobody may hear of it any more.
            Stage::Done(Ok(_)) => {
                self.finish(call, Err(error));
                true
            }
            Stage::Done(Err(_)) => true,
        }
    }

    /// Ends holds that are on the list of a transaction no more. Their table, and everybody in
    /// whose way they stand, is told that it committed at `commit_ts` (C5).
    fn release_some(
        &mut self,
        id: TxnId,
        table_id: TableId,
        items: &[LockItem],
        commit_ts: Option<u64>,
    ) {
        let bytes = items.iter().map(hold_bytes).sum::<usize>();
        self.bytes -= bytes;
        if let Some(txn) = self.txns.get_mut(&id) {
            txn.bytes -= bytes;
        }
        items.iter().for_each(|_| self.slice.spend());
        let Some(table) = self.tables.get_mut(&table_id) else { return };
        if let Some(ts) = commit_ts {
            self.commits += 1;
            table.note_commit(id, items, self.commits, ts);
        }
        for item in items {
            table.take_hold(item, id);
            if !table.waiting.is_empty() {
                self.released.push((table_id, Released::Item(item.clone())));
            }
        }
    }
}

pub(super) fn bind_changed(table: TableId) -> Error {
    Error::new(
        ErrorKind::BindChanged,
        "this version of the table's bind is not served here: end the transaction and start it \
            again",
    )
    .with("table", table)
}
