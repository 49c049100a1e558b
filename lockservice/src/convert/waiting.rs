//! The notices of a session: the holder for which a lock call waits; transactions that are lost.

use lockservice_core::service::{SessionNotice, Waiting, WaitsFor};
use lockservice_core::{Error, ErrorKind, NodeName, Result, Sequence, ServiceId, TxnNumber};

use super::error::{blocker_from_proto, blocker_to_proto};
use super::txn_lost_to_proto;
use crate::proto;
use crate::proto::waiting::WaitsFor as Wire;

/// The notice as a message; `None` if this version cannot send it.
pub fn notice_to_proto(notice: &SessionNotice) -> Option<proto::notice::Notice> {
    use proto::notice::Notice;
    match notice {
        SessionNotice::Waiting(waiting) => waiting_to_proto(waiting).map(Notice::Waiting),
        SessionNotice::TxnLost { number, why } => {
            Some(Notice::TxnLost(txn_lost_to_proto(*number, why)))
        }
        _ => None,
    }
}

/// The notice as a message; `None` if this version cannot send the kind of holder.
pub fn waiting_to_proto(waiting: &Waiting) -> Option<proto::Waiting> {
    let waits_for = waits_for_to_proto(&waiting.waits_for)?;
    Some(proto::Waiting {
        txn: waiting.number.get(),
        sequence: waiting.sequence.get(),
        waits_for: Some(waits_for),
    })
}

/// The notice in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read: it is a hint, which may be ignored.
pub fn waiting_from_proto(waiting: proto::Waiting) -> Result<Waiting> {
    let waits_for = waiting.waits_for.ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, "a wait that names nothing it waits for")
    })?;
    let waits_for = waits_for_from_proto(waits_for)?;
    Ok(Waiting {
        number: TxnNumber::new(waiting.txn),
        sequence: Sequence::new(waiting.sequence),
        waits_for,
    })
}

/// The obstacle as a part of a message; `None` if this version cannot send the kind.
pub(super) fn waits_for_to_proto(waits_for: &WaitsFor) -> Option<Wire> {
    Some(match waits_for {
        WaitsFor::Txn(blocker) => Wire::Blocker(blocker_to_proto(blocker)),
        WaitsFor::Table { last_owner } => {
            let (service, node) = match last_owner {
                Some((service, node)) => (service.get(), node.to_string()),
                None => (0, String::new()),
            };
            Wire::Table(proto::UnboundTable { last_owner: node, service })
        }
        WaitsFor::Token => Wire::Token(proto::AwaitedToken {}),
        _ => return None,
    })
}

/// The obstacle in a message.
pub(super) fn waits_for_from_proto(waits_for: Wire) -> Result<WaitsFor> {
    Ok(match waits_for {
        Wire::Blocker(blocker) => WaitsFor::Txn(blocker_from_proto(blocker)?),
        Wire::Table(table) if table.last_owner.is_empty() => WaitsFor::Table { last_owner: None },
        Wire::Table(table) => {
            let last_owner = (ServiceId::new(table.service), NodeName::new(&table.last_owner)?);
            WaitsFor::Table { last_owner: Some(last_owner) }
        }
        Wire::Token(_) => WaitsFor::Token,
    })
}

#[cfg(test)]
mod tests {
    use lockservice_core::{Blocker, Key, LockItem, LockMode, TxnId};

    use super::*;

    #[test]
    fn everything_that_is_waited_for_crosses_the_wire() {
        let blocker = Blocker {
            txn: TxnId::new(ServiceId::new(1), TxnNumber::new(2), true),
            item: LockItem::Row(Key::new("k").expect("a key")),
            mode: LockMode::Shared,
            granted: false,
            label: "nightly".to_owned(),
            client: "lock@host:1".to_owned(),
        };
        let node = NodeName::new("n1").expect("a name");
        let all = [
            WaitsFor::Txn(blocker),
            WaitsFor::Table { last_owner: None },
            WaitsFor::Table { last_owner: Some((ServiceId::new(9), node)) },
            WaitsFor::Token,
        ];
        for waits_for in all {
            let waiting =
                Waiting { number: TxnNumber::new(3), sequence: Sequence::new(4), waits_for };
            let message = waiting_to_proto(&waiting).expect("it can be sent");
            assert_eq!(waiting_from_proto(message).expect("own message"), waiting);
        }
        assert_eq!(
            waiting_from_proto(proto::Waiting::default()).expect_err("it names nothing").kind(),
            ErrorKind::InvalidArgument
        );
    }
}
