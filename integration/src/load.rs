//! Many `lock` commands that take turns at a few keys, for as long as a test lasts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lockservice::client::AdminClient;
use lockservice_core::{Key, TableRef};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{binary, within};

/// The tables, and the keys of each.
const TABLES: usize = 3;
const KEYS_PER_TABLE: [usize; TABLES] = [4, 4, 2];

/// The keys of all tables together.
pub const KEYS: usize = 10;

/// The exit status of `lock` if no server responds, and the pause before the next command then.
const NO_SERVER: i32 = 69;
const AGAIN: Duration = Duration::from_millis(100);

/// What the commands do.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The server, HOST:PORT.
    pub address: String,
    /// The program `journal_writer`.
    pub writer: &'static str,
    /// The journal's file.
    pub journal: PathBuf,
    /// The number of commands at once.
    pub commands: usize,
    /// The session TTL that each requests.
    pub ttl: Duration,
    /// The longest that one holds its key.
    pub hold_max: Duration,
    /// Chooses keys and times.
    pub seed: u64,
    /// True for commands that SIGTERM does not end.
    pub deaf: bool,
}

/// A command that has ended otherwise than with its own exit status. One that was started while
/// there was no server is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndedEarly {
    /// Its name.
    pub name: String,
    /// The exit status of `lock`; `None` if a signal ended it.
    pub status: Option<i32>,
    /// What it said.
    pub said: String,
}

#[derive(Debug, Default)]
struct Seen {
    /// The name of the command of each `lock` process.
    names: HashMap<String, String>,
    done: usize,
    ended_early: Vec<EndedEarly>,
    /// Those that found no server when they started.
    turned_away: Vec<String>,
}

/// The commands. They end when it is dropped.
#[derive(Debug)]
pub struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// The call that waits for a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiter {
    /// The name of its command.
    pub name: String,
    /// For how long it has waited.
    pub waiting: Duration,
}

