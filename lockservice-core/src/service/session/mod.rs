//! Sessions: how long a silent client's locks are kept, and exactly-once operations over a
//! connection that may break.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`Session`]: opened, renewed, attached, closed, lost |
//! | `operations.rs` | the way of an operation |
//! | `queue/` | the operations of one transaction in their order; pure |
//! | `state.rs` | the queues of one session |
//! | `renewals.rs` | until when its promise holds |
//! | `pending.rs` | the result of an operation, known or to come |
//! | `quota.rs`, `weight.rs` | bounds on sessions, calls and memory; estimates of memory |
//! | `registry.rs` | sessions and transactions by id |
//!
//! # Implementation details
//! A session's transactions are numbered by its client, and the operations of each transaction too
//! (T2): their order, and how they take effect once, is the business of each transaction's
//! [`queue`](crate::service::session::queue).
//!
//! One mutex per session guards all of that. It is never held across an await, nor while an
//! operation runs: the runner takes the next operation under it, runs it without it, and files the
//! answer under it.

mod operations;
pub(in crate::service) mod pending;
pub(in crate::service) mod queue;
pub(in crate::service) mod quota;
pub(in crate::service) mod registry;
mod renewals;
mod state;
pub(in crate::service) mod weight;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{SessionId, TxnId};
use crate::service::session::queue::{NumberedBy, TxnQueue};
use crate::service::session::quota::{Charge, Quota};
use crate::service::session::state::SessionState;
use crate::service::txn::timer;
use crate::service::txn::waits::{WaitNotices, Waits};
use crate::service::{LockService, Phase, Promise, ServiceInner, TxnOptions};
use crate::sync::Mutex;

pub(crate) use self::renewals::Renewals;

/// Longest text about what a client left running.
pub const STILL_RUNNING_BYTES_MAX: usize = 1_024;

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
    inner: Arc<ServiceInner>,
}

#[derive(Debug)]
pub(crate) struct SessionRecord {
    id: SessionId,
    client: String,
    renewals: Arc<Renewals>,
    state: Mutex<SessionState>,
    /// Why the session is lost, once it is.
    lost: watch::Sender<Option<Error>>,
    /// The number of the current attachment (T3).
    attached: watch::Sender<u64>,
    /// Its lock calls that wait.
    waits: Waits,
    /// Its tasks and operations run in it. It names the client, and not the id: who knows that can
    /// use the session.
    span: tracing::Span,
}

impl SessionRecord {
    pub(in crate::service) fn waits(&self) -> &Waits {
        &self.waits
    }
}

/// A frame that is counted in memory: see [`Session::hold_frame`].
#[derive(Debug)]
#[must_use = "a frame that is dropped counts no more"]
pub struct HeldFrame<'a> {
    session: &'a Session,
    bytes: usize,
}

impl Drop for HeldFrame<'_> {
    fn drop(&mut self) {
        self.session.record.state.lock().charge.let_go_of(self.bytes);
    }
}

/// Says when another connection has taken the session over.
#[derive(Debug)]
pub struct Attachment {
    number: u64,
    attached: watch::Receiver<u64>,
}

impl Attachment {
    /// Resolves when a later attachment has replaced this one: its frames are to be dropped (T3).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn replaced(&mut self) {
        let number = self.number;
        // The sender lives in the session; if that is gone, nothing can replace this attachment any
        // more.
        if self.attached.wait_for(|current| *current > number).await.is_err() {
            std::future::pending().await
        }
    }
}

impl LockService {
    /// Opens a session whose locks are kept for `ttl` (the default of the settings if `None`) after
    /// its last renewal.
    ///
    /// Fails with `InvalidArgument` for a TTL or a name out of bounds, `ShuttingDown` or
    /// `LeaseLost` if the service no longer serves, `ResourceExhausted` at the limit of sessions.
    pub fn open_session(&self, ttl: Option<Duration>, client: &str) -> Result<Session> {
        self.open_session_of(None, ttl, client)
    }

    /// As [`open_session`](Self::open_session), for a peer whose sessions together are bounded by
    /// `quota`. Fails with `ResourceExhausted` at its bounds, too.
    pub fn open_session_within(
        &self,
        quota: Arc<Quota>,
        ttl: Option<Duration>,
        client: &str,
    ) -> Result<Session> {
        self.open_session_of(Some(quota), ttl, client)
    }

