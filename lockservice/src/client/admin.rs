//! The lists and calls for operators, over the network.

use std::ops::Deref;

use lockservice_core::allocator::BindStatus;
use lockservice_core::service::{LockStatus, WaitStatus};
use lockservice_core::{NodeName, Result, ServiceId, TableRef};

use super::connect::Node;
use crate::channel::Link;
use crate::convert;
use crate::proto;
use crate::proto::admin_client::AdminClient as Wire;

/// The number of responses with another owner that are followed (T5).
const HOPS_MAX: usize = 3;

/// Lists of a server's locks and waits and of the cluster's binds, of bounded length: see
/// [`Listed::is_cut`]. Every call fails with `Unavailable` if no server responds.
#[derive(Clone, Debug)]
pub struct AdminClient {
    node: Node,
    wire: Wire<Link>,
}

impl AdminClient {
    pub(super) fn new(node: Node) -> Self {
        Self { wire: Wire::new(node.channel.clone()), node }
    }

    /// The node of the server, and its incarnation that serves now.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn node(&self) -> Result<(NodeName, ServiceId)> {
        let mut wire = self.wire.clone();
        let response = self.node.call(wire.get_node(proto::GetNodeRequest {})).await?;
        Ok((NodeName::new(&response.node)?, ServiceId::new(response.service)))
    }

    /// Every lock that the server has granted and that is held; of one table if one is given.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn locks(&self, table: Option<&TableRef>) -> Result<Listed<LockStatus>> {
        let (group, table) = names(table);
        let mut wire = self.wire.clone();
        let stream =
            self.node.call(wire.list_locks(proto::ListLocksRequest { group, table })).await?;
        self.collect(stream, |info| (info.cut, convert::lock_status_from_proto(info))).await
    }

    /// Every wait: the waiter, the item and the holder; of one table if one is given. `since` is
    /// counted back from the response.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn waits(&self, table: Option<&TableRef>) -> Result<Listed<WaitStatus>> {
        let (group, table) = names(table);
        let mut wire = self.wire.clone();
        let stream =
            self.node.call(wire.list_waits(proto::ListWaitsRequest { group, table })).await?;
        let now = self.node.client.clock().now();
        self.collect(stream, |info| (info.cut, convert::wait_status_from_proto(info, now))).await
    }

    /// Every bind of the cluster: each server gets the list from the leader.
    ///
    /// # Errors
    /// `Unavailable`: no server responds, or none knows a leader; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn binds(&self) -> Result<Listed<BindStatus>> {
        let mut wire = self.wire.clone();
        let stream = self.node.call(wire.list_binds(proto::ListBindsRequest {})).await?;
        self.collect(stream, |info| (info.cut, convert::bind_status_from_proto(info))).await
    }

    /// Forgets a table in which nothing is locked, at the node that owns it.
    ///
    /// # Errors
    /// Nothing is changed by any of these: `TableInUse` while something in it is locked or waits;
    /// `TableNotFound`; `Reassigning` while its last owner may still be at work. After
    /// `Unavailable` it is not known whether it was forgotten: call again.
    ///
    /// # Cancel safety
    /// A dropped call may have the table forgotten all the same.
    pub async fn drop_table(&self, table: &TableRef) -> Result<()> {
        let (mut node, mut hops) = (self.node.clone(), 0);
        loop {
            let (group, table) = names(Some(table));
            let mut wire = Wire::new(node.channel.clone());
            let Err(error) =
                node.call(wire.drop_table(proto::DropTableRequest { group, table })).await
            else {
                return Ok(());
            };
            let owner = error.owner().filter(|address| !address.is_empty() && hops < HOPS_MAX);
            let Some(owner) = owner else { return Err(error) };
            node = self.node.client.node(owner)?;
            hops += 1;
        }
    }

    async fn collect<W, T>(
        &self,
        mut stream: tonic::Streaming<W>,
        parse: impl Fn(W) -> (bool, Result<T>),
    ) -> Result<Listed<T>> {
        let mut listed = Listed { lines: Vec::new(), cut: false };
        loop {
            match tokio::time::timeout(self.node.client.parts.call_timeout, stream.message()).await
            {
                Ok(Ok(Some(message))) => {
                    let (cut, line) = parse(message);
                    listed.cut = cut;
                    listed.lines.push(line?);
                }
                Ok(Ok(None)) => return Ok(listed),
                Ok(Err(status)) => return Err(convert::from_status(&status)),
                Err(_) => return Err(self.node.no_response()),
            }
        }
    }
}

/// A list, as much of it as the server sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed<T> {
    lines: Vec<T>,
    cut: bool,
}

impl<T> Listed<T> {
    /// True if there is more: the server sends a bounded number of lines. The list of one table may
    /// show more of it.
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

impl<T> Deref for Listed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.lines
    }
}

impl<T> IntoIterator for Listed<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.lines.into_iter()
    }
}

fn names(table: Option<&TableRef>) -> (String, String) {
    table.map(|table| (table.group.to_string(), table.name.to_string())).unwrap_or_default()
}
