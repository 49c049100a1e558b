//! The engine as its users see it: a shell around the pure [`EngineState`], which adds one mutex,
//! wakers, and the future of a call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::call::CallId;
use super::list::{LockList, WaitList};
use super::locking::put_in_order;
use super::slices::{STEPS, Slice};
use super::state::{EngineState, Started};
use super::steps::Hold;
use super::types::{CallObstacle, EngineSettings, Grant, LockInfo, LockRequest, WaitInfo};
use crate::allocator::{Bind, TokenBlock};
use crate::clock::Time;
use crate::error::{Blocker, Error, Result};
use crate::id::{BindVersion, TableId, TxnId};
use crate::key::LockItem;
use crate::sync::{Arc, Mutex, unlock_fair};

/// Lines of a slice, where all of a list is wanted.
const SLICE: usize = 1_024;

/// Every lock table that a node owns, in memory. A cheap handle: clones share the tables.
///
/// No method waits or blocks; only the future of a [`LockCall`] does. See the [module](super) for
/// how it works.
#[derive(Clone)]
pub struct LockEngine(Arc<Shell>);

struct Shell {
    items_per_request_max: usize,
    state: Mutex<EngineState>,
}

impl LockEngine {
    /// An engine without tables.
    pub fn new(settings: EngineSettings) -> Self {
        Self::sliced(settings, STEPS)
    }

