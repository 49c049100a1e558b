//! The time until which the service may respond, in words that are read without a mutex.

use std::time::Duration;

use super::Lease;
use crate::clock::{Clock, Time};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module. Written under the mutex of the lease alone.
///
/// A reader that takes the time first and looks then sees a lease that was valid at that time, or a
/// later renewal of it: a lease that is found over is never renewed. A reader that looks first sees
/// a lease that was not over by then, and by its later time knows whether that one still is not.
///
/// The end is written first, and read last. So a reader that sees a renewal in `seal_at`
/// (`Acquire`, with the `Release` of [`set`](Self::set)) sees the end of that renewal, or of a
/// later one. The words order nothing else: what must not be granted any more is refused by the
/// engine, which is sealed under its mutexes.
#[derive(Debug)]
pub(crate) struct Serving {
    /// Nanoseconds since the clock's origin; 0 once the service serves no more. Partner: `ends_at`.
    seal_at: AtomicU64,
    /// The raw end of the lease. Partner: `seal_at`.
    ends_at: AtomicU64,
    /// The service stops, or is sealed. Set and read under the mutex of the lease.
    is_closed: AtomicBool,
}

impl Serving {
    pub(crate) fn new(lease: &Lease) -> Self {
        let serving = Self {
            seal_at: AtomicU64::new(0),
            ends_at: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        };
        serving.set(lease);
        serving
    }

    /// Takes a lease over. To be called under its mutex.
    pub(crate) fn set(&self, lease: &Lease) {
        let ended = lease.over || self.is_closed.load(Ordering::Relaxed);
        let ttl = if planted!(GrantWithoutLease) { Duration::MAX } else { lease.ttl };
        self.ends_at.store(nanos(lease.sent + ttl), Ordering::Relaxed);
        self.seal_at.store(if ended { 0 } else { nanos(lease.seal_at()) }, Ordering::Release);
    }

    /// Serves no more. To be called under the mutex of the lease.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.seal_at.store(0, Ordering::Release);
    }

    /// True if the service may respond at `now`, which was read before the call.
    pub(crate) fn is_at(&self, now: Time) -> bool {
        nanos(now) < self.seal_at.load(Ordering::Acquire)
    }

    /// The time that is left at `now` until the service may not respond any more.
    pub(crate) fn left(&self, now: Time) -> Duration {
        let seal_at = self.seal_at.load(Ordering::Acquire);
        Duration::from_nanos(seal_at.saturating_sub(nanos(now)))
    }

    /// The raw remaining lease; `None` if the service may not respond any more.
    ///
    /// The clock is read last. So this is no more than the length of the lease, however long the
    /// thread is held up on the way and whatever is renewed meanwhile.
    pub(crate) fn remaining(&self, clock: &dyn Clock) -> Option<Duration> {
        let seal_at = self.seal_at.load(Ordering::Acquire);
        let ends_at = self.ends_at.load(Ordering::Relaxed);
        let now = nanos(clock.now());
        (now < seal_at).then(|| Duration::from_nanos(ends_at.saturating_sub(now)))
    }
}

fn nanos(time: Time) -> u64 {
    let since = time.since_origin();
    since.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(since.subsec_nanos()))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Shows(Time);

    impl Clock for Shows {
        fn now(&self) -> Time {
            self.0
        }
    }

    #[test]
    fn it_serves_as_long_as_its_lease_and_never_after_it_was_closed() {
        let at = |ms| Time::from_origin(Duration::from_millis(ms));
        let ttl = Duration::from_secs(5);
        let mut lease = Lease::new(at(1_000), ttl);
        let serving = Serving::new(&lease);
        assert_eq!(serving.remaining(&Shows(at(2_000))), Some(Duration::from_secs(4)));
        assert_eq!(serving.remaining(&Shows(at(5_849))), Some(Duration::from_millis(151)));
        assert_eq!(serving.remaining(&Shows(at(5_850))), None);
        assert!(lease.renewed(at(3_000), ttl, at(5_000)));
        serving.set(&lease);
        assert_eq!(serving.remaining(&Shows(at(7_849))), Some(Duration::from_millis(151)));
        assert!(serving.is_at(at(7_849)) && !serving.is_at(at(7_850)));
        serving.close();
        serving.set(&lease);
        assert_eq!(serving.remaining(&Shows(at(3_000))), None);
        let mut over = Lease::new(at(1_000), ttl);
        assert!(over.is_over(at(5_850)));
        assert_eq!(Serving::new(&over).remaining(&Shows(at(1_000))), None);
    }
}
