//! `lockservice.v1.Admin`.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::TableRef;
use lockservice_core::allocator::BindStatus;
use lockservice_core::service::{LockList, LockStatus, SessionList, TxnList, WaitList, WaitStatus};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::convert::{self, to_status as status};
use crate::proto;
use crate::server::caller::Client;
use crate::server::{Principal, ServerSettings, ServiceHost, Slot, kill};

/// The largest number of lists that are sent at the same time. Each holds a slice and the lines
/// that wait for its reader. Further lists wait their turn.
const LISTS_MAX: usize = 64;

/// The longest that a list may take, from the request to its last line: no reader keeps its place
/// for longer.
const LIST_TIME_MAX: Duration = Duration::from_secs(60);

/// Lines that are made in one go. The lock engine serves other calls between two slices.
const SLICE_LINES: usize = 256;

/// The largest number of lines that wait to be taken by the connection.
const LINES_WAITING_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct AdminApi {
    slot: Slot,
    lists: Arc<Semaphore>,
    lines_max: usize,
    write_max: Duration,
}

impl AdminApi {
    pub(crate) fn new(slot: Slot, settings: &ServerSettings) -> Self {
        let (lines_max, write_max) = (settings.list_lines_max, settings.write_max());
        Self { slot, lists: Arc::new(Semaphore::new(LISTS_MAX)), lines_max, write_max }
    }

    fn host(&self) -> Result<&ServiceHost, Status> {
        self.slot.get().map_err(|e| status(&e))
    }

    /// Sends at most `lines_max` lines, made slice by slice as the client reads them. The last line
    /// says if there are more. A list that is not finished in time ends with an error.
    async fn send<T, L: List>(
        &self,
        request: &Request<T>,
        make: impl Future<Output = Result<L, Status>>,
    ) -> Result<Response<ReceiverStream<Result<L::Line, Status>>>, Status> {
        let until = Instant::now() + LIST_TIME_MAX;
        let client = Client::of(request.extensions());
        let begin = timeout_at(until, async {
            // First among those of its client: one that requests many takes no place from others.
            let own = match &client {
                Some(client) => client.list_place().await,
                None => None,
            };
            let place = Arc::clone(&self.lists).acquire_owned().await;
            let place = place.map_err(|_| Status::unavailable("the server is stopping"))?;
            Ok::<_, Status>(((own, place), make.await?))
        });
        let (place, list) = begin.await.map_err(|_| too_slow("other lists take too long"))??;
        // One place is added for the error at the end.
        let (out, lines) = mpsc::channel(LINES_WAITING_MAX + 1);
        let (lines_max, write_max) = (self.lines_max, self.write_max);
        let delivered = async move {
            let _place = place;
            deliver(list, lines_max, write_max, until, out).await;
        };
        match client {
            Some(client) => drop(tokio::spawn(client.turns.run(Box::pin(delivered)))),
            None => drop(tokio::spawn(delivered)),
        }
        Ok(Response::new(ReceiverStream::new(lines)))
    }
}

/// Sends a list, and an error at its end if it is incomplete: a list that just stops would pass for
/// complete.
async fn deliver<L: List>(
    list: L,
    lines_max: usize,
    write_max: Duration,
    until: Instant,
    out: mpsc::Sender<Result<L::Line, Status>>,
) {
    // Nothing was sent yet, so there is room.
    let Ok(end) = out.clone().try_reserve_owned() else { return };
    let sent = timeout_at(until, send_all(list, lines_max, write_max, &out)).await;
    if !matches!(sent, Ok(true)) {
        end.send(Err(too_slow("the list was read too slowly")));
    }
}

fn too_slow(what: &str) -> Status {
    Status::deadline_exceeded(format!("{what}: request one table, or try later"))
}

