//! Errors as gRPC statuses.

use lockservice_core::{Error, ErrorKind};
use prost::Message as _;
use tonic::{Code, Status};

use super::{error_from_proto, error_to_proto};
use crate::channel::refusal;
use crate::proto;

/// The most bytes of an error among a status' details. They travel in a header, as base64, beside
/// the status' message, which they contain once more; and peers refuse headers of more than 8 KiB
/// in all.
const DETAILS_BYTES_MAX: usize = 3_500;
/// The most bytes of a status' message; the details hold the whole sentence. A byte may take three
/// in the header.
const MESSAGE_BYTES_MAX: usize = 500;

/// `google.rpc.Status`: the form in which gRPC libraries read a status' details.
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

/// The type name of an [`Any`] that holds a [`proto::Error`]. The part before the slash may be
/// anything.
const ERROR_TYPE: &str = "type.googleapis.com/lockservice.v1.Error";

/// The error as a gRPC status; [`from_status`] is the inverse. A cycle or a key too long for a
/// header is left out of the details.
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

/// The error among the details of a status, if it comes from this service.
fn error_of(status: &Status) -> Option<proto::Error> {
    let name = |url: &str| url.rsplit('/').next() == ERROR_TYPE.rsplit('/').next();
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let packed = details.into_iter().find(|detail| name(&detail.type_url))?;
    proto::Error::decode(packed.value.as_slice()).ok()
}

/// The error of a failed call. A status that does not come from this service (but from the
/// transport, or a proxy) is mapped by its code.
pub fn from_status(status: &Status) -> Error {
    if let Some(message) = error_of(status)
        && ErrorKind::from_name(&message.kind).is_some()
    {
        return error_from_proto(message);
    }
    if let Some(refusal) = refusal(status) {
        // A certificate may be replaced while the caller tries again.
        return Error::new(ErrorKind::Unavailable, refusal.message());
    }
    let (kind, text) = match status.code() {
        Code::InvalidArgument => (ErrorKind::InvalidArgument, "the server refused the request"),
        // The transport reports a message that is too large with this code.
        Code::OutOfRange => (
            ErrorKind::InvalidArgument,
            "the server refused the request as too large: request less at a time",
        ),
        Code::ResourceExhausted => (
            ErrorKind::ResourceExhausted,
            "the server refused the request as too much: request less, or try later",
        ),
        Code::PermissionDenied => (ErrorKind::NotPermitted, "the server does not permit this"),
        Code::Unauthenticated => {
            (ErrorKind::Unauthenticated, "the server does not know the caller")
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
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::BindChanged => Code::Aborted,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Reassigning
        | ErrorKind::ShuttingDown
        | ErrorKind::Restarting
        | ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::TxnNotFound | ErrorKind::SessionNotFound | ErrorKind::TableNotFound => {
            Code::NotFound
        }
        ErrorKind::HeldByAncestor
        | ErrorKind::NotOwner
        | ErrorKind::TableInUse
        | ErrorKind::NotLeader
        | ErrorKind::SpansNodes
        | ErrorKind::CannotCommit
        | ErrorKind::SessionLost
        | ErrorKind::Killed
        | ErrorKind::TxnKilled
        | ErrorKind::ClaimRefused
        | ErrorKind::LeaseLost
        | ErrorKind::Fenced
        | ErrorKind::StoreInUse
        | ErrorKind::StoreNewer
        | ErrorKind::StoreUnusable => Code::FailedPrecondition,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::NameInUse => Code::AlreadyExists,
        ErrorKind::StoreCorrupt => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
        // `UnknownOutcome`, and kinds that a later version added.
        _ => Code::Unknown,
    }
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
    use lockservice_core::{Detail, Key, KeyRange, LockItem};

    use super::*;
    use crate::convert::error::tests::{blocker, edge};

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
