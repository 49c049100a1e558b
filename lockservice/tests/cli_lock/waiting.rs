//! A waiter: its messages, and its end.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use rustix::process::Signal;

use crate::cli_support::{Running, Server, now};

#[test]
fn ctrl_c_of_a_waiter_exits_at_once_and_leaves_the_queue() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    let waiter = server.lock(&["t", "k"], "echo never");
    server.waits(1);
    let began = now();
    waiter.signal(Signal::INT);
    assert_eq!(
        waiter.wait().0.signal(),
        Some(2),
        "it dies of it, so that a script around it ends too"
    );
    assert!(now().since(began) < Duration::from_secs(2));
    server.waits(0);
    // And of the holder: the next comes in at once, not after the TTL.
    let mut next = server.lock(&["t", "k"], "echo in");
    server.waits(1);
    let began = now();
    holder.signal(Signal::INT);
    assert_eq!(next.line(), "in");
    assert!(now().since(began) < Duration::from_secs(2));
    assert_eq!(holder.wait().0.signal(), Some(2));
}

#[test]
fn a_waiter_says_whom_it_waits_for_and_again_when_that_changes_unless_it_is_quiet() {
    let server = Server::start();
    let (first, _) = server.hold(&["t", "k"]);
    let next = server.lock(&["t", "k", "--quiet"], "echo in; exec sleep 1000");
    server.waits(1);
    let waiter = Running::start(&mut server.command(&["lock", "t", "k", "--", "true"]));
    let said = waiter.error_line();
    let client = |running: &Running| format!(":{} (transaction", running.child.id());
    assert!(said.starts_with("lockservice: waiting for k of default/t, held by lock@"), "{said}");
    assert!(said.contains(&client(&first)), "{said}");
    first.signal(Signal::TERM);
    let said = waiter.error_line();
    assert!(said.contains(&client(&next)), "{said}");
    next.signal(Signal::TERM);
    assert!(waiter.wait().0.success());
    let (_, text) = next.wait();
    assert!(!text.contains("waiting for"), "{text}");
    first.wait();

    let (_holder, _) = server.hold(&["t", "k"]);
    let waiter = Running::start(&mut server.command(&["lock", "t", "k", "--json", "--", "true"]));
    let object: serde_json::Value = serde_json::from_str(&waiter.error_line()).unwrap();
    assert_eq!(
        (object["event"].as_str(), object["key"].as_str()),
        (Some("waiting_for"), Some("k")),
        "{object}"
    );
    assert_eq!(object["holder"]["state"].as_str(), Some("holds"), "{object}");
}

#[test]
fn a_waiter_for_a_table_whose_owner_was_killed_says_that_it_waits_for_the_last_owner() {
    // Long enough to wait until it is said, after a second.
    let server = Server::start_with(&["--lease-ttl", "3s"]);
    assert!(server.run(&["lock", "t", "k", "--", "true"]).status.success());
    let server = server.crash_and_restart();
    let waiter = Running::start(&mut server.command(&["lock", "t", "k", "--", "true"]));
    let said = waiter.error_line();
    // There is no transaction that could be looked for.
    assert!(said.contains("had it last") && !said.contains("transaction"), "{said}");
    assert!(waiter.wait().0.success());
}
