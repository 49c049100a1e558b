//! Transactions that an operator ends while their session goes on.

use std::time::Duration;

use lockservice::client::Session;
use lockservice_core::service::{KillEnd, TxnOptions};
use lockservice_core::{ErrorKind, Key};

use super::{client, server};
use crate::support::{Served, spec, table};

const REASON: &str = "it blocks the nightly run";

async fn session(served: &Served) -> Session {
    let client = client(&served.address).await;
    client.session(Some(Duration::from_secs(2))).await.expect("a session")
}

#[tokio::test]
async fn a_killed_transaction_is_lost_with_the_reason_and_its_session_goes_on() {
    let served = server().await;
    let (session, admin) = (session(&served).await, client(&served.address).await.admin());
    let other = session.lock(spec("other")).await.expect("free");
    let guard = session.lock(spec("k")).await.expect("free");
    assert!(guard.lost_now().is_none());
    let id = guard.txn().id().expect("it holds something");
    let mut kills = admin.kill_txn(id, REASON, false).await.expect("it is there");
    assert_eq!((kills.begun.len(), kills.begun[0].txn), (1, id));
    assert!(kills.begun[0].kept.expect("a promise") > Duration::ZERO);
    let why = guard.lost().await;
    assert!(why.kind() == ErrorKind::TxnKilled && why.to_string().contains(REASON), "{why}");
    let deadline = guard.deadline();
    let txn = guard.txn();
    let refused = txn.lock(spec("l")).await.expect_err("nothing more is granted to it");
    assert_eq!(refused.kind(), ErrorKind::TxnKilled);
    // The server hears that this client knows: the session is renewed, and that does not count for
    // the transaction.
    let mut deadlines = session.watch_deadline();
    deadlines.wait_for(|moved| *moved > deadline).await.expect("it is renewed");
    assert_eq!(guard.deadline(), deadline);
    assert!(session.lost_now().is_none() && other.lost_now().is_none());
    let next = session.lock(spec("k"));
    let (next, released) = tokio::join!(next, guard.release());
    assert_eq!(released.expect_err("it was lost").kind(), ErrorKind::TxnKilled);
    next.expect("released").release().await.expect("held");
    let (txn, killed) = kills.next().await.expect("it serves").expect("one");
    assert_eq!((txn, killed.end), (id, KillEnd::Confirmed));
    assert!(kills.next().await.expect("it serves").is_none());
    other.release().await.expect("still held");
}

#[tokio::test]
async fn a_program_that_watches_only_its_session_loses_that_before_the_locks_go_to_others() {
    let served = server().await;
    let (session, admin) = (session(&served).await, client(&served.address).await.admin());
    let guard = session.lock(spec("k")).await.expect("free");
    let id = guard.txn().id().expect("it holds something");
    let mut kills = admin.kill_txn(id, REASON, false).await.expect("it is there");
    let next = super::session(&served.address).await;
    let why = tokio::select! {
        biased;
        why = session.lost() => why,
        _ = next.lock(spec("k")) => panic!("the work may go on until the program is told"),
    };
    assert_eq!(why.kind(), ErrorKind::SessionLost, "{why}");
    session.close().await.expect("it responds");
    let (_, killed) = kills.next().await.expect("it serves").expect("one");
    assert_eq!(killed.end, KillEnd::Confirmed);
}

#[tokio::test]
async fn the_waiting_call_of_a_killed_transaction_fails_and_a_forced_release_names_its_holders() {
    let served = server().await;
    let (session, admin) = (session(&served).await, client(&served.address).await.admin());
    let key = Key::new("k").expect("a key");
    let none = admin.force_release(&table(), &key, REASON, true).await.expect_err("no table yet");
    assert_eq!(none.kind(), ErrorKind::TableNotFound);
    let holder = session.lock(spec("k")).await.expect("free");
    let waiter = session.txn(TxnOptions::default());
    waiter.lock(spec("l")).await.expect("free");
    let kill = async {
        super::waits(&admin, 1).await;
        let id = waiter.id().expect("it holds something");
        admin.kill_txn(id, REASON, true).await.expect("it is there")
    };
    let (refused, mut kills) = tokio::join!(waiter.lock(spec("k")), kill);
    assert_eq!(refused.expect_err("killed").kind(), ErrorKind::TxnKilled);
    let (_, killed) = kills.next().await.expect("it serves").expect("one");
    assert_eq!(killed.end, KillEnd::Forced);
    assert_eq!(waiter.lost().await.kind(), ErrorKind::TxnKilled);
    let forced = admin.force_release(&table(), &key, REASON, true).await.expect("it is owned here");
    assert_eq!((forced.begun.len(), forced.begun[0].txn), (1, holder.txn().id().expect("held")));
    assert_eq!(forced.begun[0].kept, Some(Duration::ZERO));
    let nothing = admin.force_release(&table(), &key, REASON, true).await.expect("it is free");
    assert!(nothing.begun.is_empty() && nothing.not_killed.is_empty());
    session.lock(spec("k")).await.expect("free").release().await.expect("held");
}
