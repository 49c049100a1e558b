//! Sessions: how long a silent client's locks are kept, and exactly-once operations over a
//! connection that may break.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Session`]: renewed, its transactions begun, their results acknowledged |
//! | `open.rs`, `end.rs` | opened and found; closed, left, lapsed |
//! | `kill.rs` | ended by an operator |
//! | `loss.rs` | transactions that were killed while the session lives |
//! | `notices.rs` | what its client is told by itself |
//! | `attachment.rs` | its one current connection |
//! | `operations.rs`, `due.rs`, `wait.rs` | the way of an operation; its turn; its wait |
//! | `queue/` | the operations of one transaction in their order; pure |
//! | `state.rs` | the queues of one session |
//! | `renewals.rs` | the end of its promise |
//! | `pending.rs` | the result of an operation, known or to come |
//! | `quota/`, `weight.rs` | bounds on sessions, calls, transactions and memory; estimates of memory |
//! | `registry.rs` | sessions by id; how many sessions and transactions there are |
//!
//! # Implementation details
//! A session's transactions are numbered by its client, and the operations of each transaction too
//! (T2): their order, and how they take effect once, is the business of each transaction's
//! [`queue`](crate::service::session::queue).
//!
//! One mutex per session guards all of that. It is never held across an await, nor while an
//! operation runs: the runner takes the next operation under it, runs it without it, and files the
//! response under it.

mod attachment;
mod due;
mod end;
mod kill;
pub(in crate::service) mod loss;
mod notices;
mod open;
mod operations;
pub(in crate::service) mod pending;
pub(in crate::service) mod queue;
pub(in crate::service) mod quota;
pub(in crate::service) mod registry;
mod renewals;
pub(in crate::service) mod state;
#[cfg(all(test, not(loom)))]
mod tests;
mod wait;
pub(in crate::service) mod weight;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Sequence, ServiceId, SessionHandle, SessionId, TxnId, TxnNumber};
use crate::service::session::queue::{NumberedBy, TxnQueue};
use crate::service::session::state::{SessionState, Stage};
use crate::service::txn::waits::Waits;
use crate::service::{Promise, ServiceInner, SessionStatus, TxnOptions};
use crate::sync::Mutex;

use self::attachment::AttachmentNumber;
pub use self::attachment::{Attachment, HeldFrame};
use self::end::Ending;
pub use self::end::STILL_RUNNING_BYTES_MAX;
pub(in crate::service) use self::end::unknown;
pub use self::kill::KillUnderWay;
pub use self::notices::{SessionNotice, SessionNotices};
pub use self::open::OpenedBy;
pub(crate) use self::renewals::Renewals;

/// A client's session with this service (P1). A cheap handle.
///
/// ```
/// # use std::time::Duration;
/// # use std::sync::Arc;
/// # use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
/// # use lockservice_core::clock::{Clock, SystemClock};
/// # use lockservice_core::service::{LockService, ServiceParts};
/// # use lockservice_core::store::MemoryStore;
/// # use lockservice_core::NodeName;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lockservice_core::Error> {
/// # let clock: Arc<dyn Clock> = Arc::new(SystemClock);
/// # let (node, store) = (NodeName::new("node-1")?, Arc::new(MemoryStore::new(0)));
/// # let settings = AllocatorSettings::default();
/// # let allocator = LocalAllocator::open(store, clock.clone(), settings, node.clone()).await?;
/// # let service = LockService::start(ServiceParts::new(allocator, clock, node)).await?;
/// let session = service.open_session(Some(Duration::from_secs(10)), "worker-7")?;
/// let promise = session.renew()?;
/// println!("locks are valid for {:?} without another renewal", promise.valid_for);
/// session.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Session {
    pub(crate) record: Arc<SessionRecord>,
    pub(in crate::service) inner: Arc<ServiceInner>,
}

#[derive(Debug)]
pub(crate) struct SessionRecord {
    pub(in crate::service) id: SessionId,
    pub(in crate::service) renewals: Arc<Renewals>,
    pub(in crate::service) state: Mutex<SessionState>,
    /// How far its end has come.
    ending: watch::Sender<Ending>,
    /// The number of the current attachment (T3).
    attached: watch::Sender<AttachmentNumber>,
    /// Its lock calls that wait.
    waits: Waits,
    /// The earlier incarnation at which its client had it before a restart (P6).
    pub(in crate::service) claims_from: Option<ServiceId>,
    /// Its tasks and operations run in it. It names the client, and not the id, for the id
    /// is enough to use the session.
    span: tracing::Span,
}

impl SessionRecord {
    pub(in crate::service) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Its transactions.
    pub(in crate::service) fn txns(&self) -> Vec<TxnId> {
        let state = self.state.lock();
        let stopped = state.stopped.iter().map(|txn| txn.id);
        state.txns.values().map(|queue| queue.txn.id).chain(stopped).collect()
    }

