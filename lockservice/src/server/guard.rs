//! [`Guarded`]: refuses calls whose caller may not make them, before anything is decoded.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use lockservice_core::Result;
#[cfg(feature = "tls")]
use lockservice_core::{Error, ErrorKind};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::caller::{Caller, Channel};
use crate::convert::to_status;

/// A service whose calls are refused unless their connection is protected as its listener says.
#[derive(Clone, Debug)]
pub(super) struct Guarded<S>(pub(super) S);

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let channel = request.extensions().get::<Caller>().and_then(Caller::channel);
        match channel.map_or(Ok(()), check) {
            Ok(()) => Box::pin(self.0.call(request)),
            Err(e) => Box::pin(std::future::ready(Ok(to_status(&e).into_http()))),
        }
    }
}

/// Fails with `Unauthenticated` for a call in plain text to a listener with TLS.
fn check(channel: &Channel) -> Result<()> {
    match channel {
        Channel::Plain => Ok(()),
        #[cfg(feature = "tls")]
        Channel::Tls => Ok(()),
        #[cfg(feature = "tls")]
        Channel::PlainToTls => Err(Error::new(
            ErrorKind::Unauthenticated,
            "this server speaks TLS: connect to https://HOST:PORT, or name the CA of its \
             certificate with --ca FILE or LOCKSERVICE_CA",
        )),
    }
}
