//! Arguments and exit statuses.

use crate::cli_support::{Server, code, lockservice, stderr};

#[test]
fn the_exit_status_is_the_commands_own() {
    let server = Server::start();
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("exit 255", 255)]
    {
        assert_eq!(
            code(&server.run(&["lock", "t", "k", "--", "sh", "-c", script])),
            status,
            "{script}"
        );
    }
    let output = server.run(&["lock", "t", "k", "--", "no-such-command"]);
    assert_eq!(code(&output), 127);
    assert!(stderr(&output).contains("no-such-command"));
    assert_eq!(code(&server.run(&["lock", "t", "k", "--", "/etc/passwd"])), 126);
    assert!(server.run(&["locks", "--json"]).stdout.is_empty(), "everything was released");
}

#[test]
fn more_keys_than_a_request_may_name_are_wrong_usage_and_not_a_matter_of_time() {
    let server = Server::start();
    let keys: Vec<String> = (0..20_001).map(|key| key.to_string()).collect();
    let lock = |keys: &[String]| {
        let mut args = vec!["lock", "t"];
        args.extend(keys.iter().map(String::as_str));
        args.extend(["--", "true"]);
        server.run(&args)
    };
    let output = lock(&keys);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("too many keys") && stderr(&output).contains("20000"),
        "{}",
        stderr(&output)
    );
    assert_eq!(code(&lock(&keys[..20_000])), 0);
}

#[test]
fn the_status_of_a_lock_that_was_lost_can_be_chosen() {
    let server = Server::start();
    let mut holder = server.lock(&["t", "k", "--lost-exit-code", "9"], "echo in; exec sleep 1000");
    assert_eq!(holder.line(), "in");
    let _server = server.stop_and_restart();
    assert_eq!(holder.wait().0.code(), Some(9));
}

#[test]
fn the_status_of_a_lock_that_was_not_to_be_had_can_be_chosen() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    for args in [&["-E", "3"][..], &["--conflict-exit-code=3"]] {
        let output =
            server.run(&[&["lock", "t", "k", "--no-wait"], args, &["--", "true"]].concat());
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        let own =
            server.run(&[&["lock", "t", "free"], args, &["--", "sh", "-c", "exit 75"]].concat());
        assert_eq!(code(&own), 75, "the command's own");
    }
}

#[test]
fn a_key_like_an_option_is_refused_with_the_way_to_give_it() {
    let output = lockservice(&["lock", "t", "--force", "--", "true"]).output().unwrap();
    assert_eq!(code(&output), 64);
    assert!(
        stderr(&output).contains("--key=--force") && !stderr(&output).contains("-- --force"),
        "{}",
        stderr(&output)
    );
    let output =
        lockservice(&["lock", "t", "--range", "", "--no-wait", "--", "true"]).output().unwrap();
    assert!(
        code(&output) == 64 && stderr(&output).contains("--to=--no-wait"),
        "{}",
        stderr(&output)
    );
}
