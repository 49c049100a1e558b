//! `locks`, `waits`, `binds`, `sessions`, `txns`: the lists for an operator.

use std::ops::Bound;
use std::time::Duration;

use lockservice_core::allocator::BindState;
use lockservice_core::{Blocker, DeadlockEdge, Error, Key, LockItem, LockMode, TableRef};
use serde_json::{Map, Value, json};

use super::args::{ClientArgs, ListArgs};
use super::exit::{self, Failure};
use super::output::Output;

/// Every lock that is held at the server.
pub(crate) async fn locks(args: &ListArgs, json: bool) -> Result<(), Failure> {
    let client = args.client.connect().await?;
    let admin = client.admin();
    let locks = admin.locks(args.table().as_ref()).await?;
    let (node, _) = admin.node().await?;
    say_if_cut(json, locks.is_cut(), locks.len(), "locks");
    let rows: Vec<Value> = locks
        .iter()
        .map(|lock| {
            let mut row = item(&lock.info.table, &lock.info.item);
            row.insert("mode".into(), mode(lock.info.mode));
            row.insert("txn".into(), lock.info.txn.to_string().into());
            row.insert("label".into(), lock.label.as_str().into());
            row.insert("client".into(), lock.client.as_str().into());
            row.insert("token".into(), lock.info.token.get().into());
            row.insert("waiters".into(), lock.info.waiters.into());
            // A call that waits for more items has taken this one. It was not granted yet, but it
            // excludes others.
            row.insert(
                "state".into(),
                if lock.info.pending { "taken by a waiter" } else { "holds" }.into(),
            );
            row.insert("node".into(), node.as_str().into());
            // The client has gone: the lock stays until the session has lapsed.
            if !lock.still_running.is_empty() {
                row.insert("still_running".into(), lock.still_running.as_str().into());
            }
            Value::Object(row)
        })
        .collect();
    let mut columns =
        vec!["group", "table", "key", "mode", "txn", "client", "token", "waiters", "state"];
    if locks.iter().any(|lock| !lock.still_running.is_empty()) {
        columns.push("still_running");
    }
    Output::new(json).rows(&columns, &rows)
}

/// The waits at the server.
pub(crate) async fn waits(args: &ListArgs, json: bool) -> Result<(), Failure> {
    let client = args.client.connect().await?;
    let admin = client.admin();
    let waits = admin.waits(args.table().as_ref()).await?;
    let (node, _) = admin.node().await?;
    say_if_cut(json, waits.is_cut(), waits.len(), "waits");
    let rows: Vec<Value> = waits
        .iter()
        .map(|wait| {
            let mut row = item(&wait.info.table, &wait.info.item);
            row.insert("mode".into(), mode(wait.info.mode));
            row.insert("waiter".into(), wait.info.waiter.to_string().into());
            row.insert("waiter_label".into(), wait.waiter_label.as_str().into());
            row.insert("waiter_client".into(), wait.waiter_client.as_str().into());
            row.insert("holder".into(), wait.info.holder.to_string().into());
            row.insert("holder_label".into(), wait.holder_label.as_str().into());
            row.insert("holder_client".into(), wait.holder_client.as_str().into());
            row.insert(
                "state".into(),
                if wait.info.granted { "holds" } else { "waits too" }.into(),
            );
            row.insert("waiting_ms".into(), millis(wait.waiting).into());
            row.insert("node".into(), node.as_str().into());
            Value::Object(row)
        })
        .collect();
    let columns = [
        "group",
        "table",
        "key",
        "mode",
        "waiter",
        "waiter_client",
        "holder",
        "holder_client",
        "state",
        "waiting_ms",
    ];
    Output::new(json).rows(&columns, &rows)
}

/// The node of every bound table.
pub(crate) async fn binds(args: &ClientArgs, json: bool) -> Result<(), Failure> {
    let client = args.connect().await?;
    let binds = client.admin().binds().await?;
    say_if_cut(json, binds.is_cut(), binds.len(), "binds");
    let rows: Vec<Value> = binds
        .iter()
        .map(|status| {
            let bind = &status.bind;
            let wait = match status.state {
                BindState::Bound => Value::Null,
                BindState::Invalid { reassigned_in } => millis(reassigned_in).into(),
            };
            json!({
                "group": bind.table.group.as_str(),
                "table": bind.table.name.as_str(),
                "partition": bind.partition,
                "owner": bind.owner.get(),
                "version": bind.version.get(),
                "state": status.state.name(),
                "node": status.node.as_str(),
                "address": status.address,
                "reassigned_in_ms": wait,
            })
        })
        .collect();
    Output::new(json).rows(
        &["group", "table", "partition", "owner", "version", "state", "node", "address"],
        &rows,
    )
}

