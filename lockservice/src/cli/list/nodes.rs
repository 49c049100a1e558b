//! The nodes at which a list is made: all of the cluster, or the one that is named.

use lockservice_core::Error;
use serde_json::{Map, Value, json};

use crate::cli::args::ClusterArgs;
use crate::cli::exit::{self, Failure};
use crate::cli::output::Output;
use crate::client::{AdminClient, ClusterList, Listed, MissingNode};

/// The list that `list` makes of each node. Fails if no node made one.
pub(super) async fn ask<T, F>(
    args: &ClusterArgs,
    list: impl Fn(AdminClient) -> F,
) -> Result<ClusterList<T>, Failure>
where
    F: Future<Output = Result<Listed<T>, Error>>,
{
    let client = args.client.connect().await?;
    let mut cluster = client.cluster_admin().await?;
    if let Some(name) = &args.node {
        cluster = match cluster.only(name)? {
            Some(only) => only,
            None => {
                let names: Vec<&str> = cluster.names().map(|name| name.as_str()).collect();
                return Err(Failure::usage(format!(
                    "no node {name} has a lease: the nodes are {}",
                    names.join(", ")
                )));
            }
        };
    }
    let mut listed = cluster.list(list).await;
    let failed = listed.missing.iter().filter(|missing| missing.node.is_some()).count();
    if failed == listed.nodes {
        // There is nothing to show.
        return Err(listed.missing.swap_remove(0).error.into());
    }
    Ok(listed)
}

/// Fails if nodes are missing in a list that was printed. As JSON the last line of stdout names
/// them, so that a reader of the lines alone cannot take the list for complete.
pub(super) fn finish(json: bool, missing: &[MissingNode]) -> Result<(), Failure> {
    if missing.is_empty() {
        return Ok(());
    }
    let objects: Vec<Value> = missing.iter().map(object).collect();
    if json {
        Output::new(true).line(&json!({ "missing": objects }).to_string())?;
    }
    let named: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let mut fields = Map::new();
    fields.insert("missing".into(), objects.into());
    let sentence = format!(
        "the list is incomplete: {}; try again, or list one node with --node",
        named.join("; ")
    );
    Err(Failure { fields, ..Failure::new(exit::UNAVAILABLE, "nodes_missing", sentence) })
}

fn object(missing: &MissingNode) -> Value {
    json!({
        "node": missing.node.as_ref().map(|node| node.as_str()),
        "address": missing.address,
        "error": missing.error.to_string(),
        "kind": missing.error.kind().name(),
    })
}
