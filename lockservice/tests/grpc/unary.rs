//! The unary calls, as clients use them that have no session stream.

use std::time::Duration;

use crate::support::Served;
use lockservice::convert::from_status;
use lockservice::proto::locks_client::LocksClient;
use lockservice::proto::{self, TxnRef};
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use prost::bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Longer than anything here takes, also on a busy machine.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// A connection of its own, with a session.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) channel: Channel,
    pub(crate) wire: LocksClient<Channel>,
    pub(crate) session: proto::SessionRef,
}

impl Caller {
    pub(crate) async fn new(served: &Served) -> Self {
        let endpoint =
            Endpoint::from_shared(format!("http://{}", served.address)).expect("an address");
        let channel = endpoint.connect().await.expect("the server responds");
        let mut wire = LocksClient::new(channel.clone());
        let welcome =
            wire.open_session(proto::Hello::default()).await.expect("a session").into_inner();
        let session = proto::SessionRef { session: welcome.session, service: welcome.service };
        Self { channel, wire, session }
    }

    /// A transaction that the server numbers.
    pub(crate) async fn begin(&mut self) -> TxnRef {
        let begin = proto::BeginTxn { session: Some(self.session), ..Default::default() };
        let started = self.wire.begin(begin).await.expect("it begins").into_inner();
        TxnRef { number: started.number, ..Default::default() }
    }

    fn request(&self, txn: &TxnRef, rows: Vec<Bytes>) -> proto::UnaryLock {
        let lock = proto::LockOp {
            txn: Some(txn.clone()),
            table: "t".to_owned(),
            rows,
            ..Default::default()
        };
        proto::UnaryLock { session: Some(self.session), lock: Some(lock) }
    }

    pub(crate) async fn lock(&mut self, txn: &TxnRef, row: &[u8]) -> Result<proto::Locked, Status> {
        self.lock_rows(txn, vec![Bytes::copy_from_slice(row)]).await
    }

    pub(crate) async fn lock_rows(
        &mut self,
        txn: &TxnRef,
        rows: Vec<Bytes>,
    ) -> Result<proto::Locked, Status> {
        let request = self.request(txn, rows);
        self.wire.lock(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn end(&mut self, txn: &TxnRef) -> Result<proto::Done, Status> {
        let end = proto::EndOp { txn: Some(txn.clone()), ..Default::default() };
        let end = proto::UnaryEnd { session: Some(self.session), end: Some(end) };
        self.wire.end(end).await.map(tonic::Response::into_inner)
    }
}

#[tokio::test]
async fn a_lock_that_waits_ends_at_the_deadline_of_its_call_and_waits_no_more() {
    let served = Served::start(ServerSettings::default()).await;
    let mut caller = Caller::new(&served).await;
    let (holder, waiter) = (caller.begin().await, caller.begin().await);
    caller.lock(&holder, b"a").await.expect("free");
    let mut request = Request::new(caller.request(&waiter, vec![Bytes::from_static(b"a")]));
    request.set_timeout(Duration::from_millis(300));
    let late = tokio::time::timeout(WAIT, caller.wire.lock(request))
        .await
        .expect("it ends")
        .expect_err("held");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    // The server said so: the client's own clock knows no details.
    assert_eq!(from_status(&late).kind(), ErrorKind::Timeout);
    assert!(!late.details().is_empty(), "{late:?}");
    assert_eq!(caller.end(&holder).await.expect("it ends").released, 1);
    assert_eq!(
        caller.end(&waiter).await.expect("it ends").released,
        0,
        "nothing was granted to it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_several_threads_of_one_session_are_all_served() {
    const THREADS: usize = 8;
    // Four calls each, and more than a thousand rows in one transaction.
    const ROUNDS: usize = 150;
    let served = Served::start(ServerSettings::default()).await;
    let mut caller = Caller::new(&served).await;
    let shared = caller.begin().await;
    let tasks = (0..THREADS).map(|thread| {
        let (mut caller, shared) = (caller.clone(), shared.clone());
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let own = caller.begin().await;
                // In a transaction of its own, and in one that all of them use.
                for txn in [&own, &shared] {
                    let row = format!("{thread} {round} {}", txn.number);
                    assert!(caller.lock(txn, row.as_bytes()).await.expect("free").newly_locked);
                }
                assert_eq!(caller.end(&own).await.expect("it ends").released, 1);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("every call was served");
    }
    assert_eq!(caller.end(&shared).await.expect("it ends").released, (THREADS * ROUNDS) as u64);
}
