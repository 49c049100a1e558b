//! [`BindStore`]: what a backend implements, as little as possible.
//!
//! A store keeps the allocator's durable state: which tables exist, whom they are bound to, at which version, which fencing
//! tokens may have been handed out, which incarnations were fenced and which transactions may never commit. Leases, caching,
//! batching and leadership logic are written once, above it, in [`crate::allocator`].

mod exclusive;
mod layout;
mod memory;
mod record;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::id::{Epoch, NodeName, Nonce};

pub use self::exclusive::{ExclusiveStore, KeyValue, Visit};
pub use self::layout::{Change, STORE_FORMAT};
pub use self::memory::MemoryStore;
pub use self::record::{
    Batch, BindRecord, ClusterConstants, Op, RECORD_FORMAT, ServiceRecord, ServiceState, StoreState, TableRecord,
    decode, encode,
};

/// The durable state of an allocator, on RocksDB, PostgreSQL, Redis, in a file or in memory.
///
/// # Contract
/// 1. **Atomic and durable.** A [`write`](Self::write) that answered `Ok` is there, whole, after any crash; one that failed with
///    anything but [`ErrorKind::UnknownOutcome`](crate::ErrorKind::UnknownOutcome) is not there, not even in part.
/// 2. **Fenced** (L2). A write names the epoch of a leadership and fails with [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) if
///    that is not the current one, checked in the same transaction as the write itself.
/// 3. **Numbered** (L2). A write carries a number one above the last applied, and the store refuses any other with
///    [`ErrorKind::Fenced`](crate::ErrorKind::Fenced), so that a delayed duplicate cannot land late.
/// 4. **One leader** (L1). [`acquire_leadership`](Self::acquire_leadership) is a compare-and-set; epochs only grow, and grow past
///    the candidate's floor (L4). A store that one process opens exclusively *is* the leadership while it is open.
/// 5. Every method may be called from any thread at any time, and may be cancelled by dropping its future; a cancelled write
///    has an unknown outcome.
///
/// # Minimal implementation
/// Everything but [`wait_for_change`](Self::wait_for_change). Run `testing::store_suite` (feature `testing`) against it.
#[async_trait]
pub trait BindStore: fmt::Debug + Send + Sync + 'static {
    /// What this store is, for messages to operators: its URL without secrets.
    fn describe(&self) -> String;

    /// Reads everything. Called once by a new leader.
    ///
    /// Fails with `StoreCorrupt` or `StoreNewer` for content that this version cannot read (nothing is changed), `Unavailable` if
    /// the store does not answer.
    async fn load(&self) -> Result<StoreState>;

    /// Asks for the leadership.
    ///
    /// A shared store answers [`Leadership::Held`] unless the holder resigned, or `candidate.seen` proves that the caller
    /// watched the holder's counter stand still for hi(`ttl`) (L1). The new epoch is above the stored one and above
    /// `candidate.floor` (L4), and is durable before the answer. The holder may ask again, to raise its own epoch (F2).
    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership>;

    /// Raises the leader's counter. Fails with `Fenced` if `epoch` is no longer current. An exclusive store has nothing to renew and
    /// only checks the epoch.
    async fn renew(&self, epoch: Epoch) -> Result<Renewal>;

    /// Gives the leadership up, durably: the next candidate need not wait, and an exclusive store remembers that it was closed
    /// cleanly. Only to be called when no commit is in flight and nothing is answered any more (L1). Fails with `Fenced` if `epoch` is
    /// no longer current.
    async fn resign(&self, epoch: Epoch) -> Result<()>;

    /// Applies `batch` as one atomic, durable write.
    ///
    /// Fails with `Fenced` (wrong epoch or number), `StoreUnusable` (disk full, read-only), `Unavailable` (surely not applied) or
    /// `UnknownOutcome` (settle it with [`applied`](Self::applied) before the next write).
    async fn write(&self, epoch: Epoch, number: u64, batch: &Batch) -> Result<WriteAck>;

    /// The number of the last applied write, to settle an unknown outcome (L2).
    async fn applied(&self) -> Result<u64>;

    /// Waits until the leadership may have changed, at most `poll`. The default only lets that time pass.
    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        tokio::time::sleep(poll).await;
        Ok(())
    }
}

/// Who asks for the leadership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The node that asks.
    pub node: NodeName,
    /// Tells two processes of one node apart.
    pub nonce: Nonce,
    /// Where the other nodes reach it once it leads.
    pub address: String,
    /// The holder's epoch and counter, if they have been seen unchanged for hi(leadership TTL) (L1).
    pub seen: Option<LeaderSeen>,
    /// The new epoch must be above this: the highest that any node reported, or that the backend can vouch for (L4).
    pub floor: Epoch,
}

/// What a candidate saw of the current leadership.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaderSeen {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The leader's renewal counter.
    pub counter: u64,
}

/// The answer to [`BindStore::acquire_leadership`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// The caller leads.
    Acquired {
        /// The number of the new leadership.
        epoch: Epoch,
        /// The number of the last applied write.
        applied: u64,
        /// True if the store is open to this process alone, which then *is* the leadership: it never runs out (L1).
        exclusive: bool,
        /// True if the last leadership ended by [`BindStore::resign`], or there was none: nothing can be in flight.
        clean: bool,
        /// Which copy of the store answered.
        lineage: Lineage,
    },
    /// Another leads.
    Held {
        /// What was seen of it.
        seen: LeaderSeen,
        /// Where it is reached.
        address: String,
    },
}

/// Identifies one line of history of a store (L4): a change means that the store may have gone back in time. Empty where it cannot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
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
    pub fn new(node: NodeName, address: impl Into<String>) -> Self {
        Self { node, nonce: Nonce::new(rand::random()), address: address.into(), seen: None, floor: Epoch::default() }
    }
}

impl From<NodeName> for Candidate {
    /// A candidate that other nodes do not have to reach.
    fn from(node: NodeName) -> Self {
        Self::new(node, "")
    }
}