    /// As [`new`](Self::new), with holds of the mutex that end after so many steps: for tests of
    /// what happens between two of them.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_steps_per_hold(settings: EngineSettings, steps: usize) -> Self {
        Self::sliced(settings, steps)
    }

    fn sliced(settings: EngineSettings, steps: usize) -> Self {
        let items_per_request_max = settings.items_per_request_max;
        let state = EngineState::new(settings, Slice::new(steps));
        Self(Arc::new(Shell { items_per_request_max, state: Mutex::new(state) }))
    }

    /// Does something to the state, under one hold of the mutex.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut EngineState) -> T) -> T {
        let mut act = Some(act);
        self.in_slices(|state| act.take().map(|act| act(state))).expect("it was not done before")
    }

    /// Does something to the state in slices, each under a hold of the mutex of its own, until it
    /// has a result; then has the state settled. Whom that concerns is woken while the mutex is
    /// free: a waker may run anything, also this engine.
    fn in_slices<T>(&self, mut act: impl FnMut(&mut EngineState) -> Option<T>) -> Option<T> {
        let mut result = None;
        let mut drains = false;
        loop {
            let mut state = self.0.state.lock();
            let hold = Hold::begin();
            state.slice.begin();
            if result.is_none() {
                result = act(&mut state);
            }
            if result.is_some() {
                state.promote_waiters();
            }
            let is_over = result.is_some() && (state.is_settled() || state.draining && !drains);
            if is_over {
                state.draining &= !drains;
            } else {
                drains |= !std::mem::replace(&mut state.draining, true);
            }
            let wake = std::mem::take(&mut state.wake);
            drop(hold);
            if is_over {
                drop(state);
            } else {
                unlock_fair(state);
            }
            wake.into_iter().for_each(std::task::Waker::wake);
            if is_over {
                return result;
            }
        }
    }

    /// Begins to serve a table, without any locks, at the version of `bind`, with its first block
    /// of tokens.
    ///
    /// The table's history is known since `history_since` (C5); all of it with `None`. Each grant
    /// says so.
    ///
    /// # Errors
    /// [`BindChanged`](crate::ErrorKind::BindChanged) if this or a later version was ever installed
    /// (B5), or a later one of any table was [removed](Self::remove): give the bind up, and bind
    /// the table anew. The error of [`seal`](Self::seal) if the engine is sealed. An earlier
    /// version that is still installed is removed first.
    pub fn install(
        &self,
        bind: Bind,
        tokens: Option<TokenBlock>,
        history_since: Option<Time>,
    ) -> Result<()> {
        self.with(|state| state.install(bind, tokens, history_since))
    }

    /// Drops a table with all its locks. Calls that wait in it end with
    /// [`BindChanged`](crate::ErrorKind::BindChanged), also those granted whose outcome was not
    /// received yet. Nothing happens if another version is installed.
    pub fn remove(&self, table: TableId, version: BindVersion) {
        self.with(|state| state.remove(table, version));
    }

    /// Grants nothing ever after (B2): every wait ends with `error`, so does every later
    /// [`lock`](Self::lock), and a grant that was not received yet becomes that error. Unlocks
    /// still work.
    pub fn seal(&self, error: fn() -> Error) {
        self.with(|state| state.seal(error));
    }

    /// Adds a durable block of fencing tokens, and completes the calls that were held up for one.
    /// Of a block that reaches below an earlier one only the rest is used (F1).
    pub fn add_tokens(&self, table: TableId, version: BindVersion, block: TokenBlock) {
        self.with(|state| state.add_tokens(table, version, block));
    }

    /// How many tokens are left to a table; `None` if that version is not installed.
    pub fn tokens_left(&self, table: TableId, version: BindVersion) -> Option<u64> {
        self.with(|state| {
            state
                .tables
                .get(&table)
                .filter(|table| table.bind.version == version)
                .map(|table| table.tokens_left())
        })
    }

    /// Asks for locks: all of them or none. What is free is taken before this returns, and the call
    /// has its place in the queue; one that names many items may take the rest of them when it is
    /// polled first.
    ///
    /// # Errors
    /// The call answers [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a request that
    /// names nothing, or while another call of the transaction is in flight (it waited, and its
    /// outcome was not received yet); [`BindChanged`](crate::ErrorKind::BindChanged) if the table
    /// is not served here at that version; [`Conflict`](crate::ErrorKind::Conflict) if it may not
    /// wait and would have to, [`Unavailable`](crate::ErrorKind::Unavailable) if that is for a
    /// fencing token; [`Deadlock`](crate::ErrorKind::Deadlock),
    /// [`Cancelled`](crate::ErrorKind::Cancelled) (by [`unlock_all`](Self::unlock_all));
    /// [`ResourceExhausted`](crate::ErrorKind::ResourceExhausted) at a limit of the
    /// [settings](EngineSettings). Each leaves the transaction's locks as they were before the
    /// call.
    pub fn lock(&self, request: LockRequest, now: Time) -> LockCall {
        self.lock_for(request, &[], now)
    }

    /// As [`lock`](Self::lock), by work for which the transactions `ancestors` wait: a command that
    /// one of them started, say. In the wait graph an ancestor waits for the call, as long as that
    /// waits.
    ///
    /// # Errors
    /// Also [`HeldByAncestor`](crate::ErrorKind::HeldByAncestor), at once, if a lock of an ancestor
    /// is in the way: a wait for it could not end.
    pub fn lock_for(&self, mut request: LockRequest, ancestors: &[TxnId], now: Time) -> LockCall {
        let txn = request.txn;
        if let Err(error) = put_in_order(&mut request.items, self.0.items_per_request_max) {
            return LockCall { engine: self.clone(), txn, stage: Stage::Ready(Err(error)) };
        }
        let stage = match self.with(|state| state.lock(request, ancestors, now)) {
            Started::Done(outcome) => Stage::Ready(outcome),
            // It can be over by now: nothing needs to be kept then.
            Started::Kept(id) => {
                self.with(|state| state.take_outcome(id)).map_or(Stage::Kept(id), Stage::Ready)
            }
        };
        LockCall { engine: self.clone(), txn, stage }
    }

    /// Takes back exactly what a call added (T2), in whatever order calls are taken back. New locks
    /// go; upgraded ones are again held in their former mode and under their former token, if what
    /// they were held by was not taken back too. A lock that was upgraded since stays as long as
    /// its upgrade. Repeating it does nothing.
    pub fn roll_back(&self, txn: TxnId, table: TableId, grant: &Grant) {
        let mut left = grant.owner.changes.as_slice();
        self.in_slices(|state| {
            let (rest, some) = left.split_at(left.len().saturating_sub(state.slice.steps()));
            state.undo(txn, table, grant, some);
            left = rest;
            left.is_empty().then_some(())
        });
    }

    /// Releases chosen items, each exactly as it was locked: a row inside a locked range stays
    /// locked. What is not held is passed over. Returns how many went. With a commit timestamp, the
    /// table and everybody in whose way one of them stood learn it (C5).
    pub fn unlock(
        &self,
        txn: TxnId,
        table: TableId,
        items: &[LockItem],
        commit_ts: Option<u64>,
    ) -> usize {
        let (mut left, mut released) = (items, 0);
        self.in_slices(|state| {
            let (some, rest) = left.split_at(left.len().min(state.slice.steps()));
            released += state.unlock(txn, table, some, commit_ts);
            left = rest;
            left.is_empty().then_some(())
        });
        released
    }

    /// Releases everything that a transaction holds on this node, and cancels its waiting call
    /// ([`Cancelled`](crate::ErrorKind::Cancelled)). Returns how many items went. With a commit
    /// timestamp, the tables and everybody in whose way it stood learn it (C5).
    pub fn unlock_all(&self, txn: TxnId, commit_ts: Option<u64>) -> usize {
        let mut released = 0;
        self.in_slices(|state| state.unlock_all(txn, commit_ts, &mut released).then_some(()));
        released
    }

    /// As [`unlock_all`](Self::unlock_all), for a transaction whose owner is gone: it may have
    /// committed at a timestamp that nobody knows, so in the tables where it held locks the history
    /// is known only since `now` (C5).
    pub fn unlock_all_forced(&self, txn: TxnId, now: Time) {
        let mut released = 0;
        self.in_slices(|state| {
            // To repeat it changes nothing.
            state.forget_history(txn, now);
            state.unlock_all(txn, None, &mut released).then_some(())
        });
    }

    /// Ends the waiting call of a transaction with [`Cancelled`](crate::ErrorKind::Cancelled); what
    /// it holds stays.
    pub fn cancel_wait(&self, txn: TxnId) {
        self.with(|state| state.cancel_wait(txn));
    }

    /// Every lock held, in one table or all of them, ordered by table; rows before ranges, in key
    /// order, then by transaction. Made in slices: see [`lock_list`](Self::lock_list).
    pub fn locks(&self, table: Option<TableId>) -> Vec<LockInfo> {
        let mut list = self.lock_list(table);
        std::iter::from_fn(|| list.next_slice(SLICE)).flatten().collect()
    }

    /// Every wait, ordered by table, then in queue order. Of those ahead in the queue, the nearest
    /// are named: they wait for the others. Made in slices: see [`wait_list`](Self::wait_list).
    pub fn waits(&self, table: Option<TableId>) -> Vec<WaitInfo> {
        let mut list = self.wait_list(table);
        std::iter::from_fn(|| list.next_slice(SLICE)).flatten().collect()
    }

    /// The locks held, in one table or all of them, slice by slice.
    pub fn lock_list(&self, table: Option<TableId>) -> LockList {
        LockList::new(self.clone(), table)
    }

    /// The waits, of one table or all of them, slice by slice.
    pub fn wait_list(&self, table: Option<TableId>) -> WaitList {
        WaitList::new(self.clone(), table)
    }

    /// What the call of a transaction waits for now; `None` if it has no call that waits.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn obstacle(&self, txn: TxnId) -> Option<CallObstacle> {
        self.with(|state| state.obstacle(txn))
    }

    /// How many rows and ranges a transaction holds on this node.
    pub fn held(&self, txn: TxnId) -> usize {
        self.with(|state| state.txns.get(&txn).map_or(0, |txn| txn.count))
    }
}

