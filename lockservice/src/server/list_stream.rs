//! [`ListStreams`]: lists for operators, sent slice by slice as they are read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::server::ServerSettings;
use crate::server::caller::Client;

/// The largest number of lists that are sent at the same time. Each holds a slice and the lines
/// that wait for its reader. Further lists wait their turn.
const LISTS_MAX: usize = 64;

/// The longest that a list may take, from the request to its last line: no reader keeps its place
/// for longer.
const LIST_TIME_MAX: Duration = Duration::from_secs(60);

/// Lines that are made in one go. The lock engine serves other calls between two slices.
pub(super) const SLICE_LINES: usize = 256;

/// The largest number of lines that wait to be taken by the connection.
const LINES_WAITING_MAX: usize = 256;

/// The lists that are being sent.
#[derive(Debug)]
pub(super) struct ListStreams {
    places: Arc<Semaphore>,
    lines_max: usize,
    write_max: Duration,
}

impl ListStreams {
    pub(super) fn new(settings: &ServerSettings) -> Self {
        let (lines_max, write_max) = (settings.list_lines_max, settings.write_max());
        Self { places: Arc::new(Semaphore::new(LISTS_MAX)), lines_max, write_max }
    }

    /// The largest number of lines of a list.
    pub(super) fn lines_max(&self) -> usize {
        self.lines_max
    }

    /// Sends at most `lines_max` lines, made slice by slice as the client reads them. The last line
    /// says if there are more. A list that is not finished in time ends with an error.
    pub(super) async fn send<T, L: List>(
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
            let place = Arc::clone(&self.places).acquire_owned().await;
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
pub(super) trait List: Send + 'static {
    type Line: Line;

    /// The next lines, perhaps none; `None` at the end.
    fn next_slice(&mut self) -> Option<Vec<Self::Line>>;
}

/// A message that is one line of a list.
pub(super) trait Line: Send + 'static {
    /// Marks the line as the last one of a list that is cut.
    fn set_cut(&mut self);
}

/// A list of bounded length that was made in one go, and the message of each of its parts.
pub(super) struct Whole<T, L>(std::vec::IntoIter<T>, fn(&T) -> L);

impl<T, L> Whole<T, L> {
    pub(super) fn new(parts: Vec<T>, message: fn(&T) -> L) -> Self {
        Self(parts.into_iter(), message)
    }
}

impl<T: Send + 'static, L: Line> List for Whole<T, L> {
    type Line = L;

    fn next_slice(&mut self) -> Option<Vec<L>> {
        let slice: Vec<L> = self.0.by_ref().take(SLICE_LINES).map(|it| self.1(&it)).collect();
        (!slice.is_empty()).then_some(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

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
