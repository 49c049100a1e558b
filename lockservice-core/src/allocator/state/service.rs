//! [`Service`]: an incarnation in memory.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::Notify;

use crate::allocator::state::commits::{CommitControl, Tombstoned};
use crate::allocator::state::leases::{LeaseCell, LeaseState, Ttl};
use crate::clock::Time;
use crate::error::Result;
use crate::id::{NodeName, Nonce, ServiceId, TableId, TxnId};
use crate::store::{ServiceRecord, ServiceState, Succession, TableHolders};
use crate::sync::atomic::{AtomicBool, AtomicUsize};

/// An incarnation (B1), with its lease and the control state of its commits.
#[derive(Debug)]
pub(crate) struct Service {
    /// The incarnation's id.
    pub(crate) id: ServiceId,
    /// The node it is an incarnation of.
    pub(crate) node: NodeName,
    /// Distinguishes it from any other with the same id.
    pub(crate) nonce: Nonce,
    /// The address at which clients reach it.
    pub(crate) address: String,
    /// The time for which a renewal holds. For a renewal of an earlier leadership it is the longer
    /// of the old and the new constant (B4).
    pub(crate) ttl: Ttl,
    /// The life of the incarnation.
    pub(crate) lease: LeaseCell,
    /// The commits of its transactions.
    pub(crate) commits: CommitControl,
    /// True once a state below `Live` is in the store. Released when the write has landed, acquired
    /// by those who would write it again.
    pub(crate) end_durable: AtomicBool,
    /// Binds and writes of binds that name it. The record goes only at zero. `SeqCst`: a bind
    /// counts itself and then reads the lease, the sweep ends the lease and then reads the count.
    pub(crate) references: AtomicUsize,
    /// Notified when its resignation has landed.
    pub(crate) gone: Notify,
    /// The first incarnation of its node that it surely follows; 0 if there is none (P6).
    pub(crate) follows: ServiceId,
    /// The tables that it leaves held, with the sessions that hold something in each, once it
    /// resigns for a restart.
    held: OnceLock<HashMap<TableId, TableHolders>>,
}

impl Service {
    /// An incarnation whose lease was last renewed at `renewed_at`.
    pub(crate) fn new(
        record: ServiceRecord,
        ttl: Duration,
        renewed_at: Time,
        state: LeaseState,
        commits: CommitControl,
    ) -> Self {
        Self {
            id: record.id,
            node: record.node,
            nonce: record.nonce,
            address: record.address,
            ttl: ttl.into(),
            lease: LeaseCell::new(renewed_at, state),
            commits,
            end_durable: AtomicBool::new(record.state != ServiceState::Live),
            references: AtomicUsize::new(0),
            gone: Notify::new(),
            follows: record.succession.follows,
            held: match record.state {
                ServiceState::Resigned => by_table(record.succession.held.into_iter()).into(),
                _ => OnceLock::new(),
            },
        }
    }

    /// It resigns for a restart, and leaves these tables held. The first call counts.
    pub(crate) fn leave(&self, held: &[TableHolders]) {
        // A repetition says the same.
        let _ = self.held.set(by_table(held.iter().cloned()));
    }

    /// The tables that it left held, with the sessions that hold something in each.
    pub(crate) fn left(&self) -> Option<&HashMap<TableId, TableHolders>> {
        self.held.get()
    }

    /// The time until a table of which it is the last owner can be reassigned (B3, P6). Meaningful
    /// once its lease no longer holds.
    pub(crate) fn reassigned_in(&self, table: TableId, now: Time) -> Duration {
        let lease = self.lease.get();
        let is_held = self.held.get().is_some_and(|held| held.contains_key(&table));
        if lease.state == LeaseState::Resigned && is_held {
            return lease.lapses_in(self.ttl, now);
        }
        lease.reassigned_in(self.ttl, now)
    }

    /// True if `service` surely is a later process of the same node, which takes over what this one
    /// left (P6): it proved that, or this one is `over` with all of its time, for the store was
    /// opened exclusively since.
    pub(crate) fn is_followed_by(&self, service: &Self, over: bool) -> bool {
        let proven = service.follows != ServiceId::default() && service.follows <= self.id;
        self.id < service.id && (over || proven && self.node == service.node)
    }

    /// Its resignation is durable: its tables may be reassigned at once. Changes nothing if it
    /// was fenced meanwhile.
    pub(crate) fn finish_resign(&self) {
        if self.lease.finish_resign() {
            self.gone.notify_waiters();
        }
    }

    /// True while its binds are valid. A caller that publishes a false uses
    /// [`check_holds`](Self::check_holds) instead.
    pub(crate) fn holds(&self, now: Time) -> bool {
        self.lease.get().holds(self.ttl, now)
    }

    /// Like [`holds`](Self::holds), but fences it if it has lapsed: an incarnation that was
    /// reported as over is never renewed, even by a thread that has read the clock before.
    pub(crate) fn check_holds(&self, now: Time) -> bool {
        self.holds(now) || {
            self.fence_if_lapsed(now);
            self.holds(now)
        }
    }

    /// Renews its lease. False, with the lease fenced, if it has lapsed or was fenced before.
    pub(crate) fn renew(&self, now: impl Fn() -> Time) -> bool {
        self.lease.renew(self.ttl, &now) || {
            self.fence_if_lapsed(now());
            false
        }
    }

    /// Its record, in `state`.
    pub(crate) fn record(&self, state: ServiceState) -> ServiceRecord {
        ServiceRecord {
            id: self.id,
            node: self.node.clone(),
            nonce: self.nonce,
            address: self.address.clone(),
            state,
            succession: Succession {
                follows: self.follows,
                held: match (state, self.held.get()) {
                    (ServiceState::Resigned, Some(held)) => by_record(held),
                    _ => Vec::new(),
                },
            },
        }
    }

    /// Its state, as the store would have it.
    pub(crate) fn state(&self) -> ServiceState {
        match self.lease.get().state {
            LeaseState::Live | LeaseState::Resigning => ServiceState::Live,
            LeaseState::Fenced => ServiceState::Fenced,
            LeaseState::Resigned => ServiceState::Resigned,
        }
    }

    /// Fences it if its lease has lapsed; its transactions too, before anything of it can be given
    /// away. False if it holds, or is fenced already.
    pub(crate) fn fence_if_lapsed(&self, now: Time) -> bool {
        let lapsed = self.lease.fence_if(|lease| lease.lapsed(self.ttl, now));
        if lapsed {
            self.commits.fence();
        }
        lapsed
    }

    /// Fences it whether it lapsed or not (it is replaced).
    pub(crate) fn fence(&self) {
        self.lease.fence_if(|_| true);
        self.commits.fence();
    }

    /// Fences it, for it has no room for the tombstone of `txn`, and returns what that is now: room
    /// may have been made before the fence, and taken by a commit of `txn` (C4).
    pub(crate) fn fence_for(&self, txn: TxnId, now: Time) -> Result<Tombstoned> {
        self.fence();
        self.commits.tombstone(txn, now, |outcome| outcome)
    }
}

fn by_table(held: impl Iterator<Item = TableHolders>) -> HashMap<TableId, TableHolders> {
    held.map(|held| (held.table, held)).collect()
}

/// In an order that does not depend on hashes.
fn by_record(held: &HashMap<TableId, TableHolders>) -> Vec<TableHolders> {
    let mut held: Vec<_> = held.values().cloned().collect();
    held.sort_unstable_by_key(|held| held.table);
    held
}
