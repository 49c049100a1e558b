//! Locks of commands that run inside each other.

use crate::cli_support::{Server, code, stderr};

#[test]
fn a_nested_lock_of_what_a_command_around_it_holds_is_refused_at_once_and_says_so() {
    let server = Server::start();
    let program = env!("CARGO_BIN_EXE_lockservice");
    for (outer, inner) in [
        (&["k"][..], "k"),
        (&["k", "--shared"], "k"),
        (&["--range", "a", "m"], "k"),
        (&["k"], "--range a m"),
    ] {
        // Far longer than the outer command would wait for itself.
        let script = format!(
            "{program} lock t other -- {program} lock t {inner} --timeout 1h -- echo never"
        );
        let output = server.run(&[&["lock", "t"], outer, &["--", "sh", "-c", &script]].concat());
        assert_eq!(code(&output), 64, "{outer:?} {inner}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("use the lock that the outer call holds"),
            "{}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
        // Trying again would help nothing, so that is not what a status chosen for it says.
        let script = format!("{program} lock t {inner} --no-wait -E 3 --json -- echo never");
        let output = server.run(&[&["lock", "t"], outer, &["--", "sh", "-c", &script]].concat());
        assert_eq!(code(&output), 64, "{outer:?} {inner}: {}", stderr(&output));
        let said = stderr(&output);
        let error: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
        assert_eq!(error["kind"].as_str(), Some("held_by_ancestor"), "{error}");
    }
    let script = format!("{program} lock t k --shared -- echo in");
    let output = server.run(&["lock", "t", "k", "--shared", "--", "sh", "-c", &script]);
    assert_eq!((code(&output), &*output.stdout), (0, &b"in\n"[..]), "{}", stderr(&output));
}

#[test]
fn two_scripts_that_lock_what_the_other_holds_are_a_deadlock_and_one_goes_on() {
    let server = Server::start();
    let program = env!("CARGO_BIN_EXE_lockservice");
    let fifo = |name: &str| {
        let path = server.folder.path().join(name).display().to_string();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    let tree = |held: &str, wanted: &str| {
        let go = fifo(held);
        let script =
            format!("echo ready; read x < {go}; {program} lock t {wanted} --quiet -- echo got");
        let mut outer = server.lock(&["t", held], &script);
        assert_eq!(outer.line(), "ready");
        (outer, go)
    };
    let (first, second) = (tree("a", "b"), tree("b", "a"));
    for (_, go) in [&first, &second] {
        std::fs::write(go, "go\n").unwrap();
    }
    let mut ended = [first.0, second.0].map(|mut outer| {
        let said = outer.end_of_output();
        let (status, text) = outer.wait();
        (status.code(), said.concat(), text)
    });
    ended.sort();
    let [(won, got, _), (gave_way, nothing, why)] = &ended;
    assert_eq!((*won, &**got), (Some(0), "got"), "{ended:?}");
    assert_eq!((*gave_way, &**nothing), (Some(75), ""), "{ended:?}");
    assert!(why.contains("waited for each other"), "{why}");
}
