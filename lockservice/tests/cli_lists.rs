//! `locks`, `waits`, `sessions` and `txns` as operators meet them.

mod cli_support;

use cli_support::{Running, Server, code, json_lines, lockservice, stderr};
use serde_json::Value;

/// The lines of a list, as objects.
fn list(server: &Server, args: &[&str]) -> Vec<Value> {
    let output = server.run(&[args, &["--json"]].concat());
    assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
    json_lines(&output)
}

/// A list for people.
fn text(server: &Server, args: &[&str]) -> String {
    let output = server.run(args);
    assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Asserts that the fields of a line name the process, its address, and what is left of its guard.
fn is_of(line: &Value, prefix: &str, process: &Running) {
    let field = |name: &str| &line[format!("{prefix}{name}")];
    let client = field("client").as_str().expect("a client");
    let (name, pid) = client.rsplit_once(':').expect("its process");
    assert!(name.starts_with("lock@") && pid == process.child.id().to_string(), "{line}");
    assert!(field("address").as_str().expect("an address").starts_with("127.0.0.1:"), "{line}");
    assert!(field("session").as_str().expect("a session").starts_with('s'), "{line}");
    let left = field("left_ms").as_u64().expect("what is left");
    assert!((1..=10_200).contains(&left), "hi of the TTL at most: {line}");
}

#[test]
fn a_line_says_who_holds_and_waits_from_where_since_when_and_for_how_long_the_guard_is() {
    let server = Server::start();
    let (holder, _) = server.hold(&["jobs", "nightly"]);
    let waiter = server.lock(&["jobs", "nightly"], "true");
    let wait = &server.waits(1)[0];
    is_of(wait, "waiter_", &waiter);
    is_of(wait, "holder_", &holder);
    assert!(wait["holder_held_ms"].is_u64() && wait["waiter_held_ms"].is_null(), "{wait}");
    assert_eq!(wait["held"]["key"], "nightly");
    let lock = &list(&server, &["locks"])[0];
    is_of(lock, "", &holder);
    assert!(lock["held_ms"].is_u64() && lock["waiting_ms"].is_null(), "{lock}");
    assert_eq!(lock["session"], wait["holder_session"]);
    let sessions = list(&server, &["sessions"]);
    let found = sessions.iter().find(|session| session["session"] == lock["session"]);
    assert_eq!(found.expect("the session")["address"], lock["address"]);
    // What is usual has no column.
    let shown = text(&server, &["locks"]);
    let header = shown.lines().next().expect("a header");
    for column in ["TABLE", "KEY", "CLIENT", "ADDRESS", "SESSION", "HELD", "LEFT"] {
        assert!(header.contains(column), "{column}: {shown}");
    }
    for column in ["GROUP", "NODE", "STATE", "WAITING", "_"] {
        assert!(!header.contains(column), "{column}: {shown}");
    }
}

#[test]
fn the_list_of_a_key_has_what_overlaps_it_and_then_who_waits_in_their_order() {
    let server = Server::start();
    let (_other, _) = server.hold(&["jobs", "weekly"]);
    let (_elsewhere, _) = server.hold(&["others", "nightly"]);
    let (row, _) = server.hold(&["jobs", "nightly", "--shared"]);
    let (range, _) = server.hold(&["jobs", "--range", "a", "p", "--shared"]);
    let first = server.lock(&["jobs", "nightly"], "true");
    let waits = server.waits(2);
    assert!(waits.iter().all(|wait| wait["waiter"] == waits[0]["waiter"]), "of both: {waits:?}");
    let second = server.lock(&["jobs", "--range", "n", "o"], "true");
    // For the row, for the range, and behind the first.
    server.waits(5);
    let lines = list(&server, &["locks", "jobs", "nightly"]);
    let shown: Vec<_> = lines.iter().map(|line| (&line["state"], &line["key"])).collect();
    let expected =
        [("holds", "nightly"), ("holds", "[a, p]"), ("waits", "nightly"), ("waits", "[n, o]")];
    assert_eq!(
        shown,
        expected
            .map(|(state, key)| (state.into(), key.into()))
            .iter()
            .map(|(state, key): &(Value, Value)| (state, key))
            .collect::<Vec<_>>()
    );
    for (line, process) in lines.iter().zip([&row, &range, &first, &second]) {
        is_of(line, "", process);
        assert_eq!(line["waiting_ms"].is_u64(), line["state"] == "waits", "{line}");
    }
    let shown = text(&server, &["locks", "jobs", "--key=nightly"]);
    assert_eq!(shown.lines().count(), 5, "{shown}");
    assert!(shown.lines().next().expect("a header").contains("STATE"), "{shown}");

    for args in [&["locks", "jobs", "z"][..], &["locks", "unknown", "k"]] {
        let output = server.run(args);
        assert_eq!((code(&output), output.stdout.len()), (0, 0), "{args:?}");
        assert!(stderr(&output).contains("nothing holds or waits for "), "{}", stderr(&output));
        assert!(list(&server, args).is_empty());
    }
}

#[test]
fn a_key_that_is_none_is_refused_before_anything_is_listed() {
    let server = Server::start();
    let long = "k".repeat(5_000);
    for (args, said) in [
        (&["locks", "jobs", ""][..], "key"),
        (&["locks", "jobs", &long], "key"),
        (&["locks", "--key=k"], "<TABLE>"),
        (&["locks", "jobs", "k", "--key=l"], "cannot be used with"),
        (&["waits", "jobs", "k"], "unexpected argument"),
    ] {
        let output = server.run(args);
        assert_eq!((code(&output), output.stdout.len()), (64, 0), "{args:?}");
        assert!(stderr(&output).contains(said), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn the_tree_of_waits_shows_who_blocks_whom() {
    let server = Server::start();
    let (root, _) = server.hold(&["t", "a"]);
    let (_beside, _) = server.hold(&["t", "x"]);
    // It holds `b`, and its command waits for `a` within.
    let within = "exec \"$0\" lock t a -- true";
    let program = env!("CARGO_BIN_EXE_lockservice");
    let args = ["lock", "t", "b", "--", "sh", "-c", within, program];
    let _middle = Running::start(&mut server.command(&args));
    server.waits(1);
    let last = server.lock(&["t", "a"], "true");
    server.waits(3);
    let tree = list(&server, &["waits", "--tree"]);
    let lines: Vec<_> = tree.iter().map(|line| (&line["depth"], &line["state"])).collect();
    assert_eq!(lines.len(), 3, "the queue is not repeated: {tree:?}");
    assert_eq!(lines[0], (&0.into(), &"holds".into()));
    assert_eq!((lines[1], lines[2]), ((&1.into(), &"waits".into()), (&1.into(), &"waits".into())));
    is_of(&tree[0], "", &root);
    is_of(&tree[2], "", &last);
    for line in &tree[1..] {
        assert_eq!((&line["waits_for"], &line["key"]), (&tree[0]["txn"], &"a".into()), "{line}");
        assert_eq!((&line["reference"], &line["cycle"]), (&false.into(), &false.into()), "{line}");
    }
    let shown = text(&server, &["waits", "--tree"]);
    let indents: Vec<_> =
        shown.lines().skip(1).map(|line| line.len() - line.trim_start().len()).collect();
    assert_eq!(indents, [0, 2, 2], "{shown}");
    assert_eq!(text(&server, &["waits", "others", "--tree", "--json"]), "");
}

#[test]
fn a_list_of_one_node_is_of_the_one_that_is_named_and_another_name_lists_the_known_ones() {
    let server = Server::start_with(&["--node", "n1"]);
    let (_holder, _) = server.hold(&["t", "k"]);
    for command in ["locks", "waits", "sessions", "txns"] {
        let lines = list(&server, &[command, "--node", "n1"]);
        assert!(lines.iter().all(|line| line["node"] == "n1"), "{lines:?}");
        let output = server.run(&[command, "--node", "n2"]);
        assert_eq!((code(&output), output.stdout.len()), (64, 0), "{command}");
        let said = stderr(&output);
        assert!(said.contains("no node n2 has a lease: the nodes are n1"), "{said}");
    }
    let nobody = lockservice(&["locks", "--server", "127.0.0.1:1"]).output().expect("it starts");
    assert_eq!(code(&nobody), 69, "{}", stderr(&nobody));
}
