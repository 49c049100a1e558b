//! `lockservice sessions`, `txns` and `session kill` as operators meet them.

mod cli_support;

use std::process::Command;

use cli_support::{Running, Server, code, json_lines, lockservice, now, stderr};
use rustix::process::Signal;
use serde_json::Value;

const REASON: &str = "it blocks the nightly run";

/// The lines of `sessions` whose client is this process, once there is one.
fn session_of(server: &Server, client: &Running) -> Value {
    let give_up = now() + cli_support::DEADLINE;
    let end = format!(":{}", client.child.id());
    loop {
        let sessions = json_lines(&server.run(&["sessions", "--json"]));
        let is_its = |line: &Value| line["client"].as_str().is_some_and(|it| it.ends_with(&end));
        if let Some(line) = sessions.iter().find(|line| is_its(line)) {
            return line.clone();
        }
        assert!(now() < give_up, "it has no session: {sessions:?}");
    }
}

fn kill(server: &Server, session: &Value, more: &[&str]) -> Command {
    let handle = session["session"].as_str().expect("a handle");
    server.command(&[&["session", "kill", handle, "--reason", REASON], more].concat())
}

/// The audit events that the server has written, up to one with this outcome.
fn audited(server: &Server, outcome: &str) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        let line = server.running.error_line();
        let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
        if event["target"] != "lockservice::audit" {
            continue;
        }
        let is_last = event["outcome"].as_str().expect("text").starts_with(outcome);
        events.push(event);
        if is_last {
            return events;
        }
    }
}

#[test]
fn the_command_of_a_killed_session_has_ended_before_the_next_one_starts_and_it_is_audited() {
    let server = Server::start();
    let journal = server.folder.path().join("journal");
    // It takes its time to stop, and writes down when it has.
    let script = format!(
        "trap 'sleep 0.3; echo out >> {0}; exit' TERM; echo in >> {0}; echo ready; \
         while :; do sleep 0.05; done",
        journal.display()
    );
    let mut holder = server.lock(&["jobs", "nightly", "--stop-time", "1s"], &script);
    assert_eq!(holder.line(), "ready");
    let next = server.lock(&["jobs", "nightly"], &format!("echo next >> {}", journal.display()));
    server.waits(1);
    let session = session_of(&server, &holder);
    assert_eq!((&session["txns"], &session["state"]), (&1.into(), &"open".into()), "{session}");
    assert!(session["address"].as_str().expect("text").starts_with("127.0.0.1:"), "{session}");
    let waiting = session_of(&server, &next);
    assert_eq!(waiting["waiting"], 1, "{waiting}");
    let txns = json_lines(&server.run(&["txns", "--json"]));
    let seen: Vec<_> =
        txns.iter().map(|txn| (&txn["session"], &txn["locks"], &txn["state"])).collect();
    assert_eq!(
        seen,
        [
            (&session["session"], &1.into(), &"runs".into()),
            (&waiting["session"], &0.into(), &"waits".into())
        ]
    );

    let output = kill(&server, &session, &[]).output().expect("it starts");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("1 transaction; waiting up to ") && said.contains(" s for the client"));
    assert!(said.contains("the client confirmed that its work has stopped"), "{said}");
    let (status, why) = holder.wait();
    assert_eq!(status.code(), Some(70), "{why}");
    assert!(why.contains("an operator ended the session") && why.contains(REASON), "{why}");
    assert!(next.wait().0.success());
    assert_eq!(std::fs::read_to_string(&journal).expect("written"), "in\nout\nnext\n");

    let events = audited(&server, "done: confirmed");
    assert_eq!(events.len(), 2, "{events:?}");
    for event in &events {
        assert_eq!((&event["level"], &event["act"]), (&"INFO".into(), &"kill_session".into()));
        assert_eq!((&event["reason"], &event["now"]), (&REASON.into(), &false.into()));
        assert!(event["address"].as_str().expect("text").starts_with("127.0.0.1:"), "{event}");
        assert_eq!(event["subject"], session["session"]);
    }
}

