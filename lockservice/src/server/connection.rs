//! One session stream: frames in, responses out, as they become known.
//!
//! One task per stream. A frame takes all responses that are ready when it goes out. The task stops
//! reading while its responses are not read, so a client that only writes fills its own buffers and
//! no others. A client that never reads is cut after a while, and its session lapses by its TTL
//! unless it comes back.

use std::sync::Arc;

use futures::stream::{self, FuturesUnordered, StreamExt as _};
use futures::{FutureExt as _, future::BoxFuture};
use lockservice_core::service::{OpResponse, Operation, Quota, Session, TxnOp};
use lockservice_core::{Error, ErrorKind, Result, Sequence, TxnNumber};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::operation::{bytes_of, failed, invalid, operation, response, result};
use crate::convert;
use crate::proto::{self, client_op::Op, server_op::Response as Wire};
use crate::server::{ServerSettings, ServiceHost};

/// The largest number of responses in one frame, so that a client accepts every frame.
const OPS_PER_FRAME_MAX: usize = 1024;

/// The largest frame that is not counted: a stream has one at a time.
const FRAME_BYTES_SMALL: usize = 64 << 10;

pub(crate) type Frames = mpsc::Sender<Result<proto::ServerFrame, Status>>;

pub(crate) async fn run(
    host: ServiceHost,
    settings: ServerSettings,
    quota: Option<Arc<Quota>>,
    mut inbound: Streaming<proto::ClientFrame>,
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
    let mut ops = first.ops.into_iter();
    let opened = match ops.next() {
        Some(proto::ClientOp { id, op: Some(Op::Hello(hello)) }) => {
            (id, open(&host, &settings, quota, hello))
        }
        _ => {
            let error = invalid("the first operation of a session stream must be hello");
            let _ = out.send(Err(convert::to_status(&error))).await;
            return;
        }
    };
    let (id, session) = match opened {
        (id, Ok((session, welcome))) => {
            let frame = proto::ServerFrame { ops: vec![response(id, Wire::Welcome(welcome))] };
            if out.send(Ok(frame)).await.is_err() {
                return;
            }
            (id, session)
        }
        (id, Err(e)) => {
            let _ = out.send(Ok(proto::ServerFrame { ops: vec![failed(id, &e)] })).await;
            return;
        }
    };
    tracing::debug!(id, "session stream opened");
    let mut stream = Stream {
        session,
        settings,
        under_way: FuturesUnordered::new(),
        ready: Vec::new(),
        out,
        over: false,
    };
    stream.take_in(ops.collect()).await;
    stream.serve(inbound).await;
}

/// Opens or resumes the session that a hello requests.
pub(crate) fn open(
    host: &ServiceHost,
    settings: &ServerSettings,
    quota: Option<Arc<Quota>>,
    hello: proto::Hello,
) -> Result<(Session, proto::Welcome)> {
    let service = host.current();
    let resumed = hello.session != 0;
    let session = if resumed {
        host.session(hello.session, hello.service)?
    } else {
        let ttl = (hello.ttl_ms > 0).then(|| std::time::Duration::from_millis(hello.ttl_ms));
        match quota {
            Some(quota) => service.open_session_within(quota, ttl, &hello.name)?,
            None => service.open_session(ttl, &hello.name)?,
        }
    };
    let promise = session.renew()?;
    let welcome = proto::Welcome {
        session: session.id().get(),
        service: service.id().get(),
        node: service.node().as_str().to_owned(),
        ttl_ms: convert::millis_down(session.ttl()),
        promise: Some(proto::Promise { valid_for_ms: convert::millis_down(promise.valid_for) }),
        resumed,
        message_bytes_max: settings.message_bytes_max as u64,
        ops_max: u32::try_from(settings.ops_under_way_max).unwrap_or(u32::MAX),
        volatile: settings.volatile,
        txn_ops_max: u32::try_from(service.settings().ops_per_txn_max).unwrap_or(u32::MAX),
    };
    Ok((session, welcome))
}

struct Stream {
    session: Session,
    settings: ServerSettings,
    under_way: FuturesUnordered<BoxFuture<'static, (u64, Result<OpResponse>)>>,
    ready: Vec<proto::ServerOp>,
    out: Frames,
    /// True once the client said goodbye, or does not read.
    over: bool,
}

