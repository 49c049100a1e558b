//! Limits of tables: on waits, and on how long locks are held.

use lockservice_core::metrics::TxnKillCause;
use lockservice_core::service::{TableLimit, TableLimits};

use super::*;

fn limited(prefix: &str, change: impl FnOnce(&mut TableLimit)) -> TableLimit {
    let mut limit = TableLimit { prefix: prefix.to_owned(), ..TableLimit::default() };
    change(&mut limit);
    limit
}

async fn service_with(limits: Vec<TableLimit>) -> (LockService, Arc<TableLimits>) {
    let limits = Arc::new(TableLimits::new(limits).expect("valid"));
    let parts = ServiceParts { limits: Arc::clone(&limits), ..parts(&allocator().await) };
    (LockService::start(parts).await.expect("the service starts"), limits)
}

fn in_table(name: &str, key: &str) -> LockSpec {
    LockSpec::new(TableRef::new("g", name).expect("names"), vec![row(key)])
}

fn kills(service: &LockService) -> [u64; 4] {
    let counts = service.metrics().counts().txns_killed;
    TxnKillCause::ALL.map(|cause| counts.iter().find(|(it, _)| *it == cause).expect("counted").1)
}

/// Renews a session for some time.
async fn renews(session: &Session, time: Duration) {
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(SECOND / 4).await;
        session.renew().expect("alive");
    }
}

