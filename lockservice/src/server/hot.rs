//! `ListHot` and `GetStats` of the API `Admin`: readings of the service that take a while, made
//! beside the tasks.

use std::sync::Arc;

use lockservice_core::TableRef;
use lockservice_core::service::{HotKey, LockService};
use tokio::sync::Semaphore;
use tonic::Status;

use super::list_stream::Whole;
use crate::convert::{self, to_status as status};
use crate::proto;

/// The largest number of readings of the numbers of a node at the same time. Each visits all waits
/// and sessions, on a thread of its own.
const STATS_MAX: usize = 2;

/// The largest number of keys, waits and sessions in the numbers of a node.
const STATS_LINES_MAX: usize = 200;

/// The hottest keys of the request, of `table` if that is given.
pub(super) async fn list(
    service: LockService,
    table: Option<TableRef>,
    request: &proto::ListHotRequest,
    lines_max: usize,
) -> Result<Whole<HotKey, proto::HotInfo>, Status> {
    let window = convert::hot_window_from_proto(request.window).map_err(|e| status(&e))?;
    // One more than a list may have shows that it is cut.
    let all = lines_max.saturating_add(1);
    let most = if request.limit == 0 { all } else { all.min(request.limit as usize) };
    let read = move || service.hot(table.as_ref(), window, most);
    let lines = tokio::task::spawn_blocking(read).await;
    let lines = lines.map_err(|_| Status::internal("the hot keys cannot be read"))?;
    Ok(Whole::new(lines, convert::hot_key_to_proto))
}

/// Readings of the numbers of a node. Further ones wait their turn.
#[derive(Debug)]
pub(super) struct Stats(Arc<Semaphore>);

impl Default for Stats {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STATS_MAX)))
    }
}

impl Stats {
    /// The numbers of the request, with the keys and waits of `table` if that is given.
    pub(super) async fn read(
        &self,
        service: LockService,
        table: Option<TableRef>,
        request: &proto::GetStatsRequest,
    ) -> Result<proto::NodeStats, Status> {
        let window = convert::hot_window_from_proto(request.window).map_err(|e| status(&e))?;
        let lines = (request.lines as usize).min(STATS_LINES_MAX);
        let place = Arc::clone(&self.0).acquire_owned().await;
        let place = place.map_err(|_| Status::unavailable("the server is stopping"))?;
        let stats = tokio::task::spawn_blocking(move || {
            // A reading goes on after its caller has gone, and keeps its place.
            let _place = place;
            service.stats(table.as_ref(), window, lines)
        });
        let stats = stats.await.map_err(|_| Status::internal("the numbers cannot be read"))?;
        Ok(convert::service_stats_to_proto(&stats))
    }
}
