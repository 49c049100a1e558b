//! Locks, waits, and their ends.

use std::time::Duration;

use futures::FutureExt as _;
use lockservice_core::service::{LockSpec, TxnOptions};
use lockservice_core::table::WaitPolicy;
use lockservice_core::{ErrorKind, LockItem, LockMode};

use super::{client, locks, server, session, waits};
use crate::support::{row, spec, table};

#[tokio::test]
async fn two_sessions_never_hold_one_row_and_the_later_token_is_larger() {
    let served = server().await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let held = a.lock(spec("alice")).await.expect("free");
    let mut waiting = Box::pin(b.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    let admin = client(&served.address).await.admin();
    waits(&admin, 1).await;
    let wait = &admin.waits(Some(&table())).await.expect("the server responds")[0];
    assert_eq!((wait.info.item.clone(), wait.waiter.client.as_str()), (row("alice"), "tester"));
    let token = held.token();
    let nowait = LockSpec { wait: WaitPolicy::NoWait, ..spec("alice") };
    assert_eq!(b.lock(nowait).await.expect_err("held").kind(), ErrorKind::Conflict);
    let short = LockSpec { timeout: Some(Duration::from_millis(20)), ..spec("alice") };
    assert_eq!(b.lock(short).await.expect_err("held").kind(), ErrorKind::Timeout);
    // Not waited for.
    held.unlock();
    let next = waiting.await.expect("handed on");
    assert!(next.token() > token && next.grant().waited.is_some());
    assert_eq!(next.bind().table, table());
}

#[tokio::test]
async fn a_deadlock_is_reported_with_its_whole_cycle() {
    let served = server().await;
    let session = session(&served.address).await;
    let (a, b) = (session.txn(TxnOptions::default()), session.txn(TxnOptions::default()));
    a.lock(spec("1")).await.expect("free");
    b.lock(spec("2")).await.expect("free");
    let both = [a.lock(spec("2")).boxed(), b.lock(spec("1")).boxed()];
    let (first, _, others) = futures::future::select_all(both).await;
    let error = first.expect_err("somebody is told");
    assert_eq!(error.kind(), ErrorKind::Deadlock);
    let cycle = error.deadlock().expect("the cycle");
    assert_eq!(cycle.len(), 2);
    assert_eq!((cycle[0].holder, cycle[1].holder), (cycle[1].waiter, cycle[0].waiter));
    drop(others);
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_whether_it_waited_or_was_granted() {
    let served = server().await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let admin = client(&served.address).await.admin();
    let held = a.lock(spec("alice")).await.expect("free");
    let txn = b.txn(TxnOptions::default());
    txn.lock(spec("bob")).await.expect("free");
    let mut waiting = Box::pin(txn.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    waits(&admin, 1).await;
    drop(waiting);
    waits(&admin, 0).await;
    // Granted, but dropped before the response is looked at.
    let mut unseen = Box::pin(txn.lock(spec("carol")));
    assert!(unseen.as_mut().now_or_never().is_none());
    locks(&admin, 3).await;
    drop(unseen);
    locks(&admin, 2).await;
    // The earlier locks of the transaction stay, and it goes on.
    txn.lock(spec("dora")).await.expect("free");
    drop((held, txn));
    locks(&admin, 0).await;
}

#[tokio::test]
async fn chosen_keys_can_be_unlocked_and_a_dropped_session_leaves_nothing() {
    let served = server().await;
    let session = session(&served.address).await;
    let admin = client(&served.address).await.admin();
    let txn = session.txn(TxnOptions { label: "audit".to_owned(), ..Default::default() });
    let shared =
        LockSpec { mode: LockMode::Shared, ..LockSpec::new(table(), vec![row("a"), row("b")]) };
    txn.lock(shared).await.expect("free");
    txn.unlock(&table(), &[row("a")], None).await.expect("acknowledged");
    let left = admin.locks(Some(&table())).await.expect("the server responds");
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].info.item.clone(), left[0].party.label.as_str()), (row("b"), "audit"));
    assert_eq!(admin.binds().await.expect("the server responds")[0].bind.table, table());
    drop((txn, session));
    locks(&admin, 0).await;
}

// Two threads: making ten million keys takes seconds, in which the session must be renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_in_one_request_is_refused_and_the_session_goes_on() {
    let served = server().await;
    let session = session(&served.address).await;
    let txn = session.txn(TxnOptions::default());
    let many = |n: u32| LockSpec::new(table(), (0..n).map(|n| row(&format!("{n}"))).collect());
    // More than the server takes into one request, and more than fits into one message.
    for n in [30_000, 1_000_000] {
        assert_eq!(
            txn.lock(many(n)).await.expect_err("too many").kind(),
            ErrorKind::InvalidArgument,
            "{n}"
        );
    }
    let ten_million = LockSpec::new(table(), vec![row("a"); 10_000_000]);
    assert_eq!(
        txn.lock(ten_million).await.expect_err("too many").kind(),
        ErrorKind::InvalidArgument
    );
    let nothing = LockSpec::new(table(), Vec::<LockItem>::new());
    assert_eq!(txn.lock(nothing).await.expect_err("nothing").kind(), ErrorKind::InvalidArgument);
    txn.lock(many(1_000)).await.expect("as much as is allowed");
    txn.end(None).await.expect("acknowledged");
}
