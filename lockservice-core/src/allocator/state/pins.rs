//! [`Pins`]: what keeps a bind in place while a commit is in flight on it (C2).

use std::sync::Arc;

use smallvec::SmallVec;

use crate::clock::Time;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The commits in flight on a bind (C2).
#[derive(Debug)]
pub(crate) struct Pins {
    /// How many there are. Released by `Pin`, acquired by `held`.
    count: AtomicU64,
    /// Nanoseconds of the clock at which the last pin must have run out. Written before `count`;
    /// released by `Pin`, acquired by `held`.
    until: AtomicU64,
}

impl Default for Pins {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), until: AtomicU64::new(0) }
    }
}

impl Pins {
    /// True while a commit is, or may be, in flight on the bind. Exact once no more pins can come.
    pub(crate) fn held(&self, now: Time) -> bool {
        // ORDERING: Acquire, the partner of the releases in `Pin`. New pins are kept out by the
        // shard's lock, see `state`.
        self.count.load(Ordering::Acquire) > 0
            && self.until.load(Ordering::Acquire) > now.as_nanos()
    }
}

/// One pin. Dropping it takes it off.
#[derive(Debug)]
pub(crate) struct Pin(Arc<Pins>);

impl Pin {
    /// Pins the bind at least until `until`. To be called under the lock of the bind's shard, after
    /// the bind was compared (C3).
    pub(crate) fn new(pins: &Arc<Pins>, until: Time) -> Self {
        // ORDERING: Release, the partner of the acquires in `Pins::held`; `until` first, so that a
        // pin that is counted has its end.
        pins.until.fetch_max(until.as_nanos(), Ordering::AcqRel);
        pins.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(pins))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // ORDERING: Release, the partner of the acquire in `Pins::held`.
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The pins of one commit.
pub(crate) type PinSet = SmallVec<[Pin; 4]>;
