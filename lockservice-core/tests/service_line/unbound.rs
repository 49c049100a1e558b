//! Calls that wait for their table to be bound.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{BeginCommit, CommitWindow, LockTableAllocator, PresentedBind};
use lockservice_core::clock::hi;
use lockservice_core::service::{Operation, TxnOp, TxnOptions};
use lockservice_core::{CommitAttempt, ErrorKind, Key, Nonce, TxnId, TxnNumber};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::{
    MS, SECOND, about, allocator, fails, no_wait, owner, restarted, spec, start, table, within,
};

/// The default lease.
const LEASE: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_table_ends_at_once_when_its_transaction_is_killed() {
    let allocator = allocator().await;
    let (service, _dead) = restarted(&allocator).await;
    let began = Instant::now();
    let session = service.open_session(None, "client").expect("it serves");
    let (number, of_session) = session.begin(&TxnOptions::default()).expect("it is open");
    let lock = Operation::Lock(spec("k"));
    let first = session.submit(TxnOp { number, ..TxnOp::default() }, lock);
    let labelled = TxnOptions { label: "embedder".to_owned(), ..TxnOptions::default() };
    let txn = service.begin(labelled).expect("it serves");
    let embedded = txn.id();
    let second = tokio::spawn(async move { txn.lock(spec("l")).await.map(drop) });
    while service.waits(None).len() < 2 {
        sleep(MS).await;
    }
    for killed in [of_session, embedded] {
        drop(service.kill_txn(killed, "x", false).expect("it is alive"));
    }
    let refused = first.await.map(drop).expect_err("nothing is granted to it any more");
    assert_eq!(refused.kind(), ErrorKind::TxnKilled);
    let refused = second.await.expect("no panic").expect_err("nor to that");
    assert_eq!(refused.kind(), ErrorKind::TxnKilled);
    assert!(began.elapsed() < SECOND && service.waits(None).is_empty());
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
        assert_eq!(wait.holder.client, "node", "it says which node had the table");
    }
    assert!(waits.is_sorted_by_key(|wait| wait.info.since), "in their order");
    let of_row = |name: &str| {
        let mut list = service.row_list(&table(), &Key::new(name).expect("a key"));
        let lines = std::iter::from_fn(move || list.next_slice(3)).flatten();
        lines.map(|line| line.info.txn).collect::<Vec<_>>()
    };
    let waiters: Vec<_> = waits.iter().map(|wait| wait.info.waiter).collect();
    assert_eq!((of_row("k"), of_row("other")), (waiters, Vec::new()));
    assert_eq!(service.waits(None).len(), 8);
    let gauges = service.gauges();
    assert_eq!((gauges.waiting, gauges.waiting_for_tables), (0, 8));
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
    assert_eq!(service.gauges().waiting_for_tables, 0);
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
