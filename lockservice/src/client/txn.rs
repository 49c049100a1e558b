//! [`Txn`]: what holds locks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lockservice_core::allocator::Bind;
use lockservice_core::clock::Time;
use lockservice_core::service::{Granted, LockSpec, TxnOptions};
use lockservice_core::table::{Grant, WaitPolicy};
use lockservice_core::{Error, ErrorKind, FencingToken, LockItem, Result, TableRef, TxnId};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::outbox::{Begun, CallId};
use super::session::Handle;
use crate::convert::{items_to_proto, lock_spec_to_proto};
use crate::proto;

/// How long past its deadline a call listens for the server's own answer: one that time is up says who stood in the way, one that the lock
/// was granted in time is as good as any.
const ANSWER_GRACE: Duration = Duration::from_millis(100);

/// A transaction of a session. Dropping it ends it.
#[derive(Debug)]
#[must_use = "a transaction that is dropped has ended"]
pub struct Txn {
    handle: Arc<Handle>,
    begun: Begun,
    id: Mutex<Option<TxnId>>,
    ended: bool,
}

impl Txn {
    pub(super) fn new(handle: Arc<Handle>, options: TxnOptions) -> Self {
        Self { handle, begun: Begun::new(options), id: Mutex::new(None), ended: false }
    }

    /// Locks all items of `spec`, or none.
    ///
    /// The time-out counts from this call, over everything that it waits for: a place among the calls that the server allows under way, a
    /// connection, the locks. Only the server's own word that time is up, which says more, may take a tenth of a second longer.
    ///
    /// # Errors
    /// `Conflict`, `Timeout`: not to be had now. `Deadlock`, `BindChanged`, `TxnNotFound`: end this transaction and start anew.
    /// `SessionLost`, `LeaseLost`, `ShuttingDown`: stop the protected work. `Rebinding`: the table's last owner may still be at
    /// work; try again after the time given. `InvalidArgument`, `ResourceExhausted`: ask for something else, or less.
    ///
    /// # Cancel safety
    /// Dropping the call takes the request back: nothing that it asked for may be relied on, whether it was granted in that moment
    /// or not, and everything that it added is released. What the transaction held before stays.
    pub async fn lock(&self, spec: LockSpec) -> Result<Grant> {
        let shared = &self.handle.shared;
        shared.check()?;
        // Two bytes and a key's first: not worth encoding if even that is too much.
        if spec.items.len().saturating_mul(3) > shared.info.message_bytes_max {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "too many keys in one request: lock fewer at a time, or a range that covers them",
            )
            .with("keys", spec.items.len()));
        }
        let deadline = spec.timeout.map(|timeout| shared.client.clock().now() + timeout);
        let permit = self.permit(spec.wait, deadline).await?;
        // It may have been waited for.
        shared.check()?;
        let (call, answer) = shared.outbox.lock(&self.begun, lock_spec_to_proto(&spec), deadline, permit)?;
        let mut call = Call { txn: self, call: Some(call), answer };
        let result = tokio::select! {
            biased;
            answer = &mut call.answer => answer.unwrap_or_else(|_| Err(shared.why_lost())),
            // `call` is still armed: the request is taken back, wherever it is.
            () = shared.past(deadline.map(|deadline| deadline + ANSWER_GRACE)) => {
                return Err(timed_out("the server did not answer within the time-out of the lock: try again, or allow more time"));
            }
        };
        if result.is_ok() {
            // P2: decided by the clock at this moment, for the answer may have lain here for long. Fails with `call` still armed, so
            // that the grant is given back.
            shared.check()?;
        }
        call.settle();
        let granted = result?;
        *self.id.lock() = Some(granted.txn);
        Ok(granted.grant)
    }

    /// A place among the calls that the server allows under way.
    async fn permit(&self, wait: WaitPolicy, deadline: Option<Time>) -> Result<OwnedSemaphorePermit> {
        const FULL: &str = "as many calls are under way in this session as the server allows";
        let shared = &self.handle.shared;
        if let Ok(permit) = Arc::clone(&shared.locks).try_acquire_owned() {
            return Ok(permit);
        }
        if wait == WaitPolicy::NoWait {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!("{FULL}: wait for answers, or open another session"),
            ));
        }
        let mut lost = shared.lost.subscribe();
        tokio::select! {
            biased;
            permit = Arc::clone(&shared.locks).acquire_owned() => permit.map_err(|_| shared.why_lost()),
            // Nobody may come back to give one up.
            _ = lost.wait_for(Option::is_some) => Err(shared.why_lost()),
            () = shared.past(deadline) => {
                Err(timed_out(&format!("{FULL}, and none ended within the time-out: try again, or allow more time")))
            }
        }
    }

    /// Releases chosen items, exactly as they were locked; those not held are ignored.
    ///
    /// # Cancel safety
    /// The release is sent when this is called; waiting for the answer is optional.
    pub fn unlock(&self, table: &TableRef, items: &[LockItem]) -> Ended {
        let (rows, ranges) = items_to_proto(items);
        let op = proto::UnlockOp {
            group: table.group.to_string(),
            table: table.name.to_string(),
            rows,
            ranges,
            ..proto::UnlockOp::default()
        };
        match self.handle.shared.outbox.unlock(&self.begun, op) {
            Ok(answer) => Ended::waiting(&self.handle, answer),
            Err(e) => Ended(EndedState::Ready(Some(Err(e)))),
        }
    }

    /// Ends the transaction and releases everything it holds; `commit_ts` is its commit's timestamp, if it committed (C5).
    ///
    /// The release is sent when this is called; waiting for the answer is optional.
    pub fn end(mut self, commit_ts: Option<u64>) -> Ended {
        self.ended = true;
        match self.handle.shared.outbox.end(&self.begun, commit_ts) {
            Some(answer) => Ended::waiting(&self.handle, answer),
            None => Ended(EndedState::Ready(Some(Ok(())))),
        }
    }

    /// The transaction's id, known once a lock was granted.
    pub fn id(&self) -> Option<TxnId> {
        *self.id.lock()
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if !self.ended {
            // Nobody waits for the answer.
            drop(self.handle.shared.outbox.end(&self.begun, None));
        }
    }
}

