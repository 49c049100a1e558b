//! The service as its users see it: transactions, sessions, and their end when promises lapse.
//!
//! Tokio's paused clock drives everything, the service's clock included: no test waits for real
//! time.
//!
//! | file | tests of |
//! |---|---|
//! | `kills.rs` | sessions that an operator ends, and the lists that name them |
//! | `lists.rs` | what lists show of locks, waits and their transactions |
//! | `limits.rs` | limits of tables |
//! | `locks.rs` | locks of embedders and clients: order, time, deadlocks |
//! | `operations.rs` | operations of a session: in order, once, and bounded (T2) |
//! | `promises.rs` | lapsed promises, and the fate of their locks (P1, C4, C5) |
//! | `quotas.rs` | what one client may use, and what it returns |
//! | `reclaim.rs` | claims of what was held before a restart (P6) |
//! | `reclaim_undecided.rs` | claims without a decision, and those that fail (P6) |
//! | `reclaim_waits.rs` | waits over a restart (P6) |
//! | `roll_back.rs` | roll-backs, and the items on which later calls rely |
//! | `rows.rs` | rows that an embedder locks at once |
//! | `stop.rs` | the start, the stop and the seal of a service (B1, B2) |
//! | `txn_kills.rs` | transactions that are ended while their session lives |
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod kills;
mod limits;
mod lists;
mod locks;
mod operations;
mod promises;
mod quotas;
mod reclaim;
mod reclaim_undecided;
mod reclaim_waits;
mod roll_back;
mod rows;
mod stop;
mod txn_kills;

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Progress, Registration,
};
use lockservice_core::service::{
    Granted, LockService, LockSpec, OpResponse, Operation, ServiceParts, ServiceSettings, Session,
    TxnOp, TxnOptions,
};
use lockservice_core::store::{BindStore, MemoryStore};
use lockservice_core::table::{Commit, WaitPolicy};
use lockservice_core::testing::TokioClock;
use lockservice_core::{
    CommitAttempt, CommitTimestamp, ErrorKind, Key, LockItem, LockMode, NodeName, Nonce, Result,
    Sequence, TableRef, TxnId, TxnNumber,
};

const SECOND: Duration = Duration::from_secs(1);

fn node() -> NodeName {
    NodeName::new("node-1").expect("a name")
}

async fn allocator() -> Arc<LocalAllocator> {
    allocator_with(AllocatorSettings::default()).await
}

async fn allocator_with(settings: AllocatorSettings) -> Arc<LocalAllocator> {
    let store: Arc<dyn BindStore> = Arc::new(MemoryStore::new(1));
    LocalAllocator::open(store, Arc::new(TokioClock::new()), settings, node())
        .await
        .expect("a fresh store opens")
}

fn parts(allocator: &Arc<LocalAllocator>) -> ServiceParts {
    ServiceParts::new(
        Arc::clone(allocator) as Arc<dyn LockTableAllocator>,
        Arc::new(TokioClock::new()),
        node(),
    )
}

async fn service() -> (LockService, Arc<LocalAllocator>) {
    let allocator = allocator().await;
    (LockService::start(parts(&allocator)).await.expect("the service starts"), allocator)
}

fn table() -> TableRef {
    TableRef::new("g", "t").expect("names")
}

fn row(name: &str) -> LockItem {
    LockItem::Row(Key::new(name).expect("a key"))
}

fn spec(name: &str) -> LockSpec {
    LockSpec::new(table(), vec![row(name)])
}

fn nowait(name: &str) -> LockSpec {
    LockSpec { wait: WaitPolicy::NoWait, ..spec(name) }
}

fn op(number: u64, sequence: u64) -> TxnOp {
    TxnOp {
        number: TxnNumber::new(number),
        sequence: Sequence::new(sequence),
        acked: Sequence::default(),
        options: TxnOptions::default(),
    }
}

fn validating(number: u64, sequence: u64) -> TxnOp {
    TxnOp { options: TxnOptions { validates: true, label: String::new() }, ..op(number, sequence) }
}

fn locked(response: Result<OpResponse>) -> Granted {
    match response {
        Ok(OpResponse::Locked(granted)) => Arc::unwrap_or_clone(granted),
        other => panic!("expected a grant, got {other:?}"),
    }
}

fn done(response: Result<OpResponse>) {
    assert!(matches!(response, Ok(OpResponse::Done { .. })), "{response:?}");
}

fn released(response: Result<OpResponse>) -> usize {
    match response {
        Ok(OpResponse::Done { released }) => released,
        other => panic!("not released: {other:?}"),
    }
}

fn commit(granted: &Granted) -> BeginCommit {
    BeginCommit {
        txn: granted.txn,
        binds: vec![PresentedBind::from(&granted.grant.bind)],
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: Duration::from_millis(1), most: SECOND },
    }
}

fn open(service: &LockService) -> Session {
    service.open_session(None, "test").expect("a session")
}
