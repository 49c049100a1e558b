//! `lockservice.v1.Allocator`.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{BeginCommit, CommitWindow, LockTableAllocator};
use lockservice_core::{CommitAttempt, Result, TxnId};
use tonic::{Request, Response, Status};

use crate::convert::{self, to_status as status};
use crate::proto;

#[derive(Debug)]
pub(crate) struct AllocatorApi {
    allocator: Arc<dyn LockTableAllocator>,
}

impl AllocatorApi {
    pub(crate) fn new(allocator: Arc<dyn LockTableAllocator>) -> Self {
        Self { allocator }
    }
}

fn begin_commit_from(request: proto::BeginCommitRequest) -> Result<BeginCommit> {
    Ok(BeginCommit {
        txn: convert::txn_from_proto(&request.txn)?,
        binds: request.binds.into_iter().map(convert::presented_from_proto).collect::<Result<_>>()?,
        attempt: CommitAttempt::new(request.attempt),
        asked: CommitWindow {
            least: Duration::from_millis(request.least_ms),
            most: Duration::from_millis(request.most_ms),
        },
    })
}

fn texts(txns: &[TxnId]) -> Vec<String> {
    txns.iter().map(TxnId::to_string).collect()
}

#[tonic::async_trait]
impl proto::allocator_server::Allocator for AllocatorApi {
    async fn begin_commit(
        &self,
        request: Request<proto::BeginCommitRequest>,
    ) -> Result<Response<proto::BeginCommitResponse>, Status> {
        let request = begin_commit_from(request.into_inner()).map_err(|e| status(&e))?;
        let admission = self.allocator.begin_commit(&request).await.map_err(|e| status(&e))?;
        Ok(Response::new(proto::BeginCommitResponse {
            commit_before_ms: convert::millis_down(admission.commit_before),
            epoch: admission.at.epoch.get(),
        }))
    }

    async fn finish_commit(
        &self,
        request: Request<proto::FinishCommitRequest>,
    ) -> Result<Response<proto::Done>, Status> {
        let request = request.into_inner();
        let txn = convert::txn_from_proto(&request.txn).map_err(|e| status(&e))?;
        self.allocator.finish_commit(txn, CommitAttempt::new(request.attempt)).await.map_err(|e| status(&e))?;
        Ok(Response::new(proto::Done {}))
    }

    async fn cannot_commit(
        &self,
        request: Request<proto::CannotCommitRequest>,
    ) -> Result<Response<proto::CannotCommitResponse>, Status> {
        let txns = request.get_ref().txns.iter().map(|txn| convert::txn_from_proto(txn)).collect::<Result<Vec<_>>>();
        let answer = self.allocator.cannot_commit(&txns.map_err(|e| status(&e))?).await.map_err(|e| status(&e))?;
        Ok(Response::new(proto::CannotCommitResponse {
            tombstoned: texts(&answer.tombstoned),
            committing: texts(&answer.committing),
        }))
    }

    async fn latest(&self, request: Request<proto::LatestRequest>) -> Result<Response<proto::LatestResponse>, Status> {
        let table =
            convert::table_from_proto(&request.get_ref().group, &request.get_ref().table).map_err(|e| status(&e))?;
        let bind = self.allocator.latest(&table).await.map_err(|e| status(&e))?;
        Ok(Response::new(proto::LatestResponse { bind: bind.as_ref().map(convert::bind_status_to_proto) }))
    }
}
