//! Conformance suites of every store, every allocator and every lock service, and the clocks and
//! stores that tests need (feature `testing`).
//!
//! | file | noun |
//! |---|---|
//! | `store_suite/` | the contract of a store |
//! | `allocator_suite/` | the contract of an allocator |
//! | `service_suite/` | the contract of a lock service |
//! | `fault_suite.rs` | an allocator on a store whose responses are lost, late or doubled |
//! | `faulty_store.rs` | the store that does that |
//! | `shared_store.rs` | a store that several nodes of a test share, with backups and cuts |
//! | `hooked_allocator.rs` | an allocator some of whose calls a test changes |
//! | `local_peers.rs` | nodes of one process that reach each other without a network |
//! | `planted.rs` | faults that a test plants into the product |
//! | `clock.rs` | clocks that a test moves or stops |
//! | `fuzzing.rs` | what a fuzzer feeds bytes to |
//!
//! [`store_suite`], [`allocator_suite`] and [`service_suite`] take a factory and panic at the first
//! clause that does not hold; call each from a test with a multi-threaded or single-threaded tokio
//! runtime.

mod allocator_suite;
mod clock;
mod fault_suite;
mod faulty_store;
mod fuzzing;
mod hooked_allocator;
mod local_peers;
mod planted;
#[cfg(not(loom))]
mod service_suite;
mod shared_store;
mod store_suite;

pub use self::allocator_suite::{AllocatorFixture, allocator_suite};
pub use self::clock::{ManualClock, Stalled, StallingClock, TokioClock};
pub use self::fault_suite::fault_suite;
pub use self::faulty_store::{Fault, FaultyStore};
pub use self::fuzzing::{fuzz_dump, fuzz_store_entry};
pub use self::hooked_allocator::{AllocatorHooks, HookedAllocator};
pub use self::local_peers::LocalPeers;
pub use self::planted::Planted;
#[cfg(not(loom))]
pub use self::service_suite::{
    ServiceFixture, SessionFixture, TxnFixture, UnparsedItem, service_suite,
};
pub use self::shared_store::{Backup, SharedStore};
pub use self::store_suite::{StoreFixture, store_suite};
