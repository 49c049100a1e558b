//! The start, the stop and the seal of a service (B1, B2).

use super::*;

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
    assert!(stopped.resigned);
    assert_eq!(
        service.begin(TxnOptions::default()).expect_err("sealed").kind(),
        ErrorKind::ShuttingDown
    );

    // After a clean stop the table is granted again at once.
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
    let stopped = service.shutdown(SECOND).await;
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
    txn.lock(spec("k")).await.expect("reassigned");
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
    assert!(!service.shutdown(SECOND).await.resigned);
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
    // The first response was lost. A repetition counts its lease from now.
    let again = allocator.register(&request).await.expect("the same process");
    assert_eq!(again.service, first.service);
    tokio::time::sleep(4 * SECOND).await;
    allocator
        .keepalive(again.service, request.nonce, Progress::default())
        .await
        .expect("well within what the second answer promised");
}
