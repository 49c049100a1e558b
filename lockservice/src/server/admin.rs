//! `lockservice.v1.Admin`.

use std::pin::Pin;

use futures::Stream;
use lockservice_core::TableRef;
use tonic::{Request, Response, Status};

use crate::convert::{self, to_status as status};
use crate::proto;
use crate::server::ServiceHost;

#[derive(Debug)]
pub(crate) struct AdminApi {
    host: ServiceHost,
}

impl AdminApi {
    pub(crate) fn new(host: ServiceHost) -> Self {
        Self { host }
    }
}

/// The one table that is asked for, if any is.
fn only(group: &str, table: &str) -> Result<Option<TableRef>, Status> {
    if table.is_empty() {
        return Ok(None);
    }
    convert::table_from_proto(group, table).map(Some).map_err(|e| status(&e))
}

type Lines<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn lines<T: Send + 'static>(items: impl IntoIterator<Item = T, IntoIter: Send + 'static>) -> Response<Lines<T>> {
    Response::new(Box::pin(futures::stream::iter(items.into_iter().map(Ok))))
}

#[tonic::async_trait]
impl proto::admin_server::Admin for AdminApi {
    type ListLocksStream = Lines<proto::LockInfo>;
    type ListWaitsStream = Lines<proto::WaitInfo>;
    type ListBindsStream = Lines<proto::BindInfo>;

    async fn list_locks(
        &self,
        request: Request<proto::ListLocksRequest>,
    ) -> Result<Response<Self::ListLocksStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        let locks = self.host.current().locks(table.as_ref());
        Ok(lines(locks.into_iter().map(|lock| convert::lock_status_to_proto(&lock))))
    }

    async fn list_waits(
        &self,
        request: Request<proto::ListWaitsRequest>,
    ) -> Result<Response<Self::ListWaitsStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        let waits = self.host.current().waits(table.as_ref());
        Ok(lines(waits.into_iter().map(|wait| convert::wait_status_to_proto(&wait))))
    }

    async fn list_binds(
        &self,
        _request: Request<proto::ListBindsRequest>,
    ) -> Result<Response<Self::ListBindsStream>, Status> {
        let binds = self.host.allocator().status().await.map_err(|e| status(&e))?.binds;
        Ok(lines(binds.into_iter().map(|bind| convert::bind_status_to_proto(&bind))))
    }
}
