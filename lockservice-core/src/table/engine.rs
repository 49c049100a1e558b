//! The engine as its users see it: a shell around the pure [`EngineState`], which adds one mutex
//! and the wakers.

use std::fmt;
use std::task::Waker;

use super::call::{Arrival, put_in_order};
use super::lock_call::LockCall;
use super::memory::held_bytes;
use super::slices::{STEPS, Slice};
use super::state::{EngineState, Started};
use super::steps::Hold;
use super::types::{CallObstacle, EngineSettings, Grant, LockRequest};
use super::uncontended::{TableHandle, TablePlaces, TxnHandle};
use crate::bind::{Bind, TokenBlock};
use crate::clock::{Clock, Time};
use crate::error::{Error, Result};
use crate::id::{BindVersion, TableId, TxnId};
use crate::key::LockItem;
use crate::sync::{Arc, Mutex, unlock_fair};

/// Every lock table that a node owns, in memory. A cheap handle: clones share the tables.
///
/// No method waits or blocks; only the future of a [`LockCall`] does. The [module](super) explains
/// how it works.
///
/// ```
/// use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
/// use lockservice_core::clock::Time;
/// use lockservice_core::table::{EngineSettings, LockEngine, LockRequest, TxnHandle, WaitPolicy};
/// use lockservice_core::{
///     BindVersion, FencingToken, Key, LockItem, LockMode, ServiceId, TableId, TableRef, TxnId,
///     TxnNumber,
/// };
///
/// # fn main() -> lockservice_core::Result<()> {
/// let engine = LockEngine::new(EngineSettings::default());
/// let bind = Bind {
///     table: TableRef::new("shop", "orders")?,
///     id: TableId::new(1),
///     partition: 0,
///     owner: ServiceId::new(1),
///     version: BindVersion::new(1),
///     slot: BindSlot::NONE,
/// };
/// let tokens = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1_000) };
/// let orders = engine.install(bind, Some(tokens), None)?;
/// let begin = |number| {
///     TxnHandle::new(TxnId::new(ServiceId::new(1), TxnNumber::new(number), false))
/// };
/// let (one, two) = (begin(1), begin(2));
///
/// let key = Key::new("order 7")?;
/// let first = engine.lock_row(&one, &orders, &key, LockMode::Exclusive).expect("it is free");
///
/// // It is not free any more: the general way waits for it.
/// assert_eq!(engine.lock_row(&two, &orders, &key, LockMode::Exclusive), None);
/// let request = LockRequest {
///     table: orders.bind().id,
///     version: orders.bind().version,
///     items: vec![LockItem::Row(key)],
///     mode: LockMode::Exclusive,
///     wait: WaitPolicy::Wait,
///     escalate: false,
/// };
/// let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
/// runtime.block_on(async {
///     let waiting = engine.lock(&two, request, Time::ZERO);
///     assert_eq!(waiting.blocker().expect("it waits").txn, one.id());
///     engine.unlock_all(&one, None);
///     let second = waiting.await?;
///     assert!(second.token > first.token);
///     engine.unlock_all(&two, None);
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone)]
pub struct LockEngine(Arc<Shell>);

struct Shell {
    items_per_request_max: usize,
    txn_lock_bytes_max: usize,
    /// The rows of all tables. The state shares them.
    places: Arc<TablePlaces>,
    state: Mutex<EngineState>,
    /// Says when a waiting call was granted; `None` if that is not counted.
    clock: Option<Arc<dyn Clock>>,
}

impl LockEngine {
    /// An engine without tables.
    pub fn new(settings: EngineSettings) -> Self {
        Self::sliced(settings, STEPS, None)
    }

