//! [`UnderWay`]: an operation of a stream that was not decided at once.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use lockservice_core::Result;
use lockservice_core::service::{OpResponse, Pending};

use super::quiet::QuietPlace;

/// An operation that was not decided at once.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) id: u64,
    pub(super) pending: Pending,
    pub(super) quiet: Option<QuietPlace>,
}

/// An operation that was decided after a wait.
pub(super) struct Decided {
    pub(super) id: u64,
    pub(super) result: Result<OpResponse>,
    pub(super) quiet: Option<QuietPlace>,
}

impl Future for UnderWay {
    type Output = Decided;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Decided> {
        let (id, quiet) = (self.id, self.quiet);
        self.pending.poll_unpin(cx).map(|result| Decided { id, result, quiet })
    }
}
