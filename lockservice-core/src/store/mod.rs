//! [`BindStore`]: what a backend implements, as little as possible.
//!
//! A store keeps the allocator's durable state: which tables exist, whom they are bound to, at
//! which version, which fencing tokens may have been handed out, which incarnations were fenced and
//! which transactions may never commit. Leases, caching, batching and leadership logic are written
//! once, above it, in [`crate::allocator`].

mod cluster;
mod exclusive;
mod floor;
mod forgotten;
mod head;
mod history;
mod inspection;
mod layout;
mod memory;
mod place;
mod record;
mod turns;
mod unfinished;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::error::Result;
use crate::id::{Epoch, NodeName, Nonce};

pub use self::cluster::{Cluster, ClusterId, ClusterKey, Proof};
pub use self::exclusive::{Exclusive, ExclusiveStore, KeyValue, Visit};
pub use self::floor::Floor;
pub use self::forgotten::Forgotten;
pub use self::head::{Head, Leader};
pub use self::history::{LeadershipHistory, PastLeadership};
pub use self::inspection::{Damage, Inspection};
pub use self::layout::{Change, STORE_FORMAT, absorb, changes};
pub use self::memory::MemoryStore;
pub use self::place::Place;
pub use self::record::{
    Batch, BindRecord, ClusterConstants, Op, RECORD_FORMAT, ServiceRecord, ServiceState,
    StoreState, TableRecord, decode, encode,
};
pub use self::turns::Turns;

/// The durable state of an allocator, on RocksDB, PostgreSQL, Redis, in a file or in memory.
///
/// # Contract
/// 1. **Atomic and durable.** A [`write`](Self::write) that answered `Ok` is there, whole, after
///    any crash; one that failed with anything but
///    [`ErrorKind::UnknownOutcome`](crate::ErrorKind::UnknownOutcome) is not there, not even in
///    part.
/// 2. **Fenced** (L2). A write names the epoch of a leadership and fails with
///    [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) if that is not the current one, checked in
///    the same transaction as the write itself.
/// 3. **Numbered** (L2). A write carries a number one above the last applied, and the store refuses
///    any other with [`ErrorKind::Fenced`](crate::ErrorKind::Fenced), so that a delayed duplicate
///    cannot land late.
/// 4. **One leader** (L1). [`acquire_leadership`](Self::acquire_leadership) is a compare-and-set;
///    epochs only grow, and grow past the candidate's floor (L4). A store that one process opens
///    exclusively *is* the leadership while it is open.
/// 5. **One line of history** (L4). Every answer of a store that can go back in time names its
///    [`Lineage`]; a store that cannot answers the empty one.
/// 6. Every method may be called from any thread at any time, and may be cancelled by dropping its
///    future; a cancelled write has an unknown outcome. Every method ends within a bounded time,
///    with `Unavailable` or `UnknownOutcome`.
///
/// # Minimal implementation
/// Everything but [`head`](Self::head) and [`wait_for_change`](Self::wait_for_change). What a
/// change of leadership means is decided by [`Head`]; a backend stores a head, and compares its
/// epoch and number atomically with each write. Run `testing::store_suite` (feature `testing`)
/// against it.
#[async_trait]
pub trait BindStore: fmt::Debug + Send + Sync + 'static {
    /// What this store is, for messages to operators: its URL without secrets.
    fn describe(&self) -> String;

    /// Reads everything. Called once by a new leader. It can be a million records: to decode them
    /// it lets other tasks run by [`Turns`], or does it on a blocking thread.
    ///
    /// Fails with `StoreCorrupt` or `StoreNewer` for content that this version cannot read (nothing
    /// is changed), `Unavailable` if the store does not answer.
    async fn load(&self) -> Result<StoreState>;

    /// Asks for a leadership that lasts `ttl` without a renewal; decided by
    /// [`Head::acquire_exclusive`] or [`Head::acquire_shared`].
    ///
    /// A shared store answers an [elected](Candidate::elected) candidate with `Acquired` only if it
    /// is the holder. Otherwise it answers [`Leadership::Held`] unless the holder resigned, the
    /// candidate is the holder, or `candidate.seen` proves that the caller watched the store stand
    /// still for hi(the leader's TTL) (L1). The new epoch is above the stored one, above
    /// `candidate.floor`, and above a floor of the backend's own where it has one (L4); it is
    /// durable before the answer. Not numbered: the number of the last applied write stays. After
    /// an unknown outcome, ask again with the same nonce.
    ///
    /// An exclusive store whose path another process may use now fails with `Fenced`, here and in
    /// every other method: this process never leads it again.
    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership>;

    /// Raises the leader's counter. Fails with `Fenced` if `epoch` is no longer current. An
    /// exclusive store has nothing to renew and only checks the epoch. After an unknown outcome,
    /// renew again: the promise counts from before the renewal that was answered.
    async fn renew(&self, epoch: Epoch) -> Result<Renewal>;

    /// Gives the leadership up, durably: the next candidate need not wait, and an exclusive store
    /// remembers that it was closed cleanly. Only to be called when no commit is in flight and
    /// nothing is answered any more (L1). Fails with `Fenced` if `epoch` is no longer current.
    async fn resign(&self, epoch: Epoch) -> Result<()>;

    /// Applies `batch` as one atomic, durable write.
    ///
    /// Fails with `Fenced` (wrong epoch or number), `StoreUnusable` (disk full, read-only),
    /// `Unavailable` (surely not applied) or `UnknownOutcome` (settle it with
    /// [`applied`](Self::applied) before the next write).
    async fn write(&self, epoch: Epoch, number: u64, batch: &Batch) -> Result<WriteAck>;

    /// How far the store has come, to settle an unknown outcome (L2). The epoch tells whether the
    /// last write can still be the caller's.
    async fn applied(&self) -> Result<Applied>;

    /// The leadership as it is recorded, for operators; changes nothing. `None` if there was never
    /// one. The default knows only what [`applied`](Self::applied) tells: no leader.
    async fn head(&self) -> Result<Option<Head>> {
        let Applied { epoch, number, lineage } = self.applied().await?;
        Ok((epoch > Epoch::default()).then(|| Head {
            epoch,
            applied: number,
            lineage,
            ..Head::default()
        }))
    }

    /// Waits until the leadership may have changed, at most `poll`. The default only lets that time
    /// pass. An error means no more than that the store cannot tell; the caller goes on polling.
    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        // A store has no node's timers; a poll decides nothing.
        Env::system().sleep(poll).await;
        Ok(())
    }
}