    /// Like [`new`](Self::new); each grant to a call that waits says when it was made, by `clock`.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn with_clock(settings: EngineSettings, clock: Arc<dyn Clock>) -> Self {
        Self::sliced(settings, STEPS, Some(clock))
    }

    /// Like [`new`](Self::new), but each hold of the mutex ends after `steps` steps. Tests use it
    /// to act between two holds.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_steps_per_hold(settings: EngineSettings, steps: usize) -> Self {
        Self::sliced(settings, steps, None)
    }

    fn sliced(settings: EngineSettings, steps: usize, clock: Option<Arc<dyn Clock>>) -> Self {
        let places = Arc::new(TablePlaces::new());
        let state = EngineState::new(settings, Slice::new(steps), Arc::clone(&places));
        Self(Arc::new(Shell {
            items_per_request_max: settings.items_per_request_max,
            txn_lock_bytes_max: settings.txn_lock_bytes_max,
            places,
            state: Mutex::new(state),
            clock,
        }))
    }

    pub(super) fn places(&self) -> &TablePlaces {
        &self.0.places
    }

    /// The state, for actions that leave no work pending and wake no task. Every other action uses
    /// [`with`](Self::with).
    pub(super) fn state(&self) -> &Mutex<EngineState> {
        &self.0.state
    }

    pub(super) fn txn_bytes_max(&self) -> usize {
        self.0.txn_lock_bytes_max
    }

    /// Runs `act` on the state under one hold of the mutex, then does the pending work.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut EngineState) -> T) -> T {
        let mut act = Some(act);
        self.in_slices(|state| act.take().map(|act| act(state))).expect("it was not done before")
    }

    /// Runs `act` on the state in slices, each under its own hold of the mutex, until it returns a
    /// result. Then does the pending work, unless another thread does.
    ///
    /// Tasks are woken while the mutex is free: a waker may run anything, also calls of this
    /// engine.
    pub(super) fn in_slices<T>(
        &self,
        mut act: impl FnMut(&mut EngineState) -> Option<T>,
    ) -> Option<T> {
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
            // A thread that finds another one draining leaves the pending work to it.
            let is_over = result.is_some() && (state.is_quiescent() || state.draining && !drains);
            if is_over {
                state.draining &= !drains;
            } else {
                drains |= !std::mem::replace(&mut state.draining, true);
            }
            state.note_made_at(self.0.clock.as_deref());
            let wake = std::mem::take(&mut state.wake);
            drop(hold);
            if is_over {
                drop(state);
            } else {
                unlock_fair(state);
            }
            wake.into_iter().for_each(Waker::wake);
            if is_over {
                return result;
            }
        }
    }

    /// Begins to serve a table at the version of `bind`, without any locks, with its first block of
    /// tokens. An earlier version that is still installed is removed first.
    ///
    /// `history_since` is the time since which the table's history is known; `None` if all of it is
    /// (C5). Each grant carries it. The handle is for [`lock_row`](Self::lock_row) and
    /// [`unlock`](Self::unlock).
    ///
    /// # Errors
    /// | kind | if | the caller must |
    /// |---|---|---|
    /// | [`BindChanged`] | this version, or a later one, was installed before (B5) | bind again |
    /// | [`BindChanged`] | a later version of any table was [removed](Self::remove) | bind again |
    /// | that of [`seal`](Self::seal) | the engine is sealed (B2) | install no more tables |
    ///
    /// [`BindChanged`]: crate::ErrorKind::BindChanged
    pub fn install(
        &self,
        bind: Bind,
        tokens: Option<TokenBlock>,
        history_since: Option<Time>,
    ) -> Result<TableHandle> {
        self.with(|state| state.install(bind, tokens, history_since))
    }

    /// Drops a table with all its locks. Does nothing if another version is installed.
    ///
    /// Its calls fail with [`BindChanged`](crate::ErrorKind::BindChanged): those that wait, and
    /// those that were granted and whose grant was not received yet.
    pub fn remove(&self, table: TableId, version: BindVersion) {
        self.with(|state| state.remove(table, version));
    }

    /// Stops the engine from granting locks (B2). Unlocks still work.
    ///
    /// Every wait and every later [`lock`](Self::lock) fails with `error`, and so does a call whose
    /// grant was not received yet.
    pub fn seal(&self, error: fn() -> Error) {
        self.with(|state| state.seal(error));
    }

    /// Adds a durable block of fencing tokens, and completes the calls that wait for a token. The
    /// part of the block below an earlier one is not used (F1). Does nothing if that version is not
    /// installed.
    pub fn add_tokens(&self, table: TableId, version: BindVersion, block: TokenBlock) {
        self.with(|state| state.add_tokens(table, version, block));
    }

    /// The number of tokens that are left to a table; `None` if that version is not installed.
    pub fn tokens_left(&self, table: TableId, version: BindVersion) -> Option<u64> {
        self.with(|state| {
            state
                .tables
                .get(&table)
                .filter(|table| table.bind.version == version)
                .map(|table| table.tokens.remaining())
        })
    }

    /// Requests locks: all of them or none.
    ///
    /// The call takes free items, or gets its queue position, before this returns. A call that
    /// names many items may take the rest of them when it is polled first. `now` is when the call
    /// was made; lists of waits show it.
    ///
    /// # Errors
    /// The call fails with one of these. Each leaves the locks of the transaction as they were
    /// before.
    ///
    /// | kind | if |
    /// |---|---|
    /// | [`InvalidArgument`] | the request names no item, or too many, or would skip ranges |
    /// | [`InvalidArgument`] | an earlier call of the transaction was not received to its end |
    /// | [`BindChanged`] | the table is not served here at that version |
    /// | [`Conflict`] | it may not wait, and an item is not free |
    /// | [`Unavailable`] | it may not wait, and the table has no fencing token |
    /// | [`Deadlock`] | it was chosen to fail |
    /// | [`Cancelled`] | it was [cancelled](Self::cancel_wait), or its transaction ended |
    /// | [`ResourceExhausted`] | a limit of the [settings](EngineSettings) is reached |
    /// | that of [`seal`](Self::seal) | the engine is sealed |
    ///
    /// The caller corrects the request after `InvalidArgument`, ends the transaction after
    /// `BindChanged`, `Deadlock` and `Cancelled`, and may try again later after the others.
    ///
    /// [`InvalidArgument`]: crate::ErrorKind::InvalidArgument
    /// [`BindChanged`]: crate::ErrorKind::BindChanged
    /// [`Conflict`]: crate::ErrorKind::Conflict
    /// [`Unavailable`]: crate::ErrorKind::Unavailable
    /// [`Deadlock`]: crate::ErrorKind::Deadlock
    /// [`Cancelled`]: crate::ErrorKind::Cancelled
    /// [`ResourceExhausted`]: crate::ErrorKind::ResourceExhausted
    pub fn lock(&self, txn: &TxnHandle, request: LockRequest, now: Time) -> LockCall {
        self.lock_for(txn, request, &[], now)
    }

    /// Like [`lock`](Self::lock), for work on which the transactions `ancestors` wait, such as a
    /// command that one of them started. In the wait graph an ancestor waits for the call while the
    /// call waits.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). Also [`HeldByAncestor`](crate::ErrorKind::HeldByAncestor), at once,
    /// if a lock of an ancestor conflicts: a wait for it could not end. The caller relies on the
    /// lock of the ancestor instead.
    pub fn lock_for(
        &self,
        txn: &TxnHandle,
        request: LockRequest,
        ancestors: &[TxnId],
        now: Time,
    ) -> LockCall {
        self.call(txn, request, ancestors, Arrival::New, now)
    }

    pub(super) fn call(
        &self,
        txn: &TxnHandle,
        mut request: LockRequest,
        ancestors: &[TxnId],
        arrival: Arrival,
        now: Time,
    ) -> LockCall {
        let id = txn.id();
        if let Err(error) = put_in_order(&mut request, self.0.items_per_request_max) {
            return LockCall::over(self, id, Err(error));
        }
        let seq = self.inflate_own(txn, &request.items);
        match self.with(|state| state.lock((id, seq), request, ancestors, arrival, now)) {
            Started::Done(outcome) => LockCall::over(self, id, outcome),
            // The pending work may have ended it. Then nothing needs to be kept.
            Started::Kept(call) => match self.with(|state| state.take_outcome(call)) {
                Some(outcome) => LockCall::over(self, id, outcome.result),
                None => LockCall::kept(self, id, call),
            },
        }
    }

    /// Estimated memory of all locks and waits, in bytes. Collects the credit of all shards.
    #[cfg(any(test, feature = "testing"))]
    pub fn bytes(&self) -> usize {
        self.with(|state| {
            state.collect_credit();
            state.bytes
        })
    }

    /// Rolls back exactly the changes of one call (T2). Calls may be rolled back in any order.
    ///
    /// | the call | after the roll-back |
    /// |---|---|
    /// | locked an item newly | the item is not held |
    /// | upgraded it | it is held in the former mode, under the former token |
    /// | upgraded a hold that was rolled back since | the item is not held |
    /// | locked an item that was upgraded since | the upgrade stays |
    ///
    /// A repetition does nothing.
    pub fn roll_back(&self, txn: &TxnHandle, table: TableId, grant: &Grant) {
        self.roll_back_in_state(txn.id(), table, grant);
        txn.note_released(self.places(), grant.owner.changes.len());
    }

    /// Ends the waiting call of a transaction with [`Cancelled`](crate::ErrorKind::Cancelled). Its
    /// holds stay.
    pub fn cancel_wait(&self, txn: TxnId) {
        self.with(|state| state.cancel_wait(txn));
    }

    /// The number of rows and ranges that a transaction holds.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn lock_count(&self, txn: &TxnHandle) -> usize {
        let in_state = self.with(|state| state.txns.get(&txn.id()).map_or(0, |holds| holds.count));
        txn.uncontended_count(self.places()) + in_state
    }

    /// The memory of the holds of a transaction, in bytes.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn bytes_of(&self, txn: &TxnHandle) -> usize {
        txn.bytes_uncontended() + self.bytes_in_state(txn.id())
    }

    /// The most memory that holds of these items can take, in bytes.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn bytes_for(items: &[LockItem]) -> usize {
        items.iter().map(held_bytes).sum()
    }

    /// When a transaction's call was made that waits for locks of others; `None` if none waits.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn waiting_since(&self, txn: TxnId) -> Option<Time> {
        self.with(|state| {
            let call = state.calls.get(state.txns.get(&txn)?.call?)?;
            call.is_waiting().then_some(call.since)
        })
    }

    /// The obstacle of a transaction's call; `None` if it has no call that waits.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn obstacle(&self, txn: TxnId) -> Option<CallObstacle> {
        self.with(|state| state.obstacle(txn))
    }
}

impl fmt::Debug for LockEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockEngine").finish_non_exhaustive()
    }
}
