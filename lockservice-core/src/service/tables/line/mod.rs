//! [`Lines`]: the calls that wait for a table to be bound to this service, in one line per table.
//!
//! Pure except for the channel that carries the outcome to a call: nothing here calls the
//! allocator, waits or reads a clock. [`tables`](crate::service::tables) does, in this order:
//!
//! 1. A call that finds its table not bound here stands in the table's line ([`Lines::join`]). The
//!    first one of a line has a binder started for it.
//! 2. The binder requests the table from the allocator until it has it, or no call waits any more.
//!    Meanwhile it reports the obstacle ([`Lines::refused`]). If no call waits, it still waits for
//!    the response that is on its way ([`Lines::desert`]), so that a table that was granted is
//!    installed, and later forgotten. A call that comes meanwhile makes it try again.
//! 3. It makes the calls at the engine in the order of the line ([`Lines::next`]). Only when none
//!    is left in it does the table count as owned, so that no later call comes in ahead.
//!
//! A table that is being forgotten has a line too: [`forget`](crate::service::tables::forget) opens
//! it, and starts a binder when it is known that the table is gone, if a call stands in it then.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the lines: joined, left, refused, deserted, handed over |
//! | `claims.rs` | the lines of tables that take claims |
//! | `refusal.rs` | the obstacle to a table's bind, and its errors |
//! | `standing.rs` | the calls in the lines, for operators |
//!
//! # Invariants
//! - A table is owned or has a line, not both; a line has a binder, or one who forgets its table.
//! - A call leaves its line exactly once: it is handed over, refused, or gives up.

mod claims;
mod refusal;
mod standing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{NodeName, ServiceId, TableRef, TxnId};
use crate::key::{LockItem, LockMode};
use crate::service::tables::line::refusal::Refusal;
use crate::service::txn::CallInFlight;
use crate::table::{LockCall, TableHandle, WaitPolicy};

pub(in crate::service) use self::standing::{Standing, StandingFilter, StandingSlice};

/// The largest number of lines without a call whose binders wait for a response.
const DESERTED_MAX: usize = 64;

/// The request of a call.
#[derive(Debug)]
pub(in crate::service) struct Requested {
    /// Its transaction.
    pub(in crate::service) in_flight: CallInFlight,
    /// The transactions whose work waits until the call has ended.
    pub(in crate::service) ancestors: Vec<TxnId>,
    pub(in crate::service) items: Vec<LockItem>,
    pub(in crate::service) mode: LockMode,
    pub(in crate::service) wait: WaitPolicy,
    pub(in crate::service) escalate: bool,
    /// When its turn in its transaction came.
    pub(in crate::service) since: Time,
    /// When it came first: before that if it has waited at an earlier incarnation (P6).
    pub(in crate::service) came: Time,
}

/// A call that was made at the engine.
#[derive(Debug)]
pub(in crate::service) struct Handed {
    pub(in crate::service) bound: TableHandle,
    pub(in crate::service) call: LockCall,
    /// Something kept the table from being bound while it stood in line: it has waited.
    pub(in crate::service) waited: bool,
    /// After the call: that is dropped first.
    pub(in crate::service) in_flight: CallInFlight,
}

/// A call in a line.
#[derive(Debug)]
pub(in crate::service) struct Waiter {
    pub(in crate::service) requested: Requested,
    /// The channel for its outcome.
    pub(in crate::service) response: oneshot::Sender<Result<Handed>>,
}

/// The last owner of a table.
#[derive(Clone, Debug)]
pub(in crate::service) struct LastOwner {
    pub(in crate::service) service: ServiceId,
    pub(in crate::service) node: NodeName,
}

/// The position of a call in the line of its table: a later call has a larger one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(in crate::service) struct LinePosition {
    /// When it came, at this incarnation or at an earlier one (P6).
    came: Time,
    number: u64,
}

/// Every line of a service.
#[derive(Debug, Default)]
pub(in crate::service) struct Lines {
    lines: BTreeMap<TableRef, Line>,
    /// The number of calls in all of them.
    waiting: usize,
    /// The number of lines that are [deserted](Line::is_deserted).
    deserted: usize,
    /// The number of the next position.
    next: u64,
}

