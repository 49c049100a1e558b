//! [`Slot`]: the place of a node's service.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockservice_core::{Detail, Error, ErrorKind, Result};

use super::ServiceHost;

/// The pause before a caller that met a starting node tries again.
const STARTING_PAUSE: Duration = Duration::from_millis(100);

/// The place of the node's service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot(Arc<OnceLock<ServiceHost>>);

impl Slot {
    /// False for a second service, which does not count.
    pub(super) fn fill(&self, host: ServiceHost) -> bool {
        self.0.set(host).is_ok()
    }

    pub(super) fn host(&self) -> Option<&ServiceHost> {
        self.0.get()
    }

    /// The node's service. Fails with `Unavailable` before it stands.
    pub(crate) fn get(&self) -> Result<&ServiceHost> {
        self.host().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the node is starting and has no lease yet: try again, or at another node",
            )
            // This lets a client distinguish it from a server that cannot be reached.
            .with_detail(Detail::RetryAfter(STARTING_PAUSE))
        })
    }
}
