//! The bank example against a server that dies again and again.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use integration::server::Place;
use integration::{binary, on_each_store, within};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::process::{Child, Command};

on_each_store! {
    the_sum_stays_right_while_the_server_is_killed_and_restarted_at_random_moments;
}

/// How long the bank works, in seconds.
const SECONDS: u64 = 20;

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
    let output = within("the bank ends", bank.wait_with_output()).await.expect("a child can be waited for");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, said)
}

mod check {
    use integration::store::StoreKind;

    use super::*;

    pub(super) async fn the_sum_stays_right_while_the_server_is_killed_and_restarted_at_random_moments(
        store: StoreKind,
    ) {
        let seed = match std::env::var("LOCKSERVICE_TEST_SEED") {
            Ok(seed) => seed.parse().expect("LOCKSERVICE_TEST_SEED is a number"),
            Err(_) => rand::random::<u64>(),
        };
        println!("LOCKSERVICE_TEST_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let place = Place::new(store);
        let mut server = place.start().await;
        let journal = place.directory().join("bank.journal");
        let bank = bank(&place.address, &journal, &["--seconds", &SECONDS.to_string(), "--seed", &seed.to_string()]);
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
        assert!(!said.contains(" 0 lost sessions"), "seed {seed}: {said}");
        println!("{kills} kills; {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_locks_money_is_lost_and_the_bank_says_so() {
    let directory = tempfile::TempDir::new().expect("there is room for temporary files");
    // No server is needed by those who lock nothing.
    let bank = bank("127.0.0.1:1", &directory.path().join("journal"), &["--seconds", "3", "--without-locks"]);
    let (output, said) = ended(bank).await;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("MONEY IS LOST OR INVENTED"), "{said}");
}
