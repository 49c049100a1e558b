//! The messages of a waiter: the holder that it waits for, as reported by the server.

use std::convert::Infallible;
use std::time::Duration;

use lockservice_core::service::WaitsFor;
use lockservice_core::{LockItem, TableRef};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::exit::say_event;
use super::list::{blocker, hex_if_needed};

/// The time for which a wait prints nothing.
const SILENT: Duration = Duration::from_secs(1);

/// Prints the holder that is waited for in `table` on stderr: after a second, and after each new
/// notice of the server, which bounds their rate. Never returns.
///
/// # Cancel safety
/// The caller drops the future when the wait is over.
pub(crate) async fn say_whom(
    mut obstacle: watch::Receiver<Option<WaitsFor>>,
    table: &TableRef,
    json: bool,
) -> Infallible {
    tokio::time::sleep(SILENT).await;
    loop {
        let waits_for = obstacle.borrow_and_update().clone();
        if let Some((sentence, object)) =
            waits_for.as_ref().and_then(|waits_for| described(waits_for, table))
        {
            say_event("waiting for ", &sentence, json.then_some(object));
        }
        if obstacle.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The holder that is waited for, as a sentence and as an object. `None` if this version does not
/// know the kind of holder.
fn described(waits_for: &WaitsFor, table: &TableRef) -> Option<(String, Value)> {
    let mut object = json!({
        "event": "waiting_for",
        "group": table.group.as_str(),
        "table": table.name.as_str(),
    });
    let fields = object.as_object_mut()?;
    let sentence = match waits_for {
        WaitsFor::Txn(holder) => {
            fields.insert("key".into(), holder.item.to_string().into());
            if let LockItem::Row(key) = &holder.item {
                fields.extend(hex_if_needed("key_hex", key));
            }
            fields.insert("holder".into(), blocker(holder).into());
            let doing = if holder.granted { "held by" } else { "wanted earlier by" };
            format!("{} of {table}, {doing} {}", holder.item, holder.who())
        }
        WaitsFor::Table { last_owner: Some((_, node)) } => {
            fields.insert("last_owner".into(), node.as_str().into());
            format!(
                "table {table}: node {node} had it last, and may still be at work until its lease \
                    has run out"
            )
        }
        WaitsFor::Table { last_owner: None } => {
            format!("table {table}: no node can be given it yet")
        }
        WaitsFor::Token => {
            fields.insert("token".into(), true.into());
            format!("a fencing token of {table}: the store gives no more now")
        }
        _ => return None,
    };
    Some((sentence, object))
}
