//! `lockservice hot` and `top` as operators meet them: as lines, and on a terminal.

mod cli_support;
#[path = "cli_support/terminal.rs"]
mod terminal;

use cli_support::{Server, code, json_lines, run, stderr};
use rustix::process::Signal;
use serde_json::Value;
use terminal::Terminal;

/// The sequences with which a terminal shows its other screen, and its own one again.
const TAKEN: &str = "\x1b[?1049h";
const GIVEN_BACK: &str = "\x1b[?1049l";

/// Has calls wait for `key` so often, one after another, for a moment each.
fn wait_for(server: &Server, key: &str, times: usize) {
    for _ in 0..times {
        let (holder, _) = server.hold(&["t", key]);
        let waiter = server.lock(&["t", key], "true");
        server.waits(1);
        holder.signal(Signal::TERM);
        assert!(waiter.wait().0.success());
        holder.wait();
    }
}

fn hot(server: &Server, args: &[&str]) -> Vec<Value> {
    let output = server.run(&[&["hot", "--json"], args].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    json_lines(&output)
}

#[test]
fn the_keys_that_calls_waited_for_are_listed_with_their_waits_and_no_others() {
    let server = Server::start();
    assert!(hot(&server, &[]).is_empty());
    wait_for(&server, "hot", 2);
    wait_for(&server, "cool", 1);
    assert!(server.run(&["lock", "t", "free", "--", "true"]).status.success());
    let (_holder, _) = server.hold(&["t", "hot"]);
    // One that gives up, and one that waits now.
    let late = server.run(&["lock", "t", "hot", "--timeout", "100ms", "--", "true"]);
    assert_eq!(code(&late), 75, "{}", stderr(&late));
    let _waiter = server.lock(&["t", "hot"], "true");
    server.waits(1);
    let lines = hot(&server, &[]);
    let mut seen: Vec<_> = lines
        .iter()
        .map(|line| (line["key"].as_str().expect("text"), &line["waits"], &line["waiting"]))
        .collect();
    seen.sort_unstable_by_key(|line| line.0);
    assert_eq!(seen, [("cool", &1.into(), &0.into()), ("hot", &3.into(), &1.into())]);
    let line = lines.iter().find(|line| line["key"] == "hot").expect("it is listed");
    let number = |name: &str| line[name].as_f64().expect("a number");
    assert!(number("longest_ms") > 0.0, "{line}");
    assert!(number("waited_ms") > number("longest_ms"), "it is one of three: {line}");
    assert_eq!((number("missed_ms"), &line["table"]), (0.0, &"t".into()));
    assert_eq!((&line["minute"]["waits"], &line["ten_minutes"]["waits"]), (&3.into(), &3.into()));
    assert!(line["node"].is_string(), "{line}");
    // The order is that of the wait times, and the first ones are those that a limit leaves.
    let waited = |line: &Value| line["waited_ms"].as_f64().expect("a number");
    assert!(lines.windows(2).all(|two| waited(&two[0]) >= waited(&two[1])), "{lines:?}");
    assert_eq!(hot(&server, &["--limit", "1", "--window", "1m"]).len(), 1);
    assert_eq!(hot(&server, &["t"]).len(), 2);
    assert!(hot(&server, &["other"]).is_empty());
    let table = server.run(&["hot", "t"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(text.starts_with("GROUP ") && text.contains("LONGEST MS"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    for args in [&["--limit", "0"][..], &["--window", "1h"], &["--group", "g"]] {
        assert_eq!(code(&server.run(&[&["hot"], args].concat())), 64, "{args:?}");
    }
}

#[test]
fn a_list_that_the_server_cuts_says_so_and_one_with_as_many_lines_as_were_asked_for_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.toml");
    std::fs::write(&config, "[server]\nlist_lines_max = 1\n").expect("written");
    let server = Server::start_with(&["--config", config.to_str().expect("text")]);
    wait_for(&server, "a", 1);
    wait_for(&server, "b", 1);
    for (limit, is_cut) in [("20", true), ("1", false)] {
        let output = server.run(&["hot", "--json", "--limit", limit]);
        assert_eq!(json_lines(&output).len(), 1);
        assert_eq!(stderr(&output).contains("list_cut"), is_cut, "{}", stderr(&output));
    }
}

#[test]
fn a_server_that_counts_no_keys_lists_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.toml");
    let path = config.to_str().expect("text");
    std::fs::write(&config, "[service]\nhot_keys_max = 0\n").expect("written");
    let server = Server::start_with(&["--config", path]);
    wait_for(&server, "k", 1);
    assert!(hot(&server, &[]).is_empty());
    std::fs::write(&config, "[service]\nhot_keys_max = 65537\n").expect("written");
    let refused =
        run(&["serve", "--listen", "127.0.0.1:0", "--store", "memory:", "--config", path]);
    assert_eq!(code(&refused), 78, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("service.hot_keys_max must be at most 65536"));
}

/// A terminal with so many rows on which `top` runs, and the modes that it had before.
fn top(server: &Server, rows: u16, args: &str) -> (Terminal, String) {
    let mut terminal = Terminal::open(server);
    terminal.resize(rows, 220);
    let modes = modes(&mut terminal);
    terminal.type_in(&format!("$lockservice top {args}\n"));
    terminal.expect(TAKEN);
    (terminal, modes)
}

fn modes(terminal: &mut Terminal) -> String {
    terminal.run("stty -g").lines().next().expect("a line").to_owned()
}

/// The terminal shows its own screen again, has its modes, and the command ended so.
#[track_caller]
fn is_given_back(mut terminal: Terminal, before: &str, status: &str) {
    terminal.expect(GIVEN_BACK);
    terminal.expect("ready> ");
    assert!(terminal.run("echo status=$?").contains(status));
    assert_eq!(modes(&mut terminal), before);
}

#[test]
fn a_waiter_is_seen_beside_its_holder_and_the_key_q_gives_the_terminal_back() {
    let server = Server::start();
    let (holder, _) = server.hold(&["table-1", "key-1"]);
    let (mut terminal, before) = top(&server, 40, "--interval 100ms");
    // It began to wait after the first picture.
    let waiter = server.lock(&["table-1", "key-1"], "true");
    server.waits(1);
    terminal.expect(&format!(":{}", waiter.child.id()));
    terminal.expect("key-1");
    terminal.expect(&format!(":{}", holder.child.id()));
    terminal.type_in("q");
    is_given_back(terminal, &before, "status=0");
}

#[test]
fn each_way_out_gives_the_terminal_back() {
    let server = Server::start();
    for key in ["\x1b", "\x03"] {
        let (mut terminal, before) = top(&server, 40, "");
        terminal.expect("sessions");
        terminal.type_in(key);
        is_given_back(terminal, &before, "status=0");
    }
    for (signal, status) in
        [(Signal::TERM, "status=143"), (Signal::INT, "status=130"), (Signal::HUP, "status=129")]
    {
        let mut terminal = Terminal::open(&server);
        let before = modes(&mut terminal);
        terminal.type_in("sh -c 'echo p\"\"id=$$; exec $lockservice top'\n");
        let pid = terminal.number_after("pid=");
        terminal.expect(TAKEN);
        let pid = rustix::process::Pid::from_raw(pid).expect("not zero");
        rustix::process::kill_process(pid, signal).expect("it runs");
        is_given_back(terminal, &before, status);
    }
}

#[test]
fn ctrl_z_gives_the_terminal_back_and_fg_takes_it_again() {
    let server = Server::start();
    let (mut terminal, before) = top(&server, 40, "");
    terminal.expect("sessions");
    terminal.type_in("\x1a");
    terminal.expect(GIVEN_BACK);
    terminal.expect("Stopped");
    terminal.expect("ready> ");
    assert_eq!(modes(&mut terminal), before);
    terminal.type_in_at_prompt("fg\n");
    terminal.expect(TAKEN);
    terminal.expect("sessions");
    terminal.type_in("q");
    is_given_back(terminal, &before, "status=0");
}

#[test]
fn a_screen_that_becomes_larger_is_filled() {
    let server = Server::start();
    // 14 rows have room for one list.
    let (mut terminal, before) = top(&server, 14, "--interval 1h");
    terminal.expect("hottest");
    terminal.resize(60, 200);
    terminal.expect("longest");
    terminal.expect("nearest");
    terminal.type_in("q");
    is_given_back(terminal, &before, "status=0");
}

#[test]
fn a_server_that_stops_responding_is_said_to_and_the_view_goes_on_when_it_does() {
    let server = Server::start();
    let (mut terminal, before) = top(&server, 40, "--interval 100ms");
    terminal.expect("sessions");
    server.running.signal(Signal::STOP);
    terminal.expect("again:");
    server.running.signal(Signal::CONT);
    let (_holder, _) = server.hold(&["t", "key-9"]);
    let _waiter = server.lock(&["t", "key-9"], "true");
    terminal.expect("key-9");
    terminal.type_in("q");
    is_given_back(terminal, &before, "status=0");
}

#[test]
fn without_a_terminal_or_a_server_it_says_so_and_what_helps() {
    let server = Server::start();
    for args in [&["top"][..], &["top", "--json"]] {
        let output = server.run(args);
        assert_eq!(code(&output), 64, "{args:?}");
        let text = stderr(&output);
        assert!(text.contains("locks --json") && text.contains("waits --json"), "{text}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    let short = server.run(&["top", "--interval", "1ms"]);
    assert_eq!(code(&short), 64, "{}", stderr(&short));
    assert!(stderr(&short).contains("use at least 100ms"), "{}", stderr(&short));
    let mut terminal = Terminal::open(&server);
    let said = terminal.run("$lockservice top --server 127.0.0.1:1; echo status=$?");
    assert!(said.contains("no server responds") && said.contains("status=69"), "{said}");
    assert!(!said.contains(TAKEN), "{said}");
    assert_eq!(code(&run(&["hot", "--server", "127.0.0.1:1"])), 69);
}
