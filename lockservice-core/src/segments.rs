//! [`Segments`]: an array that grows while it is read.

use std::fmt;
use std::sync::OnceLock;

/// Enough for 2^32 values: each segment has twice as many as the one before it.
const SEGMENTS: usize = 32;

/// An array that grows by segments and never shrinks. No value ever moves, so that a reader needs
/// no lock. The first segment has `FIRST` values: a power of two, at least 2.
pub(crate) struct Segments<T, const FIRST: usize>([OnceLock<Box<[T]>>; SEGMENTS]);

impl<T, const FIRST: usize> Segments<T, FIRST> {
    /// No values.
    pub(crate) const fn new() -> Self {
        Self([const { OnceLock::new() }; SEGMENTS])
    }

    /// The value at `index`; `None` if its segment was never made.
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let (segment, within) = split::<FIRST>(index);
        self.0.get(segment)?.get()?.get(within)
    }

    /// The value at `index`. The whole segment is made with `make`, unless it was made before.
    pub(crate) fn get_or_make(&self, index: u32, make: impl Fn() -> T) -> &T {
        let (segment, within) = split::<FIRST>(index);
        let all = || (0..FIRST << segment).map(|_| make()).collect();
        &self.0[segment].get_or_init(all)[within]
    }
}

impl<T, const FIRST: usize> fmt::Debug for Segments<T, FIRST> {
    /// Shows no value: there may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segments").finish_non_exhaustive()
    }
}

/// Which segment has the value at `index`, and where within it.
fn split<const FIRST: usize>(index: u32) -> (usize, usize) {
    let number = u64::from(index) + FIRST as u64;
    let segment = number.ilog2() - FIRST.ilog2();
    (segment as usize, (number - ((FIRST as u64) << segment)) as usize)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_each_other_without_a_gap_up_to_the_last_index() {
        assert_eq!([0, 3, 4, 11, 12].map(split::<4>), [(0, 0), (0, 3), (1, 0), (1, 7), (2, 0)]);
        for index in 1..10_000 {
            let ((before, at), (segment, within)) = (split::<4>(index - 1), split::<4>(index));
            let first_of_next = segment == before + 1 && within == 0 && at + 1 == 4 << before;
            assert!(first_of_next || (segment, within) == (before, at + 1), "{index}");
        }
        assert!(split::<2>(u32::MAX).0 < SEGMENTS);
    }

    #[test]
    fn a_value_is_made_with_its_segment_and_stays() {
        let values = Segments::<u32, 2>::new();
        assert_eq!(values.get(2), None);
        assert_eq!(values.get_or_make(2, || 7), &7);
        assert_eq!(values.get_or_make(5, || 8), &7, "of the same segment");
        assert_eq!((values.get(1), values.get(6), values.get(u32::MAX)), (None, None, None));
    }
}
