//! [`InOrder`]: the operations, or the results, of one transaction by their sequence.

use std::collections::VecDeque;

use crate::id::Sequence;

/// A map for the few entries that a transaction usually has. New entries are usually the last ones,
/// and the first ones are removed.
///
/// It takes no memory while it is empty, and room for one entry with the first: an entry is large,
/// and most transactions never have two.
#[derive(Debug)]
pub(super) struct InOrder<T>(VecDeque<(Sequence, T)>);

/// The length from which on it grows by a quarter.
const MANY: usize = 16;

impl<T> InOrder<T> {
    pub(super) const fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn position(&self, sequence: Sequence) -> Result<usize, usize> {
        self.0.binary_search_by_key(&sequence, |(at, _)| *at)
    }

    pub(super) fn contains(&self, sequence: Sequence) -> bool {
        self.position(sequence).is_ok()
    }

    pub(super) fn get(&self, sequence: Sequence) -> Option<&T> {
        Some(&self.0[self.position(sequence).ok()?].1)
    }

    pub(super) fn get_mut(&mut self, sequence: Sequence) -> Option<&mut T> {
        let position = self.position(sequence).ok()?;
        Some(&mut self.0[position].1)
    }

    /// Puts a value in, in the place of one that is there.
    pub(super) fn insert(&mut self, sequence: Sequence, value: T) {
        match self.position(sequence) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    // Not by doubling: the responses of a client that never acknowledges are many.
                    let len = self.0.len();
                    let more = if len < MANY { len / 2 } else { len / 4 };
                    self.0.reserve_exact(more.max(1));
                }
                self.0.insert(at, (sequence, value));
            }
        }
    }

    pub(super) fn remove(&mut self, sequence: Sequence) -> Option<T> {
        let position = self.position(sequence).ok()?;
        let removed = self.0.remove(position).map(|(_, value)| value);
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        removed
    }

    pub(super) fn first(&self) -> Option<Sequence> {
        self.0.front().map(|(sequence, _)| *sequence)
    }

    pub(super) fn last(&self) -> Option<Sequence> {
        self.0.back().map(|(sequence, _)| *sequence)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(super) fn into_values(self) -> impl Iterator<Item = T> {
        self.0.into_iter().map(|(_, value)| value)
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(Sequence, &T) -> bool) {
        self.0.retain(|(sequence, value)| keep(*sequence, value));
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Sequence {
        Sequence::new(sequence)
    }

    #[test]
    fn entries_are_found_in_their_order_however_they_came() {
        let mut map = InOrder::new();
        for sequence in [3, 1, 4, 2] {
            map.insert(at(sequence), sequence * 10);
        }
        map.insert(at(4), 41);
        assert_eq!(map.values().copied().collect::<Vec<_>>(), [10, 20, 30, 41]);
        assert_eq!((map.first(), map.last(), map.len()), (Some(at(1)), Some(at(4)), 4));
        assert_eq!(
            (map.remove(at(2)), map.remove(at(2)), map.get(at(3))),
            (Some(20), None, Some(&30))
        );
        map.retain(|sequence, _| sequence > at(3));
        assert!(!map.contains(at(3)) && map.get_mut(at(4)) == Some(&mut 41));
        assert_eq!(map.into_values().collect::<Vec<_>>(), [41]);
    }

    #[test]
    fn no_memory_is_kept_by_an_empty_map_and_none_for_a_second_entry_by_the_first() {
        let mut map = InOrder::new();
        map.insert(at(1), [0_u8; 400]);
        assert_eq!(map.0.capacity(), 1);
        map.remove(at(1));
        assert_eq!(map.0.capacity(), 0);
    }
}
