//! `lockservice.v1.Admin`.

use lockservice_core::service::{LockList, LockStatus, SessionList, TxnList, WaitList, WaitStatus};
use lockservice_core::{Error, ErrorKind, Key, TableRef};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::list_stream::{Line, List, ListStreams, SLICE_LINES, Whole};
use crate::convert::{self, to_status as status};
use crate::proto;
use crate::server::hot::{self, Stats};
use crate::server::{Principal, ServerSettings, ServiceHost, Slot, kill};

#[derive(Debug)]
pub(crate) struct AdminApi {
    slot: Slot,
    lists: ListStreams,
    stats: Stats,
}

impl AdminApi {
    pub(crate) fn new(slot: Slot, settings: &ServerSettings) -> Self {
        Self { slot, lists: ListStreams::new(settings), stats: Stats::default() }
    }

    fn host(&self) -> Result<&ServiceHost, Status> {
        self.slot.get().map_err(|e| status(&e))
    }
}

impl List for LockList {
    type Line = proto::LockInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice: Vec<LockStatus> = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::lock_status_to_proto).collect())
    }
}

impl List for WaitList {
    type Line = proto::WaitInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice: Vec<WaitStatus> = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::wait_status_to_proto).collect())
    }
}

impl List for SessionList {
    type Line = proto::SessionInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::session_status_to_proto).collect())
    }
}

impl List for TxnList {
    type Line = proto::TxnInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::txn_status_to_proto).collect())
    }
}

macro_rules! lines {
    ($($message:ident),+) => {
        $(impl Line for proto::$message {
            fn set_cut(&mut self) {
                self.cut = true;
            }
        })+
    };
}

lines!(LockInfo, WaitInfo, BindInfo, SessionInfo, TxnInfo, NodeStatus, HotInfo);

/// The table of the request, if it names one.
fn only(group: &str, table: &str) -> Result<Option<TableRef>, Status> {
    if table.is_empty() {
        return Ok(None);
    }
    convert::table_from_proto(group, table).map(Some).map_err(|e| status(&e))
}

/// The row of the request, if it names one.
fn row<'a>(key: &[u8], table: Option<&'a TableRef>) -> Result<Option<(&'a TableRef, Key)>, Status> {
    if key.is_empty() {
        return Ok(None);
    }
    let table = table.ok_or_else(|| {
        let what = "a list of one key names no table: name the table of the key";
        status(&Error::new(ErrorKind::InvalidArgument, what))
    })?;
    let key = Key::new(key).map_err(|e| status(&e))?;
    Ok(Some((table, key)))
}

/// Fails unless the caller may list `table`, or everything if that is `None`.
fn may_list<T>(request: &Request<T>, table: Option<&TableRef>) -> Result<(), Status> {
    Principal::of(request.extensions()).may_list(table).map_err(|e| status(&e))
}

#[tonic::async_trait]
impl proto::admin_server::Admin for AdminApi {
    type ListNodesStream = ReceiverStream<Result<proto::NodeStatus, Status>>;
    type ListLocksStream = ReceiverStream<Result<proto::LockInfo, Status>>;
    type ListWaitsStream = ReceiverStream<Result<proto::WaitInfo, Status>>;
    type ListBindsStream = ReceiverStream<Result<proto::BindInfo, Status>>;
    type ListSessionsStream = ReceiverStream<Result<proto::SessionInfo, Status>>;
    type ListTxnsStream = ReceiverStream<Result<proto::TxnInfo, Status>>;
    type ListHotStream = ReceiverStream<Result<proto::HotInfo, Status>>;
    type KillSessionStream = kill::Responses;
    type KillTxnStream = kill::TxnResponses;
    type ForceReleaseStream = kill::TxnResponses;

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<Self::ListNodesStream>, Status> {
        let nodes = async {
            let known = self.host()?.allocator().nodes().await.map_err(|e| status(&e))?;
            Ok(Whole::new(known.nodes, convert::node_to_proto))
        };
        self.lists.send(&request, nodes).await
    }

