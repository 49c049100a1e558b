//! A listener that is served by a task.

use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use super::{ServerListener, ServerSettings, incoming};

/// The largest number of streams of one connection at once: calls, and the streams of its sessions.
const STREAMS_MAX: u32 = 10_000;

/// The largest number of unread bytes of a connection: the least that HTTP/2 allows.
const WINDOW_BYTES: u32 = 65_535;

/// The largest size of the metadata of one call, in bytes as HTTP/2 counts them.
const HEADER_BYTES_MAX: u32 = 8 << 10;

/// The settings that every server has in common.
pub(super) fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        // Keep-alive notices a peer that vanished, and its stream ends. Its session lives on until
        // its TTL.
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // A client above it waits without an error, so the number of its sessions is what bounds
        // them.
        .max_concurrent_streams(Some(STREAMS_MAX))
        // The bytes that a peer may send before they are read: nothing else bounds them.
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
}

/// A task that serves a listener.
#[derive(Debug)]
pub(super) struct Serving {
    finish: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    /// True once the task's end was seen.
    ended: bool,
    /// They read files again that have changed.
    _watches: JoinSet<()>,
}

/// The tasks that read the files of `listener` again when they change.
fn watches(listener: &ServerListener) -> JoinSet<()> {
    #[cfg_attr(not(feature = "tls"), allow(unused_mut, reason = "nothing is read from files"))]
    let mut watches = JoinSet::new();
    #[cfg(feature = "tls")]
    if let Some(tls) = listener.tls.clone() {
        watches.spawn(async { match tls.watch().await {} });
    }
    #[cfg(not(feature = "tls"))]
    let _ = listener;
    watches
}

impl Serving {
    pub(super) fn start(
        router: tonic::transport::server::Router,
        listener: ServerListener,
        settings: ServerSettings,
    ) -> Self {
        let (finish, finished) = oneshot::channel::<()>();
        let watches = watches(&listener);
        let incoming = incoming::incoming(listener, settings);
        let task = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
            // An error means that the other side has gone: stop too.
            let _ = finished.await;
        }));
        Self { finish: Some(finish), task, ended: false, _watches: watches }
    }

    /// Resolves when nothing can be served any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn broken(&mut self) -> Error {
        let ended = if self.ended { Ok(Ok(())) } else { (&mut self.task).await };
        self.ended = true;
        let why: Box<dyn std::error::Error + Send + Sync> = match ended {
            Ok(Ok(())) => "it was closed".into(),
            Ok(Err(e)) => e.into(),
            Err(e) => e.into(),
        };
        Error::new(
            ErrorKind::Unavailable,
            "the server cannot accept connections any more: start it again",
        )
        .with_source(why)
    }

    pub(super) async fn close(mut self) {
        // The task has ended if the listener broke.
        self.finish.take().map(|finish| finish.send(()));
        if !self.task.is_finished() {
            // Dropping the server cuts the connections that do not close.
            drop(tokio::time::timeout(Duration::from_secs(1), &mut self.task).await);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}
