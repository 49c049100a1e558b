//! Processes that cannot be ended.

use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::cli_support::{Running, Server, json_lines, now, wait_for_end_of};

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
    let Some(Stuck { holder, command, member }) = stuck(&server, "15s", "exec sleep 1000") else {
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
