//! Tasks and timers of a model that shuttle runs, in place of tokio's.
//!
//! Each task is one of shuttle's, so that its steps come in any order with those of the model's
//! threads. What blocks nobody stays tokio's: channels, notifications, asynchronous mutexes.
//!
//! Time passes when the model moves its clock and calls [`Env::fire_timers`]. So a model that never
//! does has no timers to wait for, and a lost wake-up shows as a deadlock.
//!
//! A task that shuttle aborts goes on; here it ends at its next wait, as one of tokio's does.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::Env;

/// A running task. Dropping it lets the task go on.
#[derive(Debug)]
pub struct JoinHandle<T> {
    output: oneshot::Receiver<T>,
    abort: AbortHandle,
    /// Dropped with the task.
    running: Weak<()>,
}

/// The task was aborted.
#[derive(Debug)]
pub struct Aborted;

/// Aborts a task.
#[derive(Debug, Clone, Default)]
pub struct AbortHandle(Arc<Notify>);

impl AbortHandle {
    /// Ends the task at its next wait, or before it begins.
    pub fn abort(&self) {
        self.0.notify_one();
    }
}

impl<T> JoinHandle<T> {
    /// See [`AbortHandle::abort`].
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// True once the task has ended.
    pub fn is_finished(&self) -> bool {
        self.running.strong_count() == 0
    }

    /// What aborts the task.
    pub fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Aborted>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.output).poll(cx).map(|output| output.map_err(|_| Aborted))
    }
}

pub(super) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let (done, output) = oneshot::channel();
    let abort = AbortHandle::default();
    let aborted = Arc::clone(&abort.0);
    let runs = Arc::new(());
    let running = Arc::downgrade(&runs);
    // Dropped, the handle of shuttle makes it a task that a model need not wait for.
    drop(shuttle::future::spawn(async move {
        let _runs = runs;
        tokio::select! {
            biased;
            () = aborted.notified() => {}
            output = task => drop(done.send(output)),
        }
    }));
    JoinHandle { output, abort, running }
}

/// Tasks that end when this is dropped.
#[derive(Debug)]
pub(crate) struct JoinSet<T>(Vec<JoinHandle<T>>);

impl<T: Send + 'static> JoinSet<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn spawn(&mut self, task: impl Future<Output = T> + Send + 'static) {
        self.0.push(spawn(task));
    }

    /// The output of the task that was spawned last.
    pub(crate) async fn join_next(&mut self) -> Option<Result<T, Aborted>> {
        let output = self.0.last_mut()?.await;
        self.0.pop();
        Some(output)
    }
}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// The runtime of a model: there is one.
#[derive(Debug)]
pub(crate) struct Handle;

/// See [`Handle::enter`].
pub(crate) struct Entered;

impl Handle {
    pub(crate) fn current() -> Self {
        Self
    }

    /// Nothing: every thread of a model can spawn tasks.
    pub(crate) fn enter(&self) -> Entered {
        Entered
    }
}

/// The timers of a node wait for the next call of [`Env::fire_timers`].
#[derive(Debug, Clone, Default)]
pub(super) struct Timers(Arc<Notify>);

/// A timer has fired first.
#[derive(Debug)]
pub struct Elapsed;

impl Env {
    /// Wakes every timer whose time has come by the clock of the node.
    pub fn fire_timers(&self) {
        self.timers.0.notify_waiters();
    }

    /// Wakes when the clock of the node shows `duration` more and the timers were fired.
    pub async fn sleep(&self, duration: Duration) {
        let until = self.now() + duration;
        loop {
            let mut fired = pin!(self.timers.0.notified());
            // Registered before the clock is read, so that no call in between is missed.
            fired.as_mut().enable();
            if self.now() >= until {
                return;
            }
            fired.await;
        }
    }

    /// As `sleep`, beside `future`, whose output counts if both are ready.
    ///
    /// # Errors
    /// `Elapsed` if the timer fired first.
    pub async fn timeout<F: Future>(
        &self,
        duration: Duration,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        tokio::select! {
            biased;
            output = future => Ok(output),
            () = self.sleep(duration) => Err(Elapsed),
        }
    }
}