/// Where a node is reached. Empty where it cannot be, or need not.
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

/// Who asks for the leadership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The node that asks.
    pub node: NodeName,
    /// Tells two processes of one node apart.
    pub nonce: Nonce,
    /// Where it is reached once it leads.
    pub address: NodeAddress,
    /// The cluster that it knows, or a new one: the store's if that has none yet.
    pub cluster: Cluster,
    /// True if the store's cluster begins anew with this leadership, whichever it was before.
    pub founds: bool,
    /// What has been seen unchanged for hi(leadership TTL), if anything (L1).
    pub seen: Option<Seen>,
    /// The new epoch must be above this: the highest that any node reported (L4).
    pub floor: Epoch,
    /// What the candidate knows of writes that the store may have lost.
    pub data_loss: DataLoss,
    /// True once it leads: only its own leadership is then raised or marked, and nothing is taken
    /// over. What it has in memory would be wrong if another had led meanwhile, even if that one
    /// has resigned.
    pub elected: bool,
}

/// Whether a store may have lost writes (L4), as a candidate knows it.
///
/// The store keeps the state with the leadership, so that it survives a leader that fails because
/// of it:
///
/// ```text
///                 another copy of the store, or no record of a leader
///   whole ────────────────────────────────────────────────────▶ may have lost writes
///     ▲ ╲                                                        │  │
///     │  ╲ Known                                           Known │  │ Resolved
///     │   ╲                                                      ▼  │
///     │    ╲─────────────────────────────────────────▶ has lost writes
///     │                                                    │        │
///     └────────────────────────────────────────────────────┴────────┘
///                               Resolved
/// ```
///
/// - *whole*: the new leader goes on with every bind, at once.
/// - *may have lost writes*: the new leader refuses commits and grants nothing new until every node
///   that could have been told of a lost write has renewed or run out of lease.
/// - *has lost writes*: the same, and in addition every bind is invalid.
///
/// Each arrow to the right skips some epochs: the store may have forgotten epochs too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum DataLoss {
    /// The candidate knows no more than the store: the state changes only if the store is another
    /// copy than that of the last leader, or holds no record of one.
    #[default]
    Unknown,
    /// The candidate knows that writes were lost.
    Known {
        /// Every version, incarnation, table id and token that may have been handed out is below
        /// this, as far as a node could report.
        high_water: u64,
    },
    /// The leader has waited for every node that could have been told of a lost write. Only the
    /// leader itself can say so; from any other candidate it counts as
    /// [`Unknown`](Self::Unknown).
    Resolved,
}

