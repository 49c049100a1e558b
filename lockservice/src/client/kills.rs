//! Transactions that operators end, over the network.

use std::time::Duration;

use lockservice_core::service::Killed;
use lockservice_core::{Error, ErrorKind, Key, Result, SessionHandle, TableRef, TxnId};

use super::admin::{AdminClient, HOPS_MAX, names};
use super::connect::Node;
use crate::convert;
use crate::proto;
use crate::proto::admin_client::AdminClient as Wire;
use crate::proto::kill_txn_progress::Progress;

/// The kill of a transaction that has begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnKill {
    /// The transaction.
    pub txn: TxnId,
    /// Its label.
    pub label: String,
    /// Its session; `None` for one of an embedder.
    pub session: Option<SessionHandle>,
    /// The name that the session's client gave itself.
    pub client: String,
    /// For how long at most its locks are kept, unless its commit is in flight. Zero if they are
    /// not kept. `None`: until the embedder whose transaction it is ends it.
    pub kept: Option<Duration>,
}

/// Kills that have begun. They go on if this is dropped.
#[derive(Debug)]
#[must_use = "it says for how long the locks stay"]
pub struct TxnKills {
    /// The transactions that are ended.
    pub begun: Vec<TxnKill>,
    /// Those that hold the key too, and cannot be ended: they are of an embedder, without a label.
    pub not_killed: Vec<TxnId>,
    /// How many are not done.
    left: usize,
    stream: tonic::Streaming<proto::KillTxnProgress>,
}

impl TxnKills {
    /// The next transaction whose locks were released, or whose commit is in flight; `None` when
    /// all are done.
    ///
    /// # Errors
    /// `Unavailable`: the server has gone, or cannot be reached. The kills may still go on.
    ///
    /// # Cancel safety
    /// Nothing is lost, and the kills go on.
    pub async fn next(&mut self) -> Result<Option<(TxnId, Killed)>> {
        if self.left == 0 {
            return Ok(None);
        }
        match self.stream.message().await {
            Ok(Some(proto::KillTxnProgress { progress: Some(Progress::Done(done)) })) => {
                self.left -= 1;
                convert::txn_killed_from_proto(&done).map(Some)
            }
            Ok(_) => Err(cut_off()),
            Err(status) => Err(convert::from_status(&status)),
        }
    }
}

impl AdminClient {
    /// Ends a transaction of the server while its session goes on: see
    /// [`LockService::kill_txn`](lockservice_core::service::LockService::kill_txn). Needs the role
    /// `operator`. Returns when the kill has begun; [`TxnKills::next`] waits for its end.
    ///
    /// # Errors
    /// `TxnNotFound`, `InvalidArgument`: nothing was done. After `Unavailable` it is not known
    /// whether the transaction was killed: look at the [`txns`](Self::txns).
    ///
    /// # Cancel safety
    /// A dropped call may have killed the transaction all the same.
    pub async fn kill_txn(&self, txn: TxnId, reason: &str, now: bool) -> Result<TxnKills> {
        let (txn, reason) = (txn.to_string(), reason.to_owned());
        let mut wire = self.wire.clone();
        let request = proto::KillTxnRequest { txn, reason, now };
        let stream = self.node.call(wire.kill_txn(request)).await?;
        begun(&self.node, stream).await
    }

    /// Ends every transaction that holds something that overlaps a key, at the node that owns the
    /// table: see [`LockService::force_release`]. Needs the role `operator`. Returns when the kills
    /// have begun; [`TxnKills::next`] waits for their ends. There are none if nothing is held.
    ///
    /// # Errors
    /// Nothing was done then: `TableNotFound`, `InvalidArgument`; `Reassigning` while the table's
    /// last owner may still be at work; `ResourceExhausted` if too many transactions hold the key.
    /// After `Unavailable` it is not known what was done: look at the [`locks`](Self::locks).
    ///
    /// # Cancel safety
    /// A dropped call may have killed the transactions all the same.
    ///
    /// [`LockService::force_release`]: lockservice_core::service::LockService::force_release
    pub async fn force_release(
        &self,
        table: &TableRef,
        key: &Key,
        reason: &str,
        now: bool,
    ) -> Result<TxnKills> {
        let (mut node, mut hops) = (self.node.clone(), 0);
        loop {
            let (group, table) = names(Some(table));
            let key = key.as_bytes().to_vec().into();
            let reason = reason.to_owned();
            let request = proto::ForceReleaseRequest { group, table, key, reason, now };
            let mut wire = Wire::new(node.channel.clone());
            let error = match node.call(wire.force_release(request)).await {
                Ok(stream) => return begun(&node, stream).await,
                Err(error) => error,
            };
            let owner = error.owner().filter(|address| !address.is_empty() && hops < HOPS_MAX);
            let Some(owner) = owner else { return Err(error) };
            node = self.node.client.node(owner)?;
            hops += 1;
        }
    }
}

/// Reads what has begun.
async fn begun(
    node: &Node,
    mut stream: tonic::Streaming<proto::KillTxnProgress>,
) -> Result<TxnKills> {
    let read = async {
        let mut next = async || match stream.message().await {
            Ok(Some(message)) => message.progress.ok_or_else(cut_off),
            Ok(None) => Err(cut_off()),
            Err(status) => Err(convert::from_status(&status)),
        };
        let Progress::Begun(all) = next().await? else { return Err(cut_off()) };
        let mut kills = Vec::new();
        for _ in 0..all.txns {
            let Progress::Txn(begun) = next().await? else { return Err(cut_off()) };
            kills.push(kill_from_proto(begun)?);
        }
        let not_killed = all.not_killed.iter().map(|txn| convert::txn_from_proto(txn));
        Ok((kills, not_killed.collect::<Result<_>>()?))
    };
    let read = node.client.env().timeout(node.client.parts.call_timeout, read).await;
    let (begun, not_killed): (Vec<_>, _) = read.map_err(|_| node.no_response())??;
    Ok(TxnKills { left: begun.len(), begun, not_killed, stream })
}

fn kill_from_proto(begun: proto::TxnKillBegun) -> Result<TxnKill> {
    let session = (!begun.session.is_empty()).then(|| begun.session.parse()).transpose()?;
    Ok(TxnKill {
        txn: convert::txn_from_proto(&begun.txn)?,
        label: begun.label,
        session,
        client: begun.client,
        kept: begun.kept_ms.map(Duration::from_millis),
    })
}

fn cut_off() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the server's response broke off: look at its transactions to see what came of the kill",
    )
}
