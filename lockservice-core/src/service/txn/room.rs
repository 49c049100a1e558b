//! The memory of a transaction's locks, within the limit of its client.
//!
//! The engine counts what a transaction holds. As long as that is within its *allowance*, which is
//! what was [reserved] of the client's limit, nothing else is looked at. The functions here come
//! before a call that may need more, and after a release.
//!
//! [reserved]: crate::service::session::quota::TxnCharge
//!
//! A call reserves the most that its items can take, as if none of them were held already. Holds
//! that another transaction has moved to the state of the engine take more than they did; that is
//! found with the next call.

use crate::error::Result;
use crate::key::LockItem;
use crate::service::ServiceInner;
use crate::service::txn::TxnRecord;
use crate::table::LockEngine;

impl ServiceInner {
    /// Makes room for locks of these items. True if the transaction may hold more than before.
    /// Fails with `ResourceExhausted` if the client has no room for them; then nothing is changed.
    pub(in crate::service) fn make_room(
        &self,
        txn: &TxnRecord,
        items: &[LockItem],
    ) -> Result<bool> {
        let Some(charge) = txn.charge() else { return Ok(false) };
        let (at_engine, more) = (txn.at_engine(), LockEngine::bytes_for(items));
        if at_engine.bytes_at_most() + more <= charge.reserved() {
            return Ok(false);
        }
        // That was too much, perhaps: it counts what was held, and is exact only now and then.
        let reserved = charge.reserve(self.engine.bytes_of(at_engine) + more);
        // Of one that was killed, and has been released, the reason is wanted.
        let reserved = reserved.map_err(|e| txn.why_killed().cloned().unwrap_or(e));
        at_engine.allow(reserved?);
        Ok(true)
    }

    /// Gives back what was reserved for locks that were released, if it is much.
    pub(super) fn give_room_back(&self, txn: &TxnRecord) {
        let Some(charge) = txn.charge() else { return };
        let bytes = || {
            // Mostly this is enough to see that it is not worth it.
            let uncontended = txn.at_engine().bytes_uncontended();
            if 4 * uncontended > charge.reserved() {
                uncontended
            } else {
                self.engine.bytes_of(txn.at_engine())
            }
        };
        if let Some(reserved) = charge.shrink(bytes) {
            txn.at_engine().allow(reserved);
        }
    }
}
