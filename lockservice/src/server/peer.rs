//! `lockservice.v1.Peer`.

use std::sync::Arc;

use lockservice_core::allocator::{LockTableAllocator, TxnRange};
use lockservice_core::{BindVersion, ServiceId, TableId, TxnNumber};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::gate::Gate;
use crate::convert;
use crate::proto;
use crate::trace;

/// Serves the nodes of a cluster as the leader of its store, if the node leads; `allocator` decides
/// that.
#[derive(Debug)]
pub(crate) struct PeerApi {
    allocator: Arc<dyn LockTableAllocator>,
    gate: Gate,
}

impl PeerApi {
    pub(crate) fn new(allocator: Arc<dyn LockTableAllocator>, gate: Gate) -> Self {
        Self { allocator, gate }
    }
}

#[tonic::async_trait]
impl proto::peer_server::Peer for PeerApi {
    async fn register(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        let call = async |request| {
            let started =
                self.allocator.register(&convert::registration_from_proto(request)?).await?;
            Ok(convert::started_to_proto(&started))
        };
        self.gate.pass(request, call).await
    }

    async fn keepalive(
        &self,
        request: Request<proto::KeepaliveRequest>,
    ) -> Result<Response<proto::KeepaliveResponse>, Status> {
        let call = async |request: proto::KeepaliveRequest| {
            let (service, nonce) = convert::incarnation_from_proto(request.incarnation)?;
            let observed = convert::progress_from_proto(request.observed);
            Ok(convert::lease_to_proto(&self.allocator.keepalive(service, nonce, observed).await?))
        };
        self.gate.pass(request, call).await
    }

    async fn report(
        &self,
        request: Request<proto::ReportRequest>,
    ) -> Result<Response<proto::Acknowledged>, Status> {
        let call = async |request| {
            let done = self.allocator.report(&convert::report_from_proto(request)).await?;
            Ok(convert::acknowledged_to_proto(done))
        };
        self.gate.pass(request, call).await
    }

    async fn resign(
        &self,
        request: Request<proto::ResignRequest>,
    ) -> Result<Response<proto::Acknowledged>, Status> {
        let call = async |request: proto::ResignRequest| {
            let (service, nonce, held) = convert::resignation_from_proto(request)?;
            // One that leaves nothing held resigns whole.
            let resigned = if held.is_empty() {
                self.allocator.resign(service, nonce).await
            } else {
                self.allocator.resign_held(service, nonce, &held).await
            };
            Ok(convert::acknowledged_to_proto(resigned?))
        };
        self.gate.pass(request, call).await
    }

    async fn claim(
        &self,
        request: Request<proto::ClaimTableRequest>,
    ) -> Result<Response<proto::ClaimTableResponse>, Status> {
        let call = async |request: proto::ClaimTableRequest| {
            let (service, claim) = convert::table_claim_from_proto(&request)?;
            let claimed = self.allocator.claim_table(service, &claim).await?;
            Ok(convert::claimed_to_proto(&claimed))
        };
        self.gate.pass(request, call).await
    }

    async fn bind(
        &self,
        request: Request<proto::BindRequest>,
    ) -> Result<Response<proto::BindResponse>, Status> {
        let span = trace::bind_span(request.metadata());
        let call = async |request: proto::BindRequest| {
            let table = convert::table_from_proto(&request.group, &request.table)?;
            Ok(convert::bound_to_proto(
                &self.allocator.bind(ServiceId::new(request.service), &table).await?,
            ))
        };
        self.gate.pass(request, call).instrument(span).await
    }

    async fn reserve_tokens(
        &self,
        request: Request<proto::ReserveTokensRequest>,
    ) -> Result<Response<proto::ReserveTokensResponse>, Status> {
        let call = async |request: proto::ReserveTokensRequest| {
            let (service, table) =
                (ServiceId::new(request.service), TableId::new(request.table_id));
            let reserved = self
                .allocator
                .reserve_tokens(service, table, BindVersion::new(request.version))
                .await?;
            Ok(convert::reserved_to_proto(&reserved))
        };
        self.gate.pass(request, call).await
    }

    async fn release_table(
        &self,
        request: Request<proto::ReleaseTableRequest>,
    ) -> Result<Response<proto::ReleaseTableResponse>, Status> {
        let call = async |request: proto::ReleaseTableRequest| {
            let (service, nonce) = convert::incarnation_from_proto(request.incarnation)?;
            let table = convert::table_from_proto(&request.group, &request.table)?;
            let version = BindVersion::new(request.version);
            let released = self.allocator.release_table(service, nonce, &table, version).await?;
            Ok(convert::released_to_proto(&released))
        };
        self.gate.pass(request, call).await
    }

    async fn forget_table(
        &self,
        request: Request<proto::ForgetTableRequest>,
    ) -> Result<Response<proto::ForgetTableResponse>, Status> {
        let call = async |request: proto::ForgetTableRequest| {
            let table = convert::table_from_proto(&request.group, &request.table)?;
            Ok(convert::forgetting_to_proto(&self.allocator.forget_table(&table).await?))
        };
        self.gate.pass(request, call).await
    }

    async fn cannot_commit(
        &self,
        request: Request<proto::CannotCommitRequest>,
    ) -> Result<Response<proto::CannotCommitResponse>, Status> {
        let call = async |request: proto::CannotCommitRequest| {
            let response =
                self.allocator.cannot_commit(&convert::txns_from_proto(&request.txns)?).await?;
            Ok(convert::cannot_commit_to_proto(&response))
        };
        self.gate.pass(request, call).await
    }

    async fn report_txns(
        &self,
        request: Request<proto::ReportTxnsRequest>,
    ) -> Result<Response<proto::Acknowledged>, Status> {
        let call = async |request: proto::ReportTxnsRequest| {
            let (service, nonce) = convert::incarnation_from_proto(request.incarnation)?;
            let range =
                TxnRange { floor: TxnNumber::new(request.floor), end: TxnNumber::new(request.end) };
            Ok(convert::acknowledged_to_proto(
                self.allocator.report_txns(service, nonce, range).await?,
            ))
        };
        self.gate.pass(request, call).await
    }
}
