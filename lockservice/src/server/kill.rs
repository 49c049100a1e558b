//! `KillSession`, `KillTxn` and `ForceRelease` of `lockservice.v1.Admin`.
//!
//! A kill goes on, and its end is written down, if the caller does not wait for that.

use std::sync::Arc;

use lockservice_core::service::{ForcedRelease, KillUnderWay, LockService, TxnKillUnderWay};
use lockservice_core::{Error, Key, TxnId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::audit::Audit;
use crate::convert::{self, to_status as status};
use crate::proto::kill_progress::Progress;
use crate::proto::kill_txn_progress::Progress as TxnProgress;
use crate::proto::{
    ForceReleaseRequest, KillBegun, KillProgress, KillSessionRequest, KillTxnProgress,
    KillTxnRequest, KillTxnsBegun, TxnKillBegun,
};

/// The responses of the kill of a session.
pub(super) type Responses = ReceiverStream<Result<KillProgress, Status>>;

/// The responses of the kill of transactions.
pub(super) type TxnResponses = ReceiverStream<Result<KillTxnProgress, Status>>;

/// Kills a session, and responds when it has begun and when it is done.
pub(super) fn kill_session(
    service: &LockService,
    request: &Request<KillSessionRequest>,
) -> Result<Response<Responses>, Status> {
    let KillSessionRequest { session, reason, now } = request.get_ref();
    let audit = Audit::of(request, "kill_session", session, reason, *now);
    let killed = session
        .parse()
        .and_then(|session| service.kill_session(session, reason, *now))
        .map_err(|e| refused(&audit, &e))?;
    audit.record(&format!(
        "begun: client {:?}, {} transactions, their locks kept for at most {:?}",
        killed.client, killed.txns, killed.kept
    ));
    Ok(respond(killed, audit))
}

/// Kills a transaction, and responds when that has begun and when it is done.
pub(super) fn kill_txn(
    service: &LockService,
    request: &Request<KillTxnRequest>,
) -> Result<Response<TxnResponses>, Status> {
    let KillTxnRequest { txn, reason, now } = request.get_ref();
    let audit = Audit::of(request, "kill_txn", txn, reason, *now);
    let killed = convert::txn_from_proto(txn)
        .and_then(|txn| service.kill_txn(txn, reason, *now))
        .map_err(|e| refused(&audit, &e))?;
    Ok(respond_for_txns(vec![killed], &[], audit))
}

/// Kills the holders of a key, and responds when that has begun, and when it is done for each.
pub(super) async fn force_release(
    service: &LockService,
    request: &Request<ForceReleaseRequest>,
) -> Result<Response<TxnResponses>, Status> {
    let ForceReleaseRequest { group, table, key, reason, now } = request.get_ref();
    let subject = Key::new(key).map_or_else(
        |_| format!("{group}/{table}"),
        |key| format!("{group}/{table}, the key {key}"),
    );
    let audit = Audit::of(request, "force_release", &subject, reason, *now);
    let forced = async {
        let (table, key) = (convert::table_from_proto(group, table)?, Key::new(key)?);
        service.force_release(&table, &key, reason, *now).await
    };
    let ForcedRelease { killed, not_killed } = forced.await.map_err(|e| refused(&audit, &e))?;
    if killed.is_empty() {
        audit.record("nothing was held by a transaction that can be ended");
    }
    Ok(respond_for_txns(killed, &not_killed, audit))
}

/// Writes a refusal down. Returns the response.
fn refused(audit: &Audit, error: &Error) -> Status {
    audit.record(&format!("refused: {error}"));
    status(error)
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

fn respond_for_txns(
    kills: Vec<TxnKillUnderWay>,
    not_killed: &[TxnId],
    audit: Audit,
) -> Response<TxnResponses> {
    let message = |progress| KillTxnProgress { progress: Some(progress) };
    // There is room for all responses, however slowly they are read.
    let (out, responses) = mpsc::channel(1 + 2 * kills.len());
    let begun = TxnProgress::Begun(KillTxnsBegun {
        txns: kills.len() as u64,
        not_killed: not_killed.iter().map(ToString::to_string).collect(),
    });
    let each = kills.iter().map(|kill| TxnProgress::Txn(begun_to_proto(kill)));
    for first in std::iter::once(begun).chain(each) {
        // The caller may have gone.
        let _ = out.try_send(Ok(message(first)));
    }
    let audit = Arc::new(audit);
    for kill in kills {
        let TxnKillUnderWay { txn, client, kept, .. } = &kill;
        let kept = kept.map_or_else(
            || "until their owner ends it".to_owned(),
            |kept| format!("for at most {kept:?}"),
        );
        audit.record(&format!("begun: {txn} of client {client:?}, its locks kept {kept}"));
        let (out, audit, txn) = (out.clone(), Arc::clone(&audit), *txn);
        tokio::spawn(async move {
            let last = match kill.done().await {
                Ok(killed) => {
                    let committing = match killed.committing.is_empty() {
                        true => "",
                        false => "; it is committing and was left alone",
                    };
                    audit.record(&format!("done: {}{committing} ({txn})", killed.end.name()));
                    Ok(message(TxnProgress::Done(convert::txn_killed_to_proto(txn, &killed))))
                }
                Err(e) => {
                    audit.record(&format!("not known: {e} ({txn})"));
                    Err(status(&e))
                }
            };
            let _ = out.try_send(last);
        });
    }
    Response::new(ReceiverStream::new(responses))
}

fn begun_to_proto(kill: &TxnKillUnderWay) -> TxnKillBegun {
    TxnKillBegun {
        txn: kill.txn.to_string(),
        label: kill.label.clone(),
        session: kill.session.map(|session| session.to_string()).unwrap_or_default(),
        client: kill.client.clone(),
        kept_ms: kill.kept.map(convert::millis_up),
    }
}