/// The sessions of the server.
pub(crate) async fn sessions(args: &ClientArgs, json: bool) -> Result<(), Failure> {
    let client = args.connect().await?;
    let admin = client.admin();
    let sessions = admin.sessions().await?;
    let (node, _) = admin.node().await?;
    say_if_cut(json, sessions.is_cut(), sessions.len(), "sessions");
    let rows: Vec<Value> = sessions
        .iter()
        .map(|session| {
            json!({
                "session": session.handle.to_string(),
                "client": session.client,
                "identity": session.opened_by.identity,
                "address": session.opened_by.address,
                "ttl_ms": millis(session.ttl),
                "left_ms": millis(session.left),
                "txns": session.txns,
                "waiting": session.waiting,
                "state": if session.ending.is_empty() { "open" } else { "killed" },
                "ending": session.ending,
                "still_running": session.still_running,
                "node": node.as_str(),
            })
        })
        .collect();
    let mut columns = vec![
        "session", "client", "identity", "address", "ttl_ms", "left_ms", "txns", "waiting", "state",
    ];
    if sessions.iter().any(|session| !session.still_running.is_empty()) {
        columns.push("still_running");
    }
    Output::new(json).rows(&columns, &rows)
}

/// The transactions of the server, in the order in which they were begun.
pub(crate) async fn txns(args: &ClientArgs, json: bool) -> Result<(), Failure> {
    let client = args.connect().await?;
    let admin = client.admin();
    let txns = admin.txns().await?;
    let (node, _) = admin.node().await?;
    say_if_cut(json, txns.is_cut(), txns.len(), "transactions");
    let mut in_order: Vec<_> = txns.iter().collect();
    in_order.sort_unstable_by_key(|status| status.txn);
    let rows: Vec<Value> = in_order
        .into_iter()
        .map(|status| {
            json!({
                "txn": status.txn.to_string(),
                "label": status.label,
                "session": status.session.map(|session| session.to_string()),
                "client": status.client,
                "locks": status.locks,
                "state": match (status.ending.is_empty(), status.waits) {
                    (false, _) => "killed",
                    (true, true) => "waits",
                    (true, false) => "runs",
                },
                "waiting_ms": status.waiting.map(millis),
                "ending": status.ending,
                "node": node.as_str(),
            })
        })
        .collect();
    let columns = ["txn", "label", "session", "client", "locks", "state", "waiting_ms"];
    Output::new(json).rows(&columns, &rows)
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reports that a list is incomplete, on stderr, so that a reader of the lines is not disturbed.
fn say_if_cut(json: bool, cut: bool, shown: usize, what: &str) {
    if cut {
        let narrow = match what {
            "locks" | "waits" => "name a table to see only its own, or ",
            _ => "",
        };
        exit::say_warning(
            json,
            "list_cut",
            &format!(
                "there are more {what} than the {shown} shown: {narrow}raise \
                    server.list_lines_max in the server's settings"
            ),
        );
    }
}

/// The details of an error: the members of a deadlock, or the conflicting transaction.
pub(super) fn particulars(error: &Error) -> Map<String, Value> {
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
pub(super) fn blocker(blocker: &Blocker) -> Map<String, Value> {
    let mut row = key(&blocker.item);
    row.insert("mode".into(), mode(blocker.mode));
    row.insert("txn".into(), blocker.txn.to_string().into());
    row.insert("label".into(), blocker.label.as_str().into());
    row.insert("client".into(), blocker.client.as_str().into());
    row.insert("state".into(), if blocker.granted { "holds" } else { "waits too" }.into());
    row
}

fn mode(mode: LockMode) -> Value {
    match mode {
        LockMode::Exclusive => "exclusive",
        LockMode::Update => "update",
        LockMode::Shared => "shared",
    }
    .into()
}

/// The table and the item.
fn item(table: &TableRef, item: &LockItem) -> Map<String, Value> {
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
pub(crate) fn hex_if_needed(name: &str, key: &Key) -> Option<(String, Value)> {
    if key.to_string().as_bytes() == key.as_bytes() {
        return None;
    }
    let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Some((name.to_owned(), hex.into()))
}

#[cfg(test)]
mod tests {
    use lockservice_core::{Detail, ErrorKind, ServiceId, TxnId, TxnNumber};

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
