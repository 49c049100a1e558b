//! The lock call of a transaction: one deadline for all that it waits for, and a last check of what
//! its locks rest on before the response.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;

use crate::clock::Time;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::TableRef;
use crate::service::hot::EndedWait;
use crate::service::session::Renewals;
use crate::service::tables::line::{Handed, Requested};
use crate::service::txn::row::{is_history_unknown, snapshot};
use crate::service::txn::trace::Traced;
use crate::service::txn::{CallInFlight, TxnRecord};
use crate::service::{ANCESTORS_MAX, Granted, LockSpec, Promise, ServiceInner};
use crate::table::Grant;

/// What became of a lock call that could not be decided at once.
#[allow(clippy::large_enum_variant, reason = "moved once; the rare one is in a box")]
pub(in crate::service) enum BegunLock {
    /// It is decided all the same.
    Decided(Result<Granted>),
    /// It waits at the engine.
    Waits(LockWait),
    /// Its table is not bound to this service.
    InLine(Pin<Box<dyn Future<Output = Result<Granted>> + Send>>),
}

/// A lock call that waits at the engine. It is as small as it can be: there may be many. Dropped,
/// it leaves the transaction's locks as they were.
#[derive(Debug)]
pub(in crate::service) struct LockWait {
    handed: Handed,
    times: CallTimes,
    traced: Traced,
}

/// The times of a lock call.
#[derive(Clone, Copy, Debug)]
struct CallTimes {
    /// When it arrived.
    began: Time,
    /// The end of everything that it waits for: its turn, the bind, the queue, a token.
    deadline: Time,
    /// The begin of its transaction's snapshot.
    snapshot: Option<Time>,
    /// Its time-out, as requested.
    timeout: Option<Duration>,
}

impl ServiceInner {
    /// Locks, and returns only a grant that still holds at the moment of the response. `began` is
    /// the arrival of the call: its time-out counts from there, and the age of its snapshot is as
    /// of then.
    ///
    /// Runs in a span at level `debug`. While that is disabled, the span costs one comparison of
    /// the level, and one look at an empty span at each poll; nothing is formatted or allocated.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, it leaves the transaction's locks as they were.
    pub(crate) async fn lock(
        self: &Arc<Self>,
        txn: &Arc<TxnRecord>,
        spec: LockSpec,
        began: Time,
    ) -> Result<Granted> {
        let span = tracing::debug_span!("lock", txn = %txn.id, table = %spec.table);
        let begun = span.in_scope(|| match self.lock_at_once(txn, &spec, began) {
            Some(granted) => BegunLock::Decided(granted),
            None => self.begin_lock(txn, spec, began),
        });
        match begun {
            BegunLock::Decided(granted) => granted,
            BegunLock::Waits(mut wait) => self.wait_for_lock(&mut wait).instrument(span).await,
            BegunLock::InLine(call) => call.instrument(span).await,
        }
    }

    /// Makes a lock call that [`lock_at_once`](Self::lock_at_once) did not decide.
    pub(in crate::service) fn begin_lock(
        self: &Arc<Self>,
        txn: &Arc<TxnRecord>,
        spec: LockSpec,
        began: Time,
    ) -> BegunLock {
        let traced = self.traced(txn, &spec, began);
        if let Err(e) = self.check_serving().and_then(|()| txn.check_active()) {
            return self.decided(Err(e), &traced);
        }
        if spec.ancestors.len() > ANCESTORS_MAX {
            let refusal = Error::new(
                ErrorKind::InvalidArgument,
                "too many ancestors of one call: nest calls less deeply",
            );
            return self.decided(Err(refusal.with("most", ANCESTORS_MAX)), &traced);
        }
        if let Err(e) = self.make_room(txn, &spec.items) {
            return self.decided(Err(e), &traced);
        }
        let (deadline, snapshot) = (self.deadline(&spec, began), snapshot(&spec, began));
        let came = began - spec.waited;
        let LockSpec { table, items, mode, wait, escalate, timeout, ancestors, .. } = spec;
        let times = CallTimes { began, deadline, snapshot, timeout };
        let in_flight = CallInFlight::new(Arc::clone(txn));
        let requested =
            Requested { in_flight, ancestors, items, mode, wait, escalate, since: began, came };
        match self.hand_over_at_once(&table, requested) {
            Ok(handed) => self.handed_over(handed, times, traced),
            Err(requested) => {
                let (inner, txn) = (Arc::clone(self), Arc::clone(txn));
                BegunLock::InLine(Box::pin(async move {
                    let bind = traced.bind();
                    let handed = tokio::select! {
                        biased;
                        handed = inner.hand_over(&table, requested, deadline, &bind) => handed,
                        // The engine does not know a call that has not got to it.
                        why = txn.kill_or_new().killed() => Err(why),
                    };
                    drop(bind);
                    let begun = match handed {
                        Ok(handed) => inner.handed_over(handed, times, traced),
                        Err(e) => {
                            inner.count_vain_wait(times.began, &e);
                            let outcome = Err(e);
                            traced.note(&outcome);
                            return outcome;
                        }
                    };
                    match begun {
                        BegunLock::Decided(granted) => granted,
                        BegunLock::Waits(mut wait) => inner.wait_for_lock(&mut wait).await,
                        BegunLock::InLine(call) => call.await,
                    }
                }))
            }
        }
    }

