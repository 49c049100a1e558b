//! The command gets what the caller had, as if `lockservice lock` were not between them.

mod cli_support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use cli_support::{DEADLINE, Running, Server, code, json_lines, now, stderr};
use rustix::process::Signal;

/// The lines of `/proc/self/status` that show ignored and blocked signals, of a command that
/// `launcher` starts: directly, and under a lock.
fn dispositions(server: &Server, launcher: &[&str]) -> [String; 2] {
    let show = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"];
    let lock =
        [env!("CARGO_BIN_EXE_lockservice"), "lock", "--server", &server.address, "t", "k", "--"];
    [[launcher, &show].concat(), [launcher, &lock, &show].concat()].map(|line| {
        let output = Command::new(line[0]).args(&line[1..]).output().expect("it starts");
        assert!(output.status.success(), "{line:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).expect("text")
    })
}

#[test]
fn ignored_and_blocked_signals_stay_so_in_the_command() {
    let server = Server::start();
    for launcher in [
        &["env"][..],
        &["nohup"],
        &["env", "--ignore-signal=CHLD"],
        &["env", "--ignore-signal=INT,QUIT,USR1,TSTP"],
        &["env", "--block-signal=USR2,TERM,CHLD,TSTP"],
        &["env", "--ignore-signal=CHLD,ALRM", "--block-signal=HUP,WINCH"],
    ] {
        let [directly, under_a_lock] = dispositions(&server, launcher);
        assert_eq!(directly, under_a_lock, "{launcher:?}");
    }
}

#[test]
fn of_all_ignored_signals_sigpipe_alone_is_not_ignored_in_the_command() {
    const PIPE: u64 = 1 << (13 - 1);
    let server = Server::start();
    let ignored = |status: &str| {
        let mask =
            status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("it is shown");
        u64::from_str_radix(mask.trim(), 16).expect("a mask")
    };
    let launcher = ["env", "--ignore-signal=PIPE,CHLD,USR1", "--block-signal=TERM"];
    let [directly, under_a_lock] = dispositions(&server, &launcher);
    assert_eq!(ignored(&directly) & PIPE, PIPE);
    assert_eq!(ignored(&under_a_lock), ignored(&directly) & !PIPE, "as `lock --help` says");
    let blocked = |status: &str| {
        status.lines().find(|line| line.starts_with("SigBlk")).map(ToOwned::to_owned)
    };
    assert_eq!(blocked(&directly), blocked(&under_a_lock));
}

#[test]
fn the_exit_status_is_known_also_to_a_caller_that_ignores_the_end_of_children() {
    let server = Server::start();
    let line = [
        env!("CARGO_BIN_EXE_lockservice"),
        "lock",
        "--server",
        &server.address,
        "t",
        "k",
        "--",
        "sh",
        "-c",
    ];
    for (script, status) in [("exit 7", 7), ("sleep 1000 & kill -TERM $$", 143)] {
        let mut command = Command::new("env");
        let output =
            command.arg("--ignore-signal=CHLD").args(line).arg(script).output().expect("it starts");
        assert_eq!(code(&output), status, "{script}: {}", stderr(&output));
    }
    assert!(server.run(&["locks", "--json"]).stdout.is_empty(), "everything was released");
}

#[test]
fn the_server_of_a_flag_is_also_that_of_a_nested_command() {
    let server = Server::start();
    let output = cli_support::run(&[
        "lock",
        "--server",
        &server.address,
        "t",
        "k",
        "--",
        "sh",
        "-c",
        "echo $LOCKSERVICE_SERVER",
    ]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), server.address);
}

#[test]
fn a_missing_interpreter_is_not_reported_as_a_missing_script() {
    let server = Server::start();
    let script = server.folder.path().join("job");
    std::fs::write(&script, "#! /no/such/interpreter -x\necho\n").expect("there is room");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let path = script.display().to_string();
    let output = server.run(&["lock", "t", "k", "--", &path]);
    assert_eq!(code(&output), 127);
    let text = stderr(&output);
    assert!(text.contains("/no/such/interpreter") && !text.contains("was not found"), "{text}");
    // Also one that is found by PATH.
    let mut command = server.command(&["lock", "t", "k", "--", "job"]);
    let path = format!("{}:/usr/bin", server.folder.path().display());
    let output = command.env("PATH", path).output().expect("it starts");
    assert!(stderr(&output).contains("/no/such/interpreter"), "{}", stderr(&output));
}

