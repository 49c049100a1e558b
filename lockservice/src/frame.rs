//! The frames of a session stream, as bytes.
//!
//! A frame carries many small operations, and both sides make and read one for nearly every lock.
//! So no message of a whole frame is built. [`FrameCodec`] hands over the bytes; [`Ops`] walks over
//! the operations in them, and each is decoded for itself, into a message that is used again;
//! [`push`] appends an operation to the frame that goes out.
//!
//! A frame on the wire is a `ClientFrame` or a `ServerFrame`: operations as field 1, and in the
//! latter the number of quiet operations that are done, and a promise.

use std::ops::Range;

use lockservice_core::{Error, ErrorKind, Result};
use prost::Message;
use prost::bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// The session stream among the calls of `Locks`.
pub(crate) const SESSION_PATH: &str = "/lockservice.v1.Locks/Session";

/// The number of `ops` in either frame, and of `id` in either operation.
const OPS: u32 = 1;
const ID: u32 = 1;
/// The numbers of `quiet_done` and `valid_for_ms` in a `ServerFrame`.
const QUIET_DONE: u32 = 2;
const VALID_FOR_MS: u32 = 3;

/// Hands frames over as they are. The transport bounds their size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for FrameCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, frame: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(frame);
        Ok(())
    }
}

impl Decoder for FrameCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        // No copy: the parts of the buffer are shared.
        Ok(Some(frame.copy_to_bytes(frame.remaining())))
    }
}

/// One operation of a frame, or the response to one. Its parts are taken out of the frame when they
/// are needed: each shares the frame's memory, which costs more than to find it.
#[derive(Debug)]
pub(crate) struct Op<'a> {
    frame: &'a Bytes,
    whole: Range<usize>,
    /// Its id; 0 if it has none.
    pub(crate) id: u64,
    message: Option<(u32, Range<usize>)>,
}

impl Op<'_> {
    /// The whole of it: a `ClientOp` or a `ServerOp`.
    pub(crate) fn whole(&self) -> Bytes {
        self.frame.slice(self.whole.clone())
    }

    /// The number of the one message in it, and how long that is. `None` if it is of another form;
    /// the whole of it says what it is then.
    pub(crate) fn kind(&self) -> Option<(u32, usize)> {
        self.message.as_ref().map(|(number, message)| (*number, message.len()))
    }

    /// The one message in it; empty if it is of another form.
    pub(crate) fn message(&self) -> Bytes {
        self.message.as_ref().map_or_else(Bytes::new, |(_, at)| self.frame.slice(at.clone()))
    }
}

/// The operations of a frame, in their order.
#[derive(Debug)]
pub(crate) struct Ops {
    frame: Bytes,
    at: usize,
    #[cfg_attr(not(feature = "client"), allow(dead_code, reason = "only a client reads it"))]
    quiet_done: u64,
    #[cfg_attr(not(feature = "client"), allow(dead_code, reason = "only a client reads it"))]
    valid_for_ms: u64,
}

impl Ops {
    pub(crate) fn of(frame: Bytes) -> Self {
        Self { frame, at: 0, quiet_done: 0, valid_for_ms: 0 }
    }

    /// How many quiet operations of the stream the frame says are done; 0 if it says nothing. To be
    /// read when all operations were.
    #[cfg(any(feature = "client", test))]
    pub(crate) fn quiet_done(&self) -> u64 {
        self.quiet_done
    }

    /// The promise of the session, raw, that the frame says; zero if it says none. To be read when
    /// all operations were.
    #[cfg(any(feature = "client", test))]
    pub(crate) fn valid_for(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.valid_for_ms)
    }

    /// The next one. After an error nothing follows.
    ///
    /// # Errors
    /// `InvalidArgument` if the frame is malformed.
    pub(crate) fn next(&mut self) -> Option<Result<Op<'_>>> {
        while self.at < self.frame.len() {
            match next_field(&self.frame, self.at..self.frame.len()) {
                Ok((OPS, Some(Field::Bytes(whole)), end)) => {
                    self.at = end;
                    return Some(read_op(&self.frame, whole));
                }
                Ok((QUIET_DONE, Some(Field::Number(done)), end)) => {
                    (self.quiet_done, self.at) = (done, end);
                }
                Ok((VALID_FOR_MS, Some(Field::Number(valid_for)), end)) => {
                    (self.valid_for_ms, self.at) = (valid_for, end);
                }
                // Of a later version.
                Ok((_, _, end)) => self.at = end,
                Err(e) => {
                    self.at = self.frame.len();
                    return Some(Err(e));
                }
            }
        }
        None
    }
}

