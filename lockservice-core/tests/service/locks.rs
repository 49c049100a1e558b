//! Locks of embedders and clients: order, time, deadlocks.

use super::*;

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
    waiter.lock(nowait("k")).await.expect("free, and no one else waits");
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
