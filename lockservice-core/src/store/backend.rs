//! [`BindStore`]: what a backend does.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::{Applied, Batch, Candidate, Head, Leadership, Renewal, StoreState, WriteAck};
use crate::env::Env;
use crate::error::Result;
use crate::id::{Epoch, WriteNumber};

/// The durable state of an allocator, on RocksDB, PostgreSQL, Redis, in a file or in memory: what a
/// backend implements, as little as possible.
///
/// # Contract
/// 1. **Atomic and durable.** A [`write`](Self::write) that returned `Ok` is there, whole, after
///    any crash; one that failed with anything but
///    [`ErrorKind::UnknownOutcome`](crate::ErrorKind::UnknownOutcome) is not there, not even in
///    part.
/// 2. **Fenced** (L2). A write names the epoch of a leadership and fails with
///    [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) if that is not the current one, checked in
///    the same transaction as the write itself.
/// 3. **Numbered** (L2). A write carries a number one above the last applied, and the store refuses
///    any other with [`ErrorKind::Fenced`](crate::ErrorKind::Fenced), so that a delayed duplicate
///    cannot land late.
/// 4. **One leader** (L1). [`acquire_leadership`](Self::acquire_leadership) is a compare-and-set;
///    epochs only grow, and grow past the candidate's floor (L4). A store that one process opens
///    exclusively *is* the leadership while it is open.
/// 5. **One line of history** (L4). Every response of a store that can go back in time names its
///    [`Lineage`](super::Lineage); a store that cannot names the empty one.
/// 6. **Bounded.** Every method may be called from any thread at any time, and ends within a
///    bounded time, with `Unavailable` or `UnknownOutcome`.
///
/// # Cancel safety
/// Every method may be dropped at any await; a write, an acquisition or a resignation that was
/// dropped has an unknown outcome.
///
/// # Minimal implementation
/// Everything but [`head`](Self::head) and [`wait_for_change`](Self::wait_for_change). [`Head`]
/// decides a change of leadership; a backend stores a head, and compares its epoch and number
/// atomically with each write. Run `testing::store_suite` (feature `testing`) against it.
#[async_trait]
pub trait BindStore: fmt::Debug + Send + Sync + 'static {
    /// The URL of this store without secrets, for messages to operators.
    fn describe(&self) -> String;

    /// Reads everything. Called once by a new leader. It can be a million records: to decode them
    /// it lets other tasks run by [`Turns`](super::Turns), or does it on a blocking thread.
    ///
    /// # Errors
    /// - `StoreCorrupt`, `StoreNewer`: this version cannot read the content; nothing is changed. An
    ///   operator must help.
    /// - `Unavailable`: the store does not respond; load again.
    async fn load(&self) -> Result<StoreState>;

    /// Requests a leadership that lasts `ttl` without a renewal; decided by
    /// [`Head::acquire_shared`], or for an exclusive store by
    /// [`ExclusiveStore`](super::ExclusiveStore).
    ///
    /// A shared store gives it if one of these holds (L1), in this order:
    ///
    /// | the store | the candidate | gets |
    /// |---|---|---|
    /// | its leader is the candidate, by its nonce, on the same copy | any | it |
    /// | any other | is [elected](Candidate::elected): it leads already | [`Leadership::Held`] |
    /// | its leader resigned, on the same copy | any | it |
    /// | any other | has [seen](Candidate::seen) exactly this for hi(the leader's TTL) | it |
    /// | any other | any other | [`Leadership::Held`] |
    ///
    /// The new epoch is
    /// - above the stored one, above `candidate.floor`, and above a floor of the backend's own
    ///   where it has one (L4);
    /// - durable before this returns;
    /// - not numbered: the number of the last applied write stays.
    ///
    /// # Errors
    /// - `UnknownOutcome`: try again with the same nonce.
    /// - `Unavailable`: the store does not respond; nothing has changed.
    /// - `Fenced`: another process may use the path of an exclusive store now. So it is here and in
    ///   every other method: this process never leads the store again.
    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership>;

    /// Raises the leader's counter. An exclusive store has nothing to renew and only checks the
    /// epoch.
    ///
    /// # Errors
    /// - `Fenced` if `epoch` is no longer current: stop leading.
    /// - `Unavailable`, `UnknownOutcome`: renew again. The promise counts from before the renewal
    ///   that succeeded.
    async fn renew(&self, epoch: Epoch) -> Result<Renewal>;

    /// Gives the leadership up, durably: the next candidate need not wait, and an exclusive store
    /// remembers that it was closed cleanly. Only to be called when no commit is in flight and
    /// no call of the leader succeeds any more (L1).
    ///
    /// # Errors
    /// `Fenced` if `epoch` is no longer current. After any other error another node waits for
    /// hi(TTL).
    async fn resign(&self, epoch: Epoch) -> Result<()>;

    /// Applies `batch` as one atomic, durable write.
    ///
    /// # Errors
    /// - `Fenced`: wrong epoch or number. Stop leading.
    /// - `StoreUnusable`: disk full, read-only; certainly not applied. An operator must help.
    /// - `Unavailable`: certainly not applied. Write again.
    /// - `UnknownOutcome`: call [`applied`](Self::applied) before the next write.
    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck>;

    /// The last write of the store, to resolve an unknown outcome (L2). The epoch shows whether it
    /// can still be the caller's.
    ///
    /// # Errors
    /// `Unavailable`: try again.
    async fn applied(&self) -> Result<Applied>;

    /// The leadership as it is recorded, for operators; changes nothing. `None` if there was never
    /// one. The default knows only the result of [`applied`](Self::applied), which names no leader.
    ///
    /// # Errors
    /// As [`applied`](Self::applied).
    async fn head(&self) -> Result<Option<Head>> {
        let Applied { epoch, number, lineage } = self.applied().await?;
        Ok((epoch > Epoch::default()).then(|| Head {
            epoch,
            applied: number,
            lineage,
            ..Head::default()
        }))
    }

    /// Waits until the leadership may have changed, at most `poll`. The default only lets that time
    /// pass.
    ///
    /// # Errors
    /// Any error only means that the store does not know: poll again.
    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        // A store has no node's timers; a poll decides nothing.
        Env::system().sleep(poll).await;
        Ok(())
    }
}