fn read_op(frame: &Bytes, whole: Range<usize>) -> Result<Op<'_>> {
    let (mut id, mut message) = (0, None);
    let (mut at, mut is_plain) = (whole.start, true);
    while at < whole.end {
        let (number, field, end) = next_field(frame, at..whole.end)?;
        at = end;
        match field {
            Some(Field::Number(number_of_op)) if number == ID => id = number_of_op,
            Some(Field::Bytes(range)) if message.is_none() => message = Some((number, range)),
            _ => is_plain = false,
        }
    }
    Ok(Op { frame, whole, id, message: message.filter(|_| is_plain) })
}

enum Field {
    Number(u64),
    Bytes(Range<usize>),
}

/// The field that stands first in `range`, and where it ends. `None` for one of a kind that no
/// operation has.
fn next_field(frame: &Bytes, range: Range<usize>) -> Result<(u32, Option<Field>, usize)> {
    let Some(mut rest) = frame.get(range.clone()) else { return Err(too_short()) };
    let (number, wire_type) = decode_key(&mut rest).map_err(malformed)?;
    let field = match wire_type {
        WireType::Varint => Some(Field::Number(decode_varint(&mut rest).map_err(malformed)?)),
        WireType::LengthDelimited => {
            let length = decode_varint(&mut rest).map_err(malformed)?;
            let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
            let Some(length) = length else { return Err(too_short()) };
            let start = range.end - rest.len();
            rest = &rest[length..];
            Some(Field::Bytes(start..start + length))
        }
        other => {
            skip_field(other, number, &mut rest, DecodeContext::default()).map_err(malformed)?;
            None
        }
    };
    Ok((number, field, range.end - rest.len()))
}

fn malformed(error: prost::DecodeError) -> Error {
    too_short().with_source(error)
}

fn too_short() -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "the frame is malformed: is the other side made from this proto file?",
    )
}

/// Says in a frame that the first `done` quiet operations of its stream are done.
#[cfg(any(feature = "server", test))]
pub(crate) fn push_quiet_done(frame: &mut BytesMut, done: u64) {
    prost::encoding::uint64::encode(QUIET_DONE, &done, frame);
}

/// Says in a frame for how long the session is promised. Zero says nothing.
#[cfg(any(feature = "server", test))]
pub(crate) fn push_valid_for(frame: &mut BytesMut, valid_for_ms: u64) {
    if valid_for_ms > 0 {
        prost::encoding::uint64::encode(VALID_FOR_MS, &valid_for_ms, frame);
    }
}

/// Appends an operation to a frame.
pub(crate) fn push(frame: &mut BytesMut, op: &impl Message) {
    let length = op.encoded_len();
    begin_op(frame, length);
    op.encode_raw(frame);
}

/// Appends an operation that is one message, of which `parts` are the encoded fields.
#[cfg(feature = "client")]
pub(crate) fn push_encoded(frame: &mut BytesMut, id: u64, number: u32, parts: [&[u8]; 2]) {
    use prost::encoding::{encoded_len_varint, key_len, uint64};
    let length = parts[0].len() + parts[1].len();
    let of_message = key_len(number) + encoded_len_varint(length as u64) + length;
    begin_op(frame, uint64::encoded_len(ID, &id) + of_message);
    uint64::encode(ID, &id, frame);
    encode_key(number, WireType::LengthDelimited, frame);
    encode_varint(length as u64, frame);
    parts.iter().for_each(|part| frame.put_slice(part));
}

