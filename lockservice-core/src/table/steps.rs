//! How much work the engine does, counted so that tests can show that a cost grows no faster than it should.
//!
//! A step is one entry, holder or waiter that is looked at. The count is of the thread: a test compares what
//! its own calls cost, whatever else runs. Outside of tests nothing is counted.

#[cfg(any(test, feature = "testing"))]
use std::cell::Cell;

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// Counts one step.
#[inline]
pub(super) fn step() {
    #[cfg(any(test, feature = "testing"))]
    STEPS.with(|steps| steps.set(steps.get() + 1));
}

/// How many steps the engines of this process have taken in calls of the current thread.
#[cfg(any(test, feature = "testing"))]
pub fn engine_steps() -> u64 {
    STEPS.with(Cell::get)
}
