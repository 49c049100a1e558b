//! Signals to a server.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use serde_json::Value;

use crate::cli_support::{DEADLINE, Running, Server, code, ends_within, lockservice, now, run};

#[test]
fn a_doubled_signal_is_one_wish_to_stop_in_order() {
    let server = Server::start_with(&["--drain-stop"]);
    let (holder, _) = server.hold(&["t", "k"]);
    let (other, _) = server.hold(&["t", "other"]);
    holder.signal(Signal::STOP);
    let Server { running, .. } = server;
    for _ in 0..2 {
        running.signal(Signal::TERM);
        running.signal(Signal::INT);
    }
    assert_eq!(other.wait().0.code(), Some(70), "it was heard");
    holder.signal(Signal::CONT);
    assert_eq!(holder.wait().0.code(), Some(70));
    let (status, text) = running.wait();
    // Stopped at once it would say so.
    assert!(status.success(), "{status}: {text}");
}

#[test]
fn a_hang_up_stops_a_server_of_a_terminal_in_order_and_is_nothing_to_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |setsid: &[&str]| {
        let program = lockservice(&[]).get_program().to_owned();
        let mut command = std::process::Command::new("setsid");
        command.args(setsid).arg(program).args([
            "serve",
            "--json",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "memory:",
        ]);
        command
    };
    let mut daemon = Running::start(serve(&[]).stdin(Stdio::null()));
    let ready: Value = serde_json::from_str(&daemon.line()).unwrap();
    let address = ready["address"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        daemon.signal(Signal::HUP);
        assert_eq!(code(&run(&["lock", "t", "k", "--server", &address, "--", "true"])), 0);
    }
    daemon.signal(Signal::TERM);
    let (status, text) = daemon.wait();
    assert!(status.success() && text.contains("SIGHUP changes nothing"), "{text}");

    let terminal =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .unwrap();
    rustix::pty::grantpt(&terminal).unwrap();
    rustix::pty::unlockpt(&terminal).unwrap();
    let name = rustix::pty::ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let other_end = std::fs::File::options().read(true).write(true).open(name).unwrap();
    let mut of_terminal = serve(&["--ctty"]);
    let mut server = Running::start(of_terminal.stdin(other_end));
    drop(of_terminal);
    server.line();
    drop(terminal);
    let (status, text) = server.wait();
    assert!(status.success() && !text.contains("SIGHUP"), "{status:?} {text}");
    drop(folder);
}

#[test]
fn the_second_signal_stops_the_server_at_once() {
    let server = Server::start_with(&["--drain-stop"]);
    let (holder, _) = server.hold(&["t", "k"]);
    let (other, _) = server.hold(&["t", "other"]);
    // It cannot confirm that its work has ended, so a stop in order takes the whole grace.
    holder.signal(Signal::STOP);
    let Server { running, .. } = server;
    running.signal(Signal::TERM);
    assert_eq!(other.wait().0.code(), Some(70), "the first signal was heard");
    // One that follows within a second is the same wish.
    let again = now();
    while !ends_within(running.pid(), Duration::from_millis(100)) {
        assert!(now().since(again) < DEADLINE);
        running.signal(Signal::TERM);
    }
    let (status, text) = running.wait();
    assert_eq!(status.code(), Some(69), "{text}");
    assert!(text.contains("stopped at once: the next start waits"), "{text}");
    holder.signal(Signal::CONT);
    assert_eq!(holder.wait().0.code(), Some(70));
}
