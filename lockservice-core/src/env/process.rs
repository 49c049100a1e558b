//! [`Process`]: the life of a simulated process. It can be frozen, as SIGSTOP does, and killed, as
//! SIGKILL does, between any two steps of its tasks.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::task::AbortHandle;

use crate::sync::Mutex;

/// The number of tasks above which those that have ended are forgotten.
const TASKS_MIN: usize = 64;

/// One simulated process: all tasks that were spawned through its [`Env`](super::Env). Clones are
/// the same process.
///
/// A killed process makes no further step. What its tasks own is dropped at the end of the current
/// turn of the runtime, so whoever simulates the world around it cuts it off first: what a
/// destructor does must not reach others.
#[derive(Clone, Default)]
pub struct Process(Arc<Mutex<Life>>);

#[derive(Default)]
struct Life {
    killed: bool,
    frozen: bool,
    /// Polls of tasks that are left until it is killed.
    steps_left: Option<u64>,
    /// Tasks that were to be polled while it was frozen.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// The number of tasks at which those that have ended are forgotten.
    clean_at: usize,
    on_kill: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let life = self.0.lock();
        f.debug_struct("Process")
            .field("killed", &life.killed)
            .field("frozen", &life.frozen)
            .field("steps_left", &life.steps_left)
            .finish_non_exhaustive()
    }
}

/// May a task make a step?
enum Step {
    Yes,
    /// Not now: it is woken later.
    Later,
    Never,
}

impl Process {
    /// Ends every task. What is spawned afterwards never runs.
    pub fn kill(&self) {
        let (tasks, on_kill) = {
            let mut life = self.0.lock();
            life.killed = true;
            (std::mem::take(&mut life.tasks), life.on_kill.take())
        };
        if let Some(on_kill) = on_kill {
            on_kill();
        }
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Kills the process before the step after the next `steps` ones of its tasks; so every wait of
    /// its code is a place where it can end. `None` takes that back.
    pub fn kill_after(&self, steps: Option<u64>) {
        self.0.lock().steps_left = steps;
    }

    /// Calls `act` when the process is killed, before anything of it is dropped. Replaces the one
    /// before.
    pub fn on_kill(&self, act: impl FnOnce() + Send + 'static) {
        self.0.lock().on_kill = Some(Box::new(act));
    }

    /// True once it was killed.
    pub fn is_killed(&self) -> bool {
        self.0.lock().killed
    }

    /// True while it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.0.lock().frozen
    }

    /// Lets none of its tasks make a step until [`thaw`](Self::thaw). Time goes on for its clock.
    pub fn freeze(&self) {
        self.0.lock().frozen = true;
    }

    /// Goes on after a freeze.
    pub fn thaw(&self) {
        let waiting = {
            let mut life = self.0.lock();
            life.frozen = false;
            std::mem::take(&mut life.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// `task` as a part of this process.
    pub(super) fn own<F: Future>(&self, task: F) -> Owned<F> {
        Owned { process: self.clone(), task: Box::pin(task) }
    }

    /// Remembers a task that was spawned, so that it can be ended.
    pub(super) fn keep(&self, task: AbortHandle) {
        let mut life = self.0.lock();
        if life.killed {
            drop(life);
            task.abort();
            return;
        }
        if life.tasks.len() >= life.clean_at.max(TASKS_MIN) {
            life.tasks.retain(|task| !task.is_finished());
            life.clean_at = 2 * life.tasks.len();
        }
        life.tasks.push(task);
    }

    fn step(&self, cx: &Context<'_>) -> Step {
        let mut life = self.0.lock();
        if life.killed {
            return Step::Never;
        }
        if life.frozen {
            life.waiting.push(cx.waker().clone());
            return Step::Later;
        }
        match &mut life.steps_left {
            None => return Step::Yes,
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                return Step::Yes;
            }
        }
        drop(life);
        self.kill();
        Step::Never
    }
}

/// A task of a process.
pub(super) struct Owned<F> {
    process: Process,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Owned<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.process.step(cx) {
            Step::Yes => self.task.as_mut().poll(cx),
            Step::Later | Step::Never => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::super::{ClockRate, Env};
    use crate::testing::TokioClock;

    /// A task that counts its steps, one in each millisecond.
    fn counting(env: &Env) -> super::Arc<AtomicU64> {
        let steps = super::Arc::<AtomicU64>::default();
        let (counted, timer) = (super::Arc::clone(&steps), env.clone());
        env.spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                timer.sleep(Duration::from_millis(1)).await;
            }
        });
        steps
    }

    fn env() -> Env {
        Env::simulated(super::Arc::new(TokioClock::new()), 1, ClockRate::EXACT)
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_process_makes_no_step_and_goes_on_when_it_is_thawed() {
        let env = env();
        let process = env.process().expect("it is simulated").clone();
        let steps = counting(&env);
        tokio::time::sleep(Duration::from_millis(10)).await;
        process.freeze();
        let before = steps.load(Ordering::Relaxed);
        assert!(before >= 9, "{before}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(steps.load(Ordering::Relaxed), before);
        process.thaw();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(steps.load(Ordering::Relaxed) > before + 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_process_makes_no_step_and_drops_what_it_had() {
        let env = env();
        let process = env.process().expect("it is simulated").clone();
        let steps = counting(&env);
        process.kill_after(Some(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(process.is_killed());
        assert_eq!(steps.load(Ordering::Relaxed), 5);
        assert_eq!(super::Arc::strong_count(&steps), 1, "the task was dropped");
        let late = counting(&env);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(late.load(Ordering::Relaxed), 0, "nothing runs in a dead process");
        assert_eq!(super::Arc::strong_count(&late), 1);
    }
}
