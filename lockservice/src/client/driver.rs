//! The task behind a session: reads responses, renews, connects again.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockservice_core::clock::{Time, lo};
use lockservice_core::{Advice, Error, ErrorKind, NodeName, Result, ServiceId, SessionId};
use parking_lot::Mutex;
use prost::bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, watch};
use tonic::client::Grpc;
use tonic::codegen::http;
use tonic::{Request, Status, Streaming};

use super::backoff::Backoff;
use super::connect::{Node, RESPONSE_BYTES_MAX};
use super::node_session::{Closing, Handle, Info, SessionShared, deadline_passed};
use super::outbox::{OpId, Outbox, ResponseEffect};
use super::responses::{ResponseReader, goes_to_several, let_others_go_first, take_in};
use super::resume::resume;
use super::stream::Requests;
use crate::channel::StreamChannel;
use crate::convert::{error_from_proto, from_status, millis_up};
use crate::frame::{self, FrameCodec, Ops, SESSION_PATH};
use crate::{codec, proto};

/// The clock is read at least this often: timers do not count suspend.
pub(super) const TICK_MAX: Duration = Duration::from_secs(1);

/// A stream that was welcomed.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) responses: Streaming<Bytes>,
    pub(super) welcome: proto::Welcome,
    /// The time before the greeting, or the last claim, was sent. The promise of the response
    /// counts from it (P2).
    pub(super) sent: Time,
    pub(super) promised: Duration,
    _counted: StreamChannel,
}

/// The end of a stream.
#[derive(Debug)]
enum End {
    /// The connection broke; the session did not.
    Broken,
    /// The server stops and is expected back.
    Restarting,
    /// The session is over.
    Over,
}

/// Opens a session at one node.
pub(super) async fn open(node: &Node, ttl: Option<Duration>) -> Result<Arc<Handle>> {
    let outbox = Arc::new(Outbox::default());
    let hello = proto::Hello {
        ttl_ms: ttl.map_or(0, |ttl| millis_up(ttl).max(1)),
        name: node.client.parts.name.clone(),
        ..proto::Hello::default()
    };
    let connected = connect(node, &outbox, hello).await?;
    let welcome = &connected.welcome;
    let info = Info {
        session: SessionId::new(welcome.session),
        node: NodeName::new(&welcome.node)?,
        ttl: Duration::from_millis(welcome.ttl_ms),
        lease: Duration::from_millis(welcome.lease_ms),
        message_bytes_max: connected.message_bytes_max(),
        volatile: welcome.volatile,
    };
    let permits =
        usize::try_from(welcome.ops_max).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
    let shared = Arc::new(SessionShared {
        node: node.clone(),
        cluster_session: OnceLock::new(),
        outbox,
        info,
        service: Mutex::new(ServiceId::new(welcome.service)),
        connected: watch::Sender::new(true),
        deadline: watch::Sender::new(Time::ZERO),
        lost: watch::Sender::new(None),
        losses: watch::Sender::new(0),
        closing: watch::Sender::new(Closing::No),
        locks: Arc::new(Semaphore::new(permits)),
    });
    shared.begin(&connected);
    if let Err(e) = leaves_time_to_work(&shared, &connected) {
        // The session is closed, so that the server does not keep it for its TTL. If that fails,
        // the server does.
        shared.outbox.close();
        drop(shared.give_up().await);
        return Err(e);
    }
    shared.env().spawn(run(Arc::clone(&shared), connected));
    Ok(Arc::new(Handle { shared }))
}

/// Fails with `InvalidArgument` if the protected work needs longer to stop than the server
/// promises: the session would be lost at once, and so would every later one.
fn leaves_time_to_work(shared: &SessionShared, connected: &Connected) -> Result<()> {
    let promise = connected.promised;
    let stop_time = shared.node.client.parts.stop_time;
    if stop_time.is_zero() || lo(promise) > stop_time {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        "the work needs longer to stop than its locks are safe without a renewal: give it a \
         shorter stop time, \
         or the session a longer TTL and the server a longer lease",
    )
    .with("stop_time", format!("{stop_time:?}"))
    .with("promise", format!("{promise:?}")))
}

impl Connected {
    /// The largest message that the server accepts.
    pub(super) fn message_bytes_max(&self) -> usize {
        usize::try_from(self.welcome.message_bytes_max).unwrap_or(usize::MAX)
    }
}

