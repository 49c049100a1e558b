//! The stop of a leader: which promises it waits for, and when it may give the leadership up.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::allocator::leader::LocalAllocator;
use crate::allocator::leader::writer::Command;
use crate::allocator::state::{AllocatorState, stopping};
use crate::clock::Time;
use crate::env::JoinHandle;
use crate::error::Result;
use crate::sync::atomic::Ordering;

/// The time for which a stop waits for a write in flight.
const STORE_GRACE: Duration = Duration::from_secs(5);

/// Between two looks at promises that a stop waits for.
const PROMISES_POLL: Duration = Duration::from_millis(5);

/// The result of [`LocalAllocator::shutdown`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocatorStopped {
    /// True if the leadership was given up durably: the next start waits for nothing.
    pub resigned: bool,
}

impl LocalAllocator {
    /// Stops: admits nothing more, waits up to `grace` for commits in flight, and gives the
    /// leadership up durably if that is safe.
    ///
    /// For an exclusive store `quiet` is the caller's word that nothing of its own services is in
    /// use (P5), and no promise of an incarnation that did not resign may still hold; without it,
    /// there is no wait. A shared store's next leader takes every live incarnation as renewed (B4),
    /// so that only commits are waited for. Both tasks have ended when it returns.
    ///
    /// # Errors
    /// The error of the store that refuses the resignation: then the next start waits as after a
    /// crash.
    ///
    /// # Cancel safety
    /// Not cancel safe in this sense: dropped half way, the allocator may be left stopping; call it
    /// again.
    pub async fn shutdown(&self, quiet: bool, grace: Duration) -> Result<AllocatorStopped> {
        let outcome = match self.shared.state.get() {
            Some(state) => self.give_up_leadership(state, quiet, grace).await,
            None => Ok(AllocatorStopped { resigned: false }),
        };
        let tasks = self.tasks.lock().take();
        if let Some((writer, sweep)) = tasks {
            self.end_tasks(writer, sweep).await;
        }
        outcome
    }

    /// Admits nothing more, and resigns if no promise holds by the end of `grace`.
    async fn give_up_leadership(
        &self,
        state: &AllocatorState,
        quiet: bool,
        grace: Duration,
    ) -> Result<AllocatorStopped> {
        // ORDERING: Release, the partner of the acquire in `start_incarnation`. The fences below
        // are what keeps commits out; this only makes errors clear.
        state.admitting.store(false, Ordering::Release);
        state.services.for_each(|_, service| service.commits.fence());
        let give_up = self.shared.env.now() + grace;
        let may_resign = quiet || !state.exclusive;
        if !may_resign || self.wait_for_promises(state, give_up).await {
            return Ok(AllocatorStopped { resigned: false });
        }
        // A store that is away must not hold up the stop: the writer may wait for the outcome of a
        // write for as long as that lasts (L2).
        match self.shared.env.timeout(STORE_GRACE, self.resign()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Callers that wait for the writer get an error, and a resignation that lands yet
                // is one of a leader whose calls all fail.
                state.leadership.end();
                Ok(AllocatorStopped { resigned: false })
            }
        }
    }

    /// Ends the writer and the sweep. A store that is away holds them up only for so long.
    async fn end_tasks(&self, writer: JoinHandle<()>, sweep: JoinHandle<()>) {
        // The batches of the sweep stay queued.
        sweep.abort();
        if self.shared.state.get().is_none() {
            writer.abort();
        }
        let writer_stop = writer.abort_handle();
        let stop = async {
            // Fails only if the writer has ended already; so does a join of a task that was
            // aborted.
            drop(self.shared.queue.send(Command::Stop).await);
            drop(writer.await);
        };
        // A write of unknown outcome lands under this epoch or never (L2).
        if self.shared.env.timeout(STORE_GRACE, stop).await.is_err() {
            writer_stop.abort();
        }
        drop(sweep.await);
    }

    /// Gives the leadership up, once everything that is queued was written.
    async fn resign(&self) -> Result<AllocatorStopped> {
        let (done, response) = oneshot::channel();
        match self.shared.queue.send(Command::Resign { done }).await {
            Ok(()) => response
                .await
                .unwrap_or_else(|_| Err(stopping()))
                .map(|()| AllocatorStopped { resigned: true }),
            // Stopped before.
            Err(_) => Ok(AllocatorStopped { resigned: false }),
        }
    }

    /// True if a promise still holds when `give_up` comes.
    async fn wait_for_promises(&self, state: &AllocatorState, give_up: Time) -> bool {
        loop {
            let now = self.shared.env.now();
            let mut until: Option<Time> = None;
            state.services.for_each(|_, service| {
                until = until.max(service.commits.in_flight_until(now));
                let left = service.lease.get().reassigned_in(service.ttl, now);
                if state.exclusive && !left.is_zero() {
                    until = until.max(Some(now + left));
                }
            });
            match until {
                None => return false,
                Some(_) if now >= give_up => return true,
                // Polled: a commit that finishes must not pay for waking a stop.
                Some(until) => {
                    self.shared
                        .env
                        .sleep(until.min(give_up).remaining(now).min(PROMISES_POLL))
                        .await
                }
            }
        }
    }
}
