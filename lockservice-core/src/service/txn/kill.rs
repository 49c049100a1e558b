//! Transactions that are ended while their session lives: by an operator, or at a limit.
//!
//! # Steps
//! 1. [`ServiceInner::kill`] notes the reason, and closes the transaction. From here on nothing
//!    more is granted to it, and its call that waits fails with the reason. A kill of a transaction
//!    that has ended by then finds no transaction.
//! 2. `Session::lose_txn` withholds the renewals of the session, and has the client told: it gets
//!    the notice on its stream, once more on each new stream.
//! 3. A client that knows says so (`Session::acknowledge_loss`): the session is renewed again.
//! 4. The locks are released by the first of these: the client ends the transaction; the promise
//!    has run out that it had at the kill; the session ends; an operator does not want to wait.
//!    A transaction that validates is first made unable to commit (C4), except where its client
//!    ends it.
//!
//! # Why no other gets the locks before the client's work has ended (P5)
//! What is promised to a session counts for all of its transactions. Let the last renewal before
//! step 2 be at `r`, by the clock of the service, which is read under the mutex of the promise.
//!
//! - As long as the client does not say that it knows, nothing is renewed: each response, also to a
//!   grant or a replay, promises what is left of `r` + TTL. A client that ignores the notice, or
//!   does not understand it, loses its session in time, and the session lapses at `r` + hi(TTL).
//! - A client that says that it knows had the notice before. What it is promised from then on does
//!   not count for the transaction, and a grant to it that arrives then is refused (P2). So the
//!   transaction's own promise still ends at `r` + TTL, and its locks go at `r` + hi(TTL).
//!
//! The notice is sent after step 2. A grant that was made before step 1 and whose response is on
//! its way promises no more than `r` + TTL, or arrives after the notice.
//!
//! # Races
//! - *An end beside a kill.* Both pass the mutex of the transaction's holds. If the end is first,
//!   the kill finds no transaction. If the kill is first, the end confirms it.
//! - *Two kills.* The second joins the first, whose reason stays, and may only hasten it.
//! - *The end of the session beside a kill.* The session takes its transactions with it, those too
//!   that were killed; each is released once, for the engine ends a transaction once. Both tell
//!   those who wait for them.
//! - *A commit beside a kill.* Until the locks are released the transaction may begin its commit.
//!   One whose commit is in flight when it is to be made unable to commit is left alone, and named.
//!
//! # Transactions of an embedder
//! They rest on no promise of a session. The embedder learns of the kill by the next call of the
//! transaction, which fails, and by `Txn::promise`. The locks go when it ends or drops the
//! transaction, or at once if the operator does not want to wait. One without a label is in no
//! list, and cannot be killed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{SessionHandle, TxnId};
use crate::metrics::TxnKillCause;
use crate::service::kill::{KillEnd, KillWaiter, Killed, check_reason, outcome};
use crate::service::session::Session;
use crate::service::txn::TxnRecord;
use crate::service::{LockService, ServiceInner};
use crate::sync::Mutex;
use crate::table::Closed;

/// The kill of a transaction, if there is one.
#[derive(Debug, Default)]
pub(in crate::service) struct TxnKill {
    /// The reason, set before the transaction is closed. The first one stays.
    why: OnceLock<Error>,
    /// Notified when there is a reason.
    begun: Notify,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// What releases the locks, once that is decided.
    end: Option<KillEnd>,
    /// They are being released because of the kill alone.
    is_releasing: bool,
    /// The transaction has ended.
    is_over: bool,
    /// When the promise that the transaction had has run out, if it rests on one.
    lapses: Option<Time>,
    waiters: Vec<KillWaiter>,
    /// Dropped when the transaction has ended: for the task that waits for its promise to run out.
    watched: Option<oneshot::Sender<()>>,
}

impl TxnKill {
    /// The reason, if it was killed.
    pub(super) fn why(&self) -> Option<&Error> {
        self.why.get()
    }

    /// Resolves when it is killed, with the reason.
    pub(super) async fn killed(&self) -> Error {
        loop {
            let begun = self.begun.notified();
            // After the registration, so that no kill is missed.
            if let Some(why) = self.why() {
                return why.clone();
            }
            begun.await;
        }
    }

