//! [`shrunk`]: when a map gives back the memory of entries that it has no more.
//!
//! A hash table never shrinks by itself: after a peak of a million entries it would keep the memory
//! of a million until the process ends. Each map whose size clients decide asks here after a
//! removal.

/// The capacity to which a table with `len` entries is to shrink, if most of its `capacity` is
/// unused; never while it is at most `kept`.
///
/// A table at the new capacity is half full: it gains as many entries as it has before it grows,
/// and loses three quarters of them before it shrinks again. So a change moves a constant number of
/// entries on average.
pub(crate) const fn shrunk(len: usize, capacity: usize, kept: usize) -> Option<usize> {
    if capacity > kept && len < capacity / 8 { Some(len * 2) } else { None }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_table_is_as_large_as_its_entries_need_after_a_peak_and_moves_few_for_that() {
        let mut table: HashSet<u32> = (0..100_000).collect();
        let mut moved = 0;
        for number in 0..100_000 {
            table.remove(&number);
            if let Some(capacity) = shrunk(table.len(), table.capacity(), 16) {
                moved += table.len();
                table.shrink_to(capacity);
            }
            assert!(table.capacity() <= 16 || table.len() >= table.capacity() / 8);
        }
        assert!(table.capacity() <= 16, "{} are kept", table.capacity());
        assert!(moved < 50_000, "{moved} were moved for 100,000 removals");
    }

    #[test]
    fn a_small_table_keeps_its_memory() {
        assert_eq!(shrunk(0, 16, 16), None);
        assert_eq!(shrunk(0, 17, 16), Some(0));
        assert_eq!(shrunk(100, 800, 16), None, "an eighth is used");
    }
}
