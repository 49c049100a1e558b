//! A range of keys, and the order of its bounds.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Bound;

use super::Key;
use crate::error::{Error, ErrorKind};

/// A range of keys with inclusive, exclusive or unbounded ends. At least one key can lie inside.
///
/// ```
/// use std::ops::Bound;
///
/// use lockservice_core::{Key, KeyRange};
///
/// # fn main() -> lockservice_core::Result<()> {
/// let range = KeyRange::new(Bound::Included(Key::new("a")?), Bound::Excluded(Key::new("c")?))?;
/// assert_eq!(range.to_string(), "[a, c)");
/// assert!(range.contains(&Key::new("b")?) && !range.contains(&Key::new("c")?));
/// assert!(KeyRange::whole_table().covers(&range));
/// assert!(KeyRange::new(range.end().cloned(), range.start().cloned()).is_err(), "upside down");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Bound<Key>,
    end: Bound<Key>,
}

impl KeyRange {
    /// A range between two bounds.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if no key can lie inside. The caller
    /// corrects the bounds.
    pub fn new(start: Bound<Key>, end: Bound<Key>) -> Result<Self, Error> {
        let holds_a_key = match (&start, &end) {
            (Bound::Included(a), Bound::Included(b)) => a <= b,
            (Bound::Included(a), Bound::Excluded(b)) => a < b,
            (Bound::Excluded(a), Bound::Included(b)) => a < b,
            // No key lies between `a` and its successor `a\0`.
            (Bound::Excluded(a), Bound::Excluded(b)) => a < b && !is_successor(a, b),
            (Bound::Unbounded, Bound::Excluded(b)) => b.as_bytes() != [0],
            _ => true,
        };
        if !holds_a_key {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a range is upside down or empty: its start must be before its end",
            )
            .with("start", format!("{start:?}"))
            .with("end", format!("{end:?}")));
        }
        Ok(Self { start, end })
    }

    /// Every key of the table.
    pub const fn whole_table() -> Self {
        Self { start: Bound::Unbounded, end: Bound::Unbounded }
    }

    /// The lower bound.
    pub fn start(&self) -> Bound<&Key> {
        self.start.as_ref()
    }

    /// The upper bound.
    pub fn end(&self) -> Bound<&Key> {
        self.end.as_ref()
    }

    /// True if `key` lies inside.
    pub fn contains(&self, key: &Key) -> bool {
        let after_start = match &self.start {
            Bound::Included(a) => a <= key,
            Bound::Excluded(a) => a < key,
            Bound::Unbounded => true,
        };
        let before_end = match &self.end {
            Bound::Included(b) => key <= b,
            Bound::Excluded(b) => key < b,
            Bound::Unbounded => true,
        };
        after_start && before_end
    }

    /// True if every key of `other` lies inside `self`.
    pub fn covers(&self, other: &Self) -> bool {
        let start = match (&self.start, &other.start) {
            (Bound::Unbounded, _) => true,
            (_, Bound::Unbounded) => false,
            (Bound::Included(a), Bound::Included(b) | Bound::Excluded(b)) => a <= b,
            (Bound::Excluded(a), Bound::Excluded(b)) => a <= b,
            (Bound::Excluded(a), Bound::Included(b)) => a < b,
        };
        let end = match (&self.end, &other.end) {
            (Bound::Unbounded, _) => true,
            (_, Bound::Unbounded) => false,
            (Bound::Included(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
            (Bound::Excluded(a), Bound::Excluded(b)) => a >= b,
            (Bound::Excluded(a), Bound::Included(b)) => a > b,
        };
        start && end
    }

    /// True if some key could lie in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        starts_before_end(self.start(), other.end()) && starts_before_end(other.start(), self.end())
    }
}

fn is_successor(a: &Key, b: &Key) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    b.len() == a.len() + 1 && b.starts_with(a) && b.last() == Some(&0)
}

/// True if some key could lie between the two bounds.
pub(crate) fn starts_before_end(start: Bound<&Key>, end: Bound<&Key>) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        (Bound::Included(a), Bound::Included(b)) => a <= b,
        (Bound::Excluded(a), Bound::Excluded(b)) => a < b && !is_successor(a, b),
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a < b,
    }
}

