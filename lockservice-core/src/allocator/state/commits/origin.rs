//! The transactions of an origin that are alive, as reported by the origin (C4).

use std::fmt;

#[cfg(doc)]
use crate::id::TxnId;
use crate::id::TxnNumber;

/// The transactions of an origin that can be alive, as reported by the origin: a superset of those
/// that are.
///
/// Both ends only ever rise. They are numbers as in [`TxnId::number`]; transactions that do not
/// validate do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxnRange {
    /// Every validating transaction below this is over.
    pub floor: TxnNumber,
    /// No transaction from here on has begun. The origin reports this ahead.
    pub end: TxnNumber,
}

/// The life of a validating transaction, as its origin knows it. Exhaustive: no fourth state can
/// come.
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxnLife {
    /// The origin has not begun it.
    NotStarted,
    /// It is alive, or being ended.
    Alive,
    /// It has ended, for ever.
    Over,
}

/// An origin in the same process, which knows of each of its validating transactions whether it is
/// alive.
pub trait OriginTxns: fmt::Debug + Send + Sync + 'static {
    /// The life of the validating transaction with this [number](TxnId::number). Must not block.
    fn life(&self, number: TxnNumber) -> TxnLife;
}
