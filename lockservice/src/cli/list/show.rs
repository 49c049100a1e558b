//! Rows for people and for programs; items, modes, parties and errors as the fields of an object.

use std::ops::Bound;
use std::time::Duration;

use lockservice_core::service::TxnParty;
use lockservice_core::{Blocker, DeadlockEdge, Error, Key, LockItem, LockMode, TableRef};
use serde_json::{Map, Value};

use crate::cli::exit::Failure;
use crate::cli::output::Output;

/// What a column says if it says nothing, by the column: such columns are left out for people, so
/// that the others fit a terminal.
const USUAL: [(&str, &str); 2] = [("group", "default"), ("state", "holds")];

/// Prints rows: one object a line as JSON; for people the columns in which some row has something
/// unusual. A time in milliseconds, whose column ends with `_ms`, is shown to people in the unit
/// that fits.
pub(super) fn rows(
    json: bool,
    columns: &[&str],
    mut rows: Vec<Map<String, Value>>,
) -> Result<(), Failure> {
    if json {
        let rows: Vec<Value> = rows.into_iter().map(Value::Object).collect();
        return Output::new(true).rows(&[], &rows);
    }
    let is_shown = |column: &&str| {
        let is_usual = |value: &Value| {
            value.is_null()
                || value
                    .as_str()
                    .is_some_and(|text| text.is_empty() || USUAL.contains(&(*column, text)))
        };
        rows.is_empty()
            || rows.iter().any(|row| row.get(*column).is_some_and(|value| !is_usual(value)))
    };
    let columns: Vec<&str> = columns.iter().copied().filter(is_shown).collect();
    for row in &mut rows {
        for time in columns.iter().filter_map(|column| column.strip_suffix("_ms")) {
            if let Some(ms) = row.get(&format!("{time}_ms")).and_then(Value::as_u64) {
                row.insert(time.to_owned(), in_words(ms).into());
            }
        }
    }
    let columns: Vec<&str> =
        columns.into_iter().map(|column| column.strip_suffix("_ms").unwrap_or(column)).collect();
    let rows: Vec<Value> = rows.into_iter().map(Value::Object).collect();
    Output::new(false).rows(&columns, &rows)
}

/// A time in the unit that fits, with the next smaller one where that is of interest.
fn in_words(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// Whole milliseconds.
pub(in crate::cli) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What is known of a transaction, with names that begin with `prefix`.
pub(super) fn party(prefix: &str, party: &TxnParty) -> Map<String, Value> {
    let mut row = Map::new();
    let mut insert = |name: &str, value: Value| row.insert(format!("{prefix}{name}"), value);
    insert("label", party.label.as_str().into());
    insert("client", party.client.as_str().into());
    insert("session", party.session.map(|session| session.to_string()).into());
    insert("identity", party.opened_by.identity.as_str().into());
    insert("address", party.opened_by.address.as_str().into());
    insert("left_ms", party.left.map(millis).into());
    insert("held_ms", party.held.map(millis).into());
    // The client has gone: the locks stay until the session has lapsed.
    if !party.still_running.is_empty() {
        insert("still_running", party.still_running.as_str().into());
    }
    row
}

/// The details of an error: the members of a deadlock, or the conflicting transaction.
pub(in crate::cli) fn particulars(error: &Error) -> Map<String, Value> {
    let mut fields = Map::new();
    if let Some(cycle) = error.deadlock() {
        let edge = |edge: &DeadlockEdge| {
            let mut fields = key(&edge.item);
            fields.insert("waiter".into(), edge.waiter.to_string().into());
            fields.insert("label".into(), edge.label.as_str().into());
            fields.insert("client".into(), edge.client.as_str().into());
            fields.insert("victim".into(), edge.victim.into());
            fields.insert("group".into(), edge.table.group.as_str().into());
            fields.insert("table".into(), edge.table.name.as_str().into());
            fields.insert("mode".into(), mode(edge.mode));
            fields.insert("holder".into(), edge.holder.to_string().into());
            Value::Object(fields)
        };
        fields.insert("deadlock".into(), cycle.iter().map(edge).collect());
    }
    if let Some(who) = error.blocker() {
        fields.insert("blocker".into(), blocker(who).into());
    }
    fields
}

/// The conflicting transaction.
pub(in crate::cli) fn blocker(blocker: &Blocker) -> Map<String, Value> {
    let mut row = key(&blocker.item);
    row.insert("mode".into(), mode(blocker.mode));
    row.insert("txn".into(), blocker.txn.to_string().into());
    row.insert("label".into(), blocker.label.as_str().into());
    row.insert("client".into(), blocker.client.as_str().into());
    row.insert("state".into(), if blocker.granted { "holds" } else { "waits too" }.into());
    row
}

pub(super) fn mode(mode: LockMode) -> Value {
    match mode {
        LockMode::Exclusive => "exclusive",
        LockMode::Update => "update",
        LockMode::Shared => "shared",
    }
    .into()
}

/// The table and the item.
pub(in crate::cli) fn item(table: &TableRef, item: &LockItem) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("group".into(), table.group.as_str().into());
    row.insert("table".into(), table.name.as_str().into());
    row.extend(key(item));
    row
}

