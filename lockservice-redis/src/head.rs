//! The responses of the scripts, read into the core's types.

use lockservice_core::store::{Head, Lineage, StoreState, absorb, decode};
use lockservice_core::{Epoch, Error, ErrorKind, RenewalNumber, Result, WriteNumber};
use redis::Value;

use crate::error::Errors;
use crate::topology::text;

/// The six fields of a head as they are stored, for comparison; empty where there is none.
pub(crate) type Fields = [Vec<u8>; 6];

/// The leadership as the store has it.
pub(crate) struct Found {
    /// The copy that responded.
    pub(crate) lineage: Lineage,
    /// The leadership; `None` if there is no record of one.
    pub(crate) head: Option<Head>,
    pub(crate) fields: Fields,
    /// The server's clock, in seconds since 1970.
    pub(crate) time_s: u64,
}

impl Found {
    /// Reads the response of the scripts `read` and `touch`.
    ///
    /// Fails with `StoreNewer` for a store of a later format, with `StoreCorrupt` for one that is
    /// none.
    pub(crate) fn parse(value: Value, errors: &Errors) -> Result<Self> {
        let strange = || errors.strange("another shape of head");
        let Value::Array(parts) = value else { return Err(strange()) };
        let [lineage, time, Value::Int(entries), Value::Array(found)] = parts.as_slice() else {
            return Err(strange());
        };
        let lineage = Lineage(text(lineage).ok_or_else(strange)?);
        let time_s: u64 = text(time).and_then(|time| time.parse().ok()).ok_or_else(strange)?;
        let fields: Vec<_> = found.iter().map(bytes).collect();
        let fields = Fields::try_from(fields).map_err(|_| strange())?;
        let head = if *entries == 0 { None } else { Some(head(&fields, errors)?) };
        Ok(Self { lineage, head, fields, time_s })
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes.clone(),
        _ => Vec::new(),
    }
}

fn head(fields: &Fields, errors: &Errors) -> Result<Head> {
    let [format, epoch, applied, counter, led, record] = fields;
    if format.is_empty() {
        return Err(errors.about(
            ErrorKind::StoreCorrupt,
            "the store's key holds something that is not a store of lockservice, or a damaged \
             one: choose another name \
             (`?name=`), or restore it from a backup",
        ));
    }
    absorb(&mut StoreState::default(), b"format", format)?;
    let number = |name: &str, bytes: &[u8]| {
        let number = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<u64>().ok());
        number.ok_or_else(|| errors.damaged(name))
    };
    let acquired: Head = decode("head/record", record)?;
    let epoch = Epoch::new(number("head/epoch", epoch)?);
    if acquired.epoch != epoch {
        return Err(errors.damaged("head/epoch"));
    }
    Ok(Head {
        applied: WriteNumber::new(number("head/applied", applied)?),
        counter: RenewalNumber::new(number("head/counter", counter)?),
        leader: if led.is_empty() { None } else { acquired.leader },
        ..acquired
    })
}

/// The decision of a script that writes.
pub(crate) enum Verdict {
    /// It was done.
    Done,
    /// Something else was stored than the caller had read: nothing was done.
    Race,
    /// Another epoch is current, or none.
    Fenced(Error),
}

/// Reads the response of the scripts that write: the copy, and the outcome.
pub(crate) fn verdict(value: Value, errors: &Errors) -> Result<(Lineage, Verdict)> {
    let strange = || errors.strange("another shape of verdict");
    let Value::Array(parts) = value else { return Err(strange()) };
    let [lineage, verdict, rest @ ..] = parts.as_slice() else { return Err(strange()) };
    let lineage = Lineage(text(lineage).ok_or_else(strange)?);
    let stored = || rest.first().and_then(text).unwrap_or_default();
    let verdict = match text(verdict).as_deref() {
        Some("done") => Verdict::Done,
        Some("race") => Verdict::Race,
        Some("fenced") => Verdict::Fenced(
            errors
                .about(
                    ErrorKind::Fenced,
                    "another leader has taken over the store, or this one \
                    resigned: stop leading",
                )
                .with("current", stored()),
        ),
        Some("number") => Verdict::Fenced(
            errors
                .about(
                    ErrorKind::Fenced,
                    "the write's number does not follow the last applied one: read that before \
                        the next write",
                )
                .with("applied", stored()),
        ),
        _ => return Err(strange()),
    };
    Ok((lineage, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "\u{1}{\"epoch\":7,\"applied\":0,\
        \"leader\":{\"node\":\"n\",\"nonce\":9,\"address\":\"a\"},\
        \"counter\":0,\"ttl_ms\":5000,\"lineage\":\"run/line\"}";

    fn response(time_s: u64, entries: i64, fields: [&str; 6]) -> Value {
        let bulk = |text: &str| {
            if text.is_empty() { Value::Nil } else { Value::BulkString(text.as_bytes().to_vec()) }
        };
        Value::Array(vec![
            bulk("run/line"),
            bulk(&time_s.to_string()),
            Value::Int(entries),
            Value::Array(fields.iter().map(|field| bulk(field)).collect()),
        ])
    }

    fn parse(time_s: u64, entries: i64, fields: [&str; 6]) -> Result<Found> {
        Found::parse(
            response(time_s, entries, fields),
            &Errors::new("redis://test".to_owned(), Vec::new()),
        )
    }

    #[test]
    fn a_head_is_read_whole_or_refused() {
        let head = |led| {
            parse(0, 6, ["1", "7", "3", "2", led, RECORD]).expect("a head").head.expect("a record")
        };
        let led = head("1");
        assert_eq!(
            (led.epoch.get(), led.applied.get(), led.counter.get(), led.ttl_ms),
            (7, 3, 2, 5000)
        );
        assert_eq!(led.leader.as_ref().map(|leader| leader.address.as_str()), Some("a"));
        assert_eq!(led.lineage.0, "run/line");
        assert_eq!(head(""), Head { leader: None, ..led });
        assert!(parse(0, 0, [""; 6]).expect("nothing").head.is_none());
        for (fields, kind) in [
            (["", "7", "3", "2", "1", RECORD], ErrorKind::StoreCorrupt),
            (["2", "", "", "", "", ""], ErrorKind::StoreNewer),
            (["1", "", "3", "2", "1", RECORD], ErrorKind::StoreCorrupt),
            (["1", "8", "3", "2", "1", RECORD], ErrorKind::StoreCorrupt),
            (["1", "7", "x", "2", "1", RECORD], ErrorKind::StoreCorrupt),
            (["1", "7", "3", "2", "1", "\u{1}{}"], ErrorKind::StoreCorrupt),
            (["1", "7", "3", "2", "1", "\u{2}{}"], ErrorKind::StoreNewer),
        ] {
            assert_eq!(parse(0, 9, fields).err().expect("damaged").kind(), kind, "{fields:?}");
        }
    }
}
