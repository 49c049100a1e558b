//! [`TraceContext`]: the trace of which a lock call is a part, and the spans of the call at this
//! node.
//!
//! A call with a context has a span `lock` (target `lockservice::trace`, level `info`), from its
//! turn in its transaction to its outcome. In it are `bind`, while its table is not bound here, and
//! `wait`, while others hold the locks. A subscriber may export them; with
//! [`ServiceParts::continue_trace`] it makes the first a child of the caller's span. A call without
//! a context costs one comparison.
//!
//! [`ServiceParts::continue_trace`]: crate::service::ServiceParts::continue_trace

use tracing::Span;
use tracing::field::Empty;

use crate::clock::Time;
use crate::error::Result;
use crate::service::txn::TxnRecord;
use crate::service::{Granted, LockSpec, ServiceInner};
use crate::table::LockCall;

/// The target of the spans, for filters.
const TARGET: &str = "lockservice::trace";

/// Longest `tracestate`, as the standard demands it at least.
const STATE_BYTES_MAX: usize = 512;

/// The place of a caller in a trace, as the headers of W3C Trace Context (level 1) have it.
///
/// ```
/// use lockservice_core::service::TraceContext;
///
/// let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context = TraceContext::new(parent, "vendor=value").expect("well formed");
/// assert!(context.is_sampled());
/// assert_eq!(context.parent(), parent);
/// assert_eq!(TraceContext::new("no context", ""), None);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceContext {
    parent: Box<str>,
    state: Box<str>,
}

impl TraceContext {
    /// The context in a `traceparent` and a `tracestate`, which may be empty. `None` if `parent` is
    /// malformed: the standard has such a trace start anew. A `state` beyond 512 bytes is left out.
    pub fn new(parent: &str, state: &str) -> Option<Self> {
        flags(parent)?;
        let state = if state.len() > STATE_BYTES_MAX { "" } else { state };
        Some(Self { parent: parent.into(), state: state.into() })
    }

    /// The `traceparent`.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The `tracestate`; empty if there is none.
    pub fn state(&self) -> &str {
        &self.state
    }

    /// True if the caller records its span.
    pub fn is_sampled(&self) -> bool {
        flags(&self.parent).is_some_and(|flags| flags & 1 == 1)
    }

    /// Its memory beside its place, in bytes.
    pub(in crate::service) fn bytes(&self) -> usize {
        size_of::<Self>() + self.parent.len() + self.state.len()
    }
}

/// The flags of a `traceparent`: `VERSION-TRACE-SPAN-FLAGS` in lower-case hexadecimal digits, and
/// nothing more in version 00. `None` if it is malformed.
fn flags(parent: &str) -> Option<u8> {
    let (known, more) = parent.split_at_checked(55)?;
    let mut parts = known.split('-');
    let mut part = |digits: usize| {
        parts.next().filter(|part| {
            part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_zero = |digits: &str| digits.bytes().all(|digit| digit == b'0');
    let is_known = match version {
        "00" => more.is_empty(),
        "ff" => false,
        _ => more.is_empty() || more.starts_with('-'),
    };
    (is_known && !is_zero(trace) && !is_zero(span))
        .then(|| u8::from_str_radix(flags, 16).ok())
        .flatten()
}

/// The span of a traced call at this node; empty for any other.
#[derive(Debug, Default)]
pub(in crate::service) struct Traced(Option<Box<Span>>);

impl ServiceInner {
    /// Begins the span of a call that arrived at `began`, if it is traced.
    pub(super) fn traced(&self, txn: &TxnRecord, spec: &LockSpec, began: Time) -> Traced {
        let Some(context) = &spec.trace else { return Traced::default() };
        let span = tracing::info_span!(
            target: TARGET, parent: None, "lock", otel.kind = "server",
            otel.status_code = Empty, node = %self.parts.node, txn = %txn.id,
            client = txn.client(), label = &*txn.label, table = %spec.table, mode = ?spec.mode,
            items = spec.items.len(), queued = ?self.parts.env.now().since(began),
            outcome = Empty, token = Empty
        );
        if span.is_disabled() {
            return Traced::default();
        }
        (self.parts.continue_trace)(&span, context);
        Traced(Some(Box::new(span)))
    }
}

impl Traced {
    /// Begins the span of the wait for the table's bind.
    pub(super) fn bind(&self) -> Span {
        match &self.0 {
            Some(call) => tracing::info_span!(target: TARGET, parent: &**call, "bind"),
            None => Span::none(),
        }
    }

    /// Begins the span of the wait at the engine.
    pub(super) fn wait(&self, inner: &ServiceInner, call: &LockCall) -> Span {
        let Some(parent) = &self.0 else { return Span::none() };
        let span = tracing::info_span!(
            target: TARGET, parent: &**parent, "wait", holder = Empty, holder_client = Empty,
            holder_label = Empty, granted = Empty
        );
        if let Some(blocker) = call.blocker() {
            let (label, client) = inner.names(blocker.txn);
            span.record("holder", tracing::field::display(blocker.txn))
                .record("holder_client", client)
                .record("holder_label", label)
                .record("granted", blocker.granted);
        }
        span
    }

    /// Notes the outcome of the call.
    pub(super) fn note(&self, outcome: &Result<Granted>) {
        let Some(span) = &self.0 else { return };
        match outcome {
            Ok(granted) => {
                span.record("outcome", "granted").record("token", granted.grant.token.get());
            }
            Err(e) => {
                span.record("outcome", e.kind().name()).record("otel.status_code", "ERROR");
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    #[test]
    fn a_context_is_read_as_the_standard_has_it() {
        let context = TraceContext::new(PARENT, "a=b").expect("well formed");
        assert!(!context.is_sampled());
        assert_eq!((context.parent(), context.state()), (PARENT, "a=b"));
        for good in [format!("cc{}", &PARENT[2..]), format!("01{}-more", &PARENT[2..])] {
            TraceContext::new(&good, "").expect(&good);
        }
        let long =
            TraceContext::new(PARENT, &"s".repeat(STATE_BYTES_MAX + 1)).expect("well formed");
        assert_eq!(long.state(), "");
    }

    #[test]
    fn a_malformed_context_is_none() {
        let zero = |at: std::ops::Range<usize>| {
            let mut text = PARENT.to_owned();
            text.replace_range(at.clone(), &"0".repeat(at.len()));
            text
        };
        for bad in [
            String::new(),
            PARENT[..54].to_owned(),
            format!("{PARENT}-more"),
            format!("01{}more", &PARENT[2..]),
            format!("ff{}", &PARENT[2..]),
            PARENT.to_uppercase(),
            PARENT.replace('-', "_"),
            zero(3..35),
            zero(36..52),
            "é".repeat(40),
        ] {
            assert_eq!(TraceContext::new(&bad, ""), None, "{bad}");
        }
    }
}
