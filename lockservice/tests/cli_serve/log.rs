//! The log of a server.

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_support::{
    Running, Server, code, full_pipe, lockservice, run, stderr, wait_for_end_of,
};

#[test]
fn a_server_whose_stderr_has_no_reader_starts_serves_and_stops() {
    let (mut reader, writer) = full_pipe();
    // In this mode a note comes before it is ready, and then very many lines.
    let mut command = lockservice(&["serve", "--listen", "127.0.0.1:0", "--store", "memory:"]);
    command.env("RUST_LOG", "trace");
    let mut server = Running::start_with_stderr(&mut command, writer);
    let ready = server.line();
    let address = ready
        .split_whitespace()
        .find_map(|word| word.strip_suffix(',').filter(|word| word.contains(':')));
    let address = address.unwrap_or_else(|| panic!("{ready}"));
    let keys: Vec<String> = (0..1_000).map(|key| key.to_string()).collect();
    let mut args = vec!["lock", "t", "--server", address];
    args.extend(keys.iter().map(String::as_str));
    args.extend(["--", "true"]);
    for _ in 0..10 {
        let output = run(&args);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
    server.signal(Signal::TERM);
    wait_for_end_of(server.pid());
    drop(command);
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut text).unwrap();
    assert!(text.iter().all(|byte| *byte == b'\n'), "it was full all the time");
    assert!(server.wait().0.success(), "everything was given back");
}

#[test]
fn a_wrong_log_filter_is_said_and_log_lines_are_json_if_all_is() {
    let mut command =
        lockservice(&["serve", "--json", "--listen", "127.0.0.1:0", "--store", "memory:"]);
    let mut server = Running::start(command.env("RUST_LOG", "lockservice=loud"));
    server.line();
    server.signal(Signal::TERM);
    let (status, text) = server.wait();
    assert!(status.success() && text.contains("RUST_LOG is wrong"), "{text}");

    let mut server = Running::start(command.env("RUST_LOG", "debug"));
    server.line();
    server.signal(Signal::TERM);
    let (status, text) = server.wait();
    assert!(status.success() && text.lines().count() > 0, "{text}");
    for line in text.lines() {
        let object: Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("one object: {line}"));
        assert!(object.is_object());
    }
}

/// The next line of the log whose message holds `said`.
fn logged(server: &Server, said: &str) -> Value {
    loop {
        let line = server.running.error_line();
        let object: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("JSON: {line}"));
        if object["message"].as_str().is_some_and(|message| message.contains(said)) {
            return object;
        }
    }
}

#[test]
fn a_wait_that_is_slow_is_logged_with_its_holder_and_once_more_when_it_is_over() {
    let server = Server::start_with(&["--slow-wait", "100ms"]);
    let (holder, _) = server.hold(&["jobs", "nightly"]);
    let waiter = server.lock(&["jobs", "nightly"], "true");
    let slow = logged(&server, "waits for long");
    assert_eq!(
        (&slow["level"], &slow["target"]),
        (&"WARN".into(), &"lockservice::slow_wait".into())
    );
    let is_of = |client: &Value, of: &Running| {
        client.as_str().unwrap().ends_with(&format!(":{}", of.child.id()))
    };
    assert!(is_of(&slow["client"], &waiter), "{slow}");
    assert!(is_of(&slow["holder_client"], &holder), "{slow}");
    assert_eq!((&slow["item"], &slow["granted"]), (&"nightly".into(), &true.into()));
    assert!(slow["table"].as_str().unwrap().contains("jobs"), "{slow}");
    holder.signal(Signal::TERM);
    holder.wait();
    let over = logged(&server, "is over");
    assert_eq!((&over["txn"], &over["outcome"]), (&slow["txn"], &"granted".into()));
    assert!(waiter.wait().0.success());
    // A call that does not wait says nothing.
    assert_eq!(code(&server.run(&["lock", "jobs", "nightly", "--", "true"])), 0);
    server.running.signal(Signal::TERM);
    let (status, rest) = server.running.wait();
    assert!(status.success() && !rest.contains("slow_wait"), "{rest}");
}

#[test]
fn the_filter_of_the_log_is_read_again_on_sighup_and_a_wrong_one_changes_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let write = |text: &str| std::fs::write(file.path(), text).unwrap();
    write("log = 'warn'\nlog_format = 'json'\n");
    let server = Server::start_with(&["--config", path]);
    write("log = 'lockservice=info'\n");
    server.running.signal(Signal::HUP);
    assert_eq!(logged(&server, "another filter")["log"], "lockservice=info");
    write("log = 'lockservice=loud'\n");
    server.running.signal(Signal::HUP);
    let refused = logged(&server, "cannot be read again");
    assert!(refused["why"].as_str().unwrap().contains("lockservice=loud"), "{refused}");
    write("log = 'lockservice=debug'\n");
    server.running.signal(Signal::HUP);
    assert_eq!(logged(&server, "another filter")["log"], "lockservice=debug");
    server.running.signal(Signal::TERM);
    assert!(server.running.wait().0.success());
}

#[test]
fn the_format_of_the_log_is_chosen_apart_from_that_of_the_output() {
    let args = ["serve", "--listen", "127.0.0.1:0", "--store", "memory:", "--log", "info"];
    let mut server =
        Running::start(&mut lockservice(&[&args[..], &["--log-format", "json"]].concat()));
    assert!(server.line().starts_with("lockservice is ready"));
    server.signal(Signal::TERM);
    let (_, text) = server.wait();
    let started = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    assert!(started.into_iter().any(|line| line["message"] == "service started"), "{text}");

    let refused = run(&[&args[..6], &["loud=loud"]].concat());
    assert_eq!(code(&refused), 78, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("loud=loud"), "{}", stderr(&refused));
}
