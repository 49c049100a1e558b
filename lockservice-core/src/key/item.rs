//! The item of a lock, and its mode.

use std::fmt;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::{Key, KeyRange};

/// The item of a lock: one row, or one range of rows. Exhaustive on purpose: there is no third
/// kind.
///
/// ```
/// use lockservice_core::{Key, KeyRange, LockItem};
///
/// # fn main() -> lockservice_core::Result<()> {
/// let row = LockItem::Row(Key::new("order 7")?);
/// let table = LockItem::Range(KeyRange::whole_table());
/// assert!(table.overlaps(&row) && row.overlaps(&table));
/// assert!(table.covers(&row) && !row.covers(&table));
/// # Ok(())
/// # }
/// ```
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum LockItem {
    /// One row.
    Row(Key),
    /// One range of rows, those that exist and those that do not.
    Range(KeyRange),
}

impl LockItem {
    /// The row; `None` for a range.
    pub const fn as_row(&self) -> Option<&Key> {
        match self {
            Self::Row(key) => Some(key),
            Self::Range(_) => None,
        }
    }

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
                range.start() == Bound::Included(key) && range.end() == Bound::Included(key)
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

/// The mode of a lock, from the weakest to the strongest.
///
/// | held | another transaction may hold shared | update | exclusive |
/// |---|---|---|---|
/// | shared | yes | yes | no |
/// | update | yes | no | no |
/// | exclusive | no | no | no |
///
/// A transaction that reads a row and may write it later locks it for update. Readers go on
/// meanwhile. The upgrade to exclusive waits for them, and not for another transaction that has the
/// same intention: two sharers that upgrade would be a deadlock.
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Compatible with shared and update locks.
    Shared,
    /// Compatible with shared locks.
    Update,
    /// Compatible with nothing.
    Exclusive,
}

impl LockMode {
    /// All modes, the weakest first.
    pub const ALL: [Self; 3] = [Self::Shared, Self::Update, Self::Exclusive];

    /// True if two transactions may hold overlapping items in these modes at once.
    pub const fn is_compatible(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Shared, Self::Shared | Self::Update) | (Self::Update, Self::Shared)
        )
    }

    /// Its place in [`ALL`](Self::ALL).
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Update => "update",
            Self::Exclusive => "exclusive",
        })
    }
}