/// Orders lower bounds by the first key inside.
pub(crate) fn compare_starts(a: Bound<&Key>, b: Bound<&Key>) -> Ordering {
    match (a, b) {
        (Bound::Unbounded, Bound::Unbounded) => Ordering::Equal,
        (Bound::Unbounded, _) => Ordering::Less,
        (_, Bound::Unbounded) => Ordering::Greater,
        (Bound::Included(x) | Bound::Excluded(x), Bound::Included(y) | Bound::Excluded(y)) => x
            .cmp(y)
            .then_with(|| matches!(a, Bound::Excluded(_)).cmp(&matches!(b, Bound::Excluded(_)))),
    }
}

/// Orders upper bounds by the last key inside.
pub(crate) fn compare_ends(a: Bound<&Key>, b: Bound<&Key>) -> Ordering {
    match (a, b) {
        (Bound::Unbounded, Bound::Unbounded) => Ordering::Equal,
        (Bound::Unbounded, _) => Ordering::Greater,
        (_, Bound::Unbounded) => Ordering::Less,
        (Bound::Included(x) | Bound::Excluded(x), Bound::Included(y) | Bound::Excluded(y)) => x
            .cmp(y)
            .then_with(|| matches!(a, Bound::Included(_)).cmp(&matches!(b, Bound::Included(_)))),
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Mathematical notation: `[a, b)`, with `-∞` and `+∞` for open ends.
impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.start {
            Bound::Included(a) => write!(f, "[{a}, ")?,
            Bound::Excluded(a) => write!(f, "({a}, ")?,
            Bound::Unbounded => f.write_str("(-∞, ")?,
        }
        match &self.end {
            Bound::Included(b) => write!(f, "{b}]"),
            Bound::Excluded(b) => write!(f, "{b})"),
            Bound::Unbounded => f.write_str("+∞)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> Key {
        Key::new(bytes).expect("a test key")
    }

    /// Every range over the keys a, aa, b, c with every kind of bound.
    fn ranges() -> Vec<KeyRange> {
        let keys = [&b"a"[..], b"a\0", b"aa", b"b", b"c"];
        let mut bounds = vec![Bound::Unbounded];
        for k in keys {
            bounds.push(Bound::Included(key(k)));
            bounds.push(Bound::Excluded(key(k)));
        }
        let mut ranges = Vec::new();
        for start in &bounds {
            for end in &bounds {
                ranges.extend(KeyRange::new(start.clone(), end.clone()));
            }
        }
        ranges
    }

    fn probes() -> Vec<Key> {
        [
            &b"\0"[..],
            b"A",
            b"a",
            b"a\0",
            b"a\0\0",
            b"aZ",
            b"aa",
            b"aa\0",
            b"ab",
            b"b",
            b"b\0",
            b"bb",
            b"c",
            b"c\0",
            b"d",
        ]
        .map(key)
        .to_vec()
    }

    #[test]
    fn overlap_and_cover_agree_with_membership() {
        for a in &ranges() {
            assert!(probes().iter().any(|k| a.contains(k)), "{a} holds no key");
            for b in &ranges() {
                let common = probes().iter().any(|k| a.contains(k) && b.contains(k));
                assert_eq!(a.overlaps(b), common, "{a} overlaps {b}");
                assert_eq!(a.overlaps(b), b.overlaps(a));
                if a.covers(b) {
                    assert!(
                        probes().iter().all(|k| !b.contains(k) || a.contains(k)),
                        "{a} covers {b}"
                    );
                }
            }
            assert!(a.covers(a));
        }
    }

    #[test]
    fn bad_keys_and_ranges_cannot_be_built() {
        assert!(Key::new([]).is_err());
        assert!(Key::new(vec![0; 4097]).is_err());
        assert!(Key::new(vec![0; 4096]).is_ok());
        assert!(KeyRange::new(Bound::Included(key(b"b")), Bound::Included(key(b"a"))).is_err());
        assert!(KeyRange::new(Bound::Excluded(key(b"a")), Bound::Excluded(key(b"a\0"))).is_err());
        assert!(KeyRange::new(Bound::Unbounded, Bound::Excluded(key(b"\0"))).is_err());
    }
}
