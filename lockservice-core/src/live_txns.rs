//! [`LiveTxns`]: which validating transactions of an incarnation are alive (C4). Pure.
//!
//! # Implementation details
//! Every commit reads the life of its transaction, and every validating transaction begins and ends
//! here. So the set of those that are alive is kept in stripes, each under a mutex of its own; the
//! number of a transaction chooses its stripe.
//!
//! # Invariants
//! - A validating transaction takes its number under the lock of that number's stripe, and is in
//!   the stripe before the lock is released. So a thread that holds a stripe, and sees that a
//!   number of it was taken, finds its transaction there unless it has ended.
//! - [`LiveTxns::range`] reads the next number first and visits the stripes then: each transaction
//!   whose number it takes as taken was in its stripe, or has ended, by the visit. So the floor is
//!   above no transaction that is alive.

use hashbrown::HashSet;

use crate::allocator::{OriginTxns, TxnLife, TxnRange};
use crate::id::{TxnId, TxnNumber};
use crate::spare::shrunk;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Padded};

#[cfg(not(any(loom, shuttle)))]
const STRIPES: usize = 64;
#[cfg(any(loom, shuttle))]
const STRIPES: usize = 2;

/// The numbers of an incarnation's transactions, and which of the validating ones are alive.
#[derive(Debug)]
pub(crate) struct LiveTxns {
    /// The next number, for transactions of either kind. ORDERING: `Relaxed`, for only uniqueness
    /// matters; a validating transaction takes its number under the lock of its stripe, which
    /// orders it for a thread that looks there.
    ///
    /// Every thread that begins one writes it, so that it has a cache line of its own.
    next: Padded<AtomicU64>,
    /// The numbers of those that are alive, or are being ended. Each is locked for one change or
    /// look, with nothing.
    validating: Box<[Padded<Stripe>]>,
}

/// Numbers for which a stripe keeps its memory.
const NUMBERS_KEPT: usize = 64;

/// A fixed hash: the numbers are this incarnation's.
type Stripe = Mutex<HashSet<TxnNumber, foldhash::fast::FixedState>>;

impl LiveTxns {
    /// No transaction has begun.
    pub(crate) fn new() -> Self {
        Self {
            next: Padded(AtomicU64::new(1)),
            validating: (0..STRIPES).map(|_| Padded::default()).collect(),
        }
    }

    /// The number of a new transaction. One that validates is alive from here on.
    pub(crate) fn begin(&self, validates: bool) -> TxnNumber {
        if !validates {
            return TxnNumber::new(self.next.0.fetch_add(1, Ordering::Relaxed));
        }
        loop {
            let number = self.next_number();
            let (taken, after) = (number.get(), number.next().get());
            let mut validating = self.stripe(number).lock();
            // Another transaction may have taken it meanwhile.
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            if self.next.0.compare_exchange(taken, after, success, failure).is_ok() {
                validating.insert(number);
                return number;
            }
        }
    }

    /// The transaction is over. To be called before others are granted what it held.
    pub(crate) fn end(&self, txn: TxnId) {
        if txn.validates() {
            let mut validating = self.stripe(txn.number()).lock();
            validating.remove(&txn.number());
            let (len, capacity) = (validating.len(), validating.capacity());
            if let Some(capacity) = shrunk(len, capacity, NUMBERS_KEPT) {
                validating.shrink_to(capacity);
            }
        }
    }

    /// The validating transactions that can be alive, now and while the next `ahead` begin.
    pub(crate) fn range(&self, ahead: u64) -> TxnRange {
        let next = self.next_number();
        let lowest = |stripe: &Padded<Stripe>| stripe.0.lock().iter().min().copied();
        let floor = self.validating.iter().filter_map(lowest).fold(next, TxnNumber::min);
        TxnRange { floor, end: TxnNumber::new(next.get().saturating_add(ahead)) }
    }

    fn next_number(&self) -> TxnNumber {
        TxnNumber::new(self.next.0.load(Ordering::Relaxed))
    }

    fn stripe(&self, number: TxnNumber) -> &Stripe {
        &self.validating[number.get() as usize % self.validating.len()].0
    }
}

impl OriginTxns for LiveTxns {
    fn life(&self, number: TxnNumber) -> TxnLife {
        let validating = self.stripe(number).lock();
        if validating.contains(&number) {
            TxnLife::Alive
        } else if number < self.next_number() {
            TxnLife::Over
        } else {
            TxnLife::NotStarted
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::ServiceId;

    fn txn(number: u64) -> TxnId {
        TxnId::new(ServiceId::new(1), TxnNumber::new(number), true)
    }

    #[test]
    fn the_floor_is_the_lowest_validating_transaction_that_is_alive() {
        let live = LiveTxns::new();
        let range =
            |floor, end| TxnRange { floor: TxnNumber::new(floor), end: TxnNumber::new(end) };
        assert_eq!(live.range(10), range(1, 1 + 10));
        let numbers = [true, false, true, true].map(|validates| live.begin(validates).get());
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert_eq!(live.range(10), range(1, 5 + 10));
        live.end(txn(3));
        assert_eq!(live.range(10).floor.get(), 1);
        assert_eq!(
            [1, 3, 5].map(|number| live.life(TxnNumber::new(number))),
            [TxnLife::Alive, TxnLife::Over, TxnLife::NotStarted]
        );
        live.end(txn(1));
        assert_eq!(live.range(10).floor.get(), 4, "one that does not validate does not count");
        live.end(txn(4));
        assert_eq!(live.range(10).floor.get(), 5);
    }
}

#[cfg(all(test, loom))]
mod loom {
    use ::loom::sync::Arc;
    use ::loom::thread;

    use super::*;
    use crate::id::ServiceId;

    #[test]
    fn the_floor_is_above_no_transaction_that_is_alive() {
        ::loom::model(|| {
            let live = Arc::new(LiveTxns::new());
            let other = Arc::clone(&live);
            let beginning = thread::spawn(move || {
                let number = other.begin(true);
                assert_eq!(other.life(number), TxnLife::Alive);
                number
            });
            let first = live.begin(true);
            live.end(TxnId::new(ServiceId::new(1), first, true));
            let range = live.range(10);
            let number = beginning.join().expect("no panic");
            assert!(range.floor <= number && number != first, "{range:?}, {number} began");
            assert_eq!(live.range(10).floor, number);
        });
    }
}
