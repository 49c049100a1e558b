//! [`Pins`]: what keeps a bind in place while a commit is in flight on it (C2).
//!
//! One word says all of a bind that a commit changes: whether the bind is open, how many pins it
//! has, and when the last of them must have run out. So a pin is one exchange of that word, and a
//! commit and a release of the same bind are ordered by it:
//!
//! | first | then |
//! |---|---|
//! | [`pin`](Pins::pin) | [`close_unless_held`](Pins::close_unless_held) fails: the bind is kept |
//! | `close_unless_held` | `pin` fails: nothing is admitted |
//!
//! ```text
//!  bit 63   62 ........................ 22   21 ........ 0
//!  closed   end of the last pin, in ticks    number of pins
//! ```

use crate::clock::Time;
use crate::sync::atomic::{AtomicU64, Ordering};

const COUNT_BITS: u32 = 22;
/// The largest number of pins of one bind at one time.
pub(crate) const PINS_MAX: u64 = (1 << COUNT_BITS) - 1;
/// Ends of pins are rounded up to ticks of 2^20 ns, about a millisecond: 73 years fit the word.
const TICK_BITS: u32 = 20;
const TICKS_MAX: u64 = (1 << (63 - COUNT_BITS)) - 1;
const CLOSED: u64 = 1 << 63;

/// The commits in flight on a bind (C2), and whether more can come.
///
/// Released by `open`, `unpin`, `reopen` and each exchange; acquired by all others. They are all
/// of one word: the later one sees what the earlier did.
#[derive(Debug)]
pub(crate) struct Pins(AtomicU64);

/// The reason why a bind was not pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotPinned {
    /// The bind is closed.
    Closed,
    /// The bind has [`PINS_MAX`] pins.
    Full,
}

impl Pins {
    /// A closed bind without pins.
    pub(crate) fn closed() -> Self {
        Self(AtomicU64::new(CLOSED))
    }

    /// Opens a closed bind that has no pin left.
    pub(crate) fn open(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Adds a pin that counts until `until`, unless the bind is closed.
    pub(crate) fn pin(&self, until: Time) -> Result<(), NotPinned> {
        let until = ticks_up(until);
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if word & CLOSED != 0 {
                return Err(NotPinned::Closed);
            }
            if count(word) == PINS_MAX {
                return Err(NotPinned::Full);
            }
            let next = ends(word).max(until) << COUNT_BITS | (count(word) + 1);
            match self.0.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Removes a pin that [`pin`](Self::pin) added.
    pub(crate) fn unpin(&self) {
        let word = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert_ne!(count(word), 0, "a pin is removed twice");
    }

    /// Closes the bind, unless a commit is, or may be, in flight on it. True if it is closed now.
    pub(crate) fn close_unless_held(&self, now: Time) -> bool {
        let close = |word| (!held(word, now)).then_some(word | CLOSED);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, close).is_ok()
    }

    /// Closes the bind. Commits in flight go on.
    pub(crate) fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Takes a [`close`](Self::close) back.
    pub(crate) fn reopen(&self) {
        self.0.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// True while a commit is, or may be, in flight on the bind.
    ///
    /// An exchange, so that it has a place among the pins: a pin that is not counted here sees
    /// everything that was done before this call.
    pub(crate) fn held(&self, now: Time) -> bool {
        held(self.0.fetch_or(0, Ordering::AcqRel), now)
    }

    /// True if a pin was not removed yet, also one that has run out.
    pub(crate) fn any(&self) -> bool {
        count(self.0.load(Ordering::Acquire)) != 0
    }
}

const fn count(word: u64) -> u64 {
    word & PINS_MAX
}

const fn ends(word: u64) -> u64 {
    word >> COUNT_BITS & TICKS_MAX
}

fn held(word: u64, now: Time) -> bool {
    count(word) != 0 && now.as_nanos() >> TICK_BITS < ends(word)
}

/// The first tick that does not begin before `at`.
fn ticks_up(at: Time) -> u64 {
    at.as_nanos().div_ceil(1 << TICK_BITS).min(TICKS_MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    fn open() -> Pins {
        let pins = Pins::closed();
        pins.open();
        pins
    }

    #[test]
    fn a_bind_is_closed_or_pinned() {
        let pins = open();
        pins.pin(at(100)).expect("open");
        assert!(!pins.close_unless_held(at(99)));
        pins.pin(at(50)).expect("still open");
        pins.unpin();
        assert!(pins.held(at(99)), "one is left");
        pins.unpin();
        assert!(!pins.held(at(0)));
        assert!(pins.close_unless_held(at(0)));
        assert_eq!(pins.pin(at(200)), Err(NotPinned::Closed));
        pins.reopen();
        pins.pin(at(200)).expect("open again");
    }

    #[test]
    fn a_pin_that_has_run_out_keeps_no_bind_open_and_is_removed_all_the_same() {
        let pins = open();
        pins.pin(at(100)).expect("open");
        assert!(pins.held(at(99)));
        assert!(!pins.held(at(102)), "at most one tick later");
        assert!(pins.close_unless_held(at(102)));
        assert!(pins.any());
        pins.unpin();
        assert!(!pins.any());
        assert_eq!(pins.pin(at(200)), Err(NotPinned::Closed), "the bit is no part of the count");
    }

    #[test]
    fn a_bind_with_all_its_pins_takes_no_more() {
        let pins = open();
        pins.0.store(ticks_up(at(5)) << COUNT_BITS | PINS_MAX, Ordering::Release);
        assert_eq!(pins.pin(at(10)), Err(NotPinned::Full));
        pins.unpin();
        pins.pin(at(10)).expect("room for one");
        assert_eq!(pins.0.load(Ordering::Acquire) & CLOSED, 0);
    }

    proptest! {
        #[test]
        fn a_pin_holds_until_its_end_and_no_longer_than_a_tick_beyond(
            until in 0u64..1 << 60,
            now in 0u64..1 << 60,
        ) {
            let pins = open();
            pins.pin(Time::from_nanos(until)).expect("open");
            let held = pins.held(Time::from_nanos(now));
            prop_assert!(held || now >= until);
            prop_assert!(!held || now < until + (1 << TICK_BITS));
            prop_assert!(!pins.close_unless_held(Time::from_nanos(now)) || !held);
        }
    }
}
