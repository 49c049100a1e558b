//! The responses of a stream, as they are read.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use lockservice_core::service::{Granted, Promise};
use lockservice_core::table::Savepoint;
use lockservice_core::{Error, ErrorKind, Result};
use prost::Message as _;
use prost::bytes::Bytes;

use super::node_session::SessionShared;
use super::outbox::{OpId, Response, ResponseEffect};
use crate::convert::{
    KnownTables, error_from_proto, granted_from_proto, txn_lost_from_proto, waiting_from_proto,
};
use crate::{codec, frame, proto};

/// The number of the message of a grant in a `ServerOp`, and of any other good response.
const LOCKED: u32 = 4;
const DONE: u32 = 5;

/// Reads the responses of one stream.
#[derive(Debug, Default)]
pub(super) struct ResponseReader {
    tables: KnownTables,
    /// The last grant: its memory is used again.
    locked: proto::Locked,
}

impl ResponseReader {
    fn granted(&mut self, message: Bytes) -> Result<Granted> {
        let mut bind = self.locked.bind.take();
        self.locked.clear();
        // One that the message lacks is left without names, which is an error.
        bind.iter_mut().for_each(proto::Bind::clear);
        self.locked.bind = bind;
        self.locked.merge(message).map_err(codec::malformed)?;
        granted_from_proto(&self.locked, &mut self.tables)
    }
}

/// True if a frame has responses to several lock calls, whose callers go on at once.
pub(super) fn goes_to_several(frame: &Bytes) -> bool {
    let mut ops = frame::Ops::of(frame.clone());
    let mut grants = 0;
    // A malformed frame is an error where it is read.
    while grants < 2
        && let Some(Ok(op)) = ops.next()
    {
        grants += u32::from(op.kind().is_some_and(|(number, _)| number == LOCKED));
    }
    grants == 2
}

/// Resolves when the tasks that were woken before had a turn, as far as they run on this thread.
pub(super) async fn let_others_go_first() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Takes a response or a notice into account. A grant counts if `accept` allows it.
pub(super) fn take_in(
    shared: &SessionShared,
    reader: &mut ResponseReader,
    op: &frame::Op<'_>,
    accept: &Result<()>,
) -> ResponseEffect {
    let response = match op.kind() {
        Some((LOCKED, _)) => Ok(Response::Granted(reader.granted(op.message()))),
        Some((DONE, _)) => Ok(Response::Done),
        _ => match codec::decode::<proto::ServerOp>(op.whole()) {
            Ok(op) => match take_rare(shared, op) {
                Ok(response) => response,
                Err(effect) => return effect,
            },
            Err(e) => Err(e),
        },
    };
    shared.outbox.take_response(OpId::new(op.id), response, accept)
}

/// A response of any kind; or the effect of a notice.
fn take_rare(
    shared: &SessionShared,
    op: proto::ServerOp,
) -> std::result::Result<Result<Response>, ResponseEffect> {
    use proto::server_op::Response as Wire;
    Ok(match op.response {
        Some(Wire::Notice(notice)) => return Err(take_notice(shared, notice)),
        Some(Wire::Error(error)) => Err(error_from_proto(error)),
        Some(Wire::Promise(promise)) => {
            let valid_for = Duration::from_millis(promise.valid_for_ms);
            Ok(Response::Promise(Promise { valid_for }))
        }
        Some(Wire::Savepoint(savepoint)) => {
            Ok(Response::Savepoint(Savepoint::new(savepoint.number)))
        }
        Some(_) => Ok(Response::Done),
        None => Err(Error::new(
            ErrorKind::Internal,
            "the server sent a response that this client does not know",
        )),
    })
}

/// Takes a notice into account.
pub(super) fn take_notice(shared: &SessionShared, notice: proto::Notice) -> ResponseEffect {
    use proto::notice::Notice;
    match notice.notice {
        Some(Notice::SessionLost(error)) => return ResponseEffect::Lost(error_from_proto(error)),
        Some(Notice::Restarting(_)) => return ResponseEffect::Restarting,
        Some(Notice::ShuttingDown(_)) => shared.lose(Error::new(
            ErrorKind::ShuttingDown,
            "the server is shutting down: stop the protected work, then close the session",
        )),
        // A notice is a hint: one that cannot be read is ignored.
        Some(Notice::Waiting(waiting)) => {
            if let Ok(waiting) = waiting_from_proto(waiting) {
                shared.outbox.waiting(waiting);
            }
        }
        Some(Notice::TxnLost(lost)) => {
            let (number, why) = txn_lost_from_proto(lost);
            shared.lose_txn(number, why);
        }
        // Another stream has the session, or a notice of a newer server.
        Some(_) | None => {}
    }
    ResponseEffect::None
}

/// The frames of a server, as far as they are read without the operations that were sent.
///
/// # Panics
/// If a grant is read otherwise after others than on its own: memory is used again.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_server_frame(input: &[u8]) {
    use proto::notice::Notice;
    use proto::server_op::Response as Wire;
    let frame = Bytes::copy_from_slice(input);
    goes_to_several(&frame);
    let (mut used, mut ops) = (ResponseReader::default(), frame::Ops::of(frame));
    while let Some(Ok(op)) = ops.next() {
        if let Some((LOCKED, _)) = op.kind() {
            let grants = [&mut used, &mut ResponseReader::default()]
                .map(|reader| reader.granted(op.message()).ok());
            assert_eq!(grants[0], grants[1]);
            continue;
        }
        match codec::decode::<proto::ServerOp>(op.whole()).ok().and_then(|op| op.response) {
            Some(Wire::Error(error)) => drop(error_from_proto(error)),
            Some(Wire::Notice(proto::Notice { notice: Some(Notice::SessionLost(error)) })) => {
                drop(error_from_proto(error));
            }
            Some(Wire::Notice(proto::Notice { notice: Some(Notice::Waiting(waiting)) })) => {
                drop(waiting_from_proto(waiting));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::bytes::BytesMut;
    use proto::server_op::Response as Wire;

    use super::*;

    #[test]
    fn the_numbers_of_the_usual_responses_are_those_of_the_messages() {
        let number = |response| {
            let mut frame = BytesMut::new();
            frame::push(&mut frame, &proto::ServerOp { id: 1, response: Some(response) });
            let mut ops = frame::Ops::of(frame.freeze());
            ops.next().expect("one").expect("well formed").kind().expect("one message").0
        };
        assert_eq!(number(Wire::Locked(proto::Locked::default())), LOCKED);
        assert_eq!(number(Wire::Done(proto::Done::default())), DONE);
    }

    #[test]
    fn nothing_of_one_grant_is_in_the_next() {
        let bind = |partition| proto::Bind {
            group: "g".to_owned(),
            table: "t".to_owned(),
            partition,
            ..proto::Bind::default()
        };
        let locked = |token, partition| proto::Locked {
            txn: "1-2".to_owned(),
            bind: Some(bind(partition)),
            token,
            ..proto::Locked::default()
        };
        let mut reader = ResponseReader::default();
        let mut granted = |locked: proto::Locked| reader.granted(locked.encode_to_vec().into());
        assert_eq!(granted(locked(7, 3)).expect("whole").grant.bind.partition, 3);
        let next = granted(locked(0, 0)).expect("whole");
        assert_eq!((next.grant.bind.partition, next.grant.token.get()), (0, 0));
        let without = proto::Locked { bind: None, ..locked(1, 1) };
        assert_eq!(granted(without).expect_err("no bind").kind(), ErrorKind::InvalidArgument);
    }
}
