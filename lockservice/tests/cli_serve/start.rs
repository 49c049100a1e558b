//! The start of a server, and its environment.

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_support::{Running, Server, code, lockservice, run, stderr};

#[test]
fn a_port_or_store_in_use_is_an_error_that_says_what_to_do() {
    let server = Server::start();
    let output = run(&["serve", "--listen", &server.address, "--store", "memory:"]);
    assert_eq!(code(&output), 71);
    assert!(stderr(&output).contains("--listen"), "{}", stderr(&output));

    let store = format!("file:{}", server.folder.path().join("db").display());
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--store", &store]);
    assert_eq!(code(&output), 75, "{}", stderr(&output));
    assert!(stderr(&output).contains("db"), "it names the path: {}", stderr(&output));
}

#[test]
fn a_store_in_memory_says_what_it_means() {
    let mut server = Running::start(&mut lockservice(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--store",
        "memory:",
    ]));
    assert!(server.line().contains("store memory:"));
    server.signal(Signal::TERM);
    let (status, text) = server.wait();
    assert!(status.success());
    assert!(text.contains("the store is memory"), "{text}");
}

/// The server under a soft and a hard limit on open files.
fn serve_limited(soft: u32, hard: u32) -> Running {
    let script = format!(
        "ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" serve --json --listen 127.0.0.1:0 \
            --store memory:"
    );
    let mut command = lockservice(&[]);
    let program = command.get_program().to_owned();
    command = std::process::Command::new("sh");
    command.arg("-c").arg(script).arg(program);
    Running::start(&mut command)
}

#[test]
fn the_limit_on_open_files_is_raised_and_said_if_it_is_too_low() {
    let limits = |running: &mut Running| {
        running.line();
        let path = format!("/proc/{}/limits", running.pid().as_raw_nonzero());
        let limits = std::fs::read_to_string(path).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(3).unwrap().to_owned()
    };
    let mut low = serve_limited(100, 200);
    assert_eq!(limits(&mut low), "200");
    low.signal(Signal::TERM);
    let (_, text) = low.wait();
    let warning = text.lines().find(|line| line.contains("open_files")).expect("said at the start");
    assert!(warning.contains("200 files") && warning.contains("10000 connections"), "{text}");
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if hard.is_none_or(|hard| hard >= 20_000) {
        let mut enough = serve_limited(100, 20_000);
        assert_eq!(limits(&mut enough), "20000");
        enough.signal(Signal::TERM);
        let (_, text) = enough.wait();
        assert!(!text.contains("open_files"), "{text}");
    }
}

#[test]
fn an_environment_that_is_not_utf_8_or_of_kubernetes_or_empty_keeps_no_server_from_starting() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut command = lockservice(&["serve", "--json", "--listen", "127.0.0.1:0"]);
    command
        .env("OTHER", std::ffi::OsString::from_vec(vec![0xff]))
        .env("LOCKSERVICE_PORT", "tcp://10.0.0.11:7654")
        .env("LOCKSERVICE_SERVICE_HOST", "10.0.0.11")
        .env("LOCKSERVICE_CONFIG", "")
        .env("LOCKSERVICE_STORE", "memory:")
        .env("LOCKSERVICE_NODE", "");
    let mut server = Running::start(&mut command);
    let ready: Value = serde_json::from_str(&server.line()).unwrap();
    let address = ready["address"].as_str().unwrap();
    // The flag is not needed, and an empty variable does not replace the default.
    let output = lockservice(&["locks", "--server", address])
        .env("LOCKSERVICE_SERVER", "")
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let output = lockservice(&["locks"]).env("LOCKSERVICE_SERVER", "").output().unwrap();
    assert!([0, 69].contains(&code(&output)), "the default address: {}", stderr(&output));
    let output = lockservice(&["serve"])
        .env("LOCKSERVICE_NODE", std::ffi::OsString::from_vec(vec![0xff]))
        .output()
        .unwrap();
    assert!(
        code(&output) == 78 && stderr(&output).contains("LOCKSERVICE_NODE"),
        "{}",
        stderr(&output)
    );
}