/// False if a line was not taken in time, or the reader has gone.
async fn send_all<L: List>(
    mut list: L,
    lines_max: usize,
    write_max: Duration,
    out: &mpsc::Sender<Result<L::Line, Status>>,
) -> bool {
    // A line is known to be the last one only when no other follows.
    let mut ready: Option<L::Line> = None;
    let mut lines = 0;
    // A client that does not read must not keep a place from others.
    let send =
        |line| async move { matches!(timeout(write_max, out.send(Ok(line))).await, Ok(Ok(()))) };
    while let Some(slice) = list.next_slice() {
        for line in slice {
            if lines == lines_max {
                if let Some(last) = &mut ready {
                    last.set_cut();
                }
                return match ready {
                    Some(last) => send(last).await,
                    None => true,
                };
            }
            lines += 1;
            if let Some(line) = ready.replace(line)
                && !send(line).await
            {
                return false;
            }
        }
        tokio::task::yield_now().await;
    }
    match ready {
        Some(last) => send(last).await,
        None => true,
    }
}

/// A list that is made slice by slice.
trait List: Send + 'static {
    type Line: Line;

    /// The next lines, perhaps none; `None` at the end.
    fn next_slice(&mut self) -> Option<Vec<Self::Line>>;
}

impl List for LockList {
    type Line = proto::LockInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice: Vec<LockStatus> = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::lock_status_to_proto).collect())
    }
}

impl List for WaitList {
    type Line = proto::WaitInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice: Vec<WaitStatus> = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::wait_status_to_proto).collect())
    }
}

impl List for SessionList {
    type Line = proto::SessionInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::session_status_to_proto).collect())
    }
}

impl List for TxnList {
    type Line = proto::TxnInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice = Self::next_slice(self, SLICE_LINES)?;
        Some(slice.iter().map(convert::txn_status_to_proto).collect())
    }
}

/// The leader returns all of them.
struct Binds(std::vec::IntoIter<BindStatus>);

impl List for Binds {
    type Line = proto::BindInfo;

    fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
        let slice: Vec<_> = self
            .0
            .by_ref()
            .take(SLICE_LINES)
            .map(|bind| convert::bind_status_to_proto(&bind))
            .collect();
        (!slice.is_empty()).then_some(slice)
    }
}

/// A message that is one line of a list.
trait Line: Send + 'static {
    /// Marks the line as the last one of a list that is cut.
    fn set_cut(&mut self);
}

macro_rules! lines {
    ($($message:ident),+) => {
        $(impl Line for proto::$message {
            fn set_cut(&mut self) {
                self.cut = true;
            }
        })+
    };
}

lines!(LockInfo, WaitInfo, BindInfo, SessionInfo, TxnInfo);

/// The table of the request, if it names one.
fn only(group: &str, table: &str) -> Result<Option<TableRef>, Status> {
    if table.is_empty() {
        return Ok(None);
    }
    convert::table_from_proto(group, table).map(Some).map_err(|e| status(&e))
}

/// Fails unless the caller may list `table`, or everything if that is `None`.
fn may_list<T>(request: &Request<T>, table: Option<&TableRef>) -> Result<(), Status> {
    Principal::of(request.extensions()).may_list(table).map_err(|e| status(&e))
}

#[tonic::async_trait]
impl proto::admin_server::Admin for AdminApi {
    type ListLocksStream = ReceiverStream<Result<proto::LockInfo, Status>>;
    type ListWaitsStream = ReceiverStream<Result<proto::WaitInfo, Status>>;
    type ListBindsStream = ReceiverStream<Result<proto::BindInfo, Status>>;
    type ListSessionsStream = ReceiverStream<Result<proto::SessionInfo, Status>>;
    type ListTxnsStream = ReceiverStream<Result<proto::TxnInfo, Status>>;
    type KillSessionStream = kill::Responses;

