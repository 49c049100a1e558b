//! Lapsed promises, and the fate of their locks (P1, C4, C5).

use super::*;

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
    let stripe = |txn: TxnId| txn.number().get() % 64;
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
    old.end(Some(Commit::at(CommitTimestamp::new(3))));
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
    // Another holder's release may carry no timestamp: everyone whose snapshot may be older learns
    // that there was one.
    locked(dies.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    dies.lost().await;
    let holder = open(&service);
    locked(holder.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    done(
        holder
            .submit(op(1, 2), Operation::End { commit: Some(Commit::at(CommitTimestamp::new(9))) })
            .await,
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
        done(session.submit(op(1, 2), Operation::End { commit: None }).await);
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
    done(holder.submit(op(1, 2), Operation::End { commit: None }).await);
    for granted in [locked(first.await), locked(second.await)] {
        assert!(
            granted.grant.history_unknown,
            "the snapshot was begun before the other's locks were taken away"
        );
    }
}
