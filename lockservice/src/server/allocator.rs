//! `lockservice.v1.Allocator`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use lockservice_core::allocator::{LockTableAllocator, TxnRange};
use lockservice_core::{BindVersion, CommitAttempt, Error, ErrorKind, ServiceId, TableId};
use tonic::{Request, Response, Status};

use crate::convert::{self, to_status as status};
use crate::proto;

/// Most nodes or binds in one part of a status: about half a megabyte if all names are as long as they may be.
const STATUS_LINES_MAX: usize = 500;

/// Answers as the leader of the store, if the node leads; `allocator` decides that.
#[derive(Debug)]
pub(crate) struct AllocatorApi {
    allocator: Arc<dyn LockTableAllocator>,
    others: bool,
}

impl AllocatorApi {
    /// Serves the calls that are for nodes only if there are `others`.
    pub(crate) fn new(allocator: Arc<dyn LockTableAllocator>, others: bool) -> Self {
        Self { allocator, others }
    }

    /// The allocator, for a call that is for nodes.
    fn for_nodes(&self) -> Result<&Arc<dyn LockTableAllocator>, Status> {
        if self.others {
            return Ok(&self.allocator);
        }
        let why = "this call is for nodes, and this one serves alone: let several nodes share a store instead";
        Err(status(&Error::new(ErrorKind::NotPermitted, why)))
    }
}

#[tonic::async_trait]
impl proto::allocator_server::Allocator for AllocatorApi {
    type StatusStream = Pin<Box<dyn Stream<Item = Result<proto::StatusPart, Status>> + Send>>;

    async fn begin_commit(
        &self,
        request: Request<proto::BeginCommitRequest>,
    ) -> Result<Response<proto::BeginCommitResponse>, Status> {
        let request = convert::begin_commit_from_proto(request.into_inner()).map_err(|e| status(&e))?;
        let admission = self.allocator.begin_commit(&request).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::admission_to_proto(&admission)))
    }

    async fn finish_commit(
        &self,
        request: Request<proto::FinishCommitRequest>,
    ) -> Result<Response<proto::Acknowledged>, Status> {
        let request = request.into_inner();
        let txn = convert::txn_from_proto(&request.txn).map_err(|e| status(&e))?;
        let done = self.allocator.finish_commit(txn, CommitAttempt::new(request.attempt)).await;
        Ok(Response::new(convert::acknowledged_to_proto(done.map_err(|e| status(&e))?)))
    }

    async fn cannot_commit(
        &self,
        request: Request<proto::CannotCommitRequest>,
    ) -> Result<Response<proto::CannotCommitResponse>, Status> {
        let txns = convert::txns_from_proto(&request.get_ref().txns).map_err(|e| status(&e))?;
        let answer = self.for_nodes()?.cannot_commit(&txns).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::cannot_commit_to_proto(&answer)))
    }

    async fn latest(&self, request: Request<proto::LatestRequest>) -> Result<Response<proto::LatestResponse>, Status> {
        let table =
            convert::table_from_proto(&request.get_ref().group, &request.get_ref().table).map_err(|e| status(&e))?;
        let latest = self.allocator.latest(&table).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::latest_to_proto(&latest)))
    }

    async fn resume(&self, request: Request<proto::ResumeRequest>) -> Result<Response<proto::ResumeResponse>, Status> {
        let request = convert::resume_from_proto(request.into_inner()).map_err(|e| status(&e))?;
        let started = self.for_nodes()?.resume(&request).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::started_to_proto(&started)))
    }

    async fn keepalive(
        &self,
        request: Request<proto::KeepaliveRequest>,
    ) -> Result<Response<proto::KeepaliveResponse>, Status> {
        let request = request.into_inner();
        let (service, nonce) = convert::incarnation_from_proto(request.incarnation).map_err(|e| status(&e))?;
        let told = convert::progress_from_proto(request.told);
        let ack = self.for_nodes()?.keepalive(service, nonce, told).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::lease_to_proto(&ack)))
    }

    async fn resign(&self, request: Request<proto::IncarnationRef>) -> Result<Response<proto::Acknowledged>, Status> {
        let (service, nonce) = convert::incarnation_from_proto(Some(request.into_inner())).map_err(|e| status(&e))?;
        let resigned = self.for_nodes()?.resign(service, nonce).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::acknowledged_to_proto(resigned)))
    }

    async fn bind(&self, request: Request<proto::BindRequest>) -> Result<Response<proto::BindResponse>, Status> {
        let request = request.into_inner();
        let table = convert::table_from_proto(&request.group, &request.table).map_err(|e| status(&e))?;
        let bound = self.for_nodes()?.bind(ServiceId::new(request.service), &table).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::bound_to_proto(&bound)))
    }

    async fn reserve_tokens(
        &self,
        request: Request<proto::ReserveTokensRequest>,
    ) -> Result<Response<proto::ReserveTokensResponse>, Status> {
        let request = request.into_inner();
        let (service, table) = (ServiceId::new(request.service), TableId::new(request.table_id));
        let reserved = self.for_nodes()?.reserve_tokens(service, table, BindVersion::new(request.version)).await;
        Ok(Response::new(convert::reserved_to_proto(&reserved.map_err(|e| status(&e))?)))
    }

    async fn report_txns(
        &self,
        request: Request<proto::ReportTxnsRequest>,
    ) -> Result<Response<proto::Acknowledged>, Status> {
        let request = request.into_inner();
        let range = TxnRange { floor: request.floor, end: request.end };
        let (service, nonce) = convert::incarnation_from_proto(request.incarnation).map_err(|e| status(&e))?;
        let done = self.for_nodes()?.report_txns(service, nonce, range).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::acknowledged_to_proto(done)))
    }

    async fn status(&self, _request: Request<proto::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let all = self.allocator.status().await.map_err(|e| status(&e))?;
        let parts = convert::status_to_proto(all, STATUS_LINES_MAX).map(Ok);
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }
}