fn is_lost(session: &Session) -> bool {
    !session.lost_txns().is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_the_limit_of_its_table_and_the_error_names_it() {
    let limit = limited("jobs/", |limit| limit.longest_wait = Some(3 * SECOND));
    let (service, limits) = service_with(vec![limit]).await;
    let holder = service.open_session(Some(60 * SECOND), "holder").expect("a session");
    for (at, name) in (1..).zip(["jobs/a", "other"]) {
        locked(holder.submit(op(at, 1), Operation::Lock(in_table(name, "k"))).await);
    }
    let txn = service.begin(TxnOptions::default()).expect("begin");
    for (name, timeout, waited, said) in [
        ("jobs/a", None, 3, "limit longest-wait for the prefix \"jobs/\""),
        ("jobs/a", Some(10 * SECOND), 3, "limit longest-wait"),
        ("jobs/a", Some(2 * SECOND), 2, "not to be had in time"),
        ("other", Some(10 * SECOND), 10, "not to be had in time"),
    ] {
        let start = tokio::time::Instant::now();
        let spec = LockSpec { timeout, ..in_table(name, "k") };
        let error = txn.lock(spec).await.expect_err("held");
        assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, waited * SECOND));
        assert!(error.to_string().contains(said), "{error}");
    }
    limits.replace(Vec::new()).expect("none");
    let start = tokio::time::Instant::now();
    let spec = LockSpec { timeout: Some(5 * SECOND), ..in_table("jobs/a", "k") };
    txn.lock(spec).await.expect_err("held");
    assert_eq!(start.elapsed(), 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_holds_for_too_long_is_killed_with_the_reason_and_not_before() {
    let limit = limited("t", |limit| limit.longest_hold = Some(8 * SECOND));
    let (service, _) = service_with(vec![limit]).await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    locked(session.submit(op(2, 1), Operation::Lock(in_table("other", "k"))).await);
    renews(&session, 7 * SECOND).await;
    // Another lock there begins nothing anew.
    locked(session.submit(op(1, 2), Operation::Lock(spec("l"))).await);
    renews(&session, SECOND / 2).await;
    assert!(!is_lost(&session));
    renews(&session, 2 * SECOND).await;
    let lost = session.lost_txns();
    assert_eq!(
        (lost.len(), lost[0].0, lost[0].1.kind()),
        (1, TxnNumber::new(1), ErrorKind::TxnKilled)
    );
    let why = lost[0].1.to_string();
    assert!(why.contains("limit longest-hold for the prefix \"t\"") && why.contains("8s"), "{why}");
    assert_eq!(kills(&service), [0, 1, 0, 0]);
    assert_eq!(released(session.submit(op(1, 3), Operation::End { commit: None }).await), 2);
    assert_eq!(released(session.submit(op(2, 2), Operation::End { commit: None }).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_was_given_up_for_a_moment_begins_anew() {
    let limit = limited("t", |limit| limit.longest_hold = Some(4 * SECOND));
    let (service, _) = service_with(vec![limit]).await;
    let session = open(&service);
    let unlock = || Operation::Unlock { table: table(), items: vec![row("k")], commit: None };
    let savepoint = match session.submit(op(1, 1), Operation::Savepoint).await {
        Ok(OpResponse::Savepoint(savepoint)) => savepoint,
        other => panic!("no savepoint: {other:?}"),
    };
    for turn in 0..4 {
        locked(session.submit(op(1, 2 * turn + 2), Operation::Lock(spec("l"))).await);
        locked(session.submit(op(2, 2 * turn + 1), Operation::Lock(spec("k"))).await);
        renews(&session, 3 * SECOND).await;
        done(session.submit(op(1, 2 * turn + 3), Operation::RollBackTo(savepoint)).await);
        done(session.submit(op(2, 2 * turn + 2), unlock()).await);
    }
    renews(&session, 10 * SECOND).await;
    assert!(!is_lost(&session), "{:?}", session.lost_txns());
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_holds_and_makes_no_call_is_killed_but_one_that_waits_is_not() {
    let limit = limited("t", |limit| limit.longest_idle_hold = Some(4 * SECOND));
    let (service, _) = service_with(vec![limit]).await;
    let (session, busy, waiter) = (open(&service), open(&service), open(&service));
    for (session, key) in [(&session, "k"), (&busy, "l"), (&waiter, "m")] {
        locked(session.submit(op(1, 1), Operation::Lock(spec(key))).await);
    }
    let waits = waiter.submit(op(1, 2), Operation::Lock(spec("l")));
    // Renewals are no calls; one that holds nothing there is not idle.
    locked(busy.submit(op(2, 1), Operation::Lock(in_table("other", "k"))).await);
    for sequence in 2..14 {
        tokio::time::sleep(SECOND).await;
        [&session, &busy, &waiter].iter().for_each(|session| drop(session.renew()));
        // A call is one even if it fails.
        drop(busy.submit(op(1, sequence), Operation::Lock(nowait("m"))).await);
        if sequence < 5 {
            assert!(!is_lost(&session), "after {} s", sequence - 1);
        }
    }
    assert!(!is_lost(&busy) && !is_lost(&waiter), "{:?}", (busy.lost_txns(), waiter.lost_txns()));
    let lost = session.lost_txns();
    assert!(lost[0].1.to_string().contains("longest-idle-hold"), "{lost:?}");
    assert_eq!(kills(&service), [0, 0, 1, 0]);
    // Its wait is over, and so is what it counted for.
    done(busy.submit(op(1, 14), Operation::End { commit: None }).await);
    locked(waits.await);
    renews(&waiter, 3 * SECOND).await;
    assert!(!is_lost(&waiter));
    renews(&waiter, 4 * SECOND).await;
    assert!(is_lost(&waiter));
}

#[tokio::test(start_paused = true)]
async fn limits_that_are_set_later_count_from_then_on_for_what_is_held() {
    let (service, limits) = service_with(Vec::new()).await;
    let session = open(&service);
    locked(session.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    // A range is in another part of the engine.
    let all = LockItem::Range(lockservice_core::KeyRange::whole_table());
    let all = LockSpec { items: vec![all], ..in_table("t2", "k") };
    locked(session.submit(op(2, 1), Operation::Lock(all)).await);
    let embedded = TxnOptions { label: "e".to_owned(), ..TxnOptions::default() };
    let embedded = service.begin(embedded).expect("begin");
    embedded.lock(spec("e")).await.expect("free");
    renews(&session, 20 * SECOND).await;
    let limit = limited("", |limit| limit.longest_hold = Some(4 * SECOND));
    limits.replace(vec![limit]).expect("valid");
    renews(&session, 3 * SECOND).await;
    assert!(!is_lost(&session));
    renews(&session, 2 * SECOND).await;
    assert_eq!(session.lost_txns().len(), 2);
    assert_eq!(embedded.promise().expect_err("too long").kind(), ErrorKind::TxnKilled);
    assert_eq!(kills(&service), [0, 3, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_first_limit_that_is_reached_ends_a_transaction_over_several_tables() {
    let limits = vec![
        limited("a", |limit| limit.longest_hold = Some(9 * SECOND)),
        limited("b", |limit| limit.longest_hold = Some(4 * SECOND)),
        limited("b/free", |limit| limit.longest_wait = Some(SECOND)),
    ];
    let (service, _) = service_with(limits).await;
    let session = open(&service);
    for (at, tables) in (1..).zip([&["a", "b/x"][..], &["a"], &["b/free"]]) {
        for (sequence, table) in (1..).zip(tables) {
            let spec = in_table(table, &format!("k{at}"));
            locked(session.submit(op(at, sequence), Operation::Lock(spec)).await);
        }
    }
    let lost = |session: &Session| {
        session.lost_txns().iter().map(|(number, _)| number.get()).collect::<Vec<_>>()
    };
    renews(&session, 3 * SECOND).await;
    assert_eq!(lost(&session), [0; 0]);
    for (after, expected) in [(2, vec![1]), (3, vec![1]), (3, vec![1, 2])] {
        session.acknowledge_loss(TxnNumber::new(1));
        renews(&session, after * SECOND).await;
        assert_eq!(lost(&session), expected);
    }
}
