//! Force-release: an operator takes a key from those who hold it, by a [kill](super::kill) of their
//! transactions.

use crate::allocator::BindState;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{TableRef, TxnId};
use crate::key::Key;
use crate::metrics::TxnKillCause;
use crate::service::LockService;
use crate::service::kill::check_reason;
use crate::service::txn::TxnKillUnderWay;
use crate::service::txn::kill::by_operator;

/// The most transactions that one call ends.
const HOLDERS_MAX: usize = 10_000;

/// What came of a force-release.
#[derive(Debug)]
pub struct ForcedRelease {
    /// The kills that have begun, one for each transaction that held something.
    pub killed: Vec<TxnKillUnderWay>,
    /// Those that held something too and were not killed: they are of an embedder, without a label.
    pub not_killed: Vec<TxnId>,
}

impl LockService {
    /// Kills every transaction that at this moment holds something that overlaps `key`: the row, or
    /// a range around it, in any mode. A call that has taken it and waits for more counts too. See
    /// [`kill_txn`](Self::kill_txn) for `reason` and `now`. All that these transactions hold is
    /// released, not only the key.
    ///
    /// Both lists of the response are empty if nothing is held.
    ///
    /// # Errors
    /// Nothing was done then. `InvalidArgument` for a reason out of bounds. `NotOwner`: another
    /// node owns the table, call that one. `TableNotFound`: there is no such table. `Reassigning`
    /// while its last owner may still be at work: what it granted ends with its lease.
    /// `ResourceExhausted` if more than 10,000 transactions hold it: end sessions, or some of the
    /// transactions. `Unavailable`: no allocator says who owns the table.
    ///
    /// # Cancel safety
    /// It is decided and begun at one moment; kills that have begun go on.
    pub async fn force_release(
        &self,
        table: &TableRef,
        key: &Key,
        reason: &str,
        now: bool,
    ) -> Result<ForcedRelease> {
        check_reason(reason)?;
        let inner = &self.inner;
        let Some(bound) = inner.tables.served(table) else {
            return self.not_served(table).await;
        };
        let holders = || inner.engine.holders_of(bound.bind().id, key, HOLDERS_MAX);
        let held = holders().ok_or_else(|| too_many(table))?;
        let (mut killed, mut others) = (Vec::new(), Vec::new());
        for txn in held {
            match inner.named_txns.read(&txn, |record| record.cloned()) {
                Some(record) => {
                    let why = by_operator(txn, reason);
                    killed.extend(inner.kill(&record, why, TxnKillCause::Operator, now));
                }
                None => others.push(txn),
            }
        }
        if !others.is_empty() {
            // A transaction that is in no list may just have ended.
            let still = holders().ok_or_else(|| too_many(table))?;
            others.retain(|txn| still.binary_search(txn).is_ok());
        }
        Ok(ForcedRelease { killed, not_killed: others })
    }

    /// The response for a table that is not served here. Nothing of it is held here.
    async fn not_served(&self, table: &TableRef) -> Result<ForcedRelease> {
        let latest = self.inner.parts.allocator.latest(table).await?;
        self.inner.observe(latest.at);
        let Some(bind) = latest.bind else {
            let message = "there is no such table: correct its name";
            return Err(Error::new(ErrorKind::TableNotFound, message).with("table", table));
        };
        match bind.state {
            // It is just being bound here.
            BindState::Bound if bind.bind.owner == self.inner.id => {
                Ok(ForcedRelease { killed: Vec::new(), not_killed: Vec::new() })
            }
            BindState::Bound => {
                Err(Error::new(ErrorKind::NotOwner, "another node owns the table: call that one")
                    .with("table", table)
                    .with("owner", &bind.node)
                    .with_detail(Detail::Owner {
                        service: bind.bind.owner,
                        node: bind.node,
                        address: bind.address,
                    }))
            }
            BindState::Invalid { reassigned_in } => Err(Error::new(
                ErrorKind::Reassigning,
                "the last owner of the table may still be at work: what it granted ends with its \
                    lease",
            )
            .with("table", table)
            .with_detail(Detail::RetryAfter(reassigned_in))),
        }
    }
}

fn too_many(table: &TableRef) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "too many transactions hold the key: end their sessions, or some of them first",
    )
    .with("table", table)
    .with("limit", HOLDERS_MAX)
}
