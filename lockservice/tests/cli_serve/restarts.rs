//! Stops after which the server is expected back, and those after which it is not (P6).

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use rustix::pty::OpenptFlags;
use serde_json::Value;

use crate::cli_support::{Running, Server, json_lines, lockservice, run, serve};

/// A server at an address that it keeps, and a command under a lock of it.
struct Held {
    folder: tempfile::TempDir,
    address: String,
    holder: Running,
    command: Pid,
}

/// A lease that outlasts every wait of a test, and a guard that outlasts every restart.
const LEASE: &str = "--lease-ttl=60s";

impl Held {
    /// `start` starts the server on a store, with [`LEASE`].
    fn new(start: impl FnOnce(&str) -> (Running, String)) -> (Running, Self) {
        let folder = tempfile::tempdir().expect("a folder");
        let (server, address) = start(&store_in(&folder));
        let args = ["lock", "jobs", "k", "--ttl=60s", "--server", &address];
        let script = ["--", "sh", "-c", "echo $$; exec sleep 1000"];
        let mut holder = Running::start(&mut lockservice(&[&args[..], &script].concat()));
        let command = holder.process();
        (server, Self { folder, address, holder, command })
    }

    /// The server is back, and the lock is held as before: the command was left alone, and others
    /// get the lock after it. The lease has not run out meanwhile.
    fn goes_on(self) {
        let flags = ["--listen", &self.address, LEASE];
        let store = store_in(&self.folder);
        let args = [&["serve", "--json", "--store", &store], &flags[..]].concat();
        let mut server = Running::start(&mut lockservice(&args));
        server.line();
        // A row of another table at once, one of this table when its holder has claimed.
        for (table, key) in [("others", "k"), ("jobs", "free")] {
            let free = run(&[
                "lock",
                table,
                key,
                "--timeout=30s",
                "--server",
                &self.address,
                "--",
                "true",
            ]);
            assert!(free.status.success(), "{table}: {free:?}");
        }
        let locks = json_lines(&run(&["locks", "--json", "--server", &self.address]));
        let keys: Vec<_> = locks.iter().map(|lock| lock["key"].as_str()).collect();
        assert_eq!(keys, [Some("k")], "{locks:?}");
        assert!(test_kill_process(self.command).is_ok(), "the command goes on");
        kill_process(self.command, Signal::TERM).expect("it runs");
        let (status, said) = self.holder.wait();
        assert_eq!(
            status.code(),
            Some(128 + 15),
            "the end of the command, not of the lock: {said}"
        );
        let next =
            run(&["lock", "jobs", "k", "--no-wait", "--server", &self.address, "--", "true"]);
        assert!(next.status.success(), "{next:?}");
    }
}

fn store_in(folder: &tempfile::TempDir) -> String {
    format!("file:{}", folder.path().join("db").display())
}

#[test]
fn a_stop_asks_no_command_to_end_and_the_next_start_has_its_lock() {
    let (server, held) = Held::new(|store| serve(store, &[LEASE]));
    server.signal(Signal::TERM);
    // It exits although its holder is there.
    let (status, said) = server.wait();
    assert!(status.success(), "{said}");
    held.goes_on();
}

#[test]
fn a_doubled_signal_is_no_wish_to_end_the_commands() {
    let (server, held) = Held::new(|store| serve(store, &[LEASE]));
    // As from a terminal and from the service manager at once. The later ones may find it gone.
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        let _ = kill_process(server.pid(), signal);
    }
    let (status, said) = server.wait();
    assert!(status.success(), "{said}");
    held.goes_on();
}

#[test]
fn a_hang_up_of_the_terminal_of_a_server_is_the_end_of_no_command() {
    let terminal =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .unwrap();
    rustix::pty::grantpt(&terminal).unwrap();
    rustix::pty::unlockpt(&terminal).unwrap();
    let name = rustix::pty::ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let (server, held) = Held::new(|store| {
        let other_end = std::fs::File::options().read(true).write(true).open(name).unwrap();
        let program = lockservice(&[]).get_program().to_owned();
        let mut command = std::process::Command::new("setsid");
        command.arg("--ctty").arg(program).args(["serve", "--json", "--listen", "127.0.0.1:0"]);
        command.args(["--store", store, LEASE]).stdin(other_end);
        let mut server = Running::start(&mut command);
        let ready: Value = serde_json::from_str(&server.line()).unwrap();
        (server, ready["address"].as_str().unwrap().to_owned())
    });
    drop(terminal);
    let (status, said) = server.wait();
    assert!(status.success(), "{said}");
    held.goes_on();
}

#[test]
fn a_hang_up_of_a_daemon_leaves_the_server_and_its_locks_alone() {
    let folder = tempfile::tempdir().unwrap();
    let program = lockservice(&[]).get_program().to_owned();
    let mut command = std::process::Command::new("setsid");
    command.arg(program).args(["serve", "--json", "--listen", "127.0.0.1:0"]);
    command.args(["--store", &store_in(&folder), LEASE]).stdin(Stdio::null());
    let mut server = Running::start(&mut command);
    let ready: Value = serde_json::from_str(&server.line()).unwrap();
    let address = ready["address"].as_str().unwrap();
    let args = ["lock", "jobs", "k", "--server", address, "--", "sh", "-c"];
    let mut holder =
        Running::start(&mut lockservice(&[&args[..], &["echo $$; exec sleep 1000"]].concat()));
    let command = holder.process();
    for _ in 0..3 {
        server.signal(Signal::HUP);
        let locks = json_lines(&run(&["locks", "--json", "--server", address]));
        assert_eq!(locks.len(), 1, "{locks:?}");
    }
    kill_process(command, Signal::TERM).unwrap();
    assert_eq!(holder.wait().0.code(), Some(128 + 15));
}

#[test]
fn with_drain_stop_the_commands_are_told_to_end_and_the_next_start_need_not_wait() {
    let server = Server::start_with(&["--drain-stop", LEASE]);
    let (holder, _) = server.hold(&["jobs", "k"]);
    let server = server.stop_and_restart();
    let (status, said) = holder.wait();
    assert_eq!(status.code(), Some(70), "{said}");
    assert!(said.contains("shutting down"), "{said}");
    let next = server.run(&["lock", "jobs", "k", "--no-wait", "--", "true"]);
    assert!(next.status.success(), "{next:?}");
}