    /// The part of its TTL that is left, in millionths; `None` if it is over.
    pub(in crate::service) fn part_left(&self, clock: &dyn Clock) -> Option<u64> {
        let (lapses, now) = self.renewals.lapses(clock)?;
        let left = lapses.remaining(now).as_nanos().saturating_mul(1_000_000);
        u64::try_from(left / self.renewals.ttl.as_nanos().max(1)).ok()
    }

    /// What operators see of it; `None` if it is over.
    pub(in crate::service) fn status(&self, clock: &dyn Clock) -> Option<SessionStatus> {
        let renewals = &self.renewals;
        let left = renewals.left(clock)?;
        let state = self.state.lock();
        let txns = state.txns.len() + state.stopped.len();
        drop(state);
        let ending = self.ending.borrow().why().map(ToString::to_string);
        Some(SessionStatus {
            handle: renewals.handle,
            client: renewals.client.to_string(),
            opened_by: renewals.opened_by.clone(),
            ttl: renewals.ttl,
            left,
            txns,
            waiting: self.waits.count(),
            ending: ending.unwrap_or_default(),
            still_running: renewals.still_running().to_owned(),
        })
    }
}

impl Session {
    /// The session's id: unguessable. Show it to its client alone.
    pub fn id(&self) -> SessionId {
        self.record.id
    }

    /// The session's handle, for operators: no secret.
    pub fn handle(&self) -> SessionHandle {
        self.record.renewals.handle
    }

    /// The time for which the locks of a silent client are kept.
    pub fn ttl(&self) -> Duration {
        self.record.renewals.ttl
    }

    /// Renews the session. The promise of the response counts from before the request was sent
    /// (P2). While the client does not know that one of its transactions was killed, nothing is
    /// renewed, and the promise is what is left: see
    /// [`acknowledge_loss`](Self::acknowledge_loss).
    ///
    /// # Errors
    /// `SessionLost`, `LeaseLost`, `ShuttingDown`: stop the protected work.
    pub fn renew(&self) -> Result<Promise> {
        // A stopping service renews for those who are putting their work away; only its lease can
        // end that.
        let lease = self.inner.lease_remaining()?;
        let Some(renewal) = self.record.renewals.renew(&**self.inner.parts.env.clock()) else {
            return Err(self.why_lost());
        };
        if let Some(left) = renewal.left {
            self.inner.metrics().session_left.note_part(left, self.record.renewals.ttl);
        }
        Ok(Promise { valid_for: lease.min(renewal.valid_for) })
    }

    /// Notes that the client has the responses of transaction `number` up to `sequence`.
    pub fn ack(&self, number: TxnNumber, sequence: Sequence) {
        self.record.state.lock().with_queue(number, |queue, _| queue.acknowledge(sequence));
    }

    /// Cancels a lock operation that waits, for its locks or for its turn, as if it had not been
    /// made; does nothing to one that is decided, or has not arrived.
    pub fn cancel(&self, number: TxnNumber, sequence: Sequence) {
        self.record.state.lock().with_queue(number, |queue, _| queue.cancel(sequence));
    }

    /// Begins a transaction, and gives it its number in the session: for clients whose calls arrive
    /// in no order, as those of several threads. Returns the transaction's id, too.
    ///
    /// # Errors
    /// `InvalidArgument` for a label that is too long, and in a session whose client has numbered
    /// transactions itself; `ResourceExhausted` beyond the bounds on transactions; `SessionLost`,
    /// `LeaseLost`, `ShuttingDown`.
    pub fn begin(&self, options: &TxnOptions) -> Result<(TxnNumber, TxnId)> {
        let mut state = self.record.state.lock();
        if state.stage != Stage::Open {
            return Err(self.why_lost());
        }
        state.number_by(NumberedBy::Service)?;
        let number = state.highest.next();
        let id = self.begin_as(&mut state, number, options)?;
        Ok((number, id))
    }

    /// Begins transaction `number`. The number is spent, even if the transaction cannot begin:
    /// later operations then fail as in a transaction that has ended.
    fn begin_as(
        &self,
        state: &mut SessionState,
        number: TxnNumber,
        options: &TxnOptions,
    ) -> Result<TxnId> {
        state.highest = number;
        if state.txns.len() >= self.inner.parts.settings.txns_per_session_max {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "too many transactions in one session: end some first",
            )
            .with("limit", self.inner.parts.settings.txns_per_session_max));
        }
        let txn = self.inner.begin(
            self.inner.parts.env.now(),
            options,
            Some(Arc::clone(&self.record.renewals)),
            state.charge.txn()?,
        )?;
        let id = txn.id;
        state.txns.insert(number, Box::new(TxnQueue::new(txn)));
        Ok(id)
    }
}
