//! Binding a table for the claims of its holders (P6).
//!
//! A table that waits to be reassigned is bound to the next process of its last owner before the
//! wait is over. That process grants nothing in it but claims until then, or until all holders have
//! claimed. The bind is made as any other ([`bind`](super::bind)); what differs is who may have it,
//! and that the store keeps the first version whose holders may not have claimed yet: another crash
//! in the middle of the claims loses nobody's locks.
//!
//! # Why nobody else holds what is claimed
//! A client counts on its locks until lo of what was promised to it, from the send of its request.
//! Everything that was promised rests on the lease of the last owner, so the table waits for longer
//! than that (B3), and its new owner keeps the rest of the wait. It may end the wait early only if
//! the last owner said who holds something, and that none of its commits was in flight: it
//! [resigned](crate::allocator::LockTableAllocator::resign_held).

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::allocator::leader::LocalShared;
use crate::allocator::leader::bind::{FreeTable, NotQueued, bound_table};
use crate::allocator::leader::writer::Command;
use crate::allocator::messages::{BoundTable, ClaimedTable, TableClaim};
use crate::allocator::state::{
    AllocatorState, Service, TableClaims, TableEntry, lease_lost, stopping,
};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ServiceId, TableRef};
use crate::sync::atomic::Ordering;

/// The result of the first half.
enum Planned {
    /// The write is queued. The wait for the claims ends with these.
    Queued(oneshot::Receiver<Result<BoundTable>>, TableClaims),
    /// A call before has bound it.
    Before(Box<ClaimedTable>),
}

impl LocalShared {
    /// Binds a table to `service` for claims (P6).
    pub(in crate::allocator) async fn claim_table(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        service: ServiceId,
        claim: &TableClaim,
    ) -> Result<ClaimedTable> {
        let requester = state.service(service).ok_or_else(|| lease_lost(service))?;
        loop {
            if !requester.check_holds(self.env.now()) {
                return Err(lease_lost(service));
            }
            let room = self.room().await?;
            let plan = state
                .tables
                .alter(&claim.table, |slot| self.plan_claim(state, &requester, claim, slot, room));
            match plan {
                Ok(Planned::Before(claimed)) => return Ok(*claimed),
                Ok(Planned::Queued(landed, claims)) => {
                    let bound = landed.await.unwrap_or_else(|_| Err(stopping()))?;
                    return Ok(claimed(bound, &claims, self.env.now()));
                }
                Err(NotQueued::Pending(mut landed)) => drop(landed.changed().await),
                Err(NotQueued::Raise(wanted)) => self.raise(wanted).await?,
                Err(NotQueued::Failed(e)) => return Err(e),
                // Only of a table that is bound in the usual way.
                Err(NotQueued::Bound(_) | NotQueued::Resigning(..)) => {
                    return Err(refused(&claim.table, "it has another owner"));
                }
            }
        }
    }

    /// The first half. Runs on the caller's task, under the table's shard lock.
    fn plan_claim(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        requester: &Arc<Service>,
        claim: &TableClaim,
        slot: &mut Option<TableEntry>,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<Planned, NotQueued> {
        let (now, table) = (self.env.now(), &claim.table);
        let refuse = |why: &str| NotQueued::from(refused(table, why));
        let Some(entry) = slot.as_ref() else { return Err(refuse("it is not known here")) };
        if let Some(pending) = &entry.pending {
            return Err(NotQueued::Pending(pending.clone()));
        }
        let [bind] = entry.binds.as_slice() else {
            return Err(refuse("it is not bound to one node"));
        };
        let owner = &bind.owner;
        owner.fence_if_lapsed(now);
        let left = owner.left().and_then(|left| left.get(&entry.id));
        let from = match (left, &entry.claims) {
            (Some(left), _) if owner.id != requester.id => left.from,
            // Holders under earlier versions may not have claimed yet.
            (_, Some(claims)) => claims.from,
            (_, None) => bind.version,
        };
        if claim.version < from || claim.version > bind.version {
            return Err(refuse("what was held under that bind was given up, or given away"));
        }
        if owner.id == requester.id {
            let Some(claims) = entry.open_claims(now) else {
                return Err(refuse("it serves others again"));
            };
            let bound = bound_table(state, table, entry.id, bind, None);
            return Ok(Planned::Before(Box::new(claimed(bound, claims, now))));
        }
        if owner.holds(now) {
            return Err(refuse("another node owns it"));
        }
        if !owner.is_followed_by(requester, state.is_over(owner.id)) {
            return Err(refuse("this node is not known to be the next process of its last owner"));
        }
        let wait = owner.reassigned_in(entry.id, now).max(state.held_until.remaining(now));
        if wait.is_zero() {
            return Err(refuse("it does not wait for its holders any more"));
        }
        let claims = TableClaims {
            from,
            tokens_below: entry.tokens_reserved_to,
            until: now + wait,
            holders: left.filter(|left| !left.others).map(|left| left.holders.clone()),
            waiters: left.map(|left| left.waiters.clone()).unwrap_or_default(),
        };
        // B1: the old owner's end is in the store no later than the bind that follows it.
        // ORDERING: Acquire, the partner of the release in `Grant::landed`.
        let durable = owner.end_durable.load(Ordering::Acquire);
        let free = FreeTable {
            id: Some(entry.id),
            tokens_reserved_to: entry.tokens_reserved_to,
            partitions: 1,
            fenced: (!durable).then(|| Arc::clone(owner)),
            claims: Some(claims.clone()),
        };
        let landed = self.queue_bind(state, requester, (table, slot), free, now, room)?;
        Ok(Planned::Queued(landed, claims))
    }
}

fn claimed(bound: BoundTable, claims: &TableClaims, now: Time) -> ClaimedTable {
    ClaimedTable {
        bound,
        claimable_from: claims.from,
        tokens_below: claims.tokens_below,
        wait: claims.until.remaining(now),
        holders: claims.holders.clone(),
        waiters: claims.waiters.clone(),
    }
}

fn refused(table: &TableRef, why: &str) -> Error {
    Error::new(
        ErrorKind::ClaimRefused,
        format!("what was held in the table cannot be claimed: {why}"),
    )
    .with("table", table)
}