#[derive(Debug, Default)]
struct Line {
    /// By their positions.
    waiting: BTreeMap<LinePosition, Waiter>,
    /// The last reason that keeps the table from being bound.
    refusal: Option<Refusal>,
    owner: Option<LastOwner>,
    /// The table is bound, and its calls are being made: so far it is not among those owned.
    bound: Option<TableHandle>,
    /// The table takes claims under that bind, and nothing else is granted in it (P6).
    takes_claims: bool,
    /// True if no call stands in it, and its binder waits for a response.
    is_deserted: bool,
    /// Notified when the last call leaves, when one comes to a deserted line, and when the claims
    /// of the table may be over.
    deserted: Arc<Notify>,
}

/// The next step of a binder whose line may be deserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::service) enum Desertion {
    /// Calls stand in the line: it tries again.
    Occupied,
    /// No call stands in the line: it waits for the response that is on its way.
    Deserted,
    /// The line is gone: it ends.
    Ended,
}

/// A position in a line.
#[derive(Debug)]
pub(in crate::service) struct Joined {
    pub(in crate::service) position: LinePosition,
    /// Set for the first call: the caller starts a binder, which learns here that no call is left.
    pub(in crate::service) new_line: Option<Arc<Notify>>,
    /// The table takes claims (P6).
    pub(in crate::service) takes_claims: bool,
}

