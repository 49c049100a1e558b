//! `lockservice sessions`, `txns`, `session kill`, `txn kill`, `lock force-release` and limits of
//! tables as operators meet them.

mod cli_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

/// The transaction of a command that holds a lock.
fn txn_of(server: &Server, holder: &Running) -> String {
    let session = session_of(server, holder);
    let txns = json_lines(&server.run(&["txns", "--json"]));
    let its = txns.iter().find(|txn| txn["session"] == session["session"]).expect("it has one");
    its["txn"].as_str().expect("an id").to_owned()
}

fn kill_txn(server: &Server, txn: &str, more: &[&str]) -> Output {
    let args = [&["txn", "kill", txn, "--reason", REASON], more].concat();
    server.run(&args)
}

/// A command under the lock that takes its time to stop, and writes down when it has. Then the
/// next one, which waits for the lock.
fn journaled(server: &Server) -> (Running, Running, PathBuf) {
    let journal = server.folder.path().join("journal");
    let script = format!(
        "trap 'sleep 0.3; echo out >> {0}; exit' TERM; echo in >> {0}; echo ready; \
         while :; do sleep 0.05; done",
        journal.display()
    );
    let mut holder = server.lock(&["jobs", "nightly", "--stop-time", "1s"], &script);
    assert_eq!(holder.line(), "ready");
    let next = server.lock(&["jobs", "nightly"], &format!("echo next >> {}", journal.display()));
    server.waits(1);
    (holder, next, journal)
}

