//! Waits over a restart of the service (P6).

use lockservice_core::SessionId;

use super::reclaim::{Holder, Node, hold, in_table, the_lease_has_run_out};
use super::*;

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_the_order_in_which_they_came_before_the_restart() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holder = hold(&running.0, "t", &["a"]).await;
    let ids: Vec<SessionId> = (0..3).map(|_| open(&running.0).id()).collect();
    node.stop(running).await;
    let (service, _allocator) = node.start().await;
    let newcomer = open(&service);
    let mut order = vec![tokio::spawn(newcomer.submit(op(1, 1), Operation::Lock(spec("a"))))];
    // They come back in another order than that in which they came.
    let sessions: Vec<Session> = ids
        .iter()
        .map(|id| Holder { id: *id, claim: holder.claim.clone() }.come_back(&service, from))
        .collect();
    for (session, waited) in sessions.iter().zip([5, 20, 10]) {
        session.claims_done(TxnNumber::default()).expect("a promise");
        let waited = Duration::from_secs(waited);
        let spec = LockSpec { waited, ..spec("a") };
        order.push(tokio::spawn(session.submit(op(1, 1), Operation::Lock(spec))));
    }
    let session = holder.claim(&service, from).await;
    session.close().await;
    let mut tokens = Vec::new();
    for (at, waits) in [(2, 1), (3, 2), (1, 0)] {
        let granted = locked(order.remove(at.min(order.len() - 1)).await.expect("no panic"));
        tokens.push(granted.grant.token);
        sessions[waits].close().await;
    }
    assert!(tokens.is_sorted(), "{tokens:?}");
    let last = locked(order.remove(0).await.expect("no panic"));
    assert!(last.grant.token > tokens[2], "the newcomer was last");
}

/// A session with a call that waits for row `a` of table `t`.
async fn wait(service: &LockService) -> SessionId {
    let (session, before) = (open(service), service.waits(None).len());
    let waiting = tokio::spawn(session.submit(op(1, 1), Operation::Lock(spec("a"))));
    while service.waits(None).len() == before {
        tokio::task::yield_now().await;
    }
    drop(waiting);
    session.id()
}

/// The client of a session is back, and calls again for row `a`.
async fn call_again(
    service: &LockService,
    from: u64,
    session: (SessionId, &Holder),
    waited: Duration,
) -> (Session, tokio::task::JoinHandle<Result<OpResponse>>) {
    let (id, holder) = session;
    let session = Holder { id, claim: holder.claim.clone() }.come_back(service, from);
    session.claims_done(TxnNumber::default()).expect("a promise");
    let before = service.waits(None).len();
    let spec = LockSpec { waited, ..spec("a") };
    let call = tokio::spawn(session.submit(op(1, 1), Operation::Lock(spec)));
    while service.waits(None).len() == before {
        tokio::task::yield_now().await;
    }
    (session, call)
}

#[tokio::test(start_paused = true)]
async fn a_table_waits_a_moment_after_its_last_claim_for_those_who_waited() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holder = hold(&running.0, "t", &["a"]).await;
    wait(&running.0).await;
    node.stop(running).await;
    let (service, _allocator) = node.start().await;
    tokio::time::sleep(2 * SECOND).await;
    holder.claim(&service, from).await;
    let claimed = tokio::time::Instant::now();
    let newcomer = service.begin(TxnOptions::default()).expect("begin");
    newcomer.lock(in_table("t", "free")).await.expect("it is free");
    let waited = claimed.elapsed();
    let moment = Duration::from_millis(30)..Duration::from_millis(45);
    assert!(moment.contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn waiters_that_are_back_late_are_ahead_of_those_who_came_after_the_restart() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holder = hold(&running.0, "t", &["a"]).await;
    let (first, second) = (wait(&running.0).await, wait(&running.0).await);
    node.stop(running).await;
    let (service, _allocator) = node.start().await;
    let held = holder.claim(&service, from).await;
    let newcomer = open(&service);
    let last = tokio::spawn(newcomer.submit(op(1, 1), Operation::Lock(spec("a"))));
    while service.waits(None).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The table serves others, of whom one waits.
    tokio::time::sleep(SECOND).await;
    let waited = [Duration::from_millis(3_500), 4 * SECOND];
    let (second, of_second) = call_again(&service, from, (second, &holder), waited[0]).await;
    let (first, of_first) = call_again(&service, from, (first, &holder), waited[1]).await;
    held.close().await;
    let mut tokens = Vec::new();
    for (call, session) in [(of_first, first), (of_second, second), (last, newcomer)] {
        tokens.push(locked(call.await.expect("no panic")).grant.token);
        session.close().await;
    }
    assert!(tokens.is_sorted(), "{tokens:?}");
}

#[tokio::test(start_paused = true)]
async fn once_the_lease_of_the_last_process_has_run_out_nobody_waited_there() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holder = hold(&running.0, "t", &["a"]).await;
    let waiter = wait(&running.0).await;
    node.stop(running).await;
    let (service, _allocator) = node.start().await;
    let held = holder.claim(&service, from).await;
    the_lease_has_run_out().await;
    held.renew().expect("it lives");
    let newcomer = open(&service);
    let call = tokio::spawn(newcomer.submit(op(1, 1), Operation::Lock(spec("a"))));
    while service.waits(None).is_empty() {
        tokio::task::yield_now().await;
    }
    let waited = Duration::from_secs(60);
    let (_late, _call) = call_again(&service, from, (waiter, &holder), waited).await;
    held.close().await;
    locked(call.await.expect("no panic"));
}
