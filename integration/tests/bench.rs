//! `lockservice bench --beside` real servers: what it measures, and what it leaves behind.

use std::process::{Output, Stdio};

use integration::containers::{Postgres, PostgresOptions, Redis, RedisOptions};
use integration::{binary, json_lines, pid_of, skip, within};
use nix::sys::signal::{Signal, kill};
use redis::AsyncCommands as _;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// All keys of a benchmark.
const KEYS: &str = "lockservice-bench:*";
/// What is left of a benchmark in a database: its tables, its locks, its connections.
const LEFT: &str = "\
    SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'lockservice\\_bench%')
         + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')
         + (SELECT count(*) FROM pg_stat_activity \
            WHERE application_name LIKE 'lockservice\\_bench%')";

fn bench(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(binary::lockservice());
    command
        .args(["bench", "--json", "--beside", url])
        .args(args)
        .env_remove("LOCKSERVICE_SERVER")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a benchmark to its end. `None`, having said so, if this binary knows no such server.
async fn run(url: &str, args: &[&str]) -> Option<Output> {
    let output = within("the benchmark ends", bench(url, args).output()).await.expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("this build lacks the feature") {
        skip("this lockservice was built without the features redis and pg");
        return None;
    }
    Some(output)
}

/// A benchmark that runs.
struct Running {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts one with short runs of 4 callers, and waits until the first of them has ended.
    async fn start(url: &str) -> Self {
        let args = ["--workload=batch", "--callers=4,4,4,4,4,4,4,4", "--seconds=2", "--rounds=1"];
        let mut child = bench(url, &args).spawn().expect("the binary can be started");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let mut running = Self { child, stdout };
        let line = within("the first run ends", running.stdout.next_line()).await;
        let line = line.expect("its output can be read").expect("it measures something");
        let run: Value = serde_json::from_str(&line).expect("one object");
        assert_eq!(run["callers"], 4);
        running
    }

    async fn ended(self) -> Output {
        within("the benchmark ends", self.child.wait_with_output()).await.expect("a child")
    }
}

/// Every run has figures of both sides, and says why the CPU time of a server in a container is
/// not known.
fn check(output: &Output, side: &str) {
    assert!(output.status.success(), "{output:?}");
    let runs = json_lines(output);
    assert_eq!(runs.len(), 8, "{output:?}");
    for run in &runs {
        let [ours, other] = [0, 1].map(|at| &run["sides"][at]);
        assert_eq!((&ours["side"], &other["side"]), (&"lockservice".into(), &side.into()));
        for figure in ["cycles_per_s", "p50_us", "p99_us", "client_cpu_us"] {
            for object in [ours, other, &other["ratio"]] {
                assert!(object[figure]["median"].as_f64() > Some(0.0), "{figure}: {run}");
            }
        }
        assert!(ours["server_cpu_us"]["median"].as_f64() > Some(0.0), "{run}");
        assert!(
            other["server_cpu_us"].is_null() && other["server_cpu_unknown"].is_string(),
            "the server is in a container: {run}"
        );
    }
}

const EVERYTHING: [&str; 4] =
    ["--workload=rows,hot,mixed,batch", "--callers=1,4", "--seconds=1", "--rounds=2"];

async fn connection_to(redis: &Redis) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(redis.url()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("Redis responds")
}

async fn keys_in(redis: &Redis) -> Vec<String> {
    connection_to(redis).await.keys(KEYS).await.expect("Redis responds")
}

async fn left_in(postgres: &Postgres) -> i64 {
    let mut connection = PgConnection::connect(postgres.url()).await.expect("PostgreSQL responds");
    sqlx::query(LEFT).fetch_one(&mut connection).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_redis_every_workload_is_measured_and_no_key_is_left() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let Some(output) = run(redis.url(), &EVERYTHING).await else { return };
    check(&output, "redis");
    assert_eq!(keys_in(&redis).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_postgresql_every_workload_is_measured_and_nothing_is_left() {
    let settings = vec![("max_connections", "10".to_owned())];
    let options = PostgresOptions { settings, ..PostgresOptions::default() };
    let Some(postgres) = Postgres::start(options).await else { return };
    let Some(output) = run(postgres.url(), &EVERYTHING).await else { return };
    check(&output, "postgres");
    assert_eq!(left_in(&postgres).await, 0);
    let Some(output) = run(postgres.url(), &["--callers=20", "--seconds=1"]).await else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(73) && said.contains("max_connections"), "{output:?}");
    assert_eq!(left_in(&postgres).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_it_leaves_nothing_in_redis() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    if run(redis.url(), &["--callers=1", "--seconds=1"]).await.is_none() {
        return;
    }
    let running = Running::start(redis.url()).await;
    // Now it is in the middle of a cycle for certain.
    within("it locks", async { while keys_in(&redis).await.is_empty() {} }).await;
    kill(pid_of(&running.child), Signal::SIGINT).expect("it runs");
    let output = running.ended().await;
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(2), "{output:?}");
    assert_eq!(keys_in(&redis).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_it_leaves_nothing_in_postgresql() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    if run(postgres.url(), &["--callers=1", "--seconds=1"]).await.is_none() {
        return;
    }
    let running = Running::start(postgres.url()).await;
    assert!(left_in(&postgres).await > 0, "its table is there");
    kill(pid_of(&running.child), Signal::SIGINT).expect("it runs");
    let output = running.ended().await;
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(2), "{output:?}");
    assert_eq!(left_in(&postgres).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_dies_meanwhile_ends_it_with_an_error_that_names_the_side() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    if run(redis.url(), &["--callers=1", "--seconds=1"]).await.is_none() {
        return;
    }
    let running = Running::start(redis.url()).await;
    redis.kill().await;
    let output = running.ended().await;
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stderr).expect("one object");
    assert!(error["error"].to_string().contains("redis"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_refused_and_not_repeated() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("requirepass").arg("right");
    let () = set.query_async(&mut connection_to(&redis).await).await.expect("Redis responds");
    let url = redis.url().replace("redis://", "redis://:hidden@");
    let Some(output) = run(&url, &["--callers=1", "--seconds=1"]).await else { return };
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hidden"), "{output:?}");
}
