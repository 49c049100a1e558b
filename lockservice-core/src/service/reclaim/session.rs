//! The sessions of an earlier incarnation, and the claims of their transactions.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{
    BindVersion, FencingToken, HolderMark, Sequence, ServiceId, SessionId, TableRef, TxnId,
    TxnNumber,
};
use crate::key::{LockItem, LockMode};
use crate::metrics::TxnKillCause;
use crate::service::reclaim::{ClaimedBind, refused, serves_again};
use crate::service::session::queue::TxnQueue;
use crate::service::session::state::Stage;
use crate::service::tables::{RETRY_FIRST, RETRY_MOST, passes};
use crate::service::txn::{CallInFlight, TxnRecord};
use crate::service::{LockService, OpenedBy, Promise, Quota, ServiceInner, Session, TxnOptions};
use crate::table::{LockRequest, WaitPolicy};

/// For how long a claim waits for the allocator. It is shorter than the time for which clients of
/// this repository wait for a response to a claim.
const BIND_MAX: Duration = Duration::from_secs(2);

/// What a transaction held before the restart of its server (P6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnClaim {
    /// The client's number of the transaction in its session.
    pub number: TxnNumber,
    /// Its id; `None` for one that was granted nothing, and claims nothing.
    pub id: Option<TxnId>,
    /// Its label.
    pub label: String,
    /// The sequence of its next operation: those before it were decided.
    pub next: Sequence,
    /// What it holds, in the order in which it was locked.
    pub locks: Vec<ClaimedLocks>,
}

/// Rows and ranges of one table that are held in one mode under one token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimedLocks {
    /// The table.
    pub table: TableRef,
    /// The version of the bind under which they were granted.
    pub version: BindVersion,
    /// The token under which they are held.
    pub token: FencingToken,
    /// The mode in which they are held.
    pub mode: LockMode,
    /// The rows and ranges, at least one.
    pub items: Vec<LockItem>,
}

impl LockService {
    /// Begins a session again that its client had at the incarnation `from`, which is over (P6). It
    /// has nothing in it; the client [claims](Session::claim) what it held. Returns the same
    /// session if it has begun again before.
    ///
    /// # Errors
    /// Those of [`open_session_within`](Self::open_session_within); `SessionLost` if `from` is not
    /// an earlier incarnation, or if there is another session with this id.
    pub fn reclaim_session(
        &self,
        (id, from): (SessionId, ServiceId),
        quota: Option<Arc<Quota>>,
        ttl: Option<Duration>,
        client: &str,
        opened_by: OpenedBy,
    ) -> Result<Session> {
        if from >= self.id() || from == ServiceId::default() || id == SessionId::default() {
            return Err(crate::service::session::unknown());
        }
        let known = |opened_by: &OpenedBy| {
            let record = self.inner.sessions.get(&id)?;
            let same = record.claims_from == Some(from)
                && record.renewals.opened_by.identity == opened_by.identity;
            Some(if same {
                Ok(Session { record, inner: Arc::clone(&self.inner) })
            } else {
                Err(crate::service::session::unknown())
            })
        };
        if let Some(session) = known(&opened_by) {
            return session;
        }
        let opened = self.open_session_as((id, Some(from)), quota, ttl, client, opened_by.clone());
        match opened {
            // Another stream of the client was faster.
            Err(e) if e.kind() == ErrorKind::SessionLost => known(&opened_by).unwrap_or(Err(e)),
            opened => opened,
        }
    }

    /// A session of an earlier incarnation is over, and the work under its locks has stopped: its
    /// tables need not wait for it (P6). Does nothing for any other id.
    pub fn gave_up(&self, id: SessionId) {
        self.inner.holder_done(HolderMark::of(id));
        self.inner.waiter_gone(HolderMark::of(id));
    }
}

impl Session {
    /// Claims what a transaction held before the restart (P6): all of it, or nothing. Returns the
    /// version of the bind under which each of [`TxnClaim::locks`] is held from now on, which the
    /// next claim of it names. A repetition succeeds, also after the
    /// [last claim](Self::claims_done). A large transaction may be claimed in several calls; the
    /// first that fails ends it.
    ///
    /// # Errors
    /// - `ClaimRefused`: what was held is lost. The client stops the work under it.
    /// - `InvalidArgument`: the session is not one of an earlier incarnation, or the transaction
    ///   validates, or has another id or number than before.
    /// - `Unavailable`: the allocator does not respond. The caller makes no further claim of the
    ///   session, and does not say that it [claimed everything](Self::claims_done), before it has
    ///   made all of them again.
    /// - `SessionLost`, `LeaseLost`, `ShuttingDown`, `Restarting`: it is not known whether the
    ///   claim counts. The client resumes the session, and claims again.
    /// - `ResourceExhausted` at the bounds on transactions and their memory. What was held stays
    ///   closed to others for the full wait.
    ///
    /// # Cancel safety
    /// What was claimed by then stays claimed. The client claims again.
    pub async fn claim(&self, claim: TxnClaim) -> Result<Vec<BindVersion>> {
        let claimed = self.claim_all(claim).await;
        if let Err(e) = &claimed
            && !matches!(e.kind(), ErrorKind::ClaimRefused | ErrorKind::Unavailable)
        {
            self.record.state.lock().has_lost_claims = true;
        }
        claimed
    }

