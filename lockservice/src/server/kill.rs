//! `KillSession` of `lockservice.v1.Admin`.

use lockservice_core::service::{KillUnderWay, LockService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::audit::Audit;
use crate::convert::{self, to_status as status};
use crate::proto::kill_progress::Progress;
use crate::proto::{KillBegun, KillProgress, KillSessionRequest};

/// The responses of a kill.
pub(super) type Responses = ReceiverStream<Result<KillProgress, Status>>;

/// Kills a session, and responds when it has begun and when it is done. It goes on, and its end is
/// written down, if the caller does not wait for that.
pub(super) fn kill_session(
    service: &LockService,
    request: &Request<KillSessionRequest>,
) -> Result<Response<Responses>, Status> {
    let KillSessionRequest { session, reason, now } = request.get_ref();
    let audit = Audit::of(request, "kill_session", session, reason, *now);
    let killed = session
        .parse()
        .and_then(|session| service.kill_session(session, reason, *now))
        .map_err(|e| {
            audit.record(&format!("refused: {e}"));
            status(&e)
        })?;
    audit.record(&format!(
        "begun: client {:?}, {} transactions, their locks kept for at most {:?}",
        killed.client, killed.txns, killed.kept
    ));
    Ok(respond(killed, audit))
}

fn respond(kill: KillUnderWay, audit: Audit) -> Response<Responses> {
    let begun = KillBegun {
        client: kill.client.clone(),
        txns: kill.txns as u64,
        kept_ms: convert::millis_up(kill.kept),
    };
    // There is room for both responses.
    let (out, responses) = mpsc::channel(2);
    let first = out.try_send(Ok(KillProgress { progress: Some(Progress::Begun(begun)) }));
    debug_assert!(first.is_ok(), "it is empty");
    tokio::spawn(async move {
        let last = match kill.done().await {
            Ok(killed) => {
                let committing = match killed.committing.len() {
                    0 => String::new(),
                    count => format!("; {count} transactions are committing and were left alone"),
                };
                audit.record(&format!("done: {}{committing}", killed.end.name()));
                Ok(KillProgress {
                    progress: Some(Progress::Done(convert::killed_to_proto(&killed))),
                })
            }
            Err(e) => {
                audit.record(&format!("not known: {e}"));
                Err(status(&e))
            }
        };
        // The caller may have gone.
        let _ = out.try_send(last);
    });
    Response::new(ReceiverStream::new(responses))
}
