//! Transactions that are ended while their session lives (P5, C4).

use lockservice_core::KeyRange;
use lockservice_core::metrics::TxnKillCause;
use lockservice_core::service::{KillEnd, SessionNotice, SessionNotices, TxnStatus};

use super::*;

const REASON: &str = "it blocks the nightly run";

/// A session of two seconds whose transaction 1 holds `k`, and a transaction that waits for it.
async fn held(service: &LockService) -> (Session, TxnId, tokio::task::JoinHandle<Result<Granted>>) {
    let session = service.open_session(Some(2 * SECOND), "holder").expect("a session");
    let granted = locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let next = service.begin(TxnOptions::default()).expect("begin");
    let waits = tokio::spawn(async move { next.lock(spec("k")).await });
    while service.waits(None).is_empty() {
        tokio::task::yield_now().await;
    }
    (session, granted.txn, waits)
}

fn end() -> Operation {
    Operation::End { commit: None }
}

async fn lost(notices: &mut SessionNotices) -> (u64, String) {
    loop {
        for notice in notices.next().await {
            if let SessionNotice::TxnLost { number, why } = notice {
                assert_eq!(why.kind(), ErrorKind::TxnKilled);
                return (number.get(), why.to_string());
            }
        }
    }
}

fn txns(service: &LockService) -> Vec<TxnStatus> {
    let mut list = service.txn_list();
    let mut all: Vec<_> = std::iter::from_fn(|| list.next_slice(1)).flatten().collect();
    all.sort_unstable_by_key(|status| status.txn);
    all
}

fn killed(service: &LockService) -> u64 {
    let counts = service.metrics().counts().txns_killed;
    counts.into_iter().find(|(cause, _)| *cause == TxnKillCause::Operator).expect("counted").1
}

