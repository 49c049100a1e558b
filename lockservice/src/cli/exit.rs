//! The end of the command: exit statuses and errors on stderr.

use std::process::ExitCode;

use lockservice_core::{Error, ErrorKind};
use serde_json::{Map, Value, json};

use super::list;
use super::output::{printable, printable_json};
use super::sink;

/// The store that was checked has problems.
pub(crate) const PROBLEMS: u8 = 1;
/// Wrong usage (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// Data that cannot be read as what it should be (`EX_DATAERR`).
pub(crate) const DATA: u8 = 65;
/// No server responds (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// The lock was lost, or something is broken (`EX_SOFTWARE`).
pub(crate) const LOST: u8 = 70;
/// The operating system refused something (`EX_OSERR`).
pub(crate) const OS: u8 = 71;
/// A limit of the server was reached. A later try may not help; a smaller request or a higher limit
/// does (`EX_CANTCREAT`).
pub(crate) const LIMIT: u8 = 73;
/// A file or store cannot be read or written (`EX_IOERR`).
pub(crate) const IO: u8 = 74;
/// The request cannot succeed now, but perhaps later (`EX_TEMPFAIL`).
pub(crate) const NOT_NOW: u8 = 75;
/// Something is configured wrongly (`EX_CONFIG`).
pub(crate) const CONFIG: u8 = 78;
/// The command was found but could not be run, as shells have it.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command was not found, as shells have it.
pub(crate) const NOT_FOUND: u8 = 127;
/// Interrupted with Ctrl-C, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

/// The reason why the command ends early: a status, and one sentence with the remedy.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status.
    pub(crate) status: u8,
    /// A stable name of what happened, for programs.
    pub(crate) kind: &'static str,
    /// A sentence that says the problem and the remedy. Nothing is printed if it is empty.
    pub(crate) sentence: String,
    /// More fields of the JSON object: the facts of the sentence, for programs.
    pub(crate) fields: Map<String, Value>,
}

impl Failure {
    /// A failure with a sentence.
    pub(crate) fn new(status: u8, kind: &'static str, sentence: impl Into<String>) -> Self {
        Self { status, kind, sentence: sentence.into(), fields: Map::new() }
    }

    /// Wrong usage.
    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self::new(USAGE, "usage", sentence)
    }

    /// A failure that prints nothing: the reason was printed already, or there is no reader.
    pub(crate) fn silent(status: u8) -> Self {
        Self::new(status, "", "")
    }

    /// Prints the failure on stderr, as a sentence or as one JSON object, and returns the status.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        say_error_with(json, self.kind, &self.sentence, &self.fields);
        ExitCode::from(self.status)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut sentence = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !sentence.contains(&cause_text) {
                sentence = format!("{sentence}: {cause_text}");
            }
            source = cause.source();
        }
        let fields = list::particulars(&error);
        Self { fields, ..Self::new(status_of(error.kind()), error.kind().name(), sentence) }
    }
}

/// The exit status for an error of the library, while nothing is held.
pub(crate) fn status_of(kind: ErrorKind) -> u8 {
    match kind {
        // A lock that the outer command holds is never granted: the command line has to change.
        ErrorKind::InvalidArgument
        | ErrorKind::NotPermitted
        | ErrorKind::Unauthenticated
        | ErrorKind::HeldByAncestor
        | ErrorKind::SessionNotFound
        | ErrorKind::TableNotFound => USAGE,
        ErrorKind::Conflict
        | ErrorKind::Timeout
        | ErrorKind::Deadlock
        | ErrorKind::Reassigning
        | ErrorKind::BindChanged
        | ErrorKind::ClaimRefused
        | ErrorKind::SpansNodes
        | ErrorKind::TxnNotFound
        | ErrorKind::TableInUse
        | ErrorKind::StoreInUse => NOT_NOW,
        ErrorKind::ResourceExhausted => LIMIT,
        ErrorKind::Cancelled => INTERRUPTED,
        ErrorKind::Unavailable
        | ErrorKind::Restarting
        | ErrorKind::ShuttingDown
        | ErrorKind::SessionLost
        | ErrorKind::LeaseLost
        | ErrorKind::NotOwner
        | ErrorKind::NotLeader
        | ErrorKind::UnknownOutcome => UNAVAILABLE,
        ErrorKind::StoreCorrupt | ErrorKind::StoreNewer => DATA,
        ErrorKind::StoreUnusable => IO,
        ErrorKind::NameInUse => CONFIG,
        _ => LOST,
    }
}

/// Writes one error to stderr.
pub(crate) fn say_error(json: bool, kind: &str, sentence: &str) {
    say_error_with(json, kind, sentence, &Map::new());
}

fn say_error_with(json: bool, kind: &str, sentence: &str, fields: &Map<String, Value>) {
    if sentence.is_empty() {
        return;
    }
    let object = json.then(|| {
        let mut object = fields.clone();
        object.insert("error".into(), sentence.into());
        object.insert("kind".into(), kind.into());
        Value::Object(object)
    });
    say(object, "error", sentence);
}

/// Writes a warning to stderr: the result is right, but may mislead.
pub(crate) fn say_warning(json: bool, kind: &str, sentence: &str) {
    say(json.then(|| json!({ "warning": sentence, "kind": kind })), "warning", sentence);
}

/// Writes a note to stderr. Nothing is printed in JSON mode, where every line is a result or an
/// error.
pub(crate) fn say_note(json: bool, sentence: &str) {
    if !json {
        say(None, "lockservice", sentence);
    }
}

/// Writes the reason why a start waits to stderr, also in JSON mode.
pub(crate) fn say_waiting(json: bool, reason: &str) {
    say_event("waiting: ", reason, json.then(|| json!({ "event": "waiting", "reason": reason })));
}

/// Writes an event to stderr, also in JSON mode: as the object, if there is one.
pub(crate) fn say_event(what: &str, sentence: &str, object: Option<Value>) {
    say(object, "lockservice", &format!("{what}{sentence}"));
}

/// Writes one line, even if the sentence has several: a server may have written it.
fn say(object: Option<Value>, who: &str, sentence: &str) {
    let line = match object {
        Some(object) => printable_json(&object.to_string()),
        None => format!("{who}: {}", printable(&sentence.replace('\n', " "))),
    };
    sink::stderr().line(format!("{line}\n"));
}

#[cfg(test)]
mod tests {
    use lockservice_core::Advice;

    use super::*;

    #[test]
    fn a_lasting_failure_has_another_status_than_one_that_may_be_tried_again() {
        // A try after a deadlock may succeed: the other transaction has gone on by then.
        assert_eq!(status_of(ErrorKind::Deadlock), NOT_NOW);
        for kind in ErrorKind::ALL.iter().filter(|kind| kind.advice() == Advice::FixRequest) {
            assert_eq!(status_of(*kind), USAGE, "{kind:?}");
        }
    }

    #[test]
    fn a_limit_has_a_status_of_its_own_for_later_may_be_no_better() {
        assert_eq!(status_of(ErrorKind::ResourceExhausted), LIMIT);
        assert_eq!(status_of(ErrorKind::Timeout), NOT_NOW);
    }
}
