//! What every store, every allocator and every lock service must show, and the clocks that tests
//! need (feature `testing`).
//!
//! [`store_suite`], [`allocator_suite`] and [`service_suite`] take a factory and panic at the first
//! clause that does not hold; call each from a test with a multi-threaded or single-threaded tokio
//! runtime.

mod allocator_suite;
mod clock;
mod fault_suite;
mod faulty_store;
mod local_peers;
#[cfg(not(loom))]
mod service_suite;
mod shared_store;
mod store_suite;

pub use self::allocator_suite::{AllocatorFixture, allocator_suite};
pub use self::clock::{ManualClock, Stalled, StallingClock, TokioClock};
pub use self::fault_suite::fault_suite;
pub use self::faulty_store::{Fault, FaultyStore};
pub use self::local_peers::LocalPeers;
#[cfg(not(loom))]
pub use self::service_suite::{
    ServiceFixture, SessionFixture, TxnFixture, UnparsedItem, service_suite,
};
pub use self::shared_store::{Backup, SharedStore};
pub use self::store_suite::{StoreFixture, store_suite};
