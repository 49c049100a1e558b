//! [`Origins`]: the origins of this process, which know of each of their transactions whether it is
//! alive (C4).

use std::fmt;
use std::sync::Arc;

use crate::allocator::state::commits::{OriginTxns, TxnLife};
use crate::guarded_map::ReadMostlyMap;
use crate::id::{ServiceId, TxnId};

/// The origins in this process. Outlives the leaderships of its node.
///
/// Each is kept as it is, and not weakly: every commit would move its counter of references from
/// one processor to another and back.
#[derive(Default)]
pub(crate) struct Origins(ReadMostlyMap<ServiceId, Arc<Attached>>);

/// One for all copies of the map, so that references of others can be recognised.
struct Attached(Arc<dyn OriginTxns>);

impl Origins {
    /// Adds an origin, and forgets those that nothing else refers to any more.
    pub(crate) fn attach(&self, service: ServiceId, origin: Arc<dyn OriginTxns>) {
        self.0.retain(|_, origin| Arc::strong_count(&origin.0) > 1);
        self.0.insert(service, Arc::new(Attached(origin)));
    }

    /// The life of a validating transaction by its origin; `None` if the origin is in another
    /// process.
    pub(crate) fn life(&self, txn: TxnId) -> Option<TxnLife> {
        self.0.read(&txn.origin, |origin| origin.map(|origin| origin.0.life(txn.number())))
    }
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Origins").field(&self.0).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::TxnNumber;

    #[derive(Debug)]
    struct Says(TxnLife);

    impl OriginTxns for Says {
        fn life(&self, _: TxnNumber) -> TxnLife {
            self.0
        }
    }

    #[test]
    fn an_origin_that_nothing_else_refers_to_is_forgotten_at_the_next() {
        let origins = Origins::default();
        let id = |n: u64| ServiceId::new(1 << 32 | n);
        let life = |n| origins.life(TxnId::new(id(n), TxnNumber::new(7), true));
        let kept: Arc<dyn OriginTxns> = Arc::new(Says(TxnLife::Alive));
        origins.attach(id(1), Arc::clone(&kept));
        origins.attach(id(2), Arc::new(Says(TxnLife::Over)));
        assert_eq!([1, 2, 3].map(life), [Some(TxnLife::Alive), Some(TxnLife::Over), None]);
        origins.attach(id(3), Arc::new(Says(TxnLife::NotStarted)));
        assert_eq!([1, 2, 3].map(life), [Some(TxnLife::Alive), None, Some(TxnLife::NotStarted)]);
        assert_eq!(kept.life(TxnNumber::new(7)), TxnLife::Alive);
    }
}
