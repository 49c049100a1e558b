//! [`Panes`]: what was counted lately, in panes of a fixed length.

use std::time::Duration;

use crate::clock::Time;

/// The last minute, and the last ten. One more pane than they have, for the last one is not over.
pub(super) type LastMinute = Panes<7, 10>;
pub(super) type LastTenMinutes = Panes<11, 60>;

/// Counts of the last `N` panes of so many seconds each. Pure: time is an argument.
///
/// A pane is kept in the place of the one that was `N` panes earlier, which is cleared when the
/// first value of a later pane comes.
#[derive(Clone, Debug)]
pub(super) struct Panes<const N: usize, const SECONDS: u64> {
    /// The number of the latest pane that has a value: the panes since the clock's origin.
    newest: u64,
    panes: [Pane; N],
}

/// The counts of a pane. Times are in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Pane {
    pub(super) waits: u64,
    pub(super) waited: u64,
    pub(super) longest: u64,
}

impl Pane {
    fn add(&mut self, more: Self) {
        self.waits = self.waits.saturating_add(more.waits);
        self.waited = self.waited.saturating_add(more.waited);
        self.longest = self.longest.max(more.longest);
    }
}

impl<const N: usize, const SECONDS: u64> Default for Panes<N, SECONDS> {
    fn default() -> Self {
        Self { newest: 0, panes: [Pane::default(); N] }
    }
}

impl<const N: usize, const SECONDS: u64> Panes<N, SECONDS> {
    fn number(at: Time) -> u64 {
        at.since_origin().as_secs() / SECONDS
    }

    /// The first pane of the window that ends with the pane `last`.
    fn first(last: u64) -> u64 {
        last.saturating_sub(N as u64 - 1)
    }

    /// The begin of the window that ends now.
    pub(super) fn begin(now: Time) -> Time {
        Time::ZERO + Duration::from_secs(Self::first(Self::number(now)) * SECONDS)
    }

    /// Counts a wait of so many microseconds that ended at `at`.
    pub(super) fn note(&mut self, waited: u64, at: Time) {
        let number = Self::number(at);
        for later in Self::first(number).max(self.newest + 1)..=number {
            self.panes[later as usize % N] = Pane::default();
        }
        self.newest = self.newest.max(number);
        // A thread that stopped for long after it had read the clock comes too late.
        if number >= Self::first(self.newest) {
            self.panes[number as usize % N].add(Pane { waits: 1, waited, longest: waited });
        }
    }

    /// The counts of the window that ends now.
    pub(super) fn sum(&self, now: Time) -> Pane {
        let first = Self::first(Self::number(now)).max(Self::first(self.newest));
        let mut sum = Pane::default();
        (first..=self.newest).for_each(|number| sum.add(self.panes[number as usize % N]));
        sum
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_value_counts_until_the_whole_window_has_passed_and_no_longer() {
        let mut minute = LastMinute::default();
        minute.note(3, at(101));
        minute.note(5, at(109));
        minute.note(4, at(125));
        let sum = |minute: &LastMinute, seconds| {
            let Pane { waits, waited, longest } = minute.sum(at(seconds));
            (waits, waited, longest)
        };
        assert_eq!(sum(&minute, 125), (3, 12, 5));
        assert_eq!(sum(&minute, 169), (3, 12, 5), "the last of the seven panes of 10 s");
        assert_eq!(sum(&minute, 170), (1, 4, 4));
        assert_eq!((sum(&minute, 189), sum(&minute, 190)), ((1, 4, 4), (0, 0, 0)));
        assert_eq!((LastMinute::begin(at(169)), LastMinute::begin(at(5))), (at(100), at(0)));
        // The place of an old pane is cleared for a new one, and for those that had no value.
        minute.note(7, at(171));
        assert_eq!(sum(&minute, 171), (2, 11, 7));
        minute.note(1, at(100_000));
        assert_eq!(sum(&minute, 100_000), (1, 1, 1));
    }

    #[test]
    fn a_value_that_comes_late_counts_in_its_pane_or_not_at_all() {
        let mut minute = LastMinute::default();
        minute.note(1, at(200));
        minute.note(2, at(141));
        minute.note(4, at(139));
        assert_eq!(minute.sum(at(200)).waited, 3);
        assert_eq!(minute.sum(at(210)).waited, 1);
        assert_eq!(minute.sum(at(150)).waited, 3, "a reading of the clock that is late too");
    }
}
