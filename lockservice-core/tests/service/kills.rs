//! Sessions that an operator ends (P5, C4), and the lists that name them.

use lockservice_core::SessionHandle;
use lockservice_core::service::{KillEnd, SessionStatus, TxnStatus};

use super::*;

const REASON: &str = "it hangs";

/// A session of two seconds that holds `k`, and a transaction that waits for it.
async fn held(service: &LockService) -> (Session, tokio::task::JoinHandle<Result<Granted>>) {
    let session = service.open_session(Some(2 * SECOND), "holder").expect("a session");
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let next = service.begin(TxnOptions::default()).expect("begin");
    let waits = tokio::spawn(async move { next.lock(spec("k")).await });
    while service.waits(None).is_empty() {
        tokio::task::yield_now().await;
    }
    (session, waits)
}

#[tokio::test(start_paused = true)]
async fn the_locks_of_a_killed_session_go_to_others_once_its_client_has_given_it_up() {
    let (service, _allocator) = service().await;
    let (session, waits) = held(&service).await;
    let done = {
        let kill = service.kill_session(session.handle(), REASON, false).expect("it is open");
        assert_eq!((&*kill.client, kill.txns), ("holder", 1));
        assert!(kill.kept > 2 * SECOND, "hi of the TTL: {:?}", kill.kept);
        tokio::spawn(kill.done())
    };
    let why = session.lost().await;
    assert_eq!(why.kind(), ErrorKind::Killed);
    assert!(why.to_string().contains(REASON), "{why}");
    for error in [
        session.renew().expect_err("not renewed"),
        session.submit(op(1, 2), Operation::Lock(spec("l"))).await.expect_err("no grant"),
        service.session(session.id()).expect("it can be closed").renew().expect_err("nor resumed"),
    ] {
        assert!(error.to_string().contains(REASON), "{error}");
    }
    tokio::time::sleep(SECOND).await;
    assert!(!waits.is_finished(), "its work may go on (P5)");
    assert!(!done.is_finished());
    let listed = sessions(&service);
    assert!(listed[0].ending.contains(REASON), "{listed:?}");
    session.close().await;
    waits.await.expect("no panic").expect("given up");
    let killed = done.await.expect("no panic").expect("it serves");
    assert_eq!((killed.end, killed.committing), (KillEnd::Confirmed, Vec::new()));
    assert!(sessions(&service).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_locks_of_a_killed_session_whose_client_is_silent_go_to_others_after_its_promise() {
    let (service, _allocator) = service().await;
    let (session, waits) = held(&service).await;
    tokio::time::sleep(SECOND).await;
    session.renew().expect("alive");
    let start = tokio::time::Instant::now();
    let kill = service.kill_session(session.handle(), REASON, false).expect("it is open");
    // A second one joins it.
    let again = service.kill_session(session.handle(), "again", false).expect("not over");
    tokio::time::sleep(SECOND).await;
    session.renew().expect_err("it would never end");
    waits.await.expect("no panic").expect("given away in the end");
    let waited = start.elapsed();
    assert!(waited >= 2 * SECOND && waited < 3 * SECOND, "given away after {waited:?}");
    for kill in [kill, again] {
        assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Lapsed);
    }
    let gone = service.kill_session(session.handle(), REASON, false).expect_err("it is over");
    assert_eq!(gone.kind(), ErrorKind::SessionNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_does_not_wait_releases_at_once_also_after_one_that_does() {
    let (service, _allocator) = service().await;
    let (session, waits) = held(&service).await;
    let first = service.kill_session(session.handle(), REASON, false).expect("it is open");
    let kill = service.kill_session(session.handle(), REASON, true).expect("not over");
    assert_eq!((kill.kept, kill.txns), (Duration::ZERO, 1));
    let start = tokio::time::Instant::now();
    waits.await.expect("no panic").expect("released");
    for kill in [kill, first] {
        assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Forced);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(session.lost().await.kind(), ErrorKind::Killed);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_of_a_killed_session_that_is_committing_is_left_alone_and_named() {
    let (service, allocator) = service().await;
    let session = service.open_session(Some(2 * SECOND), "commits").expect("a session");
    let granted = locked(session.submit(validating(1, 1), Operation::Lock(spec("k"))).await);
    let other = locked(session.submit(validating(2, 1), Operation::Lock(spec("l"))).await);
    allocator.begin_commit(&commit(&granted)).await.expect("the session is alive");
    let kill = service.kill_session(session.handle(), REASON, true).expect("it is open");
    let killed = kill.done().await.expect("it serves");
    assert_eq!(killed.committing, [granted.txn]);
    assert_eq!(service.locks(None).len(), 1, "that of its commit");
    let refused = allocator.begin_commit(&commit(&other)).await.expect_err("C4");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    allocator.finish_commit(granted.txn, commit(&granted).attempt).await.expect("admitted");
    let next = service.begin(TxnOptions::default()).expect("begin");
    next.lock(spec("k")).await.expect("its commit has ended");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_session_here_and_what_gives_no_reason_is_refused_and_changes_nothing() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let handle = session.handle();
    let elsewhere = SessionHandle { service: lockservice_core::ServiceId::new(7), ..handle };
    let refused = service.kill_session(elsewhere, REASON, true).expect_err("another incarnation");
    assert_eq!(refused.kind(), ErrorKind::SessionNotFound);
    for reason in ["", "a\nb", &"x".repeat(256)] {
        let refused = service.kill_session(handle, reason, true).expect_err("no reason");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{reason:?}");
    }
    session.renew().expect("nothing has changed");
}

fn sessions(service: &LockService) -> Vec<SessionStatus> {
    let mut list = service.session_list();
    std::iter::from_fn(|| list.next_slice(1)).flatten().collect()
}

fn txns(service: &LockService) -> Vec<TxnStatus> {
    let mut list = service.txn_list();
    let mut all: Vec<_> = std::iter::from_fn(|| list.next_slice(1)).flatten().collect();
    all.sort_by_key(|status| status.txn);
    all
}

#[tokio::test(start_paused = true)]
async fn sessions_and_transactions_are_listed_with_what_they_hold_and_wait_for() {
    let (service, _allocator) = service().await;
    let (a, b) = (open(&service), open(&service));
    locked(a.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    locked(a.submit(op(1, 2), Operation::Lock(spec("l"))).await);
    let waits = b.submit(op(1, 1), Operation::Lock(spec("k")));
    while service.waits(None).is_empty() || sessions(&service)[1].waiting == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(SECOND).await;
    let listed = sessions(&service);
    let handles: Vec<_> = listed.iter().map(|session| session.handle).collect();
    assert_eq!(handles, [a.handle(), b.handle()]);
    let seen: Vec<_> = listed.iter().map(|session| (session.txns, session.waiting)).collect();
    assert_eq!(seen, [(1, 0), (1, 1)]);
    assert!(listed[0].left < listed[0].ttl, "{listed:?}");
    let listed = txns(&service);
    let seen: Vec<_> = listed.iter().map(|txn| (txn.session, txn.locks, txn.waits)).collect();
    assert_eq!(seen, [(Some(a.handle()), 2, false), (Some(b.handle()), 0, true)]);
    assert_eq!(listed[1].waiting, Some(SECOND));
    a.close().await;
    locked(waits.await);
    assert_eq!(txns(&service)[0].locks, 1);
}
