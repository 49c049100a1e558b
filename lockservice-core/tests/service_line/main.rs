//! Calls that wait for their table to be bound, for a token, or for their turn: in order, seen, and
//! within their time.
//!
//! Tokio's paused clock drives everything, the service's clock included: no test waits for real
//! time.
//!
//! | file | noun |
//! |---|---|
//! | `unbound.rs` | the wait for a bind |
//! | `times.rs` | the time of a call; calls that may not wait |
//! | `notices.rs` | notices to clients |
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod notices;
mod times;
mod unbound;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BoundTable, LocalAllocator, LockTableAllocator, Registration, ReservedTokens,
};
use lockservice_core::service::{
    LockService, LockSpec, OpResponse, Operation, ServiceParts, Session, TxnOp, TxnOptions,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::table::WaitPolicy;
use lockservice_core::testing::{AllocatorHooks, HookedAllocator, TokioClock};
use lockservice_core::{
    BindVersion, Error, Key, LockItem, NodeName, Nonce, Result, Sequence, ServiceId, TableId,
    TableRef, TxnNumber,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

const MS: Duration = Duration::from_millis(1);

/// A local allocator that does not respond on demand.
#[derive(Debug)]
struct Stubbornness {
    bind_hangs: AtomicBool,
    /// Binds come without tokens, and none are to be had.
    no_tokens: AtomicBool,
}

#[async_trait]
impl AllocatorHooks for Stubbornness {
    async fn bind(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        table: &TableRef,
    ) -> Result<BoundTable> {
        if self.bind_hangs.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        let bound = inner.bind(service, table).await?;
        let tokens = bound.tokens.filter(|_| !self.no_tokens.load(Ordering::Relaxed));
        Ok(BoundTable { tokens, ..bound })
    }

    async fn reserve_tokens(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        if self.no_tokens.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        inner.reserve_tokens(service, table, version).await
    }
}

type Stubborn = HookedAllocator<Stubbornness>;

fn name(node: &str) -> NodeName {
    NodeName::new(node).expect("a name")
}

async fn allocator() -> Arc<Stubborn> {
    let (store, clock) = (Arc::new(MemoryStore::new(1)), Arc::new(TokioClock::new()));
    let settings = AllocatorSettings::default();
    let inner =
        LocalAllocator::open(store, clock, settings, name("leader")).await.expect("a fresh store");
    let hooks =
        Stubbornness { bind_hangs: AtomicBool::new(false), no_tokens: AtomicBool::new(false) };
    Arc::new(Stubborn { inner, hooks })
}

async fn start(
    allocator: &Arc<Stubborn>,
    node: &str,
    replaces: Option<(ServiceId, Nonce)>,
) -> LockService {
    let allocator: Arc<dyn LockTableAllocator> = Arc::<Stubborn>::clone(allocator);
    let parts = ServiceParts::new(allocator, Arc::new(TokioClock::new()), name(node));
    LockService::start(ServiceParts { replaces, ..parts }).await.expect("it starts")
}

/// An incarnation of `node` that owns the table, and is silent from now on.
async fn owner(allocator: &Stubborn, node: &str) -> (ServiceId, BoundTable) {
    let register = Registration {
        node: name(node),
        nonce: Nonce::new(1),
        address: String::new(),
        replaces: None,
    };
    let service = allocator.inner.register(&register).await.expect("a free name").service;
    (service, allocator.inner.bind(service, &table()).await.expect("a free table"))
}

/// A service that was started after its predecessor, which owned the table, had died.
async fn restarted(allocator: &Arc<Stubborn>) -> (LockService, ServiceId) {
    let (dead, _) = owner(allocator, "node").await;
    (start(allocator, "node", Some((dead, Nonce::new(1)))).await, dead)
}

fn table() -> TableRef {
    TableRef::new("g", "t").expect("names")
}

fn spec(key: &str) -> LockSpec {
    LockSpec::new(table(), vec![LockItem::Row(Key::new(key).expect("a key"))])
}

fn no_wait(key: &str) -> LockSpec {
    LockSpec { wait: WaitPolicy::NoWait, ..spec(key) }
}

fn within(timeout: Duration, key: &str) -> LockSpec {
    LockSpec { timeout: Some(timeout), ..spec(key) }
}

/// The error of a lock call in a transaction of its own, and the time that it takes.
async fn fails(service: &LockService, spec: LockSpec) -> (Error, Duration) {
    let began = Instant::now();
    let txn = service.begin(TxnOptions::default()).expect("it serves");
    let error = txn.lock(spec).await.expect_err("it is not to be had");
    (error, began.elapsed())
}

/// Timers count in milliseconds.
#[track_caller]
fn about(took: Duration, expected: Duration) {
    assert!(took.abs_diff(expected) <= 2 * MS, "{took:?}, not {expected:?}");
}

fn op(number: u64, sequence: u64) -> TxnOp {
    TxnOp {
        number: TxnNumber::new(number),
        sequence: Sequence::new(sequence),
        acked: Sequence::default(),
        options: TxnOptions::default(),
    }
}

async fn submit(
    session: &Session,
    number: u64,
    sequence: u64,
    spec: LockSpec,
) -> Result<OpResponse> {
    session.submit(op(number, sequence), Operation::Lock(spec)).await
}
