//! Errors: a message of their own in the session stream, a gRPC status with that message among its
//! details elsewhere.

use std::time::Duration;

use lockservice_core::{
    Advice, Blocker, DeadlockEdge, Detail, Epoch, Error, ErrorKind, NodeName, Result, ServiceId,
    TableRef,
};

use super::status::item_to_proto;
use super::{
    item_from_range, item_from_row, millis_up, mode_from_proto, mode_to_proto, txn_from_proto,
};
use crate::proto;

/// The error as a message. Its causes become one entry `cause` of the context.
pub fn error_to_proto(error: &Error) -> proto::Error {
    let mut context: Vec<_> = error
        .context()
        .map(|(name, value)| proto::Context { name: name.to_owned(), value: value.to_owned() })
        .collect();
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    if !causes.is_empty() {
        context.push(proto::Context { name: "cause".to_owned(), value: causes.join(": ") });
    }
    let mut message = proto::Error {
        kind: error.kind().name().to_owned(),
        message: error.message().to_owned(),
        context,
        advice: advice_name(error.advice()).to_owned(),
        ..proto::Error::default()
    };
    message.epoch = error.leader_epoch().map(Epoch::get);
    match error.detail() {
        Some(Detail::Deadlock(cycle)) => {
            message.deadlock = cycle.iter().map(edge_to_proto).collect()
        }
        Some(Detail::Blocked(blocker)) => message.blocker = Some(blocker_to_proto(blocker)),
        Some(Detail::RetryAfter(after)) => message.retry_after_ms = Some(millis_up(*after)),
        Some(Detail::Owner { service, node, address }) => {
            message.owner = Some(proto::Owner {
                service: service.get(),
                node: node.to_string(),
                address: address.clone(),
            });
        }
        Some(Detail::Leader(address)) => message.leader = Some(address.clone()),
        // This version cannot send this detail: the sentence says enough.
        Some(_) | None => {}
    }
    message
}

/// The error in a message. A kind that this version does not know becomes `Internal`, with the
/// kind's name in the context. Details that cannot be read are left out, for the error itself
/// matters more.
pub fn error_from_proto(message: proto::Error) -> Error {
    let known = ErrorKind::from_name(&message.kind);
    let mut error = Error::new(known.unwrap_or(ErrorKind::Internal), message.message);
    for context in message.context {
        error = error.with(context.name, context.value);
    }
    if known.is_none() {
        error = error.with("kind", message.kind).with("advice", message.advice);
    }
    if let Some(epoch) = message.epoch {
        error = error.with_leader_epoch(Epoch::new(epoch));
    }
    if let Some(cycle) = cycle_from_proto(&message.deadlock) {
        return error.with_detail(Detail::Deadlock(cycle));
    }
    if let Some(Ok(blocker)) = message.blocker.map(blocker_from_proto) {
        return error.with_detail(Detail::Blocked(blocker));
    }
    if let Some(after) = message.retry_after_ms {
        return error.with_detail(Detail::RetryAfter(Duration::from_millis(after)));
    }
    if let Some(owner) = message.owner
        && let Ok(node) = NodeName::new(&owner.node)
    {
        let service = ServiceId::new(owner.service);
        return error.with_detail(Detail::Owner { service, node, address: owner.address });
    }
    match message.leader {
        Some(leader) => error.with_detail(Detail::Leader(leader)),
        None => error,
    }
}

fn advice_name(advice: Advice) -> &'static str {
    match advice {
        Advice::FixRequest => "fix_request",
        Advice::RetryCall => "retry_call",
        Advice::RetryTransaction => "retry_transaction",
        Advice::NewSession => "new_session",
        // This is the safest advice in place of one that a later version added.
        _ => "operator",
    }
}

fn edge_to_proto(edge: &DeadlockEdge) -> proto::DeadlockEdge {
    use proto::deadlock_edge::Item;
    proto::DeadlockEdge {
        waiter: edge.waiter.to_string(),
        group: edge.table.group.to_string(),
        table: edge.table.name.to_string(),
        item: Some(item_to_proto(&edge.item, Item::Row, Item::Range)),
        holder: edge.holder.to_string(),
        mode: mode_to_proto(edge.mode),
        victim: edge.victim,
        label: edge.label.clone(),
        client: edge.client.clone(),
    }
}

fn cycle_from_proto(edges: &[proto::DeadlockEdge]) -> Option<Vec<DeadlockEdge>> {
    use proto::deadlock_edge::Item;
    if edges.is_empty() {
        return None;
    }
    let edge = |edge: &proto::DeadlockEdge| {
        Some(DeadlockEdge {
            waiter: edge.waiter.parse().ok()?,
            table: TableRef::new(&edge.group, &edge.table).ok()?,
            item: match edge.item.as_ref()? {
                Item::Row(row) => item_from_row(row).ok()?,
                Item::Range(range) => item_from_range(range).ok()?,
            },
            mode: mode_from_proto(edge.mode).ok()?,
            holder: edge.holder.parse().ok()?,
            victim: edge.victim,
            label: edge.label.clone(),
            client: edge.client.clone(),
        })
    };
    edges.iter().map(edge).collect()
}

