//! [`TxnQueue`]: the operations of one transaction of a session, in order, each taking effect once
//! (T2). Pure: it runs nothing, waits for nothing and reads no clock;
//! [`Session`](crate::service::Session) does what the [`Step`]s say and files what came of it.
//!
//! # States of an operation, by its sequence
//! unseen → *queued* → *running* (one at a time) → *decided* (its response is kept) →
//! *acknowledged* (forgotten). A repetition joins the first while that is queued or running. It
//! gets the first response once that is decided, and is refused once that is acknowledged.
//!
//! An operation whose turn it is when it arrives is running at once, and has no place in the queue.
//! It gets one only if it has to wait, or arrives again meanwhile.
//!
//! | file | noun |
//! |---|---|
//! | `mod` | the state of the queue, its numbering, cancellation |
//! | `in_order` | the map of its operations and of its results |
//! | `arrival` | the arrival of an operation: it is due, queued, joins the first of its sequence, or expires |
//! | `room` | the bounds on what is kept, and the refusals at them |
//! | `step` | the next step of the operation whose turn it is |
//! | `result` | results: filed, given to replays, acknowledged |
//! | `relied` | the part of a grant that an earlier call added |
//!
//! # Invariants
//! - **In order.** Exactly `1..next` are decided, until an `End` has arrived. The turn of an `End`
//!   comes at once, even past numbers that never arrived, for those can no longer matter.
//! - **No hole.** A refused number is decided, in its turn, with the refusal. Otherwise later ones
//!   would wait for it for ever. If even the refusal finds no room, the queue is *broken*, and
//!   accepts only an `End`.
//! - **In time.** A lock's time-out counts from its arrival. A lock whose time is up before its
//!   turn gets its response then. It keeps its place in the order, and is decided with that
//!   response.
//! - **Kept until acknowledged.** A response is never dropped before its client has it, except that
//!   of a *quiet* release that succeeded: a repetition of that succeeds without it. So memory is
//!   bounded at the arrival of operations. An operation weighs as much as it and its response can
//!   become, until it is decided. From then on it weighs as much as its response.
//! - [`kept_bytes`](TxnQueue::kept_bytes) is the sum of the weights of all that is queued or
//!   decided and not acknowledged.
//! - **Closed is closed.** A sequence in `closed` is never granted: a call that runs is cancelled,
//!   one that is queued or comes later is refused, and a grant that was filed is rolled back in
//!   the `Cancel`'s turn.
//! - **Numbered by one side.** Either the client numbers the operations of a transaction, or the
//!   service does, in the order in which they arrive. Such operations cannot be repeated, so their
//!   results are not kept.
//! - **Only what a call added is rolled back**, except the items on which the response of a later
//!   call relies (`relied_on`): that response would otherwise become untrue. It goes when the last
//!   of those calls is rolled back too; once one of them was acknowledged, it stays until the
//!   transaction ends.

mod arrival;
mod in_order;
mod relied;
mod result;
mod room;
mod step;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::id::Sequence;
use crate::service::OpResponse;
use crate::service::session::loss::Loss;
use crate::service::session::queue::arrival::Queued;
use crate::service::session::queue::in_order::InOrder;
use crate::service::session::queue::result::Decided;
use crate::service::txn::TxnRecord;

pub(in crate::service) use arrival::{Taken, Timer};
pub(in crate::service) use relied::{RELIED_PAIRS_MAX, Relied, keep_relied_on};
pub(in crate::service) use result::Filed;
pub(in crate::service) use room::Room;
pub(in crate::service) use step::Step;

/// The channel for a response.
pub(in crate::service) type Waiting = oneshot::Sender<Result<OpResponse>>;

