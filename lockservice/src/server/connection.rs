//! One session stream: frames in, responses out, as they become known.
//!
//! One task per stream. A frame takes all responses that are ready when it goes out. The task stops
//! reading while its responses are not read, so a client that only writes fills its own buffers and
//! no others. A client that never reads is cut after a while, and its session lapses by its TTL
//! unless it comes back.

mod renewals;

use futures::FutureExt as _;
use futures::stream::{self, FuturesUnordered, StreamExt as _};
use lockservice_core::service::{Attachment, Operation, Session, TxnOp};
use lockservice_core::{Error, ErrorKind, Result};
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::access::Changes;
use super::caller::Caller;
use super::hello::{self, Opener};
use super::operation::{OpReader, ReadOp, Requested, Responses, bytes_of};
use super::quiet::{QuietOps, QuietPlace};
use super::under_way::{Decided, UnderWay};
use crate::convert;
use crate::frame::Ops;
use crate::proto::{self, client_op::Op, server_op::Response as Wire};
use crate::server::{Principal, ServerSettings, ServiceHost};

/// The largest number of responses in one frame, so that a client accepts every frame.
const OPS_PER_FRAME_MAX: usize = 1024;

/// The operations after which a stream lets other tasks run: a frame may have a hundred thousand.
const OPS_PER_TURN: u64 = 64;

pub(crate) type Frames = mpsc::Sender<Result<Bytes, Status>>;

/// The client at the other end of a stream.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its connection, unless the call came over none of a server.
    pub(super) connection: Option<Caller>,
    pub(super) opener: Opener,
    pub(super) caller: Principal,
    pub(super) changes: Changes,
}

pub(super) async fn run(
    host: ServiceHost,
    settings: ServerSettings,
    peer: Peer,
    mut inbound: Streaming<Bytes>,
    out: Frames,
) {
    let first = match tokio::time::timeout(settings.hello_max(), inbound.message()).await {
        Ok(Ok(Some(frame))) => frame,
        Ok(Ok(None)) => return,
        Ok(Err(status)) => {
            // The frame is too large, or there is too much: the status says which. A client that
            // has gone reads nothing.
            let _ = out.send(Err(status)).await;
            return;
        }
        Err(_) => {
            let late = Error::new(
                ErrorKind::Timeout,
                "the stream said no hello in time: send it in the first frame",
            );
            let _ = out.send(Err(convert::to_status(&late))).await;
            return;
        }
    };
    let mut ops = Ops::of(first);
    let (id, hello) = match hello::hello(ops.next()) {
        Ok(hello) => hello,
        Err(error) => {
            let _ = out.send(Err(convert::to_status(&error))).await;
            return;
        }
    };
    let mut responses = Responses::default();
    let session = match hello::open(&host, &settings, peer.opener, hello) {
        Ok((session, welcome)) => {
            responses.push(id, Wire::Welcome(welcome));
            if out.send(Ok(responses.take(0))).await.is_err() {
                return;
            }
            session
        }
        Err(e) => {
            responses.push_error(id, &e);
            let _ = out.send(Ok(responses.take(0))).await;
            return;
        }
    };
    tracing::debug!(id, "session stream opened");
    let stream = Stream {
        session,
        settings,
        reader: OpReader::new(settings.items_per_request_max, peer.caller.clone()),
        under_way: FuturesUnordered::new(),
        quiet: QuietOps::default(),
        responses,
        out,
        taken: 0,
        over: false,
    };
    let callers =
        Callers { connection: peer.connection, caller: peer.caller, changes: peer.changes };
    stream.serve(ops, inbound, callers).await;
}

struct Stream {
    session: Session,
    settings: ServerSettings,
    reader: OpReader,
    under_way: FuturesUnordered<UnderWay>,
    quiet: QuietOps,
    responses: Responses,
    out: Frames,
    /// The operations that were taken in.
    taken: u64,
    /// The client said goodbye, or does not read, or sends what cannot be read.
    over: bool,
}

/// The caller of a stream, as its identity changes.
struct Callers {
    connection: Option<Caller>,
    caller: Principal,
    changes: Changes,
}

impl Callers {
    /// Resolves when the identities have changed, with the caller as it is now: its new limits
    /// count. Fails if it may not have the stream any more.
    async fn next(&mut self) -> Result<Principal> {
        let now = self.changes.next(&self.caller).await?;
        if let Some(connection) = &self.connection {
            connection.client(&now);
        }
        self.caller = now.clone();
        Ok(now)
    }
}

