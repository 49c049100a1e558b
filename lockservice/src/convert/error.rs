//! Errors: a message of their own in the session stream, a gRPC status with that message among its
//! details elsewhere.

use std::time::Duration;

use lockservice_core::{
    Advice, Blocker, DeadlockEdge, Detail, Epoch, Error, ErrorKind, NodeName, Result, ServiceId,
    TableRef,
};
use prost::Message as _;
use tonic::{Code, Status};

use super::status::item_to_proto;
use super::{
    item_from_range, item_from_row, millis_up, mode_from_proto, mode_to_proto, txn_from_proto,
};
use crate::proto;

/// Most bytes of an error among a status' details. They travel in a header, as base64, beside the
/// status' message, which they contain once more; and peers refuse headers of more than 8 KiB in
/// all.
const DETAILS_BYTES_MAX: usize = 3_500;
/// Most bytes of a status' message; the details hold the whole sentence. A byte may take three in
/// the header.
const MESSAGE_BYTES_MAX: usize = 500;

/// `google.rpc.Status`: what gRPC libraries read from a status' details.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// What an [`Any`] that holds a [`proto::Error`] is called. The part before the slash may be
/// anything.
const ERROR_TYPE: &str = "type.googleapis.com/lockservice.v1.Error";

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
    message.epoch = error.answered_by().map(Epoch::get);
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
        // A particular that this version cannot send: the sentence says enough.
        Some(_) | None => {}
    }
    message
}

/// The error that a message tells of. A kind that this version does not know becomes `Internal`
/// with the kind's name in the context; particulars that cannot be read are left out, for the error
/// itself matters more.
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
        error = error.with_answered_by(Epoch::new(epoch));
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

/// The error as a gRPC status; [`from_status`] leads back. A cycle or a key too long for a header
/// is left out of the details.
pub fn to_status(error: &Error) -> Status {
    let mut message = error_to_proto(error);
    if message.encoded_len() > DETAILS_BYTES_MAX {
        message.deadlock = Vec::new();
        message.blocker = None;
    }
    if message.encoded_len() > DETAILS_BYTES_MAX {
        message.context = Vec::new();
        truncate(&mut message.message, DETAILS_BYTES_MAX / 2);
    }
    let mut text = error.to_string();
    truncate(&mut text, MESSAGE_BYTES_MAX);
    let code = code(error.kind());
    // Libraries compare code and message with those of the status itself.
    let details = RpcStatus {
        code: code.into(),
        message: text.clone(),
        details: vec![Any { type_url: ERROR_TYPE.to_owned(), value: message.encode_to_vec() }],
    };
    Status::with_details(code, text, details.encode_to_vec().into())
}

/// The error among the details of a status, if it is of this service's making.
fn error_of(status: &Status) -> Option<proto::Error> {
    let name = |url: &str| url.rsplit('/').next() == ERROR_TYPE.rsplit('/').next();
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let packed = details.into_iter().find(|detail| name(&detail.type_url))?;
    proto::Error::decode(packed.value.as_slice()).ok()
}

/// The error that a failed call tells of. A status that is not of this service's making (the
/// transport's, a proxy's) is mapped by its code.
pub fn from_status(status: &Status) -> Error {
    if let Some(message) = error_of(status)
        && ErrorKind::from_name(&message.kind).is_some()
    {
        return error_from_proto(message);
    }
    let (kind, text) = match status.code() {
        Code::InvalidArgument => (ErrorKind::InvalidArgument, "the server refused the request"),
        // The transport's word for a message that is too large.
        Code::OutOfRange => (
            ErrorKind::InvalidArgument,
            "the server refused the request as too large: ask for less at a time",
        ),
        Code::ResourceExhausted => (
            ErrorKind::ResourceExhausted,
            "the server refused the request as too much: ask for less, or later",
        ),
        Code::PermissionDenied | Code::Unauthenticated => {
            (ErrorKind::NotPermitted, "the server does not permit this")
        }
        Code::DeadlineExceeded => (ErrorKind::Timeout, "the call took too long"),
        Code::Unimplemented => (
            ErrorKind::InvalidArgument,
            "the server does not know this call: is it a lockservice of this version?",
        ),
        Code::DataLoss | Code::Internal => {
            (ErrorKind::Unavailable, "the connection to the server broke: try again")
        }
        _ => (
            ErrorKind::Unavailable,
            "the server cannot be reached: is it running, is the address right, and has it room \
                for one more connection?",
        ),
    };
    let error = Error::new(kind, text);
    if status.message().is_empty() { error } else { error.with("status", status.message()) }
}

/// The gRPC status code of an error kind.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotPermitted => Code::PermissionDenied,
        ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::BindChanged => Code::Aborted,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Reassigning | ErrorKind::ShuttingDown | ErrorKind::Unavailable => {
            Code::Unavailable
        }
        ErrorKind::TxnNotFound | ErrorKind::TableNotFound => Code::NotFound,
        ErrorKind::HeldByAncestor
        | ErrorKind::NotOwner
        | ErrorKind::TableInUse
        | ErrorKind::NotLeader
        | ErrorKind::SpansNodes
        | ErrorKind::CannotCommit
        | ErrorKind::SessionLost
        | ErrorKind::LeaseLost
        | ErrorKind::Fenced
        | ErrorKind::StoreInUse
        | ErrorKind::StoreNewer
        | ErrorKind::StoreUnusable => Code::FailedPrecondition,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::NameInUse => Code::AlreadyExists,
        ErrorKind::StoreCorrupt => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
        // `UnknownOutcome`, and kinds that came after this was written.
        _ => Code::Unknown,
    }
}

