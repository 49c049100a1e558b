//! `cannot_commit`: making a transaction unable to ever commit (C4).
//!
//! 1. [`LocalShared::cannot_commit`] decides what can be decided without a tombstone.
//! 2. [`CommitControl::tombstone`](crate::allocator::state::commits::CommitControl::tombstone) sets
//!    the tombstone in memory, and its write is queued under the same lock.
//! 3. The writer's task calls `durable` when the write has landed; the caller waits for that.

use std::sync::Arc;

use smallvec::smallvec;
use tokio::sync::oneshot;

use crate::allocator::leader::LocalShared;
use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::state::commits::{Tombstoned, TxnLife};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::{AllocatorState, Service, not_reported, stopping};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::TxnId;
use crate::store::Op;

/// The outcome for one transaction of a `cannot_commit`.
pub(in crate::allocator) enum Verdict {
    /// Its commit is, or may be, in flight.
    Committing,
    /// It never commits, and that is durable.
    Tombstoned,
    /// Its tombstone is being written.
    Writing(oneshot::Receiver<Result<()>>),
}

impl LocalShared {
    /// Makes `txn` unable to commit, unless its commit may be in flight.
    pub(in crate::allocator) async fn cannot_commit(
        &self,
        state: &Arc<AllocatorState>,
        txn: TxnId,
    ) -> Result<Verdict> {
        let now = self.env.now();
        // T1: it is refused at begin_commit anyway.
        if !txn.validates() {
            return Ok(Verdict::Tombstoned);
        }
        let origin = state.service(txn.origin);
        // L1: a commit that an earlier leader admitted may still be in flight. (One origin of a
        // shared store may live on, and one that the store has lost may have any number.)
        if (txn.origin < state.first_service || origin.is_none()) && now < state.earlier_until {
            return Ok(Verdict::Committing);
        }
        // An origin that is unknown now stays unknown: ids are never handed out twice (L4).
        let Some(origin) = origin else { return Ok(Verdict::Tombstoned) };
        check_started(state, &origin, txn)?;
        let room = self.room().await?;
        let (done, landed) = oneshot::channel();
        let control = Arc::clone(&origin);
        let outcome = origin.commits.tombstone(txn, now, |outcome| {
            if let Tombstoned::ToWrite(generation) = outcome {
                // Runs on the writer's task.
                let done: Done = Box::new(move |outcome: Result<()>| {
                    if outcome.is_ok() {
                        control.commits.durable(txn, generation);
                    }
                    drop(done.send(outcome));
                });
                room.send(Command::Write { ops: smallvec![Op::PutTombstone(txn)], done });
            }
            outcome
        })?;
        match outcome {
            Tombstoned::Full => self.fence_full(&origin, txn, now).await,
            Tombstoned::Committing => Ok(Verdict::Committing),
            Tombstoned::Durable | Tombstoned::Over => Ok(Verdict::Tombstoned),
            Tombstoned::ToWrite(_) => Ok(Verdict::Writing(landed)),
            Tombstoned::Fenced => self.of_fenced(&origin, txn).await,
        }
    }

    /// Fences an origin that has no room for the tombstone of `txn`.
    async fn fence_full(&self, origin: &Arc<Service>, txn: TxnId, now: Time) -> Result<Verdict> {
        tracing::error!(
            service = %origin.id,
            "too many transactions of silent clients are kept from committing one by one: the \
                incarnation is fenced, and its node starts a new one"
        );
        // Its binds are invalid from here on, and reassigned when its lease must have run out (B3).
        let outcome = origin.fence_for(txn, now)?;
        self.store_end(origin, origin.state()).await?;
        match outcome {
            Tombstoned::Committing => Ok(Verdict::Committing),
            _ => Ok(Verdict::Tombstoned),
        }
    }

    /// The outcome for a transaction whose origin is fenced.
    async fn of_fenced(&self, origin: &Arc<Service>, txn: TxnId) -> Result<Verdict> {
        match origin.lease.get().state {
            // Not an end of its own yet: it says the same to every commit now, and its end will be
            // stored before anything is given away.
            LeaseState::Fenced | LeaseState::Resigned => {
                self.store_end(origin, origin.state()).await?;
                Ok(Verdict::Tombstoned)
            }
            LeaseState::Resigning => Err(Error::new(
                ErrorKind::Unavailable,
                "the transaction's origin is just resigning: try again",
            )
            .with("txn", txn)),
            // Only a stop fences the origins of live leases.
            LeaseState::Live => Err(stopping()),
        }
    }
}

/// Fails for a transaction that has not begun. A tombstone on a number that is yet to come would
/// hit a transaction that no caller meant.
fn check_started(state: &AllocatorState, origin: &Service, txn: TxnId) -> Result<()> {
    match state.origins.life(txn) {
        Some(TxnLife::NotStarted) => Err(Error::new(
            ErrorKind::TxnNotFound,
            "the transaction was never begun: correct its id",
        )
        .with("txn", txn)),
        None if !origin.commits.may_have_started(txn) => Err(not_reported(txn)),
        // One that is over, as its origin says, gets a tombstone like any other: a later leader may
        // learn of its end only later.
        _ => Ok(()),
    }
}
