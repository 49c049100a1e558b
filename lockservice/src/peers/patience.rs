//! [`Patience`]: for how long other nodes are waited for.

use std::time::Duration;

/// The times to wait for another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// The time for a connection, and for the response to a call on which a promise rests or whose
    /// caller tries again.
    pub call: Duration,
    /// The time for the response to a start, which waits for the store, or to a resignation, which
    /// waits for commits in flight (C2).
    pub change: Duration,
}

impl Patience {
    /// The times for a lease of raw length `lease_ttl`: a third of it, so that a renewal can be
    /// sent again in time, and the whole.
    pub fn for_lease(lease_ttl: Duration) -> Self {
        Self { call: lease_ttl / 3, change: lease_ttl }
    }
}
