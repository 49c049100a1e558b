//! [`TableEntry`]: a lock table in memory, with its binds.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::watch;

use crate::allocator::messages::{BindState, BindStatus, PresentedBind};
use crate::allocator::state::service::Service;
use crate::allocator::state::slots::{BindSlots, ClaimedSlot, Places};
use crate::bind::{Bind, BindSlot};
use crate::clock::Time;
use crate::id::{BindVersion, FencingToken, HolderMark, TableId, TableRef};
use crate::store::{BindRecord, TableRecord};

/// A lock table.
#[derive(Debug)]
pub(crate) struct TableEntry {
    /// The table's number (B6).
    pub(crate) id: TableId,
    /// First token that no block has covered yet, as the store says (F2).
    pub(crate) tokens_reserved_to: FencingToken,
    /// One bind per partition. Empty until the first grant landed.
    pub(crate) binds: SmallVec<[BindEntry; 1]>,
    /// Closes when the write that is under way has landed or failed.
    pub(crate) pending: Option<watch::Receiver<()>>,
    /// True while the write that is under way forgets the table: nothing may rely on its binds any
    /// more.
    pub(crate) leaving: bool,
    /// Set if its bind was made for claims (P6).
    pub(crate) claims: Option<TableClaims>,
}

/// The claims for which a table was bound (P6).
#[derive(Clone, Debug)]
pub(crate) struct TableClaims {
    /// The first version whose holders may not have claimed yet.
    pub(crate) from: BindVersion,
    /// Every token that was granted under these versions is below this.
    pub(crate) tokens_below: FencingToken,
    /// Until then its owner grants nothing else, unless all holders have claimed.
    pub(crate) until: Time,
    /// All sessions that hold something in it, if that is known.
    pub(crate) holders: Option<Vec<HolderMark>>,
    /// Sessions that waited for something in it when its last owner stopped.
    pub(crate) waiters: Vec<HolderMark>,
}

/// The owner that a partition is, or was last, bound to.
#[derive(Debug)]
pub(crate) struct BindEntry {
    /// The owner.
    pub(crate) owner: Arc<Service>,
    /// The bind's version.
    pub(crate) version: BindVersion,
    /// The slot where commits find it, with the pins of those in flight. It is open while the table
    /// allows commits; the owner's lease must allow them too.
    pub(crate) slot: ClaimedSlot,
}

impl BindEntry {
    /// The bind of a partition, closed to commits.
    pub(crate) fn closed(
        slots: &Arc<BindSlots>,
        table: TableId,
        partition: u32,
        owner: Arc<Service>,
        version: BindVersion,
    ) -> Self {
        let slot = BindSlot::NONE;
        let bind = PresentedBind { table, partition, owner: owner.id, version, slot };
        Self { owner, version, slot: slots.claim(&bind) }
    }
}

/// The binds that belong to the number of a table.
#[derive(Debug)]
pub(crate) struct TableById {
    /// Its group and name.
    pub(crate) name: TableRef,
    /// The slot of each partition's bind. Only a place to look at: the slot says whether it is the
    /// bind that is sought.
    pub(crate) slots: Places,
}

impl TableById {
    /// The entry for the number of `name` once `binds` are its binds.
    pub(crate) fn new(name: TableRef, binds: &[BindEntry]) -> Self {
        Self { name, slots: binds.iter().map(|bind| bind.slot.at()).collect() }
    }
}

impl TableEntry {
    /// Admits no further commit on its binds. Those in flight go on.
    pub(crate) fn close(&self) {
        self.binds.iter().for_each(|bind| bind.slot.pins().close());
    }

    /// Like [`close`](Self::close), unless a commit is in flight on one of the binds. Then all are
    /// as before, and it returns false.
    pub(crate) fn close_unless_held(&self, now: Time) -> bool {
        let held = self.binds.iter().position(|bind| !bind.slot.pins().close_unless_held(now));
        let Some(held) = held else { return true };
        self.binds[..held].iter().for_each(|bind| bind.slot.pins().reopen());
        false
    }

    /// Ends a [`close`](Self::close).
    pub(crate) fn reopen(&self) {
        self.binds.iter().for_each(|bind| bind.slot.pins().reopen());
    }

    /// The table's record with these binds and this end of its token blocks.
    pub(crate) fn record(
        &self,
        table: &TableRef,
        binds: &[BindEntry],
        tokens_reserved_to: FencingToken,
        claims: Option<&TableClaims>,
    ) -> TableRecord {
        TableRecord {
            table: table.clone(),
            id: self.id,
            partitions: binds.len() as u32,
            tokens_reserved_to,
            binds: binds
                .iter()
                .map(|bind| BindRecord { owner: bind.owner.id, version: bind.version })
                .collect(),
            claimable_from: claims.map(|claims| claims.from).unwrap_or_default(),
        }
    }

    /// The claims for which it was bound, while its owner may take them.
    pub(crate) fn open_claims(&self, now: Time) -> Option<&TableClaims> {
        self.claims.as_ref().filter(|claims| now < claims.until)
    }

    /// One partition, as an operator sees it.
    pub(crate) fn status(&self, table: &TableRef, partition: u32, now: Time) -> Option<BindStatus> {
        let bind = self.binds.get(partition as usize)?;
        let lease = bind.owner.lease.get();
        let state = if lease.holds(bind.owner.ttl, now) {
            BindState::Bound
        } else {
            BindState::Invalid { reassigned_in: bind.owner.reassigned_in(self.id, now) }
        };
        Some(BindStatus {
            bind: Bind {
                table: table.clone(),
                id: self.id,
                partition,
                owner: bind.owner.id,
                version: bind.version,
                slot: bind.slot.at(),
            },
            node: bind.owner.node.clone(),
            address: bind.owner.address.clone(),
            state,
        })
    }
}
