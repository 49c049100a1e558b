//! The transactions of an origin that can be alive, as it has reported: the floor, below which all
//! are over, and the end, from which none has begun (C4).

use crate::allocator::state::commits::CommitControl;
use crate::allocator::state::commits::origin::TxnRange;
use crate::id::{TxnId, TxnNumber};
use crate::sync::atomic::Ordering;

impl CommitControl {
    /// Every validating transaction below this is over, and the store says so.
    pub(crate) fn stored_floor(&self) -> TxnNumber {
        // ORDERING: Acquire, the partner of the release in `floor_stored`.
        TxnNumber::new(self.stored_floor.load(Ordering::Acquire))
    }

    /// The store says that every validating transaction below `floor` is over.
    pub(crate) fn floor_stored(&self, floor: TxnNumber) {
        // ORDERING: Release, the partner of the acquire in `stored_floor`.
        self.stored_floor.fetch_max(floor.get(), Ordering::AcqRel);
    }

    /// Every validating transaction below this is over, as far as the origin has reported.
    pub(crate) fn floor(&self) -> TxnNumber {
        // ORDERING: Acquire, the partner of the release in `raise_floor`.
        TxnNumber::new(self.floor.load(Ordering::Acquire))
    }

    /// True unless the origin has reported that it has not begun the transaction yet.
    pub(crate) fn may_have_started(&self, txn: TxnId) -> bool {
        // ORDERING: Acquire, the partner of the release in `observe`.
        txn.number().get() < self.end.load(Ordering::Acquire)
    }

    /// Takes the origin's report of the transactions that can be alive. An earlier report that
    /// comes late changes nothing.
    pub(crate) fn observe(&self, range: TxnRange) {
        self.raise_floor(range.floor);
        let reported = range.end.get();
        let known = |end: u64| if end == u64::MAX { reported } else { end.max(reported) };
        // ORDERING: Release, the partner of the acquire in `may_have_started`. It fails only if the
        // closure says so.
        let _ = self.end.fetch_update(Ordering::AcqRel, Ordering::Acquire, |end| Some(known(end)));
    }

    /// Once this returned, no transaction with a number below `floor` is admitted any more. Commits
    /// in flight go on.
    pub(crate) fn raise_floor(&self, floor: TxnNumber) {
        // ORDERING: Release, the partner of the acquire in `floor`.
        if self.floor.fetch_max(floor.get(), Ordering::AcqRel) >= floor.get() {
            return;
        }
        for stripe in &self.stripes {
            let mut stripe = stripe.0.lock();
            stripe.floor = stripe.floor.max(floor);
        }
    }
}
