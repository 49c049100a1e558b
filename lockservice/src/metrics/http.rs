//! [`MetricsServer`]: a small HTTP server for monitoring.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{NodeMetrics, encode};

/// The most connections at once; further ones wait.
const CONNECTIONS_MAX: usize = 32;

/// The longest life of a connection, which carries one request. Prometheus gives up after 10 s too,
/// unless it is told otherwise.
const LIFE_MAX: Duration = Duration::from_secs(10);

/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// The pause after a connection that could not be accepted, for want of files say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A task that serves metrics and health over HTTP. Dropping it closes the listener.
#[derive(Debug)]
pub struct MetricsServer(JoinHandle<()>);

impl MetricsServer {
    /// Begins to serve.
    ///
    /// Must be called within a tokio runtime, in which it spawns a task.
    pub fn start(listener: TcpListener, metrics: Arc<NodeMetrics>) -> Self {
        Self(tokio::spawn(accept(listener, metrics)))
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, metrics: Arc<NodeMetrics>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = Arc::clone(&metrics);
                tokio::spawn(async move {
                    // One that takes too long is cut. Errors are those of the other side.
                    drop(tokio::time::timeout(LIFE_MAX, serve(stream, metrics)).await);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the metrics; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, metrics: Arc<NodeMetrics>) -> hyper::Result<()> {
    let respond = service_fn(|request| {
        let metrics = Arc::clone(&metrics);
        async move { Ok::<_, Infallible>(respond(request, metrics).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIFE_MAX)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), respond)
        .await
}

async fn respond(request: Request<Incoming>, metrics: Arc<NodeMetrics>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        refused
            .headers_mut()
            .insert(ALLOW, const { hyper::header::HeaderValue::from_static("GET, HEAD") });
        return refused;
    }
    match request.uri().path() {
        "/metrics" => scrape(metrics).await,
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match metrics.not_ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

/// All metrics. It takes a while if there are many tables, so it is done beside the tasks.
async fn scrape(metrics: Arc<NodeMetrics>) -> Response<Full<Bytes>> {
    match tokio::task::spawn_blocking(move || encode::encode(metrics)).await {
        Ok(Ok(body)) => {
            let mut response = text(StatusCode::OK, &body);
            response.headers_mut().insert(
                CONTENT_TYPE,
                const { hyper::header::HeaderValue::from_static(encode::CONTENT_TYPE) },
            );
            response
        }
        // A text is written to memory, which does not fail. The other error is a panic.
        Ok(Err(_)) | Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode\n"),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        const { hyper::header::HeaderValue::from_static("text/plain; charset=utf-8") },
    );
    response
}