fn begin_op(frame: &mut BytesMut, length: usize) {
    frame.reserve(length + 16);
    encode_key(OPS, WireType::LengthDelimited, frame);
    encode_varint(length as u64, frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{self, client_op, server_op};

    fn lock() -> proto::LockOp {
        let rows = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        proto::LockOp { table: "t".to_owned(), rows, ..proto::LockOp::default() }
    }

    fn frame() -> proto::ClientFrame {
        let op = |id, op| proto::ClientOp { id, op };
        proto::ClientFrame {
            ops: vec![
                op(1, Some(client_op::Op::Lock(lock()))),
                op(300, Some(client_op::Op::Heartbeat(proto::Heartbeat::default()))),
                op(0, None),
            ],
        }
    }

    #[test]
    fn the_operations_of_a_frame_are_those_of_its_message() {
        let frame = frame();
        let mut ops = Ops::of(frame.encode_to_vec().into());
        let messages = [Some((4, lock().encode_to_vec())), Some((3, Vec::new())), None];
        for (op, message) in frame.ops.iter().zip(messages) {
            let read = ops.next().expect("one more").expect("valid");
            assert_eq!(read.id, op.id);
            assert_eq!(&proto::ClientOp::decode(read.whole()).expect("valid"), op);
            assert_eq!(read.kind().map(|(number, _)| (number, read.message().to_vec())), message);
        }
        assert!(ops.next().is_none());
    }

    #[test]
    fn a_frame_that_was_put_together_is_the_frame_of_its_operations() {
        let frame = frame();
        let mut together = BytesMut::new();
        for op in &frame.ops {
            push(&mut together, op);
        }
        assert_eq!(together, frame.encode_to_vec());
        let done = proto::ServerOp {
            id: 1 << 40,
            response: Some(server_op::Response::Done(proto::Done { released: 9 })),
        };
        let mut out = BytesMut::new();
        push(&mut out, &done);
        push_quiet_done(&mut out, 300);
        push_valid_for(&mut out, 0);
        push_valid_for(&mut out, 70_000);
        let frame = proto::ServerFrame { ops: vec![done], quiet_done: 300, valid_for_ms: 70_000 };
        assert_eq!(out, frame.encode_to_vec());
        let mut ops = Ops::of(out.freeze());
        assert!(ops.next().is_some_and(|op| op.is_ok()) && ops.next().is_none());
        assert_eq!((ops.quiet_done(), ops.valid_for().as_millis()), (300, 70_000));
    }

    #[cfg(feature = "client")]
    #[test]
    fn an_operation_may_be_put_together_of_encoded_fields() {
        let whole = proto::LockOp { timeout_ms: Some(7), ..lock() };
        let rest = proto::LockOp { timeout_ms: Some(7), ..proto::LockOp::default() };
        let mut out = BytesMut::new();
        push_encoded(&mut out, 300, 4, [&lock().encode_to_vec(), &rest.encode_to_vec()]);
        let op = proto::ClientOp { id: 300, op: Some(client_op::Op::Lock(whole)) };
        assert_eq!(
            proto::ClientFrame::decode(out.freeze()),
            Ok(proto::ClientFrame { ops: vec![op] })
        );
    }

    #[test]
    fn an_operation_of_an_unknown_form_is_left_to_its_whole() {
        // Field 99 of a `ClientOp`, and an id of another type.
        for bytes in
            [&[0x0a, 0x07, 0x08, 1, 0x1a, 0, 0x98, 0x06, 5][..], &[0x0a, 0x05, 0x0d, 1, 2, 3, 4]]
        {
            let mut ops = Ops::of(Bytes::from_static(bytes));
            assert_eq!(ops.next().expect("one").expect("well formed").kind(), None);
        }
    }

    #[test]
    fn a_malformed_frame_is_an_error_and_ends_there() {
        let whole = frame().encode_to_vec();
        let (first, rest) = whole.split_at(whole.len() - 3);
        assert_eq!(rest.len(), 3);
        for bytes in [&first[..first.len() - 1], &[0x0b], &[0x0e], &[0x0a, 0x7f], &[0xff; 11]] {
            let mut ops = Ops::of(Bytes::copy_from_slice(bytes));
            let refused = loop {
                if let Err(e) = ops.next().expect("an error") {
                    break e;
                }
            };
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
            assert!(ops.next().is_none());
        }
    }
}
