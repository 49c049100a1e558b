//! The lists and calls for operators, over the network.

use std::num::NonZeroU32;
use std::ops::Deref;
use std::time::Duration;

use lockservice_core::allocator::{BindStatus, ServiceStatus};
use lockservice_core::service::{
    HotKey, HotWindow, Killed, LockStatus, ServiceStats, SessionStatus, TxnStatus, WaitStatus,
};
use lockservice_core::{
    Error, ErrorKind, Key, NodeName, Result, ServiceId, SessionHandle, TableRef,
};
use prost::bytes::Bytes;

use super::connect::{Node, RESPONSE_BYTES_MAX};
use crate::channel::Link;
use crate::convert;
use crate::proto;
use crate::proto::admin_client::AdminClient as Wire;
use crate::proto::kill_progress::Progress;

/// The number of responses with another owner that are followed (T5).
pub(super) const HOPS_MAX: usize = 3;

/// Lists of a server's locks, waits, sessions and transactions and of the cluster's binds, of
/// bounded length: see [`Listed::is_cut`]. Every call fails with `Unavailable` if no server
/// responds. [`ClusterAdmin`](super::ClusterAdmin) lists what is at all nodes.
#[derive(Clone, Debug)]
pub struct AdminClient {
    pub(super) node: Node,
    pub(super) wire: Wire<Link>,
}

impl AdminClient {
    pub(super) fn new(node: Node) -> Self {
        Self { wire: Wire::new(node.channel.clone()), node }
    }

    /// The address of the server.
    pub(super) fn address(&self) -> &str {
        &self.node.address
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

    /// Every node of the cluster that has a lease, with the address at which clients reach it.
    ///
    /// # Errors
    /// `Unavailable`: no server responds, or none knows a leader; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn nodes(&self) -> Result<Listed<ServiceStatus>> {
        let mut wire = self.wire.clone();
        let stream = self.node.call(wire.list_nodes(proto::ListNodesRequest {})).await?;
        self.collect(stream, |node| (node.cut, convert::node_from_proto(&node))).await
    }

