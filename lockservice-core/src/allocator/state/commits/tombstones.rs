//! The tombstones of an origin: set in memory, written, and taken off once something else says the
//! same (C4).

use hashbrown::hash_map::Entry;

use crate::allocator::state::commits::stripe::{CommitPhase, Ended, Generation};
use crate::allocator::state::commits::{CommitControl, exhausted};
use crate::clock::Time;
use crate::error::Result;
use crate::id::{ServiceId, TxnCounter, TxnId, TxnNumber};
use crate::sync::atomic::Ordering;

/// The result of [`CommitControl::tombstone`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tombstoned {
    /// A commit of the transaction is in flight. There is no tombstone, and from here on nothing is
    /// admitted or extended (C4).
    Committing,
    /// The transaction is below the floor of its origin, which is durable and keeps it from
    /// committing for ever.
    Over,
    /// The tombstone is durable already.
    Durable,
    /// The tombstone is in memory, under this generation. Write it, then call
    /// [`CommitControl::durable`].
    ToWrite(Generation),
    /// The origin is fenced: none of its transactions commits.
    Fenced,
    /// The origin has so many tombstones, for clients that fell silent, that there is no room for
    /// more. Fence the origin, which says the same of all its transactions.
    Full,
}

impl CommitControl {
    /// Sets the tombstone of a transaction, unless a commit of it is in flight: then nothing more
    /// of it is admitted or extended, and it gets its tombstone when the last attempt ends (C4).
    /// `write` is called under the stripe's lock with the outcome, so that the order of writes is
    /// the order of tombstones.
    pub(crate) fn tombstone<R>(
        &self,
        txn: TxnId,
        now: Time,
        write: impl FnOnce(Tombstoned) -> R,
    ) -> Result<R> {
        let mut ended = Ended::new(&self.slots);
        let mut stripe = self.stripe(txn);
        stripe.expire_one(txn.counter, now, &mut ended);
        if let Some(CommitPhase::InFlight { closing, .. }) = stripe.commits.get_mut(&txn.counter) {
            *closing = true;
            return Ok(write(Tombstoned::Committing));
        }
        if stripe.fenced {
            return Ok(write(Tombstoned::Fenced));
        }
        // A response may rest only on facts that a later leader knows too: a transaction below the
        // floor in memory alone gets a tombstone.
        if txn.number() < self.stored_floor() {
            return Ok(write(Tombstoned::Over));
        }
        let full = stripe.full(self.per_stripe_max, now, &mut ended);
        // Commits in flight make room by themselves, tombstones do not.
        let of_tombstones = full && stripe.tombstones * 2 >= stripe.commits.len();
        let generation = stripe.next_generation();
        let outcome = match stripe.commits.entry(txn.counter) {
            Entry::Occupied(mut entry) => match entry.get_mut() {
                CommitPhase::Tombstone { generation: known, durable } => {
                    *known = generation;
                    if *durable { Tombstoned::Durable } else { Tombstoned::ToWrite(generation) }
                }
                CommitPhase::InFlight { .. } => {
                    unreachable!("an attempt in flight was handled above, under the same lock")
                }
            },
            Entry::Vacant(_) if of_tombstones => Tombstoned::Full,
            Entry::Vacant(_) if full => return Err(exhausted(txn)),
            Entry::Vacant(entry) => {
                entry.insert(CommitPhase::Tombstone { generation, durable: false });
                stripe.tombstones += 1;
                Tombstoned::ToWrite(generation)
            }
        };
        let result = write(outcome);
        drop(stripe);
        Ok(result)
    }

    /// The write of a tombstone landed. A tombstone that was removed, made again, or whose
    /// removal began meanwhile, stays as it is; one at the last generation never counts as written
    /// (it is written again each time).
    pub(crate) fn durable(&self, txn: TxnId, written: Generation) {
        if let Some(CommitPhase::Tombstone { generation, durable }) =
            self.stripe(txn).commits.get_mut(&txn.counter)
            && *generation == written
            && !written.is_last()
        {
            *durable = true;
        }
    }

    /// Takes a tombstone off, unless it was made again after `generation`. At the last generation
    /// nothing is removed: it can no longer be distinguished (fail closed).
    pub(crate) fn remove(&self, txn: TxnId, seen: Generation) {
        let mut stripe = self.stripe(txn);
        if let Entry::Occupied(entry) = stripe.commits.entry(txn.counter)
            && let CommitPhase::Tombstone { generation, .. } = entry.get()
            && *generation == seen
            && !seen.is_last()
        {
            entry.remove();
            stripe.tombstones -= 1;
        }
    }

    /// The tombstones below the floor, which are needed no more once that is durable: of each its
    /// transaction's counter and what [`remove`](Self::remove) must name; and the floor. Empty if
    /// it has not risen since the last [`cleaned`](Self::cleaned).
    pub(crate) fn below_floor(&self) -> (TxnNumber, Vec<(TxnCounter, Generation)>) {
        let floor = self.floor();
        let mut found = Vec::new();
        // ORDERING: only the sweep reads and writes it.
        if self.cleaned.load(Ordering::Relaxed) < floor.get() {
            for stripe in &self.stripes {
                let stripe = stripe.0.lock();
                if stripe.tombstones > 0 {
                    found.extend(stripe.commits.iter().filter_map(
                        |(counter, commit)| match commit {
                            CommitPhase::Tombstone { generation, .. }
                                if counter.number() < floor =>
                            {
                                Some((*counter, *generation))
                            }
                            _ => None,
                        },
                    ));
                }
            }
        }
        (floor, found)
    }

    /// The tombstones that [`below_floor`](Self::below_floor) found at this floor were removed.
    pub(crate) fn cleaned(&self, floor: TxnNumber) {
        self.cleaned.store(floor.get(), Ordering::Relaxed);
    }

    /// Takes the tombstones of a fenced origin off, that of its floor too, and returns their
    /// transactions: once the fence is durable, it says the same of each (C4).
    pub(crate) fn take_tombstones(&self, origin: ServiceId) -> Vec<TxnId> {
        let mut taken = Vec::new();
        let floor = self.stored_floor.swap(0, Ordering::AcqRel);
        if floor > 0 {
            taken.push(TxnId::floor_tombstone(origin, TxnNumber::new(floor)));
        }
        for stripe in &self.stripes {
            let mut stripe = stripe.0.lock();
            stripe.commits.retain(|counter, commit| match commit {
                CommitPhase::InFlight { .. } => true,
                CommitPhase::Tombstone { .. } => {
                    taken.push(TxnId { origin, counter: *counter });
                    false
                }
            });
            stripe.tombstones = 0;
        }
        taken
    }
}
