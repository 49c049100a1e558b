//! The failures of a bind that pass, and the pauses until another try.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// The first pause, and the longest one.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(50);
pub(crate) const RETRY_MOST: Duration = Duration::from_secs(1);

/// The time for which a call that may not wait waits for the allocator's response about a table
/// that is not bound.
pub(super) const REQUEST_MAX: Duration = Duration::from_secs(1);

/// True for a failure of a bind that ends with a lease, with the election of a leader, or when the
/// store responds again.
pub(in crate::service) fn passes(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Reassigning
            | ErrorKind::TableInUse
            | ErrorKind::Unavailable
            | ErrorKind::UnknownOutcome
            | ErrorKind::NotLeader
            | ErrorKind::Fenced
    )
}