    async fn claim_all(&self, claim: TxnClaim) -> Result<Vec<BindVersion>> {
        let (number, id) = (claim.number, claim.id);
        let txn = self.begin_claimed(&claim)?;
        let mut versions = Vec::with_capacity(claim.locks.len());
        for locks in claim.locks {
            let table = locks.table.clone();
            let claimed = self.inner.claim_locks(&txn, locks).await;
            // The binder may have found the table taken by this claim.
            self.inner.tables.lines.lock().look_again(&table);
            if let Err(why) = claimed.map(|version| versions.push(version)) {
                if why.kind() == ErrorKind::Unavailable {
                    return Err(why);
                }
                tracing::warn!(
                    client = %self.record.renewals.client,
                    txn = ?id,
                    "a claim is refused: {why}"
                );
                self.refuse_claim(number, &txn);
                let is_open = self.record.state.lock().stage == Stage::Open;
                return Err(if is_open { why } else { self.why_lost() });
            }
        }
        let now = self.inner.parts.env.now();
        self.inner.count_hold(&txn, || now);
        Ok(versions)
    }

    /// The client has claimed everything. `last` is the highest number that it gave to a
    /// transaction. Returns the promise on which all of its locks rest from now on.
    ///
    /// # Errors
    /// Those of [`renew`](Self::renew).
    pub fn claims_done(&self, last: TxnNumber) -> Result<Promise> {
        let has_lost_claims = {
            let mut state = self.record.state.lock();
            state.highest = state.highest.max(last);
            state.refused_claims.clear();
            state.has_claimed = true;
            state.has_lost_claims
        };
        let promise = self.renew()?;
        if !has_lost_claims {
            self.inner.holder_done(HolderMark::of(self.record.id));
        }
        Ok(promise)
    }

    /// The transaction of a claim, begun if it is the first.
    fn begin_claimed(&self, claim: &TxnClaim) -> Result<Arc<TxnRecord>> {
        let wrong = |why: &str| Error::new(ErrorKind::InvalidArgument, why);
        let Some(from) = self.record.claims_from else {
            return Err(wrong("only a session of an earlier incarnation has something to claim"));
        };
        if claim.number == TxnNumber::default() || claim.next == Sequence::default() {
            return Err(wrong("transactions and their operations are numbered from 1"));
        }
        if claim.id.is_none() && !claim.locks.is_empty() {
            return Err(wrong("a claim of locks names the id of their transaction"));
        }
        if let Some(id) = claim.id {
            if id.validates() {
                return Err(wrong("a transaction that validates is not claimed: end it"));
            }
            if id.origin > from {
                return Err(wrong("the transaction was not begun before the restart"));
            }
        }
        let mut state = self.record.state.lock();
        if state.stage != Stage::Open {
            return Err(self.why_lost());
        }
        if let Some(queue) = state.txns.get(&claim.number) {
            let same = claim.id.is_none_or(|id| id == queue.txn.id);
            return if same {
                Ok(Arc::clone(&queue.txn))
            } else {
                Err(wrong("another transaction was claimed under this number"))
            };
        }
        if state.has_claimed || state.refused_claims.contains(&claim.number) {
            return Err(Error::new(
                ErrorKind::ClaimRefused,
                "the transaction cannot be claimed any more: the session had said that it claimed \
                    everything, or a claim of it was refused",
            ));
        }
        state.number_by(crate::service::session::queue::NumberedBy::Client)?;
        let options = TxnOptions { validates: false, label: claim.label.clone() };
        let charge = state.charge.txn()?;
        let (inner, renewals) = (&self.inner, Arc::clone(&self.record.renewals));
        let txn = inner.begin_with_id(claim.id, &options, renewals, charge)?;
        state.highest = state.highest.max(claim.number);
        let queue = TxnQueue::continued(Arc::clone(&txn), claim.next);
        state.txns.insert(claim.number, Box::new(queue));
        Ok(txn)
    }

