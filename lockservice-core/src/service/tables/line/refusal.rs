//! [`Refusal`]: the obstacle to a table's bind, and the errors of its calls.

use std::time::Duration;

use crate::clock::Time;
use crate::error::{Detail, Error, ErrorKind};
use crate::id::TableRef;

/// The reason that keeps a table from being bound.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Until when, if that was said.
    pub(super) until: Option<Time>,
}

impl Refusal {
    /// The error of a call that may not wait.
    pub(super) fn at_once(&self, table: &TableRef, now: Time) -> Error {
        match self.until {
            Some(until) if self.error.kind() == ErrorKind::Reassigning => {
                reassigning(table, until.remaining(now))
            }
            _ => Error::new(
                ErrorKind::Unavailable,
                "no allocator can bind the table now: try again, or wait for the lock",
            )
            .with("table", table)
            .with_source(self.error.clone()),
        }
    }

    /// The error of a call that has waited in vain.
    pub(super) fn in_time(&self, table: &TableRef, now: Time) -> Error {
        let Some(until) = self.until else {
            return Error::new(
                ErrorKind::Timeout,
                "no allocator could bind the table in time: try again",
            )
            .with("table", table)
            .with_source(self.error.clone());
        };
        let left = until.remaining(now);
        Error::new(
            ErrorKind::Timeout,
            "the wait ended before the lease of the table's last owner, who may still be at work: \
             try again \
             when that must have run out",
        )
        .with("table", table)
        .with("remaining_ms", left.as_millis())
        .with_detail(Detail::RetryAfter(left))
    }
}

fn reassigning(table: &TableRef, left: Duration) -> Error {
    Error::new(
        ErrorKind::Reassigning,
        "the table's last owner may still be at work: try again when its lease must have run out",
    )
    .with("table", table)
    .with("remaining_ms", left.as_millis())
    .with_detail(Detail::RetryAfter(left))
}
