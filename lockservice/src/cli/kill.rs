//! `session kill`: an operator ends the work of others.

use lockservice_core::service::{KillEnd, Killed};
use lockservice_core::{ErrorKind, SessionHandle};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::args::{KillArgs, SessionCommand};
use super::exit::{self, Failure};
use super::output::Output;
use crate::client::Kill;

/// Runs `command`.
pub(crate) async fn session(command: &SessionCommand, json: bool) -> Result<(), Failure> {
    let SessionCommand::Kill { session, how } = command;
    let client = how.client.connect().await?;
    let kill = client.admin().kill_session(*session, &how.reason, how.now).await?;
    // Before the first line, whose reader may be quick.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(|error| {
        Failure::new(exit::OS, "os", format!("the kill has begun; cannot take signals: {error}"))
    })?;
    let output = Output::new(json);
    begun(&output, *session, &kill, how, json)?;
    let done = tokio::select! {
        done = kill.done() => done,
        _ = interrupts.recv() => {
            exit::say_note(
                json,
                "no longer waiting: the kill stands, and the server's log will say what came of it",
            );
            return Err(Failure::silent(exit::INTERRUPTED));
        }
    };
    let killed = done.map_err(|error| match error.kind() {
        ErrorKind::Unavailable => Failure::new(
            exit::UNAVAILABLE,
            error.kind().name(),
            format!("the kill had begun, and what came of it is not known: {error}"),
        ),
        _ => error.into(),
    })?;
    finished(&output, *session, &killed, json)
}

/// Prints that the kill has begun, and how long it waits.
fn begun(
    output: &Output,
    session: SessionHandle,
    kill: &Kill,
    how: &KillArgs,
    json: bool,
) -> Result<(), Failure> {
    if how.now {
        exit::say_warning(
            json,
            "released_at_once",
            "the locks were not kept until the client has stopped: it may still be working, at the \
             same time as the next holder, and only storage that checks fencing tokens stops it",
        );
    }
    if json {
        let kept = u64::try_from(kill.kept.as_millis()).unwrap_or(u64::MAX);
        return output.line(
            &json!({
                "session": session.to_string(),
                "state": "killed",
                "client": kill.client,
                "txns": kill.txns,
                "kept_ms": kept,
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
    let end = match killed.end {
        KillEnd::Confirmed => "the client confirmed that its work has stopped",
        KillEnd::Lapsed => "the client said nothing, and its time has run out",
        KillEnd::Forced => "its client was not waited for",
        KillEnd::Sealed => "the server stopped serving",
        _ => killed.end.name(),
    };
    output.line(&format!("released: {session}; {end}"))?;
    for txn in &killed.committing {
        output.line(&format!(
            "left alone: {txn} is committing; its locks are released when that has ended"
        ))?;
    }
    Ok(())
}