    /// Ends a transaction whose claim was refused.
    fn refuse_claim(&self, number: TxnNumber, txn: &Arc<TxnRecord>) {
        {
            let mut state = self.record.state.lock();
            state.refused_claims.insert(number);
            state.remove_queue(number);
        }
        self.inner.end(txn, None);
    }
}

impl ServiceInner {
    /// Claims rows and ranges of one table for a transaction. Returns the version of the bind under
    /// which they are held from now on.
    async fn claim_locks(
        self: &Arc<Self>,
        txn: &Arc<TxnRecord>,
        locks: ClaimedLocks,
    ) -> Result<BindVersion> {
        self.check_serving()?;
        let claimed = match self.claim_table_in_time(&locks.table, locks.version).await {
            Ok(claimed) => claimed,
            // This claim may have been made before.
            Err(e) => return self.still_held(txn, &locks).await.ok_or(e),
        };
        let ClaimedLocks { table, token, mode, items, .. } = locks;
        if token == FencingToken::default() || token >= claimed.tokens_below {
            return Err(refused(&table, "it was not granted under that token"));
        }
        // Until this claim is decided the table is not opened.
        let is_open = claimed.gate.read().await;
        if *is_open {
            return Err(serves_again(&table));
        }
        self.make_room(txn, &items)?;
        loop {
            let bind = claimed.bound.bind();
            let request = LockRequest {
                table: bind.id,
                version: bind.version,
                items: items.clone(),
                mode,
                wait: WaitPolicy::NoWait,
                escalate: false,
            };
            let now = self.parts.env.now();
            let _in_flight = CallInFlight::new(Arc::clone(txn));
            let outcome = self.engine.claim(txn.at_engine(), request, token, now).await;
            let error = match outcome {
                Ok(grant) => {
                    // Its session may have ended meanwhile, and would not find this any more.
                    if let Err(over) = txn.check_active() {
                        self.roll_back(txn, &grant);
                        return Err(over);
                    }
                    self.note_limited(txn, &grant.bind, || now);
                    return Ok(grant.bind.version);
                }
                Err(error) => error,
            };
            let Some(blocker) = error.blocker() else { return Err(error) };
            let theirs = self.engine.token_of(blocker.txn, bind.id, &blocker.item);
            tracing::error!(
                %table,
                txn = %txn.id,
                %token,
                other = %blocker.txn,
                other_token = ?theirs,
                "two transactions claim locks that exclude each other: one of their clients is \
                    at fault"
            );
            // It has ended meanwhile, or its token is smaller: this one stands.
            if theirs.is_some_and(|theirs| theirs >= token) {
                return Err(refused(
                    &table,
                    "another transaction claimed it, under a token that is not smaller",
                ));
            }
            self.give_up_claim(blocker.txn, &table);
        }
    }

    /// Binds a table for claims, unless it is. While there is no leader, or its store does not
    /// respond, it tries again. Fails with `Unavailable` if that takes too long: then it is not
    /// known whether what was held can be claimed.
    async fn claim_table_in_time(
        self: &Arc<Self>,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Arc<ClaimedBind>> {
        let give_up = self.parts.env.now() + BIND_MAX;
        let mut pause = RETRY_FIRST;
        loop {
            let error = match self.claim_table(table, version).await {
                Err(e) if passes(&e) => e,
                decided => return decided,
            };
            self.check_serving()?;
            if self.parts.env.now() + pause >= give_up {
                let message = "the table cannot be bound for claims yet: claim again";
                return Err(Error::new(ErrorKind::Unavailable, message)
                    .with("table", table)
                    .with_source(error));
            }
            self.pause(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// The version of the bind under which the transaction holds all of this, in a table that
    /// serves others again; `None` if it does not.
    async fn still_held(&self, txn: &TxnRecord, locks: &ClaimedLocks) -> Option<BindVersion> {
        let bound = self.tables.owned(&locks.table)?;
        let request = LockRequest {
            table: bound.bind().id,
            version: bound.bind().version,
            items: locks.items.clone(),
            mode: locks.mode,
            wait: WaitPolicy::NoWait,
            escalate: false,
        };
        let now = self.parts.env.now();
        let claim = self.engine.claim(txn.at_engine(), request, locks.token, now);
        let grant = claim.await.ok()?;
        if grant.newly_locked {
            self.roll_back(txn, &grant);
            return None;
        }
        Some(grant.bind.version)
    }

    /// Kills a transaction that claimed what another one held later.
    fn give_up_claim(self: &Arc<Self>, txn: TxnId, table: &TableRef) {
        let record = self.named_txns.read(&txn, |record| record.cloned());
        let why = refused(table, "another transaction claimed it, under a larger token");
        // One that has ended holds nothing any more.
        if let Some(record) = record {
            drop(self.kill(&record, why, TxnKillCause::Claim, true));
        }
    }
}
