//! The server stops, crashes, or does not respond.

use std::time::Duration;

use rustix::process::Signal;

use crate::cli_support::{Server, code, now, stderr, wait_for_end_of};

#[test]
fn when_the_server_stops_for_good_a_holder_exits_with_70_and_a_waiter_with_69_in_the_end() {
    let server = Server::start_with(&["--drain-stop"]);
    let (holder, command) = server.hold(&["t", "k"]);
    let waiter = server.lock(&["t", "k", "--quiet", "--timeout", "5s"], "echo never");
    server.waits(1);
    server.running.signal(Signal::TERM);
    // The server might have come back.
    let (status, text) = waiter.wait();
    assert_eq!(status.code(), Some(69), "{text}");
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    wait_for_end_of(command);
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(70), "{text}");
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    let Server { running, .. } = server;
    assert!(running.wait().0.success(), "everything was given back");
}

#[test]
fn after_a_crash_of_the_server_the_old_command_has_ended_before_the_next_one_runs() {
    // The next one waits for as long as the lease.
    let server = Server::start_with(&["--lease-ttl", "2s"]);
    let token = |line: String| line.parse::<u64>().unwrap();
    let mut holder = server.lock(&["t", "k"], "echo $LOCKSERVICE_TOKEN; echo $$; exec sleep 1000");
    let before = token(holder.line());
    let command = holder.process();
    let server = server.crash_and_restart();
    // B3: it waits for as long as the crashed server's promises may last.
    let mut next = server.lock(&["t", "k", "--timeout", "30s"], "echo $LOCKSERVICE_TOKEN");
    let after = token(next.line());
    assert!(
        rustix::process::test_kill_process(command).is_err(),
        "the old command runs beside the new one"
    );
    assert!(after > before);
    assert!(next.wait().0.success());
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(70), "{text}");
}

#[test]
fn after_a_clean_stop_there_is_no_wait() {
    let server = Server::start();
    assert_eq!(code(&server.run(&["lock", "t", "k", "--", "true"])), 0);
    let server = server.stop_and_restart();
    let started = now();
    assert_eq!(code(&server.run(&["lock", "t", "k", "--", "true"])), 0);
    assert!(now().since(started) < Duration::from_secs(3));
}

#[test]
fn a_time_out_bounds_the_way_to_a_server_that_does_not_respond_too() {
    let server = Server::start();
    server.running.signal(Signal::STOP);
    let output = server.run(&["lock", "t", "k", "--timeout", "300ms", "--", "true"]);
    let text = stderr(&output);
    // Whichever is first of the call's time-out and the deadline; not the connection's own end,
    // seconds later.
    let in_time = ["no server responded within the time-out", "the server did not respond in time"];
    assert!(in_time.iter().any(|in_time| text.contains(in_time)), "{text}");
    assert_eq!(code(&output), 69);
    server.running.signal(Signal::CONT);
    assert_eq!(code(&server.run(&["lock", "t", "k", "--timeout", "60s", "--", "true"])), 0);
}
