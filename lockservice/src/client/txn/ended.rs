//! [`Ended`]: the acknowledgement of a release.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use lockservice_core::Result;
use tokio::sync::oneshot;

use crate::client::node_session::Handle;

/// The acknowledgement of a release that was sent. It may be ignored.
#[derive(Debug)]
pub struct Ended(EndedState);

#[derive(Debug)]
enum EndedState {
    Ready(Option<Result<()>>),
    Waiting(Arc<Handle>, oneshot::Receiver<Result<()>>),
}

impl Ended {
    pub(super) fn ready(result: Result<()>) -> Self {
        Self(EndedState::Ready(Some(result)))
    }

    pub(super) fn waiting(handle: &Arc<Handle>, response: oneshot::Receiver<Result<()>>) -> Self {
        Self(EndedState::Waiting(Arc::clone(handle), response))
    }
}

impl Future for Ended {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            EndedState::Ready(result) => Poll::Ready(result.take().unwrap_or(Ok(()))),
            EndedState::Waiting(handle, response) => {
                let result = ready!(Pin::new(response).poll(cx));
                Poll::Ready(result.unwrap_or_else(|_| Err(handle.shared.why_lost())))
            }
        }
    }
}
