//! [`Arriving`]: the messages of a request, charged before the transport makes room for them.
//!
//! A message takes memory from its first bytes on, before anything is decoded: a message that never
//! arrives whole takes it for as long as its call is open. The buffer of a stream stays as large as
//! its largest message was. So the lengths that stand before the messages are read, and charged to
//! the client's [`Quota`](lockservice_core::service::Quota). The memory of the decoded operations
//! is charged to their session.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body::{Frame, SizeHint};
use lockservice_core::Result;
use lockservice_core::service::{CallMemory, OpenCall};
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;

use crate::convert::to_status;

/// The largest message that is not counted: the number of calls bounds such messages. A release is
/// rarely larger.
const MESSAGE_BYTES_SMALL: usize = 4 << 10;

/// The bytes before each message: a flag for compression, and the length.
const PREFIX_BYTES: usize = 5;

/// The messages of a request, as they arrive.
pub(super) struct Arriving {
    body: Body,
    memory: CallMemory,
    /// The largest message, in bytes.
    bytes_max: usize,
    /// The part of the next message's prefix that has arrived.
    prefix: Vec<u8>,
    /// The missing bytes of the message that arrives.
    missing: usize,
}

impl Arriving {
    /// The messages of `body`, none of which may have more than `bytes_max` bytes.
    pub(super) fn new(body: Body, call: &Arc<OpenCall>, bytes_max: usize) -> Self {
        Self {
            body,
            memory: call.memory(),
            bytes_max,
            prefix: Vec::with_capacity(PREFIX_BYTES),
            missing: 0,
        }
    }

    /// Charges the messages that begin in `bytes`. Fails with `ResourceExhausted` if there is no
    /// room.
    fn take_in(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let passed = bytes.len().min(self.missing);
            self.missing -= passed;
            bytes = &bytes[passed..];
            let (prefix, rest) = bytes.split_at(bytes.len().min(PREFIX_BYTES - self.prefix.len()));
            self.prefix.extend_from_slice(prefix);
            bytes = rest;
            if let [_, length @ ..] = &*self.prefix
                && let Ok(length) = length.try_into()
            {
                self.prefix.clear();
                self.begin(u32::from_be_bytes(length) as usize)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, length: usize) -> Result<()> {
        self.missing = length;
        // A message that is too large is refused by its length.
        let counts = (MESSAGE_BYTES_SMALL + 1..=self.bytes_max).contains(&length);
        if counts { self.memory.grow_to(length) } else { Ok(()) }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
            && let Err(e) = self.take_in(bytes)
        {
            return Poll::Ready(Some(Err(to_status(&e))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use lockservice_core::ErrorKind;
    use lockservice_core::service::{Quota, QuotaOwner, QuotaSettings};

    use super::*;

    /// Room for 100,000 bytes, of which messages of up to 70,000 are accepted.
    fn arriving() -> (Arc<Quota>, Arriving) {
        let settings = QuotaSettings { kept_bytes_max: 100_000, ..QuotaSettings::default() };
        let quota = Quota::new(QuotaOwner::Connection, settings, None);
        let call = Arc::new(quota.open_call(false).expect("room"));
        (quota, Arriving::new(Body::empty(), &call, 70_000))
    }

    fn message(length: usize) -> Vec<u8> {
        let prefix = [&[0][..], &u32::try_from(length).expect("small").to_be_bytes()].concat();
        [prefix, vec![7; length]].concat()
    }

    /// The room that is left beside `arriving`.
    fn room(quota: &Arc<Quota>) -> usize {
        let call = Arc::new(quota.open_call(false).expect("room"));
        let fits = |bytes: &usize| call.memory().grow_to(*bytes).is_ok();
        (0..=100_000).rev().find(fits).expect("nothing always fits")
    }

    #[test]
    fn a_message_is_charged_by_its_prefix_however_the_bytes_are_cut() {
        let bytes = [message(4_096), message(0), message(50_000), message(20_000)].concat();
        for cut in [1, 2, 4, 5, 6, 4_099, 16_384, 100_000] {
            let (quota, mut arriving) = arriving();
            for part in bytes.chunks(cut) {
                arriving.take_in(part).expect("room");
            }
            assert_eq!(
                (room(&quota), arriving.missing),
                (50_000, 0),
                "as much as the largest, cut at {cut}"
            );
            drop(arriving);
            assert_eq!(room(&quota), 100_000);
        }
    }

    #[test]
    fn a_message_is_refused_at_its_prefix_if_there_is_no_room_for_it() {
        let (quota, mut first) = arriving();
        let call = Arc::new(quota.open_call(false).expect("room"));
        let mut second = Arriving::new(Body::empty(), &call, 70_000);
        first.take_in(&message(60_000)[..PREFIX_BYTES]).expect("room");
        let refused = second.take_in(&message(50_000)[..PREFIX_BYTES]).expect_err("too much");
        assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
        second.take_in(&message(70_001)[..PREFIX_BYTES]).expect("it is refused as too large");
    }
}
