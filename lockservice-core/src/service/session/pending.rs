//! [`Pending`]: the response to an operation of a session, known or to come.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::id::Sequence;
use crate::service::OpResponse;

/// The response to a submitted operation. Dropping it does not cancel the operation; an
/// [`Operation::Cancel`](crate::service::Operation::Cancel) does.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Pending(PendingState);

#[derive(Debug)]
enum PendingState {
    Ready(Option<Result<OpResponse>>),
    Waiting(oneshot::Receiver<Result<OpResponse>>, Sequence),
}

impl Pending {
    pub(in crate::service) fn ready(result: Result<OpResponse>) -> Self {
        Self(PendingState::Ready(Some(result)))
    }

    pub(in crate::service) fn waiting(
        response: oneshot::Receiver<Result<OpResponse>>,
        sequence: Sequence,
    ) -> Self {
        Self(PendingState::Waiting(response, sequence))
    }

    /// The operation's sequence in its transaction, if it was not decided before: to
    /// [cancel](crate::service::Session::cancel) it.
    pub fn sequence(&self) -> Option<Sequence> {
        match &self.0 {
            PendingState::Ready(_) => None,
            PendingState::Waiting(_, sequence) => Some(*sequence),
        }
    }
}

impl Future for Pending {
    type Output = Result<OpResponse>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            PendingState::Ready(result) => Poll::Ready(result.take().unwrap_or_else(|| {
                Err(Error::new(ErrorKind::Internal, "a response was polled after it was taken"))
            })),
            PendingState::Waiting(response, _) => Pin::new(response).poll(cx).map(|result| {
                result.unwrap_or_else(|_| {
                    Err(Error::new(
                        ErrorKind::SessionLost,
                        "the session ended before the operation",
                    ))
                })
            }),
        }
    }
}
