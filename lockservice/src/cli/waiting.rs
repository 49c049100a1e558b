//! What a waiter says meanwhile: whom it waits for.

use std::convert::Infallible;
use std::time::Duration;

use lockservice_core::TableRef;
use lockservice_core::service::WaitStatus;
use serde_json::json;

use super::exit::say_event;
use super::list::hex_if_needed;
use crate::client::{AdminClient, Client};

/// How long a wait is silent, and the longest pause between two looks. The pause doubles, so that
/// many waiters do not keep the server busy with lists.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Most holders that are named.
const NAMED_MAX: usize = 3;

/// Says on stderr whom the waiting client of this name waits for in `table`: after a second, and
/// again when that has changed. Never returns.
///
/// # Cancel safety
/// To be dropped when the wait is over.
pub(crate) async fn say_whom(client: &Client, name: &str, table: &TableRef, json: bool) -> Infallible {
    let (mut pause, mut said) = (PAUSE.0, Vec::new());
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        // Best effort: it says nothing if it cannot find out.
        let Some(waits) = waits_of(client, name, table).await else { continue };
        let holders = holders(&waits);
        if !holders.is_empty() && holders != said {
            say(&waits, &holders, json);
            said = holders;
        }
    }
}

/// The waits of the client of this name: from the server at hand, or else from the table's owner.
async fn waits_of(client: &Client, name: &str, table: &TableRef) -> Option<Vec<WaitStatus>> {
    let here = own(&client.admin(), name, table).await?;
    if !here.is_empty() {
        return Some(here);
    }
    let owner = client.allocator().latest(table).await.ok()??;
    own(&client.admin_at(&owner.address).ok()?, name, table).await
}

async fn own(admin: &AdminClient, name: &str, table: &TableRef) -> Option<Vec<WaitStatus>> {
    let waits = admin.waits(Some(table)).await.ok()?;
    Some(waits.into_iter().filter(|wait| wait.waiter_client == name).collect())
}

/// Who is in the way: transaction and client, each once, in the server's order.
fn holders(waits: &[WaitStatus]) -> Vec<(String, String)> {
    let mut holders = Vec::new();
    for wait in waits {
        let holder = (wait.info.holder.to_string(), wait.holder_client.clone());
        if !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    holders
}

fn say(waits: &[WaitStatus], holders: &[(String, String)], json: bool) {
    let Some(first) = waits.first() else { return };
    let (item, table) = (&first.info.item, &first.info.table);
    let mut names: Vec<String> = holders.iter().take(NAMED_MAX).map(|(txn, client)| name(txn, client)).collect();
    if holders.len() > NAMED_MAX {
        names.push(format!("{} more", holders.len() - NAMED_MAX));
    }
    let doing = if first.info.granted { "held by" } else { "wanted earlier by" };
    let sentence = format!("{item} of {table}, {doing} {}", names.join(" and "));
    let object = json.then(|| {
        let holders: Vec<_> =
            holders.iter().map(|(txn, client)| json!({ "transaction": txn, "client": client })).collect();
        let mut object = json!({
            "event": "waiting_for",
            "group": table.group.as_str(),
            "table": table.name.as_str(),
            "key": item.to_string(),
            "holders": holders,
        });
        if let (lockservice_core::LockItem::Row(key), Some(object)) = (item, object.as_object_mut()) {
            object.extend(hex_if_needed("key_hex", key));
        }
        object
    });
    say_event("waiting for ", &sentence, object);
}

fn name(txn: &str, client: &str) -> String {
    let client = if client.is_empty() { "a client without a name" } else { client };
    format!("{client} (transaction {txn})")
}
