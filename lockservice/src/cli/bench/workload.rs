//! [`Workload`]: the rows and ranges that the callers lock, the same on every side.

use std::ops::Range;

use lockservice_core::service::LockSpec;
use lockservice_core::{Key, KeyRange, LockItem, LockMode, Result, TableRef};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Rows in `mixed`.
const MIXED_ROWS: u32 = 1_000;
/// One of this many cycles of `mixed` is a range.
const MIXED_RANGE_EVERY: u32 = 10;
/// Rows in a range of `mixed`.
const MIXED_RANGE_ROWS: u32 = 10;
/// Rows in `batch`.
const BATCH_ROWS: u32 = 10_000;
/// Rows that a cycle of `batch` locks.
const BATCH_LOCKED: u32 = 100;

/// The rows and ranges that the callers lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Each caller locks a row of its own.
    Rows,
    /// All callers lock one row.
    Hot,
    /// Each cycle locks one of many rows, and now and then a shared range.
    Mixed,
    /// Each cycle locks many rows, all or none.
    Batch,
}

impl Workload {
    /// Rows that callers share, of the workload that has most.
    #[cfg(any(feature = "pg", feature = "redis"))]
    pub(super) const SHARED_ROWS_MAX: u32 = BATCH_ROWS;

    /// The name of the workload on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Hot => "hot",
            Self::Mixed => "mixed",
            Self::Batch => "batch",
        }
    }

    /// The number of rows from which `callers` choose: those below it.
    #[cfg(any(feature = "redis", test))]
    pub(super) fn rows(self, callers: u32) -> u32 {
        match self {
            Self::Rows => callers,
            Self::Hot => 1,
            Self::Mixed => MIXED_ROWS,
            Self::Batch => BATCH_ROWS,
        }
    }
}

/// The rows or the range that one cycle locks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// One row, exclusively.
    Row(u32),
    /// Neighbours as a range, shared.
    SharedRange(Range<u32>),
    /// Neighbours one by one, exclusively, all or none.
    Batch(Range<u32>),
}

impl Want {
    /// The rows, without the mode.
    pub(super) fn rows(&self) -> Range<u32> {
        match self {
            Self::Row(row) => *row..row + 1,
            Self::SharedRange(rows) | Self::Batch(rows) => rows.clone(),
        }
    }

    /// The request of our side.
    pub(super) fn spec(&self, table: &TableRef) -> Result<LockSpec> {
        let items = match self {
            Self::Row(row) => vec![LockItem::Row(key(*row)?)],
            Self::SharedRange(rows) => {
                let range = KeyRange::new(
                    std::ops::Bound::Included(key(rows.start)?),
                    std::ops::Bound::Excluded(key(rows.end)?),
                )?;
                vec![LockItem::Range(range)]
            }
            Self::Batch(rows) => {
                rows.clone().map(|row| Ok(LockItem::Row(key(row)?))).collect::<Result<_>>()?
            }
        };
        let mode = match self {
            Self::SharedRange(_) => LockMode::Shared,
            Self::Row(_) | Self::Batch(_) => LockMode::Exclusive,
        };
        Ok(LockSpec { mode, ..LockSpec::new(table.clone(), items) })
    }
}

/// A row's key: 16 bytes, in the order of the numbers.
fn key(row: u32) -> Result<Key> {
    Key::new(format!("{row:016}"))
}

/// The requests of one caller. Every side gets the same, in the same order.
#[derive(Debug)]
pub(super) struct Wants {
    workload: Workload,
    caller: u32,
    random: StdRng,
}

impl Wants {
    /// The requests of the caller with this number.
    pub(super) fn new(workload: Workload, caller: u32) -> Self {
        Self { workload, caller, random: StdRng::seed_from_u64(caller.into()) }
    }

    /// The next request.
    pub(super) fn next(&mut self) -> Want {
        let mut neighbours = |count, of| {
            let first = self.random.random_range(0..=of - count);
            first..first + count
        };
        match self.workload {
            Workload::Rows => Want::Row(self.caller),
            Workload::Hot => Want::Row(0),
            Workload::Batch => Want::Batch(neighbours(BATCH_LOCKED, BATCH_ROWS)),
            Workload::Mixed => {
                let range = neighbours(MIXED_RANGE_ROWS, MIXED_ROWS);
                if self.random.random_ratio(1, MIXED_RANGE_EVERY) {
                    Want::SharedRange(range)
                } else {
                    Want::Row(range.start)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_side_gets_the_same_wants_and_all_of_them_are_in_the_rows_of_the_workload() {
        for workload in Workload::value_variants() {
            let wants = || {
                let mut wants = Wants::new(*workload, 3);
                std::iter::from_fn(move || Some(wants.next())).take(1_000)
            };
            assert!(wants().eq(wants()), "{workload:?}");
            let rows = workload.rows(4);
            for want in wants() {
                let inside = match &want {
                    Want::Row(row) => *row < rows,
                    Want::SharedRange(range) | Want::Batch(range) => range.end <= rows,
                };
                assert!(inside, "{workload:?}: {want:?}");
            }
        }
    }

    #[test]
    fn about_every_tenth_cycle_of_mixed_is_a_shared_range() {
        let mut wants = Wants::new(Workload::Mixed, 0);
        let ranges = (0..10_000).filter(|_| matches!(wants.next(), Want::SharedRange(_))).count();
        assert!((800..1_200).contains(&ranges), "{ranges}");
    }
}
