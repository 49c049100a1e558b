//! Rows that an embedder locks at once, by the handle of their table.

use std::sync::Arc;

use lockservice_core::service::Table;
use lockservice_core::table::WaitPolicy;
use lockservice_core::{ErrorKind, Key, LockMode};

use super::*;

fn key(name: &str) -> Key {
    Key::new(name).expect("a key")
}

/// The handle of the table, bound by a first lock.
async fn bound(service: &LockService) -> Table {
    assert!(service.table(&table()).is_none(), "it is not bound yet");
    let first = service.begin(TxnOptions::default()).expect("it serves");
    first.lock(spec("first")).await.expect("it is free");
    first.end(None);
    service.table(&table()).expect("the call for it was answered")
}

#[tokio::test(start_paused = true)]
async fn a_row_is_locked_at_once_and_meets_all_other_calls() {
    let (service, _allocator) = service().await;
    let table = bound(&service).await;
    let one = service.begin(TxnOptions::default()).expect("it serves");
    let locked = one.lock_row(&table, &key("a"), LockMode::Exclusive).expect("it is free");
    assert!(locked.newly_locked && locked.promise.valid_for > 4 * SECOND);
    let again = one.lock_row(&table, &key("a"), LockMode::Shared).expect("it is its own");
    assert_eq!((again.token, again.newly_locked), (locked.token, false));

    let two = service.begin(TxnOptions::default()).expect("it serves");
    assert_eq!(two.lock_row(&table, &key("a"), LockMode::Shared), None);
    let refused = two.lock(nowait("a")).await.expect_err("one holds it");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(service.locks(None).len(), 1);

    let granted = {
        let mut waiting = std::pin::pin!(two.lock(spec("a")));
        assert!(poll_once(waiting.as_mut()).is_none());
        assert_eq!(one.end(None), 1);
        waiting.await.expect("one has ended")
    };
    assert!(granted.grant.token > locked.token);
    two.end(None);
    assert!(service.locks(None).is_empty());
}

/// Polls a future once.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_call_of_the_transaction_waits_no_other_one_is_decided() {
    let (service, _allocator) = service().await;
    let table = bound(&service).await;
    let [one, two] = [(); 2].map(|()| service.begin(TxnOptions::default()).expect("it serves"));
    assert!(one.lock_row(&table, &key("a"), LockMode::Exclusive).is_some());
    {
        let mut waiting = std::pin::pin!(two.lock(spec("a")));
        assert!(poll_once(waiting.as_mut()).is_none());
        assert_eq!(two.lock_row(&table, &key("b"), LockMode::Exclusive), None, "T2");
    }
    assert!(two.lock_row(&table, &key("b"), LockMode::Exclusive).is_some(), "it was dropped");
}

#[tokio::test(start_paused = true)]
async fn no_row_is_granted_under_a_lease_that_is_over() {
    let (service, allocator) = service().await;
    let table = bound(&service).await;
    let one = service.begin(TxnOptions::default()).expect("it serves");
    assert!(one.lock_row(&table, &key("a"), LockMode::Exclusive).is_some());
    // The clock goes on and no task of the service runs meanwhile.
    allocator.resign(service.id(), service.nonce()).await.expect("it responds");
    tokio::time::advance(10 * SECOND).await;
    assert_eq!(one.lock_row(&table, &key("b"), LockMode::Exclusive), None);
    let error = one.lock(spec("b")).await.expect_err("its lease is over");
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert!(service.locks(None).iter().all(|lock| lock.info.item != row("b")));
}

#[tokio::test(start_paused = true)]
async fn no_row_is_granted_by_a_service_that_stops() {
    let (service, _allocator) = service().await;
    let table = bound(&service).await;
    let one = service.begin(TxnOptions::default()).expect("it serves");
    let mut stop = std::pin::pin!(service.shutdown(SECOND));
    assert!(poll_once(stop.as_mut()).is_none(), "a transaction is open");
    assert_eq!(one.lock_row(&table, &key("a"), LockMode::Exclusive), None);
    let error = service.begin(TxnOptions::default()).expect_err("it stops");
    assert_eq!(error.kind(), ErrorKind::ShuttingDown);
    one.end(None);
    assert!(stop.await.resigned);
}

#[tokio::test(start_paused = true)]
async fn a_table_is_not_forgotten_while_there_is_a_handle_of_it() {
    let (service, _allocator) = service().await;
    let handle = bound(&service).await;
    let error = service.drop_table(&table()).await.expect_err("it is in use");
    assert_eq!(error.kind(), ErrorKind::TableInUse);
    drop(handle);
    service.drop_table(&table()).await.expect("it is not in use");
}

#[tokio::test(start_paused = true)]
async fn a_handle_of_another_service_locks_nothing() {
    let [(first, _a), (second, _b)] = [service().await, service().await];
    let table = bound(&first).await;
    let txn = second.begin(TxnOptions::default()).expect("it serves");
    assert_eq!(txn.lock_row(&table, &key("a"), LockMode::Exclusive), None, "it has no table");
    bound(&second).await;
    assert_eq!(txn.lock_row(&table, &key("a"), LockMode::Exclusive), None, "nor this one");
    assert!(first.locks(None).is_empty() && second.locks(None).is_empty());
}

/// Also as the shard asks for more tokens, and as a transaction is dropped, for which the service
/// makes tasks.
#[tokio::test(flavor = "multi_thread")]
async fn a_thread_without_a_runtime_locks_rows() {
    let clock = Arc::new(lockservice_core::clock::SystemClock);
    let store: Arc<dyn BindStore> = Arc::new(MemoryStore::new(1));
    let allocator = LocalAllocator::open(
        store,
        Arc::<lockservice_core::clock::SystemClock>::clone(&clock),
        AllocatorSettings::default(),
        node(),
    )
    .await
    .expect("a fresh store opens");
    let parts = ServiceParts::new(allocator, clock, node());
    let service = LockService::start(parts).await.expect("the service starts");
    let table = bound(&service).await;
    // Awaited, not joined: the lease is renewed meanwhile.
    let (done, over) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let begin = |validates| service.begin(TxnOptions { validates, ..TxnOptions::default() });
        let txn = begin(false).expect("it serves");
        let mut tokens = 0;
        // More than half of a block: the tokens are drawn in slices of many.
        for number in 0..600_000_u32 {
            let key = Key::new((number % 7).to_be_bytes()).expect("a key");
            let mut locked = txn.lock_row(&table, &key, LockMode::Exclusive);
            // The handle is there before the call that bound the table has been handed over.
            while number == 0 && locked.is_none() {
                std::thread::yield_now();
                locked = txn.lock_row(&table, &key, LockMode::Exclusive);
            }
            let locked = locked.expect("it is its own");
            tokens += u64::from(locked.newly_locked);
            txn.unlock(table.name(), &[LockItem::Row(key)], None);
        }
        assert_eq!(tokens, 600_000);
        let validating = begin(true).expect("it serves");
        assert!(validating.lock_row(&table, &key("a"), LockMode::Exclusive).is_some());
        drop(validating);
        let _ = done.send(service);
    });
    let service = over.await.expect("no panic");
    // The one that was dropped is made unable to commit first.
    let next = service.begin(TxnOptions::default()).expect("it serves");
    let wait = LockSpec { wait: WaitPolicy::Wait, ..spec("a") };
    next.lock(wait).await.expect("the one that was dropped is over");
}
