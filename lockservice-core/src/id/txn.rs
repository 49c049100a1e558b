//! [`TxnId`], and the numbers of a transaction, its operations and its commits.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ServiceId;
use crate::error::{Error, ErrorKind};

number! {
    /// The number of a transaction at the party that begins it, from 1: a client numbers those of
    /// its session (T3), an incarnation all of its own (T1).
    TxnNumber
}
number! {
    /// A transaction's number at its origin, and in the lowest bit whether it validates. Stored,
    /// sent and shown as one number.
    TxnCounter
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

/// A transaction: the incarnation that issued it and a counter there (T1).
///
/// The lowest bit of the counter says whether the transaction will validate its commit. So an
/// allocator can refuse `begin_commit` for any other without a record of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    /// The incarnation on which the transaction started.
    pub origin: ServiceId,
    /// Its number at the origin, and whether it validates.
    pub counter: TxnCounter,
}

impl TxnId {
    /// The `number`th transaction of `origin`.
    pub const fn new(origin: ServiceId, number: TxnNumber, validates: bool) -> Self {
        Self { origin, counter: TxnCounter(number.0 << 1 | validates as u64) }
    }

    /// The transaction's number at its origin: an origin never uses one twice.
    pub const fn number(self) -> TxnNumber {
        self.counter.number()
    }

    /// The tombstone that stands for a floor: every validating transaction of `origin` with a
    /// number below `floor` is over (C4).
    ///
    /// No transaction has such a tombstone itself: the id says that it does not validate, and those
    /// need none.
    pub const fn floor_tombstone(origin: ServiceId, floor: TxnNumber) -> Self {
        Self::new(origin, floor, false)
    }

    /// True if the transaction said at its start that it will validate its commit (T1).
    pub const fn validates(self) -> bool {
        self.counter.0 & 1 == 1
    }
}

impl TxnCounter {
    /// The number of the transaction at its origin.
    pub const fn number(self) -> TxnNumber {
        TxnNumber(self.0 >> 1)
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxnId({self})")
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.origin.get(), self.counter.get())
    }
}

impl std::str::FromStr for TxnId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = |part: &str| u64::from_str_radix(part, 16).ok();
        text.split_once('-')
            .and_then(|(origin, counter)| {
                let (origin, counter) = (parse(origin)?, parse(counter)?);
                Some(Self { origin: ServiceId::new(origin), counter: TxnCounter::new(counter) })
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
