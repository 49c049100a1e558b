//! The codec of every RPC but the session stream, which `frame.rs` reads: protobuf, with a bound on
//! what a message is once it is decoded.
//!
//! The size of a message on the wire says little about its size in memory: an empty operation is
//! two bytes there and about two hundred here, so 4 MiB of them became 390 MB. So the
//! decoder first walks over the message and adds up what its parts will cost, by the shape of its
//! type, and refuses one that costs too much before anything is allocated. The walk needs no memory
//! and no recursion beyond the depth of the types.
//!
//! The shapes are made from the proto file when the crate is built (`build.rs`), so that no RPC and
//! no field can be forgotten.

use std::marker::PhantomData;

use lockservice_core::{Error, ErrorKind, Result};
use prost::Message;
use prost::bytes::{Buf, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use crate::convert::to_status;

/// The most bytes that the parts of one message may take in memory, beside the bytes of the message
/// itself: 8 MiB. The largest request that the server accepts, 20,000 ranges, takes about half.
pub(crate) const PARTS_BYTES_MAX: usize = 8 << 20;

/// The cost of a string or a sequence of bytes beside its contents.
const BYTES_FIELD: usize = 32;

/// The cost of a decoded message.
#[derive(Debug)]
pub struct Shape {
    /// The message itself.
    pub bytes: usize,
    /// The fields that cost more than their place in the message, by number.
    pub fields: &'static [(i32, Field)],
}

/// The cost of one occurrence of a field.
#[derive(Debug)]
pub enum Field {
    /// A message, and its parts.
    Message(&'static Shape),
    /// A string or bytes.
    Bytes,
    /// Repeated numbers.
    Numbers,
}

/// A message whose cost is known.
pub trait Shaped {
    /// Its cost.
    const SHAPE: &'static Shape;
}

include!(concat!(env!("OUT_DIR"), "/shapes.rs"));

/// The bytes that the parts of `message` take once it is decoded, at least; stops to count above
/// `most`. Fails with `InvalidArgument` if the message is malformed.
fn parts_bytes(mut message: &[u8], shape: &Shape, most: usize) -> Result<usize> {
    let mut bytes = 0usize;
    while !message.is_empty() && bytes <= most {
        let key = varint(&mut message)?;
        let field = field(shape, key >> 3);
        let content = match key & 7 {
            0 => varint(&mut message).map(|_| &[][..])?,
            1 => take(&mut message, 8)?,
            2 => {
                let length = varint(&mut message)?;
                take(&mut message, length)?
            }
            5 => take(&mut message, 4)?,
            _ => return Err(is_malformed()),
        };
        bytes += match field {
            Some(Field::Message(shape)) => shape.bytes + parts_bytes(content, shape, most - bytes)?,
            Some(Field::Bytes) => BYTES_FIELD,
            // Packed or one by one.
            Some(Field::Numbers) => size_of::<u64>() * content.len().max(1),
            None => 0,
        };
    }
    Ok(bytes)
}

fn field(shape: &Shape, number: usize) -> Option<&'static Field> {
    shape
        .fields
        .iter()
        .find(|(known, _)| usize::try_from(*known) == Ok(number))
        .map(|(_, field)| field)
}

fn varint(message: &mut &[u8]) -> Result<usize> {
    prost::decode_length_delimiter(message).map_err(malformed)
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    message.split_off(..length).ok_or_else(is_malformed)
}

pub(crate) fn malformed(error: prost::DecodeError) -> Error {
    is_malformed().with_source(error)
}

fn is_malformed() -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "the message is malformed: is the client made from this server's proto file?",
    )
}

/// Decodes `message`, unless its parts would take too much memory.
pub(crate) fn decode<U: Message + Default + Shaped>(message: Bytes) -> Result<U> {
    let bytes = parts_bytes(&message, U::SHAPE, PARTS_BYTES_MAX)?;
    if bytes > PARTS_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "the message has too many parts: send fewer operations, keys or names at a time",
        )
        .with("bytes", message.len())
        .with("decoded_bytes_max", PARTS_BYTES_MAX));
    }
    U::decode(message).map_err(malformed)
}

