//! [`Pending`]: the answer to an operation of a session, known or to come.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::service::Answer;

/// The answer to a submitted operation. Dropping it does not cancel the operation: submit an `Undo` for that.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Pending(PendingState);

// Not boxed: an operation that was decided at once is the usual case, and must not cost an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum PendingState {
    Ready(Option<Result<Answer>>),
    Waiting(oneshot::Receiver<Result<Answer>>),
}

impl Pending {
    pub(super) fn ready(result: Result<Answer>) -> Self {
        Self(PendingState::Ready(Some(result)))
    }

    pub(super) fn waiting(answer: oneshot::Receiver<Result<Answer>>) -> Self {
        Self(PendingState::Waiting(answer))
    }
}

impl Future for Pending {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            PendingState::Ready(result) => Poll::Ready(
                result
                    .take()
                    .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "an answer was polled after it was taken"))),
            ),
            PendingState::Waiting(answer) => Pin::new(answer).poll(cx).map(|result| {
                result.unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::SessionLost, "the session ended before the operation"))
                })
            }),
        }
    }
}