pub(super) fn blocker_to_proto(blocker: &Blocker) -> proto::Blocker {
    use proto::blocker::Item;
    proto::Blocker {
        txn: blocker.txn.to_string(),
        item: Some(item_to_proto(&blocker.item, Item::Row, Item::Range)),
        mode: mode_to_proto(blocker.mode),
        granted: blocker.granted,
        label: blocker.label.clone(),
        client: blocker.client.clone(),
    }
}

pub(super) fn blocker_from_proto(blocker: proto::Blocker) -> Result<Blocker> {
    use proto::blocker::Item;
    Ok(Blocker {
        txn: txn_from_proto(&blocker.txn)?,
        item: match blocker.item {
            Some(Item::Row(row)) => item_from_row(&row)?,
            Some(Item::Range(range)) => item_from_range(&range)?,
            None => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "neither a row nor a range is named",
                ));
            }
        },
        mode: mode_from_proto(blocker.mode)?,
        granted: blocker.granted,
        label: blocker.label,
        client: blocker.client,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use lockservice_core::{Key, KeyRange, LockItem, LockMode, TxnId, TxnNumber};

    use tonic::Code;

    use super::*;
    use crate::convert::{code, from_status, to_status};

    fn same(a: &Error, b: &Error) {
        assert_eq!(a.kind(), b.kind());
        assert_eq!(a.message(), b.message());
        assert_eq!(a.context().collect::<Vec<_>>(), b.context().collect::<Vec<_>>());
        assert_eq!(a.detail(), b.detail());
        assert_eq!(a.advice(), b.advice());
        assert_eq!(a.leader_epoch(), b.leader_epoch());
    }

    pub(crate) fn edge(a: u64, b: u64) -> DeadlockEdge {
        DeadlockEdge {
            waiter: TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(a), true),
            table: TableRef::new("g", "té").expect("a name"),
            item: match a < b {
                true => row([0, 0xff]),
                false => LockItem::Range(KeyRange::whole_table()),
            },
            mode: if a < b { LockMode::Shared } else { LockMode::Exclusive },
            holder: TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(b), false),
            victim: a < b,
            label: "nightly".to_owned(),
            client: "lock@héost:1".to_owned(),
        }
    }

    pub(crate) fn blocker(item: LockItem) -> Blocker {
        Blocker {
            txn: TxnId::new(ServiceId::new(1), TxnNumber::new(2), true),
            granted: matches!(item, LockItem::Row(_)),
            item,
            mode: LockMode::Shared,
            label: "nightly".to_owned(),
            client: "lock@héost:1".to_owned(),
        }
    }

    fn row(key: impl AsRef<[u8]>) -> LockItem {
        LockItem::Row(Key::new(key).expect("a key"))
    }

    #[test]
    fn every_kind_crosses_the_wire_as_a_message_and_as_a_status() {
        for kind in ErrorKind::ALL {
            let error = Error::new(*kind, "something happened: do something")
                .with("path", "/é")
                .with("n", 3);
            let error = if kind.name().len() % 2 == 0 {
                error
            } else {
                error.with_leader_epoch(Epoch::new(7))
            };
            same(&error, &error_from_proto(error_to_proto(&error)));
            same(&error, &from_status(&to_status(&error)));
            assert!(
                code(*kind) != Code::Unknown || *kind == ErrorKind::UnknownOutcome,
                "{kind:?} has no status code of its own"
            );
        }
    }

    #[test]
    fn every_particular_crosses_the_wire() {
        let details = [
            Detail::Deadlock(vec![edge(1, 2), edge(2, 1)]),
            Detail::Blocked(blocker(row([0, 0xff]))),
            Detail::Blocked(blocker(LockItem::Range(KeyRange::whole_table()))),
            Detail::RetryAfter(Duration::from_millis(1_234)),
            Detail::Owner {
                service: ServiceId::new(9),
                node: NodeName::new("n1").expect("a name"),
                address: "127.0.0.1:1".to_owned(),
            },
            Detail::Leader("[::1]:7654".to_owned()),
        ];
        for detail in details {
            let error = Error::new(ErrorKind::Deadlock, "m").with_detail(detail);
            same(&error, &error_from_proto(error_to_proto(&error)));
            same(&error, &from_status(&to_status(&error)));
        }
    }

    #[test]
    fn an_error_of_a_newer_server_keeps_its_name() {
        let message = proto::Error {
            kind: "brand_new".into(),
            message: "m".into(),
            advice: "retry_call".into(),
            ..Default::default()
        };
        let error = error_from_proto(message);
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains("brand_new"));
    }
}
