//! Commits, and the leadership that admits them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures::FutureExt as _;
use lockservice::client::Client;
use lockservice::server::ServerSettings;
use lockservice_core::allocator::{BeginCommit, CommitWindow, PresentedBind};
use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::service::TxnOptions;
use lockservice_core::table::Commit;
use lockservice_core::{CommitAttempt, CommitTimestamp, Epoch, ErrorKind, TableRef};

use super::{client, server, waits};
use crate::support::{Proxy, Served, spec, table};

#[tokio::test]
async fn a_commit_is_admitted_for_a_time_that_counts_from_the_request() {
    let served = server().await;
    let client = client(&served.address).await;
    let session = client.session(None).await.expect("a session");
    let txn = session.txn(TxnOptions { validates: true, ..Default::default() });
    let grant = txn.lock(spec("alice")).await.expect("free");
    let allocator = client.allocator();
    let window =
        CommitWindow { least: Duration::from_millis(10), most: Duration::from_millis(800) };
    let mut request = BeginCommit {
        txn: txn.id().expect("it locked"),
        binds: vec![PresentedBind::from(&grant.bind)],
        attempt: CommitAttempt::new(1),
        window,
    };
    let before = SystemClock.now();
    let admission = allocator.begin_commit(&request).await.expect("nothing changed");
    assert!(admission.commit_before <= window.most);
    assert!(admission.until >= before && admission.until < SystemClock.now() + window.most);
    allocator.finish_commit(request.txn, request.attempt).await.expect("it ended");
    let silent = session.txn(TxnOptions::default());
    silent.lock(spec("bob")).await.expect("free");
    request.txn = silent.id().expect("it locked");
    assert_eq!(
        allocator.begin_commit(&request).await.expect_err("T1").kind(),
        ErrorKind::CannotCommit
    );
    assert!(allocator.latest(&table()).await.expect("the server responds").is_some());
    let unknown = TableRef::new("default", "unknown").expect("names");
    assert!(allocator.latest(&unknown).await.expect("the server responds").is_none());
}

#[tokio::test]
async fn an_end_that_is_not_waited_for_brings_its_commit_even_if_the_session_ends_at_once() {
    let served = server().await;
    for (row, is_closed) in [("alice", true), ("bob", false)] {
        let session = client(&served.address).await.session(None).await.expect("a session");
        let txn = session.txn(TxnOptions::default());
        txn.lock(spec(row)).await.expect("free");
        let reader = client(&served.address).await.session(None).await.expect("a session");
        let mut waiting = Box::pin(reader.lock(spec(row)));
        assert!(waiting.as_mut().now_or_never().is_none());
        waits(&client(&served.address).await.admin(), 1).await;
        drop(txn.end(Some(Commit::at(CommitTimestamp::new(7)))));
        if is_closed {
            session.close().await.expect("the server responds");
        } else {
            drop(session);
        }
        let lock = waiting.await.expect("handed on");
        assert_eq!(lock.grant().prev_commit_ts, Some(CommitTimestamp::new(7)), "{row}");
        lock.release().await.expect("acknowledged");
    }
}

/// The system's clock, some seconds ahead.
#[derive(Debug, Default)]
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now(&self) -> Time {
        SystemClock.now() + Duration::from_secs(self.0.load(SeqCst))
    }
}

/// L3: if a store is removed or lost, the epochs of its servers begin again, and clients have
/// observed later ones.
#[tokio::test]
async fn a_lower_epoch_is_refused_as_an_earlier_leaders_and_believed_when_that_cannot_be() {
    let later = Served::start_above(Epoch::new(77), ServerSettings::default()).await;
    let proxy = Proxy::start(&later.address).await;
    let clock = Arc::new(Ahead::default());
    let clock_of_client: Arc<dyn Clock> = Arc::<Ahead>::clone(&clock);
    let builder = Client::builder().env(clock_of_client).call_timeout(Duration::from_secs(1));
    let allocator = builder.connect(&proxy.address).await.expect("the server responds").allocator();
    allocator.latest(&table()).await.expect("it leads");
    let forgot = server().await;
    proxy.lead_to(&forgot.address);
    let ask = async || loop {
        match allocator.latest(&table()).await {
            // Its connection was cut.
            Err(e) if e.kind() == ErrorKind::Unavailable => tokio::task::yield_now().await,
            response => return response.map(drop).map_err(|e| e.kind()),
        }
    };
    assert_eq!(ask().await, Err(ErrorKind::NotLeader));
    clock.0.store(40, SeqCst);
    assert_eq!(ask().await, Err(ErrorKind::NotLeader));
    clock.0.store(70, SeqCst);
    assert_eq!(ask().await, Ok(()));
    proxy.lead_to(&later.address);
    assert_eq!(ask().await, Ok(()), "a higher one is always news");
}