    fn open_session_of(
        &self,
        quota: Option<Arc<Quota>>,
        ttl: Option<Duration>,
        client: &str,
    ) -> Result<Session> {
        let inner = &self.inner;
        inner.check_serving()?;
        let ttl = inner.parts.settings.session_ttl(ttl)?;
        if client.len() > 255 || client.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a client's name is at most 255 bytes without control characters",
            ));
        }
        let charge = Charge::session(quota, &inner.quota)?;
        // Random, so that one client cannot use another's session by counting; below 2^53, as all
        // ids; not 0.
        let id = SessionId::new(inner.parts.env.random_id());
        let record = Arc::new(SessionRecord {
            id,
            client: client.to_owned(),
            renewals: Arc::new(Renewals::new(ttl, inner.parts.env.now())),
            state: Mutex::new(SessionState {
                open: true,
                txns: BTreeMap::new(),
                highest: 0,
                numbered_by: None,
                kept_bytes: 0,
                ops: 0,
                charge,
            }),
            lost: watch::Sender::new(None),
            attached: watch::Sender::new(0),
            waits: Waits::default(),
            span: tracing::debug_span!("session", client),
        });
        inner.sessions.insert(id, Arc::clone(&record))?;
        let session = Session { record, inner: Arc::clone(inner) };
        let watch = session.clone().watch_over();
        inner.spawn(watch.instrument(session.record.span.clone()));
        Ok(session)
    }

    /// The session with this id. Fails with `SessionLost` if there is none, or no longer: stop the
    /// protected work.
    pub fn session(&self, id: SessionId) -> Result<Session> {
        match self.inner.sessions.get(&id) {
            Some(record) => Ok(Session { record, inner: Arc::clone(&self.inner) }),
            None => Err(unknown()),
        }
    }
}

fn unknown() -> Error {
    Error::new(
        ErrorKind::SessionLost,
        "the session is unknown here or has lapsed, and its locks are given away: stop the \
            protected work and open a new session",
    )
}

impl Session {
    /// The session's id: unguessable. Show it to its client alone.
    pub fn id(&self) -> SessionId {
        self.record.id
    }

    /// How long a silent client's locks are kept.
    pub fn ttl(&self) -> Duration {
        self.record.renewals.ttl
    }

    /// Renews the session. The answer's promise counts from before the request was sent (P2).
    ///
    /// Fails with `SessionLost`, `LeaseLost` or `ShuttingDown`: stop the protected work.
    pub fn renew(&self) -> Result<Promise> {
        // A stopping service renews for those who are putting their work away; only its lease can
        // end that.
        let lease = self.inner.lease_remaining()?;
        if !self.record.renewals.renew(&**self.inner.parts.env.clock()) {
            return Err(self.why_lost());
        }
        Ok(Promise { valid_for: lease.min(self.record.renewals.ttl) })
    }

