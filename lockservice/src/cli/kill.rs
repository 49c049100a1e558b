//! `session kill`, `txn kill`, `lock force-release`: an operator ends the work of others.

use lockservice_core::service::{KillEnd, Killed};
use lockservice_core::{Error, ErrorKind, ServiceId, SessionHandle, TxnId};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::{ForceReleaseArgs, KillArgs, SessionCommand, TxnCommand};
use super::exit::{self, Failure};
use super::list::show;
use super::output::Output;
use crate::client::{AdminClient, Kill, TxnKill, TxnKills};

/// Runs `command`.
pub(crate) async fn session(command: &SessionCommand, json: bool) -> Result<(), Failure> {
    let SessionCommand::Kill { session, how } = command;
    let node = node_of(how, session.service).await?;
    let kill = node.kill_session(*session, &how.reason, how.now).await?;
    // Before the first line, whose reader may be quick.
    let interrupts = interrupts()?;
    let output = Output::new(json);
    warn_if_now(how, json);
    begun(&output, *session, &kill, json)?;
    let killed = unless_interrupted(interrupts, kill.done(), json).await?;
    finished(&output, *session, &killed, json)
}

/// Runs `command`.
pub(crate) async fn txn(command: &TxnCommand, json: bool) -> Result<(), Failure> {
    let TxnCommand::Kill { txn, how } = command;
    let node = node_of(how, txn.origin).await?;
    let kills = node.kill_txn(*txn, &how.reason, how.now).await;
    let kills = kills.map_err(|error| {
        // The id is wrong, or out of date: it does not help to try again.
        let status = match error.kind() {
            ErrorKind::TxnNotFound => exit::USAGE,
            kind => exit::status_of(kind),
        };
        Failure { status, ..Failure::from(error) }
    })?;
    follow(kills, how, json).await
}

/// The node that runs as this incarnation. If none does, the server that was named: it says that
/// there is no such session or transaction.
async fn node_of(how: &KillArgs, service: ServiceId) -> Result<AdminClient, Failure> {
    let client = how.client.connect().await?;
    let home = client.admin();
    if home.node().await.is_ok_and(|(_, incarnation)| incarnation == service) {
        return Ok(home);
    }
    Ok(client.cluster_admin().await?.incarnation(service)?.unwrap_or(home))
}

/// Ends the transactions that hold a key.
pub(crate) async fn force_release(args: &ForceReleaseArgs, json: bool) -> Result<(), Failure> {
    let (table, key) = args.target()?;
    let client = args.how.client.connect().await?;
    let (reason, now) = (&args.how.reason, args.how.now);
    let kills = client.admin().force_release(&table, &key, reason, now).await?;
    if kills.begun.is_empty() && kills.not_killed.is_empty() {
        let output = Output::new(json);
        if json {
            let (group, name) = (table.group.as_str(), table.name.as_str());
            let mut line = json!({ "state": "free", "group": group, "table": name });
            line["key"] = key.to_string().into();
            show::hex_if_needed("key_hex", &key).into_iter().for_each(|(name, hex)| {
                line[name] = hex;
            });
            return output.line(&line.to_string());
        }
        return output.line(&format!("nothing holds {key} of {table}"));
    }
    if !kills.not_killed.is_empty() {
        let those: Vec<String> = kills.not_killed.iter().map(ToString::to_string).collect();
        exit::say_warning(
            json,
            "not_killed",
            &format!(
                "not ended, for they are of an embedder and have no label, so that the server \
                    finds them by no name: {}; stop the embedder's work",
                those.join(", ")
            ),
        );
    }
    follow(kills, &args.how, json).await
}

/// Prints what has begun, and what comes of it.
async fn follow(mut kills: TxnKills, how: &KillArgs, json: bool) -> Result<(), Failure> {
    // Before the first line, whose reader may be quick.
    let interrupts = interrupts()?;
    let output = Output::new(json);
    if !kills.begun.is_empty() {
        warn_if_now(how, json);
    }
    for kill in &kills.begun {
        txn_begun(&output, kill, json)?;
    }
    let rest = async {
        while let Some((txn, killed)) = kills.next().await? {
            // The outer result is that of the server, the inner that of the output.
            if let Err(failure) = txn_finished(&output, txn, &killed, json) {
                return Ok(Err(failure));
            }
        }
        Ok(Ok(()))
    };
    unless_interrupted(interrupts, rest, json).await?
}

fn interrupts() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt()).map_err(|error| {
        Failure::new(exit::OS, "os", format!("the kill has begun; cannot take signals: {error}"))
    })
}

