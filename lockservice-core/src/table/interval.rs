//! A map from ranges of keys to values that finds all ranges overlapping a given one.
//!
//! It is an AVL tree ordered by (start, end), in which every node also knows the furthest end below
//! it. A search leaves out every subtree whose furthest end lies before the query, and everything
//! that starts after it: O(log n + hits).
//!
//! Clients choose the ranges and their order. The height of the tree is at most 1.44 · log2(n)
//! after any insertions and removals. No function here calls itself, so the depth of the stack does
//! not grow with the map. (Only dropping a map recurses, one frame for each level.)

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Bound, ControlFlow};

use smallvec::SmallVec;

use crate::key::{Key, KeyRange, compare_ends, compare_starts, starts_before_end};

/// See the module.
pub(super) struct IntervalMap<V> {
    root: Link<V>,
    len: usize,
}

type Link<V> = Option<Box<Node<V>>>;

struct Node<V> {
    range: KeyRange,
    value: V,
    /// The furthest end in this subtree.
    end_max: Bound<Key>,
    /// The number of nodes on the longest way down from here, this one included.
    height: u8,
    left: Link<V>,
    right: Link<V>,
}

/// A child of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// Nodes from the root downwards, each without the child in which the way goes on.
type Path<V> = Vec<(Box<Node<V>>, Side)>;