/// One transaction of a session.
#[derive(Debug)]
pub(in crate::service) struct TxnQueue {
    pub(in crate::service) txn: Arc<TxnRecord>,
    /// Whether it was killed, and its client knows.
    pub(in crate::service) loss: Loss,
    /// The sequence that is decided next.
    next: Sequence,
    /// Arrived but not decided. The first may be running. One that runs since it arrived is not
    /// here unless it waits.
    queue: InOrder<Queued>,
    /// Responses that the client has not acknowledged.
    decided: InOrder<Decided>,
    /// The weight of `queue`, `decided` and `relied_on`.
    kept_bytes: usize,
    /// Sequences that were cancelled, in any state. Forgotten once they are decided and
    /// acknowledged.
    closed: BTreeSet<Sequence>,
    /// Locks that unacknowledged grants name beyond those they added: each was held already,
    /// perhaps by an earlier call that may yet be rolled back.
    relied_on: BTreeMap<Sequence, Relied>,
    running: bool,
    /// The response of the running operation is kept only if it is an error.
    quiet: bool,
    /// The running call was cancelled by [`cancel`](Self::cancel): no `Cancel` comes to roll its
    /// grant back.
    cancelled: bool,
    /// Ends the wait of the running call.
    cancel: Option<oneshot::Sender<()>>,
    /// An `End` has arrived: locks before it are refused.
    ending: bool,
    /// A number was refused for which there was no place left.
    broken: bool,
    /// The side that numbers the operations; `None` before the first.
    numbered_by: Option<NumberedBy>,
}

/// The side that gives operations, or transactions, their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::service) enum NumberedBy {
    Client,
    Service,
}

impl TxnQueue {
    pub(in crate::service) fn new(txn: Arc<TxnRecord>) -> Self {
        Self {
            txn,
            loss: Loss::No,
            next: Sequence::FIRST,
            queue: InOrder::new(),
            decided: InOrder::new(),
            kept_bytes: 0,
            closed: BTreeSet::new(),
            relied_on: BTreeMap::new(),
            running: false,
            quiet: false,
            cancelled: false,
            cancel: None,
            ending: false,
            broken: false,
            numbered_by: None,
        }
    }

    /// The queue of a transaction that was claimed (P6): operations before `next` were decided.
    pub(in crate::service) fn continued(txn: Arc<TxnRecord>, next: Sequence) -> Self {
        Self { next, numbered_by: Some(NumberedBy::Client), ..Self::new(txn) }
    }

    /// The sequence of an operation whose client gives it none (0), or gives it `sequence`.
    ///
    /// Fails with `InvalidArgument` if the transaction's operations were numbered by the other side
    /// before.
    pub(in crate::service) fn number(&mut self, sequence: Sequence) -> Result<Sequence> {
        let by = if sequence.is_unnumbered() { NumberedBy::Service } else { NumberedBy::Client };
        if *self.numbered_by.get_or_insert(by) != by {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "either all operations of a transaction have a sequence, or none has",
            )
            .with("sequence", sequence));
        }
        let running = self.running.then_some(self.next);
        let next = self.queue.last().max(running).map_or(self.next, Sequence::next);
        Ok(if sequence.is_unnumbered() { next } else { sequence })
    }

    /// About how much memory is in use for what is queued or not acknowledged.
    pub(in crate::service) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// The number of operations that are queued or wait.
    pub(in crate::service) fn ops_under_way(&self) -> usize {
        self.queue.len()
    }

    /// Cancels an operation that waits, for its locks or for its turn, as if it had been rolled
    /// back.
    pub(in crate::service) fn cancel(&mut self, sequence: Sequence) {
        let running = self.is_running(sequence);
        if running || self.queue.contains(sequence) {
            self.cancelled |= running;
            self.close(sequence);
        }
    }

    /// Closes `sequence`, and cancels it if it is being decided.
    fn close(&mut self, sequence: Sequence) {
        self.closed.insert(sequence);
        if self.is_running(sequence) {
            self.cancel_running();
        }
    }

    fn is_running(&self, sequence: Sequence) -> bool {
        self.running && self.next == sequence
    }

    fn cancel_running(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            // The call may have been decided at this moment. Then its response stands until the
            // turn of the `Cancel`.
            let _ = cancel.send(());
        }
    }

    /// The callers that wait for a response that will not come. The wait of a running call ends
    /// with this too: its canceller is dropped.
    pub(in crate::service) fn into_waiting(self) -> impl Iterator<Item = Waiting> {
        self.queue.into_values().flat_map(|queued| queued.waiting)
    }
}

/// The result of a call that was cancelled before it was decided.
pub(in crate::service) fn rolled_back() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the call was cancelled, or its transaction ended, before it was decided",
    )
}