    async fn list_locks(
        &self,
        request: Request<proto::ListLocksRequest>,
    ) -> Result<Response<Self::ListLocksStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        may_list(&request, table.as_ref())?;
        self.send(&request, async { Ok(self.host()?.current().lock_list(table.as_ref())) }).await
    }

    async fn list_waits(
        &self,
        request: Request<proto::ListWaitsRequest>,
    ) -> Result<Response<Self::ListWaitsStream>, Status> {
        let table = only(&request.get_ref().group, &request.get_ref().table)?;
        may_list(&request, table.as_ref())?;
        self.send(&request, async { Ok(self.host()?.current().wait_list(table.as_ref())) }).await
    }

    async fn get_node(
        &self,
        _request: Request<proto::GetNodeRequest>,
    ) -> Result<Response<proto::NodeInfo>, Status> {
        let service = self.host()?.current();
        Ok(Response::new(proto::NodeInfo {
            node: service.node().to_string(),
            service: service.id().get(),
        }))
    }

    async fn drop_table(
        &self,
        request: Request<proto::DropTableRequest>,
    ) -> Result<Response<proto::DropTableResponse>, Status> {
        let proto::DropTableRequest { group, table } = request.get_ref();
        let table = convert::table_from_proto(group, table).map_err(|e| status(&e))?;
        let dropped = self.host()?.current().drop_table(&table).await;
        tracing::info!(%table, error = ?dropped.as_ref().err(), "an operator wants a table \
            dropped");
        dropped.map(|()| Response::new(proto::DropTableResponse {})).map_err(|e| status(&e))
    }

    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        self.send(&request, async { Ok(self.host()?.current().session_list()) }).await
    }

    async fn list_txns(
        &self,
        request: Request<proto::ListTxnsRequest>,
    ) -> Result<Response<Self::ListTxnsStream>, Status> {
        self.send(&request, async { Ok(self.host()?.current().txn_list()) }).await
    }

    async fn kill_session(
        &self,
        request: Request<proto::KillSessionRequest>,
    ) -> Result<Response<Self::KillSessionStream>, Status> {
        kill::kill_session(&self.host()?.current(), &request)
    }

    async fn list_binds(
        &self,
        request: Request<proto::ListBindsRequest>,
    ) -> Result<Response<Self::ListBindsStream>, Status> {
        may_list(&request, None)?;
        let binds = async {
            let status = self.host()?.allocator().status().await.map_err(|e| status(&e))?;
            Ok(Binds(status.binds.into_iter()))
        };
        self.send(&request, binds).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many lines, in slices of none, one, two lines, and so on.
    struct Lines {
        left: usize,
        slices: usize,
    }

    impl List for Lines {
        type Line = proto::BindInfo;

        fn next_slice(&mut self) -> Option<Vec<Self::Line>> {
            let slice = (self.slices % 3).min(self.left);
            let over = self.left == 0;
            (self.left, self.slices) = (self.left - slice, self.slices + 1);
            (!over).then(|| vec![proto::BindInfo::default(); slice])
        }
    }

    async fn read(
        lines: usize,
        lines_max: usize,
        pause: Duration,
    ) -> (usize, bool, Option<Status>) {
        let (out, mut sent) = mpsc::channel(LINES_WAITING_MAX + 1);
        let until = Instant::now() + LIST_TIME_MAX;
        tokio::spawn(deliver(
            Lines { left: lines, slices: 0 },
            lines_max,
            Duration::from_secs(5),
            until,
            out,
        ));
        let (mut count, mut cut) = (0, false);
        loop {
            tokio::time::sleep(pause).await;
            match sent.recv().await {
                Some(Ok(line)) => {
                    assert!(!cut, "nothing follows the last line");
                    (count, cut) = (count + 1, line.cut);
                }
                Some(Err(error)) => return (count, cut, Some(error)),
                None => return (count, cut, None),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_whole_or_cut_at_the_limit_and_says_which() {
        for (lines, lines_max, expected) in [
            (0, 5, (0, false)),
            (5, 5, (5, false)),
            (6, 5, (5, true)),
            (2_000, 10_000, (2_000, false)),
            (2_000, 1, (1, true)),
        ] {
            let (count, cut, error) = read(lines, lines_max, Duration::ZERO).await;
            assert_eq!((count, cut), expected, "{lines} lines, at most {lines_max}");
            assert!(error.is_none(), "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_read_too_slowly_ends_with_an_error_and_never_as_if_it_were_whole() {
        // The first does not read a line for too long; the second reads one now and then, which
        // takes too long altogether.
        for pause in [Duration::from_secs(50), Duration::from_secs(2)] {
            let (count, _, error) = read(2_000, 10_000, pause).await;
            let error = error.expect("it was not read to its end");
            assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
            assert!(count < 2_000);
        }
    }
}
