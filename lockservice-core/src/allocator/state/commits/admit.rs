//! The admission of a commit under the stripe of its transaction, and its end (C1, C3).

use std::time::Duration;

use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::allocator::state::commits::stripe::{Attempt, Commit};
use crate::allocator::state::commits::{ATTEMPTS_MAX, CommitControl, exhausted};
use crate::allocator::state::pins::PinSet;
use crate::clock::{Time, hi};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitAttempt, TxnId};

impl CommitControl {
    /// Registers a commit whose binds are pinned, for `window` from `now` (C3), and returns how
    /// long it is admitted. A repeat of `attempt` replaces its pins and may extend its time (C1);
    /// once a caller was told that the transaction is committing, it returns what is left of its
    /// time (C4).
    ///
    /// Fails with `CannotCommit` if the origin is fenced, or the transaction tombstoned, closing or
    /// over; with `ResourceExhausted` at the limit. The pins are removed then.
    pub(crate) fn admit(
        &self,
        txn: TxnId,
        attempt: CommitAttempt,
        pins: PinSet,
        window: Duration,
        now: Time,
    ) -> Result<Duration> {
        let (window_ends, until) = (now + window, now + hi(window));
        let mut stripe = self.stripe(txn);
        if stripe.fenced {
            return Err(fenced(txn));
        }
        if txn.number() < stripe.floor {
            return Err(over(txn));
        }
        // Dropped after the lock: expired and replaced attempts.
        let mut old = SmallVec::<[Attempt; 1]>::new();
        let full = stripe.full(self.per_stripe_max, now, &mut old);
        let new = Attempt { name: attempt, window_ends, until, _pins: pins };
        stripe.expires_from = Some(stripe.expires_from.map_or(until, |from| from.min(until)));
        stripe.expire_one(txn.counter, now, &mut old);
        let response = match stripe.commits.entry(txn.counter) {
            Entry::Vacant(_) if full => Err(exhausted(txn)),
            Entry::Vacant(entry) => {
                entry.insert(Commit::InFlight {
                    closing: false,
                    attempts: SmallVec::from_buf([new]),
                });
                Ok(window)
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Commit::Tombstone { .. } => Err(tombstoned(txn)),
                Commit::InFlight { closing, attempts } => {
                    match attempts.iter().position(|known| known.name == attempt) {
                        Some(at) if *closing => match attempts[at].window_ends.remaining(now) {
                            Duration::ZERO => Err(tombstoned(txn)),
                            left => Ok(left.min(window)),
                        },
                        _ if *closing => Err(tombstoned(txn)),
                        Some(at) => {
                            let known = &mut attempts[at];
                            // The earlier response may still be used.
                            let (ends, until) =
                                (window_ends.max(known.window_ends), until.max(known.until));
                            old.push(std::mem::replace(
                                known,
                                Attempt { window_ends: ends, until, ..new },
                            ));
                            Ok(window)
                        }
                        None if attempts.len() >= ATTEMPTS_MAX => Err(exhausted(txn)),
                        None => {
                            attempts.push(new);
                            Ok(window)
                        }
                    }
                }
            },
        };
        drop(stripe);
        response
    }

    /// Ends an attempt. Idempotent; one that is unknown changes nothing. Other attempts of the
    /// transaction go on.
    pub(crate) fn finish(&self, txn: TxnId, attempt: CommitAttempt) {
        let mut stripe = self.stripe(txn);
        let mut ended = None;
        if let Some(Commit::InFlight { attempts, .. }) = stripe.commits.get_mut(&txn.counter) {
            if let Some(at) = attempts.iter().position(|known| known.name == attempt) {
                ended = Some(attempts.swap_remove(at));
            }
            if attempts.is_empty() {
                stripe.last_attempt_ended(txn.counter);
            }
        }
        drop(stripe);
        drop(ended);
    }
}

fn fenced(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::CannotCommit,
        "the transaction's origin is fenced: start a new transaction",
    )
    .with("txn", txn)
}

fn over(txn: TxnId) -> Error {
    Error::new(ErrorKind::CannotCommit, "the transaction has ended: start a new one")
        .with("txn", txn)
}

fn tombstoned(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::CannotCommit,
        "the transaction was made unable to commit: start a new one",
    )
    .with("txn", txn)
}