    /// A call was decided without a wait at the engine. Every such outcome passes here: it is
    /// counted, and noted in the trace of the call.
    fn decided(&self, outcome: Result<Granted>, traced: &Traced) -> BegunLock {
        traced.note(&outcome);
        BegunLock::Decided(self.count_refusal(outcome))
    }

    /// A call was made at the engine: it is over, or waits there.
    fn handed_over(
        self: &Arc<Self>,
        mut handed: Handed,
        times: CallTimes,
        traced: Traced,
    ) -> BegunLock {
        // The transaction may have ended before the call was in the engine, where its end would
        // have found it.
        if let Err(e) = handed.in_flight.txn().check_active() {
            return self.decided(Err(e), &traced);
        }
        if let Some(outcome) = handed.call.take_outcome_at_once() {
            let wait = LockWait { handed, times, traced };
            return self.decided(self.complete(&wait, outcome), &wait.traced);
        }
        if handed.call.awaits_token() {
            // The grant that used the last token may not have requested more.
            self.refill(handed.bound.bind());
        }
        BegunLock::Waits(LockWait { handed, times, traced })
    }

    /// Waits for the outcome of a lock call, until its deadline.
    ///
    /// # Cancel safety
    /// Nothing is lost: the call ends when the [`LockWait`] is dropped.
    pub(in crate::service) async fn wait_for_lock(
        self: &Arc<Self>,
        wait: &mut LockWait,
    ) -> Result<Granted> {
        let CallTimes { began, deadline, .. } = wait.times;
        let span = wait.traced.wait(self, &wait.handed.call);
        let (mut outcome, mut is_logged) = (None, false);
        if let Some(slow) = self.slow_from(began).filter(|slow| *slow < deadline) {
            outcome = self.until(slow, &mut wait.handed.call).await;
            is_logged = outcome.is_none() && self.log_slow(wait);
        }
        if outcome.is_none() {
            outcome = self.until(deadline, &mut wait.handed.call).await;
        }
        // Dropping the call takes its claim away, or hands on a grant that has just been made.
        let outcome = outcome.unwrap_or_else(|| Err(self.waited_too_long(wait)));
        drop(span);
        if outcome.is_err() {
            self.note_contention(wait);
        }
        let result = self.complete(wait, outcome).inspect_err(|e| self.count_vain_wait(began, e));
        wait.traced.note(&result);
        if is_logged {
            self.log_slow_end(wait.handed.in_flight.txn(), began, &result);
        }
        result
    }

    fn log_slow(&self, wait: &LockWait) -> bool {
        let Handed { in_flight, bound, call, .. } = &wait.handed;
        self.log_slow_wait(in_flight.txn(), &bound.bind().table, call, wait.times.began)
    }

    /// Counts the wait of a call that was not granted, for the item that it conflicted with.
    pub(in crate::service) fn note_contention(&self, wait: &LockWait) {
        if let Some(item) = wait.handed.call.conflicting_item() {
            let (table, at) = (&wait.handed.bound.bind().table, self.parts.env.now());
            let waited = at.since(wait.times.began);
            self.hot.note(&EndedWait { table, item: &item, waited, at });
        }
    }

    fn waited_too_long(&self, wait: &LockWait) -> Error {
        let error = self.timed_out(&wait.handed.bound.bind().table, wait.times.timeout);
        match wait.handed.call.blocker() {
            Some(blocker) => error.with_detail(Detail::Blocked(blocker)),
            None => error,
        }
    }

