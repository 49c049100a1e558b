//! `store check`, `migrate`, `dump` and `restore`: the command line of
//! [`lockservice_core::maintenance`].

use std::fs::File;
use std::io::{self, BufReader, BufWriter};

use lockservice_core::clock::SystemClock;
use lockservice_core::maintenance::{Dump, Problem, RestoreOptions, diagnose, problems, restore};
use lockservice_core::store::{Inspection, Leader, STORE_FORMAT, ServiceState};
use lockservice_core::{Epoch, ErrorKind};
use serde_json::{Value, json};

use super::args::{RestoreArgs, ServeArgs, StoreArgs, StoreCommand};
use super::config::Config;
use super::exit::{self, Failure, say_note};
use super::output::Output;
use crate::store::StoreUrl;

/// Runs one of the commands. Returns the exit status.
pub(crate) async fn run(command: &StoreCommand, json: bool) -> Result<u8, Failure> {
    // The futures of the drivers are large.
    match command {
        StoreCommand::Check(args) => Box::pin(check(&config(args)?.1, json)).await,
        StoreCommand::Migrate(args) => Box::pin(migrate(&config(args)?.1, json)).await,
        StoreCommand::Dump(args) => Box::pin(dump(&config(args)?.1, json)).await,
        StoreCommand::Restore(args) => {
            Box::pin(restore_from(args, config(&args.store)?, json)).await
        }
    }
}

/// The settings of the store's server, and the URL of the store.
fn config(args: &StoreArgs) -> Result<(Config, StoreUrl), Failure> {
    let args = ServeArgs {
        store: args.store.clone(),
        config: args.config.clone(),
        ..ServeArgs::default()
    };
    let (config, _) = Config::load(&args, std::env::vars_os())?;
    let url = config.store_url()?;
    if url.is_volatile() {
        return Err(Failure::usage(
            "a store in memory ends with its process, so there is none to be opened: name another \
                with --store",
        ));
    }
    Ok((config, url))
}

async fn check(url: &StoreUrl, json: bool) -> Result<u8, Failure> {
    let output = Output::new(json);
    let inspection = match url.inspect().await {
        Ok(inspection) => inspection,
        // This command exists for a store that cannot be read at all.
        Err(error) if error.kind() == ErrorKind::StoreCorrupt => {
            let Failure { kind, sentence, .. } = Failure::from(error);
            say_problem(&output, json, kind, "the store", &sentence)?;
            return Ok(exit::PROBLEMS);
        }
        Err(error) => return Err(error.into()),
    };
    let problems = diagnose(&inspection);
    say_summary(&output, json, &summary(&inspection, problems.len()))?;
    for Problem { kind, record, sentence } in &problems {
        say_problem(&output, json, kind.name(), record, sentence)?;
    }
    Ok(if problems.is_empty() { 0 } else { exit::PROBLEMS })
}

/// Counts only what could be read.
fn summary(inspection: &Inspection, problems: usize) -> Value {
    let Inspection { store, state, head, .. } = inspection;
    let leader = head.as_ref().and_then(|head| head.leader.as_ref());
    let cluster = head.as_ref().and_then(|head| head.cluster);
    let address = |of: fn(&Leader) -> &String| {
        leader.map(|leader| of(leader).as_str()).filter(|address| !address.is_empty())
    };
    let live = state.services.iter().filter(|service| service.state == ServiceState::Live).count();
    json!({
        "store": store,
        "format": STORE_FORMAT,
        "cluster": cluster.map(|cluster| cluster.id.to_string()),
        "epoch": state.epoch.get(),
        "applied": state.applied.get(),
        "leader": leader.map(|leader| leader.node.as_str()),
        "leader_address": address(|leader| &leader.clients),
        "peer_address": address(|leader| &leader.address),
        "tables": state.tables.len(),
        "services": state.services.len(),
        "services_live": live,
        "tombstones": state.tombstones.len(),
        "problems": problems,
    })
}

/// The facts about a store for people, in this order.
const SUMMARY: [&str; 13] = [
    "store",
    "format",
    "cluster",
    "epoch",
    "applied",
    "leader",
    "leader_address",
    "peer_address",
    "tables",
    "services",
    "services_live",
    "tombstones",
    "problems",
];

