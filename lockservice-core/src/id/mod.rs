//! One newtype per identifier.
//!
//! # How numbers grow
//! An epoch is a number below 2^21. Versions, incarnations, table ids and tokens are numbers that
//! must never be handed out twice, even by a store that lost its newest writes (L4). All of them
//! have one layout:
//!
//! ```text
//!   bit 52           32 31             0
//!      ├───── epoch ───┼──── counter ──┤      epoch · 2^32  ≤  number  <  (epoch + 1) · 2^32
//! ```
//!
//! - A leadership counts on from the highest number that it knows of, and never begins below
//!   `epoch · 2^32`. Where the store's server has a clock, that clock gives the lowest number
//!   instead ([`Floor`](crate::store::Floor)).
//! - A leadership never reaches the numbers of the next epoch: it raises its epoch first.
//! - Every number is below 2^53, so that it survives languages whose numbers are doubles (F2).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Number of counter bits below the epoch in versions, incarnations, table ids and tokens.
pub const EPOCH_SHIFT: u32 = 32;

/// Epochs are below this bound (F2).
pub const EPOCH_END: u64 = 1 << 21;

/// [`Epoch::skip_ahead`] skips fewer epochs than this.
const SKIP_END: u64 = 16;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw number, as it came from a store or the wire.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw number, as it goes to a store or the wire.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Number of an allocator leadership. Grows with every leadership; each write to the store
    /// names it (L2).
    Epoch
}
number! {
    /// One incarnation of a service: a restart of the same node is another one (B1).
    ServiceId
}
number! {
    /// A random number that distinguishes two incarnations, or two leaderships, even if a store
    /// handed out one id twice (L4).
    Nonce
}
number! {
    /// A lock table's number, never reused (B6).
    TableId
}
number! {
    /// Version of a bind. Two binds of one table never share a version, and a later one is larger.
    BindVersion
}
number! {
    /// A fencing token (F1): of two conflicting grants on one key the later has the larger token.
    FencingToken
}
number! {
    /// The number of a write to the store, one above that of the write before; 0 is before the
    /// first (L2).
    WriteNumber
}
number! {
    /// A session of a client with one service (P1). Random, so that it cannot be guessed.
    SessionId
}
number! {
    /// A client's number of a transaction in its session, from 1 (T3).
    TxnNumber
}
number! {
    /// The number of an operation in its transaction, from 1 (T2); 0 if the service numbers them.
    Sequence
}
number! {
    /// The timestamp of a commit, in the time of the party that makes the data durable: a snapshot
    /// taken at it, or later, shows the commit (C5). lockservice only compares it with others.
    CommitTimestamp
}
number! {
    /// A commit attempt of a transaction, chosen by the party that makes the data durable:
    /// repeating it is idempotent (C1).
    CommitAttempt
}

impl TxnNumber {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Sequence {
    /// The first operation of a transaction.
    pub const FIRST: Self = Self(1);

    /// The sequence after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// True if the client gives its operations no numbers: the service does.
    pub const fn is_unnumbered(self) -> bool {
        self.0 == 0
    }
}

impl WriteNumber {
    /// The first write to a store.
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// True if this is the number after `last`. No number follows the largest.
    pub fn follows(self, last: Self) -> bool {
        last.0.checked_add(1) == Some(self.0)
    }
}

impl Epoch {
    /// The first number that belongs to this epoch: `epoch * 2^32`.
    pub const fn first_number(self) -> u64 {
        self.0 << EPOCH_SHIFT
    }

    /// The first number that belongs to the next epoch.
    pub const fn end_number(self) -> u64 {
        (self.0 + 1) << EPOCH_SHIFT
    }

    /// The epoch after this one.
    ///
    /// # Errors
    /// `ResourceExhausted` at the end of the number space: start a new store.
    pub fn next(self) -> Result<Self, Error> {
        if self.0 + 1 >= EPOCH_END {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "all 2^21 epochs of this store are used up; start a new store",
            ));
        }
        Ok(Self(self.0 + 1))
    }
}