impl Stream {
    async fn serve(mut self, rest_of_first: Ops, mut inbound: Streaming<Bytes>, callers: Callers) {
        self.take_in(rest_of_first).await;
        let session = self.session.clone();
        let attachment = session.attach();
        // Each is made once: to make one for each frame costs more than to look at it.
        let mut current = attachment.clone();
        let mut replaced = std::pin::pin!(current.replaced());
        let mut lost = std::pin::pin!(session.lost());
        let mut stopping = std::pin::pin!(session.stopping());
        let mut observed = false;
        let notices =
            stream::unfold(session.notices(), async |mut all| Some((all.next().await, all)));
        let mut notices = std::pin::pin!(notices);
        let callers =
            stream::unfold(callers, async |mut callers| Some((callers.next().await, callers)));
        let mut callers = std::pin::pin!(callers);
        loop {
            // Everything that is ready by now rides in the next frame.
            while self.responses.count() < OPS_PER_FRAME_MAX
                && let Some(Some(decided)) = self.under_way.next().now_or_never()
            {
                self.decided(decided);
            }
            if !self.flush().await || self.over {
                return;
            }
            tokio::select! {
                biased;
                // T3: frames of an older stream are dropped.
                () = &mut replaced => {
                    self.notice(proto::notice::Notice::Replaced(proto::Replaced {}));
                    self.flush().await;
                    return;
                }
                why = &mut lost => {
                    self.notice(if why.kind() == ErrorKind::Restarting {
                        proto::notice::Notice::Restarting(proto::Restarting {})
                    } else {
                        proto::notice::Notice::SessionLost(convert::error_to_proto(&why))
                    });
                    self.flush().await;
                    return;
                }
                Some(caller) = callers.next() => match caller {
                    Ok(caller) => self.reader.set_caller(caller),
                    // The client resumes with the credentials that it has now, or stops its work.
                    Err(why) => {
                        tracing::info!(error = %why, "a session stream ends: its caller is not \
                            known any more");
                        self.flush().await;
                        let _ = self.out.try_send(Err(convert::to_status(&why)));
                        return;
                    }
                },
                grace = &mut stopping, if !observed => {
                    observed = true;
                    let grace_ms = convert::millis_down(grace);
                    let notice = proto::ShuttingDown { grace_ms };
                    self.notice(proto::notice::Notice::ShuttingDown(notice));
                }
                Some(decided) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.decided(decided);
                }
                Some(notices) = notices.next() => {
                    let notices = notices.iter().filter_map(convert::notice_to_proto);
                    notices.for_each(|notice| self.notice(notice));
                }
                frame = inbound.message() => {
                    if !self.take_frames(frame, &mut inbound, &attachment).await {
                        return;
                    }
                }
            }
        }
    }

    /// Takes a frame in, and those that have arrived after it: one frame has the responses to all
    /// of them. Those of an older stream do not count (T3). False if the stream has ended.
    async fn take_frames(
        &mut self,
        first: Result<Option<Bytes>, Status>,
        inbound: &mut Streaming<Bytes>,
        attachment: &Attachment,
    ) -> bool {
        let mut next = Some(first);
        while let Some(frame) = next {
            if !self.take_frame(frame).await {
                return false;
            }
            let more =
                self.responses.count() < OPS_PER_FRAME_MAX && !self.over && attachment.is_current();
            next = if more { inbound.message().now_or_never() } else { None };
        }
        true
    }

    /// False if the stream has ended.
    async fn take_frame(&mut self, frame: Result<Option<Bytes>, Status>) -> bool {
        match frame {
            Ok(Some(frame)) => {
                self.take_in(Ops::of(frame)).await;
                return true;
            }
            // P3: a lost connection is not a lost session.
            Ok(None) => {}
            // A message that was too large ends the stream with its reason.
            Err(status) => {
                self.flush().await;
                let _ = self.out.try_send(Err(status));
            }
        }
        false
    }

    async fn take_in(&mut self, mut ops: Ops) {
        // Any frame shows that the client lives. An error here is that of its operations, too.
        self.responses.renewed(self.session.renew().ok());
        loop {
            // A frame of many small operations must not become one huge frame of responses.
            if self.responses.count() >= OPS_PER_FRAME_MAX && !self.flush().await {
                self.over = true;
            }
            if self.over {
                return;
            }
            let Some(op) = ops.next() else { return };
            self.taken += 1;
            if self.taken.is_multiple_of(OPS_PER_TURN) {
                tokio::task::yield_now().await;
            }
            let read = op.and_then(|op| Ok((op.id, self.reader.read(&op)?)));
            let read = read.map(|(id, ReadOp { requested, quiet })| {
                (id, quiet.then(|| self.quiet.arrive()), requested)
            });
            match read {
                Ok((id, _, Requested::Goodbye)) => self.goodbye(id).await,
                Ok((id, quiet, Requested::Txn(txn, op))) => self.submit(id, quiet, txn, op),
                Ok((id, quiet, Requested::Large(op))) => {
                    // It takes long.
                    tokio::task::yield_now().await;
                    self.large(id, quiet, op);
                }
                Ok((id, _, Requested::Heartbeat(heartbeat))) => self.heartbeat(id, heartbeat),
                Ok((id, _, Requested::Claim(claim))) => self.claim(id, claim).await,
                Ok((id, _, Requested::ClaimsDone(last))) => self.claims_done(id, last),
                Ok((id, _, Requested::Refused(e))) => self.responses.push_error(id, &e),
                // Nothing after it can be understood.
                Err(e) => {
                    self.flush().await;
                    let _ = self.out.try_send(Err(convert::to_status(&e)));
                    self.over = true;
                }
            }
        }
    }

    /// Takes an operation in whose message is large. It is counted until it was taken in.
    fn large(&mut self, id: u64, quiet: Option<QuietPlace>, op: Op) {
        let session = self.session.clone();
        let held = session.hold_frame(bytes_of(&op));
        match self.reader.operation(op, held.as_ref().err()) {
            Ok((txn, operation)) => self.submit(id, quiet, txn, operation),
            Err(e) => self.responses.push_error(id, &e),
        }
    }

    /// Closes the session.
    async fn goodbye(&mut self, id: u64) {
        self.session.close().await;
        self.over = true;
        // The operations under way are over with the session, and their callers learn that.
        while let Some(decided) = self.under_way.next().await {
            if self.responses.count() >= OPS_PER_FRAME_MAX && !self.flush().await {
                return;
            }
            self.decided(decided);
        }
        self.responses.push(id, Wire::Done(proto::Done::default()));
    }

    fn submit(&mut self, id: u64, quiet: Option<QuietPlace>, txn: TxnOp, operation: Operation) {
        // Only waits are refused at the bound: an unlock makes room.
        if self.under_way.len() >= self.settings.ops_under_way_max
            && matches!(operation, Operation::Lock(_))
        {
            let error = Error::new(
                ErrorKind::ResourceExhausted,
                "too many operations are under way in this session: wait for responses",
            )
            .with("limit", self.settings.ops_under_way_max);
            // The place in the transaction's order is taken all the same, so that later operations
            // can go on.
            drop(self.session.submit(txn, Operation::Refuse(error.clone())));
            self.responses.push_error(id, &error);
            return;
        }
        let mut pending = match quiet {
            Some(_) => self.session.submit_quiet(txn, operation),
            None => self.session.submit(txn, operation),
        };
        match (&mut pending).now_or_never() {
            // The number of those that are done says it.
            Some(Ok(_)) if quiet.is_some() => {}
            Some(result) => self.responses.push_result(id, result),
            None => {
                if let Some(place) = quiet {
                    self.quiet.wait(place);
                }
                self.under_way.push(UnderWay { id, pending, quiet });
            }
        }
    }

    fn decided(&mut self, decided: Decided) {
        if let Some(place) = decided.quiet {
            self.quiet.decided(place);
        }
        self.responses.push_result(decided.id, decided.result);
    }

    fn notice(&mut self, notice: proto::notice::Notice) {
        self.responses.push(0, Wire::Notice(proto::Notice { notice: Some(notice) }));
    }

    /// Sends the responses that are ready. False if the client has gone, or does not read.
    async fn flush(&mut self) -> bool {
        if self.responses.count() == 0 {
            return true;
        }
        let frame = self.responses.take(self.quiet.done());
        let sent = match self.out.try_send(Ok(frame)) {
            // Only one that has to wait needs a timer.
            Err(mpsc::error::TrySendError::Full(frame)) => {
                self.out.send_timeout(frame, self.settings.write_max()).await.is_ok()
            }
            sent => sent.is_ok(),
        };
        if !sent {
            tracing::info!(
                "a session stream is cut: its client has gone, or does not read its responses"
            );
        }
        sent
    }
}