impl<V> IntervalMap<V> {
    pub(super) const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// The number of ranges.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, range: &KeyRange) -> Option<&V> {
        self.get_key_value(range).map(|(_, value)| value)
    }

    pub(super) fn get_key_value(&self, range: &KeyRange) -> Option<(&KeyRange, &V)> {
        let mut link = self.root.as_deref();
        while let Some(node) = link {
            link = match compare(range, &node.range) {
                Ordering::Less => node.left.as_deref(),
                Ordering::Greater => node.right.as_deref(),
                Ordering::Equal => return Some((&node.range, &node.value)),
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

    /// Inserts a value. The range must not be there yet.
    pub(super) fn insert(&mut self, range: KeyRange, value: V) {
        debug_assert!(self.get(&range).is_none(), "a range is one object");
        let (path, _) = self.way_to(&range);
        let end_max = range.end().cloned();
        let node = Box::new(Node { range, value, end_max, height: 1, left: None, right: None });
        self.root = rebuild(path, Some(node));
        self.len += 1;
    }

    pub(super) fn remove(&mut self, range: &KeyRange) -> Option<V> {
        let (mut path, found) = self.way_to(range);
        let Some(mut node) = found else {
            // Nothing changes: every node gets its child back.
            self.root = path.into_iter().rev().fold(None, |below, (mut node, side)| {
                *node.child_mut(side) = below;
                Some(node)
            });
            return None;
        };
        let below = match (node.left.take(), node.right.take()) {
            (None, below) | (below, None) => below,
            (left, Some(right)) => {
                // The next node in the order replaces the removed one.
                let (mut next, mut further) = (right, Path::new());
                while let Some(left) = next.left.take() {
                    further.push((next, Side::Left));
                    next = left;
                }
                let below = next.right.take();
                next.left = left;
                path.push((next, Side::Right));
                path.extend(further);
                below
            }
        };
        self.root = rebuild(path, below);
        self.len -= 1;
        Some(node.value)
    }

    /// Takes the tree apart along the way to `range`. Returns the nodes on the way, and the node of
    /// the range with its subtrees, if there is one.
    fn way_to(&mut self, range: &KeyRange) -> (Path<V>, Link<V>) {
        let mut path = Path::new();
        let mut link = self.root.take();
        while let Some(mut node) = link {
            let side = match compare(range, &node.range) {
                Ordering::Less => Side::Left,
                Ordering::Greater => Side::Right,
                Ordering::Equal => return (path, Some(node)),
            };
            link = node.child_mut(side).take();
            path.push((node, side));
        }
        (path, None)
    }

    /// Visits every range that overlaps the one between the bounds, in order of (start, end).
    pub(super) fn overlapping<'a>(
        &'a self,
        start: Bound<&Key>,
        end: Bound<&Key>,
        visit: &mut dyn FnMut(&'a KeyRange, &'a V) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut link = &self.root;
        // Nodes whose left side is done.
        let mut open: SmallVec<[&Node<V>; 32]> = SmallVec::new();
        loop {
            while let Some(node) = link.as_deref() {
                if !starts_before_end(start, node.end_max.as_ref()) {
                    break;
                }
                open.push(node);
                link = &node.left;
            }
            let Some(node) = open.pop() else { return ControlFlow::Continue(()) };
            if !starts_before_end(node.range.start(), end) {
                // All further nodes start later still.
                return ControlFlow::Continue(());
            }
            if starts_before_end(start, node.range.end()) {
                visit(&node.range, &node.value)?;
            }
            link = &node.right;
        }
    }

    /// Visits, in order, everything after `after`; everything for `None`.
    pub(super) fn after<'a>(
        &'a self,
        after: Option<&KeyRange>,
        visit: &mut dyn FnMut(&'a KeyRange, &'a V) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut link = &self.root;
        // Nodes that are still to be visited, and then their right side.
        let mut open: SmallVec<[&Node<V>; 32]> = SmallVec::new();
        loop {
            while let Some(node) = link.as_deref() {
                if after.is_some_and(|after| compare(&node.range, after).is_le()) {
                    link = &node.right;
                } else {
                    open.push(node);
                    link = &node.left;
                }
            }
            let Some(node) = open.pop() else { return ControlFlow::Continue(()) };
            visit(&node.range, &node.value)?;
            link = &node.right;
        }
    }

    /// Visits everything in order.
    pub(super) fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a KeyRange, &'a V)) {
        let all = self.overlapping(Bound::Unbounded, Bound::Unbounded, &mut |range, value| {
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
    fn child_mut(&mut self, side: Side) -> &mut Link<V> {
        match side {
            Side::Left => &mut self.left,
            Side::Right => &mut self.right,
        }
    }

    /// Computes `height` and `end_max` after a change below.
    fn update(&mut self) {
        self.height = 1 + height(&self.left).max(height(&self.right));
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

fn height<V>(link: &Link<V>) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

pub(super) fn compare(a: &KeyRange, b: &KeyRange) -> Ordering {
    compare_starts(a.start(), b.start()).then_with(|| compare_ends(a.end(), b.end()))
}

/// Puts the tree together again from the bottom to the root. The heights of a node's children
/// differ by at most one in the result.
fn rebuild<V>(path: Path<V>, below: Link<V>) -> Link<V> {
    path.into_iter().rev().fold(below, |below, (mut node, side)| {
        *node.child_mut(side) = below;
        Some(balance(node))
    })
}

/// Restores the balance of one node whose children are balanced and differ by at most two.
fn balance<V>(mut node: Box<Node<V>>) -> Box<Node<V>> {
    node.update();
    let (left, right) = (height(&node.left), height(&node.right));
    let heavy = match (left > right + 1, right > left + 1) {
        (true, _) => Side::Left,
        (_, true) => Side::Right,
        _ => return node,
    };
    let other = if heavy == Side::Left { Side::Right } else { Side::Left };
    let child = node.child_mut(heavy).take();
    let child = child.map(|mut child| {
        let inner_is_higher = match heavy {
            Side::Left => height(&child.right) > height(&child.left),
            Side::Right => height(&child.left) > height(&child.right),
        };
        if inner_is_higher {
            child = rotate(child, other)
        }
        child
    });
    *node.child_mut(heavy) = child;
    rotate(node, heavy)
}

/// Replaces a node by its child on `side`, and puts the node below that child.
fn rotate<V>(mut node: Box<Node<V>>, side: Side) -> Box<Node<V>> {
    let Some(mut child) = node.child_mut(side).take() else { return node };
    let other = if side == Side::Left { Side::Right } else { Side::Left };
    *node.child_mut(side) = child.child_mut(other).take();
    node.update();
    *child.child_mut(other) = Some(node);
    child.update();
    child
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

    fn row(number: u64) -> KeyRange {
        let key = || Bound::Included(Key::new(number.to_be_bytes()).expect("a test key"));
        KeyRange::new(key(), key()).expect("a range")
    }

    /// Checks that each node is balanced and knows its height and end; returns the height.
    fn check(link: &Link<u32>) -> u8 {
        let Some(node) = link else { return 0 };
        let (left, right) = (check(&node.left), check(&node.right));
        assert!(left.abs_diff(right) <= 1, "the children's heights are {left} and {right}");
        assert_eq!(node.height, 1 + left.max(right));
        let ends =
            [&node.left, &node.right].into_iter().flatten().map(|child| child.end_max.as_ref());
        let furthest = ends.chain([node.range.end()]).max_by(|a, b| compare_ends(*a, *b));
        assert_eq!(furthest, Some(node.end_max.as_ref()));
        node.height
    }

    #[test]
    fn no_order_of_insertion_and_removal_makes_the_tree_deep() {
        const COUNT: u64 = 10_000;
        let rising: Vec<u64> = (0..COUNT).collect();
        let falling = rising.iter().rev().copied().collect();
        for keys in [rising, falling] {
            let mut map = IntervalMap::new();
            for key in &keys {
                map.insert(row(*key), 0);
            }
            assert!(check(&map.root) <= 19, "1.44 · log2(10,000) is 19.1");
            for key in keys.iter().filter(|key| *key % 10 != 0) {
                assert_eq!(map.remove(&row(*key)), Some(0));
            }
            assert!(check(&map.root) <= 14, "1.44 · log2(1,000) is 14.4");
        }
    }

    #[test]
    fn searches_agree_with_a_plain_list() {
        for seed in 0..40 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut map = IntervalMap::new();
            let mut list: Vec<(KeyRange, u32)> = Vec::new();
            for step in 0..500 {
                let Ok(range) = KeyRange::new(bound(&mut random), bound(&mut random)) else {
                    continue;
                };
                let at = list.iter().position(|(other, _)| *other == range);
                assert_eq!(map.get(&range), at.map(|at| &list[at].1));
                match at {
                    Some(at) if random.random_bool(0.6) => {
                        assert_eq!(map.remove(&range), Some(list.swap_remove(at).1))
                    }
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
                check(&map.root);
                let Ok(query) = KeyRange::new(bound(&mut random), bound(&mut random)) else {
                    continue;
                };
                let mut found = Vec::new();
                let end = map.overlapping(query.start(), query.end(), &mut |range, value| {
                    found.push((range.clone(), *value));
                    ControlFlow::Continue(())
                });
                assert!(end.is_continue());
                let mut expected: Vec<_> =
                    list.iter().filter(|(range, _)| range.overlaps(&query)).cloned().collect();
                expected.sort_by(|a, b| compare(&a.0, &b.0));
                assert_eq!(found, expected, "seed {seed} step {step}: what overlaps {query}");
            }
        }
    }
}
