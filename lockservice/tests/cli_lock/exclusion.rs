//! Commands under one lock exclude each other.

use crate::cli_support::{Server, code, stderr};

#[test]
fn two_commands_on_one_key_never_overlap_and_the_second_has_the_larger_token() {
    let server = Server::start();
    let log = server.folder.path().join("log");
    let script = format!(
        "echo $LOCKSERVICE_TABLE $LOCKSERVICE_TOKEN; echo in >> {log}; read line < {fifo}; echo \
            out >> {log}",
        log = log.display(),
        fifo = server.folder.path().join("fifo").display(),
    );
    let fifo = server.folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut first = server.lock(&["jobs", "nightly"], &script);
    let first_line = first.line();
    let mut second = server.lock(&["jobs", "nightly"], &script);

    let wait = &server.waits(1)[0];
    assert_eq!(
        (wait["table"].as_str(), wait["key"].as_str(), wait["state"].as_str()),
        (Some("jobs"), Some("nightly"), Some("holds"))
    );
    assert_eq!(
        wait["holder_client"].as_str().unwrap().split(':').next_back(),
        Some(&*first.child.id().to_string())
    );
    assert_eq!(
        wait["waiter_client"].as_str().unwrap().split(':').next_back(),
        Some(&*second.child.id().to_string())
    );

    std::fs::write(&fifo, "go\n").unwrap();
    assert!(first.wait().0.success());
    let second_line = second.line();
    std::fs::write(&fifo, "go\n").unwrap();
    assert!(second.wait().0.success());
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "in\nout\nin\nout\n");
    let token = |line: &str| line.strip_prefix("jobs ").unwrap().parse::<u64>().unwrap();
    assert!(token(&second_line) > token(&first_line), "{first_line} then {second_line}");
}

#[test]
fn a_lock_not_to_be_had_in_time_exits_with_75_and_says_who_holds_it() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    for how in [&["--no-wait"][..], &["--timeout", "50ms"]] {
        let args = [&["lock", "t", "k"], how, &["--", "true"]].concat();
        let output = server.run(&args);
        assert_eq!(code(&output), 75);
        let text = stderr(&output);
        assert!(
            text.starts_with("error: ") && text.contains(&format!(":{}", holder.child.id())),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    }
    let json = server.run(&["--json", "lock", "t", "k", "--no-wait", "--", "true"]);
    let object: serde_json::Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(object["kind"], "conflict");
    assert_eq!(
        (&object["blocker"]["key"], &object["blocker"]["state"]),
        (&"k".into(), &"holds".into())
    );
    let client = object["blocker"]["client"].as_str().unwrap();
    assert!(client.ends_with(&format!(":{}", holder.child.id())), "as data, too: {client}");
}

#[test]
fn sharers_and_ranges_exclude_whom_they_must() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "--range", "b", "d", "--shared"]);
    let attempt = |args: &[&str]| {
        code(&server.run(&[&["lock", "t"], args, &["--no-wait", "--", "true"]].concat()))
    };
    assert_eq!(attempt(&["a"]), 0);
    assert_eq!(attempt(&["b"]), 75, "FROM is inside");
    assert_eq!(attempt(&["d"]), 75, "TO is inside");
    assert_eq!(attempt(&["c", "--shared"]), 0);
    assert_eq!(attempt(&["--range", "", ""]), 75, "the whole table");
    assert_eq!(attempt(&["--range", "e", ""]), 0);
    assert_eq!(attempt(&["c", "--group", "other"]), 0);
}
