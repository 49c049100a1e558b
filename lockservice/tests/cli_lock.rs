//! `lockservice lock` as its users meet it.

mod cli_support;

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use cli_support::{
    Running, Server, code, full_pipe, json_lines, lockservice, now, stderr, wait_for_end_of,
};
use rustix::process::{Pid, Signal};

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

#[test]
fn after_sigkill_the_command_ends_and_the_next_comes_in_after_the_ttl_and_not_before() {
    let server = Server::start();
    let (mut holder, command) = server.hold(&["t", "k", "--ttl", "1s"]);
    let mut next = server.lock(&["t", "k"], "echo in");
    server.waits(1);
    let killed = now();
    holder.signal(Signal::KILL);
    wait_for_end_of(command);
    holder.end_of_output();
    assert!(now().since(killed) < Duration::from_millis(500), "the command ends at once");
    assert_eq!(next.line(), "in");
    // The last renewal was at most a third of the TTL before the kill.
    let waited = now().since(killed);
    assert!(waited > Duration::from_millis(600) && waited < Duration::from_secs(5), "{waited:?}");
    assert!(next.wait().0.success());
}

#[test]
fn a_killed_wrapper_takes_all_that_the_command_started_with_it() {
    let server = Server::start();
    let mut holder = server.lock(&["t", "k", "--ttl", "1s"], "sleep 1000 & echo $!; wait");
    let child = holder.process();
    holder.signal(Signal::KILL);
    wait_for_end_of(child);
    holder.end_of_output();
}

#[test]
fn a_stopped_wrapper_does_not_leave_its_command_running() {
    let server = Server::start();
    let (holder, command) = server.hold(&["t", "k", "--ttl", "1s"]);
    let mut next = server.lock(&["t", "k"], "echo in");
    server.waits(1);
    let stopped = now();
    holder.signal(Signal::STOP);
    wait_for_end_of(command);
    // P2: lo(1 s) after the last renewal at the latest.
    assert!(now().since(stopped) < Duration::from_millis(950), "{:?}", now().since(stopped));
    assert_eq!(next.line(), "in");
    holder.signal(Signal::CONT);
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(70), "{text}");
}

#[test]
fn a_killed_or_stopped_supervisor_does_not_leave_its_command_running() {
    for signal in [Signal::KILL, Signal::STOP] {
        let server = Server::start();
        let (holder, command) = server.hold(&["t", "k", "--ttl", "1s"]);
        rustix::process::kill_process(holder.supervisor(), signal).unwrap();
        if signal == Signal::STOP {
            // Nobody renews any more, and the supervisor counts nothing: the wrapper does.
            server.running.signal(Signal::STOP);
        }
        wait_for_end_of(command);
        server.running.signal(Signal::CONT);
        let (status, text) = holder.wait();
        assert_ne!(status.code(), Some(0));
        assert!(text.starts_with("error: "), "{text}");
    }
}

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
fn what_the_command_leaves_is_ended_before_the_lock_is_released() {
    let server = Server::start();
    let mut holder = server.lock(
        &["t", "k", "--stop-time", "100ms"],
        "trap '' TERM; sleep 1000 > /dev/null 2>&1 & echo $!",
    );
    let left = holder.process();
    assert_eq!(holder.wait().0.code(), Some(0));
    assert!(rustix::process::test_kill_process(left).is_err(), "it is gone");
}

#[test]
fn when_the_server_stops_a_holder_exits_with_70_and_a_waiter_with_69_when_its_time_is_up() {
    let server = Server::start();
    let (holder, command) = server.hold(&["t", "k"]);
    let waiter = server.lock(&["t", "k", "--quiet", "--timeout", "5s"], "echo never");
    server.waits(1);
    server.running.signal(Signal::TERM);
    // The server might have come back.
    let (status, text) = waiter.wait();
    assert_eq!(status.code(), Some(69), "{text}");
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    wait_for_end_of(command);
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(70), "{text}");
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    let Server { running, .. } = server;
    assert!(running.wait().0.success(), "everything was given back");
}

#[test]
fn after_a_crash_of_the_server_the_old_command_has_ended_before_the_next_one_runs() {
    let server = Server::start();
    let token = |line: String| line.parse::<u64>().unwrap();
    let mut holder = server.lock(&["t", "k"], "echo $LOCKSERVICE_TOKEN; echo $$; exec sleep 1000");
    let before = token(holder.line());
    let command = holder.process();
    let server = server.crash_and_restart();
    // B3: it waits for as long as the crashed server's promises may last.
    let mut next = server.lock(&["t", "k", "--timeout", "30s"], "echo $LOCKSERVICE_TOKEN");
    let after = token(next.line());
    assert!(
        rustix::process::test_kill_process(command).is_err(),
        "the old command runs beside the new one"
    );
    assert!(after > before);
    assert!(next.wait().0.success());
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(70), "{text}");
}

