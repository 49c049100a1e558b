//! [`Checked`]: a service whose calls are counted, whose callers are checked, and whose use of the
//! node is bounded, before anything of a call is decoded.
//!
//! 1. The caller is found by its token or certificate, and refused if it may not make this call
//!    (see [`access`](super::access)).
//! 2. On the port for clients the call is charged to its [client](Client), and so is the memory of
//!    its messages ([`Arriving`]). Nodes are not bounded: who reaches their port owns the cluster.
//! 3. The call runs in the [turns](super::turns) of its client.
//!
//! Every call is counted when its response begins, also one that is refused.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use lockservice_core::Result;
use lockservice_core::clock::{Clock as _, SystemClock, Time};
use lockservice_core::service::OpenCall;
#[cfg(feature = "tls")]
use lockservice_core::{Error, ErrorKind};
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::access::{Access, Need, Port, Principal};
use super::arriving::Arriving;
use super::caller::{Caller, Channel, Client};
use crate::convert::to_status;
use crate::metrics::RpcMetrics;

/// Calls that release or renew something: they are admitted when others are not.
const RELEASES: [&str; 8] = [
    "/lockservice.v1.Locks/Unlock",
    "/lockservice.v1.Locks/Downgrade",
    "/lockservice.v1.Locks/RollBackTo",
    "/lockservice.v1.Locks/End",
    "/lockservice.v1.Locks/CloseSession",
    "/lockservice.v1.Locks/LeaveSession",
    "/lockservice.v1.Locks/KeepSession",
    "/lockservice.v1.Admin/KillSession",
];

/// Makes [`Checked`] services, for one listener.
#[derive(Debug)]
pub(super) struct Calls {
    access: Access,
    port: Port,
    message_bytes_max: usize,
    metrics: Arc<RpcMetrics>,
}

impl Calls {
    /// For the services of a listener. A message above `message_bytes_max` is refused before there
    /// is room made for it.
    pub(super) fn of(
        access: Access,
        port: Port,
        message_bytes_max: usize,
        metrics: Arc<RpcMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self { access, port, message_bytes_max, metrics })
    }

    /// `service`, with its calls checked.
    pub(super) fn checked<S>(self: &Arc<Self>, service: S) -> Checked<S> {
        Checked { service, calls: Arc::clone(self) }
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

    /// Admits a call, and charges its client. `None` for the charge of a node, and of a call that
    /// came over no connection of a server.
    fn begin(&self, request: &http::Request<Body>) -> Result<(Principal, Option<Charged>)> {
        let caller = self.admit(request)?;
        let connection = request.extensions().get::<Caller>();
        let Some(connection) = connection.filter(|_| self.port == Port::Clients) else {
            return Ok((caller, None));
        };
        let client = connection.client(&caller);
        let releases = RELEASES.contains(&request.uri().path());
        let call = Arc::new(client.quota.open_call(releases)?);
        Ok((caller, Some(Charged { client, call })))
    }
}

/// A call that its client is charged for.
struct Charged {
    client: Client,
    call: Arc<OpenCall>,
}

/// A service that gets only calls whose callers may make them, within their limits. The
/// [`Principal`] is among the extensions of each, and the [`Client`] if it is bounded.
#[derive(Clone, Debug)]
pub(super) struct Checked<S> {
    service: S,
    calls: Arc<Calls>,
}

impl<S: NamedService> NamedService for Checked<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Checked<S>
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
        let counted = Counted::begin(&self.calls.metrics, request.uri());
        let (caller, charged) = match self.calls.begin(&request) {
            Ok(begun) => begun,
            Err(e) => {
                let refused = counted.end(to_status(&e).into_http());
                return Box::pin(std::future::ready(Ok(refused)));
            }
        };
        request.extensions_mut().insert(caller);
        let Some(Charged { client, call }) = charged else {
            let response = self.service.call(request);
            return Box::pin(async move { Ok(counted.end(response.await?)) });
        };
        let turns = client.turns.clone();
        request.extensions_mut().insert(client);
        let most = self.calls.message_bytes_max;
        let request = request.map(|body| Body::new(Arriving::new(body, &call, most)));
        let response = turns.run(Box::pin(self.service.call(request)));
        Box::pin(async move {
            let response = counted.end(response.await?);
            // The call is open until its last response is sent.
            Ok(response.map(|body| Body::new(ResponseBody { body, _call: call })))
        })
    }
}

/// A call that is counted when its response begins. One that is dropped before is not counted.
struct Counted {
    metrics: Arc<RpcMetrics>,
    uri: http::Uri,
    began: Time,
}

impl Counted {
    fn begin(metrics: &Arc<RpcMetrics>, uri: &http::Uri) -> Self {
        Self { metrics: Arc::clone(metrics), uri: uri.clone(), began: SystemClock.now() }
    }

    fn end<B>(self, response: http::Response<B>) -> http::Response<B> {
        self.metrics.note(self.uri.path(), SystemClock.now().since(self.began), response.headers());
        response
    }
}

/// The responses of a call, which is open as long as they are.
struct ResponseBody {
    body: Body,
    _call: Arc<OpenCall>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