impl Load {
    /// Starts the commands.
    pub fn start(options: &LoadOptions) -> Self {
        let (seen, stop) = (Arc::default(), watch::Sender::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..options.commands {
            let (options, seen, stopped) = (options.clone(), Arc::clone(&seen), stop.subscribe());
            tasks.spawn(async move {
                take_turns(number, &options, &seen, &stopped).await;
            });
        }
        Self { seen, stop, tasks }
    }

    /// Those that have ended otherwise than with their own exit status, so far.
    pub fn ended_early(&self) -> Vec<EndedEarly> {
        lock(&self.seen).ended_early.clone()
    }

    /// How many have ended with their own exit status, so far.
    pub fn done(&self) -> usize {
        lock(&self.seen).done
    }

    /// The names of those that found no server when they started, so far. They never held a lock.
    pub fn turned_away(&self) -> Vec<String> {
        lock(&self.seen).turned_away.clone()
    }

    /// Starts none any more, and waits until all have ended. The writers have to be told too
    /// ([`Journal::stop_writers`](crate::journal::Journal::stop_writers)).
    pub async fn stop(&mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = within("the commands end", self.tasks.join_next()).await {
            ended.expect("no panic");
        }
    }

    /// The queue of each key that somebody waits for, the first first.
    ///
    /// # Panics
    /// If the server does not respond.
    pub async fn queues(&self, admin: &AdminClient) -> HashMap<String, Vec<Waiter>> {
        let mut queues = HashMap::new();
        for (table, key) in keys() {
            let table = TableRef::new("default", &table).expect("a name");
            let row = Key::new(key.as_str()).expect("a key");
            let lines =
                within("a list", Box::pin(admin.row(&table, &row))).await.expect("it responds");
            let queue: Vec<Waiter> = lines
                .iter()
                .filter_map(|line| Some((line.waiting?, line.party.client.rsplit_once(':')?.1)))
                .filter_map(|(waiting, pid)| {
                    let name = lock(&self.seen).names.get(pid)?.clone();
                    Some(Waiter { name, waiting })
                })
                .collect();
            if !queue.is_empty() {
                queues.insert(key, queue);
            }
        }
        queues
    }
}

/// Every key, with its table.
fn keys() -> impl Iterator<Item = (String, String)> {
    let tables = KEYS_PER_TABLE.into_iter().enumerate();
    tables.flat_map(|(table, keys)| {
        (0..keys).map(move |key| (format!("jobs-{table}"), format!("job-{table}-{key}")))
    })
}

/// One command after the other, until it is stopped, or one was ended.
async fn take_turns(
    number: usize,
    options: &LoadOptions,
    seen: &Mutex<Seen>,
    stopped: &watch::Receiver<bool>,
) {
    let mut rng = SmallRng::seed_from_u64(options.seed.wrapping_add(number as u64));
    let keys: Vec<(String, String)> = keys().collect();
    // Not one of those that `lock` has for itself.
    let status = 1 + number as i32 % 50;
    let mut turn = 0;
    while !*stopped.borrow() {
        turn += 1;
        let name = format!("{number}.{turn}");
        // At first every key has as many.
        let (table, key) = if turn == 1 {
            &keys[number % keys.len()]
        } else {
            &keys[rng.random_range(0..keys.len())]
        };
        let hold_ms = rng.random_range(50..options.hold_max.as_millis() as u64);
        let mut command = command(options, &name, (table, key), hold_ms, status);
        let child = command.spawn().expect("the binary can be started");
        let pid = child.id().expect("it was not waited for").to_string();
        lock(seen).names.insert(pid, name.clone());
        let output = child.wait_with_output().await.expect("a child can be waited for");
        if output.status.code() == Some(NO_SERVER) {
            lock(seen).turned_away.push(name);
            // Without a server there is no event to wait for.
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let mut seen = lock(seen);
        if output.status.code() == Some(status) {
            seen.done += 1;
            continue;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        seen.ended_early.push(EndedEarly { name, status: output.status.code(), said });
        return;
    }
}

/// `lock` around one writer.
fn command(
    options: &LoadOptions,
    name: &str,
    (table, key): (&str, &str),
    hold_ms: u64,
    status: i32,
) -> Command {
    let mut command = Command::new(binary::lockservice());
    command
        .args(["lock", "--server", &options.address, "--timeout", "30m"])
        .arg(format!("--ttl={}ms", options.ttl.as_millis()))
        .args([table, key, "--"]);
    if options.deaf {
        // What is ignored stays so in the program that takes the shell's place.
        command.args(["sh", "-c", r#"trap '' TERM; exec "$@""#, "deaf"]);
    }
    command
        .arg(options.writer)
        .arg(&options.journal)
        .args([key, name, &hold_ms.to_string(), &status.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("no panic under it")
}

/// What [`Load::queues`] tells of the order in which the calls of one key must be served, against
/// the names of those who were.
///
/// # Errors
/// A sentence, if one was served before another that had waited for longer, by more than `margin`.
pub fn is_in_order(queue: &[Waiter], served: &[&str], margin: Duration) -> Result<(), String> {
    let place = |waiter: &Waiter| served.iter().position(|name| *name == waiter.name);
    for (index, first) in queue.iter().enumerate() {
        for second in &queue[index + 1..] {
            let Some(second_place) = place(second) else { continue };
            let overtook = place(first).is_none_or(|first_place| second_place < first_place);
            if overtook && first.waiting >= second.waiting + margin {
                return Err(format!("{second:?} was served before {first:?}: {served:?}"));
            }
        }
    }
    Ok(())
}

/// The seed of a run: `INTEGRATION_TEST_SEED`, or a new one, which is printed.
///
/// # Panics
/// If it is no number.
pub fn seed() -> u64 {
    let seed = match std::env::var("INTEGRATION_TEST_SEED") {
        Ok(seed) => seed.parse().expect("INTEGRATION_TEST_SEED is a number"),
        Err(_) => rand::random::<u64>(),
    };
    println!("INTEGRATION_TEST_SEED={seed}");
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(waiters: &[(&str, u64)]) -> Vec<Waiter> {
        let waiter = |(name, ms): &(&str, u64)| Waiter {
            name: (*name).to_owned(),
            waiting: Duration::from_millis(*ms),
        };
        waiters.iter().map(waiter).collect()
    }

    #[test]
    fn an_order_is_told_apart_from_another_unless_both_came_at_about_the_same_time() {
        let margin = Duration::from_millis(100);
        let queue = queue(&[("a", 900), ("b", 500), ("c", 450)]);
        for served in [&["a", "b", "c"][..], &["a", "c", "b"], &["x", "a", "y", "b"], &["a"], &[]] {
            assert_eq!(is_in_order(&queue, served, margin), Ok(()), "{served:?}");
        }
        for served in [&["b", "a", "c"][..], &["b"], &["c", "a", "b"]] {
            assert!(is_in_order(&queue, served, margin).is_err(), "{served:?}");
        }
    }
}