impl Epoch {
    /// This epoch, or one of the 15 after it, as `nonce` decides.
    ///
    /// Two leaderships may know nothing of each other, because their store forgot the first. With
    /// this, the second hardly ever gets the epoch of the first (L4).
    #[must_use]
    pub(crate) fn skip_ahead(self, nonce: Nonce) -> Self {
        Self((self.0 + nonce.get() % SKIP_END).min(EPOCH_END - 1).max(self.0))
    }
}

/// A transaction: the incarnation that issued it and a counter there (T1).
///
/// The lowest bit of the counter says whether the transaction will validate its commit. So an
/// allocator can refuse `begin_commit` for any other without a record of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    /// The incarnation on which the transaction started.
    pub origin: ServiceId,
    /// Counter at the origin; its lowest bit says whether the transaction validates.
    pub counter: u64,
}

impl TxnId {
    /// The `number`th transaction of `origin`.
    pub const fn new(origin: ServiceId, number: u64, validates: bool) -> Self {
        Self { origin, counter: number << 1 | validates as u64 }
    }

    /// The transaction's number at its origin: an origin never uses one twice.
    pub const fn number(self) -> u64 {
        self.counter >> 1
    }

    /// The tombstone that stands for a floor: every validating transaction of `origin` with a
    /// number below `floor` is over (C4).
    ///
    /// No transaction has such a tombstone itself: the id says that it does not validate, and those
    /// need none.
    pub const fn floor_tombstone(origin: ServiceId, floor: u64) -> Self {
        Self::new(origin, floor, false)
    }

    /// True if the transaction said at its start that it will validate its commit (T1).
    pub const fn validates(self) -> bool {
        self.counter & 1 == 1
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxnId({self})")
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.origin.get(), self.counter)
    }
}

impl std::str::FromStr for TxnId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = |part: &str| u64::from_str_radix(part, 16).ok();
        text.split_once('-')
            .and_then(|(origin, counter)| {
                Some(Self { origin: ServiceId::new(parse(origin)?), counter: parse(counter)? })
            })
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    "a transaction id is two hexadecimal numbers joined by '-'",
                )
                .with("given", text)
            })
    }
}

/// Longest name of a table, group or node, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 255 bytes of UTF-8 without control characters; cheap to clone.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidArgument`]: choose another name.
            pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
                let name = name.as_ref();
                check_name($what, name)?;
                Ok(Self(Arc::from(name)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(name: String) -> Result<Self, Error> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self, Error> {
                Self::new(name)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&*self.0, f)
            }
        }
    };
}

name! {
    /// Name of a lock space: equal table names in two groups never conflict.
    GroupName, "group"
}
name! {
    /// Name of a lock table within its group.
    TableName, "table"
}
name! {
    /// Name of a node, the same over its restarts.
    NodeName, "node"
}

impl Default for GroupName {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 255 bytes"
    } else if name.chars().any(char::is_control) {
        "contains a control character"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(40).collect();
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("the {what} name {problem}: use 1 to 255 bytes of printable UTF-8"),
    )
    .with("given", format!("{shown:?}")))
}

/// A lock table as users name it: its group and its name.
///
/// ```
/// use lockservice_core::{ErrorKind, TableRef};
///
/// let accounts = TableRef::new("bank", "accounts")?;
/// assert_eq!(accounts.to_string(), "bank/accounts");
/// assert_ne!(accounts, TableRef::new("shop", "accounts")?, "another group, another table");
///
/// let nameless = TableRef::new("bank", "").unwrap_err();
/// assert_eq!(nameless.kind(), ErrorKind::InvalidArgument);
/// # Ok::<(), lockservice_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableRef {
    /// The lock space.
    pub group: GroupName,
    /// The table within the group.
    pub name: TableName,
}

impl TableRef {
    /// The table `name` of `group`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if either is no valid name.
    pub fn new(group: impl AsRef<str>, name: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self { group: GroupName::new(group)?, name: TableName::new(name)? })
    }
}

impl fmt::Debug for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.group, self.name)
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}

#[cfg(test)]
mod tests;
