//! The text of the metrics.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use lockservice_core::metrics::Distribution;

use super::{NodeMetrics, families};

/// The type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of all metrics, as they are now.
pub(super) fn encode(metrics: Arc<NodeMetrics>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("lockservice");
    registry.register_collector(Box::new(Node(metrics)));
    let mut body = String::new();
    text::encode(&mut body, &registry)?;
    Ok(body)
}

#[derive(Debug)]
struct Node(Arc<NodeMetrics>);

impl Collector for Node {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        families::write(&self.0, &mut Writer(encoder))
    }
}

/// Writes families of metrics: each with its name, which the prefix, the unit and `_total` are
/// added to, and with its help.
pub(super) struct Writer<'a>(DescriptorEncoder<'a>);

/// A series of a family: the value of its label, and its own value.
type Series<'a, T> = (&'a str, T);

impl Writer<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        of: MetricType,
        write: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write(self.0.encode_descriptor(name, help, unit, of)?)
    }

    /// A counter without labels.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, |mut metric| {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    /// A counter for each value of a label.
    pub(super) fn counters<'s>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        series: impl IntoIterator<Item = Series<'s, u64>>,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, |mut metric| {
            series.into_iter().try_for_each(|(of, value)| {
                metric
                    .encode_family(&[(label, of)])?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)
            })
        })
    }

    /// A counter for each pair of values of two labels.
    pub(super) fn counters_by_two<'s>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; 2],
        series: impl IntoIterator<Item = ([&'s str; 2], u64)>,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, |mut metric| {
            series.into_iter().try_for_each(|(of, value)| {
                let labels = [(labels[0], of[0]), (labels[1], of[1])];
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
            })
        })
    }

    /// A gauge without labels or unit.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        self.family(name, help, None, MetricType::Gauge, |mut metric| metric.encode_gauge(&value))
    }

    /// A gauge in bytes.
    pub(super) fn bytes(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        self.family(name, help, Some(&Unit::Bytes), MetricType::Gauge, |mut metric| {
            metric.encode_gauge(&value)
        })
    }

    /// A gauge in seconds.
    pub(super) fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.family(name, help, Some(&Unit::Seconds), MetricType::Gauge, |mut metric| {
            metric.encode_gauge(&value)
        })
    }

    /// A gauge for each value of a label.
    pub(super) fn gauges<'s>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        series: impl IntoIterator<Item = Series<'s, usize>>,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Gauge, |mut metric| {
            series.into_iter().try_for_each(|(of, value)| {
                metric.encode_family(&[(label, of)])?.encode_gauge(&value)
            })
        })
    }

    /// A histogram without labels.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: &Distribution,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Histogram, |metric| write_values(metric, values))
    }

    /// A histogram of seconds for each value of a label.
    pub(super) fn times<'s>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        series: impl IntoIterator<Item = Series<'s, Distribution>>,
    ) -> fmt::Result {
        self.family(name, help, Some(&Unit::Seconds), MetricType::Histogram, |mut metric| {
            series.into_iter().try_for_each(|(of, values)| {
                write_values(metric.encode_family(&[(label, of)])?, &values)
            })
        })
    }
}

fn write_values(mut metric: MetricEncoder<'_>, values: &Distribution) -> fmt::Result {
    metric.encode_histogram::<NoLabelSet>(values.sum, values.count(), &values.buckets, None)
}
