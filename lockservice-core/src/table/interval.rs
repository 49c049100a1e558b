//! A map from ranges of keys to values that finds all ranges overlapping a given one.
//!
//! A treap ordered by (start, end), in which every node also knows the furthest end below it. A search leaves out every
//! subtree whose furthest end lies before the query, and everything that starts after it: O(log n + hits) expected.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Bound, ControlFlow};

use crate::key::{Key, KeyRange, compare_ends, compare_starts, starts_before_end};

/// See the module.
pub(super) struct IntervalMap<V> {
    root: Link<V>,
    len: usize,
    /// State of the generator of priorities. They only have to be unrelated to the order of insertion.
    random: u64,
}

type Link<V> = Option<Box<Node<V>>>;

struct Node<V> {
    range: KeyRange,
    value: V,
    priority: u64,
    /// The furthest end in this subtree.
    end_max: Bound<Key>,
    left: Link<V>,
    right: Link<V>,
}

impl<V> IntervalMap<V> {
    pub(super) const fn new() -> Self {
        Self { root: None, len: 0, random: 0x9e37_79b9_7f4a_7c15 }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, range: &KeyRange) -> Option<&V> {
        let mut link = self.root.as_deref();
        while let Some(node) = link {
            link = match compare(range, &node.range) {
                Ordering::Less => node.left.as_deref(),
                Ordering::Greater => node.right.as_deref(),
                Ordering::Equal => return Some(&node.value),
            };
        }
        None
    }

    pub(super) fn get_mut(&mut self, range: &KeyRange) -> Option<&mut V> {
        let mut link = self.root.as_deref_mut();
        while let Some(node) = link {
            link = match compare(range, &node.range) {
                Ordering::Less => node.left.as_deref_mut(),
                Ordering::Greater => node.right.as_deref_mut(),
                Ordering::Equal => return Some(&mut node.value),
            };
        }
        None
    }

    /// Puts a value in; the caller has seen that the range is not there yet.
    pub(super) fn insert(&mut self, range: KeyRange, value: V) {
        debug_assert!(self.get(&range).is_none(), "a range is one object");
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let end_max = range.end().cloned();
        let node = Box::new(Node { range, value, priority: self.random, end_max, left: None, right: None });
        insert(&mut self.root, node);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, range: &KeyRange) -> Option<V> {
        let removed = remove(&mut self.root, range);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Visits, in order of (start, end), every range that some key shares with the one between the bounds.
    pub(super) fn overlapping<'a>(
        &'a self,
        start: Bound<&Key>,
        end: Bound<&Key>,
        visit: &mut dyn FnMut(&'a KeyRange, &'a V) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        search(&self.root, start, end, visit)
    }

    /// Visits everything in order.
    pub(super) fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a KeyRange, &'a V)) {
        let all = search(&self.root, Bound::Unbounded, Bound::Unbounded, &mut |range, value| {
            visit(range, value);
            ControlFlow::Continue(())
        });
        debug_assert!(all.is_continue());
    }
}

impl<V> fmt::Debug for IntervalMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        self.for_each(&mut |range, _| {
            list.entry(range);
        });
        list.finish()
    }
}

impl<V> Node<V> {
    /// Computes `end_max` anew after a change below.
    fn update(&mut self) {
        let mut furthest = self.range.end();
        for child in [&self.left, &self.right].into_iter().flatten() {
            if compare_ends(child.end_max.as_ref(), furthest).is_gt() {
                furthest = child.end_max.as_ref();
            }
        }
        if compare_ends(furthest, self.end_max.as_ref()).is_ne() {
            self.end_max = furthest.cloned();
        }
    }
}

fn compare(a: &KeyRange, b: &KeyRange) -> Ordering {
    compare_starts(a.start(), b.start()).then_with(|| compare_ends(a.end(), b.end()))
}

fn insert<V>(link: &mut Link<V>, mut new: Box<Node<V>>) {
    match link {
        Some(node) if node.priority >= new.priority => {
            let below = if compare(&new.range, &node.range).is_lt() { &mut node.left } else { &mut node.right };
            insert(below, new);
            node.update();
        }
        _ => {
            (new.left, new.right) = split(link.take(), &new.range);
            new.update();
            *link = Some(new);
        }
    }
}

