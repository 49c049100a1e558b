//! The admission of a commit under the stripe of its transaction, and its end (C1, C3).

use std::time::Duration;

use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::allocator::state::commits::stripe::{Attempt, CommitPhase, Ended, Window};
use crate::allocator::state::commits::{ATTEMPTS_MAX, CommitControl, exhausted};
use crate::allocator::state::slots::{PinSet, Places};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitAttempt, TxnId};

impl CommitControl {
    /// Registers a commit whose binds are pinned for `window`, which begins `now` (C3), and returns
    /// how long it is admitted. A repeat of `attempt` adds to its pins and may extend its time
    /// (C1); once a caller got the response *committing*, it returns the rest of its time (C4).
    ///
    /// Fails with `CannotCommit` if the origin is fenced, or the transaction tombstoned, closing or
    /// over; with `ResourceExhausted` at the limit. The pins are removed then.
    pub(crate) fn admit(
        &self,
        txn: TxnId,
        attempt: CommitAttempt,
        pins: PinSet<'_>,
        window: Window,
        now: Time,
    ) -> Result<Duration> {
        let Window { length, ends, until } = window;
        let mut ended = Ended::new(&self.slots);
        let mut stripe = self.stripe(txn);
        if stripe.fenced {
            return Err(fenced(txn));
        }
        if txn.number() < stripe.floor && !planted!(OrphanReleasedEarly) {
            return Err(over(txn));
        }
        let full = stripe.full(self.per_stripe_max, now, &mut ended);
        let stripe = &mut *stripe;
        stripe.expires_from = Some(stripe.expires_from.map_or(until, |from| from.min(until)));
        let new = Attempt { name: attempt, ends, until, pins: Places::new() };
        match stripe.commits.entry(txn.counter) {
            Entry::Vacant(_) if full => Err(exhausted(txn)),
            Entry::Vacant(entry) => {
                let attempts = SmallVec::from_buf([Attempt { pins: pins.keep(), ..new }]);
                entry.insert(CommitPhase::InFlight { closing: false, attempts });
                Ok(length)
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                CommitPhase::Tombstone { .. } => Err(tombstoned(txn)),
                CommitPhase::InFlight { closing, attempts } => {
                    ended.expire(attempts, now);
                    let known = attempts.iter().position(|known| known.name == attempt);
                    if *closing {
                        let left =
                            known.map_or(Duration::ZERO, |at| attempts[at].ends.remaining(now));
                        if attempts.is_empty() {
                            stripe.last_attempt_ended(txn.counter);
                        }
                        return match left {
                            Duration::ZERO => Err(tombstoned(txn)),
                            left => Ok(left.min(length)),
                        };
                    }
                    match known {
                        Some(at) => {
                            let known = &mut attempts[at];
                            // The earlier response may still be used.
                            let (ends, until) = (ends.max(known.ends), until.max(known.until));
                            let new = Attempt { ends, until, pins: pins.keep(), ..new };
                            let mut earlier = std::mem::replace(known, new);
                            known.take_over(&mut earlier);
                            ended.push(earlier);
                        }
                        None if attempts.len() >= ATTEMPTS_MAX => return Err(exhausted(txn)),
                        None => attempts.push(Attempt { pins: pins.keep(), ..new }),
                    }
                    Ok(length)
                }
            },
        }
    }

    /// Ends an attempt. Idempotent; one that is unknown changes nothing. Other attempts of the
    /// transaction go on.
    pub(crate) fn finish(&self, txn: TxnId, attempt: CommitAttempt) {
        let mut ended = Ended::new(&self.slots);
        self.stripe(txn).end(txn.counter, attempt, &mut ended);
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
