//! Time that counts through suspend, and the margins that make promises safe.
//!
//! Safety decisions (is this lease over? may this table be reassigned?) read a [`Clock`] at the
//! moment of the decision. Timers only wake; they decide nothing. No reading is ever compared with
//! that of another process: durations travel, times do not.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A reading of a [`Clock`]: time since an arbitrary origin of this machine, comparable only within
/// one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(Duration);

impl Time {
    /// The origin of the clock. Earlier than every other reading.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// A reading this long after the clock's origin.
    pub const fn from_origin(since: Duration) -> Self {
        Self(since)
    }

    /// How long after the clock's origin this reading is.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to `self`, zero if `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from `now` until `self`, zero if `self` has passed.
    pub fn remaining(self, now: Self) -> Duration {
        self.0.saturating_sub(now.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// Saturates: a time too far to be represented is never reached.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    /// Saturates at the clock's origin: nothing is earlier.
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T+{:?}", self.0)
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
        Time(Duration::new(at.tv_sec as u64, at.tv_nsec as u32))
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

/// How much of a promise of raw length `d` its receiver may use, counted from before it sent its
/// request.
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
    fn the_system_clock_does_not_go_back() {
        let a = SystemClock.now();
        assert!(SystemClock.now() >= a);
    }
}
