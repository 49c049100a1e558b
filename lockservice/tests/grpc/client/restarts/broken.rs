//! Streams that break on the way, another node, and a server that says that it stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use lockservice::proto::client_op::Op;
use lockservice::proto::notice::Notice;
use lockservice::proto::server_op::Response as Wire;
use lockservice::proto::{self, Restarting};
use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::{Error, ErrorKind, ServiceId};

use super::{LONG_MS, locked, open, open_by, process, within};
use crate::support::spec;

#[tokio::test]
async fn claims_are_made_again_if_the_stream_breaks_and_another_node_gets_none() {
    let mut opened = open(LONG_MS).await;
    let guard = opened.lock(spec("a"), 1, LONG_MS).await;
    opened.restart(process(2), LONG_MS).await;
    let (claims, _, _) = opened.claims().await;
    assert_eq!(claims.len(), 1);
    opened.stream.done(claims[0].0);
    // The stream breaks before the last response.
    let other = proto::Welcome { node: "node-2".to_owned(), ..process(9) };
    let hello = opened.restart(other, LONG_MS).await;
    assert_eq!(hello.service, 1, "it is not one of the second process yet");
    let mut of_other = opened.next_stream().await;
    assert!(within(of_other.is_over()).await, "another node gets no claims");
    let hello = within(opened.stream.hello()).await;
    opened.stream.welcome(process(3), LONG_MS);
    assert_eq!((hello.service, hello.claims), (1, true));
    let again = opened.take_claims(LONG_MS).await;
    assert_eq!(again, [claims[0].1.clone()]);
    let mut connected = opened.session.watch_connected();
    within(connected.wait_for(|connected| *connected)).await.expect("it goes on");
    assert_eq!(opened.session.service(), ServiceId::new(3));
    assert!(guard.lost_now().is_none());
}

#[tokio::test]
async fn a_process_that_says_nothing_of_claims_does_not_have_them() {
    let mut opened = open(LONG_MS).await;
    let _guard = opened.lock(spec("a"), 1, LONG_MS).await;
    let forgetful = proto::Welcome { reclaim: false, ..process(2) };
    opened.restart(forgetful, LONG_MS).await;
    let mut old = opened.next_stream().await;
    assert!(within(old.is_over()).await, "nothing is sent to it");
    assert_eq!(within(opened.stream.hello()).await.service, 1);
}

#[tokio::test]
async fn a_lock_whose_server_restarts_is_sent_again_and_says_how_long_it_has_waited() {
    let mut opened = open(LONG_MS).await;
    let waiting = tokio::spawn({
        let session = opened.session.clone();
        async move { session.lock(spec("a")).await }
    });
    let (id, op) = opened.stream.next_op().await;
    let Op::Lock(first) = op else { panic!("no lock: {op:?}") };
    assert_eq!(first.waited_ms, 0);
    opened.stream.fail(id, &Error::new(ErrorKind::Restarting, "it stops"));
    opened.stream.notice(Notice::Restarting(Restarting {}));
    // The stream is still there: the client goes by the notice.
    let old = opened.next_stream().await;
    within(opened.stream.hello()).await;
    opened.stream.welcome(process(2), LONG_MS);
    let claims = opened.take_claims(LONG_MS).await;
    assert_eq!((claims.len(), claims[0].next_sequence, claims[0].locks.len()), (1, 1, 0));
    let (id, op) = within(opened.stream.next_op()).await;
    let Op::Lock(second) = op else { panic!("no lock: {op:?}") };
    // There is a pause before the next stream.
    assert!(second.waited_ms > 0);
    assert_eq!(second, proto::LockOp { waited_ms: second.waited_ms, ..first });
    opened.stream.respond(id, locked(1, 11, LONG_MS));
    let _held = waiting.await.expect("no panic").expect("granted by the next process");
    drop(old);
}

#[tokio::test]
async fn a_session_is_lost_at_its_deadline_if_no_process_takes_its_claims() {
    let mut opened = open(1_000).await;
    let guard = opened.lock(spec("a"), 1, 1_000).await;
    opened.restart(process(2), LONG_MS).await;
    opened.claims().await;
    // No response comes.
    let why = within(guard.lost()).await;
    assert_eq!(why.kind(), ErrorKind::SessionLost, "{why}");
}

/// The clock of a machine that may have slept.
#[derive(Debug, Default)]
struct Sleeper {
    slept_ms: AtomicU64,
}

impl Clock for Sleeper {
    fn now(&self) -> Time {
        SystemClock.now() + Duration::from_millis(self.slept_ms.load(SeqCst))
    }
}

#[tokio::test]
async fn a_promise_after_the_old_deadline_revives_no_lock() {
    let clock = Arc::new(Sleeper::default());
    let mut opened = open_by(Arc::<Sleeper>::clone(&clock), LONG_MS).await;
    let guard = opened.lock(spec("a"), 1, LONG_MS).await;
    let before = guard.deadline();
    opened.restart(process(2), LONG_MS).await;
    let (claims, done, _) = opened.claims().await;
    clock.slept_ms.store(2 * LONG_MS, SeqCst);
    // In one frame: nothing is looked at in between.
    let promise = Wire::Promise(proto::Promise { valid_for_ms: 10 * LONG_MS });
    let taken = (claims[0].0, Wire::Done(proto::Done::default()));
    opened.stream.respond_together([taken, (done, promise)]);
    let why = within(guard.lost()).await;
    assert_eq!(why.kind(), ErrorKind::SessionLost, "{why}");
    assert_eq!(guard.deadline(), before);
}