#[test]
fn a_client_that_cannot_confirm_keeps_its_locks_for_its_time_and_not_longer() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k", "--ttl", "2s"]);
    let session = session_of(&server, &holder);
    // Neither it nor its supervisor can act: only time ends its promise.
    let supervisor = holder.supervisor();
    holder.signal(Signal::STOP);
    rustix::process::kill_process(supervisor, Signal::STOP).expect("it runs");
    let mut next = server.lock(&["t", "k"], "echo mine");
    server.waits(1);
    let before = now();
    let output = kill(&server, &session, &["--json"]).output().expect("it starts");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let lines = json_lines(&output);
    assert_eq!((&lines[0]["state"], &lines[0]["txns"]), (&"killed".into(), &1.into()));
    assert_eq!((&lines[1]["state"], &lines[1]["end"]), (&"over".into(), &"lapsed".into()));
    let kept = lines[0]["kept_ms"].as_u64().expect("a number");
    assert!((1..=2_120).contains(&kept), "hi of what was left: {kept}");
    let took = now().since(before).as_millis() as u64;
    assert!(took + 100 >= kept, "{took} of {kept} ms");
    assert_eq!(next.line(), "mine");
    rustix::process::kill_process(supervisor, Signal::KILL).expect("it is stopped");
}

#[test]
fn a_kill_that_does_not_wait_says_what_that_can_break() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    let session = session_of(&server, &holder);
    let output = kill(&server, &session, &["--now"]).output().expect("it starts");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).starts_with("warning: the locks were not kept"), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!said.contains("waiting up to") && said.contains("was not waited for"), "{said}");
    assert_eq!(code(&server.run(&["lock", "t", "k", "--no-wait", "--", "true"])), 0);
    assert_eq!(holder.wait().0.code(), Some(70));
}

#[test]
fn an_operator_that_waits_no_longer_leaves_the_kill_standing() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k", "--ttl", "2s"]);
    let session = session_of(&server, &holder);
    let supervisor = holder.supervisor();
    holder.signal(Signal::STOP);
    rustix::process::kill_process(supervisor, Signal::STOP).expect("it runs");
    let mut operator = Running::start(&mut kill(&server, &session, &[]));
    assert!(operator.line().contains("waiting up to"));
    operator.signal(Signal::INT);
    let (status, said) = operator.wait();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("the kill stands"), "{said}");
    let killed = session_of(&server, &holder);
    assert_eq!(killed["state"], "killed");
    assert!(killed["ending"].as_str().expect("text").contains(REASON), "{killed}");
    assert_eq!(code(&server.run(&["lock", "t", "k", "--", "true"])), 0, "it goes on");
    audited(&server, "done: lapsed");
    rustix::process::kill_process(supervisor, Signal::KILL).expect("it is stopped");
}

#[test]
fn a_waiter_whose_session_is_killed_learns_why() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    let waiter = server.lock(&["t", "k"], "true");
    server.waits(1);
    let output = kill(&server, &session_of(&server, &waiter), &[]).output().expect("it starts");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let (status, why) = waiter.wait();
    assert_eq!(status.code(), Some(70), "{why}");
    assert!(why.contains(REASON), "it does not come back by itself: {why}");
    server.waits(0);
}

#[test]
fn what_is_no_session_or_gives_no_reason_is_refused_and_audited() {
    let server = Server::start();
    let gone = server.run(&["session", "kill", "s1-1", "--reason", REASON, "--json"]);
    assert_eq!(code(&gone), 64);
    assert!(stderr(&gone).contains("session_not_found"), "{}", stderr(&gone));
    let event = &audited(&server, "refused")[0];
    assert_eq!(event["subject"], "s1-1", "{event}");
    for args in [&["s1-1"][..], &["100-1", "--reason", "x"], &["s1-1", "--reason", ""]] {
        let output = server.run(&[&["session", "kill"], args].concat());
        assert_eq!(code(&output), 64, "{args:?}: {}", stderr(&output));
    }
    let nobody = lockservice(&["sessions", "--server", "127.0.0.1:1"]).output().expect("starts");
    assert_eq!(code(&nobody), 69, "{}", stderr(&nobody));
}
