//! Time that counts through suspend, and the margins that make promises safe.
//!
//! Safety decisions (is this lease over? may this table be reassigned?) read a [`Clock`] at the
//! moment of the decision. Timers only wake; they decide nothing. No reading is ever compared with
//! that of another process: durations travel, times do not.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A reading of a [`Clock`]: nanoseconds since an arbitrary origin of this machine, comparable only
/// within one process. One word, because every decision of a commit and of a lock compares some.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The origin of the clock. Earlier than every other reading.
    pub const ZERO: Self = Self(0);

    /// A reading this long after the clock's origin; 584 years after it if that is longer.
    pub const fn from_origin(since: Duration) -> Self {
        Self(nanos(since))
    }

    /// The time from the clock's origin to this reading.
    pub const fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// The time from `earlier` to `self`, zero if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The time from `now` until `self`, zero if `self` has passed.
    pub const fn remaining(self, now: Self) -> Duration {
        self.since(now)
    }

    /// The reading as one word.
    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The reading that [`as_nanos`](Self::as_nanos) returned.
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// Saturates: a time too far to be represented is never reached.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    /// Saturates at the clock's origin: nothing is earlier.
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

/// Saturates after 584 years.
const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T+{:?}", self.since_origin())
    }
}

/// The source of time. The one effect that pure code is handed as an argument.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now. Never goes backwards, and counts while the machine is suspended.
    fn now(&self) -> Time;
}

/// `CLOCK_BOOTTIME` of this machine. (`std::time::Instant` stops during suspend on Linux and must
/// not be used for promises.)
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // The kernel promises non-negative seconds and nanoseconds below 10^9 for this clock.
        Time(at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64)
    }
}

/// The longest a promise of raw length `d` can seem to last on another machine. A party that waits
/// for its end waits this long.
///
/// `protocol.md`, first paragraph: clock rates may differ by 1 %, and 100 ms cover the reading of
/// the clocks.
pub fn hi(d: Duration) -> Duration {
    d.saturating_add(d / 100).saturating_add(Duration::from_millis(100))
}

/// The part of a promise of raw length `d` that its receiver may use, counted from before it sent
/// its request.
pub fn lo(d: Duration) -> Duration {
    d.saturating_sub(d / 100).saturating_sub(Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_used_for_less_and_waited_for_longer_than_its_raw_length() {
        let d = Duration::from_secs(5);
        assert_eq!(lo(d), Duration::from_millis(4_850));
        assert_eq!(hi(d), Duration::from_millis(5_150));
        assert_eq!(lo(Duration::from_millis(50)), Duration::ZERO);
        assert_eq!(hi(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn a_time_too_far_to_be_represented_is_never_reached() {
        let now = Time::from_origin(Duration::from_secs(1 << 30));
        let never = now + Duration::MAX;
        assert!(never > now + Duration::from_secs(1 << 33));
        assert_eq!(never, Time::from_origin(Duration::MAX));
        assert_eq!(now.remaining(never), Duration::ZERO);
        assert_eq!(now - Duration::MAX, Time::ZERO);
    }

    #[test]
    fn the_system_clock_does_not_go_back() {
        let a = SystemClock.now();
        assert!(SystemClock.now() >= a);
    }
}
