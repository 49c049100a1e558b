//! The lists, and the address of the server.

use std::process::Stdio;

use serde_json::Value;

use crate::cli_support::{Server, code, json_lines, lockservice, run, stderr};

#[test]
fn the_lists_are_tables_or_objects() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["accounts", "alice"]);
    let lock: Value =
        serde_json::from_slice(&server.run(&["locks", "accounts", "--json"]).stdout).unwrap();
    assert_eq!(
        (lock["table"].as_str(), lock["key"].as_str(), lock["mode"].as_str()),
        (Some("accounts"), Some("alice"), Some("exclusive"))
    );
    assert!(server.run(&["locks", "others", "--json"]).stdout.is_empty());
    let bind: Value = serde_json::from_slice(&server.run(&["binds", "--json"]).stdout).unwrap();
    for field in ["group", "table", "partition", "owner", "version", "state"] {
        assert!(!bind[field].is_null(), "{field}");
    }
    assert_eq!(bind["state"], "bound");
    let table = String::from_utf8(server.run(&["locks"]).stdout).unwrap();
    assert!(
        table.lines().next().unwrap().starts_with("TABLE") && table.contains("alice"),
        "{table}"
    );
}

#[test]
fn every_command_finds_the_server_behind_an_address_that_is_frozen() {
    let server = Server::start();
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = format!("{},{}", frozen.local_addr().unwrap(), server.address);
    for args in [
        &["locks"][..],
        &["waits"],
        &["binds"],
        &["sessions"],
        &["txns"],
        &["lock", "t", "k", "--", "true"],
    ] {
        let output = lockservice(args).env("LOCKSERVICE_SERVER", &addresses).output().unwrap();
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    for args in [&["locks"][..], &["binds", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = server
            .command(args)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn a_list_that_was_cut_says_so_on_stderr_and_its_lines_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "[server]\nlist_lines_max = 2\n").unwrap();
    let server = Server::start_with(&["--config", file.to_str().unwrap()]);
    let (_holder, _) = server.hold(&["t", "a", "b", "c"]);
    let json = server.run(&["locks", "--json"]);
    let keys: Vec<_> =
        json_lines(&json).iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!((code(&json), keys), (0, vec!["a".to_owned(), "b".to_owned()]));
    let warning: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(warning["kind"], "list_cut");
    let people = server.run(&["locks"]);
    assert!(
        stderr(&people).starts_with("warning: there are more locks than the 2 shown"),
        "{}",
        stderr(&people)
    );
    assert_eq!(stderr(&server.run(&["binds"])), "", "this list is whole");

    let output = {
        std::fs::write(&file, "[server]\nlist_lines_max = 0\n").unwrap();
        run(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "memory:",
            "--config",
            file.to_str().unwrap(),
        ])
    };
    assert!(
        code(&output) == 78 && stderr(&output).contains("server.list_lines_max"),
        "{}",
        stderr(&output)
    );
}