impl fmt::Debug for LockEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockEngine").finish_non_exhaustive()
    }
}

/// A call for locks. Resolves to the grant, or to why there is none.
///
/// # Cancel safety
/// Dropping it withdraws its claim, or takes back a grant that it has not handed out yet; either
/// way those behind it go on.
///
/// There is one linearisation point, the engine's mutex. A grant is written into the state under
/// it, by whoever released the lock; from then on the transaction holds the items. `poll` takes the
/// outcome out under it; `drop` looks, under it, whether the call still waits (then it leaves the
/// queue) or was granted (then it is so no more). So exactly one of the two happens, and no
/// interleaving loses a lock or a wake-up. What a dropped call had taken is given back before
/// `drop` returns, under further holds of the mutex if that is much.
#[must_use = "dropping a call cancels it"]
pub struct LockCall {
    engine: LockEngine,
    txn: TxnId,
    stage: Stage,
}

#[allow(
    clippy::large_enum_variant,
    reason = "the grant is the common case and must not cost an allocation"
)]
enum Stage {
    /// Over before it was polled.
    Ready(Result<Grant>),
    /// Its outcome will be in the state.
    Kept(CallId),
    /// Its outcome was handed out.
    Over,
}

impl LockCall {
    /// Who stands in its way now: the first one found, with the names left empty. `None` if it does
    /// not wait for a lock.
    pub fn blocker(&self) -> Option<Blocker> {
        match self.stage {
            Stage::Kept(id) => self.engine.with(|state| state.blocker(id)),
            Stage::Ready(_) | Stage::Over => None,
        }
    }
}

impl Future for LockCall {
    type Output = Result<Grant>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Ready(outcome) => Poll::Ready(outcome),
            Stage::Kept(id) => {
                // Under one lock: either the outcome is there, or the waker is, before anyone can
                // write the outcome. A call between two slices goes on here: whoever polls is told
                // at once what is to be had at once.
                let outcome = self.engine.in_slices(|state| {
                    if state.is_unfinished_after_a_slice(id) {
                        return None;
                    }
                    let outcome = state.take_outcome(id);
                    if outcome.is_none() {
                        let waker = &mut state.calls[id].waker;
                        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                            *waker = Some(context.waker().clone());
                        }
                    }
                    Some(outcome)
                });
                match outcome.flatten() {
                    Some(outcome) => Poll::Ready(outcome),
                    None => {
                        self.stage = Stage::Kept(id);
                        Poll::Pending
                    }
                }
            }
            Stage::Over => Poll::Pending,
        }
    }
}

impl Drop for LockCall {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Ready(Ok(grant)) => self.engine.roll_back(self.txn, grant.bind.id, &grant),
            Stage::Kept(id) => {
                self.engine.in_slices(|state| state.abandon(id).then_some(()));
            }
            Stage::Ready(Err(_)) | Stage::Over => {}
        }
    }
}

impl fmt::Debug for LockCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Ready(_) => "ready",
            Stage::Kept(_) => "in flight",
            Stage::Over => "over",
        };
        f.debug_struct("LockCall")
            .field("txn", &self.txn)
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
