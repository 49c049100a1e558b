//! Transactions: one lock call at a time, checked again before it is answered, and ended exactly
//! once.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`Txn`], and the lock call: `lock`, then `still_good` |
//! | `live.rs` | which validating transactions are alive, and the report of that |
//! | `waits.rs` | which lock calls of a session wait, and for whom |

pub(in crate::service) mod live;
pub(in crate::service) mod waits;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;

use crate::clock::{Time, hi};
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{CommitTimestamp, TableRef, TxnId};
use crate::key::LockItem;
use crate::service::session::Renewals;
use crate::service::tables::line::{Handed, Requested};
use crate::service::{
    ANCESTORS_MAX, Granted, LockService, LockSpec, Promise, ServiceInner, TxnOptions,
};
use crate::sync::Mutex;
use crate::table::Grant;

/// Longest label.
const LABEL_BYTES_MAX: usize = 255;

/// A transaction as the service knows it.
#[derive(Debug)]
pub(crate) struct TxnRecord {
    pub(crate) id: TxnId,
    pub(crate) label: String,
    /// Who began it: the client of its session; empty for an embedder.
    pub(crate) client: String,
    /// What its session promises; `None` for an embedder's, which lives as long as the process.
    pub(crate) session: Option<Arc<Renewals>>,
    state: Mutex<TxnPhase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TxnPhase {
    Active,
    /// Nothing more is granted, but what it holds stays until it surely cannot commit.
    Closing,
    Ended,
}

impl TxnRecord {
    fn check_active(&self) -> Result<()> {
        match *self.state.lock() {
            TxnPhase::Active => Ok(()),
            TxnPhase::Closing | TxnPhase::Ended => Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            )
            .with("txn", self.id)),
        }
    }
}

