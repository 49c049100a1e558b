//! [`Leadership`], and the other responses of a [`BindStore`].

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::{BindStore, DataLoss};
use super::{Cluster, Floor, LeadershipHistory, Loss, NodeAddress, Seen};
use crate::id::{Epoch, WriteNumber};

/// The response to [`BindStore::acquire_leadership`]. Exhaustive: a candidate must handle both.
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// The caller leads.
    Acquired(Acquired),
    /// Another leads, or may be leading: the store holds no record, or its line of history is not
    /// the leader's.
    Held {
        /// The leadership as the store has it. A candidate that sees it unchanged for hi(leadership
        /// TTL) passes it with its next request.
        seen: Seen,
        /// The address of the leader; `None` if certainly no node leads.
        address: Option<NodeAddress>,
        /// The cluster of the store; `None` if it holds no record of one.
        cluster: Option<Cluster>,
    },
}

/// A leadership that a store gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acquired {
    /// The number of the new leadership.
    pub epoch: Epoch,
    /// The number of the last applied write.
    pub applied: WriteNumber,
    /// True if the store is open to this process alone, which then *is* the leadership: it never
    /// runs out (L1).
    pub exclusive: bool,
    /// True if the last leadership ended by [`BindStore::resign`]: nothing can be in flight. Also
    /// for a new exclusive store.
    pub clean: bool,
    /// True if nothing can have been lost: the store is *whole* (see [`DataLoss`]). Always true of
    /// an exclusive store.
    pub continuous: bool,
    /// The losses that are known.
    pub loss: Loss,
    /// The writes at which this leadership and those before it began. Empty of an exclusive store.
    pub history: LeadershipHistory,
    /// The number from which the backend vouches that numbers may begin (L4); zero if it cannot.
    pub floor: Floor,
    /// The copy of the store that gave it.
    pub lineage: Lineage,
    /// The cluster of the store.
    pub cluster: Cluster,
}

impl Acquired {
    /// The leadership of an exclusive store: nothing can be lost, and nothing runs out.
    pub(crate) fn exclusive(
        epoch: Epoch,
        applied: WriteNumber,
        clean: bool,
        cluster: Cluster,
    ) -> Self {
        Self {
            epoch,
            applied,
            exclusive: true,
            clean,
            continuous: true,
            loss: Loss::default(),
            history: LeadershipHistory::default(),
            floor: Floor::default(),
            lineage: Lineage::default(),
            cluster,
        }
    }
}

/// The response to [`BindStore::applied`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The epoch of the current or last leadership.
    pub epoch: Epoch,
    /// The number of the last applied write.
    pub number: WriteNumber,
    /// The copy of the store that responded.
    pub lineage: Lineage,
}

/// Identifies one line of history of a store (L4): a change means that the store may have gone back
/// in time. Empty where it cannot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
pub struct Lineage(pub String);

/// The response to [`BindStore::renew`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Renewal {
    /// The copy of the store that responded.
    pub lineage: Lineage,
}

/// The response to [`BindStore::write`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WriteAck {
    /// The copy of the store that responded.
    pub lineage: Lineage,
}