    async fn list_locks(
        &self,
        request: Request<proto::ListLocksRequest>,
    ) -> Result<Response<Self::ListLocksStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        let row = row(&request.get_ref().key, table.as_ref())?;
        may_list(&request, table.as_ref())?;
        let list = async {
            let service = self.host()?.current();
            Ok(match row {
                Some((table, row)) => service.row_list(table, &row),
                None => service.lock_list(table.as_ref()),
            })
        };
        self.lists.send(&request, list).await
    }

    async fn list_waits(
        &self,
        request: Request<proto::ListWaitsRequest>,
    ) -> Result<Response<Self::ListWaitsStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        may_list(&request, table.as_ref())?;
        self.lists
            .send(&request, async { Ok(self.host()?.current().wait_list(table.as_ref())) })
            .await
    }

    async fn get_node(
        &self,
        _request: Request<proto::GetNodeRequest>,
    ) -> Result<Response<proto::NodeInfo>, Status> {
        let service = self.host()?.current();
        Ok(Response::new(proto::NodeInfo {
            node: service.node().to_string(),
            service: service.id().get(),
        }))
    }

    async fn drop_table(
        &self,
        request: Request<proto::DropTableRequest>,
    ) -> Result<Response<proto::DropTableResponse>, Status> {
        let proto::DropTableRequest { group, table } = request.get_ref();
        let table = convert::table_from_proto(group, table).map_err(|e| status(&e))?;
        let dropped = self.host()?.current().drop_table(&table).await;
        tracing::info!(%table, error = ?dropped.as_ref().err(), "an operator wants a table \
            dropped");
        dropped.map(|()| Response::new(proto::DropTableResponse {})).map_err(|e| status(&e))
    }

    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        self.lists.send(&request, async { Ok(self.host()?.current().session_list()) }).await
    }

    async fn list_txns(
        &self,
        request: Request<proto::ListTxnsRequest>,
    ) -> Result<Response<Self::ListTxnsStream>, Status> {
        self.lists.send(&request, async { Ok(self.host()?.current().txn_list()) }).await
    }

    async fn kill_session(
        &self,
        request: Request<proto::KillSessionRequest>,
    ) -> Result<Response<Self::KillSessionStream>, Status> {
        kill::kill_session(&self.host()?.current(), &request)
    }

    async fn list_hot(
        &self,
        request: Request<proto::ListHotRequest>,
    ) -> Result<Response<Self::ListHotStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        may_list(&request, table.as_ref())?;
        let most = self.lists.lines_max();
        let hot = async { hot::list(self.host()?.current(), table, request.get_ref(), most).await };
        self.lists.send(&request, hot).await
    }

    async fn get_stats(
        &self,
        request: Request<proto::GetStatsRequest>,
    ) -> Result<Response<proto::NodeStats>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        self.stats.read(self.host()?.current(), table, request.get_ref()).await.map(Response::new)
    }

    async fn kill_txn(
        &self,
        request: Request<proto::KillTxnRequest>,
    ) -> Result<Response<Self::KillTxnStream>, Status> {
        kill::kill_txn(&self.host()?.current(), &request)
    }

    async fn force_release(
        &self,
        request: Request<proto::ForceReleaseRequest>,
    ) -> Result<Response<Self::ForceReleaseStream>, Status> {
        kill::force_release(&self.host()?.current(), &request).await
    }

    async fn list_binds(
        &self,
        request: Request<proto::ListBindsRequest>,
    ) -> Result<Response<Self::ListBindsStream>, Status> {
        may_list(&request, None)?;
        let binds = async {
            let status = self.host()?.allocator().status().await.map_err(|e| status(&e))?;
            Ok(Whole::new(status.binds, convert::bind_status_to_proto))
        };
        self.lists.send(&request, binds).await
    }
}