impl ServiceInner {
    pub(crate) fn begin(
        &self,
        options: &TxnOptions,
        session: Option<Arc<Renewals>>,
        client: &str,
    ) -> Result<Arc<TxnRecord>> {
        self.check_serving()?;
        if options.label.len() > LABEL_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a transaction's label is too long: shorten it",
            )
            .with("bytes", options.label.len())
            .with("limit", LABEL_BYTES_MAX));
        }
        let id = TxnId::new(self.id, self.live.begin(options.validates), options.validates);
        let record = Arc::new(TxnRecord {
            id,
            label: options.label.clone(),
            client: client.to_owned(),
            session,
            state: Mutex::new(TxnPhase::Active),
        });
        self.txns.insert(id, Arc::clone(&record)).inspect_err(|_| self.live.end(id))?;
        Ok(record)
    }

    /// Locks, and answers only what still holds at the moment of the answer. `began` is when the
    /// call arrived: from then its time-out counts, and then its snapshot was as old as it says.
    ///
    /// Runs in a span at level `debug`. While that is disabled, the span costs one comparison of
    /// the level, and one look at an empty span at each poll; nothing is formatted or allocated.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, it leaves the transaction's locks as they were.
    pub(crate) async fn lock(
        self: &Arc<Self>,
        txn: &TxnRecord,
        spec: LockSpec,
        began: Time,
    ) -> Result<Granted> {
        let span = tracing::debug_span!("lock", txn = %txn.id, table = %spec.table);
        self.lock_in_span(txn, spec, began).instrument(span).await
    }

    async fn lock_in_span(
        self: &Arc<Self>,
        txn: &TxnRecord,
        spec: LockSpec,
        began: Time,
    ) -> Result<Granted> {
        self.check_serving()?;
        txn.check_active()?;
        let snapshot = spec.snapshot_age.map(|age| began - hi(age));
        if spec.ancestors.len() > ANCESTORS_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "too many ancestors of one call: nest calls less deeply",
            )
            .with("most", ANCESTORS_MAX));
        }
        // One absolute deadline for everything that the call waits for: its turn, the bind, the
        // queue, a token.
        let deadline = self.deadline(&spec, began);
        let LockSpec { table, items, mode, wait, timeout, ancestors, .. } = spec;
        let requested = Requested { txn: txn.id, ancestors, items, mode, wait, since: began };
        let Handed { bind, mut call, waited } = self.hand_over(&table, requested, deadline).await?;
        // The transaction may have ended before the call was in the engine, where its end would
        // have found it.
        txn.check_active()?;
        let outcome = match self.until(deadline, &mut call).await {
            Some(outcome) => outcome,
            // Dropping the call takes its claim away, or hands on a grant that has just been made.
            None => {
                let error = self.timed_out(&table, timeout);
                Err(match call.blocker() {
                    Some(blocker) => error.with_detail(Detail::Blocked(blocker)),
                    None => error,
                })
            }
        };
        let mut grant = outcome.map_err(|error| self.with_names(error))?;
        if waited {
            grant.waited.get_or_insert_default();
        }
        // The engine reads no clock: it only says whether the call waited.
        grant.waited = grant.waited.map(|_| self.parts.env.now().since(began));
        // C5. At the very moment counts as before.
        let before = |since: Time| snapshot.is_none_or(|snapshot| snapshot <= since);
        grant.history_unknown = grant.owner.history_since.is_some_and(before);
        self.tokens_left(&bind, grant.owner.tokens_left);
        self.still_good(txn, &grant, began + grant.waited.unwrap_or_default())
    }

    /// An error of the engine with the names of those that it tells of.
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

    /// The label and the client that operators know a transaction by.
    pub(crate) fn names(&self, txn: TxnId) -> (String, String) {
        self.txns
            .get(&txn)
            .map(|record| (record.label.clone(), record.client.clone()))
            .unwrap_or_default()
    }

    /// What the client of a transaction left running when it went; empty unless it said so.
    pub(crate) fn still_running(&self, txn: TxnId) -> String {
        let session = self.txns.get(&txn).and_then(|record| record.session.clone());
        session.map(|session| session.still_running().to_owned()).unwrap_or_default()
    }

    /// When a call that arrived at `began` has waited long enough for whatever it waits for.
    pub(crate) fn deadline(&self, spec: &LockSpec, began: Time) -> Time {
        began + self.parts.settings.wait(spec.timeout)
    }

    /// The error of a call that requested to wait for `requested`, and has waited for as long as it
    /// may.
    pub(crate) fn timed_out(&self, table: &TableRef, requested: Option<Duration>) -> Error {
        let waited = self.parts.settings.wait(requested);
        if requested.is_some_and(|requested| requested <= waited) {
            return Error::new(
                ErrorKind::Timeout,
                "the lock was not to be had in time: try again, or give up",
            )
            .with("table", table)
            .with("waited", format!("{waited:?}"));
        }
        // Asked again it would wait as long again: a caller that wants more than that must know why
        // it got less.
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

    /// A waiter must not get a response after the promise under it has lapsed. So lease and
    /// transaction are looked at once more, after the grant and before the answer; what lapses
    /// after that is covered by the promise that the answer carries.
    fn still_good(&self, txn: &TxnRecord, grant: &Grant, now: Time) -> Result<Granted> {
        // The end of a transaction marks it first and releases then, so a grant that came in
        // between is seen here.
        let still = txn.check_active().and_then(|()| self.promise(txn.session.as_deref()));
        match still {
            Ok(promise) => {
                let history_known = grant.owner.history_since.map(|since| now.since(since));
                Ok(Granted { txn: txn.id, grant: grant.clone(), promise, history_known })
            }
            Err(e) => {
                self.engine.roll_back(txn.id, grant.bind.id, grant);
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

    /// Releases chosen items, and answers how many went.
    pub(crate) fn unlock(
        &self,
        txn: &TxnRecord,
        table: &TableRef,
        items: &[LockItem],
        commit_ts: Option<CommitTimestamp>,
    ) -> usize {
        let bind = self.tables.served(table);
        bind.map_or(0, |bind| self.engine.unlock(txn.id, bind.id, items, commit_ts))
    }

    /// Ends a transaction whose owner says so, and answers how many items that released.
    /// Idempotent.
    pub(crate) fn end(&self, txn: &TxnRecord, commit_ts: Option<CommitTimestamp>) -> usize {
        *txn.state.lock() = TxnPhase::Ended;
        // C4: the transaction must not commit what the next holder is about to change.
        self.live.end(txn.id);
        let released = self.engine.unlock_all(txn.id, commit_ts);
        self.txns.remove(&txn.id);
        self.departed.notify_waiters();
        released
    }

    /// Ends transactions whose owner is gone: those that validate are first made unable to commit
    /// (C4), the others are released at once.
    pub(crate) fn abandon(self: &Arc<Self>, txns: Vec<Arc<TxnRecord>>) {
        let mut validating = Vec::new();
        for txn in txns {
            let was = std::mem::replace(&mut *txn.state.lock(), TxnPhase::Closing);
            match was {
                TxnPhase::Ended => *txn.state.lock() = TxnPhase::Ended,
                TxnPhase::Closing => {}
                // Sealed, this incarnation grants nothing more, and the allocator fences all its
                // transactions at once (C4).
                TxnPhase::Active if txn.id.validates() && !self.is_sealed() => {
                    self.engine.cancel_wait(txn.id);
                    validating.push(txn);
                }
                TxnPhase::Active => self.force_end(&txn),
            }
        }
        if !validating.is_empty() {
            let inner = Arc::clone(self);
            self.spawn(async move { inner.fence_then_release(validating).await });
        }
    }

    fn force_end(&self, txn: &TxnRecord) {
        *txn.state.lock() = TxnPhase::Ended;
        self.live.end(txn.id);
        // C5: it may have committed at a timestamp that we were not told.
        self.engine.unlock_all_forced(txn.id, self.parts.env.now());
        self.txns.remove(&txn.id);
        self.departed.notify_waiters();
    }

    async fn fence_then_release(self: Arc<Self>, mut txns: Vec<Arc<TxnRecord>>) {
        let mut pause = crate::service::tables::RETRY_FIRST;
        while !txns.is_empty() {
            if self.is_sealed() {
                // As in `abandon`: nothing is granted here any more, and no call would end this
                // task.
                txns.iter().for_each(|txn| self.force_end(txn));
                return;
            }
            let ids: Vec<TxnId> = txns.iter().map(|txn| txn.id).collect();
            match self.parts.allocator.cannot_commit(&ids).await {
                Ok(response) => {
                    self.observe(response.at);
                    for (txn, e) in &response.failed {
                        tracing::warn!(%txn, error = ?e, "cannot make a transaction unable to \
                            commit; trying again");
                    }
                    let over: HashSet<TxnId> = response.tombstoned.into_iter().collect();
                    let (fenced, rest): (Vec<_>, Vec<_>) =
                        txns.into_iter().partition(|txn| over.contains(&txn.id));
                    txns = rest;
                    for txn in &fenced {
                        self.force_end(txn);
                    }
                    // Their tombstones go with the floor of this incarnation, which rises past them
                    // now (C4).
                    if txns.is_empty() {
                        return;
                    }
                }
                // An error means that it is not known whether they can commit: no lock is released.
                Err(e) => {
                    tracing::warn!(error = ?e, "cannot make transactions of a lost session unable \
                        to commit; trying again")
                }
            }
            self.pause(pause).await;
            pause = (pause * 2).min(crate::service::tables::RETRY_MOST);
        }
    }
}

/// A transaction of an embedder: it lives as long as this handle, and rests on the service's lease
/// alone.
///
/// Dropping it abandons it: if it said that it would validate, it is first made unable to commit,
/// then released.
#[derive(Debug)]
#[must_use = "dropping a transaction releases its locks"]
pub struct Txn {
    inner: Arc<ServiceInner>,
    record: Arc<TxnRecord>,
    /// When it was begun: its snapshot is taken to be no older, unless a call says otherwise.
    began: Time,
    /// T2: one lock call of a transaction is decided at a time.
    turn: tokio::sync::Mutex<()>,
}

impl LockService {
    /// Begins a transaction of an embedder, one that belongs to no session.
    ///
    /// Fails with `ShuttingDown` or `LeaseLost` if the service no longer serves,
    /// `ResourceExhausted` at the limit of transactions.
    pub fn begin(&self, options: TxnOptions) -> Result<Txn> {
        let began = self.inner.parts.env.now();
        let record = self.inner.begin(&options, None, "")?;
        Ok(Txn { inner: Arc::clone(&self.inner), record, began, turn: tokio::sync::Mutex::new(()) })
    }
}

impl Txn {
    /// The transaction's id: to be presented at its commit.
    pub fn id(&self) -> TxnId {
        self.record.id
    }

    /// Takes all the locks of `spec`, or none. Calls of one transaction are decided one after the
    /// other.
    ///
    /// A call that does not say how old the transaction's snapshot is says that it was not begun
    /// before the transaction.
    ///
    /// # Errors
    /// `Conflict`, `Timeout`: not to be had now; the transaction goes on. `Deadlock`,
    /// `BindChanged`, `TxnNotFound`: start a new transaction. `Reassigning` (NoWait only): try
    /// again after the time it names. `NotOwner`: ask that node. `LeaseLost`, `ShuttingDown`:
    /// everything held here is, or will be, given away: stop the work. `InvalidArgument`,
    /// `ResourceExhausted`: ask for less.
    ///
    /// # Cancel safety
    /// A dropped call leaves the transaction's locks as they were before it.
    ///
    /// # Examples
    /// ```
    /// # use lockservice_core::service::{LockSpec, TxnOptions};
    /// # use lockservice_core::table::WaitPolicy;
    /// # use lockservice_core::{ErrorKind, Key, LockItem, TableRef};
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
    /// let accounts = TableRef::new("bank", "accounts")?;
    /// let alice = || Ok::<_, lockservice_core::Error>(vec![LockItem::Row(Key::new("alice")?)]);
    /// let first = service.begin(TxnOptions::default())?;
    /// let second = service.begin(TxnOptions::default())?;
    /// let granted = first.lock(LockSpec::new(accounts.clone(), alice()?)).await?;
    /// println!("locked under token {}", granted.grant.token);
    ///
    /// let at_once = LockSpec { wait: WaitPolicy::NoWait, ..LockSpec::new(accounts, alice()?) };
    /// assert_eq!(second.lock(at_once).await.expect_err("held").kind(), ErrorKind::Conflict);
    /// first.end(None);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lock(&self, mut spec: LockSpec) -> Result<Granted> {
        let now = self.inner.parts.env.now();
        spec.snapshot_age.get_or_insert_with(|| now.since(self.began));
        let Some(_turn) = self.inner.until(self.inner.deadline(&spec, now), self.turn.lock()).await
        else {
            return Err(self.inner.timed_out(&spec.table, spec.timeout));
        };
        self.inner.lock(&self.record, spec, now).await
    }

    /// Releases chosen rows and ranges, and returns how many; those not held are ignored.
    /// `commit_ts` is the timestamp at which what they protect was committed, if it was (C5).
    pub fn unlock(
        &self,
        table: &TableRef,
        items: &[LockItem],
        commit_ts: Option<CommitTimestamp>,
    ) -> usize {
        self.inner.unlock(&self.record, table, items, commit_ts)
    }

    /// Ends the transaction, releases everything, and returns how many rows and ranges that were.
    /// `commit_ts` is the timestamp at which it committed, if it did (C5).
    pub fn end(self, commit_ts: Option<CommitTimestamp>) -> usize {
        self.inner.end(&self.record, commit_ts)
    }

    /// When the locks that this transaction holds stop being safe, unless the service renews its
    /// lease by then.
    ///
    /// Fails with `LeaseLost` or `ShuttingDown` if they no longer are.
    pub fn promise(&self) -> Result<Promise> {
        self.inner.promise(None)
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        self.inner.abandon(vec![Arc::clone(&self.record)]);
    }
}

/// The time left until `deadline`, for a timer.
pub(crate) fn timer(deadline: Time, now: Time) -> Duration {
    // Tokio's timers cannot be set further ahead than about two years; they only wake, and a
    // wake-up too early is harmless.
    deadline.remaining(now).min(Duration::from_secs(86_400))
}