/// Encodes `T`, and decodes `U` as described in the module.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Shaped + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// The decoder of [`BoundedCodec`].
#[derive(Debug)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Default + Shaped> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // No copy: the parts of the buffer are shared.
        let message = message.copy_to_bytes(message.remaining());
        decode(message).map(Some).map_err(|e| to_status(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    /// The cost of `message` once it is decoded, by its bytes.
    fn decoded<U: Message + Default + Shaped>(message: &impl Message) -> Result<U> {
        decode(message.encode_to_vec().into())
    }

    fn is_refused<U: Message + Default + Shaped + std::fmt::Debug>(message: &impl Message) {
        let refused = decoded::<U>(message).expect_err("too many parts");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(refused.to_string().contains("too many parts"), "{refused}");
    }

    #[test]
    fn the_largest_request_is_decoded() {
        let key = |at: u32| {
            Some(proto::Bound {
                bound: Some(proto::bound::Bound::Included(at.to_be_bytes().to_vec().into())),
            })
        };
        let ranges =
            (0..20_000).map(|at| proto::KeyRange { start: key(at), end: key(at) }).collect();
        let lock = proto::LockOp { table: "t".to_owned(), ranges, ..proto::LockOp::default() };
        let op = proto::ClientOp { id: 1, op: Some(proto::client_op::Op::Lock(lock)) };
        let frame = proto::ClientFrame { ops: vec![op] };
        assert_eq!(decoded::<proto::ClientFrame>(&frame).expect("within the bound"), frame);
    }

    #[test]
    fn a_frame_of_empty_operations_is_refused() {
        // 2 bytes each.
        is_refused::<proto::ClientFrame>(&proto::ClientFrame {
            ops: vec![proto::ClientOp::default(); 300_000],
        });
    }

    #[test]
    fn acknowledgements_and_empty_keys_and_names_are_counted_where_they_stand() {
        let frame = |op| proto::ClientFrame { ops: vec![proto::ClientOp { id: 1, op: Some(op) }] };
        let acked = vec![proto::Acked::default(); 600_000];
        is_refused::<proto::ClientFrame>(&frame(proto::client_op::Op::Heartbeat(
            proto::Heartbeat { acked, ..Default::default() },
        )));
        let rows = vec![Bytes::new(); 300_000];
        is_refused::<proto::ClientFrame>(&frame(proto::client_op::Op::Lock(proto::LockOp {
            rows,
            ..proto::LockOp::default()
        })));
        let txns = vec![String::new(); 300_000];
        is_refused::<proto::CannotCommitRequest>(&proto::CannotCommitRequest { txns });
    }

    #[test]
    fn what_is_counted_is_at_least_what_the_parts_take() {
        let rows = vec![Bytes::from_static(b"k"); 1_000];
        let lock = proto::LockOp { rows, ..proto::LockOp::default() };
        let message = lock.encode_to_vec();
        let counted = parts_bytes(&message, proto::LockOp::SHAPE, usize::MAX).expect("well formed");
        assert!(counted >= 1_000 * size_of::<Bytes>(), "{counted}");
        let frame = proto::ClientFrame { ops: vec![proto::ClientOp::default(); 1_000] };
        let counted = parts_bytes(&frame.encode_to_vec(), proto::ClientFrame::SHAPE, usize::MAX)
            .expect("well formed");
        assert!(counted >= 1_000 * size_of::<proto::ClientOp>(), "{counted}");
    }

    #[test]
    fn a_malformed_message_is_an_error_and_no_panic() {
        let whole = proto::ClientFrame {
            ops: vec![proto::ClientOp {
                id: 7,
                op: Some(proto::client_op::Op::Hello(proto::Hello::default())),
            }],
        };
        let whole = whole.encode_to_vec();
        for length in 1..whole.len() {
            assert!(
                decode::<proto::ClientFrame>(Bytes::copy_from_slice(&whole[..length])).is_err(),
                "{length}"
            );
        }
        // A group, a wire type that is none, a length beyond the end, a varint without an end.
        for bytes in [&[0x0b][..], &[0x0e], &[0x0a, 0x7f], &[0xff; 11]] {
            let refused =
                decode::<proto::ClientFrame>(Bytes::copy_from_slice(bytes)).expect_err("malformed");
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        // Field 999: a number, 8 bytes, 4 bytes, and 2 bytes of its own.
        let mut bytes = Vec::new();
        for (wire, content) in [(0u64, &[5u8][..]), (1, &[0; 8]), (5, &[0; 4]), (2, &[2, 9, 9])] {
            prost::encode_length_delimiter(
                usize::try_from(999 << 3 | wire).expect("small"),
                &mut bytes,
            )
            .expect("room");
            bytes.extend_from_slice(content);
        }
        assert_eq!(
            decode::<proto::ClientFrame>(bytes.into()).expect("not known"),
            proto::ClientFrame::default()
        );
    }
}
