//! The trace of a lock call, from its caller over the nodes to a collector.

use std::process::Stdio;

use integration::binary;
use integration::collector::{Collector, Taken};
use integration::containers::{Redis, RedisOptions};
use integration::server::{Place, Server};
use integration::store::StoreKind;
use integration::within;
use lockservice::core::service::LockSpec;
use lockservice::core::{Key, LockItem, TableRef};
use nix::sys::signal::Signal;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::process::Command;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

/// The caller's trace and span, as it writes them, with its flags.
fn parent(trace: u8, flags: &str) -> String {
    format!("00-{}-00f067aa0ba902b7-{flags}", format!("{trace:02x}").repeat(16))
}

/// Spans leave soon.
fn traced(place: &Place, collector: &Collector) -> Command {
    let mut serve = place.serve();
    serve.args(["--traces", &collector.url]).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    serve
}

/// `lock TABLE KEY -- COMMAND` in the trace of `parent`.
fn lock(place: &Place, parent: &str, args: &[&str]) -> Command {
    let mut lock = Command::new(binary::lockservice());
    lock.arg("lock").args(args).env("LOCKSERVICE_SERVER", &place.address);
    lock.env("TRACEPARENT", parent).stdin(Stdio::null()).kill_on_drop(true);
    lock
}

/// The spans of the trace that a caller named by this byte, by their names.
fn of_trace<'a>(spans: &'a [Taken], trace: u8, name: &str) -> Option<&'a Taken> {
    spans.iter().find(|taken| taken.span.trace_id == [trace; 16] && taken.span.name == name)
}

