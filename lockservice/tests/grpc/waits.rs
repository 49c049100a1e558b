//! The notices to a caller whose call waits.

use std::pin::pin;

use crate::support::{Proxy, Served, spec};
use futures::FutureExt as _;
use lockservice::client::{Client, Session};
use lockservice::server::ServerSettings;
use lockservice_core::service::{TxnOptions, WaitsFor};
use lockservice_core::{Blocker, ErrorKind, LockMode};
use tokio::sync::watch;

async fn session(address: &str, name: &str) -> Session {
    let client = Client::builder().name(name).connect(address).await.expect("the server responds");
    client.session(None).await.expect("a session")
}

type Observed = watch::Receiver<Option<WaitsFor>>;

/// The next holder in a notice.
async fn holder(observed: &mut Observed) -> Blocker {
    observed.changed().await.expect("the sender is kept");
    match observed.borrow_and_update().clone() {
        Some(WaitsFor::Txn(blocker)) => blocker,
        other => panic!("no holder: {other:?}"),
    }
}

#[tokio::test]
async fn a_call_that_waits_learns_whom_it_waits_for_and_again_when_that_changes() {
    let served = Served::start(ServerSettings::default()).await;
    let (a, b, c) = (
        session(&served.address, "a").await,
        session(&served.address, "b").await,
        session(&served.address, "c").await,
    );
    let (waits, mut observed) = watch::channel(None);
    let first = a.txn(TxnOptions { label: "nightly".to_owned(), ..TxnOptions::default() });
    first.lock_reporting(spec("alice"), &waits).await.expect("free");
    assert!(!observed.has_changed().expect("the sender is kept"), "it did not wait");

    let next = b.txn(TxnOptions::default());
    let mut of_b = Box::pin(next.lock_reporting(spec("alice"), &waits));
    let seen = tokio::select! {
        seen = holder(&mut observed) => seen,
        outcome = &mut of_b => panic!("it is held: {outcome:?}"),
    };
    assert_eq!(
        (Some(seen.txn), seen.label.as_str(), seen.client.as_str()),
        (first.id(), "nightly", "a")
    );
    assert!(seen.granted && seen.mode == LockMode::Exclusive, "{seen}");

    let last = c.txn(TxnOptions::default());
    let (waits, mut observed) = watch::channel(None);
    let mut of_c = Box::pin(last.lock_reporting(spec("alice"), &waits));
    let seen = tokio::select! {
        seen = holder(&mut observed) => seen,
        outcome = &mut of_c => panic!("it is held: {outcome:?}"),
    };
    assert_eq!(Some(seen.txn), first.id());
    first.end(None).await.expect("acknowledged");
    of_b.await.expect("it is the next");
    let seen = tokio::select! {
        seen = holder(&mut observed) => seen,
        outcome = &mut of_c => panic!("it is held: {outcome:?}"),
    };
    assert_eq!((Some(seen.txn), seen.client.as_str()), (next.id(), "b"));
    next.end(None).await.expect("acknowledged");
    of_c.await.expect("it is the last");
}

#[tokio::test]
async fn a_new_stream_learns_it_again_and_a_slow_reader_loses_no_response() {
    let served = Served::start(ServerSettings::default()).await;
    let proxy = Proxy::start(&served.address).await;
    let held = session(&served.address, "a").await.lock(spec("alice")).await.expect("free");
    let waiter = session(&proxy.address, "b").await;
    let (waits, mut observed) = watch::channel(None);
    let mut call = pin!(waiter.lock_reporting(spec("alice"), &waits));
    for _ in 0..2 {
        let seen = tokio::select! {
            seen = holder(&mut observed) => seen,
            outcome = &mut call => panic!("it is held: {outcome:?}"),
        };
        assert_eq!(Some(seen.txn), held.txn().id());
        proxy.cut();
    }
    // No notice is read from here on.
    drop(observed);
    let free = waiter.lock(spec("bob")).await.expect("free");
    assert!(call.as_mut().now_or_never().is_none(), "it waits yet");
    held.release().await.expect("acknowledged");
    drop((call.await.expect("it is the next"), free));
}

#[tokio::test]
async fn a_call_that_is_dropped_or_fails_is_no_longer_reported() {
    let served = Served::start(ServerSettings::default()).await;
    let held = session(&served.address, "a").await.lock(spec("alice")).await.expect("free");
    let waiter = session(&served.address, "b").await;
    let (waits, mut observed) = watch::channel(None);
    {
        let mut call = pin!(waiter.lock_reporting(spec("alice"), &waits));
        tokio::select! {
            seen = holder(&mut observed) => assert_eq!(Some(seen.txn), held.txn().id()),
            outcome = &mut call => panic!("it is held: {outcome:?}"),
        }
    }
    let timeout = Some(std::time::Duration::from_millis(1));
    let late = lockservice_core::service::LockSpec { timeout, ..spec("alice") };
    let error = waiter.lock_reporting(late, &waits).await.expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    drop(waits);
    // Every call has let go of its sender: what is still to come is the end.
    while observed.changed().await.is_ok() {}
    held.release().await.expect("acknowledged");
}
