//! [`Candidate`]: a process that requests the leadership, and its observations.

use super::{Cluster, DataLoss, Lineage};
use crate::env::Env;
use crate::id::{Epoch, NodeName, Nonce, RenewalNumber};

/// The address at which a node is reached. Empty if it cannot be, or need not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeAddress {
    /// By other nodes.
    pub nodes: String,
    /// By clients.
    pub clients: String,
}

impl From<String> for NodeAddress {
    /// One address for both.
    fn from(address: String) -> Self {
        Self { nodes: address.clone(), clients: address }
    }
}

impl From<&str> for NodeAddress {
    /// One address for both.
    fn from(address: &str) -> Self {
        Self::from(address.to_owned())
    }
}

/// A process that requests the leadership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The node of the candidate.
    pub node: NodeName,
    /// Distinguishes two processes of one node.
    pub nonce: Nonce,
    /// The address at which it is reached once it leads.
    pub address: NodeAddress,
    /// The cluster that it knows, or a new one: the store's if that has none yet.
    pub cluster: Cluster,
    /// True if the store gets a new cluster with this leadership.
    pub founds: bool,
    /// The leadership that the candidate has seen unchanged for hi(leadership TTL), if any (L1).
    pub seen: Option<Seen>,
    /// The new epoch must be above this: the highest that any node reported (L4).
    pub floor: Epoch,
    /// The data loss, as far as the candidate knows.
    pub data_loss: DataLoss,
    /// True once it leads: the store then only raises the epoch of its own leadership, and gives it
    /// no other. Its memory would be wrong if another had led meanwhile, even if that one has
    /// resigned.
    pub elected: bool,
}

/// A store's leadership as a candidate sees it. While it stays equal, no leader has renewed and
/// the store has not gone back (L1, L4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// The last leadership; `None` if the store holds no record of one.
    pub leader: Option<LeaderSeen>,
    /// The copy of the store that responded.
    pub lineage: Lineage,
}

/// A leadership, as a candidate saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaderSeen {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// Distinguishes the leadership from another that was given the same epoch, by a store that
    /// went back; 0 after a resignation.
    pub nonce: Nonce,
    /// The number of the leader's last renewal.
    pub counter: RenewalNumber,
    /// The time for which the leadership lasts without a renewal, in milliseconds. A candidate must
    /// wait that out, even if its own TTL is shorter.
    pub ttl_ms: u64,
}

impl Candidate {
    /// A candidate for a store that it has not seen: random nonce, nothing observed.
    pub fn new(node: NodeName, address: impl Into<NodeAddress>) -> Self {
        Self::in_env(&Env::system(), node, address)
    }

    /// Like [`new`](Self::new), with the randomness of `env`.
    pub(crate) fn in_env(env: &Env, node: NodeName, address: impl Into<NodeAddress>) -> Self {
        Self {
            node,
            nonce: Nonce::new(env.random_u64()),
            address: address.into(),
            cluster: Cluster::in_env(env),
            founds: false,
            seen: None,
            floor: Epoch::default(),
            data_loss: DataLoss::Unknown,
            elected: false,
        }
    }
}

impl From<NodeName> for Candidate {
    /// A candidate that other nodes do not have to reach.
    fn from(node: NodeName) -> Self {
        Self::new(node, "")
    }
}
