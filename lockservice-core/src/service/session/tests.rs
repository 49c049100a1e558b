//! Operations of a session, where a test has to see inside.

use std::future::{Future as _, poll_fn};
use std::pin::pin;

use super::*;
use crate::allocator::{AllocatorSettings, LocalAllocator};
use crate::clock::{Clock, SystemClock};
use crate::id::{NodeName, TableRef};
use crate::key::{Key, LockItem};
use crate::service::txn::CallInFlight;
use crate::service::{LockService, LockSpec, OpResponse, Operation, ServiceParts, TxnOp};
use crate::store::MemoryStore;
use crate::table::Savepoint;

async fn session() -> (LockService, Session) {
    let node = NodeName::new("node").expect("a name");
    let (store, clock): (_, Arc<dyn Clock>) =
        (Arc::new(MemoryStore::new(0)), Arc::new(SystemClock));
    let settings = AllocatorSettings::default();
    let allocator = LocalAllocator::open(store, Arc::clone(&clock), settings, node.clone());
    let allocator = allocator.await.expect("a fresh store opens");
    let parts = ServiceParts::new(allocator, clock, node);
    let service = LockService::start(parts).await.expect("it starts");
    let session = service.open_session(None, "client").expect("it serves");
    (service, session)
}

const NUMBER: TxnNumber = TxnNumber::new(1);

fn submit(session: &Session, sequence: u64, operation: Operation) -> pending::Pending {
    let sequence = Sequence::new(sequence);
    session.submit(TxnOp { number: NUMBER, sequence, ..TxnOp::default() }, operation)
}

fn lock() -> Operation {
    let row = LockItem::Row(Key::new("k").expect("a key"));
    Operation::Lock(LockSpec::new(TableRef::new("g", "t").expect("names"), vec![row]))
}

async fn savepoint(session: &Session, sequence: u64) -> Savepoint {
    match submit(session, sequence, Operation::Savepoint).await {
        Ok(OpResponse::Savepoint(savepoint)) => savepoint,
        other => panic!("no savepoint: {other:?}"),
    }
}

#[tokio::test]
async fn only_a_call_that_was_not_gone_back_over_keeps_the_lock_of_a_cancelled_one() {
    for relies_before_savepoint in [true, false] {
        let (service, session) = session().await;
        submit(&session, 1, lock()).await.expect("free");
        let savepoint = if relies_before_savepoint {
            submit(&session, 2, lock()).await.expect("held");
            savepoint(&session, 3).await
        } else {
            let savepoint = savepoint(&session, 2).await;
            submit(&session, 3, lock()).await.expect("held");
            savepoint
        };
        submit(&session, 4, Operation::RollBackTo(savepoint)).await.expect("it goes back");
        let cancel = Operation::Cancel { sequence: Sequence::FIRST };
        submit(&session, 5, cancel).await.expect("it was granted");
        assert_eq!(service.locks(None).len(), usize::from(relies_before_savepoint));
    }
}

#[tokio::test]
async fn going_back_to_a_savepoint_waits_until_a_cancelled_call_was_handed_over() {
    let (service, session) = session().await;
    let savepoint = savepoint(&session, 1).await;
    submit(&session, 2, lock()).await.expect("free");
    let txn = session.record.state.lock().with_queue(NUMBER, |queue, _| Arc::clone(&queue.txn));
    // As while the line of a table is handed over: its binder has the call, and will drop it.
    let in_flight = CallInFlight::new(txn.expect("it has begun"));
    let mut back = pin!(submit(&session, 3, Operation::RollBackTo(savepoint)));
    for _ in 0..3 {
        let waits = poll_fn(|cx| std::task::Poll::Ready(back.as_mut().poll(cx).is_pending())).await;
        assert!(waits && service.locks(None).len() == 1);
        tokio::task::yield_now().await;
    }
    drop(in_flight);
    assert_eq!(back.await.expect("it goes back"), OpResponse::Done { released: 1 });
    assert!(service.locks(None).is_empty());
}
