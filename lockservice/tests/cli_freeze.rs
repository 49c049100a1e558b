//! A server that is frozen for a while, as a machine under a snapshot or out of memory is.

mod cli_support;

use std::time::Duration;

use cli_support::{Running, Server, json_lines, now, stderr, wait_for_end_of};
use lockservice_core::clock::{Clock as _, SystemClock, Time, lo};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use rustix::process::{Pid, Signal};

/// The default of a session, with the default lease of fifteen seconds.
const TTL: Duration = Duration::from_secs(10);
const STOP_TIME: Duration = Duration::from_millis(100);

const HOLDERS: usize = 17;

/// `INTEGRATION_FREEZES`, or 3. Each takes as long as a freeze, and as long as a third of the TTL.
fn freezes() -> u32 {
    std::env::var("INTEGRATION_FREEZES")
        .map_or(3, |text| text.parse().expect("INTEGRATION_FREEZES is a number"))
}

/// Stops the server for this long. The time itself is what is tested.
fn freeze(server: &Server, time: Duration) {
    server.running.signal(Signal::STOP);
    sleep_until(SystemClock.now() + time);
    server.running.signal(Signal::CONT);
}

#[allow(clippy::disallowed_methods, reason = "nothing but the time is waited for")]
fn sleep_until(time: Time) {
    loop {
        let left = time.remaining(SystemClock.now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left);
    }
}

/// Holders of rows, each with the process of its command.
fn holders(server: &Server) -> Vec<(Running, Pid)> {
    let hold = |number: usize| {
        let (key, stop_time) = (number.to_string(), format!("{STOP_TIME:?}"));
        server.hold(&["t", &key, "--stop-time", &stop_time])
    };
    (0..HOLDERS).map(hold).collect()
}

/// The tokens of all locks, by key.
fn tokens(server: &Server) -> Vec<(String, u64)> {
    let locks = json_lines(&server.run(&["locks", "--json"]));
    let token = |lock: &serde_json::Value| {
        let key = lock["key"].as_str().expect("a row").to_owned();
        (key, lock["token"].as_u64().expect("a token"))
    };
    let mut tokens: Vec<_> = locks.iter().map(token).collect();
    tokens.sort();
    tokens
}

#[test]
fn a_freeze_of_the_server_for_six_tenths_of_the_guard_loses_nothing() {
    let server = Server::start();
    let holders = holders(&server);
    let time_out = format!("{}s", (TTL * (freezes() + 20)).as_secs());
    let mut waiter = server.lock(&["t", "0", "--quiet", "--timeout", &time_out], "echo in");
    server.waits(1);
    let before = tokens(&server);
    assert_eq!(before.len(), HOLDERS);
    // P2. A renewal may be due just when the freeze begins: two thirds of the TTL are left then.
    let guard = lo(TTL) - STOP_TIME;
    let mut random = SmallRng::seed_from_u64(11);
    for round in 0..freezes() {
        // At any moment between two renewals.
        sleep_until(now() + random.random_range(Duration::ZERO..TTL / 3));
        freeze(&server, guard.mul_f64(0.6));
        assert_eq!(tokens(&server), before, "round {round}");
    }
    for (holder, command) in holders {
        rustix::process::test_kill_process(command).expect("the command runs");
        holder.signal(Signal::TERM);
        let (status, said) = holder.wait();
        assert!(status.code() != Some(70) && !said.contains("lock was lost"), "{status}: {said}");
    }
    assert_eq!(waiter.line(), "in", "it has kept its place");
    assert!(waiter.wait().0.success());
}

#[test]
fn a_freeze_of_the_server_beyond_the_guard_ends_the_command_before_the_next_holder_starts() {
    let server = Server::start_with(&["--lease-ttl", "2s"]);
    let (holder, command) = server.hold(&["t", "k", "--ttl", "1s"]);
    let mut next = server.lock(&["t", "k", "--quiet", "--timeout", "60s"], "echo in");
    server.waits(1);
    server.running.signal(Signal::STOP);
    wait_for_end_of(command);
    let (status, said) = holder.wait();
    assert_eq!(status.code(), Some(70), "{said}");
    server.running.signal(Signal::CONT);
    // The server has perhaps slept past its lease: then it grants nothing before it has another.
    assert_eq!(next.line(), "in");
    assert!(next.wait().0.success());
}

#[test]
fn a_ttl_above_the_lease_is_said_before_the_lock_is_waited_for() {
    let server = Server::start_with(&["--lease-ttl", "7s"]);
    let (_holder, _) = server.hold(&["t", "k"]);
    let waiter = server.lock(&["t", "k", "--ttl", "30s", "--quiet"], "true");
    let said = waiter.error_line();
    assert!(said.contains("at most 7s") && said.contains("not 30s"), "{said}");
    waiter.signal(Signal::TERM);
    let args = ["lock", "t", "k", "--ttl", "30s", "--quiet", "--json", "--", "true"];
    let waiter = Running::start(&mut server.command(&args));
    let object: serde_json::Value = serde_json::from_str(&waiter.error_line()).expect("one object");
    assert_eq!(
        (object["event"].as_str(), &object["ttl_ms"], &object["longest_promise_ms"]),
        (Some("promise_is_shorter"), &30_000.into(), &7_000.into()),
        "{object}"
    );
    for fits in ["7s", "2s"] {
        let output = server.run(&["lock", "t", "other", "--ttl", fits, "--", "true"]);
        assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    }
}

#[test]
fn a_store_of_a_shorter_lease_serves_on_with_the_default_one() {
    let server = Server::start_with(&["--lease-ttl", "5s"]);
    assert!(server.run(&["lock", "t", "k", "--", "true"]).status.success());
    let server = server.stop_and_restart_with(&[]);
    let output = server.run(&["lock", "t", "k", "--ttl", "60s", "--timeout", "60s", "--", "true"]);
    assert!(output.status.success() && stderr(&output).contains("at most 15s"), "{output:?}");
}
