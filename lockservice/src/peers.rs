//! The allocator of another node: [`RemoteAllocator`], and how a node reaches it ([`GrpcPeers`]).
//!
//! A call fails with `Unavailable` if the other node cannot be reached or does not answer in time; that says nothing about whether it was
//! carried out, and every call may be repeated.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorPeers, AllocatorStatus, BeginCommit, BoundTable, CannotCommit, CommitAdmission, Incarnation, Latest,
    LeaseAck, LockTableAllocator, Progress, ReservedTokens, Resume, TxnRange,
};
use lockservice_core::{
    BindVersion, CommitAttempt, Error, ErrorKind, Nonce, Result, ServiceId, TableId, TableRef, TxnId,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::channel::Channels;
use crate::convert;
use crate::proto;
use crate::proto::allocator_client::AllocatorClient as Wire;

/// Most transactions in one message.
const TXNS_MAX: usize = 10_000;
/// Most bytes of an answer. A part of a status is far below.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// How long to wait for another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// For a connection, and for the answer to a call on which a promise rests or whose caller tries again.
    pub call: Duration,
    /// For the answer to a start or a resignation: the one waits for the store, the other for commits in flight (C2).
    pub change: Duration,
}

impl Patience {
    /// What goes with a lease of raw length `lease_ttl`: a third of it, so that a renewal can be sent again in time, and the whole.
    pub fn for_lease(lease_ttl: Duration) -> Self {
        Self { call: lease_ttl / 3, change: lease_ttl }
    }
}

/// The allocators of other nodes, over gRPC: one channel for each address, a bounded number of them.
#[derive(Debug)]
pub struct GrpcPeers {
    channels: Channels,
    patience: Patience,
}

impl GrpcPeers {
    /// None is connected yet.
    pub fn new(patience: Patience) -> Self {
        Self { channels: Channels::new(patience.call), patience }
    }
}

impl AllocatorPeers for GrpcPeers {
    fn connect(&self, address: &str) -> Result<Arc<dyn LockTableAllocator>> {
        let wire = Wire::new(self.channels.to(address)?).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Arc::new(RemoteAllocator { wire, address: address.to_owned(), patience: self.patience }))
    }
}

/// The allocator of another node. It connects when it is first called, and again when the connection broke.
///
/// Calls of a node that does not lead fail with `NotLeader`: [`ElectedAllocator`](lockservice_core::allocator::ElectedAllocator) follows.
#[derive(Clone, Debug)]
pub struct RemoteAllocator {
    wire: Wire<Channel>,
    address: String,
    patience: Patience,
}

impl RemoteAllocator {
    async fn call<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<Response<T>, Status>> + Send,
    ) -> Result<T> {
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(self.silent()),
        }
    }

    fn failed(&self, status: &Status) -> Error {
        let error = convert::from_status(status);
        // Not the allocator's own word: the connection's, or somebody's in between.
        if status.details().is_empty() && matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
            return self.silent().with_source(error);
        }
        error.with("allocator", &self.address)
    }

    fn silent(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "the allocator's node does not answer: try again")
            .with("allocator", &self.address)
    }
}

#[async_trait]
impl LockTableAllocator for RemoteAllocator {
    async fn resume(&self, request: &Resume) -> Result<Incarnation> {
        let mut wire = self.wire.clone();
        let answer = self.call(self.patience.change, wire.resume(convert::resume_to_proto(request))).await?;
        Ok(convert::started_from_proto(answer))
    }

    async fn keepalive(&self, service: ServiceId, nonce: Nonce, told: Progress) -> Result<LeaseAck> {
        let mut wire = self.wire.clone();
        let request = proto::KeepaliveRequest {
            incarnation: Some(convert::incarnation_to_proto(service, nonce)),
            told: Some(convert::progress_to_proto(told)),
        };
        self.call(self.patience.call, wire.keepalive(request)).await.map(convert::lease_from_proto)
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        let mut wire = self.wire.clone();
        let request = convert::incarnation_to_proto(service, nonce);
        self.call(self.patience.change, wire.resign(request)).await.map(|done| convert::progress_from_proto(done.at))
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        let mut wire = self.wire.clone();
        let request = proto::BindRequest {
            service: service.get(),
            group: table.group.to_string(),
            table: table.name.to_string(),
        };
        self.call(self.patience.call, wire.bind(request)).await.and_then(convert::bound_from_proto)
    }

    async fn reserve_tokens(&self, service: ServiceId, table: TableId, version: BindVersion) -> Result<ReservedTokens> {
        let mut wire = self.wire.clone();
        let request =
            proto::ReserveTokensRequest { service: service.get(), table_id: table.get(), version: version.get() };
        self.call(self.patience.call, wire.reserve_tokens(request)).await.and_then(convert::reserved_from_proto)
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        let mut wire = self.wire.clone();
        let request = proto::LatestRequest { group: table.group.to_string(), table: table.name.to_string() };
        self.call(self.patience.call, wire.latest(request)).await.and_then(convert::latest_from_proto)
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        let mut wire = self.wire.clone();
        let answer = self.call(self.patience.call, wire.begin_commit(convert::begin_commit_to_proto(request))).await?;
        Ok(convert::admission_from_proto(answer))
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        let mut wire = self.wire.clone();
        let request = proto::FinishCommitRequest { txn: txn.to_string(), attempt: attempt.get() };
        let done = self.call(self.patience.call, wire.finish_commit(request)).await?;
        Ok(convert::progress_from_proto(done.at))
    }

    /// A failure half way leaves the transactions of the earlier messages unable to commit, which a repetition finds out.
    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        let mut all: Option<CannotCommit> = None;
        for some in pages(txns) {
            let mut wire = self.wire.clone();
            let request = proto::CannotCommitRequest { txns: convert::txns_to_proto(some) };
            let answer = self.call(self.patience.call, wire.cannot_commit(request)).await?;
            let answer = convert::cannot_commit_from_proto(answer)?;
            match &mut all {
                None => all = Some(answer),
                Some(all) => {
                    // L3: it is rejected if any part of it came from an earlier leader.
                    all.at = all.at.min(answer.at);
                    all.tombstoned.extend(answer.tombstoned);
                    all.committing.extend(answer.committing);
                    all.failed.extend(answer.failed);
                }
            }
        }
        Ok(all.unwrap_or_default())
    }

    async fn report_txns(&self, service: ServiceId, nonce: Nonce, range: TxnRange) -> Result<Progress> {
        let mut wire = self.wire.clone();
        let request = proto::ReportTxnsRequest {
            incarnation: Some(convert::incarnation_to_proto(service, nonce)),
            floor: range.floor,
            end: range.end,
        };
        let done = self.call(self.patience.call, wire.report_txns(request)).await?;
        Ok(convert::progress_from_proto(done.at))
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        let mut wire = self.wire.clone();
        let mut parts = self.call(self.patience.call, wire.status(proto::StatusRequest {})).await?;
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
}

/// The transactions in pieces that fit into a message; one empty piece if there are none, for the answer says who leads.
fn pages(txns: &[TxnId]) -> impl Iterator<Item = &[TxnId]> + Send {
    let none = txns.is_empty().then_some(txns);
    none.into_iter().chain(txns.chunks(TXNS_MAX))
}
