//! `table`: the actions of an operator on a lock table.

use serde_json::json;

use super::args::{DropArgs, TableCommand};
use super::exit::Failure;
use super::output::Output;

/// Runs `command`.
pub(crate) async fn run(command: &TableCommand, json: bool) -> Result<(), Failure> {
    match command {
        TableCommand::Drop(args) => drop_table(args, json).await,
    }
}

async fn drop_table(args: &DropArgs, json: bool) -> Result<(), Failure> {
    let client = args.client.connect().await?;
    let table = args.table();
    client.admin().drop_table(&table).await?;
    let output = Output::new(json);
    if json {
        let (group, name) = (table.group.as_str(), table.name.as_str());
        return output
            .line(&json!({ "group": group, "table": name, "state": "forgotten" }).to_string());
    }
    output.line(&format!("forgotten: {table}"))
}
