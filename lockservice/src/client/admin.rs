//! What operators see, from afar.

use lockservice_core::allocator::BindStatus;
use lockservice_core::service::{LockStatus, WaitStatus};
use lockservice_core::{Result, TableRef};
use tonic::transport::Channel;

use super::Client;
use crate::convert;
use crate::proto;
use crate::proto::admin_client::AdminClient as Wire;

/// Lists of a server's locks, waits and binds. Every call fails with `Unavailable` if no server answers.
#[derive(Clone, Debug)]
pub struct AdminClient {
    client: Client,
    wire: Wire<Channel>,
}

impl AdminClient {
    pub(super) fn new(client: &Client) -> Self {
        Self { wire: Wire::new(client.channel.clone()), client: client.clone() }
    }

    /// Every lock that the server has granted and that is held; of one table if one is given.
    pub async fn locks(&self, table: Option<&TableRef>) -> Result<Vec<LockStatus>> {
        let (group, table) = names(table);
        let mut wire = self.wire.clone();
        let stream = self.client.call(wire.list_locks(proto::ListLocksRequest { group, table })).await?;
        self.collect(stream, convert::lock_status_from_proto).await
    }

    /// Every wait: who waits for what of whom; of one table if one is given. `since` is counted back from the answer.
    pub async fn waits(&self, table: Option<&TableRef>) -> Result<Vec<WaitStatus>> {
        let (group, table) = names(table);
        let mut wire = self.wire.clone();
        let stream = self.client.call(wire.list_waits(proto::ListWaitsRequest { group, table })).await?;
        let now = self.client.clock().now();
        self.collect(stream, |info| convert::wait_status_from_proto(info, now)).await
    }

    /// Every bind.
    pub async fn binds(&self) -> Result<Vec<BindStatus>> {
        let mut wire = self.wire.clone();
        let stream = self.client.call(wire.list_binds(proto::ListBindsRequest {})).await?;
        self.collect(stream, convert::bind_status_from_proto).await
    }

    async fn collect<W, T>(&self, mut stream: tonic::Streaming<W>, parse: impl Fn(W) -> Result<T>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        loop {
            match tokio::time::timeout(self.client.parts.call_timeout, stream.message()).await {
                Ok(Ok(Some(message))) => all.push(parse(message)?),
                Ok(Ok(None)) => return Ok(all),
                Ok(Err(status)) => return Err(convert::from_status(&status)),
                Err(_) => return Err(self.client.no_answer()),
            }
        }
    }
}

fn names(table: Option<&TableRef>) -> (String, String) {
    table.map(|table| (table.group.to_string(), table.name.to_string())).unwrap_or_default()
}
