//! Clocks for tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use crate::clock::{Clock, Time};

/// A clock that stands still until a test advances it. Clones show the same time.
// Partners: `advance` adds, `now` loads.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that shows one hour: early enough to add to, late enough to have a past.
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(3_600_000_000_000)))
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).expect("a test does not wait for centuries");
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time::from_origin(Duration::from_nanos(self.0.load(Ordering::SeqCst)))
    }
}

/// The time of tokio's clock, so that paused tokio time (`start_paused`) drives timers and
/// decisions alike.
#[derive(Debug, Clone, Copy)]
pub struct TokioClock(tokio::time::Instant);

impl TokioClock {
    /// A clock whose origin is one hour before now. Clocks made at different times do not agree:
    /// clone one.
    pub fn new() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Time {
        Time::from_origin(Duration::from_secs(3_600) + self.0.elapsed())
    }
}

/// How long a stopped thread waits for another to read the clock. It may hold a mutex that the
/// other needs before it can read; then the other comes second, and there is nothing to wait for.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the other is given to act on what it has read.
const HEAD_START: Duration = Duration::from_millis(10);

/// A clock that stops a thread between its reading and its use of it: the schedule
/// that no test on one thread can show, and in which a decision made on an old reading goes wrong.
///
/// Clones stop the same threads.
#[derive(Debug, Clone)]
pub struct StallingClock {
    inner: Arc<dyn Clock>,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    /// The thread that is to be stopped, and at which of its readings.
    armed: Option<(ThreadId, usize)>,
    /// It stands in that reading.
    stopped: bool,
    /// Somebody else has read the clock since.
    overtaken: bool,
    /// It is to go on.
    go_on: bool,
    /// Its work is over, with or without a stop.
    ended: bool,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        // A thread that panicked is a test that failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, at_most: Duration, reached: impl Fn(&GateState) -> bool) {
        let waited = self.changed.wait_timeout_while(self.lock(), at_most, |state| !reached(state));
        drop(waited);
    }

    fn change(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl StallingClock {
    /// A clock that shows the time of `inner`, and stops no thread yet.
    pub fn new(inner: impl Clock) -> Self {
        Self { inner: Arc::new(inner), gate: Arc::default() }
    }

    /// Runs `act` on a thread of its own. Returns when that thread stands in its `nth` reading of
    /// this clock (from 1), or has ended without making that many.
    ///
    /// The reading is made before the stop and returned after it. The thread goes on a moment after
    /// another thread has read the clock, by [`Stalled::go_on`], or when none can read it because
    /// of what the stopped thread holds. One thread is stopped at a time.
    pub fn stall<T: Send + 'static>(
        &self,
        nth: usize,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Stalled<T> {
        let gate = Arc::clone(&self.gate);
        gate.change(|state| *state = GateState::default());
        let thread = thread::spawn(move || {
            gate.change(|state| state.armed = Some((thread::current().id(), nth)));
            let result = act();
            gate.change(|state| state.ended = true);
            result
        });
        while !thread.is_finished() && !self.gate.lock().stopped {
            self.gate.wait_until(PATIENCE, |state| state.stopped || state.ended);
        }
        Stalled { gate: Arc::clone(&self.gate), thread }
    }
}

impl Clock for StallingClock {
    fn now(&self) -> Time {
        let now = self.inner.now();
        let me = thread::current().id();
        let mut state = self.gate.lock();
        let stopped = state.stopped;
        let stops = match &mut state.armed {
            Some((thread, nth)) if *thread == me && !stopped => {
                *nth = nth.saturating_sub(1);
                *nth == 0
            }
            _ => false,
        };
        if stops {
            state.stopped = true;
            drop(state);
            self.gate.changed.notify_all();
            self.gate.wait_until(PATIENCE, |state| state.overtaken || state.go_on);
            let overtaken = self.gate.lock().overtaken;
            if overtaken {
                self.gate.wait_until(HEAD_START, |state| state.go_on);
            }
        } else if stopped && state.armed.is_some_and(|(thread, _)| thread != me) {
            state.overtaken = true;
            drop(state);
            self.gate.changed.notify_all();
        }
        now
    }
}

/// A thread that [`StallingClock::stall`] has stopped, or that has ended.
#[derive(Debug)]
pub struct Stalled<T> {
    gate: Arc<Gate>,
    thread: JoinHandle<T>,
}

impl<T> Stalled<T> {
    /// True once the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Lets the thread go on, and returns what it did. Panics if it did.
    pub fn go_on(self) -> T {
        self.gate.change(|state| state.go_on = true);
        self.thread.join().expect("the stopped thread panicked")
    }
}
