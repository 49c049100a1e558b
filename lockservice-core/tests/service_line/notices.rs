//! Notices to the client of a call that waits.

use std::sync::atomic::Ordering;

use lockservice_core::ErrorKind;
use lockservice_core::service::{
    OpResponse, Operation, SessionNotice, SessionNotices, Waiting, WaitsFor,
};
use tokio::time::{Instant, sleep};

use super::{SECOND, allocator, name, op, restarted, spec, start, table, within};

/// The next notice to a session whose call waits.
async fn notice(notices: &mut SessionNotices) -> Waiting {
    let mut all = notices.next().await;
    assert_eq!(all.len(), 1, "{all:?}");
    match all.remove(0) {
        SessionNotice::Waiting(waiting) => waiting,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_of_a_call_that_waits_for_a_table_learns_of_its_last_owner_and_then_of_the_lock()
{
    let allocator = allocator().await;
    let (service, dead) = restarted(&allocator).await;
    let session = service.open_session(None, "test").expect("a session");
    let mut notices = session.notices();
    let began = Instant::now();
    let first = session.submit(op(1, 1), Operation::Lock(spec("k")));
    let waiting = notice(&mut notices).await;
    assert_eq!((waiting.number.get(), waiting.sequence.get()), (1, 1));
    let last_owner = Some((dead, name("node")));
    assert_eq!(waiting.waits_for, WaitsFor::Table { last_owner });
    assert!(began.elapsed() < SECOND, "as soon as it is known: {:?}", began.elapsed());
    let second = session.submit(op(2, 1), Operation::Lock(spec("k")));
    assert_eq!(notice(&mut notices).await.number.get(), 2);
    let renewing = async {
        loop {
            sleep(SECOND).await;
            session.renew().expect("it is there");
        }
    };
    let waits = async {
        let OpResponse::Locked(granted) = first.await.expect("the lease runs out") else {
            panic!("no lock")
        };
        (granted.txn, notice(&mut notices).await)
    };
    let (holder, waiting) = tokio::select! {
        seen = waits => seen,
        () = renewing => unreachable!("it has no end"),
    };
    assert_eq!((waiting.number.get(), waiting.sequence.get()), (2, 1));
    let WaitsFor::Txn(blocker) = waiting.waits_for else { panic!("{waiting:?}") };
    assert_eq!((blocker.txn, blocker.client.as_str(), blocker.granted), (holder, "test", true));
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn the_client_of_a_call_that_waits_for_a_token_learns_it_and_one_that_does_not_wait_does_not()
{
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    let session = service.open_session(None, "test").expect("a session");
    let mut notices = session.notices();
    allocator.hooks.no_tokens.store(true, Ordering::Relaxed);
    let call = session.submit(op(1, 1), Operation::Lock(within(SECOND, "k")));
    assert_eq!(notice(&mut notices).await.waits_for, WaitsFor::Token);
    assert_eq!(call.await.expect_err("none comes").kind(), ErrorKind::Timeout);
    session
        .submit(op(1, 2), Operation::Unlock { table: table(), items: Vec::new(), commit: None })
        .await
        .expect("done");
    tokio::select! {
        more = notices.next() => panic!("nobody waits: {more:?}"),
        () = sleep(SECOND) => {}
    }
}
