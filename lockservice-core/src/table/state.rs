//! The engine's pure state: every table of the node, every transaction that holds or waits, every call in flight.
//!
//! Nothing here reads a clock, awaits or wakes: wakers are collected and fired by the shell, after its mutex is free.

use std::collections::BTreeSet;
use std::task::Waker;

use super::call::{CallId, Calls, Stage};
use super::entry::Place;
use super::hash::IdMap;
use super::lock_table::LockTable;
use super::locking::hold_bytes;
use super::txn::Txn;
use super::types::{EngineSettings, Grant};
use crate::allocator::{Bind, TokenBlock};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, TableId, TxnId};
use crate::key::LockItem;

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: EngineSettings,
    pub(super) tables: IdMap<TableId, LockTable>,
    /// The tables in order, for lists.
    pub(super) table_ids: BTreeSet<TableId>,
    pub(super) txns: IdMap<TxnId, Txn>,
    pub(super) calls: Calls,
    /// The last version of each table that was ever installed here (B5).
    versions: IdMap<TableId, BindVersion>,
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

impl State {
    pub(super) fn new(settings: EngineSettings) -> Self {
        Self {
            settings,
            tables: IdMap::default(),
            table_ids: BTreeSet::new(),
            txns: IdMap::default(),
            calls: Calls::default(),
            versions: IdMap::default(),
            sealed: None,
            in_flight: 0,
            bytes: 0,
            commits: 0,
            first: 0,
            last: 0,
            nested: 0,
            look_again: Vec::new(),
            left: Vec::new(),
            candidates: BTreeSet::new(),
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
        self.tables.insert(table, LockTable::new(bind, tokens, history_since));
        self.table_ids.insert(table);
        Ok(())
    }

    pub(super) fn remove(&mut self, table: TableId, version: BindVersion) {
        if self.tables.get(&table).is_some_and(|installed| installed.bind.version == version) {
            self.drop_table(table);
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

    pub(super) fn check_not_sealed(&self) -> Result<()> {
        self.sealed.map_or(Ok(()), |error| Err(error()))
    }

    pub(super) fn add_tokens(&mut self, table: TableId, version: BindVersion, block: TokenBlock) {
        let Some(installed) = self.tables.get_mut(&table).filter(|table| table.bind.version == version) else { return };
        installed.add_tokens(block);
        while let Some(table) = self.tables.get_mut(&table) {
            if table.tokens_left() == 0 {
                break;
            }
            let Some((_, id)) = table.starved.pop_first() else { break };
            let mut call = self.calls.take(id);
            let grant = self.grant(&mut call).expect("the table has a token");
            self.calls.put(id, call);
            self.finish(id, Ok(grant));
        }
    }

    pub(super) fn unlock(&mut self, txn: TxnId, table: TableId, items: &[LockItem], commit_ts: Option<u64>) -> usize {
        let held = |state: &Self| state.txns.get(&txn).map_or(0, |txn| txn.count);
        let before = held(self);
        let mut goes = Vec::new();
        for item in items {
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
        self.settle();
        released
    }

    /// Ends the wait of a transaction, if it waits.
    pub(super) fn cancel_wait(&mut self, id: TxnId) {
        let call = self.txns.get(&id).and_then(|txn| txn.call);
        // One that is over only waits to be received: its outcome stands.
        if let Some(call) = call.filter(|call| !self.calls[*call].is_done()) {
            self.fail(
                call,
                Error::new(ErrorKind::Cancelled, "the transaction ended while it waited for a lock").with("txn", id),
            );
            self.settle();
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

    pub(super) fn unlock_all(&mut self, id: TxnId, commit_ts: Option<u64>) -> usize {
        let Some(txn) = self.txns.get(&id) else { return 0 };
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
        let mut released = 0;
        if let Some(txn) = self.txns.remove(&id) {
            released = txn.count;
            self.bytes -= txn.bytes;
            for (table_id, items) in txn.held {
                let Some(table) = self.tables.get_mut(&table_id) else { continue };
                for item in items {
                    table.take_hold(&item, id);
                    if !table.waiting.is_empty() {
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
        released
    }

    /// Tells the tables, and everybody in whose way the transaction stands, that it committed at `ts` (C5).
    fn note_commit(&mut self, id: TxnId, ts: u64) {
        self.commits += 1;
        let Some(txn) = self.txns.get(&id) else { return };
        for (table_id, items) in &txn.held {
            if let Some(table) = self.tables.get_mut(table_id) {
                table.note_commit(id, items, self.commits, ts);
            }
        }
    }
}

pub(super) fn bind_changed(table: TableId) -> Error {
    Error::new(
        ErrorKind::BindChanged,
        "this version of the table's bind is not served here: end the transaction and start it again",
    )
    .with("table", table)
}
