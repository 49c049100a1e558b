//! The deadlines of calls, as their clients send them (`grpc-timeout`).
//!
//! The transport ends a call at its deadline too, but as `CANCELLED`. Then the first to read the
//! clock would decide whether the client sees a timeout or a cancelled call. [`Deadline`] is always
//! first.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use lockservice_core::{Error, ErrorKind};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use crate::convert::to_status;

/// A call ends earlier than requested by a tenth of its time, at most by this.
const AHEAD_MAX: Duration = Duration::from_millis(20);

/// A service whose calls end at their deadlines, with `DEADLINE_EXCEEDED`. Ending one drops it, as
/// cancelling it does.
#[derive(Clone, Debug)]
pub(super) struct Deadline<S>(pub(super) S);

impl<S: NamedService> NamedService for Deadline<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Deadline<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let left = request.headers().get("grpc-timeout").and_then(|value| parse(value.as_bytes()));
        let call = self.0.call(request);
        let Some(left) = left else { return Box::pin(call) };
        let ends = left.saturating_sub((left / 10).min(AHEAD_MAX));
        Box::pin(async move {
            match tokio::time::timeout(ends, call).await {
                Ok(response) => response,
                Err(_) => {
                    let late = Error::new(
                        ErrorKind::Timeout,
                        "the call's deadline has passed: allow more time",
                    );
                    Ok(to_status(&late).into_http())
                }
            }
        })
    }
}

/// A `grpc-timeout`: up to eight digits and a unit. `None` for anything else, which the transport
/// then judges.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0, |count, digit| count * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3_600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    /// A service that never responds.
    #[derive(Clone)]
    struct Never;

    impl Service<http::Request<()>> for Never {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_as_deadline_exceeded_before_the_transport_cancels_it() {
        for (observed, requested) in
            [("50m", Duration::from_millis(50)), ("2S", Duration::from_secs(2))]
        {
            let request = http::Request::builder()
                .header("grpc-timeout", observed)
                .body(())
                .expect("a request");
            let began = tokio::time::Instant::now();
            let Ok(response) = Deadline(Never).call(request).await;
            assert!(
                began.elapsed() < requested && began.elapsed() > requested / 2,
                "{:?}",
                began.elapsed()
            );
            let status = tonic::Status::from_header_map(response.headers()).expect("a status");
            assert_eq!(status.code(), Code::DeadlineExceeded);
        }
    }

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        assert_eq!(parse(b"10H"), Some(Duration::from_secs(36_000)));
        assert_eq!(parse(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in [&b""[..], b"m", b"1", b"1x", b"-1S", b"123456789S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