fn timed_out(message: &str) -> Error {
    Error::new(ErrorKind::Timeout, message)
}

/// A lock call under way: taken back if it is dropped before its answer was taken.
struct Call<'a> {
    txn: &'a Txn,
    call: Option<CallId>,
    answer: oneshot::Receiver<Result<Granted>>,
}

impl Call<'_> {
    fn settle(&mut self) {
        if let Some(call) = self.call.take() {
            self.txn.handle.shared.outbox.settle(call);
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            self.txn.handle.shared.outbox.undo(call);
        }
    }
}

/// The acknowledgement of a release that was sent. It may be ignored.
#[derive(Debug)]
pub struct Ended(EndedState);

#[derive(Debug)]
enum EndedState {
    Ready(Option<Result<()>>),
    Waiting(Arc<Handle>, oneshot::Receiver<Result<()>>),
}

impl Ended {
    fn waiting(handle: &Arc<Handle>, answer: oneshot::Receiver<Result<()>>) -> Self {
        Self(EndedState::Waiting(Arc::clone(handle), answer))
    }
}

impl Future for Ended {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            EndedState::Ready(result) => Poll::Ready(result.take().unwrap_or(Ok(()))),
            EndedState::Waiting(handle, answer) => {
                let result = ready!(Pin::new(answer).poll(cx));
                Poll::Ready(result.unwrap_or_else(|_| Err(handle.shared.why_lost())))
            }
        }
    }
}

/// Locks held by a transaction of their own. Dropping it releases them.
#[derive(Debug)]
#[must_use = "locks are released when the guard is dropped"]
pub struct LockGuard {
    txn: Txn,
    grant: Grant,
}

impl LockGuard {
    pub(super) fn new(txn: Txn, grant: Grant) -> Self {
        Self { txn, grant }
    }

    /// The fencing token (F1): present it with every write that the lock protects.
    pub fn token(&self) -> FencingToken {
        self.grant.token
    }

    /// The bind on which the locks were granted, to be presented at a commit.
    pub fn bind(&self) -> &Bind {
        &self.grant.bind
    }

    /// Everything that the server said.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The transaction that holds the locks.
    pub fn txn(&self) -> &Txn {
        &self.txn
    }

    /// Releases the locks. Sent at once; waiting for the answer is optional.
    pub fn unlock(self) -> Ended {
        self.txn.end(None)
    }
}
