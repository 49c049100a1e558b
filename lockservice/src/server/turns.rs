//! [`Turns`]: the share of the processor that the tasks of one client get.
//!
//! A runtime takes the tasks that are ready in the order in which they became so. A client with
//! thousands of calls and streams would have thousands of tasks in that queue, and every other
//! client would wait for all of them. So the tasks of one client take turns: few of them at a time
//! are in the queue, and one worker is always left to others. The turns of a client come in the
//! order in which its tasks became ready. A task gives its turn up whenever it waits or yields.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of one client. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Turns {
    /// Must be called within a tokio runtime.
    pub(super) fn new() -> Self {
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        Self(Arc::new(Semaphore::new(workers.saturating_sub(1).max(1))))
    }

    /// `future`, each poll of which is a turn.
    pub(super) fn run<F: Future + Unpin>(&self, future: F) -> InTurn<F> {
        InTurn { future, turns: Arc::clone(&self.0), turn: None }
    }
}

/// A future that is polled in the turns of its client.
pub(super) struct InTurn<F> {
    future: F,
    turns: Arc<Semaphore>,
    /// The wait for a turn; `None` if it does not wait.
    turn: Option<Waiting>,
}

type Waiting = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, turns, turn } = &mut *self;
        if turn.is_none() {
            // The usual case needs no memory. If another task waits already, there is no permit.
            if let Ok(_turn) = turns.try_acquire() {
                return Pin::new(future).poll(cx);
            }
            let turns = Arc::clone(turns);
            *turn = Some(Box::pin(async move { turns.acquire_owned().await.ok() }));
        }
        if let Some(waiting) = turn {
            // `None` if there are no turns any more: nothing closes the semaphore.
            let _turn = ready!(waiting.as_mut().poll(cx));
            *turn = None;
            return Pin::new(future).poll(cx);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts how often it was polled, and is ready at the last of so many polls.
    struct Steps<'a> {
        left: usize,
        steps: &'a AtomicUsize,
    }

    impl Future for Steps<'_> {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.steps.fetch_add(1, Ordering::Relaxed);
            self.left -= 1;
            if self.left == 0 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_task_without_a_turn_is_not_polled_and_comes_next() {
        let (turns, steps) = (Turns::new(), AtomicUsize::new(0));
        let taken = Arc::clone(&turns.0).acquire_owned().await.expect("it is open");
        let mut task = tokio_test_poll(turns.run(Steps { left: 2, steps: &steps }));
        assert!(task.poll_once().is_pending());
        assert_eq!(steps.load(Ordering::Relaxed), 0, "another task has the turn");
        drop(taken);
        assert!(turns.0.try_acquire().is_err(), "the turn is that of the task that waits");
        assert!(task.poll_once().is_pending());
        assert_eq!(steps.load(Ordering::Relaxed), 1);
        assert!(turns.0.try_acquire().is_ok(), "a task that yields gives its turn up");
        assert!(task.poll_once().is_ready());
        assert_eq!(steps.load(Ordering::Relaxed), 2);
    }

    struct Polled<F>(Pin<Box<F>>);

    fn tokio_test_poll<F: Future>(future: F) -> Polled<F> {
        Polled(Box::pin(future))
    }

    impl<F: Future> Polled<F> {
        fn poll_once(&mut self) -> Poll<F::Output> {
            self.0.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()))
        }
    }
}
