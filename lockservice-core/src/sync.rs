//! The locks and atomics of this crate. All of them come from here, so that a model checker can
//! replace them.
//!
//! Under `--cfg loom` the types are those of loom, which visits every interleaving of a small
//! model. Under `--cfg shuttle` they are those of shuttle, which visits random interleavings of a
//! large one. Otherwise they are locks of `parking_lot` and atomics of the standard library. The
//! surface is the same: `lock`, `read` and `write` return a guard and never a poison error.

#[cfg(loom)]
use loom as checker;
#[cfg(shuttle)]
use shuttle as checker;

#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::Arc;
#[cfg(not(any(loom, shuttle)))]
#[allow(unused_imports)]
pub(crate) use std::sync::atomic;

#[cfg(any(loom, shuttle))]
pub(crate) use self::checker::sync::{Arc, atomic};

#[cfg(not(any(loom, shuttle)))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};

#[cfg(any(loom, shuttle))]
pub(crate) use self::checked_locks::{Mutex, RwLock};
#[cfg(any(loom, shuttle))]
pub(crate) use self::checker::sync::MutexGuard;

/// A value with cache lines of its own. Two of them share neither a line nor a pair of lines that
/// the processor fetches together, so that threads which use them side by side do not slow each
/// other down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

/// A number of the calling thread: always the same, and mostly another than that of another thread.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn thread_number() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};

    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // ORDERING: Relaxed, without a partner: only the number counts.
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

/// The number of the calling thread in the model.
#[cfg(any(loom, shuttle))]
pub(crate) fn thread_number() -> usize {
    // `ThreadId(N)`: two threads of a small model differ in the last digit. What hashing an id
    // returns changes from run to run, and runs are replayed.
    format!("{:?}", checker::thread::current().id()).bytes().map(usize::from).sum()
}

/// Unlocks a mutex and hands it to a thread that waits for it, even if the caller locks it again at
/// once.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn unlock_fair<T>(guard: MutexGuard<'_, T>) {
    MutexGuard::unlock_fair(guard);
}

/// Unlocks a mutex. The checker chooses the thread that locks it next.
#[cfg(any(loom, shuttle))]
pub(crate) fn unlock_fair<T>(guard: MutexGuard<'_, T>) {
    drop(guard);
}

#[cfg(any(loom, shuttle))]
mod checked_locks {
    use super::MutexGuard;
    use super::checker::sync;

    /// A mutex of the checker with the surface of `parking_lot::Mutex`.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            // A poisoned lock means that a model already failed; its panic is the report.
            self.0.lock().expect("a model panicked while it held this lock")
        }
    }

    /// A lock of the checker with the surface of `parking_lot::RwLock`.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> sync::RwLockReadGuard<'_, T> {
            self.0.read().expect("a model panicked while it held this lock")
        }

        pub(crate) fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
            self.0.write().expect("a model panicked while it held this lock")
        }
    }
}