impl Lines {
    /// Puts a call at the end of the table's line.
    ///
    /// Fails with what keeps the table from being bound for a call that may not wait, and with
    /// `ResourceExhausted` if `most` calls stand in lines.
    pub(in crate::service) fn join(
        &mut self,
        table: &TableRef,
        waiter: Waiter,
        most: usize,
    ) -> Result<Joined> {
        if let Some(line) = self.lines.get(table)
            && !waiter.requested.wait.is_patient()
            && let Some(refusal) = &line.refusal
        {
            return Err(refusal.at_once(table, waiter.requested.since));
        }
        if self.waiting >= most {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "too many calls wait on this node: try again later, or raise the limit",
            )
            .with("limit", "waiters_max"));
        }
        let position = LinePosition { came: waiter.requested.came, number: self.next };
        self.next += 1;
        self.waiting += 1;
        let is_new = !self.lines.contains_key(table);
        let line = self.lines.entry(table.clone()).or_default();
        line.waiting.insert(position, waiter);
        if std::mem::take(&mut line.is_deserted) {
            self.deserted -= 1;
            line.deserted.notify_one();
        }
        let new_line = is_new.then(|| Arc::clone(&line.deserted));
        Ok(Joined { position, new_line, takes_claims: line.takes_claims })
    }

    /// Opens a line for a table that is neither owned nor has one: the caller sees to its
    /// binder.
    pub(in crate::service) fn open(&mut self, table: &TableRef) -> Arc<Notify> {
        Arc::clone(&self.lines.entry(table.clone()).or_default().deserted)
    }

    /// The number of calls in all lines.
    pub(in crate::service) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The number of calls in the line of a table, if it has one.
    pub(in crate::service) fn standing_in(&self, table: &TableRef) -> Option<usize> {
        self.lines.get(table).map(|line| line.waiting.len())
    }

    /// Takes a call out that gives up, if it still stands there. Returns the reason why it did not
    /// get the table by `now`.
    pub(in crate::service) fn leave(
        &mut self,
        table: &TableRef,
        position: LinePosition,
        now: Time,
    ) -> Option<Error> {
        let line = self.lines.get_mut(table)?;
        let waiter = line.waiting.remove(&position)?;
        self.waiting -= 1;
        if line.waiting.is_empty() {
            line.deserted.notify_one();
        }
        Some(match (&line.refusal, waiter.requested.wait.is_patient()) {
            (Some(refusal), true) => refusal.in_time(table, now),
            (Some(refusal), false) => refusal.at_once(table, now),
            (None, true) => {
                Error::new(ErrorKind::Timeout, "binding the table took too long: try again")
                    .with("table", table)
            }
            (None, false) => Error::new(
                ErrorKind::Unavailable,
                "the table is not bound yet and the allocator does not respond: try again, or wait \
                    for the lock",
            )
            .with("table", table),
        })
    }

    /// Notes that the table cannot be bound now. The calls that may not wait fail with the reason,
    /// the others stay.
    pub(in crate::service) fn refused(&mut self, table: &TableRef, error: &Error, now: Time) {
        let Some(line) = self.lines.get_mut(table) else { return };
        let refusal =
            Refusal { error: error.clone(), until: error.retry_after().map(|after| now + after) };
        let impatient =
            line.waiting.iter().filter(|(_, waiter)| !waiter.requested.wait.is_patient());
        for position in impatient.map(|(position, _)| *position).collect::<Vec<_>>() {
            let Some(waiter) = line.waiting.remove(&position) else { continue };
            self.waiting -= 1;
            // A call that has gone needs no response.
            drop(waiter.response.send(Err(refusal.at_once(table, now))));
        }
        if line.waiting.is_empty() && !line.takes_claims {
            line.deserted.notify_one();
        }
        line.refusal = Some(refusal);
    }

    /// Sets the last owner of the table, if that is to be found out.
    pub(in crate::service) fn set_owner(&mut self, table: &TableRef, owner: LastOwner) {
        if let Some(line) = self.lines.get_mut(table) {
            line.owner = Some(owner);
        }
    }

    /// If something keeps the table from being bound: whom it was bound to last, if that is known.
    pub(in crate::service) fn what_keeps(&self, table: &TableRef) -> Option<Option<LastOwner>> {
        self.lines.get(table).filter(|line| line.refusal.is_some()).map(|line| line.owner.clone())
    }

    pub(in crate::service) fn knows_owner(&self, table: &TableRef) -> bool {
        self.lines.get(table).is_some_and(|line| line.owner.is_some())
    }

    /// Takes the first call out of a line, and whether it has waited. `None` if none stands
    /// there.
    pub(in crate::service) fn next(&mut self, table: &TableRef) -> Option<(Waiter, bool)> {
        let line = self.lines.get_mut(table)?;
        let (_, waiter) = line.waiting.pop_first()?;
        self.waiting -= 1;
        Some((waiter, line.refusal.is_some()))
    }

    /// From here on the calls of a line are made under `bound`.
    pub(in crate::service) fn hand(&mut self, table: &TableRef, bound: &TableHandle) {
        if let Some(line) = self.lines.get_mut(table) {
            line.bound = Some(bound.clone());
        }
    }

    /// The bind under which the calls of a line are being made.
    pub(in crate::service) fn handed(&self, table: &TableRef) -> Option<TableHandle> {
        self.lines.get(table)?.bound.clone()
    }

    /// Ends a line. Calls that still stand in it fail with `why`.
    pub(in crate::service) fn end(&mut self, table: &TableRef, why: &Error) {
        let Some(line) = self.remove(table) else { return };
        self.waiting -= line.waiting.len();
        for waiter in line.waiting.into_values() {
            drop(waiter.response.send(Err(why.clone())));
        }
    }

    /// Ends a line in which no call stands; false if one does.
    pub(in crate::service) fn end_if_deserted(&mut self, table: &TableRef) -> bool {
        if self.lines.get(table).is_some_and(|line| !line.waiting.is_empty() || line.takes_claims) {
            return false;
        }
        self.remove(table);
        true
    }

    /// Checks whether a line is deserted while a response is on its way to its binder. At most
    /// [`DESERTED_MAX`] of them are kept; one more is ended.
    pub(in crate::service) fn desert(&mut self, table: &TableRef) -> Desertion {
        let Some(line) = self.lines.get_mut(table) else { return Desertion::Ended };
        if !line.waiting.is_empty() || line.takes_claims {
            return Desertion::Occupied;
        }
        if !line.is_deserted {
            if self.deserted >= DESERTED_MAX {
                self.remove(table);
                return Desertion::Ended;
            }
            // A call that comes later does not get the former obstacle.
            (line.is_deserted, line.refusal, line.owner) = (true, None, None);
            self.deserted += 1;
        }
        Desertion::Deserted
    }

    fn remove(&mut self, table: &TableRef) -> Option<Line> {
        let line = self.lines.remove(table)?;
        self.deserted -= usize::from(line.is_deserted);
        Some(line)
    }
}
