//! The session stream as a call: its frames are read and written as bytes, see [`frame`].

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use prost::bytes::Bytes;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::ServerSettings;
use super::locks::LocksApi;
use crate::frame::{self, FrameCodec};
use crate::proto::locks_server::LocksServer;

/// `Locks`: session streams, and beside them the unary calls of the generated service.
#[derive(Clone, Debug)]
pub(super) struct SessionStreams {
    api: LocksApi,
    message_bytes_max: usize,
    unary: LocksServer<LocksApi>,
}

impl SessionStreams {
    pub(super) fn beside(api: LocksApi, settings: &ServerSettings) -> Self {
        let message_bytes_max = settings.message_bytes_max;
        let unary =
            LocksServer::new(api.clone()).max_decoding_message_size(settings.message_bytes_max);
        Self { api, message_bytes_max, unary }
    }
}

impl NamedService for SessionStreams {
    const NAME: &'static str = LocksServer::<LocksApi>::NAME;
}

impl Service<http::Request<Body>> for SessionStreams {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.unary, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != frame::SESSION_PATH {
            return self.unary.call(request);
        }
        let (api, most) = (self.api.clone(), self.message_bytes_max);
        Box::pin(async move {
            let mut grpc = Grpc::new(FrameCodec).max_decoding_message_size(most);
            Ok(grpc.streaming(Opened(api), request).await)
        })
    }
}

struct Opened(LocksApi);

impl StreamingService<Bytes> for Opened {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        ready(self.0.stream(request))
    }
}