/// The item: `key` for people, as text where it is text; `key_hex`, or both ends of a range,
/// exactly.
pub(super) fn key(item: &LockItem) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("key".into(), item.to_string().into());
    match item {
        LockItem::Row(key) => {
            row.extend(hex_if_needed("key_hex", key));
        }
        LockItem::Range(range) => {
            row.insert("from".into(), bound(range.start()));
            row.insert("to".into(), bound(range.end()));
        }
    }
    row
}

/// An end of a range, `null` if it is open.
fn bound(bound: Bound<&Key>) -> Value {
    let (key, included) = match bound {
        Bound::Included(key) => (key, true),
        Bound::Excluded(key) => (key, false),
        Bound::Unbounded => return Value::Null,
    };
    let mut end = Map::new();
    end.insert("key".into(), key.to_string().into());
    end.extend(hex_if_needed("key_hex", key));
    end.insert("included".into(), included.into());
    Value::Object(end)
}

/// The key's bytes, unless it is shown as the text that it is.
pub(in crate::cli) fn hex_if_needed(name: &str, key: &Key) -> Option<(String, Value)> {
    if key.to_string().as_bytes() == key.as_bytes() {
        return None;
    }
    let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Some((name.to_owned(), hex.into()))
}

#[cfg(test)]
mod tests {
    use lockservice_core::{Detail, ErrorKind, ServiceId, TxnId, TxnNumber};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_shows_a_deadlock_as_data() {
        let txn = |number| TxnId::new(ServiceId::new(1), TxnNumber::new(number), false);
        let edge = DeadlockEdge {
            waiter: txn(1),
            table: TableRef::new("g", "t").unwrap(),
            item: LockItem::Row(Key::new("a").unwrap()),
            mode: LockMode::Shared,
            holder: txn(2),
            victim: true,
            label: "nightly".into(),
            client: "c".into(),
        };
        let fields = particulars(
            &Error::new(ErrorKind::Deadlock, "m").with_detail(Detail::Deadlock(vec![edge])),
        );
        let edge = &fields["deadlock"][0];
        assert_eq!(
            (&edge["waiter"], &edge["holder"]),
            (&json!(txn(1).to_string()), &json!(txn(2).to_string()))
        );
        assert_eq!((&edge["mode"], &edge["victim"]), (&json!("shared"), &json!(true)));
        assert_eq!((&edge["key"], &edge["label"]), (&json!("a"), &json!("nightly")));
    }

    #[test]
    fn a_time_is_shown_in_the_unit_that_fits() {
        for (ms, words) in [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (60_000, "1m00s"),
            (3_599_000, "59m59s"),
            (7_500_000, "2h05m"),
            (90_000_000, "1d01h"),
        ] {
            assert_eq!(in_words(ms), words);
        }
    }

    #[test]
    fn a_key_that_is_no_text_is_escaped_and_given_in_hex() {
        let table = TableRef::new("g", "t").unwrap();
        let text = item(&table, &LockItem::Row(Key::new("alice").unwrap()));
        assert_eq!((text.get("key"), text.get("key_hex")), (Some(&"alice".into()), None));
        let bytes = item(&table, &LockItem::Row(Key::new([0xff, 0x00]).unwrap()));
        assert_eq!(bytes.get("key_hex"), Some(&"ff00".into()));
    }
}
