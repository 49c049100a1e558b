//! Validation of commits over the network.

use std::time::Duration;

use lockservice_core::allocator::{BeginCommit, BindStatus};
use lockservice_core::clock::{Time, lo};
use lockservice_core::{CommitAttempt, Epoch, Error, ErrorKind, Result, TableRef, TxnId};
use tonic::{Response, Status};

use super::Client;
use crate::channel::Link;
use crate::convert;
use crate::proto;
use crate::proto::allocator_client::AllocatorClient as Wire;

/// The number of hints that are followed before the given addresses are tried again (T5).
const HOPS_MAX: usize = 3;
/// The time after the response of a later leader during which a response of an earlier one may
/// still arrive: far longer than any call takes.
const ON_ITS_WAY_MAX: Duration = Duration::from_secs(60);
/// The pause before the same server is called again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Validates commits at the leader of the cluster's allocators. Any server names the address of the
/// leader.
///
/// While none leads, a call waits, at most for the client's call time-out. Every call fails with
/// `Unavailable` if no server responds.
#[derive(Clone, Debug)]
pub struct AllocatorClient {
    client: Client,
}

/// A commit may go ahead, for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission {
    /// The write must have landed before this reading of the client's clock: lo of the promise,
    /// counted from before the request was sent (C1). The caller reads the clock just before the
    /// write, and makes sure that the write cannot take longer.
    pub until: Time,
    /// The raw promise.
    pub commit_before: Duration,
    /// The leadership that admitted it.
    pub epoch: Epoch,
}

impl AllocatorClient {
    pub(super) fn new(client: &Client) -> Self {
        Self { client: client.clone() }
    }

    /// Validates a transaction's binds and admits its commit for a limited time (C1). Repeating an
    /// attempt is harmless.
    ///
    /// # Errors
    /// - `BindChanged`, `CannotCommit`: the transaction may not commit. Start another.
    /// - `Timeout`: less than `tried.least` could be promised. Request less, or try again.
    /// - `Unavailable`: no server responds, or none leads. Try again.
    ///
    /// # Cancel safety
    /// The commit may be admitted all the same: its pins end by themselves, or with
    /// [`finish_commit`](Self::finish_commit).
    pub async fn begin_commit(&self, request: &BeginCommit) -> Result<Admission> {
        let message = convert::begin_commit_to_proto(request);
        let (response, sent) = self
            .at_leader(
                |mut wire| {
                    let message = message.clone();
                    async move { wire.begin_commit(message).await }
                },
                |response| response.at.as_ref(),
            )
            .await?;
        let commit_before = Duration::from_millis(response.commit_before_ms);
        Ok(Admission {
            until: sent + lo(commit_before),
            commit_before,
            epoch: convert::progress_from_proto(response.at).epoch,
        })
    }

    /// Ends a commit that was admitted, whether the data was written or not. Idempotent.
    ///
    /// # Errors
    /// `Unavailable`: no server responds, or none leads. It need not be repeated: the pins end by
    /// themselves.
    ///
    /// # Cancel safety
    /// The commit may be finished all the same.
    pub async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<()> {
        let call = |mut wire: Wire<Link>| {
            let message =
                proto::FinishCommitRequest { txn: txn.to_string(), attempt: attempt.get() };
            async move { wire.finish_commit(message).await }
        };
        self.at_leader(call, |response| response.at.as_ref()).await.map(drop)
    }

    /// The bind of a table, if it has one. Binds nothing.
    ///
    /// # Errors
    /// `Unavailable`: no server responds, or none leads. Try again.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn latest(&self, table: &TableRef) -> Result<Option<BindStatus>> {
        let call = |mut wire: Wire<Link>| {
            let message = proto::LatestRequest {
                group: table.group.to_string(),
                table: table.name.to_string(),
            };
            async move { wire.latest(message).await }
        };
        let (response, _) = self.at_leader(call, |response| response.at.as_ref()).await?;
        Ok(convert::latest_from_proto(response)?.bind)
    }

    /// Makes a call at the leader. Returns the response and the time at which its request was sent.
    /// Every call may be repeated.
    async fn at_leader<T, F, Fut>(
        &self,
        call: F,
        at: fn(&T) -> Option<&proto::Progress>,
    ) -> Result<(T, Time)>
    where
        F: Fn(Wire<Link>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let parts = &self.client.parts;
        let give_up = parts.env.now() + parts.call_timeout;
        let mut given = self.client.addresses().cycle();
        let servers = self.client.addresses().count();
        let (mut hops, mut tried) = (0, 0);
        let mut hint = parts.leader.lock().clone();
        loop {
            let hinted = hint.is_some();
            let address = match hint.take() {
                Some(address) => address,
                None => given.next().expect("there is an address").to_owned(),
            };
            let node = self.client.node(&address)?;
            let sent = parts.env.now();
            let outcome = node.call(call(Wire::new(node.channel.clone()))).await;
            let epoch = match &outcome {
                Ok(response) => at(response).map(|at| at.epoch),
                // The server does not lead, and may know the address of the leader.
                Err(e) if e.kind() == ErrorKind::NotLeader => None,
                Err(e) => e.leader_epoch().map(Epoch::get),
            };
            let error = match self.observe(epoch, sent).and(outcome) {
                Ok(response) => {
                    *parts.leader.lock() = Some(address);
                    return Ok((response, sent));
                }
                Err(e) => e,
            };
            let lost = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::ShuttingDown);
            if !lost && error.kind() != ErrorKind::NotLeader {
                return Err(error);
            }
            *parts.leader.lock() = None;
            hint = error.leader().filter(|_| hops < HOPS_MAX).map(ToOwned::to_owned);
            if hint.is_some() {
                hops += 1;
                continue;
            }
            tried += usize::from(!hinted);
            // A single server that does not respond: the caller decides how long to wait for it.
            let alone = lost && !hinted && servers == 1;
            if alone || give_up.remaining(parts.env.now()).is_zero() {
                return Err(error);
            }
            if tried >= servers {
                (hops, tried) = (0, 0);
                parts.env.sleep(TRY_AGAIN).await;
            }
        }
    }

    /// Takes the epoch of the response to a request sent at `sent` into account. Fails with
    /// `NotLeader` if it came from an earlier leader, even if it is an error (L3).
    ///
    /// An earlier leader cannot decide anything any more once a later one has responded (L1). Only
    /// a response that was in flight can still come from it. A lower epoch long after that comes
    /// from a store that has forgotten the higher one. The client accepts it, or it would refuse
    /// the cluster for as long as it runs.
    fn observe(&self, epoch: Option<u64>, sent: Time) -> Result<()> {
        let Some(epoch) = epoch.map(Epoch::new) else { return Ok(()) };
        let parts = &self.client.parts;
        let mut known = parts.epoch.lock();
        let (highest, since) = *known;
        if epoch < highest && sent < since + ON_ITS_WAY_MAX {
            return Err(Error::new(
                ErrorKind::NotLeader,
                "an earlier leader responded, which does not know yet that it was replaced: try \
                    again",
            )
            .with("epoch", epoch)
            .with("known", highest));
        }
        if epoch != highest {
            *known = (epoch, parts.env.now());
        }
        Ok(())
    }
}