impl Stream {
    async fn serve(mut self, mut inbound: Streaming<proto::ClientFrame>) {
        let session = self.session.clone();
        let mut attachment = session.attach();
        let mut lost = std::pin::pin!(session.lost());
        let mut stopping = std::pin::pin!(session.stopping());
        let mut observed = false;
        let notices =
            stream::unfold(session.waits(), async |mut waits| Some((waits.next().await, waits)));
        let mut notices = std::pin::pin!(notices);
        loop {
            // All responses that are ready now go into the next frame.
            while self.ready.len() < OPS_PER_FRAME_MAX
                && let Some(Some((id, outcome))) = self.under_way.next().now_or_never()
            {
                self.ready.push(result(id, outcome));
            }
            if !self.flush().await || self.over {
                return;
            }
            tokio::select! {
                biased;
                // T3: frames of an older stream are dropped.
                () = attachment.replaced() => {
                    self.notice(proto::notice::Notice::Replaced(proto::Replaced {}));
                    self.flush().await;
                    return;
                }
                why = &mut lost => {
                    self.notice(proto::notice::Notice::SessionLost(convert::error_to_proto(&why)));
                    self.flush().await;
                    return;
                }
                grace = &mut stopping, if !observed => {
                    observed = true;
                    let grace_ms = convert::millis_down(grace);
                    let notice = proto::ShuttingDown { grace_ms };
                    self.notice(proto::notice::Notice::ShuttingDown(notice));
                }
                Some((id, outcome)) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.ready.push(result(id, outcome));
                }
                Some(waiting) = notices.next() => {
                    for waiting in waiting.iter().filter_map(convert::waiting_to_proto) {
                        self.notice(proto::notice::Notice::Waiting(waiting));
                    }
                }
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => self.take_in(frame.ops).await,
                    // P3: a lost connection is not a lost session. A message that was too large
                    // ends the stream with its reason.
                    Ok(None) => return,
                    Err(status) => {
                        let _ = self.out.try_send(Err(status));
                        return;
                    }
                },
            }
        }
    }

    async fn take_in(&mut self, ops: Vec<proto::ClientOp>) {
        // Any frame shows that the client lives. An error here is the error of its operations too.
        let _ = self.session.renew();
        let session = self.session.clone();
        // The operations stay here while the client does not read its responses.
        let bytes = bytes_of(&ops);
        let held = (bytes > FRAME_BYTES_SMALL).then(|| session.hold_frame(bytes)).transpose();
        let no_room = held.as_ref().err();
        for proto::ClientOp { id, op } in ops {
            // A frame of many small operations must not become one huge frame of responses.
            if self.ready.len() >= OPS_PER_FRAME_MAX && !self.flush().await {
                self.over = true;
                return;
            }
            match op {
                None => {
                    let e = invalid("the operation is empty, or newer than this server");
                    self.ready.push(failed(id, &e));
                }
                Some(Op::Heartbeat(heartbeat)) => self.heartbeat(id, heartbeat),
                Some(Op::Goodbye(_)) => {
                    if !self.goodbye(id).await {
                        return;
                    }
                }
                Some(op) => match operation(op, self.settings.items_per_request_max, no_room) {
                    Ok((txn, operation)) => self.submit(id, txn, operation),
                    Err(e) => self.ready.push(failed(id, &e)),
                },
            }
        }
    }

    fn heartbeat(&mut self, id: u64, heartbeat: proto::Heartbeat) {
        for acked in heartbeat.acked {
            self.session.ack(TxnNumber::new(acked.txn), Sequence::new(acked.sequence));
        }
        self.ready.push(match self.session.renew() {
            Ok(promise) => {
                let valid_for_ms = convert::millis_down(promise.valid_for);
                response(id, Wire::Promise(proto::Promise { valid_for_ms }))
            }
            Err(e) => failed(id, &e),
        });
    }

    /// Closes the session. False if the client has gone, or does not read.
    async fn goodbye(&mut self, id: u64) -> bool {
        self.session.close().await;
        self.over = true;
        // The operations in flight end with the session, and their callers get the error.
        while let Some((id, outcome)) = self.under_way.next().await {
            if self.ready.len() >= OPS_PER_FRAME_MAX && !self.flush().await {
                return false;
            }
            self.ready.push(result(id, outcome));
        }
        self.ready.push(response(id, Wire::Done(proto::Done::default())));
        true
    }

    fn submit(&mut self, id: u64, txn: TxnOp, operation: Operation) {
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
            self.ready.push(failed(id, &error));
            return;
        }
        let mut pending = self.session.submit(txn, operation);
        match (&mut pending).now_or_never() {
            Some(outcome) => self.ready.push(result(id, outcome)),
            None => self.under_way.push(pending.map(move |outcome| (id, outcome)).boxed()),
        }
    }

    fn notice(&mut self, notice: proto::notice::Notice) {
        self.ready.push(response(0, Wire::Notice(proto::Notice { notice: Some(notice) })));
    }

    /// Sends the responses that are ready. False if the client has gone, or does not read.
    async fn flush(&mut self) -> bool {
        if self.ready.is_empty() {
            return true;
        }
        let frame = proto::ServerFrame { ops: std::mem::take(&mut self.ready) };
        match self.out.send_timeout(Ok(frame), self.settings.write_max()).await {
            Ok(()) => true,
            Err(_) => {
                tracing::info!(
                    "a session stream is cut: its client has gone, or does not read its responses"
                );
                false
            }
        }
    }
}