    /// Notes a reason, and waits for the end of the kill. `None` if the transaction has ended.
    fn join(&self, why: Error) -> Option<oneshot::Receiver<Killed>> {
        let (waiter, told) = KillWaiter::new();
        let mut progress = self.progress.lock();
        if progress.is_over {
            return None;
        }
        progress.waiters.retain(KillWaiter::is_waiting);
        progress.waiters.push(waiter);
        drop(progress);
        // The first reason stays.
        let _ = self.why.set(why);
        Some(told)
    }

    /// The time at which the promise of the transaction has run out, as the first kill noted it.
    pub(in crate::service) fn lapses(&self) -> Option<Time> {
        self.progress.lock().lapses
    }

    /// Notes that time.
    pub(in crate::service) fn set_lapses(&self, lapses: Time) {
        self.progress.lock().lapses.get_or_insert(lapses);
    }

    /// What resolves when the transaction has ended.
    pub(in crate::service) fn watch(&self) -> oneshot::Receiver<()> {
        let (watched, over) = oneshot::channel();
        let mut progress = self.progress.lock();
        if !progress.is_over {
            progress.watched = Some(watched);
        }
        over
    }

    /// Decides what releases the locks, unless that was decided before.
    pub(super) fn decide(&self, end: KillEnd) {
        self.progress.lock().end.get_or_insert(end);
    }

    /// Begins the release because of the kill. False if it has begun.
    fn begin_release(&self) -> bool {
        !std::mem::replace(&mut self.progress.lock().is_releasing, true)
    }

    /// The commit of the transaction is in flight: nobody waits for that.
    pub(super) fn committing(&self, txn: TxnId) {
        let (end, waiters) = {
            let mut progress = self.progress.lock();
            (progress.end, std::mem::take(&mut progress.waiters))
        };
        let end = end.unwrap_or(KillEnd::Confirmed);
        waiters.into_iter().for_each(|waiter| waiter.tell(end, &[txn]));
    }

    /// The transaction has ended. Unless something else was decided its owner has ended it.
    pub(super) fn over(&self) {
        let (end, waiters) = {
            let mut progress = self.progress.lock();
            progress.is_over = true;
            progress.watched = None;
            (progress.end, std::mem::take(&mut progress.waiters))
        };
        let end = end.unwrap_or(KillEnd::Confirmed);
        waiters.into_iter().for_each(|waiter| waiter.tell(end, &[]));
    }
}

/// A kill of a transaction that has begun. It goes on if this is dropped.
#[derive(Debug)]
#[must_use = "it says for how long the locks stay"]
pub struct TxnKillUnderWay {
    /// The transaction.
    pub txn: TxnId,
    /// Its label.
    pub label: String,
    /// Its session; `None` for one of an embedder.
    pub session: Option<SessionHandle>,
    /// The client of its session; empty for an embedder.
    pub client: String,
    /// For how long its locks are kept at most, unless its commit is in flight: until what was
    /// promised for them has run out. Zero if they are not kept. `None`: until the embedder, whose
    /// transaction it is, ends it.
    pub kept: Option<Duration>,
    told: oneshot::Receiver<Killed>,
}

impl TxnKillUnderWay {
    /// Resolves when the locks were released, or it is known that the commit of the transaction is
    /// in flight.
    ///
    /// # Errors
    /// `Unavailable` if the server went first: no other gets the locks before its lease has run
    /// out, or it has resigned.
    ///
    /// # Cancel safety
    /// The kill goes on.
    pub async fn done(self) -> Result<Killed> {
        outcome(self.told).await
    }
}

