//! [`TxnCharge`]: the charge of a transaction, and of the memory of its locks.
//!
//! # Implementation details
//! The memory of the locks of a client is the sum over its transactions. To change that sum with
//! each lock and unlock would have all threads that serve the client write one word. So each
//! transaction *reserves* memory ahead: a little when it begins, and then in steps that grow with
//! it. Up to what it has reserved its locks are counted in the transaction alone, where the engine
//! counts them anyway.

use std::sync::Arc;

use super::{Quota, Resource};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The memory that a transaction reserves when it begins: enough for a dozen rows with short keys.
const FIRST: usize = 1 << 10;

/// Less than this stays reserved until the transaction ends.
const WORTH: usize = 16 << 10;

/// The largest step ahead of what is needed.
const STEP_MAX: usize = 1 << 20;

/// The mark of a charge that was returned.
const RETURNED: usize = usize::MAX;

/// What a transaction takes of the quota of its client. Returned when it is dropped, if not before.
#[derive(Debug)]
pub(crate) struct TxnCharge {
    quota: Arc<Quota>,
    /// The memory that is reserved for its locks, in bytes, or [`RETURNED`].
    ///
    /// ORDERING: `Relaxed`: all changes are of this one word, so that of a reservation and the
    /// return one sees the other.
    reserved: AtomicUsize,
}

impl TxnCharge {
    /// Of a transaction that begins. Fails with `ResourceExhausted` at the bound on transactions.
    pub(super) fn begin(quota: &Arc<Quota>) -> Result<Self> {
        quota.add(Resource::Txns, 1, 1)?;
        // Without room it begins all the same: it may lock nothing.
        let first = quota.add(Resource::LockBytes, FIRST, 1).map_or(0, |()| FIRST);
        Ok(Self { quota: Arc::clone(quota), reserved: AtomicUsize::new(first) })
    }

    /// The memory that is reserved, in bytes.
    pub(crate) fn reserved(&self) -> usize {
        match self.reserved.load(Relaxed) {
            RETURNED => 0,
            reserved => reserved,
        }
    }

    /// Reserves at least `bytes` in all, and returns how much is reserved.
    ///
    /// Fails with `ResourceExhausted` if the client has no room for them, and with `TxnNotFound` if
    /// the transaction has ended. Nothing is changed then.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<usize> {
        let reserved = self.reserved();
        let Some(missing) = bytes.checked_sub(reserved).filter(|missing| *missing > 0) else {
            return Ok(reserved);
        };
        let ahead = missing.max(reserved.min(STEP_MAX));
        let more = match self.quota.add(Resource::LockBytes, ahead, 1) {
            Ok(()) => ahead,
            Err(_) => self.quota.add(Resource::LockBytes, missing, 1).map(|()| missing)?,
        };
        let add = |reserved| (reserved != RETURNED).then(|| reserved + more);
        match self.reserved.fetch_update(Relaxed, Relaxed, add) {
            Ok(before) => Ok(before + more),
            Err(_) => {
                self.quota.change(Resource::LockBytes, more, 0);
                Err(Error::new(
                    ErrorKind::TxnNotFound,
                    "the transaction has ended: start a new one",
                ))
            }
        }
    }

    /// Gives back most of what is reserved, if the locks take much less, and returns how much stays
    /// reserved. `None` if that is not worth it. `bytes` is called only if it may be.
    ///
    /// No [`reserve`](Self::reserve) may run meanwhile.
    pub(crate) fn shrink(&self, bytes: impl FnOnce() -> usize) -> Option<usize> {
        let reserved = self.reserved();
        if reserved < WORTH {
            return None;
        }
        let kept = (2 * bytes()).max(FIRST);
        if kept > reserved / 2 {
            return None;
        }
        let shrunk = self.reserved.compare_exchange(reserved, kept, Relaxed, Relaxed);
        shrunk.ok().map(|_| {
            self.quota.change(Resource::LockBytes, reserved, kept);
            kept
        })
    }

    /// The transaction has ended, and holds nothing. Only the first call does anything.
    pub(crate) fn give_back(&self) {
        let reserved = self.reserved.swap(RETURNED, Relaxed);
        if reserved != RETURNED {
            self.quota.change(Resource::LockBytes, reserved, 0);
            self.quota.change(Resource::Txns, 1, 0);
        }
    }
}

impl Drop for TxnCharge {
    fn drop(&mut self) {
        self.give_back();
    }
}
