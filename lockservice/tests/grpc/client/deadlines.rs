//! Deadlines of sessions, and time-outs of calls.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures::FutureExt as _;
use lockservice::client::Client;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::service::{LockSpec, TxnOptions};
use lockservice_core::table::WaitPolicy;

use super::{client, locks, server, session, waits, within};
use crate::support::{Proxy, Served, spec};

#[tokio::test]
async fn the_deadline_of_a_client_without_responses_is_before_the_end_of_its_session() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let ttl = Duration::from_secs(1);
    let session = client(&proxy.address).await.session(Some(ttl)).await.expect("a session");
    let held = session.lock(spec("alice")).await.expect("free");
    proxy.mute(true);
    let muted = SystemClock.now();
    let lost = session.lost().await;
    assert_eq!(lost.kind(), ErrorKind::SessionLost);
    let now = SystemClock.now();
    assert!(now >= session.deadline(), "not before the deadline");
    assert!(session.deadline() <= muted + ttl, "P2: lo(ttl) after the last renewal was sent");
    assert_eq!(session.lock(spec("bob")).await.expect_err("lost").kind(), ErrorKind::SessionLost);
    drop(held);
}

#[derive(Debug, Default)]
struct Settable(AtomicU64);

impl Clock for Settable {
    fn now(&self) -> Time {
        SystemClock.now() + Duration::from_millis(self.0.load(SeqCst))
    }
}

#[tokio::test]
async fn a_client_that_slept_past_its_deadline_has_lost_its_session_whatever_the_server_says() {
    let served = server().await;
    let clock = Arc::new(Settable::default());
    let builder = Client::builder().env(Arc::clone(&clock) as Arc<dyn Clock>);
    let session = builder
        .connect(&served.address)
        .await
        .expect("the server responds")
        .session(None)
        .await
        .expect("a session");
    session.lock(spec("alice")).await.expect("free").unlock();
    clock.0.store(60_000, SeqCst);
    // At once, by the clock, not when some timer fires.
    assert_eq!(
        session.lock(spec("alice")).await.expect_err("slept").kind(),
        ErrorKind::SessionLost
    );
    assert_eq!(session.lost().await.kind(), ErrorKind::SessionLost);
    session.close().await.expect("the server is told");
}

#[tokio::test]
async fn a_grant_that_arrives_after_the_deadline_is_released() {
    let served = server().await;
    let clock = Arc::new(Settable::default());
    let builder = Client::builder().env(Arc::clone(&clock) as Arc<dyn Clock>);
    let sleeper = builder
        .connect(&served.address)
        .await
        .expect("the server responds")
        .session(None)
        .await
        .expect("a session");
    let admin = client(&served.address).await.admin();
    let held = session(&served.address).await.lock(spec("alice")).await.expect("free");
    let txn = sleeper.txn(TxnOptions::default());
    let mut waiting = Box::pin(txn.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    waits(&admin, 1).await;
    clock.0.store(60_000, SeqCst);
    held.unlock();
    assert_eq!(waiting.await.expect_err("too late").kind(), ErrorKind::SessionLost);
    // Its transaction lives on, and yet the grant went back.
    locks(&admin, 0).await;
    drop(txn);
}

#[tokio::test]
async fn the_deadline_is_earlier_by_the_time_that_the_work_needs_to_stop() {
    let served = server().await;
    let stop = Duration::from_secs(2);
    let plain = session(&served.address).await;
    let careful = Client::builder()
        .stop_time(stop)
        .connect(&served.address)
        .await
        .expect("the server responds");
    let careful = careful.session(None).await.expect("a session");
    let difference = plain.deadline().since(careful.deadline());
    assert!(difference > stop / 2, "{difference:?}");
}

#[tokio::test]
async fn a_time_out_counts_from_the_call_also_while_no_further_call_is_allowed() {
    let served = Served::start(ServerSettings { ops_under_way_max: 1, ..Default::default() }).await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let held = a.lock(spec("alice")).await.expect("free");
    let mut waiting = Box::pin(b.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    let short = LockSpec { timeout: Some(Duration::from_millis(50)), ..spec("bob") };
    let error = within(b.lock(short)).await.expect_err("the only place is taken");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let nowait = LockSpec { wait: WaitPolicy::NoWait, ..spec("bob") };
    let error = within(b.lock(nowait)).await.expect_err("the only place is taken");
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    held.unlock();
    waiting.await.expect("handed on").unlock();
    within(b.lock(spec("bob"))).await.expect("free, and there is a place again").unlock();
}

#[tokio::test]
async fn a_time_out_counts_from_the_call_also_while_the_server_is_silent() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let session = client(&proxy.address)
        .await
        .session(Some(Duration::from_secs(60)))
        .await
        .expect("a session");
    proxy.mute(true);
    let txn = session.txn(TxnOptions::default());
    let short = LockSpec { timeout: Some(Duration::from_millis(50)), ..spec("alice") };
    let start = SystemClock.now();
    assert_eq!(within(txn.lock(short)).await.expect_err("no response").kind(), ErrorKind::Timeout);
    assert!(
        SystemClock.now().since(start) < Duration::from_secs(2),
        "long before anything is noticed of the server"
    );
    // It was granted, and is taken back; the transaction goes on.
    proxy.mute(false);
    proxy.cut();
    txn.lock(spec("bob")).await.expect("on a new connection");
    locks(&client(&served.address).await.admin(), 1).await;
}
