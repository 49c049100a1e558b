//! `lockservice table` as operators meet it.

mod cli_support;

use cli_support::{Server, code, json_lines, stderr};
use rustix::process::{Signal, kill_process};

#[test]
fn a_table_is_dropped_once_nothing_in_it_is_locked_and_its_tokens_go_on() {
    let server = Server::start();
    let token = |output: &std::process::Output| {
        String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap()
    };
    let lock = ["lock", "jobs", "k", "--", "sh", "-c", "echo $LOCKSERVICE_TOKEN"];
    let before = token(&server.run(&lock));
    let (holder, command) = server.hold(&["jobs", "k"]);
    let refused = server.run(&["table", "drop", "jobs"]);
    assert_eq!(code(&refused), 75);
    let said = stderr(&refused);
    assert!(
        said.contains("1 of its rows and ranges") && said.contains("lockservice locks jobs"),
        "{said}"
    );
    kill_process(command, Signal::TERM).unwrap();
    assert!(!holder.wait().0.success(), "the lock is released when its command has ended");
    let dropped = server.run(&["table", "drop", "jobs", "--json"]);
    assert_eq!(code(&dropped), 0, "{}", stderr(&dropped));
    let line = &json_lines(&dropped)[0];
    assert_eq!((line["group"].as_str(), line["table"].as_str()), (Some("default"), Some("jobs")));
    assert_eq!(line["state"].as_str(), Some("forgotten"));
    assert!(server.run(&["binds", "--json"]).stdout.is_empty(), "there is no table any more");
    let again = server.run(&["table", "drop", "jobs", "--json"]);
    assert_eq!(code(&again), 64);
    assert!(stderr(&again).contains("table_not_found"), "{}", stderr(&again));
    assert!(token(&server.run(&lock)) > before);
}
