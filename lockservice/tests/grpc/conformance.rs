//! A server and the client keep the promises of a lock service, over real connections.

use std::ops::Bound;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::support::{Proxy, Served};
use async_trait::async_trait;
use lockservice::client::{Client, ClientTxn, Session, TxnSavepoint};
use lockservice::convert::from_status;
use lockservice::proto;
use lockservice::proto::locks_client::LocksClient;
use lockservice::server::ServerSettings;
use lockservice_core::allocator::{BeginCommit, CannotCommit};
use lockservice_core::service::{LockSpec, LockStatus, Stopped, TxnOptions, WaitStatus};
use lockservice_core::table::{Commit, Grant};
use lockservice_core::testing::{
    ServiceFixture, SessionFixture, TxnFixture, UnparsedItem, service_suite,
};
use lockservice_core::{CommitAttempt, Error, LockItem, LockMode, Result, TableRef, TxnId};
use prost::bytes::Bytes;

// Two threads, so that client and server run at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_over_grpc_keeps_the_contract_of_a_lock_service() {
    service_suite(|| async { Box::new(Remote::start().await) as Box<dyn ServiceFixture> }).await;
}

struct Remote {
    address: String,
    /// An operator's, who sees and validates and holds no locks.
    operator: Client,
    served: Mutex<Option<Served>>,
}

impl Remote {
    async fn start() -> Self {
        let served =
            Served::start(ServerSettings { grace_ms: 3_000, ..ServerSettings::default() }).await;
        let address = served.address.clone();
        let operator = Client::connect(&address).await.expect("the server responds");
        Self { address, operator, served: Mutex::new(Some(served)) }
    }
}

#[async_trait]
impl ServiceFixture for Remote {
    async fn session(
        &self,
        client: &str,
        ttl: Option<Duration>,
    ) -> Result<Box<dyn SessionFixture>> {
        // Connections of its own, that can be cut without harm to others.
        let proxy = Proxy::start(&self.address).await;
        let client = Client::builder().name(client).connect(&proxy.address).await?;
        let session = client.session(ttl).await?;
        Ok(Box::new(RemoteSession { session, proxy }))
    }

    async fn lock_unparsed(&self, table: &TableRef, items: Vec<UnparsedItem>) -> Result<()> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address))
            .expect("an address");
        let mut wire = LocksClient::new(endpoint.connect().await.expect("the server responds"));
        let welcome = wire
            .open_session(proto::Hello::default())
            .await
            .map_err(|status| from_status(&status))?;
        let welcome = welcome.into_inner();
        let session = proto::SessionRef { session: welcome.session, service: welcome.service };
        let mut lock = proto::LockOp {
            txn: Some(proto::TxnRef { number: 1, sequence: 1, ..Default::default() }),
            group: table.group.to_string(),
            table: table.name.to_string(),
            wait: proto::WaitPolicy::NoWait.into(),
            ..Default::default()
        };
        for item in items {
            match item {
                UnparsedItem::Row(row) => lock.rows.push(row.into()),
                UnparsedItem::Range(start, end) => {
                    lock.ranges
                        .push(proto::KeyRange { start: Some(bound(start)), end: Some(bound(end)) });
                }
            }
        }
        let locked = wire.lock(proto::UnaryLock { session: Some(session), lock: Some(lock) }).await;
        wire.close_session(session).await.map_err(|status| from_status(&status))?;
        locked.map(drop).map_err(|status| from_status(&status))
    }

    async fn locks(&self, table: Option<&TableRef>) -> Result<Vec<LockStatus>> {
        Ok(self.operator.admin().locks(table).await?.into_iter().collect())
    }

    async fn waits(&self, table: Option<&TableRef>) -> Result<Vec<WaitStatus>> {
        Ok(self.operator.admin().waits(table).await?.into_iter().collect())
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<Duration> {
        Ok(self.operator.allocator().begin_commit(request).await?.commit_before)
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        // A call for nodes, and this server has none beside it.
        let allocator =
            self.served.lock().expect("no panic").as_ref().expect("it serves").host.allocator();
        allocator.cannot_commit(txns).await
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<()> {
        self.operator.allocator().finish_commit(txn, attempt).await
    }

    async fn stop(&self) -> Stopped {
        let mut served = self.served.lock().expect("no panic").take().expect("stopped once");
        served.stop();
        served.stopped().await
    }
}

fn bound(bound: Bound<Vec<u8>>) -> proto::Bound {
    use proto::bound::Bound as Wire;
    let bound = match bound {
        Bound::Included(key) => Wire::Included(Bytes::from(key)),
        Bound::Excluded(key) => Wire::Excluded(Bytes::from(key)),
        Bound::Unbounded => Wire::Unbounded(proto::Unbounded {}),
    };
    proto::Bound { bound: Some(bound) }
}

struct RemoteSession {
    session: Session,
    proxy: Proxy,
}

#[async_trait]
impl SessionFixture for RemoteSession {
    fn begin(&self, options: TxnOptions) -> Box<dyn TxnFixture> {
        let txn = Arc::new(self.session.txn(options));
        let (txn, id) = (Mutex::new(Some(txn)), OnceLock::new());
        Box::new(RemoteTxn { txn, id, savepoints: Mutex::default() })
    }

    async fn lost(&self) -> Error {
        self.session.lost().await
    }

    async fn fall_silent(&self) {
        self.proxy.shut();
    }

    async fn close(&self) -> Result<()> {
        self.session.close().await
    }
}

struct RemoteTxn {
    /// `None` once it has ended.
    txn: Mutex<Option<Arc<ClientTxn>>>,
    id: OnceLock<TxnId>,
    savepoints: Mutex<Vec<TxnSavepoint>>,
}

impl RemoteTxn {
    fn active(&self) -> Option<Arc<ClientTxn>> {
        self.txn.lock().expect("no panic").clone()
    }
}

#[async_trait]
impl TxnFixture for RemoteTxn {
    fn id(&self) -> Option<TxnId> {
        self.id.get().copied()
    }

    async fn lock(&self, spec: LockSpec) -> Result<Grant> {
        let txn = self.active().expect("it has not ended");
        let grant = txn.lock(spec).await?;
        let id = txn.id().expect("known once a lock was granted");
        assert_eq!(*self.id.get_or_init(|| id), id, "it stays the same");
        Ok(grant)
    }

    async fn unlock(
        &self,
        table: &TableRef,
        items: &[LockItem],
        commit: Option<Commit>,
    ) -> Result<()> {
        self.active().expect("it has not ended").unlock(table, items, commit).await
    }

    async fn downgrade(&self, table: &TableRef, items: &[LockItem], mode: LockMode) -> Result<()> {
        self.active().expect("it has not ended").downgrade(table, items, mode).await
    }

    async fn savepoint(&self) -> Result<usize> {
        let savepoint = self.active().expect("it has not ended").savepoint().await?;
        let mut savepoints = self.savepoints.lock().expect("no panic");
        savepoints.push(savepoint);
        Ok(savepoints.len() - 1)
    }

    async fn roll_back_to(&self, savepoint: usize) -> Result<()> {
        let savepoint = self.savepoints.lock().expect("no panic")[savepoint].clone();
        self.active().expect("it has not ended").roll_back_to(&savepoint).await
    }

    async fn end(&self, commit: Option<Commit>) -> Result<()> {
        let Some(txn) = self.txn.lock().expect("no panic").take() else { return Ok(()) };
        Arc::into_inner(txn).expect("no other call is under way").end(commit).await
    }
}