/// The holder was ended with the reason `said`, and the next one has run only after that.
fn ended_in_order(holder: Running, next: Running, journal: &Path, said: &str) {
    let (status, why) = holder.wait();
    assert_eq!(status.code(), Some(70), "{why}");
    assert!(why.contains("the lock was taken away") && why.contains(said), "{why}");
    assert!(next.wait().0.success());
    assert_eq!(std::fs::read_to_string(journal).expect("written"), "in\nout\nnext\n");
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
    let (holder, next, journal) = journaled(&server);
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

#[test]
fn the_command_of_a_killed_transaction_has_ended_before_the_next_one_starts_and_it_is_audited() {
    let server = Server::start();
    let (holder, next, journal) = journaled(&server);
    let txn = txn_of(&server, &holder);
    let output = kill_txn(&server, &txn, &[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("killed: {txn} of lock@")), "{said}");
    assert!(said.contains("waiting up to ") && said.contains(" s for the client"), "{said}");
    assert!(said.contains("the client confirmed that its work has stopped"), "{said}");
    ended_in_order(holder, next, &journal, REASON);
    let events = audited(&server, "done: confirmed");
    assert_eq!(events.len(), 2, "{events:?}");
    for event in &events {
        assert_eq!((&event["act"], &event["subject"]), (&"kill_txn".into(), &txn.clone().into()));
        assert_eq!((&event["reason"], &event["now"]), (&REASON.into(), &false.into()));
        assert!(event["address"].as_str().expect("text").starts_with("127.0.0.1:"), "{event}");
    }
    let gone = kill_txn(&server, &txn, &["--json"]);
    assert_eq!(code(&gone), 64);
    assert!(stderr(&gone).contains("txn_not_found"), "{}", stderr(&gone));
    assert_eq!(audited(&server, "refused").len(), 1);
    for args in [&["1-2"][..], &["s1-2", "--reason", "x"], &["1-2", "--reason", ""]] {
        let output = server.run(&[&["txn", "kill"], args].concat());
        assert_eq!(code(&output), 64, "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn the_commands_that_hold_a_key_have_ended_before_the_next_one_starts() {
    let server = Server::start();
    let (holder, next, journal) = journaled(&server);
    let (other, _) = server.hold(&["jobs", "other"]);
    let force = ["lock", "force-release", "jobs", "nightly", "--reason", REASON, "--json"];
    let output = server.run(&force);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let lines = json_lines(&output);
    let states: Vec<_> = lines.iter().map(|line| &line["state"]).collect();
    assert_eq!(states, ["killed", "over"], "{lines:?}");
    assert_eq!((&lines[1]["end"], &lines[0]["txn"]), (&"confirmed".into(), &lines[1]["txn"]));
    ended_in_order(holder, next, &journal, REASON);
    let events = audited(&server, "done: confirmed");
    assert!(events.iter().all(|event| event["act"] == "force_release"), "{events:?}");
    assert!(events[0]["subject"].as_str().expect("text").contains("nightly"), "{events:?}");
    // Nothing holds it now, and another key was left alone.
    let output = server.run(&force[..6]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("nothing holds nightly of "));
    let missing = server.run(&["lock", "force-release", "nothing", "k", "--reason", "x"]);
    assert_eq!(code(&missing), 64, "{}", stderr(&missing));
    assert!(stderr(&missing).contains("no such table"), "{}", stderr(&missing));
    assert_eq!(code(&server.run(&["lock", "jobs", "other", "--no-wait", "--", "true"])), 75);
    // A table of that name is a table.
    let table = server.run(&["lock", "force-release", "k", "--", "true"]);
    assert_eq!(code(&table), 0, "{}", stderr(&table));
    drop(other);
}

#[test]
fn a_kill_of_a_transaction_that_does_not_wait_says_what_that_can_break() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    // Neither it nor its supervisor can act.
    let supervisor = holder.supervisor();
    let txn = txn_of(&server, &holder);
    holder.signal(Signal::STOP);
    rustix::process::kill_process(supervisor, Signal::STOP).expect("it runs");
    let output = kill_txn(&server, &txn, &["--now"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).starts_with("warning: the locks were not kept"), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!said.contains("waiting up to") && said.contains("was not waited for"), "{said}");
    assert_eq!(code(&server.run(&["lock", "t", "k", "--no-wait", "--", "true"])), 0);
    assert_eq!(audited(&server, "done: forced")[0]["now"], true);
    rustix::process::kill_process(supervisor, Signal::CONT).expect("it is stopped");
    holder.signal(Signal::CONT);
    assert_eq!(holder.wait().0.code(), Some(70));
}

#[test]
fn a_client_that_cannot_act_keeps_the_locks_of_a_killed_transaction_for_its_time() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k", "--ttl", "2s"]);
    let (supervisor, txn) = (holder.supervisor(), txn_of(&server, &holder));
    holder.signal(Signal::STOP);
    rustix::process::kill_process(supervisor, Signal::STOP).expect("it runs");
    let mut next = server.lock(&["t", "k"], "echo mine");
    server.waits(1);
    let before = now();
    let output = kill_txn(&server, &txn, &["--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let lines = json_lines(&output);
    assert_eq!((&lines[0]["state"], &lines[1]["end"]), (&"killed".into(), &"lapsed".into()));
    let kept = lines[0]["kept_ms"].as_u64().expect("a number");
    assert!((1..=2_120).contains(&kept), "hi of what was left: {kept}");
    let took = now().since(before).as_millis() as u64;
    assert!(took + 100 >= kept, "{took} of {kept} ms");
    assert_eq!(next.line(), "mine");
    rustix::process::kill_process(supervisor, Signal::KILL).expect("it is stopped");
}

#[test]
fn a_waiter_whose_transaction_is_killed_learns_why() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    let waiter = server.lock(&["t", "k"], "true");
    server.waits(1);
    let output = kill_txn(&server, &txn_of(&server, &waiter), &[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let (status, why) = waiter.wait();
    assert_eq!(status.code(), Some(70), "{why}");
    assert!(why.contains(REASON), "it does not come back by itself: {why}");
    server.waits(0);
}

#[test]
fn limits_of_tables_end_waits_and_holds_with_the_reason_and_follow_their_file() {
    let config = tempfile::NamedTempFile::new().expect("a file");
    let limits = "[[limit]]\nprefix = 'jobs'\nlongest-hold = '4s'\n\
        [[limit]]\nprefix = 'short'\nlongest-wait = '100ms'\n";
    std::fs::write(config.path(), limits).expect("written");
    let path = config.path().to_str().expect("text").to_owned();
    let server = Server::start_with(&["--config", &path]);
    let (_short, _) = server.hold(&["short", "k"]);
    let refused = server.run(&["lock", "short", "k", "--timeout", "60s", "--", "true"]);
    assert_eq!(code(&refused), 75, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("longest-wait for the prefix \"short\""), "{refused:?}");
    let (holder, next, journal) = journaled(&server);
    ended_in_order(holder, next, &journal, "longest-hold for the prefix \"jobs\"");
    let events = audited(&server, "done: confirmed");
    assert_eq!(events.len(), 2, "{events:?}");
    for event in events {
        assert_eq!(event["act"], "longest_hold", "{event}");
        assert!(event["reason"].as_str().expect("text").contains("jobs"), "{event}");
    }
    // What is held when a limit is set is limited too.
    let (idle, _) = server.hold(&["idle", "k"]);
    let limits = format!("{limits}[[limit]]\nprefix = 'idle'\nlongest-idle-hold = '200ms'\n");
    std::fs::write(config.path(), limits).expect("written");
    server.running.signal(Signal::HUP);
    let (status, why) = idle.wait();
    assert_eq!(status.code(), Some(70), "{why}");
    assert!(why.contains("longest-idle-hold"), "{why}");
    assert_eq!(audited(&server, "done: confirmed")[0]["act"], "longest_idle_hold");
}

#[test]
fn limits_that_make_no_sense_keep_a_server_from_its_start() {
    let config = tempfile::NamedTempFile::new().expect("a file");
    for (text, said) in [
        ("longest-hold = 'soon'", "longest-hold"),
        ("prefix = 'a'", "limits nothing"),
        ("longest-holds = '1s'", "longest-holds"),
    ] {
        std::fs::write(config.path(), format!("[[limit]]\n{text}\n")).expect("written");
        let path = config.path().to_str().expect("text");
        let output = cli_support::run(&["serve", "--store", "memory:", "--config", path]);
        assert_eq!(code(&output), 78, "{text}");
        assert!(stderr(&output).contains(said), "{text}: {}", stderr(&output));
    }
}
