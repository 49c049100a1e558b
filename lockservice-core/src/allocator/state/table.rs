//! [`TableEntry`]: a lock table in memory, with its binds.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::watch;

use crate::allocator::messages::{BindState, BindStatus};
use crate::allocator::state::pins::Pins;
use crate::allocator::state::service::Service;
use crate::bind::Bind;
use crate::clock::Time;
use crate::id::{BindVersion, TableId, TableRef};
use crate::store::{BindRecord, TableRecord};

/// A lock table.
#[derive(Debug)]
pub(crate) struct TableEntry {
    /// The table's number (B6).
    pub(crate) id: TableId,
    /// First token that no block has covered yet, as the store says (F2).
    pub(crate) tokens_reserved_to: u64,
    /// One bind per partition. Empty until the first grant landed.
    pub(crate) binds: SmallVec<[BindEntry; 1]>,
    /// Closes when the write that is under way has landed or failed.
    pub(crate) pending: Option<watch::Receiver<()>>,
    /// True while the write that is under way forgets the table: nothing may rely on its binds any
    /// more.
    pub(crate) leaving: bool,
}

/// The owner that a partition is, or was last, bound to.
#[derive(Debug, Clone)]
pub(crate) struct BindEntry {
    /// The owner.
    pub(crate) owner: Arc<Service>,
    /// The bind's version.
    pub(crate) version: BindVersion,
    /// The commits in flight on it.
    pub(crate) pins: Arc<Pins>,
}

impl TableEntry {
    /// The table's record with these binds and this end of its token blocks.
    pub(crate) fn record(
        &self,
        table: &TableRef,
        binds: &[BindEntry],
        tokens_reserved_to: u64,
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
        }
    }

    /// One partition, as an operator sees it.
    pub(crate) fn status(&self, table: &TableRef, partition: u32, now: Time) -> Option<BindStatus> {
        let bind = self.binds.get(partition as usize)?;
        let lease = bind.owner.lease.get();
        let state = if lease.holds(bind.owner.ttl, now) {
            BindState::Bound
        } else {
            BindState::Invalid { reassigned_in: lease.reassigned_in(bind.owner.ttl, now) }
        };
        Some(BindStatus {
            bind: Bind {
                table: table.clone(),
                id: self.id,
                partition,
                owner: bind.owner.id,
                version: bind.version,
            },
            node: bind.owner.node.clone(),
            address: bind.owner.address.clone(),
            state,
        })
    }
}
