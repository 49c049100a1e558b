//! Metrics and health of the real server, over HTTP.

mod cli_support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use cli_support::{DEADLINE, Running, Server, code, lockservice, now, run, stderr};
use rustix::process::Signal;
use serde_json::Value;

/// The status and the body of a response.
fn request(address: &str, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n").expect("it reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("it responds, and closes the connection");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let status = head.split_whitespace().nth(1).expect("a status").parse().expect("a number");
    (status, body.to_owned())
}

fn get(address: &str, path: &str) -> (u16, String) {
    request(address, "GET", path)
}

/// The address of the metrics, from the first lines on stderr.
fn metrics_address(server: &Running) -> String {
    loop {
        let line = server.error_line();
        let event: Value = serde_json::from_str(&line).expect("one object");
        if event["event"] == "metrics" {
            return event["address"].as_str().expect("an address").to_owned();
        }
    }
}

/// A server with metrics, and their address.
fn server() -> (Server, String) {
    let server = Server::start_with(&["--metrics", "127.0.0.1:0"]);
    let address = metrics_address(&server.running);
    (server, address)
}

/// All metrics of a server.
struct Scraped(String);

impl Scraped {
    fn of(address: &str) -> Self {
        let (status, text) = get(address, "/metrics");
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        Self(text)
    }

    /// The value of a series, as it is written, with its labels.
    fn value(&self, series: &str) -> f64 {
        let mut lines = self.0.lines().filter_map(|line| line.rsplit_once(' '));
        let found = lines.find(|(name, _)| *name == series);
        found.unwrap_or_else(|| panic!("no {series} in {}", self.0)).1.parse().expect("a number")
    }

    /// The names of all series, without labels.
    fn names(&self) -> std::collections::BTreeSet<&str> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split(['{', ' ']).next()).collect()
    }
}

/// Scrapes until a series has this value.
fn await_value(address: &str, series: &str, value: f64) -> Scraped {
    let give_up = now() + DEADLINE;
    loop {
        let scraped = Scraped::of(address);
        if scraped.value(series) == value {
            return scraped;
        }
        assert!(now() < give_up, "{series} is {}", scraped.value(series));
    }
}

#[test]
fn locks_waits_and_refusals_are_counted() {
    let (server, metrics) = server();
    let fresh = Scraped::of(&metrics);
    for series in [
        "lockservice_locks_held",
        "lockservice_locks_granted_total{mode=\"exclusive\"}",
        "lockservice_lock_refused_total{reason=\"deadlock\"}",
        "lockservice_lock_wait_seconds_count{outcome=\"granted\"}",
        "lockservice_sessions_ended_total{reason=\"lapsed\"}",
        "lockservice_rpc_calls_total{method=\"lockservice.v1.Locks/End\",code=\"ok\"}",
    ] {
        assert_eq!(fresh.value(series), 0.0, "{series}");
    }
    assert_eq!(fresh.value("lockservice_ready"), 1.0);
    assert_eq!(fresh.value("lockservice_role{role=\"leading\"}"), 1.0);
    assert!(fresh.value("lockservice_lease_left_seconds") > 0.0);
    assert_eq!(fresh.value("lockservice_store_changes_queued"), 0.0);
    assert_eq!(fresh.value("lockservice_store_changes_queued_limit"), 8_192.0);

    let (holder, _command) = server.hold(&["t", "k"]);
    let held = Scraped::of(&metrics);
    assert_eq!(held.value("lockservice_locks_held"), 1.0);
    assert_eq!(held.value("lockservice_locks_granted_total{mode=\"exclusive\"}"), 1.0);
    assert_eq!(held.value("lockservice_sessions"), 1.0);
    assert!(held.value("lockservice_store_call_seconds_count{call=\"write\"}") >= 1.0);

    let refused = server.run(&["lock", "t", "k", "--no-wait", "--", "true"]);
    assert_eq!(code(&refused), 75, "{}", stderr(&refused));
    let waiter = server.lock(&["t", "k"], "true");
    server.waits(1);
    let waiting = Scraped::of(&metrics);
    assert_eq!(waiting.value("lockservice_lock_waiters"), 1.0);
    assert_eq!(waiting.value("lockservice_table_waiters"), 0.0);
    assert_eq!(waiting.value("lockservice_lock_refused_total{reason=\"conflict\"}"), 1.0);
    holder.signal(Signal::TERM);
    drop(holder.wait());
    assert!(waiter.wait().0.success());
    let over = await_value(&metrics, "lockservice_sessions", 0.0);
    assert_eq!(over.value("lockservice_locks_held"), 0.0);
    assert_eq!(over.value("lockservice_lock_waiters"), 0.0);
    assert_eq!(over.value("lockservice_locks_granted_total{mode=\"exclusive\"}"), 2.0);
    assert_eq!(over.value("lockservice_lock_wait_seconds_count{outcome=\"granted\"}"), 1.0);
    assert_eq!(over.value("lockservice_lock_hand_over_seconds_count"), 1.0);
    assert_eq!(over.value("lockservice_sessions_ended_total{reason=\"closed\"}"), 3.0);
}

