//! The bank example against servers that die again and again, and stores that do.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use integration::containers::{Container, Postgres, PostgresOptions, Redis, RedisOptions};
use integration::load::seed;
use integration::server::{Place, Server};
use integration::{binary, on_each_store, within_limit};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::process::{Child, Command};

on_each_store! {
    the_sum_stays_right_while_the_server_is_killed_at_random_moments;
    restarts_abort_validating_transactions_alone_and_interrupt_no_other_work;
}

/// How long the bank works: `INTEGRATION_BANK_SECONDS`, or 20.
fn seconds() -> u64 {
    std::env::var("INTEGRATION_BANK_SECONDS")
        .map_or(20, |text| text.parse().expect("INTEGRATION_BANK_SECONDS is a number"))
}

fn bank(address: &str, journal: &Path, flags: &[&str]) -> Child {
    Command::new(binary::bank())
        .args(["--server", address, "--journal"])
        .arg(journal)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the bank can be started")
}

async fn ended(bank: Child) -> (Output, String) {
    let limit = Duration::from_secs(seconds() + 60);
    let output = within_limit(limit, "the bank ends", bank.wait_with_output())
        .await
        .expect("a child can be waited for");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output, said)
}

mod check {
    use integration::store::StoreKind;

    use super::*;

    pub(super) async fn the_sum_stays_right_while_the_server_is_killed_at_random_moments(
        store: StoreKind,
    ) {
        let seed = seed();
        let mut rng = SmallRng::seed_from_u64(seed);
        let place = Place::new(store);
        let mut server = place.start().await;
        let journal = place.directory().join("bank.journal");
        let bank = bank(
            &place.address,
            &journal,
            &["--seconds", &seconds().to_string(), "--seed", &seed.to_string()],
        );
        let mut kills = 0;
        let killing = async {
            loop {
                // Sometimes before the old lease has run out, mostly some time after.
                tokio::time::sleep(Duration::from_millis(rng.random_range(500..6_500))).await;
                server.kill().await;
                kills += 1;
                server = place.start().await;
            }
        };
        let (output, said) = tokio::select! {
            ended = ended(bank) => ended,
            () = killing => unreachable!("it never ends"),
        };
        assert!(output.status.success(), "seed {seed}, {kills} kills: {said}");
        assert!(said.contains("the sum is right"), "seed {seed}: {said}");
        assert!(kills >= 2, "seed {seed}: {kills} kills");
        // What was hit by the kills was noticed.
        let nothing = said.contains(" 0 lost sessions") && said.contains(" 0 refused commits");
        assert!(!nothing, "seed {seed}: {said}");
        println!("{kills} kills; {said}");
    }

    /// P6, T4.
    pub(super) async fn restarts_abort_validating_transactions_alone_and_interrupt_no_other_work(
        store: StoreKind,
    ) {
        let seed = seed();
        let mut rng = SmallRng::seed_from_u64(seed);
        // A guard that outlasts each absence, and a lease after which tables often serve again
        // between two kills.
        let place = Place::new(store).with_lease(Duration::from_secs(4));
        let mut server = place.start().await;
        let journal = place.directory().join("bank.journal");
        let time = seconds().to_string();
        let flags = ["--seconds", &time, "--seed", &seed.to_string(), "--clerks", "16"];
        let bank = bank(&place.address, &journal, &flags);
        let mut restarts = 0;
        let restarting = async {
            loop {
                tokio::time::sleep(Duration::from_millis(rng.random_range(3_000..7_000))).await;
                if rng.random() {
                    server.kill().await;
                } else {
                    assert!(server.stop().await.success());
                }
                restarts += 1;
                server = place.start().await;
            }
        };
        let (output, said) = tokio::select! {
            ended = ended(bank) => ended,
            () = restarting => unreachable!("it never ends"),
        };
        assert!(output.status.success(), "seed {seed}, {restarts} restarts: {said}");
        assert!(said.contains("the sum is right"), "seed {seed}: {said}");
        assert!(restarts >= 2, "seed {seed}: {restarts} restarts");
        assert!(said.contains(", 0 interrupted clerks"), "seed {seed}: {said}");
        assert!(said.contains(" 0 lost sessions"), "seed {seed}: {said}");
        assert!(!said.contains(" 0 moves between tills"), "seed {seed}: {said}");
        println!("{restarts} restarts; {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_locks_money_is_lost_and_the_bank_says_so() {
    let directory = tempfile::TempDir::new().expect("there is room for temporary files");
    // No server is needed by those who lock nothing.
    let bank = bank(
        "127.0.0.1:1",
        &directory.path().join("journal"),
        &["--seconds", "3", "--without-locks"],
    );
    let (output, said) = ended(bank).await;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("MONEY IS LOST OR INVENTED"), "{said}");
    assert!(said.lines().count() < 20, "a few wrong audits say enough: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_stays_right_while_nodes_and_postgres_die_at_random_moments() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    Box::pin(over_three_nodes(postgres.url(), &postgres)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_stays_right_while_nodes_and_redis_die_at_random_moments() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    Box::pin(over_three_nodes(redis.url(), &redis)).await;
}

async fn over_three_nodes(store: &str, server: &Container) {
    let seed = seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut nodes: Vec<(Place, Option<Server>)> = Vec::new();
    for name in ["a", "b", "c"] {
        let place = Place::joining(store, name);
        let running = place.start().await;
        nodes.push((place, Some(running)));
    }
    let addresses: Vec<&str> = nodes.iter().map(|(place, _)| place.address.as_str()).collect();
    let journal = nodes[0].0.directory().join("bank.journal");
    let flags = ["--seconds", &seconds().to_string(), "--seed", &seed.to_string()];
    let bank = bank(&addresses.join(","), &journal, &flags);
    let (mut kills, mut outages) = (0, 0);
    let killing = async {
        loop {
            tokio::time::sleep(Duration::from_millis(rng.random_range(500..4_000))).await;
            match rng.random_range(0..5) {
                0 => {
                    server.pause().await;
                    tokio::time::sleep(Duration::from_millis(rng.random_range(100..3_000))).await;
                    server.unpause().await;
                    outages += 1;
                }
                1 => {
                    server.kill().await;
                    server.start().await;
                    outages += 1;
                }
                _ => {
                    let (place, running) = &mut nodes[rng.random_range(0..3)];
                    running.take().expect("it was started again").kill().await;
                    kills += 1;
                    // Its name is free again once the last lease under it has run out.
                    *running = Some(place.start().await);
                }
            }
        }
    };
    let (output, said) = tokio::select! {
        ended = ended(bank) => ended,
        () = killing => unreachable!("it never ends"),
    };
    assert!(output.status.success(), "seed {seed}, {kills} kills, {outages} outages: {said}");
    assert!(said.contains("the sum is right"), "seed {seed}: {said}");
    assert!(kills + outages >= 2, "seed {seed}: {kills} kills, {outages} outages");
    println!("{kills} kills, {outages} outages; {said}");
}
