//! [`BindStore`]: the durable state of an allocator.
//!
//! A store keeps which tables exist, their owners and versions, which fencing tokens may have been
//! handed out, which incarnations were fenced and which transactions may never commit. Leases,
//! caching, batching and leadership logic are written once, above it, in [`crate::allocator`].
//!
//! **Callers** open a store and give it to an allocator; that is all:
//!
//! ```
//! use std::sync::Arc;
//! use lockservice_core::NodeName;
//! use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
//! use lockservice_core::clock::SystemClock;
//! use lockservice_core::store::{BindStore, MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), lockservice_core::Error> {
//! let store: Arc<dyn BindStore> = Arc::new(MemoryStore::new(0));
//! assert_eq!(store.describe(), "memory:");
//! let (clock, node) = (Arc::new(SystemClock), NodeName::new("node-1")?);
//! let allocator = LocalAllocator::open(store, clock, AllocatorSettings::default(), node).await?;
//! assert!(allocator.leads());
//! # Ok(())
//! # }
//! ```
//!
//! **Authors of backends** implement [`BindStore`], or [`KeyValue`] for an engine that one process
//! opens alone: see the notes in `docs/backend.md`.
//!
//! | file | noun |
//! |---|---|
//! | `backend` | the trait: what a backend does |
//! | `leadership` | the leadership as a store records it |
//! | `candidate` | a process that requests the leadership, and its observations |
//! | `loss` | the knowledge of lost writes |
//! | `head` | the leadership, and the last write; pure |
//! | `history` | the begins of the last leaderships |
//! | `floor` | the least numbers, by the clock of a store's server |
//! | `cluster` | the cluster of a store: its id and key |
//! | `record`, `layout` | the records, their encoding, and their layout as keys and values |
//! | `forgotten` | the record of forgotten tables |
//! | `exclusive` | stores that one process opens alone |
//! | `key_value` | the engine of keys and values under such a store |
//! | `place` | the check that a path still is the opened store |
//! | `memory` | a store that ends with the process |
//! | `inspection`, `unfinished` | an operator's view of a damaged or half restored store |
//! | `turns` | turns for other tasks in long loops |

mod backend;
mod candidate;
mod cluster;
mod exclusive;
mod floor;
mod forgotten;
mod forward;
mod head;
mod history;
mod inspection;
mod key_value;
mod layout;
mod leadership;
mod loss;
mod memory;
mod place;
mod record;
mod turns;
mod unfinished;

pub use self::backend::BindStore;
pub use self::candidate::{Candidate, LeaderSeen, NodeAddress, Seen};
pub use self::cluster::{Cluster, ClusterId, ClusterKey, Proof};
pub use self::exclusive::{Exclusive, ExclusiveStore};
pub use self::floor::Floor;
pub use self::forgotten::Forgotten;
pub use self::head::{Head, Leader};
pub use self::history::{LeadershipHistory, PastLeadership};
pub use self::inspection::{Damage, Inspection};
pub use self::key_value::{KeyValue, Visit};
pub use self::layout::{Change, STORE_FORMAT, absorb, changes};
pub use self::leadership::{Acquired, Applied, Leadership, Lineage, Renewal, WriteAck};
pub use self::loss::{DataLoss, Loss};
pub use self::memory::MemoryStore;
pub use self::place::Place;
pub use self::record::{
    Batch, BindRecord, ClusterConstants, Op, RECORD_FORMAT, ServiceRecord, ServiceState,
    StoreState, Succession, TableHolders, TableRecord, decode, encode,
};
pub use self::turns::Turns;
