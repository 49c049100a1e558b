//! Errors over the wire: kind, sentence, context and particulars, both ways.

use std::time::Duration;

use lockservice_core::{Advice, DeadlockEdge, Detail, Error, ErrorKind, NodeName, ServiceId, TableRef};
use prost::Message as _;
use tonic::{Code, Status};

use crate::convert::{millis_up, txn_id};
use crate::proto;

/// The gRPC status code of each kind. The particulars travel in the status details.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotPermitted => Code::PermissionDenied,
        ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::BindChanged | ErrorKind::CannotCommit => Code::Aborted,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::TxnNotFound => Code::NotFound,
        ErrorKind::NotOwner | ErrorKind::SessionLost | ErrorKind::NameInUse => Code::FailedPrecondition,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Rebinding
        | ErrorKind::LeaseLost
        | ErrorKind::ShuttingDown
        | ErrorKind::Unavailable
        | ErrorKind::Fenced => Code::Unavailable,
        ErrorKind::UnknownOutcome => Code::Unknown,
        ErrorKind::StoreCorrupt | ErrorKind::StoreNewer => Code::DataLoss,
        // Store trouble and broken invariants; and kinds that are newer than this table.
        _ => Code::Internal,
    }
}

fn advice_name(advice: Advice) -> &'static str {
    match advice {
        Advice::FixRequest => "fix_request",
        Advice::RetryCall => "retry_call",
        Advice::RetryTransaction => "retry_transaction",
        Advice::NewSession => "new_session",
        _ => "operator",
    }
}

pub(crate) fn error_to_proto(error: &Error) -> proto::Error {
    let mut wire = proto::Error {
        kind: error.kind().name().to_owned(),
        message: error.message().to_owned(),
        context: error
            .context()
            .map(|(name, value)| proto::Context { name: name.to_owned(), value: value.to_owned() })
            .collect(),
        advice: advice_name(error.advice()).to_owned(),
        ..Default::default()
    };
    match error.detail() {
        Some(Detail::Deadlock(cycle)) => {
            wire.deadlock = cycle
                .iter()
                .map(|edge| proto::DeadlockEdge {
                    waiter: edge.waiter.to_string(),
                    group: edge.table.group.as_str().to_owned(),
                    table: edge.table.name.as_str().to_owned(),
                    item: edge.item.clone(),
                    holder: edge.holder.to_string(),
                })
                .collect();
        }
        Some(Detail::RetryAfter(after)) => wire.retry_after_ms = Some(millis_up(*after)),
        Some(Detail::Owner { service, node, address }) => {
            wire.owner = Some(proto::Owner {
                service: service.get(),
                node: node.as_str().to_owned(),
                address: address.clone(),
            });
        }
        _ => {}
    }
    wire
}

pub(crate) fn error_from_proto(wire: proto::Error) -> Error {
    // A kind from a newer server: its sentence still says what to do.
    let kind = ErrorKind::from_name(&wire.kind).unwrap_or(ErrorKind::Internal);
    let mut error = Error::new(kind, wire.message);
    for context in wire.context {
        error = error.with(context.name, context.value);
    }
    let cycle: Vec<DeadlockEdge> = wire
        .deadlock
        .iter()
        .filter_map(|edge| {
            Some(DeadlockEdge {
                waiter: txn_id(&edge.waiter).ok()?,
                table: TableRef::new(&edge.group, &edge.table).ok()?,
                item: edge.item.clone(),
                holder: txn_id(&edge.holder).ok()?,
            })
        })
        .collect();
    if !cycle.is_empty() {
        return error.with_detail(Detail::Deadlock(cycle));
    }
    if let Some(after) = wire.retry_after_ms {
        return error.with_detail(Detail::RetryAfter(Duration::from_millis(after)));
    }
    if let Some((owner, node)) = wire.owner.and_then(|owner| NodeName::new(&owner.node).ok().map(|node| (owner, node))) {
        return error.with_detail(Detail::Owner { service: ServiceId::new(owner.service), node, address: owner.address });
    }
    error
}

/// A gRPC status whose details carry the whole error.
pub(crate) fn status(error: &Error) -> Status {
    Status::with_details(code(error.kind()), error.to_string(), error_to_proto(error).encode_to_vec().into())
}

/// The error that a status carries, or one made of the status if it is no server of ours that answers.
pub(crate) fn error_from_status(status: &Status) -> Error {
    if !status.details().is_empty()
        && let Ok(wire) = proto::Error::decode(status.details())
        && !wire.kind.is_empty()
    {
        return error_from_proto(wire);
    }
    let kind = match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => ErrorKind::InvalidArgument,
        Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::NotPermitted,
        Code::Cancelled => ErrorKind::Cancelled,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("the server could not be asked: {}", status.message())).with_source(status.clone())
}

#[cfg(test)]
mod tests {
    use lockservice_core::TxnId;

    use super::*;

    #[test]
    fn an_error_survives_the_wire_whatever_its_kind() {
        for kind in ErrorKind::ALL {
            let error = Error::new(*kind, "a sentence").with("path", "/x");
            let back = error_from_status(&status(&error));
            assert_eq!(back.kind(), *kind);
            assert_eq!(back.to_string(), error.to_string());
        }
    }

    #[test]
    fn its_particulars_survive_too() {
        let txn = |n| TxnId::new(ServiceId::new(1), n, true);
        let edge = |a, b| DeadlockEdge {
            waiter: txn(a),
            table: TableRef::new("g", "t").expect("names"),
            item: "k".into(),
            holder: txn(b),
        };
        let details = [
            Detail::Deadlock(vec![edge(1, 2), edge(2, 1)]),
            Detail::RetryAfter(Duration::from_millis(1500)),
            Detail::Owner { service: ServiceId::new(4), node: NodeName::new("n").expect("a name"), address: "a:1".into() },
        ];
        for detail in details {
            let error = Error::new(ErrorKind::Deadlock, "x").with_detail(detail.clone());
            assert_eq!(error_from_status(&status(&error)).detail(), Some(&detail));
        }
    }
}
