//! The command ends with its lock, even if the processes that watch it fail.

use std::time::Duration;

use rustix::process::Signal;

use crate::cli_support::{Server, now, wait_for_end_of};

#[test]
fn after_sigkill_the_command_ends_and_the_next_comes_in_after_the_ttl_and_not_before() {
    let server = Server::start();
    let (mut holder, command) = server.hold(&["t", "k", "--ttl", "1s"]);
    let mut next = server.lock(&["t", "k"], "echo in");
    server.waits(1);
    let killed = now();
    holder.signal(Signal::KILL);
    wait_for_end_of(command);
    holder.end_of_output();
    assert!(now().since(killed) < Duration::from_millis(500), "the command ends at once");
    assert_eq!(next.line(), "in");
    // The last renewal was at most a third of the TTL before the kill.
    let waited = now().since(killed);
    assert!(waited > Duration::from_millis(600) && waited < Duration::from_secs(5), "{waited:?}");
    assert!(next.wait().0.success());
}

#[test]
fn a_killed_wrapper_takes_all_that_the_command_started_with_it() {
    let server = Server::start();
    let mut holder = server.lock(&["t", "k", "--ttl", "1s"], "sleep 1000 & echo $!; wait");
    let child = holder.process();
    holder.signal(Signal::KILL);
    wait_for_end_of(child);
    holder.end_of_output();
}

#[test]
fn a_stopped_wrapper_does_not_leave_its_command_running() {
    let server = Server::start();
    let (holder, command) = server.hold(&["t", "k", "--ttl", "1s"]);
    let mut next = server.lock(&["t", "k"], "echo in");
    server.waits(1);
    let stopped = now();
    holder.signal(Signal::STOP);
    wait_for_end_of(command);
    // P2: lo(1 s) after the last renewal at the latest.
    assert!(now().since(stopped) < Duration::from_millis(950), "{:?}", now().since(stopped));
    assert_eq!(next.line(), "in");
    holder.signal(Signal::CONT);
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(70), "{text}");
}

#[test]
fn a_killed_or_stopped_supervisor_does_not_leave_its_command_running() {
    for signal in [Signal::KILL, Signal::STOP] {
        let server = Server::start();
        let (holder, command) = server.hold(&["t", "k", "--ttl", "1s"]);
        rustix::process::kill_process(holder.supervisor(), signal).unwrap();
        if signal == Signal::STOP {
            // Nobody renews any more, and the supervisor counts nothing: the wrapper does.
            server.running.signal(Signal::STOP);
        }
        wait_for_end_of(command);
        server.running.signal(Signal::CONT);
        let (status, text) = holder.wait();
        assert_ne!(status.code(), Some(0));
        assert!(text.starts_with("error: "), "{text}");
    }
}

#[test]
fn what_the_command_leaves_is_ended_before_the_lock_is_released() {
    let server = Server::start();
    let mut holder = server.lock(
        &["t", "k", "--stop-time", "100ms"],
        "trap '' TERM; sleep 1000 > /dev/null 2>&1 & echo $!",
    );
    let left = holder.process();
    assert_eq!(holder.wait().0.code(), Some(0));
    assert!(rustix::process::test_kill_process(left).is_err(), "it is gone");
}

#[test]
fn processes_that_the_command_leaves_are_signalled_to_end_before_they_are_killed() {
    let server = Server::start();
    let ready = server.folder.path().join("ready");
    let script = format!(
        "{{ trap 'echo told; exit' TERM; : >'{ready}'; while :; do sleep 0.05; done; }} &
        until [ -e '{ready}' ]; do sleep 0.05; done",
        ready = ready.display()
    );
    let mut holder = server.lock(&["t", "k", "--stop-time", "1s"], &script);
    assert_eq!(holder.end_of_output(), ["told"]);
    assert_eq!(holder.wait().0.code(), Some(0));
}
