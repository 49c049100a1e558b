//! `hot`: the rows and ranges that calls wait for most.

use std::time::Duration;

use lockservice_core::service::{HotCounts, HotWindow};
use serde_json::{Map, Value, json};

use super::args::HotArgs;
use super::exit::{self, Failure};
use super::list::say_if_cut;
use super::list::show::{item, millis};
use super::output::Output;

/// Lists the hottest keys of the server.
pub(crate) async fn hot(args: &HotArgs, json: bool) -> Result<(), Failure> {
    let client = args.client.connect().await?;
    let (admin, window) = (client.admin(), HotWindow::from(args.window));
    let keys = admin.hot(args.only.table().as_ref(), window, Some(args.limit)).await?;
    let (node, _) = admin.node().await?;
    say_if_cut(json, keys.is_cut(), keys.len(), "hot keys");
    let is_inexact = keys.iter().any(|key| !key.counts(window).missed.is_zero());
    if is_inexact {
        exit::say_note(
            json,
            "more keys were waited for than the server counts: WAITED MS may lack up to MISSED MS",
        );
    }
    let rows: Vec<Value> = keys
        .iter()
        .map(|key| {
            let mut row = item(&key.table, &key.item);
            row.extend(counts(key.counts(window)));
            row.insert("last_ms".into(), millis(key.last).into());
            row.insert("waiting".into(), key.waiting.into());
            row.insert("minute".into(), counts(&key.minute).into());
            row.insert("ten_minutes".into(), counts(&key.ten_minutes).into());
            row.insert("node".into(), node.as_str().into());
            Value::Object(row)
        })
        .collect();
    let mut columns = vec!["group", "table", "key", "waits", "waited_ms", "longest_ms"];
    if is_inexact {
        columns.push("missed_ms");
    }
    columns.extend(["last_ms", "waiting"]);
    Output::new(json).rows(&columns, &rows)
}

/// The counts of a window; times in milliseconds, to the microsecond.
fn counts(counts: &HotCounts) -> Map<String, Value> {
    let exact = |time: Duration| json!(time.as_micros() as f64 / 1e3);
    let fields = [
        ("waits", counts.waits.into()),
        ("waited_ms", exact(counts.waited)),
        ("longest_ms", exact(counts.longest)),
        ("missed_ms", exact(counts.missed)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