    /// Completes the outcome of a call with what the engine does not know, and checks a grant.
    fn complete(self: &Arc<Self>, wait: &LockWait, outcome: Result<Grant>) -> Result<Granted> {
        let (Handed { in_flight, bound, waited, .. }, times) = (&wait.handed, &wait.times);
        let mut grant = outcome.map_err(|error| {
            // A kill cancels the call, and says more than that.
            let killed = in_flight.txn().why_killed().cloned();
            killed.unwrap_or_else(|| self.with_names(error))
        })?;
        // The engine reads no clock: it only says whether the call waited.
        let for_lock = grant.waited.is_some();
        if for_lock || *waited {
            let now = self.parts.env.now();
            let waited = now.since(times.began);
            self.count_granted_wait(waited, grant.owner.made_at, now);
            if for_lock && let Some((_, item)) = &grant.conflict {
                self.hot.note(&EndedWait { table: &bound.bind().table, item, waited, at: now });
            }
            grant.waited = Some(waited);
        }
        grant.history_unknown = is_history_unknown(grant.owner.history_since, times.snapshot);
        self.tokens_left(bound.bind(), grant.owner.tokens_left);
        let now = times.began + grant.waited.unwrap_or_default();
        self.still_good(in_flight.txn(), grant, now)
    }

    /// An error of the engine, completed with the names of its transactions.
    fn with_names(&self, mut error: Error) -> Error {
        match error.detail_mut() {
            Some(Detail::Blocked(blocker)) => {
                (blocker.label, blocker.client) = self.names(blocker.txn)
            }
            Some(Detail::Deadlock(cycle)) => {
                for edge in cycle {
                    (edge.label, edge.client) = self.names(edge.waiter);
                }
            }
            _ => {}
        }
        error
    }

    /// The time at which a call that arrived at `began` stops to wait for any of its obstacles.
    pub(crate) fn deadline(&self, spec: &LockSpec, began: Time) -> Time {
        let wait = self.parts.settings.wait(spec.timeout);
        let limit = self.parts.limits.longest_wait(&spec.table);
        began + limit.map_or(wait, |(longest, _)| wait.min(longest))
    }

    /// The error of a call that requested to wait for `requested`, and has waited for as long as it
    /// may.
    pub(crate) fn timed_out(&self, table: &TableRef, requested: Option<Duration>) -> Error {
        let waited = self.parts.settings.wait(requested);
        if let Some((longest, prefix)) = self.parts.limits.longest_wait(table)
            && longest < waited
        {
            return Error::new(
                ErrorKind::Timeout,
                format!(
                    "the lock was not to be had within the longest wait that the server allows in \
                        this table: try again, or have its limit longest-wait for the prefix \
                        {prefix:?} raised"
                ),
            )
            .with("table", table)
            .with("limit", format!("{longest:?}"));
        }
        if requested.is_some_and(|requested| requested <= waited) {
            return Error::new(
                ErrorKind::Timeout,
                "the lock was not to be had in time: try again, or give up",
            )
            .with("table", table)
            .with("waited", format!("{waited:?}"));
        }
        // A repeated call would wait as long again: a caller that wants more than that must know
        // why it got less.
        let error = Error::new(
            ErrorKind::Timeout,
            "the lock was not to be had within the longest wait that the server allows: try \
             again, or have its setting \
             wait_ms_max raised",
        )
        .with("table", table)
        .with("wait_ms_max", self.parts.settings.wait_ms_max);
        match requested {
            Some(requested) => error.with("requested", format!("{requested:?}")),
            None => error,
        }
    }

    /// A waiter must not get a response after the promise under it has lapsed. So lease, session
    /// and transaction are checked once more, after the grant and before the response. The promise
    /// in the response covers a later lapse.
    pub(super) fn still_good(&self, txn: &TxnRecord, grant: Grant, now: Time) -> Result<Granted> {
        // The end of a transaction marks it first and releases then, so a grant that came in
        // between is seen here.
        let still = txn.check_active().and_then(|()| self.promise(txn.session.as_deref()));
        match still {
            Ok(promise) => {
                self.count_hold(txn, || now);
                self.note_limited(txn, &grant.bind, || now);
                let history_known = grant.owner.history_since.map(|since| now.since(since));
                Ok(Granted { txn: txn.id, grant, promise, history_known })
            }
            Err(e) => {
                self.roll_back(txn, &grant);
                Err(e)
            }
        }
    }

    /// The shortest promise on which a lock of this node rests (P1): the lease, and what is left of
    /// the session's.
    pub(crate) fn promise(&self, session: Option<&Renewals>) -> Result<Promise> {
        let lease = self.lease_remaining()?;
        let Some(session) = session else { return Ok(Promise { valid_for: lease }) };
        match session.remaining(&**self.parts.env.clock()) {
            Some(left) => Ok(Promise { valid_for: lease.min(left) }),
            None => Err(Error::new(
                ErrorKind::SessionLost,
                "the session was not renewed in time: stop the protected work and open a new \
                    session",
            )),
        }
    }
}
