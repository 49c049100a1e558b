//! The allocator of another node: [`RemoteAllocator`], and how a node reaches it ([`GrpcPeers`]).
//!
//! Every call names the cluster of its caller, and every response names the cluster of its node. An
//! address may belong to another cluster by now: a response from there is ignored (T3), and the
//! call fails with `Unavailable`.
//!
//! A call fails with `Unavailable` if the other node cannot be reached or does not respond in time.
//! It may have been carried out all the same, and every call may be repeated.

mod patience;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorPeers, AllocatorStatus, BeginCommit, BoundTable, CannotCommit, ClaimedTable,
    ClusterNodes, CommitAdmission, Forgetting, Incarnation, Latest, LeaseAck, LockTableAllocator,
    OriginTxns, Progress, Registration, Released, Report, ReservedTokens, TableClaim, TxnRange,
};
use lockservice_core::store::{ClusterId, TableHolders};
use lockservice_core::{
    BindVersion, CommitAttempt, Error, ErrorKind, Nonce, Result, ServiceId, TableId, TableRef,
    TxnId,
};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::channel::{Channels, Credentials, Link, Security};
use crate::convert::{self, CLUSTER, cluster_from_metadata, cluster_to_metadata};
use crate::proto;
use crate::proto::allocator_client::AllocatorClient;
use crate::proto::peer_client::PeerClient;
use crate::trace;

pub use self::patience::Patience;

/// The largest number of transactions in one message.
const TXNS_MAX: usize = 10_000;
/// The largest response, in bytes. A part of a status is far below.
const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// The allocators of other nodes, over gRPC: one channel for each address, a bounded number of
/// them.
#[derive(Debug)]
pub struct GrpcPeers {
    channels: Channels,
    patience: Patience,
}

impl GrpcPeers {
    /// Peers without a connection yet, which are reached in plain text.
    pub fn new(patience: Patience) -> Self {
        Self::over(Security::default(), patience)
    }

    /// Peers without a connection yet, which are reached with these credentials: with TLS if they
    /// have a CA or a certificate.
    ///
    /// # Errors
    /// `InvalidArgument`: a file of the credentials cannot be used; it is named.
    pub fn with_credentials(patience: Patience, credentials: &Credentials) -> Result<Self> {
        Ok(Self::over(Security::load(credentials, &[])?, patience))
    }

    /// Peers over a simulated network.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn simulated(patience: Patience, network: Arc<dyn crate::simulation::Network>) -> Self {
        Self::over(Security::simulated(network), patience)
    }

    fn over(security: Security, patience: Patience) -> Self {
        Self { channels: Channels::new(security, patience.call), patience }
    }
}

impl AllocatorPeers for GrpcPeers {
    fn connect(&self, address: &str, cluster: ClusterId) -> Result<Arc<dyn LockTableAllocator>> {
        let channel = self.channels.to(address)?;
        Ok(Arc::new(RemoteAllocator {
            channel,
            address: address.to_owned(),
            cluster,
            patience: self.patience,
        }))
    }
}

/// The allocator of another node. It connects when it is first called, and again when the
/// connection broke.
///
/// Calls of a node that does not lead fail with `NotLeader`:
/// [`ElectedAllocator`](lockservice_core::allocator::ElectedAllocator) follows.
#[derive(Clone, Debug)]
pub struct RemoteAllocator {
    channel: Link,
    address: String,
    /// The cluster of the caller.
    cluster: ClusterId,
    patience: Patience,
}

