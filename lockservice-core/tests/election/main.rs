//! Several nodes with one shared store: one leads, the others stand by, and whatever becomes of
//! leader or store, nothing is promised twice (L1 to L4). Time is tokio's paused clock: every wait
//! here is counted, none is waited for.
//!
//! | file | noun |
//! |---|---|
//! | `claims.rs` | tables that take the claims of holders after a restart |
//! | `opening.rs` | the opening of a leadership |
//! | `failover.rs` | leaders that die, resign, or lose their store |
//! | `went_back.rs` | stores that went back; reports of nodes |
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod claims;
#[path = "../cluster/mod.rs"]
mod cluster;
mod failover;
mod opening;
mod went_back;

use self::cluster::{Cluster, TTL};

/// A lease here lasts as long as a leadership.
fn cluster() -> Cluster {
    Cluster::with_lease(TTL)
}
