//! The way of a session to its next stream: resumed, or claimed after a restart (P3, P6).
//!
//! 1. `connect` of `driver`: the greeting names the session, and says that it claims.
//! 2. A server that knows the session goes on with it. The next process of the server says
//!    `Welcome.reclaim`: what it promises there counts for nothing yet.
//! 3. `claim`: the claims of all transactions are sent, and their responses are read. A claim that
//!    is refused loses its transaction.
//! 4. The response to the last message is a promise, which counts for all that was claimed. The
//!    outbox is opened.

use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::{Advice, Error, ErrorKind, Result, ServiceId, TxnNumber};

use super::backoff::Backoff;
use super::driver::{Connected, TICK_MAX, connect};
use super::node_session::{SessionShared, deadline_passed};
use super::outbox::{ClaimId, Claims, ResponseEffect};
use super::responses::take_notice;
use crate::convert::{error_from_proto, from_status, millis_up};
use crate::frame::Ops;
use crate::proto::server_op::Response as Wire;
use crate::{codec, proto};

/// For how long a server may be silent while claims are made, before they are made again.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Resumes the session on a new stream. `None` if that is no longer possible: then it is lost.
pub(super) async fn resume(shared: &SessionShared, backoff: &mut Backoff) -> Option<Connected> {
    loop {
        let env = shared.env();
        let deadline = *shared.deadline.borrow();
        let now = env.now();
        let pause = backoff.next(now, env.random_u64()).min(deadline.remaining(now));
        if !pause.is_zero() {
            env.sleep(pause).await;
        }
        let left = deadline.remaining(env.now());
        if left.is_zero() {
            shared.lose(deadline_passed());
            return None;
        }
        let hello = proto::Hello {
            ttl_ms: millis_up(shared.info.ttl),
            name: shared.node.client.parts.name.clone(),
            session: shared.info.session.get(),
            service: shared.service().get(),
            claims: true,
        };
        let connecting = connect(&shared.node, &shared.outbox, hello);
        let error = match env.timeout(left.min(TICK_MAX), connecting).await {
            Ok(Ok(connected)) => match welcomed(shared, connected).await {
                Ok(connected) => return Some(connected),
                Err(e) => e,
            },
            Ok(Err(e)) => e,
            // The deadline has passed, or another attempt follows.
            Err(_) => continue,
        };
        if matches!(error.advice(), Advice::NewSession | Advice::FixRequest) {
            shared.lose(error);
            return None;
        }
        if error.kind() == ErrorKind::Restarting {
            backoff.restarting();
        }
        tracing::debug!(error = ?error, "could not resume the session; trying again");
    }
}

/// Goes on with a session on a stream that was welcomed.
async fn welcomed(shared: &SessionShared, mut connected: Connected) -> Result<Connected> {
    if connected.welcome.reclaim {
        if !connected.welcome.alone && connected.welcome.node != shared.info.node.as_str() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "another node responds at the address of the session's node",
            )
            .with("node", &connected.welcome.node));
        }
        claim(shared, &mut connected).await?;
        tracing::info!(
            session = %shared.info.session,
            service = connected.welcome.service,
            "the server was restarted: what the session holds was claimed"
        );
    } else if connected.welcome.service != shared.service().get() {
        // Its claims would have to be made: what was refused on a broken stream is not known here.
        return Err(Error::new(
            ErrorKind::Unavailable,
            "another process of the server goes on with the session and takes no claims",
        ));
    }
    shared.begin(&connected);
    Ok(connected)
}

/// Claims what the session held at the earlier process of the server. The promise of `connected` is
/// that of the claims then.
async fn claim(shared: &SessionShared, connected: &mut Connected) -> Result<()> {
    // It does not move before all is claimed: no promise is counted on the way.
    let deadline = *shared.deadline.borrow();
    let bytes_max = connected.message_bytes_max();
    let claims = shared.outbox.claim(deadline, bytes_max);
    for (number, why) in &claims.lost {
        shared.txn_not_claimed(*number, why);
    }
    let promised = read_until_done(shared, connected, &claims, deadline).await?;
    let sent = shared.outbox.claims_sent().ok_or_else(no_promise)?;
    if shared.env().now() >= deadline {
        // P2: this process may have slept. The locks were safe until the old deadline, no longer.
        return Err(deadline_passed());
    }
    (connected.sent, connected.promised) = (sent, promised);
    shared.set_service(ServiceId::new(connected.welcome.service));
    Ok(())
}

/// Reads the responses to claims. Returns the promise of the last one.
async fn read_until_done(
    shared: &SessionShared,
    connected: &mut Connected,
    claims: &Claims,
    deadline: Time,
) -> Result<Duration> {
    let env = shared.env();
    let mut heard = env.now();
    loop {
        let now = env.now();
        let left = deadline.remaining(now);
        if left.is_zero() {
            return Err(deadline_passed());
        }
        if now.since(heard) >= SILENCE_MAX {
            return Err(shared.node.no_response());
        }
        let Ok(frame) = env.timeout(left.min(TICK_MAX), connected.responses.message()).await else {
            continue;
        };
        let frame = frame.map_err(|status| from_status(&status))?.ok_or_else(stream_ended)?;
        heard = env.now();
        let mut ops = Ops::of(frame);
        while let Some(op) = ops.next() {
            let op: proto::ServerOp = codec::decode(op?.whole())?;
            match (claims.find(op.id), op.response) {
                (_, Some(Wire::Notice(notice))) => match take_notice(shared, notice) {
                    ResponseEffect::Lost(e) => return Err(e),
                    ResponseEffect::Restarting => return Err(restarting()),
                    _ => {}
                },
                (Some(ClaimId::Claim(number)), Some(Wire::Error(e))) => {
                    refused(shared, number, error_from_proto(e), deadline)?;
                }
                (Some(ClaimId::Done), Some(Wire::Error(e))) => return Err(error_from_proto(e)),
                (Some(ClaimId::Done), Some(Wire::Promise(promise))) => {
                    return Ok(Duration::from_millis(promise.valid_for_ms));
                }
                (Some(ClaimId::Claim(_)), Some(Wire::Claimed(claimed))) => {
                    shared.outbox.claimed(claims, op.id, &claimed);
                }
                (Some(ClaimId::Done), _) => return Err(no_promise()),
                // A claim that succeeded. Nothing else was sent on this stream.
                (Some(ClaimId::Claim(_)) | None, _) => {}
            }
        }
    }
}

/// A claim failed. Fails if that says nothing about the claim.
fn refused(shared: &SessionShared, number: TxnNumber, e: Error, deadline: Time) -> Result<()> {
    let says_nothing = matches!(e.kind(), ErrorKind::Restarting | ErrorKind::Unavailable)
        || e.advice() == Advice::NewSession;
    if says_nothing {
        return Err(e);
    }
    let why = match e.kind() {
        ErrorKind::ClaimRefused => e,
        _ => Error::new(
            ErrorKind::ClaimRefused,
            "the server was restarted, and does not let the transaction keep its locks: stop the \
                work under them, and end it",
        )
        .with_source(e),
    };
    if shared.outbox.refuse(number, why.clone(), deadline) {
        shared.txn_not_claimed(number, &why);
    }
    Ok(())
}

fn restarting() -> Error {
    Error::new(ErrorKind::Restarting, "the server stops, and is expected back")
}

fn stream_ended() -> Error {
    Error::new(ErrorKind::Unavailable, "the stream ended while claims were made")
}

fn no_promise() -> Error {
    Error::new(ErrorKind::Unavailable, "the server promised nothing after the claims")
}