#[tokio::test(start_paused = true)]
async fn the_locks_of_a_killed_transaction_go_to_others_once_its_client_has_ended_it() {
    let (service, _allocator) = service().await;
    let (session, txn, waits) = held(&service).await;
    locked(session.submit(op(2, 1), Operation::Lock(spec("other"))).await);
    let mut notices = session.notices();
    let kill = service.kill_txn(txn, REASON, false).expect("it is alive");
    assert_eq!((&*kill.client, kill.session), ("holder", Some(session.handle())));
    assert!(kill.kept.expect("a promise") > 2 * SECOND, "hi of the TTL: {:?}", kill.kept);
    let done = tokio::spawn(kill.done());
    let (number, why) = lost(&mut notices).await;
    assert!(number == 1 && why.contains(REASON), "{number}: {why}");
    session.acknowledge_loss(TxnNumber::new(1));
    for sequence in [2, 3] {
        let refused = session.submit(op(1, sequence), Operation::Lock(spec("l"))).await;
        let refused = refused.expect_err("nothing more is granted to it");
        assert!(refused.kind() == ErrorKind::TxnKilled && refused.to_string().contains(REASON));
    }
    tokio::time::sleep(SECOND).await;
    assert!(!waits.is_finished() && !done.is_finished(), "its work may go on (P5)");
    assert!(txns(&service)[0].ending.contains(REASON), "{:?}", txns(&service));
    assert_eq!(session.renew().expect("the session goes on").valid_for, 2 * SECOND);
    assert_eq!(released(session.submit(op(1, 4), end()).await), 1);
    waits.await.expect("no panic").expect("given up");
    let killed_as = done.await.expect("no panic").expect("it serves");
    assert_eq!((killed_as.end, killed_as.committing), (KillEnd::Confirmed, Vec::new()));
    assert_eq!(released(session.submit(op(2, 2), end()).await), 1, "the other has its lock");
    assert_eq!(killed(&service), 1);
    let gone = service.kill_txn(txn, REASON, false).expect_err("it has ended");
    assert_eq!(gone.kind(), ErrorKind::TxnNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ignores_a_kill_keeps_its_locks_for_its_promise_and_loses_its_session() {
    let (service, _allocator) = service().await;
    let (session, txn, waits) = held(&service).await;
    tokio::time::sleep(SECOND).await;
    session.renew().expect("alive");
    let start = tokio::time::Instant::now();
    let kill = service.kill_txn(txn, REASON, false).expect("it is alive");
    // It renews as if nothing had happened, and makes another transaction.
    for tenth in 1..20_u32 {
        tokio::time::sleep(SECOND / 10).await;
        let promised = session.renew().expect("not yet").valid_for;
        assert!(promised <= 2 * SECOND - SECOND / 10 * tenth, "{promised:?} after {tenth}");
        let spec = spec(&format!("row {tenth}"));
        let granted = locked(session.submit(op(2, tenth.into()), Operation::Lock(spec)).await);
        assert!(granted.promise.valid_for <= promised, "{:?}", granted.promise);
        assert!(!waits.is_finished(), "it may rely on its promise (P5)");
    }
    waits.await.expect("no panic").expect("given away in the end");
    let waited = start.elapsed();
    assert!(waited >= 2 * SECOND && waited < 3 * SECOND, "given away after {waited:?}");
    assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Lapsed);
    assert_eq!(session.lost().await.kind(), ErrorKind::SessionLost);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_knows_of_a_kill_and_does_not_act_loses_only_that_transaction() {
    let (service, _allocator) = service().await;
    let (session, txn, waits) = held(&service).await;
    locked(session.submit(op(2, 1), Operation::Lock(spec("other"))).await);
    let start = tokio::time::Instant::now();
    let kill = service.kill_txn(txn, REASON, false).expect("it is alive");
    tokio::time::sleep(SECOND / 2).await;
    assert!(session.renew().expect("not yet").valid_for <= 3 * SECOND / 2);
    session.acknowledge_loss(TxnNumber::new(1));
    for _ in 0..3 {
        assert_eq!(session.renew().expect("alive").valid_for, 2 * SECOND);
        assert!(!waits.is_finished(), "its promise holds after {:?} (P5)", start.elapsed());
        tokio::time::sleep(SECOND / 2).await;
    }
    waits.await.expect("no panic").expect("given away in the end");
    let waited = start.elapsed();
    assert!(waited >= 2 * SECOND && waited < 3 * SECOND, "given away after {waited:?}");
    assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Lapsed);
    for _ in 0..5 {
        tokio::time::sleep(SECOND).await;
        session.renew().expect("it goes on");
    }
    assert_eq!(session.lost_txns().len(), 1, "its client has not ended it");
    let refused = session.submit(op(1, 2), Operation::Lock(spec("l"))).await.expect_err("killed");
    assert_eq!(refused.kind(), ErrorKind::TxnKilled);
    assert_eq!(released(session.submit(op(1, 3), end()).await), 0);
    assert!(session.lost_txns().is_empty());
    assert_eq!(released(session.submit(op(2, 2), end()).await), 1, "the other kept its lock");
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_does_not_wait_releases_at_once_also_after_one_that_does() {
    let (service, _allocator) = service().await;
    let (session, txn, waits) = held(&service).await;
    let first = service.kill_txn(txn, REASON, false).expect("it is alive");
    tokio::time::sleep(SECOND).await;
    assert!(session.renew().expect("alive").valid_for <= SECOND, "renewals are withheld");
    let start = tokio::time::Instant::now();
    let kill = service.kill_txn(txn, "again", true).expect("it has not ended");
    assert_eq!(kill.kept, Some(Duration::ZERO));
    waits.await.expect("no panic").expect("released");
    for kill in [kill, first] {
        assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Forced);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(session.renew().expect("it goes on").valid_for, 2 * SECOND);
    let (number, why) = lost(&mut session.notices()).await;
    assert!(number == 1 && why.contains(REASON), "the first reason stays: {why}");
    assert_eq!(killed(&service), 1, "one transaction");
}

#[tokio::test(start_paused = true)]
async fn a_killed_transaction_that_validates_cannot_commit_once_it_is_released() {
    let (service, allocator) = service().await;
    let session = service.open_session(Some(2 * SECOND), "commits").expect("a session");
    let committing = locked(session.submit(validating(1, 1), Operation::Lock(spec("k"))).await);
    let other = locked(session.submit(validating(2, 1), Operation::Lock(spec("l"))).await);
    allocator.begin_commit(&commit(&committing)).await.expect("it is alive");
    for (txn, left_alone) in [(committing.txn, vec![committing.txn]), (other.txn, Vec::new())] {
        let kill = service.kill_txn(txn, REASON, true).expect("it is alive");
        assert_eq!(kill.done().await.expect("it serves").committing, left_alone);
    }
    assert_eq!(service.locks(None).len(), 1, "that of its commit");
    let refused = allocator.begin_commit(&commit(&other)).await.expect_err("C4");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    // One that waits is told the same.
    let again = service.kill_txn(committing.txn, REASON, false).expect("it has not ended");
    assert_eq!(again.done().await.expect("it serves").committing, [committing.txn]);
    let attempt = commit(&committing).attempt;
    allocator.finish_commit(committing.txn, attempt).await.expect("admitted");
    let next = service.begin(TxnOptions::default()).expect("begin");
    next.lock(spec("k")).await.expect("its commit has ended");
}

#[tokio::test(start_paused = true)]
async fn the_waiting_call_of_a_killed_transaction_fails_with_the_reason() {
    let (service, _allocator) = service().await;
    let (holder, waiter) = (open(&service), open(&service));
    locked(holder.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let held = locked(waiter.submit(op(1, 1), Operation::Lock(spec("l"))).await);
    let waits = waiter.submit(op(1, 2), Operation::Lock(spec("k")));
    let queued = waiter.submit(op(1, 3), Operation::Lock(spec("m")));
    let kill = service.kill_txn(held.txn, REASON, false).expect("it is alive");
    for outcome in [waits.await, queued.await] {
        let refused = outcome.expect_err("nothing more is granted to it");
        assert_eq!(refused.kind(), ErrorKind::TxnKilled, "{refused}");
    }
    assert!(service.waits(None).is_empty());
    assert_eq!(service.locks(None).len(), 2, "it keeps what it held");
    // Its client may give a part up, and then the rest.
    let unlock = Operation::Unlock { table: table(), items: vec![row("l")], commit: None };
    assert_eq!(released(waiter.submit(op(1, 4), unlock).await), 1);
    assert_eq!(released(waiter.submit(op(1, 5), end()).await), 0);
    assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Confirmed);
}

#[tokio::test(start_paused = true)]
async fn a_notice_of_a_loss_is_repeated_for_each_connection_until_the_client_ends_it() {
    let (service, _allocator) = service().await;
    let (session, txn, _waits) = held(&service).await;
    let kill = service.kill_txn(txn, REASON, false).expect("it is alive");
    for _ in 0..2 {
        assert_eq!(lost(&mut session.notices()).await.0, 1);
    }
    let mut notices = session.notices();
    assert_eq!(lost(&mut notices).await.0, 1);
    let again = tokio::time::timeout(SECOND, lost(&mut notices)).await;
    assert!(again.is_err(), "told once on one connection");
    done(session.submit(op(1, 2), end()).await);
    let gone = tokio::time::timeout(SECOND, lost(&mut session.notices())).await;
    assert!(gone.is_err(), "it has ended");
    assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Confirmed);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_session_ends_its_killed_transactions_too() {
    // By its client, by an operator who waits, by one who does not, and by its time.
    for how in 0..4 {
        let (service, _allocator) = service().await;
        let (session, txn, waits) = held(&service).await;
        let kill = service.kill_txn(txn, REASON, false).expect("it is alive");
        let (expected, of_session) = match how {
            0 => {
                session.close().await;
                (KillEnd::Confirmed, None)
            }
            1 => {
                let of_session = service.kill_session(session.handle(), "x", false);
                let joined = service.kill_txn(txn, "joins", false).expect("it has not ended");
                assert!(joined.kept.expect("a promise") > Duration::ZERO);
                session.close().await;
                assert_eq!(joined.done().await.expect("it serves").end, KillEnd::Confirmed);
                (KillEnd::Confirmed, of_session.ok())
            }
            2 => {
                let of_session = service.kill_session(session.handle(), "x", true);
                (KillEnd::Forced, of_session.ok())
            }
            _ => (KillEnd::Lapsed, None),
        };
        waits.await.expect("no panic").expect("released");
        assert_eq!(kill.done().await.expect("it serves").end, expected, "{how}");
        if let Some(of_session) = of_session {
            assert_eq!(of_session.done().await.expect("it serves").end, expected, "{how}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_transaction_of_an_embedder_holds_its_locks_until_its_owner_ends_it() {
    let (service, _allocator) = service().await;
    let named = TxnOptions { label: "nightly".to_owned(), ..TxnOptions::default() };
    let txn = service.begin(named).expect("begin");
    txn.lock(spec("k")).await.expect("free");
    let next = service.begin(TxnOptions::default()).expect("begin");
    let kill = service.kill_txn(txn.id(), REASON, false).expect("it has a label");
    assert_eq!((&*kill.label, kill.kept, kill.session), ("nightly", None, None));
    for error in [
        txn.promise().expect_err("killed"),
        txn.lock(spec("l")).await.expect_err("nothing more"),
        txn.lock(nowait("m")).await.expect_err("nothing more"),
    ] {
        assert!(error.kind() == ErrorKind::TxnKilled && error.to_string().contains(REASON));
    }
    let table = service.table(&table()).expect("bound");
    let key = Key::new("n").expect("a key");
    assert!(txn.lock_row(&table, &key, LockMode::Exclusive).is_none());
    tokio::time::sleep(10 * SECOND).await;
    let busy = next.lock(nowait("k")).await.expect_err("its owner may work under it");
    assert_eq!(busy.kind(), ErrorKind::Conflict);
    drop(txn);
    next.lock(nowait("k")).await.expect("dropped");
    assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Confirmed);

    // One that waits learns it, and an operator need not wait for its owner.
    let named = TxnOptions { label: "waits".to_owned(), ..TxnOptions::default() };
    let txn = service.begin(named).expect("begin");
    txn.lock(spec("l")).await.expect("free");
    let id = txn.id();
    let waits = tokio::spawn(async move {
        let outcome = txn.lock(spec("k")).await;
        (outcome, txn)
    });
    while service.waits(None).is_empty() {
        tokio::task::yield_now().await;
    }
    let kill = service.kill_txn(id, REASON, true).expect("it has a label");
    assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Forced);
    let (outcome, txn) = waits.await.expect("no panic");
    assert_eq!(outcome.expect_err("killed").kind(), ErrorKind::TxnKilled);
    next.lock(nowait("l")).await.expect("released");
    assert_eq!(txn.end(None), 0);

    let unnamed = service.kill_txn(next.id(), REASON, true).expect_err("no operator knows it");
    assert_eq!(unnamed.kind(), ErrorKind::TxnNotFound);
}

#[tokio::test(start_paused = true)]
async fn every_transaction_that_holds_a_key_is_killed_and_no_other() {
    let (service, _allocator) = service().await;
    let sessions: Vec<_> = (0..4).map(|_| open(&service)).collect();
    let shared = |items| LockSpec { mode: LockMode::Shared, ..LockSpec::new(table(), items) };
    let key = |name: &str| Key::new(name).expect("a key");
    let (from, to) = (std::ops::Bound::Included(key("a")), std::ops::Bound::Included(key("l")));
    let around = LockItem::Range(KeyRange::new(from, to).expect("a range"));
    let mut holders = Vec::new();
    for (session, item) in sessions.iter().zip([row("k"), row("k"), around, row("x")]) {
        let lock = Operation::Lock(shared(vec![item]));
        holders.push(locked(session.submit(op(1, 1), lock).await).txn);
    }
    let waits = sessions[3].submit(op(2, 1), Operation::Lock(spec("k")));
    while service.waits(None).is_empty() {
        tokio::task::yield_now().await;
    }
    let unnamed = service.begin(TxnOptions::default()).expect("begin");
    unnamed.lock(shared(vec![row("other")])).await.expect("shared");
    let free = service.force_release(&table(), &key("zzz"), REASON, false).await.expect("nothing");
    assert!(free.killed.is_empty() && free.not_killed.is_empty());
    let other = service.force_release(&table(), &key("other"), REASON, true).await.expect("served");
    assert_eq!((other.killed.len(), other.not_killed), (0, vec![unnamed.id()]));
    let forced = service.force_release(&table(), &key("k"), REASON, false).await.expect("served");
    let mut killed: Vec<_> = forced.killed.iter().map(|kill| kill.txn).collect();
    killed.sort_unstable();
    assert_eq!((killed, forced.not_killed), (holders[..3].to_vec(), Vec::new()));
    for session in &sessions[..3] {
        assert_eq!(session.lost_txns().len(), 1);
        done(session.submit(op(1, 2), end()).await);
    }
    for kill in forced.killed {
        assert_eq!(kill.done().await.expect("it serves").end, KillEnd::Confirmed);
    }
    locked(waits.await);
    assert!(sessions[3].lost_txns().is_empty());
    let unknown = TableRef::new("g", "unknown").expect("names");
    let refused = service.force_release(&unknown, &key("k"), REASON, true).await;
    assert_eq!(refused.expect_err("no such table").kind(), ErrorKind::TableNotFound);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_transaction_here_and_what_gives_no_reason_is_refused_and_changes_nothing() {
    let (service, _allocator) = service().await;
    let (session, txn, _waits) = held(&service).await;
    let elsewhere = TxnId { origin: lockservice_core::ServiceId::new(7), ..txn };
    let refused = service.kill_txn(elsewhere, REASON, true).expect_err("another incarnation");
    assert_eq!(refused.kind(), ErrorKind::TxnNotFound);
    for reason in ["", "a\nb", &"x".repeat(256)] {
        let refused = service.kill_txn(txn, reason, true).expect_err("no reason");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{reason:?}");
        let key = Key::new("k").expect("a key");
        let refused = service.force_release(&table(), &key, reason, true).await;
        assert_eq!(refused.expect_err("no reason").kind(), ErrorKind::InvalidArgument);
    }
    session.acknowledge_loss(TxnNumber::new(1));
    assert_eq!(session.renew().expect("alive").valid_for, 2 * SECOND);
    assert_eq!(released(session.submit(op(1, 2), end()).await), 1, "nothing has changed");
}