impl LockService {
    /// Ends a transaction for an operator while its session lives, with a `reason` of at most
    /// [`REASON_BYTES_MAX`](crate::service::REASON_BYTES_MAX) bytes, without control characters,
    /// that its client gets to read.
    ///
    /// Nothing more is granted to it, and its client learns that it is lost. Its locks are released
    /// once the client has ended it, or what was promised for them has run out (P5). If `now`, they
    /// are released at once: work that they protect may still be running then. A kill of a
    /// transaction that is being killed joins the first, and may only hasten it.
    ///
    /// # Errors
    /// `TxnNotFound`: it has ended, or another incarnation began it, or it is one of an embedder
    /// that has no label. `InvalidArgument` for a reason out of bounds. Nothing was done then.
    pub fn kill_txn(&self, txn: TxnId, reason: &str, now: bool) -> Result<TxnKillUnderWay> {
        check_reason(reason)?;
        let record = self.inner.named_txns.read(&txn, |record| record.cloned());
        let killed = record.and_then(|record| {
            self.inner.kill(&record, by_operator(txn, reason), TxnKillCause::Operator, now)
        });
        killed.ok_or_else(|| not_found(txn))
    }
}

/// The reason of a kill by an operator.
pub(super) fn by_operator(txn: TxnId, reason: &str) -> Error {
    Error::new(
        ErrorKind::TxnKilled,
        format!(
            "an operator ended the transaction ({reason}): stop the protected work, then end the \
                transaction"
        ),
    )
    .with("txn", txn)
}

fn not_found(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::TxnNotFound,
        "this node has no transaction with this id, or no longer: list its transactions (one of \
            an embedder that has no label is not listed, and cannot be killed)",
    )
    .with("txn", txn)
}

impl ServiceInner {
    /// Kills a transaction that has a name; see the module. `None` if it has ended.
    pub(in crate::service) fn kill(
        self: &Arc<Self>,
        txn: &Arc<TxnRecord>,
        why: Error,
        cause: TxnKillCause,
        now: bool,
    ) -> Option<TxnKillUnderWay> {
        let kill = txn.kill_or_new();
        let told = kill.join(why)?;
        match txn.at_engine().close() {
            Closed::Ended => return None,
            Closed::Now => self.metrics().txn_killed(cause),
            Closed::Before => {}
        }
        if now {
            // Before another kill finds that nothing is waited for any more.
            kill.decide(KillEnd::Forced);
        }
        kill.begun.notify_waiters();
        self.engine.cancel_wait(txn.id);
        let session = txn.session.as_ref().map(|renewals| self.session_of(renewals.handle));
        let kept = match session {
            // One that is gone has nothing to wait for: its transactions are being released.
            Some(None) => Some(self.release_killed(txn, KillEnd::Lapsed)),
            Some(Some(session)) => Some(self.lose(&session, txn, now)),
            None if now => Some(self.release_killed(txn, KillEnd::Forced)),
            None => None,
        };
        Some(TxnKillUnderWay {
            txn: txn.id,
            label: txn.label.to_string(),
            session: txn.session.as_ref().map(|renewals| renewals.handle),
            client: txn.client().to_owned(),
            kept,
            told,
        })
    }

    /// Has a session lose a transaction. Returns for how long the locks are kept at most.
    fn lose(self: &Arc<Self>, session: &Session, txn: &Arc<TxnRecord>, now: bool) -> Duration {
        let lapses = session.lose_txn(txn, now);
        if now {
            return self.release_killed(txn, KillEnd::Forced);
        }
        match lapses {
            Some(lapses) => lapses.remaining(self.parts.env.now()),
            None => self.release_killed(txn, KillEnd::Lapsed),
        }
    }

    /// Releases the locks of a killed transaction, without a further wait for its client.
    fn release_killed(self: &Arc<Self>, txn: &Arc<TxnRecord>, end: KillEnd) -> Duration {
        if txn.kill_or_new().begin_release() {
            self.abandon(vec![Arc::clone(txn)], end, |_| ());
        }
        Duration::ZERO
    }

    /// Releases the locks of a killed transaction when what was promised for them has run out,
    /// unless it has ended by then.
    pub(in crate::service) fn release_at(self: &Arc<Self>, txn: &Arc<TxnRecord>, lapses: Time) {
        let (inner, txn) = (Arc::clone(self), Arc::clone(txn));
        let over = txn.kill_or_new().watch();
        self.spawn(async move {
            if inner.until(lapses, over).await.is_none() {
                inner.release_killed(&txn, KillEnd::Lapsed);
            }
        });
    }
}
