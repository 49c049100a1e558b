//! `serve --traces`: the spans of lock calls go to a collector of OpenTelemetry, over gRPC (OTLP).
//!
//! Spans wait in a bounded queue, and leave in batches from a thread of their own: a collector that
//! is slow or gone costs spans, and no lock call anything. That it does not take them is logged
//! once, and once more when it does again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter};
use tracing_opentelemetry::OpenTelemetryLayer;

use super::config::Config;
use super::exit::{self, Failure};

/// The time that a batch may take.
const EXPORT_MAX: Duration = Duration::from_secs(10);
/// The time that the last spans may take when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The export of this process's spans. When it is dropped, the last ones have left, or two seconds
/// have passed.
#[derive(Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts the export that `config` requests, if it does.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start(config: &Config) -> Result<Option<Self>, Failure> {
        if config.traces.is_empty() {
            return Ok(None);
        }
        let exporter = Otlp::builder()
            .with_tonic()
            .with_endpoint(&config.traces)
            .with_timeout(EXPORT_MAX)
            .build()
            .map_err(|why| {
                Failure::new(
                    exit::CONFIG,
                    "config",
                    format!(
                        "spans cannot be sent to {}: {why}; --traces is the URL of a collector's \
                            OTLP receiver for gRPC, for example http://127.0.0.1:4317",
                        config.traces
                    ),
                )
            })?;
        let mut resource = Resource::builder().with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", config.node()?.to_string()),
        ]);
        // The SDK reads this variable itself.
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("lockservice");
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(Watched { exporter, fails: AtomicBool::new(false) })
            .build();
        Ok(Some(Self(provider)))
    }

    /// What makes spans of `tracing` spans of OpenTelemetry.
    pub(super) fn layer<S>(&self) -> OpenTelemetryLayer<S, SdkTracer>
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("lockservice"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(why) = self.0.shutdown_with_timeout(FLUSH_MAX) {
            tracing::warn!(%why, "the last spans may not have reached the collector");
        }
    }
}

/// An exporter whose first failure after a success is logged, and whose first success after that.
///
/// ORDERING: `Relaxed`: one thread exports.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    fails: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        match (&result, self.fails.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(why), false) => tracing::warn!(
                spans, %why, "the collector of traces does not take spans: they are dropped until \
                    it does (setting traces)"
            ),
            (Ok(()), true) => tracing::warn!("the collector of traces takes spans again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
