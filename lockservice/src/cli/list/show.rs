//! Items, modes and errors as the fields of an object.

use std::ops::Bound;

use lockservice_core::{Blocker, DeadlockEdge, Error, Key, LockItem, LockMode, TableRef};
use serde_json::{Map, Value};

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
pub(super) fn item(table: &TableRef, item: &LockItem) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("group".into(), table.group.as_str().into());
    row.insert("table".into(), table.name.as_str().into());
    row.extend(key(item));
    row
}

/// The item: `key` for people, as text where it is text; `key_hex`, or both ends of a range,
/// exactly.
fn key(item: &LockItem) -> Map<String, Value> {
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
    fn a_key_that_is_no_text_is_escaped_and_given_in_hex() {
        let table = TableRef::new("g", "t").unwrap();
        let text = item(&table, &LockItem::Row(Key::new("alice").unwrap()));
        assert_eq!((text.get("key"), text.get("key_hex")), (Some(&"alice".into()), None));
        let bytes = item(&table, &LockItem::Row(Key::new([0xff, 0x00]).unwrap()));
        assert_eq!(bytes.get("key_hex"), Some(&"ff00".into()));
    }
}