#[test]
fn a_session_whose_client_was_killed_is_counted_as_lapsed() {
    let (server, metrics) = server();
    // The wrapper is killed, so its session is not closed.
    let (holder, _command) = server.hold(&["t", "k", "--ttl", "1s"]);
    holder.signal(Signal::KILL);
    let lost = await_value(&metrics, "lockservice_sessions_ended_total{reason=\"lapsed\"}", 1.0);
    assert_eq!(lost.value("lockservice_sessions_opened_total"), 1.0);
}

#[test]
fn a_transaction_that_an_operator_ended_is_counted_as_such() {
    let (server, metrics) = server();
    let series = "lockservice_transactions_killed_total{reason=\"operator\"}";
    assert_eq!(Scraped::of(&metrics).value(series), 0.0);
    let (holder, _command) = server.hold(&["t", "k"]);
    let output = server.run(&["lock", "force-release", "t", "k", "--reason", "x"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    drop(holder.wait());
    let killed = Scraped::of(&metrics);
    assert_eq!(killed.value(series), 1.0);
    assert_eq!(killed.value("lockservice_sessions_ended_total{reason=\"killed\"}"), 0.0);
}

#[test]
fn a_server_is_not_ready_before_it_has_a_lease() {
    let (server, metrics) = server();
    assert_eq!(get(&metrics, "/readyz"), (200, "ready\n".to_owned()));
    // A killed server leaves its lease behind, which the next one waits for.
    let Server { running, folder, .. } = server;
    running.signal(Signal::KILL);
    drop(running.wait());
    let store = format!("file:{}", folder.path().join("db").display());
    let mut next = Running::start(&mut lockservice(&[
        "serve",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--store",
        &store,
        "--metrics",
        "127.0.0.1:0",
    ]));
    let metrics = metrics_address(&next);
    let (status, why) = get(&metrics, "/readyz");
    assert!(status == 503 && why.contains("no lease yet"), "{status} {why}");
    assert_eq!(get(&metrics, "/healthz"), (200, "ok\n".to_owned()));
    let scraped = Scraped::of(&metrics);
    assert_eq!(scraped.value("lockservice_ready"), 0.0);
    let ready: Value = serde_json::from_str(&next.line()).expect("one object");
    assert_eq!(ready["metrics_address"].as_str(), Some(&*metrics));
    assert_eq!(get(&metrics, "/readyz").0, 200);
}

#[test]
fn a_server_that_stops_is_not_ready_and_still_healthy() {
    let (server, metrics) = server();
    // The command uses all of its time to end, and the server waits for its session.
    let script = "trap 'echo ending' TERM; echo started; while :; do sleep 0.1; done";
    let mut holder = server.lock(&["t", "k", "--stop-time", "1500ms"], script);
    assert_eq!(holder.line(), "started");
    server.running.signal(Signal::TERM);
    let give_up = now() + DEADLINE;
    while get(&metrics, "/readyz").0 != 503 {
        assert!(now() < give_up, "it is still ready");
    }
    let (status, why) = get(&metrics, "/readyz");
    assert!(status == 503 && why.contains("stopping"), "{status} {why}");
    assert_eq!(get(&metrics, "/healthz").0, 200);
    assert_eq!(Scraped::of(&metrics).value("lockservice_ready"), 0.0);
}

#[test]
fn only_what_there_is_can_be_read() {
    let (_server, metrics) = server();
    for path in ["/", "/metrics/", "/metrics2", "/readyz/x"] {
        assert_eq!(get(&metrics, path).0, 404, "{path}");
    }
    assert_eq!(request(&metrics, "POST", "/metrics").0, 405);
    let (status, body) = request(&metrics, "HEAD", "/metrics");
    assert_eq!((status, body.as_str()), (200, ""));
}

#[test]
fn a_connection_that_sends_nothing_keeps_no_other_one_waiting() {
    let (_server, metrics) = server();
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(&metrics).expect("room")).collect();
    assert_eq!(get(&metrics, "/healthz").0, 200);
    drop(silent);
}

#[test]
fn a_port_for_metrics_that_is_taken_is_an_error_that_names_the_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let serve = |listen: &str| {
        run(&["serve", "--listen", listen, "--store", "memory:", "--metrics", &address])
    };
    let output = serve("127.0.0.1:0");
    assert!(code(&output) == 71 && stderr(&output).contains("--metrics"), "{}", stderr(&output));
    drop(taken);
    let output = serve(&address);
    assert!(code(&output) == 64 && stderr(&output).contains("--metrics"), "{}", stderr(&output));
}

/// The names of metrics that a text mentions.
fn mentioned(text: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c));
    words.filter(|word| word.starts_with("lockservice_")).collect()
}

#[test]
fn the_dashboard_and_the_alerts_name_only_metrics_that_exist() {
    let (_server, metrics) = server();
    let scraped = Scraped::of(&metrics);
    let names = scraped.names();
    let files =
        [include_str!("../dashboards/grafana.json"), include_str!("../dashboards/alerts.yml")];
    let dashboard: Value = serde_json::from_str(files[0]).expect("JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() >= 8));
    for text in files {
        let mentioned = mentioned(text);
        assert!(mentioned.len() >= 8, "{mentioned:?}");
        for name in mentioned {
            assert!(names.contains(name), "{name} is not one of {names:?}");
        }
    }
}