#[test]
fn without_proc_nothing_is_locked_and_the_error_says_what_is_missing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: this test unmounts /proc for itself, for which it must be run as root");
        return;
    }
    let server = Server::start();
    let script = format!(
        "umount -l /proc && exec {} lock --server {} t k -- echo ran",
        env!("CARGO_BIN_EXE_lockservice"),
        server.address
    );
    let output =
        Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().expect("it starts");
    let text = stderr(&output);
    if text.contains("unshare failed") {
        eprintln!("SKIPPED: no mount namespace is to be had here: {text}");
        return;
    }
    assert_eq!(code(&output), 71, "{text}");
    assert!(text.contains("/proc is not mounted") && text.lines().count() == 1, "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_signal_that_comes_with_the_grant_keeps_the_command_from_being_started() {
    let server = Server::start();
    for _ in 0..10 {
        let (holder, _) = server.hold(&["t", "k"]);
        let mut waiter = server.lock(&["t", "k"], "echo ran");
        server.waits(1);
        waiter.signal(Signal::STOP);
        holder.signal(Signal::TERM);
        assert_eq!(holder.wait().0.signal(), Some(15));
        // The grant has been sent to the waiter, which has not read it.
        let own = format!(":{}", waiter.child.id());
        let give_up = now() + DEADLINE;
        let holds = |server: &Server| {
            let locks = json_lines(&server.run(&["locks", "--json"]));
            locks
                .iter()
                .any(|lock| lock["client"].as_str().is_some_and(|client| client.ends_with(&own)))
        };
        while !holds(&server) {
            assert!(now() < give_up, "the waiter has its turn");
        }
        waiter.signal(Signal::TERM);
        waiter.signal(Signal::CONT);
        assert!(waiter.end_of_output().is_empty(), "the command was not run");
        assert_eq!(waiter.wait().0.signal(), Some(15));
    }
}

#[test]
fn a_signal_that_a_waiter_was_started_to_ignore_does_not_end_it() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    let mut command = Command::new("env");
    command.args(["--ignore-signal=HUP,TERM", env!("CARGO_BIN_EXE_lockservice"), "lock"]);
    command.args(["--server", &server.address, "t", "k", "--", "echo", "ran"]);
    let mut waiter = Running::start(command.stdin(std::process::Stdio::null()));
    server.waits(1);
    waiter.signal(Signal::HUP);
    waiter.signal(Signal::TERM);
    holder.signal(Signal::TERM);
    assert_eq!(holder.wait().0.signal(), Some(15));
    assert_eq!(waiter.line(), "ran");
    assert_eq!(waiter.wait().0.code(), Some(0));
}

#[test]
fn every_signal_that_would_end_the_wrapper_reaches_the_command() {
    let server = Server::start();
    for (name, signal) in [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("TERM", Signal::TERM),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("ALRM", Signal::ALARM),
        ("VTALRM", Signal::VTALARM),
        ("PROF", Signal::PROF),
        ("XCPU", Signal::XCPU),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
        ("WINCH", Signal::WINCH),
    ] {
        let mut holder = server.lock(
            &["t", "k"],
            &format!("trap 'echo got; exit 3' {name}; echo ready; sleep 1000 & wait"),
        );
        assert_eq!(holder.line(), "ready");
        holder.signal(signal);
        assert_eq!(holder.line(), "got", "{name}");
        assert_eq!(holder.wait().0.code(), Some(3), "{name}");
    }
}

#[test]
fn a_signal_that_may_not_be_passed_on_is_not_swallowed_in_silence() {
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: this test runs a command as another user, for which it must be run as root"
        );
        return;
    }
    let server = Server::start();
    let folder = server.folder.path();
    let program = folder.join("lockservice");
    std::fs::copy(env!("CARGO_BIN_EXE_lockservice"), &program).expect("there is room");
    let become_root = folder.join("become_root");
    std::fs::copy("/usr/bin/setpriv", &become_root).expect("there is room");
    for (path, mode) in [(folder, 0o755), (&program, 0o755), (&become_root, 0o4755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    let mut unprivileged = Command::new(&program);
    unprivileged.args(["lock", "t", "k", "--server", &server.address, "--"]).arg(&become_root);
    unprivileged.args(["--reuid", "0", "sh", "-c", "echo $$; exec sleep 1000"]);
    let mut holder =
        Running::start(unprivileged.uid(65_534).gid(65_534).stdin(std::process::Stdio::null()));
    let command = holder.process();
    holder.signal(Signal::TERM);
    let said = holder.error_line();
    let expected = format!("SIGTERM cannot be passed on to process {}", command.as_raw_nonzero());
    assert!(said.contains(&expected), "{said}");
    rustix::process::kill_process(command, Signal::KILL).expect("it runs");
    assert_eq!(holder.wait().0.code(), Some(137));
}

#[test]
fn a_key_that_begins_with_a_hyphen_can_be_locked_and_the_error_says_how() {
    let server = Server::start();
    let output = server.run(&["lock", "t", "--x", "--", "true"]);
    assert_eq!(code(&output), 64);
    assert!(
        stderr(&output).contains("--key=--x") && !stderr(&output).contains("-- --x"),
        "{}",
        stderr(&output)
    );
    let output = server.run(&["--json", "lock", "t", "--x", "--", "true"]);
    assert!(stderr(&output).contains("--key=--x"), "{}", stderr(&output));

    let (_holder, _) = server.hold(&["t", "plain", "--key=--x", "--key=-y"]);
    let keys: Vec<String> = json_lines(&server.run(&["locks", "--json"]))
        .iter()
        .map(|lock| lock["key"].as_str().expect("text").to_owned())
        .collect();
    assert_eq!(keys, ["--x", "-y", "plain"]);
    assert_eq!(code(&server.run(&["lock", "t", "--key=-y", "--no-wait", "--", "true"])), 75);
}