/// What comes before `range`, and what after it.
fn split<V>(link: Link<V>, range: &KeyRange) -> (Link<V>, Link<V>) {
    let Some(mut node) = link else { return (None, None) };
    if compare(&node.range, range).is_lt() {
        let (before, after) = split(node.right.take(), range);
        node.right = before;
        node.update();
        (Some(node), after)
    } else {
        let (before, after) = split(node.left.take(), range);
        node.left = after;
        node.update();
        (before, Some(node))
    }
}

fn merge<V>(left: Link<V>, right: Link<V>) -> Link<V> {
    match (left, right) {
        (None, link) | (link, None) => link,
        (Some(mut left), Some(right)) if left.priority >= right.priority => {
            left.right = merge(left.right.take(), Some(right));
            left.update();
            Some(left)
        }
        (left, Some(mut right)) => {
            right.left = merge(left, right.left.take());
            right.update();
            Some(right)
        }
    }
}

fn remove<V>(link: &mut Link<V>, range: &KeyRange) -> Option<V> {
    let node = link.as_mut()?;
    let removed = match compare(range, &node.range) {
        Ordering::Less => remove(&mut node.left, range),
        Ordering::Greater => remove(&mut node.right, range),
        Ordering::Equal => {
            let mut node = link.take()?;
            *link = merge(node.left.take(), node.right.take());
            return Some(node.value);
        }
    };
    if removed.is_some() {
        node.update();
    }
    removed
}

fn search<'a, V>(
    link: &'a Link<V>,
    start: Bound<&Key>,
    end: Bound<&Key>,
    visit: &mut dyn FnMut(&'a KeyRange, &'a V) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Some(node) = link else { return ControlFlow::Continue(()) };
    if !starts_before_end(start, node.end_max.as_ref()) {
        return ControlFlow::Continue(());
    }
    search(&node.left, start, end, visit)?;
    if !starts_before_end(node.range.start(), end) {
        return ControlFlow::Continue(());
    }
    if starts_before_end(start, node.range.end()) {
        visit(&node.range, &node.value)?;
    }
    search(&node.right, start, end, visit)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn bound(random: &mut StdRng) -> Bound<Key> {
        let mut bytes = vec![random.random_range(b'a'..b'f')];
        if random.random_bool(0.3) {
            bytes.push(0);
        }
        let key = Key::new(bytes).expect("a test key");
        match random.random_range(0..5) {
            0 => Bound::Unbounded,
            1 | 2 => Bound::Excluded(key),
            _ => Bound::Included(key),
        }
    }

    #[test]
    fn searches_agree_with_a_plain_list() {
        for seed in 0..40 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut map = IntervalMap::new();
            let mut list: Vec<(KeyRange, u32)> = Vec::new();
            for step in 0..500 {
                let Ok(range) = KeyRange::new(bound(&mut random), bound(&mut random)) else { continue };
                let at = list.iter().position(|(other, _)| *other == range);
                assert_eq!(map.get(&range), at.map(|at| &list[at].1));
                match at {
                    Some(at) if random.random_bool(0.6) => assert_eq!(map.remove(&range), Some(list.swap_remove(at).1)),
                    Some(at) => {
                        *map.get_mut(&range).expect("it is there") = step;
                        list[at].1 = step;
                    }
                    None => {
                        assert_eq!(map.remove(&range), None);
                        map.insert(range.clone(), step);
                        list.push((range, step));
                    }
                }
                assert_eq!(map.is_empty(), list.is_empty());
                let Ok(query) = KeyRange::new(bound(&mut random), bound(&mut random)) else { continue };
                let mut found = Vec::new();
                let end = map.overlapping(query.start(), query.end(), &mut |range, value| {
                    found.push((range.clone(), *value));
                    ControlFlow::Continue(())
                });
                assert!(end.is_continue());
                let mut expected: Vec<_> = list.iter().filter(|(range, _)| range.overlaps(&query)).cloned().collect();
                expected.sort_by(|a, b| compare(&a.0, &b.0));
                assert_eq!(found, expected, "seed {seed} step {step}: what overlaps {query}");
            }
        }
    }
}
