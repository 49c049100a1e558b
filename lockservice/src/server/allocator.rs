//! `lockservice.v1.Allocator`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use lockservice_core::CommitAttempt;
use lockservice_core::allocator::{AllocatorStatus, ClusterNodes, LockTableAllocator};
use tonic::{Request, Response, Status};

use super::Principal;
use super::gate::Gate;
use super::table_names::TableNames;
use crate::convert;
use crate::proto;

/// The largest number of nodes or binds in one part of a status: about half a megabyte if all names
/// are as long as they may be.
const STATUS_LINES_MAX: usize = 500;

/// Serves as the leader of the store, if the node leads; `allocator` decides that.
#[derive(Debug)]
pub(crate) struct AllocatorApi {
    allocator: Arc<dyn LockTableAllocator>,
    gate: Gate,
    tables: TableNames,
}

impl AllocatorApi {
    pub(crate) fn new(allocator: Arc<dyn LockTableAllocator>, gate: Gate) -> Self {
        Self { allocator, gate, tables: TableNames::default() }
    }
}

#[tonic::async_trait]
impl proto::allocator_server::Allocator for AllocatorApi {
    type StatusStream = Pin<Box<dyn Stream<Item = Result<proto::StatusPart, Status>> + Send>>;

    async fn begin_commit(
        &self,
        request: Request<proto::BeginCommitRequest>,
    ) -> Result<Response<proto::BeginCommitResponse>, Status> {
        let caller = Principal::of(request.extensions());
        let call = async |request| {
            let request = convert::begin_commit_from_proto(request)?;
            if caller.is_limited() {
                self.tables.check(&*self.allocator, &request.binds, &caller).await?;
            }
            let admission = self.allocator.begin_commit(&request).await?;
            Ok(convert::admission_to_proto(&admission))
        };
        self.gate.pass(request, call).await
    }

    async fn finish_commit(
        &self,
        request: Request<proto::FinishCommitRequest>,
    ) -> Result<Response<proto::Acknowledged>, Status> {
        let call = async |request: proto::FinishCommitRequest| {
            let txn = convert::txn_from_proto(&request.txn)?;
            let done =
                self.allocator.finish_commit(txn, CommitAttempt::new(request.attempt)).await?;
            Ok(convert::acknowledged_to_proto(done))
        };
        self.gate.pass(request, call).await
    }

    async fn latest(
        &self,
        request: Request<proto::LatestRequest>,
    ) -> Result<Response<proto::LatestResponse>, Status> {
        let caller = Principal::of(request.extensions());
        let call = async |request: proto::LatestRequest| {
            let table = convert::table_from_proto(&request.group, &request.table)?;
            caller.may_use(&table)?;
            Ok(convert::latest_to_proto(&self.allocator.latest(&table).await?))
        };
        self.gate.pass(request, call).await
    }

    async fn status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let call = async |request: proto::StatusRequest| {
            let status = if request.nodes_only {
                let ClusterNodes { at, nodes } = self.allocator.nodes().await?;
                AllocatorStatus { at, services: nodes, binds: Vec::new() }
            } else {
                self.allocator.status().await?
            };
            let parts = convert::status_to_proto(status, STATUS_LINES_MAX).map(Ok);
            Ok(Box::pin(futures::stream::iter(parts)) as Self::StatusStream)
        };
        self.gate.pass(request, call).await
    }
}
