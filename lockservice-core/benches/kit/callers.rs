//! An engine with one table, and transactions that call it.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::clock::Time;
use lockservice_core::table::{
    EngineSettings, Grant, LockCall, LockEngine, LockRequest, TableHandle, TxnHandle, WaitPolicy,
};
use lockservice_core::{
    BindVersion, FencingToken, KeyRange, LockItem, LockMode, Result, ServiceId, TableId, TableRef,
    TxnId, TxnNumber,
};

use super::key;

const TABLE: TableId = TableId::new(1);
const VERSION: BindVersion = BindVersion::new(1);

pub(crate) struct Engine {
    pub(crate) engine: LockEngine,
    pub(crate) table: TableHandle,
}

impl Engine {
    pub(crate) fn new() -> Self {
        let settings = EngineSettings { waiters_max: 1 << 20, ..EngineSettings::default() };
        let engine = LockEngine::new(settings);
        let bind = Bind {
            table: TableRef::new("g", "t").unwrap(),
            id: TABLE,
            partition: 0,
            owner: ServiceId::new(1),
            version: VERSION,
            slot: BindSlot::NONE,
        };
        let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 << 52) };
        let table = engine.install(bind, Some(block), None).unwrap();
        Self { engine, table }
    }

    /// Requests an exclusive lock.
    pub(crate) fn lock(&self, who: &TxnHandle, item: LockItem) -> LockCall {
        let (table, version, wait) = (TABLE, VERSION, WaitPolicy::Wait);
        let (items, mode) = (vec![item], LockMode::Exclusive);
        let request = LockRequest { table, version, items, mode, wait, escalate: false };
        self.engine.lock(who, request, Time::ZERO)
    }

    /// Locks what is free.
    pub(crate) fn holds(&self, who: &TxnHandle, item: LockItem) {
        granted(self.lock(who, item));
    }

    /// Requests what is not free.
    pub(crate) fn waits(&self, who: &TxnHandle, item: LockItem) -> LockCall {
        let mut call = self.lock(who, item);
        assert!(poll(&mut call).is_pending(), "it waits");
        call
    }
}

pub(crate) fn txn(number: u64) -> TxnHandle {
    TxnHandle::new(TxnId::new(ServiceId::new(1), TxnNumber::new(number), false))
}

pub(crate) fn row(number: u64) -> LockItem {
    LockItem::Row(key(number))
}

pub(crate) fn everything() -> LockItem {
    LockItem::Range(KeyRange::whole_table())
}

pub(crate) fn poll(call: &mut LockCall) -> Poll<Result<Grant>> {
    Pin::new(call).poll(&mut Context::from_waker(Waker::noop()))
}

pub(crate) fn granted(mut call: LockCall) -> Grant {
    match poll(&mut call) {
        Poll::Ready(Ok(grant)) => grant,
        other => panic!("not granted: {other:?}"),
    }
}
