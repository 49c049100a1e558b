//! Keys, ranges of keys, and what a request may name.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// A row's key: 1 to 4,096 opaque bytes, ordered lexicographically. Up to 22 bytes are kept inline.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Key(SmallVec<[u8; 22]>);

impl Key {
    /// Checks and copies a key. Fails with [`ErrorKind::InvalidArgument`] if it is empty or too
    /// long.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, Error> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a key is empty: use 1 to 4096 bytes",
            ));
        }
        if bytes.len() > KEY_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a key is too long: use 1 to 4096 bytes",
            )
            .with("bytes", bytes.len()));
        }
        Ok(Self(SmallVec::from_slice(bytes)))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Key {
    type Error = Error;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::new(bytes)
    }
}

impl From<Key> for Vec<u8> {
    fn from(key: Key) -> Self {
        key.0.into_vec()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// As text where the key is text, otherwise with `\x..` escapes.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

/// A range of keys with inclusive, exclusive or unbounded ends. Never upside down; unbounded at
/// both ends is the whole table.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Bound<Key>,
    end: Bound<Key>,
}

impl KeyRange {
    /// A range between two bounds. Fails with [`ErrorKind::InvalidArgument`] if no key can lie
    /// inside.
    pub fn new(start: Bound<Key>, end: Bound<Key>) -> Result<Self, Error> {
        let holds_a_key = match (&start, &end) {
            (Bound::Included(a), Bound::Included(b)) => a <= b,
            (Bound::Included(a), Bound::Excluded(b)) => a < b,
            (Bound::Excluded(a), Bound::Included(b)) => a < b,
            // Between `a` and its successor `a\0` there is nothing.
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

/// What a lock covers: one row, or one range of rows.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum LockItem {
    /// One row.
    Row(Key),
    /// One range of rows, present and future ones alike.
    Range(KeyRange),
}

impl LockItem {
    /// The lower bound.
    pub fn start(&self) -> Bound<&Key> {
        match self {
            Self::Row(key) => Bound::Included(key),
            Self::Range(range) => range.start(),
        }
    }

    /// The upper bound.
    pub fn end(&self) -> Bound<&Key> {
        match self {
            Self::Row(key) => Bound::Included(key),
            Self::Range(range) => range.end(),
        }
    }

    /// True if some key could lie in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Row(a), Self::Row(b)) => a == b,
            (Self::Row(key), Self::Range(range)) | (Self::Range(range), Self::Row(key)) => {
                range.contains(key)
            }
            (Self::Range(a), Self::Range(b)) => a.overlaps(b),
        }
    }

    /// True if every key of `other` lies inside `self`.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Row(a), Self::Row(b)) => a == b,
            (Self::Range(range), Self::Row(key)) => range.contains(key),
            (Self::Range(a), Self::Range(b)) => a.covers(b),
            (Self::Row(key), Self::Range(range)) => {
                matches!((range.start(), range.end()), (Bound::Included(a), Bound::Included(b)) if a == key && b == key)
            }
        }
    }
}

impl fmt::Debug for LockItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(key) => write!(f, "{key:?}"),
            Self::Range(range) => write!(f, "{range}"),
        }
    }
}

impl fmt::Display for LockItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(key) => write!(f, "{key}"),
            Self::Range(range) => write!(f, "{range}"),
        }
    }
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Compatible with other shared locks.
    Shared,
    /// Compatible with nothing.
    Exclusive,
}

impl LockMode {
    /// True if two transactions may hold overlapping items in these modes at once.
    pub const fn is_compatible(self, other: Self) -> bool {
        matches!((self, other), (Self::Shared, Self::Shared))
    }
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        })
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
