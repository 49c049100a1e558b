//! The count of the engine's work, for tests of how a cost grows.
//!
//! A step is one visit of an entry, a holder or a waiter. Each thread counts for itself, so a test
//! compares the cost of its own calls only. Outside of tests nothing is counted.

#[cfg(any(test, feature = "testing"))]
use std::cell::Cell;

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
    static LONGEST_HOLD: Cell<u64> = const { Cell::new(0) };
}

/// Counts one step.
#[inline]
pub(super) fn step() {
    #[cfg(any(test, feature = "testing"))]
    STEPS.with(|steps| steps.set(steps.get() + 1));
}

/// The steps that engines of this process have taken in calls of the current thread.
#[cfg(any(test, feature = "testing"))]
pub fn engine_steps() -> u64 {
    STEPS.with(Cell::get)
}

/// A hold of an engine's mutex. At its end its steps are compared with those of the longest one.
pub(super) struct Hold {
    #[cfg(any(test, feature = "testing"))]
    began: u64,
}

impl Hold {
    pub(super) fn begin() -> Self {
        Self {
            #[cfg(any(test, feature = "testing"))]
            began: engine_steps(),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        #[cfg(any(test, feature = "testing"))]
        LONGEST_HOLD.with(|longest| longest.set(longest.get().max(engine_steps() - self.began)));
    }
}

/// The most steps that the current thread took under one hold of an engine's mutex since the last
/// call of this function.
#[cfg(any(test, feature = "testing"))]
pub fn engine_longest_hold() -> u64 {
    LONGEST_HOLD.with(|longest| longest.replace(0))
}
