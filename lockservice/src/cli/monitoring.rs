//! The listener for monitoring of `serve`.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::json;

use super::config::Config;
use super::exit::{Failure, say_event};
use super::node::listen;
use crate::metrics::{MetricsServer, NodeMetrics};

/// Begins to serve `metrics`, if that is wanted, and says where: a start may take long, and is
/// watched there. Clients are listened to on `clients`.
pub(super) async fn start(
    config: &Config,
    clients: SocketAddr,
    metrics: &Arc<NodeMetrics>,
    json: bool,
) -> Result<Option<(MetricsServer, SocketAddr)>, Failure> {
    let Some(addresses) = config.metrics_addresses(clients)? else { return Ok(None) };
    let (listener, address) = listen(&addresses, "--metrics").await?;
    let object = json!({ "event": "metrics", "address": address.to_string() });
    let url = format!("http://{address}/metrics");
    say_event("metrics and health: ", &url, json.then_some(object));
    Ok(Some((MetricsServer::start(listener, Arc::clone(metrics)), address)))
}