/// Opens a stream and greets.
pub(super) async fn connect(
    node: &Node,
    outbox: &Arc<Outbox>,
    hello: proto::Hello,
) -> Result<Connected> {
    let number = outbox.new_stream();
    let op =
        proto::ClientOp { id: OpId::HELLO.get(), op: Some(proto::client_op::Op::Hello(hello)) };
    let mut frame = BytesMut::new();
    frame::push(&mut frame, &op);
    let requests = Requests {
        outbox: Arc::clone(outbox),
        env: node.client.env().clone(),
        number,
        hello: Some(frame.freeze()),
    };
    let sent = node.client.env().now();
    let counted = node.stream_channel()?;
    let greeted = async {
        let mut responses = open_stream(&counted, requests).await?;
        let frame = responses.message().await.map_err(|status| from_status(&status))?;
        let mut ops = Ops::of(frame.unwrap_or_default());
        let op = ops.next().transpose()?;
        let op: Option<proto::ServerOp> = op.map(|op| codec::decode(op.whole())).transpose()?;
        match op.and_then(|op| op.response) {
            Some(proto::server_op::Response::Welcome(welcome)) => {
                let promised = welcome.promise.unwrap_or_default().valid_for_ms;
                let promised = Duration::from_millis(promised);
                Ok(Connected { responses, welcome, sent, promised, _counted: counted })
            }
            Some(proto::server_op::Response::Error(error)) => Err(error_from_proto(error)),
            _ => Err(Error::new(
                ErrorKind::Unavailable,
                "the server did not greet: is it a lockservice?",
            )
            .with("address", &node.address)),
        }
    };
    match node.client.env().timeout(node.client.parts.call_timeout, greeted).await {
        Ok(result) => result,
        Err(_) => Err(node.no_response()),
    }
}

async fn open_stream(channel: &StreamChannel, requests: Requests) -> Result<Streaming<Bytes>> {
    let mut grpc = Grpc::new(channel.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX);
    grpc.ready().await.map_err(|e| from_status(&Status::from_error(e)))?;
    let path = http::uri::PathAndQuery::from_static(SESSION_PATH);
    let responses = grpc.streaming(Request::new(requests), path, FrameCodec).await;
    Ok(responses.map_err(|status| from_status(&status))?.into_inner())
}

async fn run(shared: Arc<SessionShared>, mut connected: Connected) {
    let mut closing = shared.closing.subscribe();
    let over = closing.wait_for(|closing| *closing != Closing::No);
    let session = async {
        let mut backoff = Backoff::default();
        loop {
            match serve(&shared, connected, &mut backoff).await {
                End::Broken => {}
                End::Restarting => backoff.restarting(),
                End::Over => break,
            }
            shared.connected.send_replace(false);
            match resume(&shared, &mut backoff).await {
                Some(resumed) => connected = resumed,
                None => break,
            }
        }
        // The session is lost: its user has to close it.
        shared.outbox.close();
        std::future::pending::<()>().await;
    };
    let mut session = pin!(session);
    let closing = tokio::select! {
        biased;
        closing = over => closing.map_or(Closing::Closed, |closing| *closing),
        () = &mut session => Closing::Closed,
    };
    if closing == Closing::Dropped {
        // Its last releases, which may carry a commit.
        tokio::select! {
            biased;
            () = shared.flush() => {}
            () = &mut session => {}
        }
    }
    shared.outbox.close();
    if closing == Closing::Dropped {
        // The session is not used any more, so all of its work has stopped (P5).
        if let Err(e) = shared.give_up().await {
            tracing::debug!(error = ?e, "a session that is not used any more could not be closed: \
                it lapses by its TTL");
        }
    }
}

/// Serves one stream until it ends.
async fn serve(shared: &SessionShared, connected: Connected, backoff: &mut Backoff) -> End {
    let sent = connected.sent;
    let end = serve_stream(shared, connected).await;
    backoff.lived(shared.env().now().since(sent));
    end
}

async fn serve_stream(shared: &SessionShared, connected: Connected) -> End {
    let mut responses = connected.responses;
    let mut next_renewal = connected.sent + renewal_interval(shared, connected.promised);
    let mut reader = ResponseReader::default();
    let env = shared.env();
    let mut tick = pin!(env.sleep(Duration::ZERO));
    loop {
        tokio::select! {
            biased;
            frame = responses.message() => {
                let frame = match frame {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return End::Broken,
                    Err(status) => return broken(shared, from_status(&status)),
                };
                match take_frame(shared, &mut reader, frame, &mut next_renewal).await {
                    Ok(renewed) => {
                        if renewed {
                            tick.set(env.sleep(Duration::ZERO));
                        }
                    }
                    Err(end) => return end,
                }
            }
            () = tick.as_mut() => {
                let pause = renew_if_due(shared, &mut next_renewal);
                tick.set(env.sleep(pause));
            }
        }
    }
}

