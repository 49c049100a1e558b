//! Claims of what was held before a restart (P6).
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Claims`]: the tables that take claims; bound for them, opened after them |
//! | `session.rs` | a session of an earlier incarnation, and the claims of its transactions |
//! | `asked.rs` | the calls that bind tables for claims |
//! | `expected.rs` | the sessions that are expected back in a table |
//! | `left.rs` | what a stop for a restart leaves, and the next process finds |
//!
//! # The way of a claim
//! 1. A client comes back with a session of an earlier incarnation
//!    ([`reclaim_session`](crate::service::LockService::reclaim_session)). The session begins again
//!    under its id, with nothing in it.
//! 2. It claims its transactions, one after the other ([`Session::claim`]). The first claim in a
//!    table has the allocator bind the table ([`ServiceInner::claim_table`]); so does the start of
//!    the service for each table that the last process left held.
//! 3. A table that was bound for claims has a line, as one that is not bound: all calls but claims
//!    and releases stand there. It is opened by the binder of its line, by the first of these: the
//!    wait is over; each session that held something has claimed or closed.
//! 4. The client says that it has claimed everything ([`Session::claims_done`]).
//!
//! # Invariants
//! - **Claims first.** Nothing but claims is granted in a table before it is opened, and no claim
//!   after that: [`ClaimedBind::gate`] is held for reading by each claim, and for writing by the
//!   opening.
//! - **Nothing twice.** A table is installed in the engine once for each bind (B5): concurrent
//!   claims share one call of the allocator.
//! - **The binder waits.** While claims of a table are taken, or may be about to be, the binder of
//!   its line installs nothing ([`ServiceInner::claims_of`]).
//!
//! [`Session::claim`]: crate::service::Session::claim
//! [`Session::claims_done`]: crate::service::Session::claims_done

mod asked;
mod expected;
mod left;
mod session;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, RwLock};

use crate::allocator::TableClaim;
use crate::clock::{Time, hi};
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{BindVersion, FencingToken, HolderMark, TableRef};
use crate::service::ServiceInner;
use crate::service::txn::TxnRecord;
use crate::sync::Mutex;
use crate::table::TableHandle;

use self::asked::{Asked, Asking};
use self::expected::Expected;
pub use self::session::{ClaimedLocks, TxnClaim};

/// The largest number of sessions of which it is remembered that they have claimed everything.
const DONE_MAX: usize = 100_000;

/// For how long a table that takes claims waits, after its last claim, for the calls that stood in
/// its queues before a stop, so that nobody passes them. It is short, because the table serves
/// nobody meanwhile. One that comes later [keeps its place](Claims::keeps_place) among those that
/// wait; only what was free meanwhile has gone.
const WAITERS_MAX: Duration = Duration::from_millis(30);

/// The shortest pause between two looks at whether the claims of a table are over.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The tables that take claims. See the module.
#[derive(Debug)]
pub(in crate::service) struct Claims {
    /// The begin of this incarnation.
    began: Time,
    /// When the promises of the node's last incarnation are over, and with them all its waits.
    waits_until: Time,
    /// Locked alone.
    tables: Mutex<HashMap<TableRef, Arc<TableClaims>>>,
    /// The sessions that have claimed everything, or closed: a table that is bound for claims later
    /// does not wait for them. Locked alone.
    done: Mutex<HashSet<HolderMark>>,
    /// The tables that may be bound for claims, and are not known to be.
    asked: Asked,
}

/// The claims in one table: not bound for them yet, or bound.
pub(in crate::service) type TableClaims = OnceCell<Arc<ClaimedBind>>;

/// A table that was bound for claims.
#[derive(Debug)]
pub(in crate::service) struct ClaimedBind {
    bound: TableHandle,
    /// Locks that were granted under this version, or a later one, can be claimed.
    from: BindVersion,
    /// Tokens that were granted under these versions are below this.
    tokens_below: FencingToken,
    /// When the wait is over.
    until: Time,
    /// A leaf.
    expected: Mutex<Expected>,
    /// True once the table was opened.
    gate: RwLock<bool>,
}

impl ClaimedBind {
    /// When others may be granted locks in the table, by what is known `now`.
    fn over_at(&self, now: Time) -> Time {
        let expected = self.expected.lock();
        match expected.claimed_at {
            None => self.until,
            Some(_) if expected.waiters.is_empty() => now,
            Some(claimed_at) => self.until.min(claimed_at + WAITERS_MAX),
        }
    }
}

impl Claims {
    /// Those of an incarnation that begins `now`, with leases of `lease_ttl`.
    pub(in crate::service) fn new(now: Time, lease_ttl: Duration) -> Self {
        Self {
            began: now,
            waits_until: now + hi(lease_ttl),
            tables: Mutex::default(),
            done: Mutex::default(),
            asked: Asked::default(),
        }
    }

    /// True if a call that arrived at `since` has waited at an earlier incarnation since `came`,
    /// and keeps its place: a late one is ahead of those that came to this incarnation first.
    pub(in crate::service) fn keeps_place(&self, since: Time, came: Time) -> bool {
        came < self.began && since < self.waits_until
    }

    fn of(&self, table: &TableRef) -> Option<Arc<TableClaims>> {
        self.tables.lock().get(table).map(Arc::clone)
    }

    fn of_or_new(&self, table: &TableRef) -> Arc<TableClaims> {
        Arc::clone(self.tables.lock().entry(table.clone()).or_default())
    }

    /// Forgets claims that came to nothing, unless another caller makes them.
    fn forget_unmade(&self, table: &TableRef, claims: Arc<TableClaims>) {
        let mut tables = self.tables.lock();
        drop(claims);
        let is_unused =
            |claims: &Arc<TableClaims>| !claims.initialized() && Arc::strong_count(claims) == 1;
        if tables.get(table).is_some_and(is_unused) {
            tables.remove(table);
        }
    }

    /// Every table that is bound for claims.
    pub(in crate::service) fn bound(&self) -> Vec<(TableRef, Arc<ClaimedBind>)> {
        let tables = self.tables.lock();
        let bound = |(table, claims): (&TableRef, &Arc<TableClaims>)| {
            Some((table.clone(), Arc::clone(claims.get()?)))
        };
        tables.iter().filter_map(bound).collect()
    }
}

impl ServiceInner {
    /// Binds a table for claims of locks that were granted under `version`, unless it is.
    ///
    /// # Cancel safety
    /// Cancel safe: another call binds it.
    async fn claim_table(
        self: &Arc<Self>,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Arc<ClaimedBind>> {
        if self.tables.owned(table).is_some() {
            return Err(serves_again(table));
        }
        let claims = self.claims.of_or_new(table);
        let claim = TableClaim { table: table.clone(), version };
        let mut asked = None;
        let bind = async || {
            let lease = self.with_lease(|lease, _| lease.ttl());
            let until = self.parts.env.now() + hi(hi(lease));
            self.bind_for_claims(&claim, asked.insert(self.claims.asked.ask(until))).await
        };
        let claimed = match claims.get_or_try_init(bind).await {
            Ok(claimed) => Arc::clone(claimed),
            Err(e) => {
                self.claims.forget_unmade(table, claims);
                return Err(e);
            }
        };
        if let Some(asking) = &mut asked {
            asking.is_known = true;
            self.note_those_done(table, &claimed);
        }
        // The present version: the claim was made before.
        if version < claimed.from || version > claimed.bound.bind().version {
            return Err(refused(
                table,
                "what was held under that bind was given up, or given away",
            ));
        }
        Ok(claimed)
    }

    async fn bind_for_claims(
        self: &Arc<Self>,
        claim: &TableClaim,
        asking: &mut Asking<'_>,
    ) -> Result<Arc<ClaimedBind>> {
        let table = &claim.table;
        self.check_serving().inspect_err(|_| asking.is_known = true)?;
        let claimed = self.parts.allocator.claim_table(self.id, claim).await.inspect_err(|e| {
            asking.is_known = e.kind() == ErrorKind::ClaimRefused;
        })?;
        self.observe(claimed.bound.at);
        // C5: as for every fresh bind.
        let now = self.parts.env.now();
        let (bind, tokens) = (claimed.bound.bind, claimed.bound.tokens);
        let bound = self.engine.install(bind, tokens, Some(now))?;
        self.engine.close_rows(&bound);
        if tokens.is_none() {
            self.refill(bound.bind());
        }
        let mut expected = Expected {
            holders: claimed.holders.map(HashSet::from_iter),
            waiters: claimed.waiters.into_iter().collect(),
            claimed_at: None,
        };
        expected.note_claimed(now);
        let known = expected.holders.is_some();
        let claimed = Arc::new(ClaimedBind {
            bound: bound.clone(),
            from: claimed.claimable_from,
            tokens_below: claimed.tokens_below,
            until: now + hi(claimed.wait),
            expected: Mutex::new(expected),
            gate: RwLock::new(false),
        });
        tracing::info!(
            %table,
            version = %bound.bind().version,
            known,
            wait = ?claimed.until.remaining(now),
            "a table takes the claims of its holders"
        );
        self.take_claims_in_line(table, &claimed);
        Ok(claimed)
    }

    /// From here on calls for the table stand in its line, and its releases find the bind.
    fn take_claims_in_line(self: &Arc<Self>, table: &TableRef, claimed: &Arc<ClaimedBind>) {
        let waits = waits_for_claims(table, claimed, self.parts.env.now());
        let new_line = {
            let mut lines = self.tables.lines.lock();
            let new_line = lines.begin_claims(table, &claimed.bound);
            lines.refused(table, &waits, self.parts.env.now());
            new_line
        };
        if let Some(deserted) = new_line {
            let (inner, table) = (Arc::clone(self), table.clone());
            self.spawn(async move { inner.bind_for_line(&table, &deserted).await });
        }
    }

    /// Takes into account which sessions had claimed before `claimed` could be found among the
    /// tables that take claims: from here on each of them looks there.
    fn note_those_done(&self, table: &TableRef, claimed: &ClaimedBind) {
        // Each is locked alone. The holders of one table are few, those done over all are not.
        let mut came = claimed.expected.lock().holders.clone().unwrap_or_default();
        {
            let done = self.claims.done.lock();
            came.retain(|mark| done.contains(mark));
        }
        {
            let now = self.parts.env.now();
            let mut expected = claimed.expected.lock();
            if let Some(holders) = &mut expected.holders {
                holders.retain(|mark| !came.contains(mark));
            }
            expected.note_claimed(now);
        }
        self.tables.lines.lock().look_again(table);
    }

    /// What the binder of a table's line does about claims. `None` if there are none, and the table
    /// is bound in the usual way. Else the table, once the claims are over, or the reason to wait.
    pub(in crate::service) fn claims_of(&self, table: &TableRef) -> Option<Result<TableHandle>> {
        let claims = self.claims.of(table)?;
        let now = self.parts.env.now();
        let Some(claimed) = claims.get() else {
            let message = "the table is being bound for the claims of its holders: try again";
            return Some(Err(Error::new(ErrorKind::Unavailable, message).with("table", table)));
        };
        let is_over = now >= claimed.over_at(now);
        let gate = if is_over { claimed.gate.try_write().ok() } else { None };
        let Some(mut gate) = gate else { return Some(Err(waits_for_claims(table, claimed, now))) };
        *gate = true;
        self.claims.tables.lock().remove(table);
        self.tables.lines.lock().end_claims(table);
        tracing::info!(%table, "the claims of a table are over: it serves others again");
        Some(Ok(claimed.bound.clone()))
    }

    /// A session has claimed everything that it held, or was closed.
    pub(in crate::service) fn holder_done(&self, mark: HolderMark) {
        {
            let mut done = self.claims.done.lock();
            // Nothing depends on it but how early a table is opened.
            if done.len() < DONE_MAX {
                done.insert(mark);
            }
        }
        let now = self.parts.env.now();
        for (table, claimed) in self.claims.bound() {
            let is_last = claimed.expected.lock().holder_done(mark, now);
            if is_last {
                self.tables.lines.lock().look_again(&table);
            }
        }
    }

    /// A session is over: what it waited for is not waited for any more.
    pub(in crate::service) fn waiter_gone(&self, mark: HolderMark) {
        for (table, claimed) in self.claims.bound() {
            self.note_waiter(&table, &claimed, mark);
        }
    }

    /// A call of a session stands in the line of a table that takes claims.
    pub(in crate::service) fn waiter_back(&self, table: &TableRef, txn: &TxnRecord) {
        let claims = self.claims.of(table);
        let claimed = claims.as_ref().and_then(|claims| claims.get());
        let session = txn.session.as_ref();
        let id = session.and_then(|it| self.session_numbers.get(it.handle.number));
        if let (Some(claimed), Some(id)) = (claimed, id) {
            self.note_waiter(table, claimed, HolderMark::of(id));
        }
    }

    fn note_waiter(&self, table: &TableRef, claimed: &ClaimedBind, mark: HolderMark) {
        let is_last = claimed.expected.lock().waiter_back(mark);
        if is_last {
            self.tables.lines.lock().look_again(table);
        }
    }
}

/// The reason why a table that takes claims serves nobody else.
fn waits_for_claims(table: &TableRef, claimed: &ClaimedBind, now: Time) -> Error {
    // It may be over, with a claim still under way: that wakes the binder when it is decided.
    let left = claimed.over_at(now).remaining(now).max(LOOK_AGAIN);
    Error::new(
        ErrorKind::Reassigning,
        "the server was restarted, and the table waits for those who held something in it: try \
            again",
    )
    .with("table", table)
    .with("remaining_ms", left.as_millis())
    .with_detail(Detail::RetryAfter(left))
}

fn serves_again(table: &TableRef) -> Error {
    refused(table, "it serves others again")
}

fn refused(table: &TableRef, why: &str) -> Error {
    Error::new(
        ErrorKind::ClaimRefused,
        format!("what was held in the table cannot be claimed: {why}"),
    )
    .with("table", table)
}
