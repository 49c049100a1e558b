//! The log of a server.

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_support::{Running, code, full_pipe, lockservice, run, stderr, wait_for_end_of};

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
