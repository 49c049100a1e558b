//! Validation of commits, from afar.

use std::time::Duration;

use lockservice_core::allocator::{BeginCommit, BindStatus, CannotCommit};
use lockservice_core::clock::{Time, lo};
use lockservice_core::{CommitAttempt, Epoch, Result, TableRef, TxnId};
use tonic::transport::Channel;

use super::Client;
use crate::convert;
use crate::proto;
use crate::proto::allocator_client::AllocatorClient as Wire;

/// Validates commits at a server's allocator. Every call fails with `Unavailable` if no server answers.
#[derive(Clone, Debug)]
pub struct AllocatorClient {
    client: Client,
    wire: Wire<Channel>,
}

/// A commit may go ahead, for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission {
    /// The write must have landed before this reading of the client's clock: lo of what was promised, counted from before the request
    /// was sent (C1). Look at the clock just before the write, and be sure that the write cannot take longer.
    pub until: Time,
    /// What was promised, raw.
    pub commit_before: Duration,
    /// The leadership that answered.
    pub epoch: Epoch,
}

impl AllocatorClient {
    pub(super) fn new(client: &Client) -> Self {
        Self { wire: Wire::new(client.channel.clone()), client: client.clone() }
    }

    /// Validates a transaction's binds and admits its commit for a limited time (C1). Repeating an attempt is harmless.
    ///
    /// Fails with `BindChanged` or `CannotCommit` if the transaction may not commit: start it again as a new one. Fails with `Timeout` if
    /// less than `asked.least` could be promised.
    pub async fn begin_commit(&self, request: &BeginCommit) -> Result<Admission> {
        let message = proto::BeginCommitRequest {
            txn: request.txn.to_string(),
            binds: request
                .binds
                .iter()
                .map(|bind| proto::Bind {
                    group: bind.table.group.to_string(),
                    table: bind.table.name.to_string(),
                    table_id: 0,
                    partition: bind.partition,
                    owner: bind.owner.get(),
                    version: bind.version.get(),
                })
                .collect(),
            attempt: request.attempt.get(),
            least_ms: convert::millis_up(request.asked.least),
            most_ms: convert::millis_down(request.asked.most),
        };
        let mut wire = self.wire.clone();
        let sent = self.client.clock().now();
        let answer = self.client.call(wire.begin_commit(message)).await?;
        let commit_before = Duration::from_millis(answer.commit_before_ms);
        Ok(Admission { until: sent + lo(commit_before), commit_before, epoch: Epoch::new(answer.epoch) })
    }

    /// Ends a commit that was admitted, whether the data was written or not. Idempotent.
    pub async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<()> {
        let mut wire = self.wire.clone();
        let message = proto::FinishCommitRequest { txn: txn.to_string(), attempt: attempt.get() };
        self.client.call(wire.finish_commit(message)).await.map(drop)
    }

    /// Makes transactions unable to ever commit, unless their commit is in flight (C4).
    pub async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        let mut wire = self.wire.clone();
        let message = proto::CannotCommitRequest { txns: txns.iter().map(TxnId::to_string).collect() };
        let answer = self.client.call(wire.cannot_commit(message)).await?;
        let parse = |txns: Vec<String>| txns.iter().map(|txn| convert::txn_from_proto(txn)).collect::<Result<Vec<_>>>();
        Ok(CannotCommit {
            at: lockservice_core::allocator::Progress::default(),
            tombstoned: parse(answer.tombstoned)?,
            committing: parse(answer.committing)?,
        })
    }

    /// The bind of a table, if it has one. Binds nothing.
    pub async fn latest(&self, table: &TableRef) -> Result<Option<BindStatus>> {
        let mut wire = self.wire.clone();
        let message = proto::LatestRequest { group: table.group.to_string(), table: table.name.to_string() };
        let answer = self.client.call(wire.latest(message)).await?;
        answer.bind.map(convert::bind_status_from_proto).transpose()
    }
}
