//! [`Origins`]: the origins of this process, which know of each of their transactions whether it is
//! alive (C4).

use std::collections::HashMap;
use std::sync::Weak;

use crate::allocator::state::commits::{OriginTxns, TxnLife};
use crate::id::{ServiceId, TxnId};
use crate::sync::RwLock;

/// The origins in this process. Outlives the leaderships of its node. Locked for a lookup, together
/// with nothing.
#[derive(Debug, Default)]
pub(crate) struct Origins(RwLock<HashMap<ServiceId, Weak<dyn OriginTxns>>>);

impl Origins {
    /// Adds an origin, and forgets those that have gone.
    pub(crate) fn attach(&self, service: ServiceId, origin: Weak<dyn OriginTxns>) {
        let mut origins = self.0.write();
        origins.retain(|_, origin| origin.strong_count() > 0);
        origins.insert(service, origin);
    }

    /// The word of its origin on a validating transaction; `None` if the origin is of another
    /// process, or has gone.
    pub(crate) fn life(&self, txn: TxnId) -> Option<TxnLife> {
        let origin = self.0.read().get(&txn.origin)?.upgrade()?;
        Some(origin.life(txn.number()))
    }
}
