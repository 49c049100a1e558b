//! [`Floor`]: the lowest number that a store vouches for without having remembered any (L4). Pure.

use crate::error::{Error, ErrorKind, Result};
use crate::id::{EPOCH_SHIFT, Epoch, EpochNumber};

/// 2026-01-01 00:00:00 UTC in seconds since 1970: where numbers begin.
const BEGIN_S: u64 = 1_767_225_600;

/// Numbers for one second of a clock, as a power of two: an epoch for 1,024 seconds, all epochs for
/// 68 years.
const SECOND_SHIFT: u32 = EPOCH_SHIFT - 10;

/// Every number that the store has handed out is below this, also those that it has forgotten (L4).
///
/// # Why a clock, and why not through the epoch
/// A store may forget everything, time and again, while the nodes are started again each time (a
/// Redis without persistence). Then no node remembers an epoch, but the clock of the store's server
/// goes on. But an epoch for every second of decades does not fit below 2^21, so the epoch's own
/// floor is coarse, and leaderships that follow each other quickly run ahead of it:
///
/// 1. 12:00:00 the store is empty, its clock says epoch 100; the leader takes 101, then 102 when
///    the data loss is resolved;
/// 2. 12:00:30 a token of 102 is handed out;
/// 3. 12:01:00 store and nodes are started again, everything is lost; the clock still says 100; the
///    leader takes 101, and *its* tokens would be below those of step 2 if they began with the
///    epoch.
///
/// Therefore numbers do not begin with the epoch where there is a clock, but with the clock's
/// second, of which there are 2^22 each: no leader hands out so many in a second for long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Floor(EpochNumber);

impl Floor {
    /// The floor that a server's clock gives, in seconds since 1970. A clock that was never set
    /// gives none.
    ///
    /// # Errors
    /// `StoreUnusable` for a clock that is decades ahead: it would use up all numbers.
    pub fn of_clock(unix_s: u64) -> Result<Self> {
        let seconds = unix_s.saturating_sub(BEGIN_S);
        let number = seconds.min(u64::MAX >> SECOND_SHIFT) << SECOND_SHIFT;
        let floor = Self(EpochNumber::new(number));
        floor.epoch().next().map(|_| floor).map_err(|e| {
            Error::new(
                ErrorKind::StoreUnusable,
                "the clock of the store's server is decades ahead: set it right",
            )
            .with_source(e)
        })
    }

    /// The number. Zero if the store vouches for none.
    pub const fn number(self) -> EpochNumber {
        self.0
    }

    /// The epoch in which it lies. A new leadership's is above.
    pub const fn epoch(self) -> Epoch {
        self.0.epoch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_worth_four_million_numbers_and_an_epoch_seventeen_minutes() {
        let floor = |unix_s| Floor::of_clock(unix_s).expect("in range");
        assert_eq!(floor(0), Floor::default(), "a clock that was never set is no floor");
        assert_eq!(floor(BEGIN_S + 1).number().get(), 1 << 22);
        assert_eq!(floor(BEGIN_S + 1023).epoch(), Epoch::new(0));
        assert_eq!(floor(BEGIN_S + 1024).epoch(), Epoch::new(1));
        assert_eq!(floor(BEGIN_S + 1024).number(), Epoch::new(1).first_number());
        let sixty_years_s = 60 * 366 * 24 * 3600;
        assert!(floor(BEGIN_S + sixty_years_s).number().get() < 1 << 53);
    }

    #[test]
    fn a_clock_that_is_nonsense_is_refused() {
        for unix_s in [BEGIN_S + (1 << 31), u64::MAX] {
            assert_eq!(Floor::of_clock(unix_s).expect_err("2094").kind(), ErrorKind::StoreUnusable);
        }
    }
}
