//! Broken connections, and a stopping server.

use std::collections::BTreeSet;

use futures::FutureExt as _;
use lockservice_core::ErrorKind;
use lockservice_core::clock::{Clock, SystemClock};

use super::{client, locks, server, session, waits};
use crate::support::{Proxy, spec};

#[tokio::test]
async fn a_broken_connection_resumes_the_session_and_keeps_its_locks() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let session = session(&proxy.address).await;
    let held = session.lock(spec("alice")).await.expect("free");
    for n in 0..3 {
        proxy.cut();
        let other = session.lock(spec(&format!("row {n}"))).await.expect("on a new connection");
        other.unlock().await.expect("acknowledged");
    }
    assert!(session.lost_now().is_none());
    let admin = client(&served.address).await.admin();
    let locks = admin.locks(None).await.expect("the server responds");
    assert_eq!(locks.len(), 1);
    assert_eq!(locks[0].info.token, held.token());
}

#[tokio::test]
async fn a_response_lost_after_the_grant_is_replayed_and_nothing_is_locked_twice() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let session = session(&proxy.address).await;
    let admin = client(&served.address).await.admin();
    proxy.mute(true);
    let call = tokio::spawn({
        let session = session.clone();
        async move { session.lock(spec("alice")).await }
    });
    locks(&admin, 1).await;
    let token = admin.locks(None).await.expect("the server responds")[0].info.token;
    proxy.mute(false);
    proxy.cut();
    let held = call.await.expect("no panic").expect("granted once");
    assert_eq!(held.token(), token);
    assert_eq!(admin.locks(None).await.expect("the server responds").len(), 1);
    held.unlock().await.expect("acknowledged");
    locks(&admin, 0).await;
}

#[tokio::test]
async fn a_quiet_end_whose_acknowledgement_is_lost_is_sent_again_and_ends_no_later_lock() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let (session, other) = (session(&proxy.address).await, session(&served.address).await);
    let admin = client(&served.address).await.admin();
    for n in 0..3 {
        let held = session.lock(spec("alice")).await.expect("free");
        proxy.mute(true);
        drop(held.unlock());
        let theirs = other.lock(spec("alice")).await.expect("handed on");
        proxy.mute(false);
        proxy.cut();
        let ours = session.lock(spec("bob")).await.expect("on a new connection");
        let left = admin.locks(None).await.expect("the server responds");
        let left: BTreeSet<_> = left.iter().map(|lock| lock.info.token).collect();
        assert_eq!(left, BTreeSet::from([theirs.token(), ours.token()]), "{n}");
        theirs.release().await.expect("acknowledged");
        ours.release().await.expect("acknowledged");
    }
    locks(&admin, 0).await;
}

#[tokio::test]
async fn a_stopping_server_tells_holders_and_waiters_and_resigns_when_they_have_closed() {
    let mut served = server().await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let held = a.lock(spec("alice")).await.expect("free");
    let mut waiting = Box::pin(b.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    waits(&client(&served.address).await.admin(), 1).await;
    served.stop();
    assert_eq!(waiting.await.expect_err("stopped").kind(), ErrorKind::ShuttingDown);
    assert_eq!(a.lost().await.kind(), ErrorKind::ShuttingDown);
    // The deadline has not passed: the work may be put away in order.
    assert!(a.deadline() > SystemClock.now());
    held.unlock();
    a.close().await.expect("the server waits for it");
    b.close().await.expect("the server waits for it");
    assert!(served.stopped().await.resigned);
}