/// The time from the start of a promise of raw length `promised` to the next renewal.
fn renewal_interval(shared: &SessionShared, promised: Duration) -> Duration {
    promised.min(shared.info.ttl) / 3
}

/// Takes the responses of a frame into account. True if a renewal was among them. Fails if the
/// stream is of no use any more.
async fn take_frame(
    shared: &SessionShared,
    reader: &mut ResponseReader,
    frame: Bytes,
    next_renewal: &mut Time,
) -> std::result::Result<bool, End> {
    let gathering = goes_to_several(&frame).then(|| shared.outbox.gather());
    // P2: once for all grants of the frame. Each caller looks again.
    let accept = shared.check();
    let (mut renewed, mut restarting, mut promise) = (false, false, None);
    let ends = |(sent, promised): &(Time, Duration)| *sent + *promised;
    // When the newest operation was sent that has its response here.
    let mut newest = None;
    let mut ops = Ops::of(frame);
    while let Some(op) = ops.next() {
        match op.map(|op| take_in(shared, reader, &op, &accept)) {
            Ok(ResponseEffect::None) => {}
            Ok(ResponseEffect::Restarting) => restarting = true,
            Ok(ResponseEffect::Answered(sent)) => newest = newest.max(Some(sent)),
            Ok(ResponseEffect::Renewed(sent, promised)) => {
                shared.renewed(sent, promised);
                *next_renewal = sent + renewal_interval(shared, promised);
                renewed = true;
            }
            // The one that ends last counts.
            Ok(ResponseEffect::Promised(sent, promised)) => {
                newest = newest.max(Some(sent));
                promise = promise.into_iter().chain([(sent, promised)]).max_by_key(ends);
            }
            Ok(ResponseEffect::Lost(error)) => {
                shared.lose(error);
                return Err(End::Over);
            }
            Err(e) => return Err(broken(shared, e)),
        }
    }
    if ops.quiet_done() > 0 {
        shared.outbox.quiet_done(ops.quiet_done());
    }
    // P2: the server took that operation in before it made the promise of the frame.
    let of_frame = newest.zip(Some(ops.valid_for()).filter(|promised| !promised.is_zero()));
    promise = promise.into_iter().chain(of_frame).max_by_key(ends);
    if let Some((sent, promised)) = promise
        && shared.promised(sent, promised)
    {
        *next_renewal = sent + renewal_interval(shared, promised);
    }
    if let Some(gathering) = gathering {
        let_others_go_first().await;
        drop(gathering);
    }
    if restarting { Err(End::Restarting) } else { Ok(renewed) }
}

/// The stream ended with `error`.
fn broken(shared: &SessionShared, error: Error) -> End {
    if error.advice() == Advice::NewSession {
        shared.lose(error);
        return End::Over;
    }
    match error.kind() {
        ErrorKind::Restarting => return End::Restarting,
        ErrorKind::ResourceExhausted => shared.outbox.fail_large_locks(&error),
        _ => {}
    }
    End::Broken
}

/// Loses the session if its deadline has passed, renews it if that is due. Returns the pause until
/// this is to be called again. Timers only wake; the clock decides.
fn renew_if_due(shared: &SessionShared, next_renewal: &mut Time) -> Duration {
    let now = shared.env().now();
    let deadline = *shared.deadline.borrow();
    if now >= deadline {
        // P2. The stream stays, so that releases still arrive.
        shared.lose(deadline_passed());
    }
    let renewing = match &*shared.lost.borrow() {
        None => true,
        Some(why) => why.kind() == ErrorKind::ShuttingDown,
    };
    if renewing && now >= *next_renewal {
        shared.outbox.heartbeat();
        // Until the response arrives, the task waits for the deadline.
        *next_renewal = now + renewal_interval(shared, shared.info.ttl);
    }
    let mut pause = TICK_MAX;
    if renewing {
        pause = pause.min(next_renewal.remaining(now));
    }
    if now < deadline {
        pause = pause.min(deadline.remaining(now));
    }
    pause.max(Duration::from_millis(1))
}