fn say_summary(output: &Output, json: bool, summary: &Value) -> Result<(), Failure> {
    if json {
        return output.line(&summary.to_string());
    }
    for name in SUMMARY {
        let text = match &summary[name] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        output.line(&format!("{:<15} {text}", name.replace('_', " ")))?;
    }
    Ok(())
}

fn say_problem(
    output: &Output,
    json: bool,
    kind: &str,
    record: &str,
    sentence: &str,
) -> Result<(), Failure> {
    if json {
        output.line(&json!({ "problem": kind, "record": record, "sentence": sentence }).to_string())
    } else {
        output.line(&format!("problem: {record}: {sentence}"))
    }
}

async fn migrate(url: &StoreUrl, json: bool) -> Result<u8, Failure> {
    let before = url.stored_format().await?;
    if before == Some(0) && !url.is_shared() {
        // A new store would only hide a misspelt path.
        url.open_existing().await?;
    }
    let described = url.open().await?.describe();
    let before = before.unwrap_or(STORE_FORMAT);
    let text = match before {
        STORE_FORMAT => format!(
            "{described} is in format {STORE_FORMAT}, the current one: there was nothing to do"
        ),
        0 => format!("{described} was created, in format {STORE_FORMAT}"),
        before => format!("{described} was brought from format {before} to {STORE_FORMAT}"),
    };
    let result = json!({ "store": described, "before": before, "format": STORE_FORMAT });
    Output::new(json).line(&if json { result.to_string() } else { text })?;
    Ok(0)
}

async fn dump(url: &StoreUrl, json: bool) -> Result<u8, Failure> {
    let store = url.open_existing().await?;
    let state = store.load().await?;
    let problems = problems(&state);
    let cluster = store.head().await?.and_then(|head| head.cluster);
    let dump = Dump::new(store.describe(), state)?.of(cluster.map(|cluster| cluster.id));
    if dump.state.tables.is_empty() && dump.state.services.is_empty() {
        exit::say_warning(json, "empty", "the store is empty: is it the right one?");
    }
    let mut out = BufWriter::new(io::stdout().lock());
    dump.write_to(&mut out).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::BrokenPipe => "it is not read any more".to_owned(),
            _ => format!("{error}; check where it is redirected to"),
        };
        Failure::new(exit::IO, "output", format!("the dump was not written to its end: {why}"))
    })?;
    let fatal = problems.iter().filter(|problem| !problem.kind.heals()).count();
    if fatal > 0 {
        return Err(Failure::new(
            exit::PROBLEMS,
            "problems",
            format!(
                "the store has {fatal} problems over which this dump cannot be restored: run \
                    `lockservice store check`"
            ),
        ));
    }
    Ok(0)
}

async fn restore_from(
    args: &RestoreArgs,
    (config, url): (Config, StoreUrl),
    json: bool,
) -> Result<u8, Failure> {
    // The input is read before the store is touched, for a new store would be created.
    let dump = match &args.input {
        Some(path) => {
            let file = File::open(path).map_err(|error| {
                Failure::new(
                    exit::IO,
                    "input",
                    format!("cannot open the dump {}: {error}; check --input", path.display()),
                )
            })?;
            Dump::read_from(BufReader::new(file))?
        }
        None => Dump::read_from(io::stdin().lock())?,
    };
    let store = url.open().await?;
    if url.is_shared() {
        say_note(
            json,
            "restoring; a store that servers may share is first watched, to be sure that none \
                uses it",
        );
    }
    let options = RestoreOptions {
        node: config.node()?,
        leadership_ttl: config.allocator.constants.leadership_ttl(),
        above: Epoch::new(args.above_epoch),
    };
    let restored = restore(&*store, &SystemClock, &dump, &options).await?;
    let text = format!(
        "restored {} records of {} into {}, epoch {}, cluster {}",
        restored.records,
        dump.source,
        store.describe(),
        restored.epoch,
        restored.cluster
    );
    let result = json!({
        "store": store.describe(),
        "source": dump.source,
        "records": restored.records,
        "epoch": restored.epoch.get(),
        "cluster": restored.cluster.to_string(),
    });
    Output::new(json).line(&if json { result.to_string() } else { text })?;
    Ok(0)
}
