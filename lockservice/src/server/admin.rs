//! `lockservice.v1.Admin`.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::TableRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::convert::{self, to_status as status};
use crate::proto;
use crate::server::{ServerSettings, ServiceHost, Slot};

/// Most lists made or sent at the same time: each may hold many lines in memory. Others wait their turn.
const LISTS_MAX: usize = 4;

/// Lines that may wait to be taken by the connection.
const LINES_WAITING_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct AdminApi {
    slot: Slot,
    lists: Arc<Semaphore>,
    lines_max: usize,
    write_max: Duration,
}

impl AdminApi {
    pub(crate) fn new(slot: Slot, settings: &ServerSettings) -> Self {
        let (lines_max, write_max) = (settings.list_lines_max, settings.write_max());
        Self { slot, lists: Arc::new(Semaphore::new(LISTS_MAX)), lines_max, write_max }
    }

    fn host(&self) -> Result<&ServiceHost, Status> {
        self.slot.get().map_err(|e| status(&e))
    }

    /// A place among the lists, held until the list is sent.
    async fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.lists).acquire_owned().await.map_err(|_| Status::unavailable("the server is stopping"))
    }

    /// Sends at most `lines_max` lines; the last one says how many are left out.
    fn send<T, W: Line>(
        &self,
        place: OwnedSemaphorePermit,
        mut all: Vec<T>,
        to_wire: impl Fn(&T) -> W + Send + 'static,
    ) -> Response<ReceiverStream<Result<W, Status>>>
    where
        T: Send + 'static,
    {
        let left_out = all.len().saturating_sub(self.lines_max);
        all.truncate(self.lines_max);
        all.shrink_to_fit();
        let (out, lines) = mpsc::channel(LINES_WAITING_MAX);
        let write_max = self.write_max;
        tokio::spawn(async move {
            let last = all.len();
            for (n, item) in (1..).zip(all) {
                let mut line = to_wire(&item);
                if n == last {
                    line.set_left_out(left_out as u64);
                }
                // A client that does not read must not keep a place from others.
                if out.send_timeout(Ok(line), write_max).await.is_err() {
                    return;
                }
            }
            drop(place);
        });
        Response::new(ReceiverStream::new(lines))
    }
}

/// A message that is one line of a list.
trait Line: Send + 'static {
    fn set_left_out(&mut self, lines: u64);
}

impl Line for proto::LockInfo {
    fn set_left_out(&mut self, lines: u64) {
        self.left_out = lines;
    }
}

impl Line for proto::WaitInfo {
    fn set_left_out(&mut self, lines: u64) {
        self.left_out = lines;
    }
}

impl Line for proto::BindInfo {
    fn set_left_out(&mut self, lines: u64) {
        self.left_out = lines;
    }
}

/// The one table that is asked for, if any is.
fn only(group: &str, table: &str) -> Result<Option<TableRef>, Status> {
    if table.is_empty() {
        return Ok(None);
    }
    convert::table_from_proto(group, table).map(Some).map_err(|e| status(&e))
}

#[tonic::async_trait]
impl proto::admin_server::Admin for AdminApi {
    type ListLocksStream = ReceiverStream<Result<proto::LockInfo, Status>>;
    type ListWaitsStream = ReceiverStream<Result<proto::WaitInfo, Status>>;
    type ListBindsStream = ReceiverStream<Result<proto::BindInfo, Status>>;

    async fn list_locks(
        &self,
        request: Request<proto::ListLocksRequest>,
    ) -> Result<Response<Self::ListLocksStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        let (place, service) = (self.place().await?, self.host()?.current());
        // Long lists take long to make.
        let locks = tokio::task::spawn_blocking(move || service.locks(table.as_ref())).await;
        let locks = locks.map_err(|_| Status::internal("the list could not be made"))?;
        Ok(self.send(place, locks, convert::lock_status_to_proto))
    }

    async fn list_waits(
        &self,
        request: Request<proto::ListWaitsRequest>,
    ) -> Result<Response<Self::ListWaitsStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        let (place, service) = (self.place().await?, self.host()?.current());
        // Long lists take long to make.
        let waits = tokio::task::spawn_blocking(move || service.waits(table.as_ref())).await;
        let waits = waits.map_err(|_| Status::internal("the list could not be made"))?;
        Ok(self.send(place, waits, convert::wait_status_to_proto))
    }

    async fn get_node(&self, _request: Request<proto::GetNodeRequest>) -> Result<Response<proto::NodeInfo>, Status> {
        let service = self.host()?.current();
        Ok(Response::new(proto::NodeInfo { node: service.node().to_string(), service: service.id().get() }))
    }

    async fn list_binds(
        &self,
        _request: Request<proto::ListBindsRequest>,
    ) -> Result<Response<Self::ListBindsStream>, Status> {
        let place = self.place().await?;
        let binds = self.host()?.allocator().status().await.map_err(|e| status(&e))?.binds;
        Ok(self.send(place, binds, convert::bind_status_to_proto))
    }
}
