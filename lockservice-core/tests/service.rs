//! What users of the service can see: transactions, sessions, and what happens to them when
//! promises lapse.
//!
//! Tokio's paused clock drives everything, the service's clock included: no test waits for real
//! time.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

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
use lockservice_core::table::WaitPolicy;
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
        Ok(OpResponse::Locked(granted)) => granted,
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

#[tokio::test(start_paused = true)]
async fn the_second_locker_comes_in_when_the_first_ends_and_with_a_larger_token() {
    let (service, _allocator) = service().await;
    let first = service.begin(TxnOptions::default()).expect("begin");
    let second = service.begin(TxnOptions::default()).expect("begin");
    let a = first.lock(spec("k")).await.expect("free");
    assert_eq!(second.lock(nowait("k")).await.expect_err("held").kind(), ErrorKind::Conflict);
    let mut waiting = std::pin::pin!(second.lock(spec("k")));
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("granted while held"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(service.waits(Some(&table())).len(), 1);
    first.end(None);
    let b = waiting.await.expect("free again");
    assert!(b.grant.token > a.grant.token);
    assert_eq!(service.locks(None).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_deadline_and_leaves_no_claim() {
    let (service, _allocator) = service().await;
    let holder = service.begin(TxnOptions::default()).expect("begin");
    holder.lock(spec("k")).await.expect("free");
    let waiter = service.begin(TxnOptions::default()).expect("begin");
    let limited = LockSpec { timeout: Some(2 * SECOND), ..spec("k") };
    assert_eq!(waiter.lock(limited).await.expect_err("held").kind(), ErrorKind::Timeout);
    assert!(service.waits(None).is_empty());
    holder.end(None);
    waiter.lock(nowait("k")).await.expect("free, and nobody else waits");
}

#[tokio::test(start_paused = true)]
async fn concurrent_first_locks_of_one_table_share_its_bind() {
    let (service, _allocator) = service().await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..20 {
        let service = service.clone();
        tasks.spawn(async move {
            let txn = service.begin(TxnOptions::default()).expect("begin");
            txn.lock(spec(&format!("k{i}"))).await.expect("free").grant.bind.version
        });
    }
    let versions: std::collections::HashSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(versions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_operation_takes_effect_once_however_often_it_is_sent() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let first = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let again = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    assert_eq!(first.grant, again.grant);
    assert!(again.grant.newly_locked, "a replay is the first answer, not a re-entry");
    done(session.submit(op(1, 2), Operation::End { commit_ts: None }).await);
    done(session.submit(op(1, 2), Operation::End { commit_ts: None }).await);
    let late = session.submit(op(1, 3), Operation::Lock(spec("k"))).await.expect_err("ended");
    assert_eq!(late.kind(), ErrorKind::TxnNotFound);
    assert!(service.locks(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_release_says_how_much_went() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let rows = |names: &[&str]| names.iter().map(|name| row(name)).collect::<Vec<_>>();
    locked(
        session
            .submit(op(1, 1), Operation::Lock(LockSpec::new(table(), rows(&["a", "b", "c"]))))
            .await,
    );
    let items = rows(&["a", "z"]);
    let unlock = Operation::Unlock { table: table(), items, commit_ts: None };
    assert_eq!(released(session.submit(op(1, 2), unlock).await), 1);
    let end = Operation::End { commit_ts: None };
    assert_eq!(released(session.submit(op(1, 3), end).await), 2);
}

#[tokio::test(start_paused = true)]
async fn a_label_that_is_too_long_is_refused() {
    let (service, _allocator) = service().await;
    let label = |bytes| TxnOptions { validates: false, label: "x".repeat(bytes) };
    assert!(service.begin(label(255)).is_ok());
    assert_eq!(service.begin(label(256)).expect_err("too long").kind(), ErrorKind::InvalidArgument);
    let session = open(&service);
    let op = TxnOp { options: label(256), ..op(1, 1) };
    let refused = session.submit(op, Operation::Lock(spec("k"))).await.expect_err("too long");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_ceiling_shortened_names_it() {
    let allocator = allocator().await;
    let settings = ServiceSettings { wait_ms_max: 2_000, ..ServiceSettings::default() };
    let service = LockService::start(ServiceParts { settings, ..parts(&allocator) })
        .await
        .expect("it starts");
    let (a, b) = (open(&service), open(&service));
    locked(a.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    for (number, timeout, named) in
        [(1, None, true), (2, Some(3_600 * SECOND), true), (3, Some(SECOND), false)]
    {
        let spec = LockSpec { timeout, ..spec("k") };
        let error = b.submit(op(number, 1), Operation::Lock(spec)).await.expect_err("held");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(error.to_string().contains("wait_ms_max"), named, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_may_leave_all_numbers_to_the_service() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let (first, id) = session.begin(&TxnOptions::default()).expect("begin");
    let (second, _) = session.begin(&TxnOptions::default()).expect("begin");
    // The later one is used first, and more than the kept answers of a numbered transaction would
    // allow.
    for n in 0..1_000 {
        locked(session.submit(op(second.get(), 0), Operation::Lock(spec(&format!("k{n}")))).await);
    }
    assert_eq!(
        locked(session.submit(op(first.get(), 0), Operation::Lock(spec("j"))).await).txn,
        id
    );
    let waits = session.submit(op(first.get(), 0), Operation::Lock(spec("k1")));
    let sequence = waits.sequence().expect("it waits");
    session.cancel(first, sequence);
    assert_eq!(waits.await.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    let end = Operation::End { commit_ts: None };
    assert_eq!(released(session.submit(op(second.get(), 0), end.clone()).await), 1_000);
    // One side numbers.
    let mixed = session
        .submit(op(first.get(), 7), Operation::Lock(spec("k")))
        .await
        .expect_err("it numbers nothing itself");
    assert_eq!(mixed.kind(), ErrorKind::InvalidArgument);
    let mixed = session
        .submit(op(9, 1), Operation::Lock(spec("k")))
        .await
        .expect_err("its transactions are begun");
    assert_eq!(mixed.kind(), ErrorKind::InvalidArgument);
    let other = open(&service);
    locked(other.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    assert_eq!(
        other.begin(&TxnOptions::default()).expect_err("it numbers itself").kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(released(session.submit(op(first.get(), 0), end).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_replay_of_a_waiting_call_joins_it() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let waiting = session.submit(op(2, 1), Operation::Lock(spec("k")));
    let joined = session.submit(op(2, 1), Operation::Lock(spec("k")));
    assert_eq!(service.waits(None).len(), 1);
    done(
        session.submit(op(1, 2), Operation::End { commit_ts: Some(CommitTimestamp::new(7)) }).await,
    );
    let (a, b) = tokio::join!(waiting, joined);
    let (a, b) = (locked(a), locked(b));
    assert_eq!(a, b);
    assert_eq!(a.grant.prev_commit_ts, Some(CommitTimestamp::new(7)));
}

#[tokio::test(start_paused = true)]
async fn operations_take_effect_in_the_order_of_their_numbers() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("a"))).await);
    let third = session.submit(op(1, 3), Operation::End { commit_ts: None });
    let second = session.submit(
        op(1, 2),
        Operation::Unlock { table: table(), items: vec![row("a")], commit_ts: None },
    );
    done(second.await);
    done(third.await);
    assert!(service.locks(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_a_wait_or_rolls_a_grant_back_and_nothing_else() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("a"))).await);
    locked(session.submit(op(2, 1), Operation::Lock(spec("b"))).await);
    // A wait.
    let waiting = session.submit(op(2, 2), Operation::Lock(spec("a")));
    done(session.submit(op(2, 3), Operation::Cancel { sequence: Sequence::new(2) }).await);
    assert_eq!(waiting.await.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert!(service.waits(None).is_empty());
    // A grant.
    locked(session.submit(op(2, 4), Operation::Lock(spec("c"))).await);
    done(session.submit(op(2, 5), Operation::Cancel { sequence: Sequence::new(4) }).await);
    let held: Vec<String> =
        service.locks(None).iter().map(|lock| lock.info.item.to_string()).collect();
    assert_eq!(held, ["a", "b"]);
    // One that arrives after its cancel.
    let cancelling = session.submit(op(2, 7), Operation::Cancel { sequence: Sequence::new(6) });
    let late = session.submit(op(2, 6), Operation::Lock(spec("d")));
    assert_eq!(late.await.expect_err("closed before it came").kind(), ErrorKind::Cancelled);
    done(cancelling.await);
    assert_eq!(service.locks(None).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn ending_a_transaction_ends_its_wait() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("a"))).await);
    let waiting = session.submit(op(2, 1), Operation::Lock(spec("a")));
    done(session.submit(op(2, 2), Operation::End { commit_ts: None }).await);
    assert_eq!(waiting.await.expect_err("ended").kind(), ErrorKind::Cancelled);
    assert!(service.waits(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_session_keeps_its_locks_for_its_ttl_and_not_longer() {
    let (service, _allocator) = service().await;
    let session = service.open_session(Some(2 * SECOND), "silent").expect("a session");
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let start = tokio::time::Instant::now();
    let next = service.begin(TxnOptions::default()).expect("begin");
    next.lock(spec("k")).await.expect("given away in the end");
    let waited = start.elapsed();
    assert!(
        waited >= 2 * SECOND,
        "given away after {waited:?}, before the client can have noticed"
    );
    assert!(waited < 3 * SECOND, "kept for {waited:?}");
    assert_eq!(session.lost().await.kind(), ErrorKind::SessionLost);
    assert_eq!(session.renew().expect_err("lapsed").kind(), ErrorKind::SessionLost);
    assert_eq!(service.session(session.id()).expect_err("gone").kind(), ErrorKind::SessionLost);
}

#[tokio::test(start_paused = true)]
async fn a_renewed_session_keeps_its_locks_and_its_promise_never_exceeds_what_it_rests_on() {
    let (service, _allocator) = service().await;
    let session = service.open_session(Some(20 * SECOND), "busy").expect("a session");
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    for _ in 0..30 {
        tokio::time::sleep(SECOND).await;
        let promise = session.renew().expect("alive");
        assert!(promise.valid_for <= 5 * SECOND, "{promise:?} exceeds the lease");
    }
    assert_eq!(service.locks(None).len(), 1);
    let short = service.open_session(Some(SECOND), "short").expect("a session");
    assert!(short.renew().expect("alive").valid_for <= SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_grant_promises_no_more_than_is_left_of_its_session() {
    let (service, _allocator) = service().await;
    let session = service.open_session(Some(2 * SECOND), "late").expect("a session");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let granted = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    assert!(granted.promise.valid_for <= Duration::from_millis(500), "{:?}", granted.promise);
}

#[tokio::test(start_paused = true)]
async fn a_ttl_out_of_bounds_is_refused() {
    let (service, _allocator) = service().await;
    for ttl in [Duration::ZERO, Duration::from_millis(999), 3_601 * SECOND] {
        let refused = service.open_session(Some(ttl), "x").expect_err("P1");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_sessions_validating_transaction_cannot_commit_any_more() {
    let (service, allocator) = service().await;
    let session = service.open_session(Some(SECOND), "dies").expect("a session");
    let granted = locked(session.submit(validating(1, 1), Operation::Lock(spec("k"))).await);
    allocator.begin_commit(&commit(&granted)).await.expect("it may commit");
    allocator.finish_commit(granted.txn, CommitAttempt::new(1)).await.expect("finished");
    session.lost().await;
    let next = service.begin(TxnOptions::default()).expect("begin");
    let after = next.lock(spec("k")).await.expect("released once it was fenced");
    assert!(after.grant.token > granted.grant.token);
    assert!(after.grant.history_unknown, "it may have committed at a timestamp that nobody told");
}

#[tokio::test(start_paused = true)]
async fn a_commit_in_flight_keeps_the_locks_of_a_lost_session() {
    let (service, allocator) = service().await;
    let session = service.open_session(Some(SECOND), "dies").expect("a session");
    let granted = locked(session.submit(validating(1, 1), Operation::Lock(spec("k"))).await);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let window = CommitWindow { least: SECOND, most: 4 * SECOND };
    let request = BeginCommit { window, ..commit(&granted) };
    let admitted = allocator.begin_commit(&request).await.expect("the session is alive");
    let start = tokio::time::Instant::now();
    let next = service.begin(TxnOptions::default()).expect("begin");
    next.lock(spec("k")).await.expect("released in the end");
    assert!(
        start.elapsed() >= admitted.commit_before,
        "given away while its write could still land"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_transaction_that_cannot_be_fenced_yet_does_not_keep_the_locks_of_the_others() {
    let allocator =
        allocator_with(AllocatorSettings { commits_max: 1, ..AllocatorSettings::default() }).await;
    let service = LockService::start(parts(&allocator)).await.expect("the service starts");
    let session = open(&service);
    let stuck = locked(session.submit(validating(1, 1), Operation::Lock(spec("stuck"))).await);
    locked(session.submit(validating(2, 1), Operation::Lock(spec("free"))).await);
    // Commits in flight fill the stripe of the first one up, and leave that of the second one
    // alone.
    let stripe = |txn: TxnId| (txn.counter >> 1) % 64;
    let options = TxnOptions { validates: true, label: String::new() };
    let others: Vec<_> =
        (0..64 * 64).map(|_| service.begin(options.clone()).expect("begin")).collect();
    for txn in others.iter().filter(|txn| stripe(txn.id()) == stripe(stuck.txn)) {
        let window = CommitWindow { least: Duration::from_millis(1), most: SECOND };
        let request = BeginCommit {
            txn: txn.id(),
            binds: Vec::new(),
            attempt: CommitAttempt::new(1),
            window,
        };
        allocator.begin_commit(&request).await.expect("room");
    }
    session.close().await;
    let next = service.begin(TxnOptions::default()).expect("begin");
    next.lock(spec("free")).await.expect("it was answered");
    assert_eq!(next.lock(nowait("stuck")).await.expect_err("held").kind(), ErrorKind::Conflict);
    next.lock(spec("stuck")).await.expect("once there is room");
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_will_not_validate_is_refused_at_its_commit() {
    let (service, allocator) = service().await;
    let txn = service.begin(TxnOptions::default()).expect("begin");
    let granted = txn.lock(spec("k")).await.expect("free");
    let refused = allocator.begin_commit(&commit(&granted)).await.expect_err("T1");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
}

#[tokio::test(start_paused = true)]
async fn history_is_unknown_to_transactions_older_than_the_bind() {
    let (service, _allocator) = service().await;
    let old = service.begin(TxnOptions::default()).expect("begin");
    assert!(old.lock(spec("k")).await.expect("free").grant.history_unknown);
    old.end(Some(CommitTimestamp::new(3)));
    tokio::time::sleep(SECOND).await;
    let new = service.begin(TxnOptions::default()).expect("begin");
    let granted = new.lock(spec("k")).await.expect("free");
    assert!(!granted.grant.history_unknown);
    assert_eq!(granted.grant.table_commit_ts, Some(CommitTimestamp::new(3)));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_older_than_a_forced_release_learns_of_it_however_late_its_session_begins() {
    let (service, _allocator) = service().await;
    let dies = service.open_session(Some(SECOND), "dies").expect("a session");
    // Another holder's release may tell nothing: that there was one is told to everybody whose
    // snapshot may be older.
    locked(dies.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    dies.lost().await;
    let holder = open(&service);
    locked(holder.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    done(
        holder.submit(op(1, 2), Operation::End { commit_ts: Some(CommitTimestamp::new(9)) }).await,
    );
    tokio::time::sleep(10 * SECOND).await;
    let ages = [
        (None, true),
        (Some(11 * SECOND), true),
        (Some(10 * SECOND), true),
        (Some(9 * SECOND), false),
    ];
    for (age, unknown) in ages {
        let session = open(&service);
        let spec = LockSpec { snapshot_age: age, ..spec("k") };
        let granted = locked(session.submit(op(1, 1), Operation::Lock(spec)).await);
        assert_eq!(granted.grant.history_unknown, unknown, "a snapshot of age {age:?}");
        assert_eq!(granted.history_known, Some(10 * SECOND));
        assert_eq!(granted.grant.table_commit_ts, Some(CommitTimestamp::new(9)));
        done(session.submit(op(1, 2), Operation::End { commit_ts: None }).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_ages_while_its_call_waits_for_its_turn_and_for_the_lock() {
    let (service, _allocator) = service().await;
    let (holder, session) = (open(&service), open(&service));
    locked(holder.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    tokio::time::sleep(SECOND).await;
    let dies = service.open_session(Some(SECOND), "dies").expect("a session");
    locked(dies.submit(op(1, 1), Operation::Lock(spec("l"))).await);
    let fresh =
        |name| Operation::Lock(LockSpec { snapshot_age: Some(Duration::ZERO), ..spec(name) });
    let first = session.submit(op(1, 1), fresh("k"));
    let second = session.submit(op(1, 2), fresh("m"));
    dies.lost().await;
    tokio::time::sleep(SECOND).await;
    done(holder.submit(op(1, 2), Operation::End { commit_ts: None }).await);
    for granted in [locked(first.await), locked(second.await)] {
        assert!(
            granted.grant.history_unknown,
            "the snapshot was begun before the other's locks were taken away"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_waits_waits_for_the_sessions_and_resigns() {
    let (service, allocator) = service().await;
    let session = open(&service);
    let granted = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let waiting = session.submit(op(2, 1), Operation::Lock(spec("k")));
    let (stopped, ()) = tokio::join!(service.shutdown(8 * SECOND), async {
        session.stopping().await;
        assert_eq!(waiting.await.expect_err("stopping").kind(), ErrorKind::ShuttingDown);
        session.renew().expect("a stopping service still renews for those who put their work away");
        session.close().await;
    });
    assert!(stopped.expect("stopped").resigned);
    assert_eq!(
        service.begin(TxnOptions::default()).expect_err("sealed").kind(),
        ErrorKind::ShuttingDown
    );

    // After a clean stop the table is granted anew at once.
    let next = LockService::start(parts(&allocator)).await.expect("the name is free");
    let txn = next.begin(TxnOptions::default()).expect("begin");
    let again = txn.lock(nowait("k")).await.expect("no wait");
    assert!(again.grant.bind.version > granted.grant.bind.version);
    assert!(again.grant.token > granted.grant.token);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_a_session_does_not_confirm_does_not_resign() {
    let (service, allocator) = service().await;
    let session = open(&service);
    let granted = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let stopped = service.shutdown(SECOND).await.expect("stopped");
    assert!(!stopped.resigned);
    assert_eq!(session.lost().await.kind(), ErrorKind::ShuttingDown);

    // The next incarnation of this process waits the old lease out before it grants the table (B3),
    // and can grant others.
    let replaces = Some((service.id(), service.nonce()));
    let next =
        LockService::start(ServiceParts { replaces, ..parts(&allocator) }).await.expect("replaced");
    let txn = next.begin(TxnOptions::default()).expect("begin");
    let refused = txn.lock(nowait("k")).await.expect_err("its last owner may be at work");
    assert_eq!(refused.kind(), ErrorKind::Reassigning);
    assert!(refused.retry_after().is_some_and(|after| after > SECOND), "{refused}");
    let other = LockSpec { table: TableRef::new("g", "other").expect("names"), ..nowait("k") };
    txn.lock(other).await.expect("a new table does not wait");
    let reassigned = txn.lock(spec("k")).await.expect("after the lease");
    assert!(reassigned.grant.token > granted.grant.token);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_cannot_renew_seals_itself_before_its_tables_are_given_away() {
    let (service, allocator) = service().await;
    let session = service.open_session(Some(20 * SECOND), "x").expect("a session");
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let waiting = session.submit(op(2, 1), Operation::Lock(spec("k")));
    // Another process takes the name over, as after a restart: the next renewal is refused.
    let replaces = Some((service.id(), service.nonce()));
    let next =
        LockService::start(ServiceParts { replaces, ..parts(&allocator) }).await.expect("replaced");
    assert_eq!(service.sealed().await.kind(), ErrorKind::LeaseLost);
    assert_eq!(waiting.await.expect_err("sealed").kind(), ErrorKind::LeaseLost);
    assert_eq!(session.lost().await.kind(), ErrorKind::LeaseLost);
    assert_eq!(
        service.begin(TxnOptions::default()).expect_err("sealed").kind(),
        ErrorKind::LeaseLost
    );
    let txn = next.begin(TxnOptions::default()).expect("begin");
    txn.lock(spec("k")).await.expect("granted anew");
}

#[tokio::test(start_paused = true)]
async fn a_deadlock_names_its_whole_cycle_and_one_call_fails() {
    let (service, _allocator) = service().await;
    let a = service.begin(TxnOptions::default()).expect("begin");
    let b = service.begin(TxnOptions::default()).expect("begin");
    a.lock(spec("a")).await.expect("free");
    b.lock(LockSpec { mode: LockMode::Shared, ..spec("b") }).await.expect("free");
    let (a_id, b_id) = (a.id(), b.id());
    // The victim lets go, so that the other comes in.
    let (first, second) = tokio::join!(
        async {
            a.lock(spec("b")).await.inspect_err(|_| {
                a.unlock(&table(), &[row("a")], None);
            })
        },
        async {
            b.lock(spec("a")).await.inspect_err(|_| {
                b.unlock(&table(), &[row("b")], None);
            })
        },
    );
    let failed: Vec<_> = [first.err(), second.err()].into_iter().flatten().collect();
    assert_eq!(failed.len(), 1, "exactly one is told: {failed:?}");
    let cycle = failed[0].deadlock().expect("the cycle");
    assert_eq!(cycle.len(), 2);
    assert!(cycle.iter().any(|edge| edge.waiter == a_id && edge.holder == b_id));
    assert!(cycle.iter().any(|edge| edge.waiter == b_id && edge.holder == a_id));
}

/// Sessions of this service keep at most four operations of a transaction.
async fn narrow_service() -> (LockService, Arc<LocalAllocator>) {
    let allocator = allocator().await;
    let settings = ServiceSettings { ops_per_txn_max: 4, ..ServiceSettings::default() };
    (
        LockService::start(ServiceParts { settings, ..parts(&allocator) })
            .await
            .expect("the service starts"),
        allocator,
    )
}

/// What an operation that must not hang is answered.
async fn soon(response: impl Future<Output = Result<OpResponse>>) -> Result<OpResponse> {
    tokio::time::timeout(SECOND, response)
        .await
        .expect("it is answered, not left to wait for what never comes")
}

#[tokio::test(start_paused = true)]
async fn a_refused_operation_leaves_no_hole_in_the_order() {
    let (service, _allocator) = narrow_service().await;
    let session = open(&service);
    for sequence in 1..=4 {
        locked(session.submit(op(1, sequence), Operation::Lock(spec(&sequence.to_string()))).await);
    }
    let refused = soon(session.submit(op(1, 5), Operation::Lock(spec("5"))))
        .await
        .expect_err("nothing acknowledged");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    let acked = TxnOp { acked: Sequence::new(5), ..op(1, 6) };
    locked(soon(session.submit(acked, Operation::Lock(spec("6")))).await);
    done(soon(session.submit(op(1, 7), Operation::Cancel { sequence: Sequence::new(6) })).await);
    done(soon(session.submit(op(1, 8), Operation::End { commit_ts: None })).await);
    assert!(service.locks(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_transaction_ends_however_much_of_it_is_unacknowledged_or_never_arrived() {
    let (service, _allocator) = narrow_service().await;
    let session = open(&service);
    for sequence in 1..=20 {
        let _ = soon(session.submit(op(1, sequence), Operation::Lock(spec(&sequence.to_string()))))
            .await;
    }
    let acked = TxnOp { acked: Sequence::new(20), ..op(1, 21) };
    let refused = soon(session.submit(acked, Operation::Lock(spec("k"))))
        .await
        .expect_err("only its end is left");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    done(soon(session.submit(op(1, 30), Operation::End { commit_ts: None })).await);
    assert!(service.locks(None).is_empty());
    let late = soon(session.submit(op(1, 25), Operation::Lock(spec("k"))))
        .await
        .expect_err("it has ended");
    assert_eq!(late.kind(), ErrorKind::TxnNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_could_not_begin_has_ended() {
    let allocator = allocator().await;
    let settings = ServiceSettings { txns_per_session_max: 1, ..ServiceSettings::default() };
    let service = LockService::start(ServiceParts { settings, ..parts(&allocator) })
        .await
        .expect("the service starts");
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("a"))).await);
    let refused =
        session.submit(op(2, 1), Operation::Lock(spec("b"))).await.expect_err("one too many");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    let again =
        session.submit(op(2, 2), Operation::Lock(spec("b"))).await.expect_err("it never began");
    assert_eq!(again.kind(), ErrorKind::TxnNotFound);
    done(session.submit(op(2, 3), Operation::End { commit_ts: None }).await);
}

#[tokio::test(start_paused = true)]
async fn a_replayed_grant_promises_no_more_than_is_left() {
    let (service, _allocator) = service().await;
    let session = service.open_session(Some(4 * SECOND), "replays").expect("a session");
    let first = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    tokio::time::sleep(3 * SECOND).await;
    let again = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    assert_eq!(again.grant, first.grant);
    assert!(
        again.promise.valid_for <= SECOND,
        "{:?} counts from the replay, and the session ends before",
        again.promise
    );
}

#[tokio::test(start_paused = true)]
async fn the_locks_that_a_later_call_relies_on_are_not_rolled_back_with_an_earlier_one() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let both = LockSpec::new(table(), vec![row("a"), row("b")]);
    locked(session.submit(op(1, 1), Operation::Lock(both)).await);
    let again = locked(session.submit(op(1, 2), Operation::Lock(spec("a"))).await);
    assert!(!again.grant.newly_locked);
    // The first call's caller had gone before it could take the answer.
    done(session.submit(op(1, 3), Operation::Cancel { sequence: Sequence::new(1) }).await);
    let other = service.begin(TxnOptions::default()).expect("begin");
    assert_eq!(
        other.lock(nowait("a")).await.expect_err("held by the second call").kind(),
        ErrorKind::Conflict
    );
    other.lock(nowait("b")).await.expect("taken back");
}

/// A session whose transaction 1 locked `a` and `b` by its call 1, and whose calls 2 and 3 were
/// told that they hold `a`.
async fn called_again(service: &LockService) -> Session {
    let session = open(service);
    let both = LockSpec::new(table(), vec![row("a"), row("b")]);
    for (sequence, spec) in [(1, both), (2, spec("a")), (3, spec("a"))] {
        locked(session.submit(op(1, sequence), Operation::Lock(spec)).await);
    }
    session
}

fn held(service: &LockService) -> Vec<LockItem> {
    service.locks(None).into_iter().map(|lock| lock.info.item).collect()
}

#[tokio::test(start_paused = true)]
async fn the_locks_kept_for_later_calls_go_when_the_last_of_them_is_rolled_back() {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        // Each acknowledged before the next one, or none of them.
        for acks in [false, true] {
            let (service, _allocator) = service().await;
            let session = called_again(&service).await;
            let mut acked = 0;
            for (sequence, cancelled) in (4..).zip(order) {
                let cancelling = TxnOp { acked: Sequence::new(acked), ..op(1, sequence) };
                done(
                    session
                        .submit(
                            cancelling,
                            Operation::Cancel { sequence: Sequence::new(cancelled) },
                        )
                        .await,
                );
                let gone = |n| order[..sequence as usize - 3].contains(&n);
                let expected = match (gone(1), gone(2) && gone(3)) {
                    (false, _) => vec![row("a"), row("b")],
                    (true, false) => vec![row("a")],
                    (true, true) => vec![],
                };
                assert_eq!(held(&service), expected, "{cancelled} of {order:?}");
                acked = (1..).take_while(|n| acks && gone(*n)).last().unwrap_or(0);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_locks_that_an_acknowledged_call_relies_on_are_not_rolled_back_with_a_later_one() {
    let (service, _allocator) = service().await;
    let session = called_again(&service).await;
    done(session.submit(op(1, 4), Operation::Cancel { sequence: Sequence::new(1) }).await);
    let cancelling = TxnOp { acked: Sequence::new(2), ..op(1, 5) };
    done(session.submit(cancelling, Operation::Cancel { sequence: Sequence::new(3) }).await);
    assert_eq!(held(&service), [row("a")], "the second call has it");
    done(session.submit(op(1, 6), Operation::End { commit_ts: None }).await);
    assert_eq!(held(&service), []);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_grant_and_its_upgrade_once_both_are_rolled_back() {
    for order in [[2, 3], [3, 2]] {
        let (service, _allocator) = service().await;
        let session = open(&service);
        let shared = LockSpec { mode: LockMode::Shared, ..spec("a") };
        let both = LockSpec { items: vec![row("a"), row("b")], ..spec("a") };
        for (sequence, spec) in [(1, spec("b")), (2, shared), (3, both)] {
            locked(session.submit(op(1, sequence), Operation::Lock(spec)).await);
        }
        for (sequence, cancelled) in [(4, order[0]), (5, order[1])] {
            done(
                session
                    .submit(
                        op(1, sequence),
                        Operation::Cancel { sequence: Sequence::new(cancelled) },
                    )
                    .await,
            );
        }
        assert_eq!(held(&service), [row("b")], "cancelled in the order {order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_sent_over_and_over_while_it_waits_takes_no_memory() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let waiting: Vec<_> =
        (0..1_000).map(|_| session.submit(op(2, 1), Operation::Lock(spec("k")))).collect();
    let refused = waiting.into_iter().last().expect("many").await.expect_err("too many of one");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    // Those whose connection has gone do not count.
    let again = session.submit(op(2, 1), Operation::Lock(spec("k")));
    done(session.submit(op(1, 2), Operation::End { commit_ts: None }).await);
    locked(again.await);
}

#[tokio::test(start_paused = true)]
async fn a_sealed_service_does_not_go_on_asking_an_allocator_that_fails() {
    let (service, allocator) = service().await;
    let session = open(&service);
    locked(session.submit(validating(1, 1), Operation::Lock(spec("k"))).await);
    allocator.shutdown(false, Duration::ZERO).await.expect("stopped");
    session.close().await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(service.locks(None).len(), 1, "it is not known to be unable to commit");
    assert!(!service.shutdown(SECOND).await.expect("stopped").resigned);
    tokio::time::sleep(SECOND).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_repeated_has_a_whole_lease() {
    let allocator = allocator().await;
    let request =
        Registration { node: node(), nonce: Nonce::new(7), address: String::new(), replaces: None };
    let first = allocator.register(&request).await.expect("a fresh name");
    tokio::time::sleep(4 * SECOND).await;
    // The first answer was lost. Whoever asks again counts its lease from now.
    let again = allocator.register(&request).await.expect("the same process");
    assert_eq!(again.service, first.service);
    tokio::time::sleep(4 * SECOND).await;
    allocator
        .keepalive(again.service, request.nonce, Progress::default())
        .await
        .expect("well within what the second answer promised");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cancelled_before_its_turn_locks_nothing() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let first = session.submit(op(2, 1), Operation::Lock(spec("k")));
    let second = session.submit(op(2, 2), Operation::Lock(spec("x")));
    session.cancel(TxnNumber::new(2), Sequence::new(2));
    done(session.submit(op(1, 2), Operation::End { commit_ts: None }).await);
    locked(first.await);
    assert_eq!(second.await.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert_eq!(service.locks(None).len(), 1);
}