#[test]
fn after_a_clean_stop_there_is_no_wait() {
    let server = Server::start();
    assert_eq!(code(&server.run(&["lock", "t", "k", "--", "true"])), 0);
    let server = server.stop_and_restart();
    let started = now();
    assert_eq!(code(&server.run(&["lock", "t", "k", "--", "true"])), 0);
    assert!(now().since(started) < Duration::from_secs(3));
}

#[test]
fn standard_input_reaches_the_command() {
    let server = Server::start();
    let file = server.folder.path().join("input");
    std::fs::write(&file, "through\n").unwrap();
    let mut command = server.command(&["lock", "t", "k", "--", "cat"]);
    let output = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"through\n");
}

/// A holder that runs as the user `nobody`. A process of root runs below its command, which it
/// cannot end: for the holder that process hangs.
struct Stuck {
    holder: Running,
    command: Pid,
    member: Member,
}

/// Ended by the test, which is root.
struct Member(Pid);

impl Member {
    fn end(&self) {
        // Fails if it has ended.
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end();
    }
}

/// `None`, with a loud word, unless this is root. `after` is shell that the command goes on with.
fn stuck(server: &Server, ttl: &str, after: &str) -> Option<Stuck> {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: this test runs a command as another user, for which it must be run as root"
        );
        return None;
    }
    let folder = server.folder.path();
    let program = folder.join("lockservice");
    std::fs::copy(env!("CARGO_BIN_EXE_lockservice"), &program).expect("there is room");
    // Like `su` and `sudo`: it becomes root altogether, so that the user `nobody` may not signal
    // it.
    let become_root = folder.join("become_root");
    std::fs::copy("/usr/bin/setpriv", &become_root).expect("there is room");
    for (path, mode) in [(folder, 0o755), (&program, 0o755), (&become_root, 0o4755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    let script = format!(
        "{} --reuid 0 sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' & echo $$; {after}",
        become_root.display()
    );
    let mut unprivileged = std::process::Command::new(&program);
    unprivileged.args([
        "lock",
        "t",
        "k",
        "--server",
        &server.address,
        "--ttl",
        ttl,
        "--",
        "sh",
        "-c",
        &script,
    ]);
    let mut holder =
        Running::start(unprivileged.uid(65_534).gid(65_534).stdin(std::process::Stdio::null()));
    let values = [holder.process(), holder.process()];
    let of_root = |pid: &Pid| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))
            .expect("it runs");
        status.lines().any(|line| line.starts_with("Uid:\t0\t0\t0"))
    };
    let (member, command) =
        if of_root(&values[0]) { (values[0], values[1]) } else { (values[1], values[0]) };
    Some(Stuck { holder, command, member: Member(member) })
}

