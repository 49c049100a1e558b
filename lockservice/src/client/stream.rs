//! The request side of a session's stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lockservice_core::env::Env;
use prost::bytes::Bytes;
use tokio_stream::Stream;

use super::outbox::{Outbox, StreamNumber};

/// The frames of a stream: first the greeting, then the contents of the outbox.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) outbox: Arc<Outbox>,
    pub(super) env: Env,
    pub(super) number: StreamNumber,
    pub(super) hello: Option<Bytes>,
}

impl Stream for Requests {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(hello));
        }
        self.outbox.poll_frame(self.number, &**self.env.clock(), cx)
    }
}
