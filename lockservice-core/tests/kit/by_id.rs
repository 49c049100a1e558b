//! The engine with handles that are found by the ids of transactions and tables, for tests that
//! name both by number.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use lockservice_core::allocator::{Bind, TokenBlock};
use lockservice_core::clock::Time;
use lockservice_core::table::{
    Commit, EngineSettings, Grant, LockCall, LockInfo, LockList, RowGrant, Savepoint, TableHandle,
    TxnHandle, WaitInfo, WaitList, WaitPolicy,
};
use lockservice_core::{
    BindVersion, Error, Key, LockItem, LockMode, Result, TableId, TxnId, table,
};

/// As [`table::LockRequest`], with its transaction.
#[derive(Clone, Debug)]
pub(crate) struct LockRequest {
    pub(crate) txn: TxnId,
    pub(crate) table: TableId,
    pub(crate) version: BindVersion,
    pub(crate) items: Vec<LockItem>,
    pub(crate) mode: LockMode,
    pub(crate) wait: WaitPolicy,
    pub(crate) escalate: bool,
}

/// See the module. Clones share the engine and the handles.
#[derive(Clone, Debug)]
pub(crate) struct LockEngine {
    engine: table::LockEngine,
    txns: Arc<Mutex<HashMap<TxnId, Arc<TxnHandle>>>>,
    tables: Arc<Mutex<HashMap<TableId, TableHandle>>>,
}

impl LockEngine {
    pub(crate) fn new(settings: EngineSettings) -> Self {
        Self::of(table::LockEngine::new(settings))
    }

    pub(crate) fn with_steps_per_hold(settings: EngineSettings, steps: usize) -> Self {
        Self::of(table::LockEngine::with_steps_per_hold(settings, steps))
    }

    fn of(engine: table::LockEngine) -> Self {
        Self { engine, txns: Arc::default(), tables: Arc::default() }
    }

    fn txn(&self, txn: TxnId) -> Arc<TxnHandle> {
        let mut txns = self.txns.lock().expect("no panic");
        Arc::clone(txns.entry(txn).or_insert_with(|| Arc::new(TxnHandle::new(txn))))
    }

    /// The engine itself.
    pub(crate) fn by_handle(&self) -> &table::LockEngine {
        &self.engine
    }

    /// The handle of the version that was installed last.
    pub(crate) fn table(&self, table: TableId) -> Option<TableHandle> {
        self.tables.lock().expect("no panic").get(&table).cloned()
    }

    pub(crate) fn install(
        &self,
        bind: Bind,
        tokens: Option<TokenBlock>,
        history_since: Option<Time>,
    ) -> Result<()> {
        let id = bind.id;
        let handle = self.engine.install(bind, tokens, history_since)?;
        self.tables.lock().expect("no panic").insert(id, handle);
        Ok(())
    }

    pub(crate) fn remove(&self, table: TableId, version: BindVersion) {
        self.engine.remove(table, version);
    }

    pub(crate) fn seal(&self, error: fn() -> Error) {
        self.engine.seal(error);
    }

    pub(crate) fn add_tokens(&self, table: TableId, version: BindVersion, block: TokenBlock) {
        self.engine.add_tokens(table, version, block);
    }

    pub(crate) fn tokens_left(&self, table: TableId, version: BindVersion) -> Option<u64> {
        self.engine.tokens_left(table, version)
    }

    pub(crate) fn lock_row(
        &self,
        txn: TxnId,
        table: TableId,
        key: &Key,
        mode: LockMode,
    ) -> Option<RowGrant> {
        self.engine.lock_row(&self.txn(txn), &self.table(table)?, key, mode)
    }

    pub(crate) fn lock(&self, request: LockRequest, now: Time) -> LockCall {
        self.lock_for(request, &[], now)
    }

    pub(crate) fn lock_for(
        &self,
        request: LockRequest,
        ancestors: &[TxnId],
        now: Time,
    ) -> LockCall {
        let LockRequest { txn, table, version, items, mode, wait, escalate } = request;
        let request = table::LockRequest { table, version, items, mode, wait, escalate };
        self.engine.lock_for(&self.txn(txn), request, ancestors, now)
    }

    /// For a call that has waited at an earlier incarnation.
    #[cfg(not(loom))]
    pub(crate) fn lock_again(&self, request: LockRequest, came: Time) -> LockCall {
        let LockRequest { txn, table, version, items, mode, wait, escalate } = request;
        let request = table::LockRequest { table, version, items, mode, wait, escalate };
        self.engine.lock_again(&self.txn(txn), request, &[], came)
    }

    pub(crate) fn roll_back(&self, txn: TxnId, table: TableId, grant: &Grant) {
        self.engine.roll_back(&self.txn(txn), table, grant);
    }

    pub(crate) fn unlock(
        &self,
        txn: TxnId,
        table: TableId,
        items: &[LockItem],
        commit: Option<Commit>,
    ) -> usize {
        let table = self.table(table);
        table.map_or(0, |table| self.engine.unlock(&self.txn(txn), &table, items, commit))
    }

    pub(crate) fn downgrade(
        &self,
        txn: TxnId,
        table: TableId,
        items: &[LockItem],
        mode: LockMode,
    ) -> usize {
        let table = self.table(table);
        table.map_or(0, |table| self.engine.downgrade(&self.txn(txn), &table, items, mode))
    }

    pub(crate) fn savepoint(&self, txn: TxnId) -> Savepoint {
        self.engine.savepoint(&self.txn(txn)).expect("few calls")
    }

    pub(crate) fn roll_back_to(&self, txn: TxnId, savepoint: Savepoint) -> Result<usize> {
        self.engine.roll_back_to(&self.txn(txn), savepoint)
    }

    pub(crate) fn unlock_all(&self, txn: TxnId, commit: Option<Commit>) -> usize {
        self.engine.unlock_all(&self.txn(txn), commit)
    }

    pub(crate) fn end_forced(&self, txn: TxnId, now: Time) {
        self.engine.end_forced(&self.txn(txn), now);
    }

    pub(crate) fn cancel_wait(&self, txn: TxnId) {
        self.engine.cancel_wait(txn);
    }

    pub(crate) fn locks(&self, table: Option<TableId>) -> Vec<LockInfo> {
        self.engine.locks(table)
    }

    pub(crate) fn waits(&self, table: Option<TableId>) -> Vec<WaitInfo> {
        self.engine.waits(table)
    }

    pub(crate) fn lock_list(&self, table: Option<TableId>) -> LockList {
        self.engine.lock_list(table)
    }

    pub(crate) fn wait_list(&self, table: Option<TableId>) -> WaitList {
        self.engine.wait_list(table)
    }

    pub(crate) fn held(&self, txn: TxnId) -> usize {
        self.engine.held(&self.txn(txn))
    }

    pub(crate) fn check_marks(&self) {
        self.engine.check_marks();
    }
}
