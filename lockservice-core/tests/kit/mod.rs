//! The set-up that tests of the engine share: one table, transactions of one origin, and calls that
//! a test polls by hand.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | one table, its transactions, and calls that a test polls |
//! | `by_id.rs` | the engine by the ids of transactions and tables |
//! | `cost.rs` | numbered rows and many tables |
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod by_id;
pub(crate) mod cost;

use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use self::by_id::{LockEngine, LockRequest};
use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::clock::Time;
use lockservice_core::table::{Commit, EngineMemory, EngineSettings, Grant, LockCall, WaitPolicy};
use lockservice_core::{
    BindVersion, CommitTimestamp, ErrorKind, FencingToken, Key, KeyRange, LockItem, LockMode,
    Result, ServiceId, TableId, TableRef, TxnId, TxnNumber,
};

pub(crate) const TABLE: TableId = TableId::new(1);
pub(crate) const VERSION: BindVersion = BindVersion::new(1);

pub(crate) fn bind(version: BindVersion) -> Bind {
    let table = TableRef::new("g", "t").expect("a name");
    Bind { table, id: TABLE, partition: 0, owner: ServiceId::new(1), version, slot: BindSlot::NONE }
}

/// An engine with the default settings that serves the table.
pub(crate) fn engine() -> LockEngine {
    engine_with(EngineSettings::default())
}

pub(crate) fn engine_with(settings: EngineSettings) -> LockEngine {
    with_table(LockEngine::new(settings))
}

/// Installs the table, with tokens that last.
pub(crate) fn with_table(engine: LockEngine) -> LockEngine {
    let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 << 40) };
    engine.install(bind(VERSION), Some(block), None).expect("the first version");
    engine
}

pub(crate) fn txn(number: u64) -> TxnId {
    TxnId::new(ServiceId::new(1), TxnNumber::new(number), false)
}

pub(crate) fn key(bytes: impl AsRef<[u8]>) -> Key {
    Key::new(bytes).expect("a key")
}

pub(crate) fn row(key_bytes: impl AsRef<[u8]>) -> LockItem {
    LockItem::Row(key(key_bytes))
}

/// A range with both of its ends.
pub(crate) fn range(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> LockItem {
    let (from, to) = (Bound::Included(key(from)), Bound::Included(key(to)));
    LockItem::Range(KeyRange::new(from, to).expect("a range"))
}

/// The memory that the engine counts for an item that one transaction holds in the state.
pub(crate) fn held_bytes(item: &LockItem) -> usize {
    EngineMemory::hold(item) + EngineMemory::entry(item)
}

/// A commit at a timestamp.
pub(crate) fn committed_at(timestamp: u64) -> Option<Commit> {
    Some(Commit::at(CommitTimestamp::new(timestamp)))
}

/// A request that waits.
pub(crate) fn request(who: u64, items: Vec<LockItem>, mode: LockMode) -> LockRequest {
    let (txn, wait) = (txn(who), WaitPolicy::Wait);
    LockRequest { txn, table: TABLE, version: VERSION, items, mode, wait, escalate: false }
}

/// A call that waits.
pub(crate) fn lock(
    engine: &LockEngine,
    who: u64,
    items: impl Into<Vec<LockItem>>,
    mode: LockMode,
) -> LockCall {
    engine.lock(request(who, items.into(), mode), Time::ZERO)
}

pub(crate) fn poll(call: &mut LockCall) -> Poll<Result<Grant>> {
    Pin::new(call).poll(&mut Context::from_waker(Waker::noop()))
}

/// The grant of a call that is over.
pub(crate) fn granted(mut call: LockCall) -> Grant {
    match poll(&mut call) {
        Poll::Ready(Ok(grant)) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

/// The error of a call that failed.
pub(crate) fn kind(mut call: LockCall) -> ErrorKind {
    match poll(&mut call) {
        Poll::Ready(Err(error)) => error.kind(),
        other => panic!("no error: {other:?}"),
    }
}