/// What is known of the losses of a store (L4). Kept with the leadership, for the next leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Loss {
    /// True while a loss of writes is known, not only possible, and not resolved: nothing in the
    /// store is relied on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub known: bool,
    /// What leaderships before this one told is accounted for: it is invalid, or every node that was
    /// told of it has renewed or run out of lease since. 0 if no data loss was ever known or
    /// resolved.
    #[serde(rename = "heard_before")]
    pub observed_before: Epoch,
    /// Versions, incarnations, table ids and tokens below this may have been handed out, as far as
    /// a node could report.
    #[serde(rename = "numbers")]
    pub high_water: u64,
}

impl Loss {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Takes into account what a candidate that leads in `epoch` from now on knows; `own` if it led
    /// before.
    fn update(&mut self, data_loss: DataLoss, own: bool, epoch: Epoch) {
        match data_loss {
            DataLoss::Known { high_water } => {
                let high_water = self.high_water.max(high_water);
                *self = Self { known: true, observed_before: epoch, high_water };
            }
            DataLoss::Resolved if own => (self.known, self.observed_before) = (false, epoch),
            DataLoss::Resolved | DataLoss::Unknown => {}
        }
    }
}

/// What a candidate sees of a store's leadership. While it stays equal, no leader has renewed and
/// the store has not gone back (L1, L4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// The last leadership; `None` if the store holds no record of one.
    pub leader: Option<LeaderSeen>,
    /// Which copy of the store answered.
    pub lineage: Lineage,
}

/// What a candidate saw of a leadership.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaderSeen {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// Tells the leadership from another that was given the same epoch, by a store that went back;
    /// 0 after a resignation.
    pub nonce: Nonce,
    /// The leader's renewal counter.
    pub counter: u64,
    /// How long the leadership lasts without a renewal, in milliseconds: what a candidate must wait
    /// out, whatever its own TTL is.
    pub ttl_ms: u64,
}

/// What [`BindStore::acquire_leadership`] returns. Exhaustive: a candidate must handle both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// The caller leads.
    Acquired(Acquired),
    /// Another leads, or may be leading: the store holds no record, or its line of history is not
    /// the leader's.
    Held {
        /// The leadership as the store has it. A candidate that sees it unchanged for hi(leadership
        /// TTL) asks again with it.
        seen: Seen,
        /// Where the leader is reached; `None` if certainly no node leads.
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
    pub applied: u64,
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
    /// Where this leadership and those before it began. Empty of an exclusive store.
    pub history: LeadershipHistory,
    /// Where the backend vouches that numbers may begin (L4); zero if it cannot.
    pub floor: Floor,
    /// The copy of the store that gave it.
    pub lineage: Lineage,
    /// The cluster of the store.
    pub cluster: Cluster,
}

impl Acquired {
    /// The leadership of an exclusive store: nothing can be lost, and nothing runs out.
    pub(crate) fn exclusive(epoch: Epoch, applied: u64, clean: bool, cluster: Cluster) -> Self {
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

/// The answer to [`BindStore::applied`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The epoch of the current or last leadership.
    pub epoch: Epoch,
    /// The number of the last applied write.
    pub number: u64,
    /// Which copy of the store answered.
    pub lineage: Lineage,
}

/// Identifies one line of history of a store (L4): a change means that the store may have gone back
/// in time. Empty where it cannot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
pub struct Lineage(pub String);

/// The answer to [`BindStore::renew`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Renewal {
    /// Which copy of the store answered.
    pub lineage: Lineage,
}

/// The answer to [`BindStore::write`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WriteAck {
    /// Which copy of the store answered.
    pub lineage: Lineage,
}

impl Candidate {
    /// A candidate for a store that it has not seen: random nonce, nothing observed.
    pub fn new(node: NodeName, address: impl Into<NodeAddress>) -> Self {
        Self::in_env(&Env::system(), node, address)
    }

    /// As [`new`](Self::new), with the randomness of `env`.
    pub fn in_env(env: &Env, node: NodeName, address: impl Into<NodeAddress>) -> Self {
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