#[test]
fn when_the_supervisor_was_killed_the_lock_is_released_once_all_has_gone_and_not_before() {
    let server = Server::start();
    let Some(Stuck { holder, command, member }) = stuck(&server, "30s", "exec sleep 1000") else {
        return;
    };
    let script = format!(
        "if kill -0 {} 2> /dev/null; then echo beside; else echo alone; fi",
        member.0.as_raw_nonzero()
    );
    let mut next = server.lock(&["t", "k"], &script);
    server.waits(1);
    rustix::process::kill_process(holder.supervisor(), Signal::KILL).unwrap();
    wait_for_end_of(command);
    // Long enough for a release that does not wait.
    for _ in 0..20 {
        assert_eq!(
            server.run(&["waits", "--json"]).stdout.split(|byte| *byte == b'\n').count(),
            2,
            "nobody was let in"
        );
    }
    let ended = now();
    member.end();
    assert_eq!(next.line(), "alone");
    assert!(now().since(ended) < Duration::from_secs(10), "released, not lapsed");
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(71), "{text}");
    assert!(text.contains("the lock released") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_command_that_cannot_be_ended_keeps_the_lock_until_the_session_has_lapsed() {
    for kill_supervisor in [true, false] {
        let server = Server::start();
        let Some(Stuck { holder, command, member }) = stuck(&server, "3s", "exec sleep 1000")
        else {
            return;
        };
        let mut next = server.lock(&["t", "k"], "echo in");
        server.waits(1);
        let ended = now();
        if kill_supervisor {
            rustix::process::kill_process(holder.supervisor(), Signal::KILL).unwrap();
        } else {
            // The command itself ends as it should; what it leaves does not.
            rustix::process::kill_process(command, Signal::TERM).unwrap();
        }
        let (status, text) = holder.wait();
        assert_eq!(status.code(), Some(71), "{text}");
        assert!(text.contains("not released") && text.lines().count() == 1, "{text}");
        assert!(
            text.contains(&format!("process {} (sleep)", member.0.as_raw_nonzero())),
            "it is named: {text}"
        );
        let gave_up = now();
        let locks = json_lines(&server.run(&["locks", "--json"]));
        let named =
            locks.first().and_then(|lock| lock["still_running"].as_str()).unwrap_or_default();
        assert!(
            named.contains(&format!("{} (sleep)", member.0.as_raw_nonzero())),
            "the operator sees it: {locks:?}"
        );
        assert_eq!(next.line(), "in");
        // A third of the TTL may have passed since the last renewal; a release is a matter of
        // milliseconds.
        assert!(
            now().since(gave_up) > Duration::from_millis(500),
            "lapsed, not released: {:?}",
            now().since(gave_up)
        );
        assert!(now().since(ended) > Duration::from_secs(3));
        member.end();
    }
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
fn a_wrapper_whose_stderr_has_no_reader_says_nothing_and_ends_as_it_should() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    let (_reader, writer) = full_pipe();
    let refused = ["lock", "t", "k", "--no-wait", "--", "true"];
    let mut wrapper =
        Running::start_with_stderr(&mut server.command(&refused), writer.try_clone().unwrap());
    assert_eq!(wrapper.wait().0.code(), Some(75));
    // Nor do the words of the last step before the command keep it.
    let missing = ["lock", "t", "other", "--", "no-such-command"];
    wrapper = Running::start_with_stderr(&mut server.command(&missing), writer);
    assert_eq!(wrapper.wait().0.code(), Some(127));
    assert_eq!(
        code(&server.run(&["lock", "t", "other", "--no-wait", "--", "true"])),
        0,
        "it was released"
    );
}

#[test]
fn the_command_learns_what_is_locked() {
    let server = Server::start();
    let script = r#"echo "$LOCKSERVICE_GROUP $LOCKSERVICE_TABLE"; echo "$LOCKSERVICE_KEYS""#;
    for (args, expected) in [
        (&["a key", "b", "--key=--c"][..], "g t\na key\nb\n--c\n"),
        (&["--range", "", "m"], "g t\n\nm\n"),
        (&["--from=k"], "g t\nk\n\n"),
    ] {
        let output = server
            .run(&[&["lock", "--group", "g", "t"], args, &["--", "sh", "-c", script]].concat());
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            expected,
            "{args:?}: {}",
            stderr(&output)
        );
    }
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
    let server = Server::start();
    assert!(server.run(&["lock", "t", "k", "--", "true"]).status.success());
    let server = server.crash_and_restart();
    let waiter = Running::start(&mut server.command(&["lock", "t", "k", "--", "true"]));
    let said = waiter.error_line();
    // There is no transaction that could be looked for.
    assert!(said.contains("had it last") && !said.contains("transaction"), "{said}");
    assert!(waiter.wait().0.success());
}

#[test]
fn processes_that_the_command_leaves_are_signalled_to_end_before_they_are_killed() {
    let server = Server::start();
    let ready = server.folder.path().join("ready");
    let script = format!(
        "{{ trap 'echo told; exit' TERM; : >'{ready}'; while :; do sleep 0.05; done; }} &
        until [ -e '{ready}' ]; do sleep 0.05; done",
        ready = ready.display()
    );
    let mut holder = server.lock(&["t", "k", "--stop-time", "1s"], &script);
    assert_eq!(holder.end_of_output(), ["told"]);
    assert_eq!(holder.wait().0.code(), Some(0));
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

#[test]
fn a_time_out_bounds_the_way_to_a_server_that_does_not_respond_too() {
    let server = Server::start();
    server.running.signal(Signal::STOP);
    let output = server.run(&["lock", "t", "k", "--timeout", "300ms", "--", "true"]);
    let text = stderr(&output);
    // Whichever is first of the call's time-out and the deadline; not the connection's own end,
    // seconds later.
    let in_time = ["no server responded within the time-out", "the server did not respond in time"];
    assert!(in_time.iter().any(|in_time| text.contains(in_time)), "{text}");
    assert_eq!(code(&output), 69);
    server.running.signal(Signal::CONT);
    assert_eq!(code(&server.run(&["lock", "t", "k", "--timeout", "60s", "--", "true"])), 0);
}

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
