//! Commits: their admission, and the fate of transactions.

use std::time::Duration;

use lockservice_core::allocator::{BeginCommit, CannotCommit, CommitAdmission, CommitWindow};
use lockservice_core::{CommitAttempt, Error, Result, TxnId};

use super::allocator::invalid;
use super::{
    error_from_proto, error_to_proto, millis_down, millis_up, presented_from_proto,
    presented_to_proto, progress_from_proto, progress_to_proto, txn_from_proto,
};
use crate::proto;

/// A request to validate a commit as a message. Rounding never makes the least time shorter, nor
/// the most time longer.
pub fn begin_commit_to_proto(request: &BeginCommit) -> proto::BeginCommitRequest {
    proto::BeginCommitRequest {
        txn: request.txn.to_string(),
        binds: request.binds.iter().map(presented_to_proto).collect(),
        attempt: request.attempt.get(),
        least_ms: millis_up(request.window.least),
        most_ms: millis_down(request.window.most),
    }
}

/// The request to validate a commit in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn begin_commit_from_proto(request: proto::BeginCommitRequest) -> Result<BeginCommit> {
    Ok(BeginCommit {
        txn: txn_from_proto(&request.txn)?,
        binds: request.binds.iter().map(presented_from_proto).collect(),
        attempt: CommitAttempt::new(request.attempt),
        window: CommitWindow {
            least: Duration::from_millis(request.least_ms),
            most: Duration::from_millis(request.most_ms),
        },
    })
}

/// An admitted commit as a message.
pub fn admission_to_proto(admission: &CommitAdmission) -> proto::BeginCommitResponse {
    proto::BeginCommitResponse {
        commit_before_ms: millis_down(admission.commit_before),
        at: Some(progress_to_proto(admission.at)),
    }
}

/// The admitted commit in a message.
pub fn admission_from_proto(admission: proto::BeginCommitResponse) -> CommitAdmission {
    CommitAdmission {
        commit_before: Duration::from_millis(admission.commit_before_ms),
        at: progress_from_proto(admission.at),
    }
}

/// The fate of transactions that are to commit no more, as a message.
pub fn cannot_commit_to_proto(response: &CannotCommit) -> proto::CannotCommitResponse {
    proto::CannotCommitResponse {
        tombstoned: txns_to_proto(&response.tombstoned),
        committing: txns_to_proto(&response.committing),
        failed: response.failed.iter().map(failure_to_proto).collect(),
        at: Some(progress_to_proto(response.at)),
    }
}

/// The fate of transactions that are to commit no more, from a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn cannot_commit_from_proto(response: proto::CannotCommitResponse) -> Result<CannotCommit> {
    Ok(CannotCommit {
        at: progress_from_proto(response.at),
        tombstoned: txns_from_proto(&response.tombstoned)?,
        committing: txns_from_proto(&response.committing)?,
        failed: response.failed.into_iter().map(failure_from_proto).collect::<Result<_>>()?,
    })
}

fn failure_to_proto((txn, error): &(TxnId, Error)) -> proto::TxnFailure {
    proto::TxnFailure { txn: txn.to_string(), error: Some(error_to_proto(error)) }
}

fn failure_from_proto(failure: proto::TxnFailure) -> Result<(TxnId, Error)> {
    let error = failure.error.ok_or_else(|| invalid("a failure comes without its error"))?;
    Ok((txn_from_proto(&failure.txn)?, error_from_proto(error)))
}

/// Transaction ids as texts.
pub fn txns_to_proto(txns: &[TxnId]) -> Vec<String> {
    txns.iter().map(TxnId::to_string).collect()
}

/// The transaction ids in texts.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn txns_from_proto(txns: &[String]) -> Result<Vec<TxnId>> {
    txns.iter().map(|txn| txn_from_proto(txn)).collect()
}

#[cfg(test)]
mod tests {
    use lockservice_core::allocator::Progress;
    use lockservice_core::{
        Epoch, EpochNumber, ErrorKind, Nonce, ServiceId, TxnNumber, WriteNumber,
    };

    use super::*;
    use crate::convert::allocator::tests::bind;

    #[test]
    fn what_is_said_of_commits_crosses_the_wire() {
        let at = Progress {
            epoch: Epoch::new(3),
            write: WriteNumber::new(99),
            high_water: EpochNumber::new(12_345),
            leader: Nonce::new(77),
        };
        let txn = TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(5), true);
        let why = Error::new(ErrorKind::UnknownOutcome, "who knows").with("txn", txn);
        let response = CannotCommit {
            at,
            tombstoned: vec![txn],
            committing: vec![txn, txn],
            failed: vec![(txn, why.clone())],
        };
        let back =
            cannot_commit_from_proto(cannot_commit_to_proto(&response)).expect("own message");
        assert_eq!((back.at, back.tombstoned, back.committing), (at, vec![txn], vec![txn, txn]));
        let (failed, error) = &back.failed[0];
        assert_eq!((*failed, error.kind(), error.to_string()), (txn, why.kind(), why.to_string()));
        let admission = CommitAdmission { commit_before: Duration::from_millis(77), at };
        assert_eq!(admission_from_proto(admission_to_proto(&admission)), admission);
        let request = BeginCommit {
            txn,
            binds: vec![(&bind(1)).into()],
            attempt: CommitAttempt::new(6),
            window: CommitWindow {
                least: Duration::from_millis(1),
                most: Duration::from_millis(2),
            },
        };
        assert_eq!(
            begin_commit_from_proto(begin_commit_to_proto(&request)).expect("own message"),
            request
        );
    }
}