    /// Counts a frame of about `bytes` in memory among what the session's peer and the node keep,
    /// until the answer is dropped.
    ///
    /// Fails with `ResourceExhausted` if there is no room for it: refuse what it asks for.
    pub fn hold_frame(&self, bytes: usize) -> Result<HeldFrame<'_>> {
        self.record.state.lock().charge.hold(bytes)?;
        Ok(HeldFrame { session: self, bytes })
    }

    /// Makes the caller the session's one current connection (T3); earlier attachments learn that
    /// they were replaced.
    pub fn attach(&self) -> Attachment {
        let mut number = 0;
        self.record.attached.send_modify(|current| {
            *current += 1;
            number = *current;
        });
        Attachment { number, attached: self.record.attached.subscribe() }
    }

    /// Tells of the session's lock calls that wait, those that wait already included: for the one
    /// connection that the session has now. Of two that listen, each is told of some.
    pub fn waits(&self) -> WaitNotices {
        self.record.waits.renew(self.inner.parts.env.now());
        WaitNotices { record: Arc::clone(&self.record), inner: Arc::clone(&self.inner) }
    }

    /// The client has the answers of transaction `number` up to `sequence`.
    pub fn ack(&self, number: u64, sequence: u64) {
        self.record.state.lock().with_queue(number, |queue, _| queue.acknowledge(sequence));
    }

    /// Cancels a lock operation that waits, for its locks or for its turn, as if it had not been
    /// made; does nothing to one that is decided, or has not arrived.
    pub fn cancel(&self, number: u64, sequence: u64) {
        self.record.state.lock().with_queue(number, |queue, _| queue.cancel(sequence));
    }

    /// Begins a transaction, and gives it its number in the session: for clients whose calls arrive
    /// in no order, as those of several threads. Answers the transaction's id, too.
    ///
    /// # Errors
    /// `InvalidArgument` for a label that is too long, and in a session whose client has numbered
    /// transactions itself; `ResourceExhausted` beyond the bounds on transactions; `SessionLost`,
    /// `LeaseLost`, `ShuttingDown`.
    pub fn begin(&self, options: &TxnOptions) -> Result<(u64, TxnId)> {
        let mut state = self.record.state.lock();
        if !state.open {
            return Err(self.why_lost());
        }
        state.number_by(NumberedBy::Service)?;
        let number = state.highest + 1;
        let id = self.begin_as(&mut state, number, options)?;
        Ok((number, id))
    }

    /// Begins transaction `number`. The number is spent, also if the transaction cannot begin: what
    /// follows is told that it has ended.
    fn begin_as(
        &self,
        state: &mut SessionState,
        number: u64,
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
            options,
            Some(Arc::clone(&self.record.renewals)),
            &self.record.client,
        )?;
        let id = txn.id;
        state.txns.insert(number, TxnQueue::new(txn));
        Ok(id)
    }

    /// Gives the session up: its client has stopped all protected work (P5). Ends its transactions;
    /// idempotent.
    pub async fn close(&self) {
        self.finish(Error::new(ErrorKind::SessionLost, "the session was closed"));
    }

    /// The client goes while work that the locks protect may still be running: `still_running` says
    /// which, in at most [`STILL_RUNNING_BYTES_MAX`] bytes without control characters. Operators
    /// are told; the first word stays. Nothing is released, ended or renewed: others get the locks
    /// when the session has lapsed (P5).
    ///
    /// # Errors
    /// `InvalidArgument` for a text out of bounds.
    pub fn leave(&self, still_running: &str) -> Result<()> {
        let bad = still_running.len() > STILL_RUNNING_BYTES_MAX
            || still_running.chars().any(char::is_control);
        if bad || still_running.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "say what may still be running, without control characters and not at such length; \
                 or close the session",
            )
            .with("bytes", still_running.len())
            .with("limit", STILL_RUNNING_BYTES_MAX));
        }
        let renewals = &self.record.renewals;
        if renewals.still_running.set(still_running.to_owned()).is_ok() {
            tracing::warn!(
                client = %self.record.client,
                ttl = ?renewals.ttl,
                still_running,
                "a client went without having stopped its work: its locks stay until its session \
                    has lapsed"
            );
        }
        Ok(())
    }

    /// Resolves when the session is lost or closed, with the reason.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&self) -> Error {
        let mut lost = self.record.lost.subscribe();
        match lost.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            _ => unknown(),
        }
    }

    /// Resolves when the service begins to shut down, with the time that it gives its sessions to
    /// close.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stopping(&self) -> Duration {
        self.inner.stopping().await
    }

    fn why_lost(&self) -> Error {
        self.record.lost.borrow().clone().unwrap_or_else(unknown)
    }

    /// Marks the session lost, then lets go of what it held. Only the first call does anything, and
    /// answers true.
    fn finish(&self, why: Error) -> bool {
        let queues = {
            let mut state = self.record.state.lock();
            if !std::mem::replace(&mut state.open, false) {
                return false;
            }
            self.record.renewals.end();
            (state.kept_bytes, state.ops) = (0, 0);
            state.charge = Charge::default();
            std::mem::take(&mut state.txns)
        };
        self.record.lost.send_replace(Some(why.clone()));
        // Cancels running calls (their cancellers are dropped) and answers queued ones.
        let mut txns = Vec::new();
        for queue in queues.into_values() {
            txns.push(Arc::clone(&queue.txn));
            for sender in queue.into_waiting() {
                let _ = sender.send(Err(why.clone()));
            }
        }
        self.inner.abandon(txns);
        self.inner.sessions.remove(&self.record.id);
        self.inner.departed.notify_waiters();
        true
    }

    /// Ends the session when its time is over, or with the service's lease.
    async fn watch_over(self) {
        let mut phase = self.inner.phase.subscribe();
        loop {
            let Some((lapses, now)) = self.record.renewals.lapses(&**self.inner.parts.env.clock())
            else {
                let why = Error::new(
                    ErrorKind::SessionLost,
                    "the session was not renewed in time and its locks are given away: stop the \
                        protected work and open a new session",
                );
                if self.finish(why) {
                    tracing::info!(
                        client = %self.record.client,
                        ttl = ?self.record.renewals.ttl,
                        "session lapsed: its client was silent"
                    );
                }
                return;
            };
            tokio::select! {
                () = self.inner.parts.env.sleep(timer(lapses, now)) => {}
                _ = self.lost() => return,
                sealed = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => {
                    let why = match sealed.as_deref() {
                        Ok(Phase::Sealed(why)) => why.clone(),
                        _ => unknown(),
                    };
                    self.finish(why);
                    return;
                }
            }
        }
    }
}
