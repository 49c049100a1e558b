//! [`Collector`]: takes traces as a collector of OpenTelemetry does (OTLP over gRPC).

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::within;

/// A collector on a port of its own. It keeps all spans.
#[derive(Debug)]
pub struct Collector {
    /// Its URL.
    pub url: String,
    taken: watch::Receiver<Vec<Taken>>,
}

/// A span, and where it comes from.
#[derive(Clone, PartialEq, Debug)]
pub struct Taken {
    /// The name of the service.
    pub service: String,
    /// The name of the node.
    pub node: String,
    /// The span.
    pub span: Span,
}

impl Taken {
    /// The text of an attribute; empty if the span has none of this name.
    pub fn attribute(&self, name: &str) -> String {
        text(&self.span.attributes, name)
    }
}

impl Collector {
    /// Starts a collector.
    ///
    /// # Panics
    /// If there is no port for it.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (keep, taken) = watch::channel(Vec::new());
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Api(keep)))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(serving);
        Self { url, taken }
    }

    /// Waits until `find` finds what it looks for among the spans.
    pub async fn until<T>(&mut self, what: &str, find: impl Fn(&[Taken]) -> Option<T>) -> T {
        within(what, async {
            loop {
                if let Some(found) = find(&self.taken.borrow_and_update()) {
                    return found;
                }
                self.taken.changed().await.expect("the collector runs");
            }
        })
        .await
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Taken> {
        self.taken.borrow().clone()
    }
}

#[derive(Debug)]
struct Api(watch::Sender<Vec<Taken>>);

#[tonic::async_trait]
impl TraceService for Api {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut new = Vec::new();
        for of_process in request.into_inner().resource_spans {
            let about = of_process.resource.unwrap_or_default().attributes;
            let (service, node) =
                (text(&about, "service.name"), text(&about, "service.instance.id"));
            let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            new.extend(spans.map(|span| Taken {
                service: service.clone(),
                node: node.clone(),
                span,
            }));
        }
        self.0.send_modify(|taken| taken.append(&mut new));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|it| it.value.as_ref()).and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}