fn advice_name(advice: Advice) -> &'static str {
    match advice {
        Advice::FixRequest => "fix_request",
        Advice::RetryCall => "retry_call",
        Advice::RetryTransaction => "retry_transaction",
        Advice::NewSession => "new_session",
        // The safest advice for a piece of advice that came after this was written.
        _ => "operator",
    }
}

fn edge_to_proto(edge: &DeadlockEdge) -> proto::DeadlockEdge {
    proto::DeadlockEdge {
        waiter: edge.waiter.to_string(),
        group: edge.table.group.to_string(),
        table: edge.table.name.to_string(),
        item: edge.item.clone(),
        holder: edge.holder.to_string(),
        mode: mode_to_proto(edge.mode),
        asker: edge.asker,
        label: edge.label.clone(),
        client: edge.client.clone(),
    }
}

fn cycle_from_proto(edges: &[proto::DeadlockEdge]) -> Option<Vec<DeadlockEdge>> {
    if edges.is_empty() {
        return None;
    }
    let edge = |edge: &proto::DeadlockEdge| {
        Some(DeadlockEdge {
            waiter: edge.waiter.parse().ok()?,
            table: TableRef::new(&edge.group, &edge.table).ok()?,
            item: edge.item.clone(),
            mode: mode_from_proto(edge.mode).ok()?,
            holder: edge.holder.parse().ok()?,
            asker: edge.asker,
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
            Some(Item::Range(range)) => item_from_range(range)?,
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

fn truncate(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use lockservice_core::{Key, KeyRange, LockItem, LockMode, TxnId};

    use super::*;

    fn same(a: &Error, b: &Error) {
        assert_eq!(a.kind(), b.kind());
        assert_eq!(a.message(), b.message());
        assert_eq!(a.context().collect::<Vec<_>>(), b.context().collect::<Vec<_>>());
        assert_eq!(a.detail(), b.detail());
        assert_eq!(a.advice(), b.advice());
        assert_eq!(a.answered_by(), b.answered_by());
    }

    fn edge(a: u64, b: u64) -> DeadlockEdge {
        DeadlockEdge {
            waiter: TxnId::new(ServiceId::new(1 << 32 | 1), a, true),
            table: TableRef::new("g", "té").expect("a name"),
            item: "[a, b)".to_owned(),
            mode: if a < b { LockMode::Shared } else { LockMode::Exclusive },
            holder: TxnId::new(ServiceId::new(1 << 32 | 1), b, false),
            asker: a < b,
            label: "nightly".to_owned(),
            client: "lock@héost:1".to_owned(),
        }
    }

    fn blocker(item: LockItem) -> Blocker {
        Blocker {
            txn: TxnId::new(ServiceId::new(1), 2, true),
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
                error.with_answered_by(Epoch::new(7))
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

    #[test]
    fn a_status_fits_into_a_header_whatever_the_error() {
        let cycle = (0..10_000).map(|n| edge(n, n + 1)).collect();
        let error = Error::new(ErrorKind::Deadlock, "é".repeat(10_000))
            .with_detail(Detail::Deadlock(cycle));
        let status = to_status(&error);
        let header = status.details().len().div_ceil(3) * 4 + 3 * status.message().len();
        assert!(header < 7_500, "{header} bytes of header");
        assert_eq!(from_status(&status).kind(), ErrorKind::Deadlock);
        let key = Key::new([b'k'; 4_096]).expect("a key");
        let range =
            KeyRange::new(std::ops::Bound::Included(key.clone()), std::ops::Bound::Included(key));
        let long = blocker(LockItem::Range(range.expect("one key")));
        let status =
            to_status(&Error::new(ErrorKind::Conflict, "m").with_detail(Detail::Blocked(long)));
        assert!(
            status.details().len() <= DETAILS_BYTES_MAX
                && status.message().len() <= MESSAGE_BYTES_MAX + 3
        );
        assert_eq!(from_status(&status).kind(), ErrorKind::Conflict);
    }

    #[test]
    fn the_details_of_a_status_are_what_grpc_libraries_expect() {
        let status = to_status(&Error::new(ErrorKind::Conflict, "m"));
        let details = status.details();
        // google.rpc.Status { code: 10 (ABORTED), message, details: [Any { type_url, value }] },
        // byte by byte.
        let text = status.message();
        let mut expected = vec![0x08, 10, 0x12, text.len() as u8];
        expected.extend_from_slice(text.as_bytes());
        let error = error_to_proto(&Error::new(ErrorKind::Conflict, "m")).encode_to_vec();
        let mut any = vec![0x0a, ERROR_TYPE.len() as u8];
        any.extend_from_slice(ERROR_TYPE.as_bytes());
        any.extend_from_slice(&[0x12, error.len() as u8]);
        any.extend_from_slice(&error);
        expected.extend_from_slice(&[0x1a, any.len() as u8]);
        expected.extend_from_slice(&any);
        assert_eq!(details, expected);
    }

    #[test]
    fn a_foreign_status_says_whether_trying_again_helps() {
        assert_eq!(from_status(&Status::unavailable("x")).kind(), ErrorKind::Unavailable);
        assert_eq!(from_status(&Status::out_of_range("x")).kind(), ErrorKind::InvalidArgument);
        assert_eq!(
            from_status(&Status::with_details(Code::Unknown, "x", vec![255, 255].into())).kind(),
            ErrorKind::Unavailable
        );
    }
}
