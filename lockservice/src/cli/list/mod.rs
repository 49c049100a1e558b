//! `locks`, `waits`, `binds`, `sessions`, `txns`: the lists for an operator.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the commands |
//! | `nodes.rs` | the nodes at which a list is made |
//! | `tree.rs` | `waits --tree`: who blocks whom |
//! | `show.rs` | rows for people; items, modes, parties and errors as fields of an object |

mod nodes;
pub(super) mod show;
mod tree;

use lockservice_core::allocator::BindState;
use serde_json::{Map, Value, json};

pub(super) use self::show::{blocker, hex_if_needed, particulars};
use self::show::{item, key, millis, mode, party};
use super::args::{ClientArgs, ClusterArgs, LocksArgs, WaitsArgs};
use super::exit::{self, Failure};
use super::output::Output;
use crate::client::ClusterList;

/// Every lock that is held; of one key also those who wait for it.
pub(crate) async fn locks(args: &LocksArgs, json: bool) -> Result<(), Failure> {
    let (table, key) = (args.list.table(), args.key()?);
    let row = table.clone().zip(key);
    let listed = nodes::ask(&args.list.cluster, |node| {
        let (table, row) = (table.clone(), row.clone());
        async move {
            match row {
                Some((table, key)) => node.row(&table, &key).await,
                None => node.locks(table.as_ref()).await,
            }
        }
    })
    .await?;
    if let Some((table, key)) = row
        && listed.lines.is_empty()
    {
        nodes::finish(json, &listed.missing)?;
        exit::say_note(json, &format!("nothing holds or waits for {key} of {table}"));
        return Ok(());
    }
    let columns = [
        "group",
        "table",
        "key",
        "mode",
        "txn",
        "client",
        "address",
        "session",
        "held_ms",
        "left_ms",
        "waiting_ms",
        "waiters",
        "state",
        "still_running",
    ];
    print("locks", json, &columns, listed, |lock| {
        let mut row = item(&lock.info.table, &lock.info.item);
        row.insert("mode".into(), mode(lock.info.mode));
        row.insert("txn".into(), lock.info.txn.to_string().into());
        row.insert("token".into(), lock.info.token.get().into());
        row.insert("waiters".into(), lock.info.waiters.into());
        // A call that waits for more items has taken one that is pending. It was not granted yet,
        // but it excludes others.
        let state = match lock.waiting {
            Some(_) => "waits",
            None if lock.info.pending => "taken by a waiter",
            None => "holds",
        };
        row.insert("state".into(), state.into());
        if let Some(waiting) = lock.waiting {
            row.insert("waiting_ms".into(), millis(waiting).into());
        }
        row.extend(party("", &lock.party));
        row
    })
}

/// The waits: as lines, or as the tree of who blocks whom.
pub(crate) async fn waits(args: &WaitsArgs, json: bool) -> Result<(), Failure> {
    let table = args.list.table();
    let listed = nodes::ask(&args.list.cluster, |node| {
        let table = table.clone();
        async move { node.waits(table.as_ref()).await }
    })
    .await?;
    if args.tree {
        return tree::print(json, listed);
    }
    let columns = [
        "group",
        "table",
        "key",
        "mode",
        "waiting_ms",
        "waiter",
        "waiter_client",
        "holder",
        "holder_client",
        "holder_session",
        "holder_held_ms",
        "holder_left_ms",
        "state",
    ];
    print("waits", json, &columns, listed, |wait| {
        let mut row = item(&wait.info.table, &wait.info.item);
        row.insert("mode".into(), mode(wait.info.mode));
        row.insert("waiter".into(), wait.info.waiter.to_string().into());
        row.extend(party("waiter_", &wait.waiter));
        row.insert("holder".into(), wait.info.holder.to_string().into());
        row.extend(party("holder_", &wait.holder));
        row.insert("held".into(), Value::Object(key(&wait.info.held_item)));
        row.insert("state".into(), if wait.info.granted { "holds" } else { "waits too" }.into());
        row.insert("waiting_ms".into(), millis(wait.waiting).into());
        row
    })
}

/// Prints the lines of a list, which are `what`, each with its node, and says if the list is
/// incomplete.
fn print<T>(
    what: &str,
    json: bool,
    columns: &[&str],
    listed: ClusterList<T>,
    object: impl Fn(&T) -> Map<String, Value>,
) -> Result<(), Failure> {
    say_if_cut(json, listed.is_cut, listed.lines.len(), what);
    let rows = listed.lines.iter().map(|(node, line)| {
        let mut row = object(line);
        row.insert("node".into(), node.as_str().into());
        row
    });
    let mut columns = columns.to_vec();
    if listed.nodes > 1 {
        columns.push("node");
    }
    show::rows(json, &columns, rows.collect())?;
    nodes::finish(json, &listed.missing)
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

/// The sessions, in the order in which they were opened at each node.
pub(crate) async fn sessions(args: &ClusterArgs, json: bool) -> Result<(), Failure> {
    let listed = nodes::ask(args, |node| async move { node.sessions().await }).await?;
    let columns = [
        "session",
        "client",
        "identity",
        "address",
        "ttl_ms",
        "left_ms",
        "txns",
        "waiting",
        "state",
        "still_running",
    ];
    print("sessions", json, &columns, listed, |session| {
        fields(json!({
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
        }))
    })
}

/// The transactions, in the order in which they were begun at each node.
pub(crate) async fn txns(args: &ClusterArgs, json: bool) -> Result<(), Failure> {
    let mut listed = nodes::ask(args, |node| async move { node.txns().await }).await?;
    listed.lines.sort_by(|(a, x), (b, y)| (a, x.txn).cmp(&(b, y.txn)));
    let columns = ["txn", "label", "session", "client", "locks", "state", "waiting_ms"];
    print("transactions", json, &columns, listed, |status| {
        fields(json!({
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
        }))
    })
}

fn fields(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Reports that a list is incomplete, on stderr, so that a reader of the lines is not disturbed.
pub(super) fn say_if_cut(json: bool, cut: bool, shown: usize, what: &str) {
    if cut {
        let narrow = match what {
            "locks" | "waits" | "hot keys" => "name a table to see only its own, or ",
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
