//! The lists of sessions and transactions, and the ends that operators give them.

use std::time::Duration;

use lockservice_core::service::{KillEnd, Killed, OpenedBy, SessionStatus, TxnStatus};
use lockservice_core::{Error, ErrorKind, Result, TxnId, TxnNumber};

use super::{error_from_proto, error_to_proto, millis_down, millis_up, txn_from_proto};
use crate::proto;

/// A session as a message.
pub fn session_status_to_proto(status: &SessionStatus) -> proto::SessionInfo {
    proto::SessionInfo {
        handle: status.handle.to_string(),
        client: status.client.clone(),
        identity: status.opened_by.identity.clone(),
        address: status.opened_by.address.clone(),
        ttl_ms: millis_down(status.ttl),
        left_ms: millis_up(status.left),
        txns: status.txns as u64,
        waiting: status.waiting as u64,
        ending: status.ending.clone(),
        still_running: status.still_running.clone(),
        cut: false,
    }
}

/// The session in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn session_status_from_proto(info: proto::SessionInfo) -> Result<SessionStatus> {
    Ok(SessionStatus {
        handle: info.handle.parse()?,
        client: info.client,
        opened_by: OpenedBy { identity: info.identity, address: info.address },
        ttl: Duration::from_millis(info.ttl_ms),
        left: Duration::from_millis(info.left_ms),
        txns: count(info.txns),
        waiting: count(info.waiting),
        ending: info.ending,
        still_running: info.still_running,
    })
}

/// A transaction as a message.
pub fn txn_status_to_proto(status: &TxnStatus) -> proto::TxnInfo {
    proto::TxnInfo {
        txn: status.txn.to_string(),
        label: status.label.clone(),
        session: status.session.map(|session| session.to_string()).unwrap_or_default(),
        client: status.client.clone(),
        locks: status.locks as u64,
        waits: status.waits,
        waiting_ms: status.waiting.map(millis_down),
        cut: false,
        ending: status.ending.clone(),
    }
}

/// The transaction in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn txn_status_from_proto(info: proto::TxnInfo) -> Result<TxnStatus> {
    let session = (!info.session.is_empty()).then(|| info.session.parse()).transpose()?;
    Ok(TxnStatus {
        txn: txn_from_proto(&info.txn)?,
        label: info.label,
        session,
        client: info.client,
        locks: count(info.locks),
        waits: info.waits,
        waiting: info.waiting_ms.map(Duration::from_millis),
        ending: info.ending,
    })
}

/// What came of a kill, as a message.
pub fn killed_to_proto(killed: &Killed) -> proto::KillDone {
    proto::KillDone {
        end: killed.end.name().to_owned(),
        committing: killed.committing.iter().map(ToString::to_string).collect(),
    }
}

/// What came of a kill, from a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn killed_from_proto(done: &proto::KillDone) -> Result<Killed> {
    let end = end_from_proto(&done.end)?;
    let committing =
        done.committing.iter().map(|txn| txn_from_proto(txn)).collect::<Result<_>>()?;
    Ok(Killed { end, committing })
}

/// What came of the kill of a transaction, as a message.
pub fn txn_killed_to_proto(txn: TxnId, killed: &Killed) -> proto::TxnKillDone {
    proto::TxnKillDone {
        txn: txn.to_string(),
        end: killed.end.name().to_owned(),
        committing: !killed.committing.is_empty(),
    }
}

/// What came of the kill of a transaction, from a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn txn_killed_from_proto(done: &proto::TxnKillDone) -> Result<(TxnId, Killed)> {
    let (txn, end) = (txn_from_proto(&done.txn)?, end_from_proto(&done.end)?);
    let committing = if done.committing { vec![txn] } else { Vec::new() };
    Ok((txn, Killed { end, committing }))
}

/// A transaction of a session that was killed, as a message.
pub fn txn_lost_to_proto(number: TxnNumber, why: &Error) -> proto::TxnLost {
    proto::TxnLost { txn: number.get(), error: Some(error_to_proto(why)) }
}

/// A transaction of a session that was killed, from a message.
pub fn txn_lost_from_proto(lost: proto::TxnLost) -> (TxnNumber, Error) {
    (TxnNumber::new(lost.txn), error_from_proto(lost.error.unwrap_or_default()))
}

fn end_from_proto(end: &str) -> Result<KillEnd> {
    KillEnd::from_name(end).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            "a kill came to an end that this version does not know",
        )
        .with("end", end)
    })
}

fn count(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use lockservice_core::{ServiceId, SessionHandle, SessionNumber};

    use super::*;

    #[test]
    fn sessions_transactions_and_kills_cross_the_wire() {
        let service = ServiceId::new(1 << 32 | 1);
        let handle = SessionHandle { service, number: SessionNumber::new(7) };
        let txn = TxnId::new(service, TxnNumber::new(2), true);
        let session = SessionStatus {
            handle,
            client: "c".to_owned(),
            opened_by: OpenedBy { identity: "i".to_owned(), address: "[::1]:5".to_owned() },
            ttl: Duration::from_secs(10),
            left: Duration::from_millis(9_001),
            txns: 2,
            waiting: 1,
            ending: "killed".to_owned(),
            still_running: "7 (sleep)".to_owned(),
        };
        let read = session_status_from_proto(session_status_to_proto(&session));
        assert_eq!(read.expect("own message"), session);
        for (session, waiting) in [(Some(handle), None), (None, Some(Duration::from_secs(3)))] {
            let status = TxnStatus {
                txn,
                label: "l".to_owned(),
                session,
                client: "c".to_owned(),
                locks: 3,
                waits: true,
                waiting,
                ending: "killed".to_owned(),
            };
            let read = txn_status_from_proto(txn_status_to_proto(&status));
            assert_eq!(read.expect("own message"), status);
        }
        for end in [KillEnd::Confirmed, KillEnd::Lapsed, KillEnd::Forced, KillEnd::Sealed] {
            let killed = Killed { end, committing: vec![txn] };
            assert_eq!(killed_from_proto(&killed_to_proto(&killed)).expect("own message"), killed);
            let read = txn_killed_from_proto(&txn_killed_to_proto(txn, &killed));
            assert_eq!(read.expect("own message"), (txn, killed));
        }
    }
}