    /// Every lock that the server has granted and that is held; of one table if one is given.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn locks(&self, table: Option<&TableRef>) -> Result<Listed<LockStatus>> {
        self.list_locks(table, Bytes::new()).await
    }

    /// The locks that overlap a row of a table, then the calls that wait for something that
    /// overlaps it, in their order: those have [`waiting`](LockStatus::waiting). It costs what
    /// overlaps, however much is locked in the table.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn row(&self, table: &TableRef, row: &Key) -> Result<Listed<LockStatus>> {
        self.list_locks(Some(table), Bytes::copy_from_slice(row.as_bytes())).await
    }

    async fn list_locks(&self, table: Option<&TableRef>, key: Bytes) -> Result<Listed<LockStatus>> {
        let (group, table) = names(table);
        let mut wire = self.wire.clone();
        let request = proto::ListLocksRequest { group, table, key };
        let stream = self.node.call(wire.list_locks(request)).await?;
        let now = self.node.client.env().now();
        self.collect(stream, |info| (info.cut, convert::lock_status_from_proto(info, now))).await
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
        let now = self.node.client.env().now();
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

    /// The sessions of the server, in the order in which they were opened. Needs the role
    /// `operator`.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn sessions(&self) -> Result<Listed<SessionStatus>> {
        let mut wire = self.wire.clone();
        let stream = self.node.call(wire.list_sessions(proto::ListSessionsRequest {})).await?;
        self.collect(stream, |info| (info.cut, convert::session_status_from_proto(info))).await
    }

    /// The transactions of the server in no order, except those of an embedder that have no label.
    /// Needs the role `operator`.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn txns(&self) -> Result<Listed<TxnStatus>> {
        let mut wire = self.wire.clone();
        let stream = self.node.call(wire.list_txns(proto::ListTxnsRequest {})).await?;
        self.collect(stream, |info| (info.cut, convert::txn_status_from_proto(info))).await
    }

    /// The rows and ranges of the server for which lock calls waited longest in `window`, of one
    /// table if one is given: at most `most`, or as many as a list may have; the hottest first.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn hot(
        &self,
        table: Option<&TableRef>,
        window: HotWindow,
        most: Option<NonZeroU32>,
    ) -> Result<Listed<HotKey>> {
        let (group, table) = names(table);
        let limit = most.map_or(0, NonZeroU32::get);
        let window = convert::hot_window_to_proto(window);
        let mut wire = self.wire.clone();
        let request = proto::ListHotRequest { group, table, limit, window };
        let stream = self.node.call(wire.list_hot(request)).await?;
        self.collect(stream, |info| (info.cut, convert::hot_key_from_proto(info))).await
    }

    /// The numbers of the server, with at most `lines` of its hottest keys in `window`, its longest
    /// waits and the sessions nearest to a loss each; the keys and waits of one table if one is
    /// given. Needs the role `operator`.
    ///
    /// # Errors
    /// `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn stats(
        &self,
        table: Option<&TableRef>,
        window: HotWindow,
        lines: u32,
    ) -> Result<ServiceStats> {
        let (group, table) = names(table);
        let window = convert::hot_window_to_proto(window);
        let mut wire = self.wire.clone().max_decoding_message_size(RESPONSE_BYTES_MAX);
        let request = proto::GetStatsRequest { lines, group, table, window };
        let response = self.node.call(wire.get_stats(request)).await?;
        convert::service_stats_from_proto(response)
    }

    /// Ends a session of the server: see
    /// [`LockService::kill_session`](lockservice_core::service::LockService::kill_session). Needs
    /// the role `operator`. Returns when the kill has begun; [`Kill::done`] waits for its end.
    ///
    /// # Errors
    /// `SessionNotFound`, `InvalidArgument`: nothing was done. After `Unavailable` it is not known
    /// whether the session was killed: look at the [`sessions`](Self::sessions).
    ///
    /// # Cancel safety
    /// A dropped call may have killed the session all the same.
    pub async fn kill_session(
        &self,
        session: SessionHandle,
        reason: &str,
        now: bool,
    ) -> Result<Kill> {
        let (session, reason) = (session.to_string(), reason.to_owned());
        let request = proto::KillSessionRequest { session, reason, now };
        let mut wire = self.wire.clone();
        let mut stream = self.node.call(wire.kill_session(request)).await?;
        let patience = self.node.client.parts.call_timeout;
        let first = self.node.client.env().timeout(patience, stream.message());
        match first.await.map_err(|_| self.node.no_response())? {
            Ok(Some(proto::KillProgress { progress: Some(Progress::Begun(begun)) })) => Ok(Kill {
                client: begun.client,
                txns: begun.txns,
                kept: Duration::from_millis(begun.kept_ms),
                stream,
            }),
            Ok(_) => Err(cut_off()),
            Err(status) => Err(convert::from_status(&status)),
        }
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
            let patience = self.node.client.parts.call_timeout;
            match self.node.client.env().timeout(patience, stream.message()).await {
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

/// A kill that has begun. It goes on if this is dropped.
#[derive(Debug)]
#[must_use = "it says for how long the locks stay"]
pub struct Kill {
    /// The name that the session's client gave itself.
    pub client: String,
    /// The number of the session's transactions.
    pub txns: u64,
    /// For how long the locks are kept at most, unless a commit is in flight: until the client has
    /// confirmed that its work stopped, or its promise has run out. Zero if they are not kept.
    pub kept: Duration,
    stream: tonic::Streaming<proto::KillProgress>,
}

impl Kill {
    /// Resolves when the locks were released, except those of transactions whose commit is in
    /// flight.
    ///
    /// # Errors
    /// `Unavailable`: the server has gone, or cannot be reached. The kill may still go on.
    ///
    /// # Cancel safety
    /// The kill goes on.
    pub async fn done(mut self) -> Result<Killed> {
        match self.stream.message().await {
            Ok(Some(proto::KillProgress { progress: Some(Progress::Done(done)) })) => {
                convert::killed_from_proto(&done)
            }
            Ok(_) => Err(cut_off()),
            Err(status) => Err(convert::from_status(&status)),
        }
    }
}

fn cut_off() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the server's response broke off: look at its sessions to see what came of the kill",
    )
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

pub(super) fn names(table: Option<&TableRef>) -> (String, String) {
    table.map(|table| (table.group.to_string(), table.name.to_string())).unwrap_or_default()
}