/// Waits for what comes of a kill, until the operator does not want to wait any longer.
async fn unless_interrupted<T>(
    mut interrupts: Signal,
    done: impl Future<Output = Result<T, Error>>,
    json: bool,
) -> Result<T, Failure> {
    let done = tokio::select! {
        done = done => done,
        _ = interrupts.recv() => {
            exit::say_note(
                json,
                "no longer waiting: the kill stands, and the server's log will say what came of it",
            );
            return Err(Failure::silent(exit::INTERRUPTED));
        }
    };
    done.map_err(|error| match error.kind() {
        ErrorKind::Unavailable => Failure::new(
            exit::UNAVAILABLE,
            error.kind().name(),
            format!("the kill had begun, and what came of it is not known: {error}"),
        ),
        _ => error.into(),
    })
}

/// Says what a kill that does not wait can break.
fn warn_if_now(how: &KillArgs, json: bool) {
    if how.now {
        exit::say_warning(
            json,
            "released_at_once",
            "the locks were not kept until the client has stopped: it may still be working, at the \
             same time as the next holder, and only storage that checks fencing tokens stops it",
        );
    }
}

/// Prints that the kill has begun, and how long it waits.
fn begun(output: &Output, session: SessionHandle, kill: &Kill, json: bool) -> Result<(), Failure> {
    if json {
        return output.line(
            &json!({
                "session": session.to_string(),
                "state": "killed",
                "client": kill.client,
                "txns": kill.txns,
                "kept_ms": show::millis(kill.kept),
            })
            .to_string(),
        );
    }
    let what = match kill.txns {
        1 => "1 transaction".to_owned(),
        count => format!("{count} transactions"),
    };
    let waits = match kill.kept.is_zero() {
        true => String::new(),
        false => {
            format!("; waiting up to {:.1} s for the client to stop", kill.kept.as_secs_f64())
        }
    };
    output.line(&format!("killed: {session} of {} with {what}{waits}", kill.client))
}

/// Prints that the kill of a transaction has begun, and how long it waits.
fn txn_begun(output: &Output, kill: &TxnKill, json: bool) -> Result<(), Failure> {
    let TxnKill { txn, label, session, client, kept } = kill;
    if json {
        return output.line(
            &json!({
                "txn": txn.to_string(),
                "state": "killed",
                "label": label,
                "session": session.map(|session| session.to_string()),
                "client": client,
                "kept_ms": kept.map(show::millis),
            })
            .to_string(),
        );
    }
    let whose = match session {
        Some(_) => client.clone(),
        None => format!("an embedder ({label})"),
    };
    let waits = match kept {
        Some(kept) if kept.is_zero() => String::new(),
        Some(kept) => {
            format!("; waiting up to {:.1} s for the client to stop", kept.as_secs_f64())
        }
        None => "; waiting for the embedder to end it".to_owned(),
    };
    output.line(&format!("killed: {txn} of {whose}{waits}"))
}

/// Prints what came of the kill.
fn finished(
    output: &Output,
    session: SessionHandle,
    killed: &Killed,
    json: bool,
) -> Result<(), Failure> {
    if json {
        let committing: Vec<Value> =
            killed.committing.iter().map(|txn| txn.to_string().into()).collect();
        return output.line(
            &json!({
                "session": session.to_string(),
                "state": "over",
                "end": killed.end.name(),
                "committing": committing,
            })
            .to_string(),
        );
    }
    output.line(&format!("released: {session}; {}", sentence(killed.end)))?;
    killed.committing.iter().try_for_each(|txn| left_alone(output, *txn))
}

/// Prints what came of the kill of a transaction.
fn txn_finished(output: &Output, txn: TxnId, killed: &Killed, json: bool) -> Result<(), Failure> {
    let is_committing = !killed.committing.is_empty();
    if json {
        return output.line(
            &json!({
                "txn": txn.to_string(),
                "state": if is_committing { "committing" } else { "over" },
                "end": killed.end.name(),
            })
            .to_string(),
        );
    }
    match is_committing {
        true => left_alone(output, txn),
        false => output.line(&format!("released: {txn}; {}", sentence(killed.end))),
    }
}

fn left_alone(output: &Output, txn: TxnId) -> Result<(), Failure> {
    output.line(&format!(
        "left alone: {txn} is committing; its locks are released when that has ended"
    ))
}

fn sentence(end: KillEnd) -> &'static str {
    match end {
        KillEnd::Confirmed => "the client confirmed that its work has stopped",
        KillEnd::Lapsed => "the client said nothing, and its time has run out",
        KillEnd::Forced => "its client was not waited for",
        KillEnd::Sealed => "the server stopped serving",
        _ => end.name(),
    }
}
