//! Operations of a session: in order, once, and bounded (T2).

use super::*;

#[tokio::test(start_paused = true)]
async fn an_operation_takes_effect_once_however_often_it_is_sent() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let first = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let again = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    assert_eq!(first.grant, again.grant);
    assert!(again.grant.newly_locked, "a replay is the first answer, not a re-entry");
    done(session.submit(op(1, 2), Operation::End { commit: None }).await);
    done(session.submit(op(1, 2), Operation::End { commit: None }).await);
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
    let unlock = Operation::Unlock { table: table(), items, commit: None };
    assert_eq!(released(session.submit(op(1, 2), unlock).await), 1);
    let end = Operation::End { commit: None };
    assert_eq!(released(session.submit(op(1, 3), end).await), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_may_leave_all_numbers_to_the_service() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let (first, id) = session.begin(&TxnOptions::default()).expect("begin");
    let (second, _) = session.begin(&TxnOptions::default()).expect("begin");
    // The later one is used first, and more than the kept responses of a numbered transaction would
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
    let end = Operation::End { commit: None };
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
        session
            .submit(op(1, 2), Operation::End { commit: Some(Commit::at(CommitTimestamp::new(7))) })
            .await,
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
    let third = session.submit(op(1, 3), Operation::End { commit: None });
    let second = session.submit(
        op(1, 2),
        Operation::Unlock { table: table(), items: vec![row("a")], commit: None },
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
    done(session.submit(op(2, 2), Operation::End { commit: None }).await);
    assert_eq!(waiting.await.expect_err("ended").kind(), ErrorKind::Cancelled);
    assert!(service.waits(None).is_empty());
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

/// The response to an operation that must not hang.
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
    done(soon(session.submit(op(1, 8), Operation::End { commit: None })).await);
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
    done(soon(session.submit(op(1, 30), Operation::End { commit: None })).await);
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
    done(session.submit(op(2, 3), Operation::End { commit: None }).await);
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
    done(session.submit(op(1, 2), Operation::End { commit: None }).await);
    locked(again.await);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cancelled_before_its_turn_locks_nothing() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let first = session.submit(op(2, 1), Operation::Lock(spec("k")));
    let second = session.submit(op(2, 2), Operation::Lock(spec("x")));
    session.cancel(TxnNumber::new(2), Sequence::new(2));
    done(session.submit(op(1, 2), Operation::End { commit: None }).await);
    locked(first.await);
    assert_eq!(second.await.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert_eq!(service.locks(None).len(), 1);
}
