//! `lockservice store` against real PostgreSQL and Redis: dumps go from any backend to any other,
//! and a half of one is never served from.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use integration::containers::{Postgres, PostgresOptions, Redis, RedisOptions};
use integration::server::Place;
use integration::store::StoreKind;
use integration::{binary, json_lines, pid_of, skip, within};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::process::Command;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary::lockservice());
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(args: &[&str]) -> Output {
    let output =
        within("the command ends", command(args).output()).await.expect("it can be started");
    for text in [&output.stdout, &output.stderr] {
        assert!(
            !String::from_utf8_lossy(text).contains("secret"),
            "a password was printed: {args:?}"
        );
    }
    output
}

/// Runs a command that succeeds; returns its lines.
async fn done(args: &[&str]) -> Vec<Value> {
    let output = run(args).await;
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    json_lines(&output)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// True if the binary has both drivers; otherwise says that the test is skipped.
async fn has_drivers() -> bool {
    for (url, feature) in [("postgres://x/y?z=1", "pg"), ("redis://x?z=1", "redis")] {
        if said(&run(&["store", "check", "--store", url]).await).contains("--features") {
            skip(&format!("this lockservice was built without the feature {feature}"));
            return false;
        }
    }
    true
}

/// A file store that a server used, and its dump.
async fn used() -> (Place, PathBuf, Vec<Value>) {
    let place = Place::new(StoreKind::File);
    let server = place.start().await;
    for table in ["accounts", "jobs"] {
        done(&["lock", table, "k", "--server", &place.address, "--", "true"]).await;
    }
    assert!(server.stop().await.success(), "it stops in order");
    let path = place.directory().join("binds.dump");
    let lines = dump(&place.store, &path).await;
    (place, path, lines)
}

async fn dump(url: &str, to: &Path) -> Vec<Value> {
    let lines = done(&["store", "dump", "--store", url]).await;
    std::fs::write(to, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
        .expect("a file");
    lines
}

/// A dump's records, without what a restore changes.
fn records(dump: &[Value]) -> Vec<Value> {
    let mut records = dump[1..].to_vec();
    for record in &mut records {
        if let Some(service) = record.get_mut("service") {
            service["state"] = Value::Null;
        }
    }
    records
}

async fn restore(url: &str, dump: &Path) -> Output {
    run(&["store", "restore", "--store", url, "--input", dump.to_str().expect("text")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_goes_from_a_file_to_postgres_and_from_there_to_redis() {
    let (Some(postgres), Some(redis)) = (
        Postgres::start(PostgresOptions::default()).await,
        Redis::start(RedisOptions::durable()).await,
    ) else {
        return;
    };
    if !has_drivers().await {
        return;
    }
    let (place, path, first) = used().await;

    let missing = run(&["store", "check", "--store", postgres.url()]).await;
    assert_eq!(missing.status.code(), Some(74), "{}", said(&missing));
    let mut connection =
        within("a connection", PgConnection::connect(postgres.url())).await.expect("it responds");
    let schemas = sqlx::query("SELECT count(*) FROM pg_namespace WHERE nspname = 'lockservice'");
    let count: i64 = schemas.fetch_one(&mut connection).await.expect("a response").get(0);
    assert_eq!(count, 0, "a check creates nothing");
    let created = done(&["store", "migrate", "--json", "--store", postgres.url()]).await;
    assert_eq!(created[0]["before"], 0);
    let again = done(&["store", "migrate", "--json", "--store", postgres.url()]).await;
    assert_eq!(again[0]["before"], again[0]["format"]);

    let output = restore(postgres.url(), &path).await;
    assert!(output.status.success(), "{}", said(&output));
    let to_redis = place.directory().join("second.dump");
    let second = dump(postgres.url(), &to_redis).await;
    assert_eq!(records(&second), records(&first));
    let output = restore(redis.url(), &to_redis).await;
    assert!(output.status.success(), "{}", said(&output));
    let third = dump(redis.url(), &place.directory().join("third.dump")).await;
    assert_eq!(records(&third), records(&first));
    let epoch = |dump: &[Value]| dump[0]["dump"]["epoch"].as_u64().expect("a header");
    assert!(epoch(&first) < epoch(&second) && epoch(&second) < epoch(&third), "epochs only grow");
    for url in [postgres.url(), redis.url()] {
        let summary = done(&["store", "check", "--json", "--store", url]).await;
        assert_eq!(
            (&summary[0]["tables"], &summary[0]["leader"]),
            (&Value::from(2), &Value::Null),
            "it resigned"
        );
        let refused = restore(url, &path).await;
        assert_eq!(refused.status.code(), Some(64), "it holds records: {}", said(&refused));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_was_killed_is_refused_by_servers_and_finished_by_the_next_one() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    if !has_drivers().await {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("big.dump");
    let tables = 60_000u64;
    let mut text = "{\"dump\":{\"format\":1,\"version\":\"0\",\"source\":\"test\",\
         \"epoch\":1,\"applied\":1}}\n"
        .to_owned();
    for at in 0..tables {
        let (id, owner) = ((1u64 << 32) + at, 1u64 << 32);
        let name = serde_json::json!({"group": "g", "name": format!("t{at}")});
        let binds = serde_json::json!([{"owner": owner, "version": id}]);
        let table = serde_json::json!({
            "table": name, "id": id, "partitions": 1, "tokens_reserved_to": 0, "binds": binds
        });
        text.push_str(&format!("{{\"table\":{table}}}\n"));
    }
    text.push_str(&format!(
        "{{\"end\":{{\"constants\":0,\"services\":0,\"tables\":{tables},\"tombstones\":0}}}}\n"
    ));
    std::fs::write(&path, text).expect("a file");
    done(&["store", "migrate", "--json", "--store", postgres.url()]).await;

    let input = path.to_str().expect("text");
    let mut killed = command(&["store", "restore", "--store", postgres.url(), "--input", input])
        .spawn()
        .expect("it starts");
    let mut connection =
        within("a connection", PgConnection::connect(postgres.url())).await.expect("it responds");
    within("the first records", async {
        let count = || sqlx::query("SELECT count(*) FROM lockservice.tables");
        while count().fetch_one(&mut connection).await.expect("a response").get::<i64, _>(0) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    kill(pid_of(&killed), Signal::SIGKILL).expect("a child");
    within("its end", killed.wait()).await.expect("a child");

    let check = run(&["store", "check", "--json", "--store", postgres.url()]).await;
    assert_eq!(check.status.code(), Some(1), "{}", said(&check));
    assert!(String::from_utf8_lossy(&check.stdout).contains("unfinished_restore"));
    let serve = run(&["serve", "--listen", "127.0.0.1:0", "--store", postgres.url()]).await;
    // In use while the killed restore's leadership may last, and then unfinished.
    assert!(
        [Some(74), Some(75)].contains(&serve.status.code()),
        "{:?}: {}",
        serve.status,
        said(&serve)
    );

    let output = restore(postgres.url(), &path).await;
    assert!(output.status.success(), "{}", said(&output));
    let check = run(&["store", "check", "--json", "--store", postgres.url()]).await;
    assert_eq!(json_lines(&check)[0]["tables"], tables);
    assert!(!String::from_utf8_lossy(&check.stdout).contains("unfinished_restore"));
}
