//! The way of a trace over processes (feature `otel`; without it these do nothing).
//!
//! A lock call has a span at its client, in the trace of the span in which it was made. The request
//! carries the place of that span, and the spans of the server are its children: the call, the wait
//! for a bind, the wait for a lock. The call of the leader that binds the table is a span of the
//! leader's node.
//!
//! Spans have the target `lockservice::trace` and the level `info`. They are made only if a
//! subscriber wants them, and at a server only for a call whose caller records its own.

#[cfg(feature = "client")]
use lockservice_core::{Result, service::LockSpec};
#[cfg(feature = "server")]
use tonic::metadata::MetadataMap;
use tracing::Span;

#[cfg(feature = "otel")]
pub use self::otel::continue_trace;

/// The headers of W3C Trace Context.
#[cfg(feature = "server")]
pub(crate) const PARENT: &str = "traceparent";
#[cfg(feature = "server")]
pub(crate) const STATE: &str = "tracestate";

/// The target of the spans, for filters.
#[cfg(feature = "otel")]
pub(crate) const TARGET: &str = "lockservice::trace";

/// A lock call of a client.
#[cfg(feature = "client")]
pub(crate) struct ClientCall(Span);

#[cfg(feature = "client")]
impl ClientCall {
    /// Begins the span of the call, and has the request carry its place. A request that carries one
    /// keeps it.
    pub(crate) fn begin(spec: &mut LockSpec) -> Self {
        if spec.trace.is_some() {
            return Self(Span::none());
        }
        #[cfg(feature = "otel")]
        {
            let span = tracing::info_span!(
                target: TARGET, "lock", otel.kind = "client",
                otel.status_code = tracing::field::Empty, table = %spec.table,
                outcome = tracing::field::Empty
            );
            spec.trace = otel::place_of(&span).map(Box::new);
            Self(span)
        }
        #[cfg(not(feature = "otel"))]
        Self(Span::none())
    }

    /// Ends the span.
    pub(crate) fn end<T>(self, outcome: &Result<T>) {
        match outcome {
            Ok(_) => drop(self.0.record("outcome", "granted")),
            Err(e) => {
                self.0.record("outcome", e.kind().name()).record("otel.status_code", "ERROR");
            }
        }
    }
}

/// Has a request to another node carry the place of the present span.
#[cfg(feature = "server")]
pub(crate) fn inject(metadata: &mut MetadataMap) {
    #[cfg(feature = "otel")]
    if let Some(context) = otel::place_of(&Span::current()) {
        let values = [(PARENT, context.parent()), (STATE, context.state())];
        for (name, value) in values.into_iter().filter(|(_, value)| !value.is_empty()) {
            // What is no header is left out: a trace is not worth an error.
            let _ = value.parse().map(|value| metadata.insert(name, value));
        }
    }
    #[cfg(not(feature = "otel"))]
    let _ = metadata;
}

/// The span of another node's call, if that is traced.
#[cfg(feature = "server")]
pub(crate) fn bind_span(metadata: &MetadataMap) -> Span {
    #[cfg(feature = "otel")]
    {
        let header = |name| metadata.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let context = lockservice_core::service::TraceContext::new(header(PARENT), header(STATE));
        if let Some(context) = context.filter(|context| context.is_sampled()) {
            let span = tracing::info_span!(
                target: TARGET, parent: None, "bind at leader", otel.kind = "server"
            );
            continue_trace(&span, &context);
            return span;
        }
    }
    let _ = metadata;
    Span::none()
}

#[cfg(feature = "otel")]
mod otel {
    use lockservice_core::service::TraceContext;
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    /// For [`ServiceParts::continue_trace`], in a process whose subscriber has a layer of
    /// `tracing-opentelemetry`.
    ///
    /// [`ServiceParts::continue_trace`]: lockservice_core::service::ServiceParts::continue_trace
    pub fn continue_trace(span: &Span, context: &TraceContext) {
        if let Some(parent) = to_span(context) {
            // It fails without such a layer: then nobody wants the span.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent));
        }
    }

    fn to_span(context: &TraceContext) -> Option<SpanContext> {
        let mut parts = context.parent().split('-').skip(1);
        let trace = TraceId::from_hex(parts.next()?).ok()?;
        let span = SpanId::from_hex(parts.next()?).ok()?;
        let flags = if context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let state = context.state().parse::<TraceState>().unwrap_or_default();
        Some(SpanContext::new(trace, span, flags, true, state))
    }

    /// The place of a span in its trace; that of the present context of OpenTelemetry if the span
    /// has none.
    pub(super) fn place_of(span: &Span) -> Option<TraceContext> {
        let (own, around) = (span.context(), Context::current());
        let context = [own.span().span_context(), around.span().span_context()]
            .into_iter()
            .find(|context| context.is_valid())
            .cloned()?;
        let (trace, span, flags) =
            (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        TraceContext::new(
            &format!("00-{trace}-{span}-{flags:02x}"),
            &context.trace_state().header(),
        )
    }
}