impl RemoteAllocator {
    fn peer(&self) -> PeerClient<Link> {
        PeerClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    fn allocator(&self) -> AllocatorClient<Link> {
        AllocatorClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// The request of a node of this cluster.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(CLUSTER, cluster_to_metadata(self.cluster));
        trace::inject(request.metadata_mut());
        request
    }

    async fn call<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<Response<T>, Status>> + Send,
    ) -> Result<T> {
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(response)) => {
                self.check_cluster(response.metadata())?;
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(self.silent()),
        }
    }

    /// The status: of all, or of the nodes that have a lease.
    async fn status_of(&self, nodes_only: bool) -> Result<AllocatorStatus> {
        let request = self.request(proto::StatusRequest { nodes_only });
        let mut parts = self.call(self.patience.call, self.allocator().status(request)).await?;
        let mut status = AllocatorStatus::default();
        loop {
            match tokio::time::timeout(self.patience.call, parts.message()).await {
                Ok(Ok(Some(part))) => convert::add_status_from_proto(&mut status, part)?,
                Ok(Ok(None)) => return Ok(status),
                Ok(Err(e)) => return Err(self.failed(&e)),
                Err(_) => return Err(self.silent()),
            }
        }
    }

    fn failed(&self, status: &Status) -> Error {
        let error = convert::from_status(status);
        if status.details().is_empty() {
            // The status does not come from the allocator, but from the connection, from a proxy,
            // or from another program at that address.
            return match status.code() {
                Code::DeadlineExceeded | Code::Cancelled => self.silent().with_source(error),
                Code::Unimplemented => self.elsewhere("none").with_source(error),
                _ => error.with("allocator", &self.address),
            };
        }
        match self.check_cluster(status.metadata()) {
            // A caller that is refused before the call reaches the node's API: the refusal says
            // what to correct.
            Err(_) if is_refused(&error, status) => error.with("allocator", &self.address),
            Ok(()) => error.with("allocator", &self.address),
            Err(elsewhere) => elsewhere.with_source(error),
        }
    }

    /// Fails with `Unavailable` if the response did not come from a node of this cluster (T3).
    fn check_cluster(&self, response: &MetadataMap) -> Result<()> {
        match cluster_from_metadata(response) {
            Some(cluster) if cluster == self.cluster => Ok(()),
            Some(cluster) => Err(self.elsewhere(cluster)),
            None => Err(self.elsewhere("unknown")),
        }
    }

    fn elsewhere(&self, responded: impl fmt::Display) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            "the process at the leader's address is no node of this cluster: does each node \
                advertise an address of its own?",
        )
        .with("allocator", &self.address)
        .with("cluster", self.cluster)
        .with("responded", responded)
    }

    fn silent(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "the allocator's node does not respond: try again")
            .with("allocator", &self.address)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl LockTableAllocator for RemoteAllocator {
    async fn register(&self, request: &Registration) -> Result<Incarnation> {
        let response = self
            .call(
                self.patience.change,
                self.peer().register(self.request(convert::registration_to_proto(request))),
            )
            .await?;
        convert::started_from_proto(response)
    }

    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        let request = proto::KeepaliveRequest {
            incarnation: Some(convert::incarnation_to_proto(service, nonce)),
            observed: Some(convert::progress_to_proto(observed)),
        };
        self.call(self.patience.call, self.peer().keepalive(self.request(request)))
            .await
            .map(convert::lease_from_proto)
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        let request = convert::report_to_proto(report);
        let done = self.call(self.patience.call, self.peer().report(self.request(request))).await?;
        Ok(convert::progress_from_proto(done.at))
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        self.resign_held(service, nonce, &[]).await
    }

    async fn resign_held(
        &self,
        service: ServiceId,
        nonce: Nonce,
        held: &[TableHolders],
    ) -> Result<Progress> {
        let request = convert::resignation_to_proto(service, nonce, held);
        self.call(self.patience.change, self.peer().resign(self.request(request)))
            .await
            .map(|done| convert::progress_from_proto(done.at))
    }

    async fn claim_table(&self, service: ServiceId, claim: &TableClaim) -> Result<ClaimedTable> {
        let request = convert::table_claim_to_proto(service, claim);
        self.call(self.patience.call, self.peer().claim(self.request(request)))
            .await
            .and_then(convert::claimed_from_proto)
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        let request = proto::BindRequest {
            service: service.get(),
            group: table.group.to_string(),
            table: table.name.to_string(),
        };
        self.call(self.patience.call, self.peer().bind(self.request(request)))
            .await
            .and_then(convert::bound_from_proto)
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        let request = proto::ReserveTokensRequest {
            service: service.get(),
            table_id: table.get(),
            version: version.get(),
        };
        self.call(self.patience.call, self.peer().reserve_tokens(self.request(request)))
            .await
            .and_then(convert::reserved_from_proto)
    }

    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        let request = proto::ReleaseTableRequest {
            incarnation: Some(convert::incarnation_to_proto(service, nonce)),
            group: table.group.to_string(),
            table: table.name.to_string(),
            version: version.get(),
        };
        let response =
            self.call(self.patience.call, self.peer().release_table(self.request(request))).await?;
        Ok(convert::released_from_proto(response))
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        let request = proto::ForgetTableRequest {
            group: table.group.to_string(),
            table: table.name.to_string(),
        };
        self.call(self.patience.call, self.peer().forget_table(self.request(request)))
            .await
            .and_then(convert::forgetting_from_proto)
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        let request =
            proto::LatestRequest { group: table.group.to_string(), table: table.name.to_string() };
        self.call(self.patience.call, self.allocator().latest(self.request(request)))
            .await
            .and_then(convert::latest_from_proto)
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        let response = self
            .call(
                self.patience.call,
                self.allocator()
                    .begin_commit(self.request(convert::begin_commit_to_proto(request))),
            )
            .await?;
        Ok(convert::admission_from_proto(response))
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        let request = proto::FinishCommitRequest { txn: txn.to_string(), attempt: attempt.get() };
        let done = self
            .call(self.patience.call, self.allocator().finish_commit(self.request(request)))
            .await?;
        Ok(convert::progress_from_proto(done.at))
    }

    /// After a failure half way, the transactions of the earlier messages cannot commit. A
    /// repetition returns that.
    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        let mut all: Option<CannotCommit> = None;
        for some in pages(txns) {
            let request = proto::CannotCommitRequest { txns: convert::txns_to_proto(some) };
            let response = self
                .call(self.patience.call, self.peer().cannot_commit(self.request(request)))
                .await?;
            let response = convert::cannot_commit_from_proto(response)?;
            match &mut all {
                None => all = Some(response),
                Some(all) => {
                    // L3: it is rejected if any part of it came from an earlier leader.
                    all.at = all.at.min(response.at);
                    all.tombstoned.extend(response.tombstoned);
                    all.committing.extend(response.committing);
                    all.failed.extend(response.failed);
                }
            }
        }
        Ok(all.unwrap_or_default())
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        let request = proto::ReportTxnsRequest {
            incarnation: Some(convert::incarnation_to_proto(service, nonce)),
            floor: range.floor.get(),
            end: range.end.get(),
        };
        let done =
            self.call(self.patience.call, self.peer().report_txns(self.request(request))).await?;
        Ok(convert::progress_from_proto(done.at))
    }

    /// Another process does not reach the origins of this one. They reach it by reports.
    fn attach_origin(&self, _service: ServiceId, _origin: Arc<dyn OriginTxns>) {}

    async fn nodes(&self) -> Result<ClusterNodes> {
        let AllocatorStatus { at, services, .. } = self.status_of(true).await?;
        Ok(ClusterNodes { at, nodes: services })
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        self.status_of(false).await
    }
}

/// True for the refusal of a caller that may not make the call. Those of a node's API name its
/// cluster.
fn is_refused(error: &Error, status: &Status) -> bool {
    match error.kind() {
        ErrorKind::Unauthenticated => true,
        ErrorKind::NotPermitted => status.metadata().get(CLUSTER).is_none(),
        _ => false,
    }
}

/// The transactions in pieces that fit into a message; one empty piece if there are none, for the
/// response names the leader.
fn pages(txns: &[TxnId]) -> impl Iterator<Item = &[TxnId]> + Send {
    let none = txns.is_empty().then_some(txns);
    none.into_iter().chain(txns.chunks(TXNS_MAX))
}
