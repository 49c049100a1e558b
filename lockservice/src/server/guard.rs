//! [`Guard`]: refuses calls whose callers may not make them, before anything is decoded.

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

use super::ServerListener;
use super::access::{Access, Need, Port, Principal};
use super::caller::{Caller, Channel};
use crate::convert::to_status;

/// Makes [`Guarded`] services.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    access: Access,
    port: Port,
}

impl Guard {
    /// For the services of a listener.
    pub(super) fn of(listener: &ServerListener, port: Port) -> Self {
        Self { access: listener.access.clone(), port }
    }

    /// `service`, with its callers checked.
    pub(super) fn guarded<S>(&self, service: S) -> Guarded<S> {
        Guarded { service, guard: self.clone() }
    }

    /// The caller of a call, if it may make it. Fails with `Unauthenticated` if it is not known, or
    /// if its connection is not protected as the listener says, and with `NotPermitted` if it has
    /// not the role.
    fn admit(&self, request: &http::Request<Body>) -> Result<Principal> {
        let connection = request.extensions().get::<Caller>().and_then(Caller::channel);
        let certificate = match connection {
            #[cfg(feature = "tls")]
            Some(Channel::PlainToTls) => {
                return Err(Error::new(
                    ErrorKind::Unauthenticated,
                    "this server speaks TLS: connect to https://HOST:PORT, or name the CA of its \
                     certificate with --ca FILE or LOCKSERVICE_CA",
                ));
            }
            #[cfg(feature = "tls")]
            Some(Channel::Tls(certificate)) => certificate.as_deref(),
            Some(Channel::Plain) | None => None,
        };
        let need = Need::of(request.uri().path(), self.port);
        if need == Need::Nothing {
            return Ok(Principal::Anyone);
        }
        let caller = self.access.caller(request.headers(), certificate)?;
        need.check(&caller)?;
        Ok(caller)
    }
}

/// A service that gets only calls whose callers may make them. The [`Principal`] is among the
/// extensions of each.
#[derive(Clone, Debug)]
pub(super) struct Guarded<S> {
    service: S,
    guard: Guard,
}

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
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.guard.admit(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.service.call(request))
            }
            Err(e) => Box::pin(std::future::ready(Ok(to_status(&e).into_http()))),
        }
    }
}