async fn ended(server: Server) {
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_call_is_part_of_its_callers_trace_and_says_whom_it_waits_for() {
    let (mut collector, place) = (Collector::start().await, Place::new(StoreKind::File));
    let server = place.start_with(traced(&place, &collector)).await;
    let mut holder = lock(&place, &parent(0xaa, "01"), &["t", "k", "--", "sleep", "1000"])
        .spawn()
        .expect("it can be started");
    // The first lock waits for its table.
    let (lock_span, bind) = collector
        .until("the first call was exported", |spans| {
            of_trace(spans, 0xaa, "lock").cloned().zip(of_trace(spans, 0xaa, "bind").cloned())
        })
        .await;
    assert_eq!((lock_span.service.as_str(), lock_span.node.as_str()), ("lockservice", "n"));
    assert_eq!(lock_span.span.parent_span_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert_eq!(lock_span.span.kind, i32::from(SpanKind::Server));
    assert_eq!(lock_span.attribute("table"), "default/t");
    assert_eq!(lock_span.attribute("outcome"), "granted");
    assert_eq!(bind.span.parent_span_id, lock_span.span.span_id);

    let refused =
        lock(&place, &parent(0xbb, "01"), &["t", "k", "--timeout", "200ms", "--", "true"]);
    let refused = place.run(&mut { refused }).await;
    assert_eq!(refused.status.code(), Some(75), "{refused:?}");
    let (lock_span, wait) = collector
        .until("the second call was exported", |spans| {
            of_trace(spans, 0xbb, "lock").cloned().zip(of_trace(spans, 0xbb, "wait").cloned())
        })
        .await;
    assert_eq!(lock_span.attribute("outcome"), "timeout");
    assert_eq!(wait.span.parent_span_id, lock_span.span.span_id);
    assert!(wait.attribute("holder_client").starts_with("lock@"), "{wait:?}");
    assert!(wait.span.end_time_unix_nano - wait.span.start_time_unix_nano >= 150_000_000);

    // Neither a caller that does not record its span, nor one whose context is malformed.
    for parent in [parent(0xcc, "00"), parent(0xcc, "01").to_uppercase(), String::new()] {
        let mut free = lock(&place, &parent, &["t", "free", "--", "true"]);
        assert!(place.run(&mut free).await.status.success());
    }
    let pid = integration::pid_of(&holder);
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    within("the holder ends", holder.wait()).await.expect("a child can be waited for");
    // What has not left leaves before the end.
    let mut last = lock(&place, &parent(0xdd, "01"), &["t", "k", "--", "true"]);
    assert!(place.run(&mut last).await.status.success());
    ended(server).await;
    let spans = collector.spans();
    assert!(of_trace(&spans, 0xdd, "lock").is_some(), "{spans:?}");
    assert!(of_trace(&spans, 0xcc, "lock").is_none(), "{spans:?}");
    assert_eq!(spans.iter().filter(|taken| taken.span.name == "lock").count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_passes_the_trace_of_its_span_on() {
    let (mut collector, place) = (Collector::start().await, Place::new(StoreKind::File));
    let server = place.start_with(traced(&place, &collector)).await;
    let tracer = SdkTracerProvider::builder().build().tracer("test");
    let layer = tracing_opentelemetry::layer().with_tracer(tracer);
    let _in_use = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let client = place.client().await;
    let session = client.session(None).await.expect("a session");
    let spec = LockSpec::new(
        TableRef::new("default", "t").expect("names"),
        vec![LockItem::Row(Key::new("k").expect("a key"))],
    );
    let job = tracing::info_span!("job");
    let context = job.context();
    let job_place = context.span().span_context().clone();
    let lock = {
        use tracing::Instrument as _;
        // The subscriber is that of this thread.
        session.lock(spec).instrument(job).await.expect("free")
    };
    let trace = job_place.trace_id().to_bytes();
    let lock_span = collector
        .until("the call was exported", |spans| {
            spans.iter().find(|taken| taken.span.trace_id == trace).cloned()
        })
        .await;
    assert_eq!(lock_span.span.parent_span_id.len(), 8);
    assert_ne!(lock_span.span.parent_span_id, job_place.span_id().to_bytes(), "the client's span");
    lock.release().await.expect("it is held");
    session.close().await.expect("the server runs");
    ended(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_that_binds_a_table_is_part_of_the_trace() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let mut collector = Collector::start().await;
    let (leader, other) = (Place::joining(redis.url(), "a"), Place::joining(redis.url(), "b"));
    let leading = leader.start_with(traced(&leader, &collector)).await;
    let following = other.start_with(traced(&other, &collector)).await;
    let mut lock = lock(&other, &parent(0xaa, "01"), &["t", "k", "--", "true"]);
    assert!(other.run(&mut lock).await.status.success());
    let (bind, at_leader) = collector
        .until("both nodes have exported", |spans| {
            let bind = of_trace(spans, 0xaa, "bind").cloned();
            bind.zip(of_trace(spans, 0xaa, "bind at leader").cloned())
        })
        .await;
    assert_eq!((bind.node.as_str(), at_leader.node.as_str()), ("b", "a"));
    assert_eq!(at_leader.span.parent_span_id, bind.span.span_id);
    ended(following).await;
    ended(leading).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_gone_costs_no_lock_call_and_is_told_once() {
    let place = Place::new(StoreKind::File);
    let mut serve = place.serve();
    // Nothing listens on this port.
    serve.args(["--traces", "http://127.0.0.1:1"]).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    let mut server = place.start_with(serve).await;
    let complaint = "the collector of traces does not take spans";
    within("the log says that spans are dropped", async {
        while !server.log().contains(complaint) {
            let mut lock = lock(&place, &parent(0xaa, "01"), &["t", "k", "--", "true"]);
            assert!(place.run(&mut lock).await.status.success());
        }
    })
    .await;
    for _ in 0..3 {
        let mut lock = lock(&place, &parent(0xaa, "01"), &["t", "k", "--", "true"]);
        assert!(place.run(&mut lock).await.status.success());
    }
    // The last spans are sent, in vain, before the process ends.
    assert!(server.stop_in_order().await.success());
    assert_eq!(server.log().matches(complaint).count(), 1, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_is_none_is_refused_at_the_start() {
    let place = Place::new(StoreKind::File);
    let mut serve = place.serve();
    serve.args(["--traces", "no url"]);
    let refused = place.run(&mut serve).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{said}");
    assert!(said.contains("--traces") && said.contains("4317"), "{said}");
}
