//! Calls that wait for their table to be bound, for a token, or for their turn: in order, seen, and
//! within their time.
//!
//! Tokio's paused clock drives everything, the service's clock included: no test waits for real
//! time.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, BoundTable, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Registration, ReservedTokens,
};
use lockservice_core::clock::hi;
use lockservice_core::service::{
    LockService, LockSpec, OpResponse, Operation, ServiceParts, Session, TxnOp, TxnOptions,
    WaitNotices, Waiting, WaitsFor,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::table::WaitPolicy;
use lockservice_core::testing::{AllocatorHooks, HookedAllocator, TokioClock};
use lockservice_core::{
    BindVersion, CommitAttempt, Error, ErrorKind, Key, LockItem, NodeName, Nonce, Result, Sequence,
    ServiceId, TableId, TableRef, TxnId, TxnNumber,
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// The default lease.
const LEASE: Duration = Duration::from_secs(5);

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

#[tokio::test(start_paused = true)]
async fn those_who_wait_out_an_old_lease_are_seen_and_come_in_as_they_came() {
    let allocator = allocator().await;
    let (service, dead) = restarted(&allocator).await;
    let came_in = Arc::new(Mutex::new(Vec::new()));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (service, came_in) = (service.clone(), Arc::clone(&came_in));
        calls.spawn(async move {
            let txn = service.begin(TxnOptions::default()).expect("it serves");
            let grant = txn.lock(spec("k")).await.expect("the lease runs out").grant;
            came_in.lock().push(number);
            sleep(MS).await;
            txn.end(None);
            grant.waited
        });
        sleep(50 * MS).await;
    }
    let waits = service.waits(Some(&table()));
    assert_eq!(waits.len(), 8, "{waits:?}");
    for wait in &waits {
        assert_eq!((wait.info.holder.origin, wait.info.holder.counter.get()), (dead, 0));
        assert_eq!(wait.holder_client, "node", "it says which node had the table");
    }
    assert!(waits.is_sorted_by_key(|wait| wait.info.since), "in their order");
    assert_eq!(service.waits(None).len(), 8);
    // A later call that does not wait never gets in between.
    let late = loop {
        let txn = service.begin(TxnOptions::default()).expect("it serves");
        match txn.lock(no_wait("k")).await {
            Ok(_) => break came_in.lock().len(),
            Err(e) => {
                assert!(matches!(
                    e.kind(),
                    ErrorKind::Reassigning | ErrorKind::Conflict | ErrorKind::Unavailable
                ))
            }
        }
        sleep(MS / 2).await;
    };
    assert_eq!(late, 8);
    assert_eq!(*came_in.lock(), [0, 1, 2, 3, 4, 5, 6, 7]);
    for waited in calls.join_all().await {
        assert!(waited.expect("it has waited") > 4 * SECOND, "the whole wait counts");
    }
    assert!(service.waits(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_wait_shorter_than_the_rest_of_a_lease_is_waited_and_the_error_names_the_rest() {
    let allocator = allocator().await;
    let (service, _) = restarted(&allocator).await;
    let (error, waited) = fails(&service, within(2 * SECOND, "k")).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    about(waited, 2 * SECOND);
    about(error.retry_after().expect("it says so"), hi(LEASE) - 2 * SECOND);
    let (error, waited) = fails(&service, no_wait("k")).await;
    assert_eq!(error.kind(), ErrorKind::Reassigning, "{error:?}");
    about(waited, Duration::ZERO);
    about(error.retry_after().expect("it says so"), hi(LEASE) - 2 * SECOND);
    assert!(service.waits(None).is_empty(), "whoever has gone is not seen");
    // No call waits any more; a call that comes then is served all the same.
    let txn = service.begin(TxnOptions::default()).expect("it serves");
    txn.lock(spec("k")).await.expect("the lease runs out");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gives_up_leaves_its_place_in_the_line_to_the_next() {
    let allocator = allocator().await;
    let (service, _) = restarted(&allocator).await;
    let txns: Vec<_> =
        (0..3).map(|_| service.begin(TxnOptions::default()).expect("it serves")).collect();
    let mut first = Box::pin(txns[0].lock(spec("k")));
    let mut second = Box::pin(txns[1].lock(spec("k")));
    tokio::select! {
        biased;
        _ = &mut first => panic!("the old lease has not run out"),
        _ = &mut second => panic!("the old lease has not run out"),
        () = sleep(SECOND) => {}
    }
    drop(first);
    assert_eq!(service.waits(None).len(), 1);
    second.await.expect("it is the first now");
    assert_eq!(txns[2].lock(no_wait("k")).await.expect_err("held").kind(), ErrorKind::Conflict);
    drop(txns);
    assert!(service.locks(None).is_empty(), "the one that gave up holds nothing");
}

#[tokio::test(start_paused = true)]
async fn a_call_made_while_the_owner_resigns_is_served_when_that_has_landed() {
    for commit_takes in [100 * MS, 2 * SECOND] {
        let allocator = allocator().await;
        let (stopping, bound) = owner(&allocator, "stops").await;
        let service = start(&allocator, "node", None).await;
        let in_flight = BeginCommit {
            txn: TxnId::new(stopping, TxnNumber::new(1), true),
            binds: vec![PresentedBind::from(&bound.bind)],
            attempt: CommitAttempt::new(1),
            window: CommitWindow { least: MS, most: 4 * SECOND },
        };
        allocator.begin_commit(&in_flight).await.expect("the owner is alive");
        let resigning = Arc::clone(&allocator);
        let resigned =
            tokio::spawn(async move { resigning.resign(stopping, Nonce::new(1)).await.map(drop) });
        sleep(10 * MS).await;
        let finish = async {
            sleep(commit_takes).await;
            allocator.finish_commit(in_flight.txn, in_flight.attempt).await.expect("admitted");
            resigned.await.expect("no panic").expect("nothing holds it up");
            Instant::now()
        };
        let txn = service.begin(TxnOptions::default()).expect("it serves");
        let lock = async {
            txn.lock(spec("k")).await.expect("the owner gives the table up");
            Instant::now()
        };
        let (landed, served) = tokio::join!(finish, lock);
        let late = served.saturating_duration_since(landed);
        let most = if commit_takes < SECOND { 10 * MS } else { SECOND };
        assert!(
            late <= most,
            "served {late:?} after the resignation, not when the lease would have run out"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_wait_waits_neither_for_a_bind_that_hangs_nor_for_a_token() {
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    allocator.hooks.bind_hangs.store(true, Ordering::Relaxed);
    let (error, waited) = fails(&service, no_wait("k")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    about(waited, SECOND);
    let (error, waited) =
        fails(&service, LockSpec { timeout: Some(10 * MS), ..no_wait("k") }).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    about(waited, 10 * MS);
    let (error, waited) = fails(&service, within(3 * SECOND, "k")).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    about(waited, 3 * SECOND);
    allocator.hooks.bind_hangs.store(false, Ordering::Relaxed);
    allocator.hooks.no_tokens.store(true, Ordering::Relaxed);
    let (error, waited) = fails(&service, no_wait("k")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    about(waited, Duration::ZERO);
    let (error, waited) = fails(&service, within(3 * SECOND, "k")).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    about(waited, 3 * SECOND);
    assert!(service.locks(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_for_a_table() {
    let allocator = allocator().await;
    let (service, _) = restarted(&allocator).await;
    let stop = async {
        sleep(SECOND).await;
        service.shutdown(SECOND).await;
    };
    let ((error, waited), ()) = tokio::join!(fails(&service, spec("k")), stop);
    assert_eq!(error.kind(), ErrorKind::ShuttingDown, "{error:?}");
    about(waited, SECOND);
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

#[tokio::test(start_paused = true)]
async fn the_time_of_a_lock_runs_while_earlier_operations_wait_or_are_missing() {
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    let holder = service.begin(TxnOptions::default()).expect("it serves");
    holder.lock(spec("held")).await.expect("free");
    let session = service.open_session(None, "test").expect("a session");
    let began = Instant::now();
    // Behind one that waits, and behind one that has not arrived.
    let waits = session.submit(op(1, 1), Operation::Lock(spec("held")));
    submit(&session, 2, 1, spec("a")).await.expect("free");
    let behind = submit(&session, 1, 2, within(SECOND, "b"));
    let missing = submit(&session, 2, 3, within(SECOND, "c"));
    let (behind, missing) = tokio::join!(behind, missing);
    about(began.elapsed(), SECOND);
    for outcome in [behind, missing] {
        assert_eq!(outcome.expect_err("its time is up").kind(), ErrorKind::Timeout);
    }
    // A repetition gets the same response, before its turn and after.
    let again = submit(&session, 1, 2, within(SECOND, "b")).await.expect_err("answered");
    assert_eq!(again.kind(), ErrorKind::Timeout);
    about(began.elapsed(), SECOND);
    holder.end(None);
    waits.await.expect("free now");
    submit(&session, 2, 2, spec("d")).await.expect("it comes late, in its place");
    let again = submit(&session, 1, 2, within(SECOND, "b")).await.expect_err("answered");
    assert_eq!(again.kind(), ErrorKind::Timeout);
    // The order goes on behind them.
    submit(&session, 1, 3, spec("e")).await.expect("free");
    submit(&session, 2, 4, spec("f")).await.expect("free");
    let held: Vec<_> =
        service.locks(None).into_iter().map(|lock| lock.info.item.to_string()).collect();
    assert_eq!(held, ["a", "d", "e", "f", "held"]);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_embedders_lock_runs_while_its_transaction_is_busy() {
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    let holder = service.begin(TxnOptions::default()).expect("it serves");
    holder.lock(spec("held")).await.expect("free");
    let txn = service.begin(TxnOptions::default()).expect("it serves");
    let began = Instant::now();
    let (first, second) = tokio::join!(txn.lock(within(3 * SECOND, "held")), async {
        let outcome = txn.lock(within(SECOND, "free")).await;
        (outcome, began.elapsed())
    });
    assert_eq!(first.expect_err("held").kind(), ErrorKind::Timeout);
    let (outcome, waited) = second;
    assert_eq!(outcome.expect_err("its turn did not come").kind(), ErrorKind::Timeout);
    about(waited, SECOND);
}

/// The next notice to a session whose call waits.
async fn notice(notices: &mut WaitNotices) -> Waiting {
    let mut waiting = notices.next().await;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    waiting.remove(0)
}

#[tokio::test(start_paused = true)]
async fn the_client_of_a_call_that_waits_for_a_table_learns_of_its_last_owner_and_then_of_the_lock()
{
    let allocator = allocator().await;
    let (service, dead) = restarted(&allocator).await;
    let session = service.open_session(None, "test").expect("a session");
    let mut notices = session.waits();
    let began = Instant::now();
    let first = session.submit(op(1, 1), Operation::Lock(spec("k")));
    let waiting = notice(&mut notices).await;
    assert_eq!((waiting.number.get(), waiting.sequence.get()), (1, 1));
    let last_owner = Some((dead, name("node")));
    assert_eq!(waiting.waits_for, WaitsFor::Table { last_owner });
    assert!(began.elapsed() < SECOND, "as soon as it is known: {:?}", began.elapsed());
    let second = session.submit(op(2, 1), Operation::Lock(spec("k")));
    assert_eq!(notice(&mut notices).await.number.get(), 2);
    let renewing = async {
        loop {
            sleep(SECOND).await;
            session.renew().expect("it is there");
        }
    };
    let waits = async {
        let OpResponse::Locked(granted) = first.await.expect("the lease runs out") else {
            panic!("no lock")
        };
        (granted.txn, notice(&mut notices).await)
    };
    let (holder, waiting) = tokio::select! {
        seen = waits => seen,
        () = renewing => unreachable!("it has no end"),
    };
    assert_eq!((waiting.number.get(), waiting.sequence.get()), (2, 1));
    let WaitsFor::Txn(blocker) = waiting.waits_for else { panic!("{waiting:?}") };
    assert_eq!((blocker.txn, blocker.client.as_str(), blocker.granted), (holder, "test", true));
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn the_client_of_a_call_that_waits_for_a_token_learns_it_and_one_that_does_not_wait_does_not()
{
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    let session = service.open_session(None, "test").expect("a session");
    let mut notices = session.waits();
    allocator.hooks.no_tokens.store(true, Ordering::Relaxed);
    let call = session.submit(op(1, 1), Operation::Lock(within(SECOND, "k")));
    assert_eq!(notice(&mut notices).await.waits_for, WaitsFor::Token);
    assert_eq!(call.await.expect_err("none comes").kind(), ErrorKind::Timeout);
    session
        .submit(op(1, 2), Operation::Unlock { table: table(), items: Vec::new(), commit_ts: None })
        .await
        .expect("done");
    tokio::select! {
        more = notices.next() => panic!("nobody waits: {more:?}"),
        () = sleep(SECOND) => {}
    }
}
