//! `lockservice serve`, the lists, and wrong usage.

mod cli_support;

use std::process::Stdio;

use cli_support::{Running, Server, code, lockservice, run, stderr};
use rustix::process::Signal;

#[test]
fn wrong_usage_exits_with_64_and_help_with_0() {
    for args in [
        &["nonsense"][..],
        &[],
        &["lock", "t", "k"],
        &["lock", "t", "--", "true"],
        &["lock", "t", "k", "--range", "a", "b", "--", "true"],
        &["lock", "t", "k", "--timeout", "soon", "--", "true"],
        &["lock", "", "k", "--", "true"],
        &["lock", "a\nb", "k", "--", "true"],
        &["lock", "t", "", "--", "true"],
        &["lock", "t", "--range", "b", "a", "--", "true"],
        &["locks", "--server", "ftp://x"],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 64, "{args:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty());
    }
    let long = "k".repeat(4097);
    assert_eq!(code(&run(&["lock", "t", &long, "--", "true"])), 64);
    for args in [&["--help"][..], &["--version"], &["lock", "--help"], &["serve", "--help"]] {
        assert_eq!(code(&run(args)), 0, "{args:?}");
    }
    let json = run(&["lock", "t", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!((code(&json), object["kind"].as_str()), (64, Some("usage")));
}

#[test]
fn without_a_server_the_status_is_69() {
    // Bound and closed again: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for args in [&["locks"][..], &["waits"], &["binds"], &["lock", "t", "k", "--", "true"]] {
        let output = lockservice(args).env("LOCKSERVICE_SERVER", &free).output().unwrap();
        assert_eq!(code(&output), 69, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "));
    }
}

#[test]
fn what_is_configured_wrongly_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "lisen = \"127.0.0.1:0\"\n").unwrap();
    let output = run(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("lisen"), "{}", stderr(&output));

    let output = lockservice(&["serve"]).env("LOCKSERVICE_STROE", "memory:").output().unwrap();
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("LOCKSERVICE_STROE"), "{}", stderr(&output));

    let output = run(&["serve", "--listen", "127.0.0.1:0", "--store", "cassandra://x"]);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    assert!(stderr(&output).contains("file:"), "it says what there is: {}", stderr(&output));

    let output = run(&["serve", "--listen", "0.0.0.0:0", "--store", "memory:"]);
    assert_eq!(code(&output), 64);
    assert!(stderr(&output).contains("--insecure"));
}

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
    let mut server = Running::start(&mut lockservice(&["serve", "--listen", "127.0.0.1:0", "--store", "memory:"]));
    assert!(server.line().contains("store memory:"));
    server.signal(Signal::TERM);
    let (status, text) = server.wait();
    assert!(status.success());
    assert!(text.contains("the store is memory"), "{text}");
}

#[test]
fn the_lists_are_tables_or_objects() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["accounts", "alice"]);
    let lock: serde_json::Value = serde_json::from_slice(&server.run(&["locks", "accounts", "--json"]).stdout).unwrap();
    assert_eq!(
        (lock["table"].as_str(), lock["key"].as_str(), lock["mode"].as_str()),
        (Some("accounts"), Some("alice"), Some("exclusive"))
    );
    assert!(server.run(&["locks", "others", "--json"]).stdout.is_empty());
    let bind: serde_json::Value = serde_json::from_slice(&server.run(&["binds", "--json"]).stdout).unwrap();
    for field in ["group", "table", "partition", "owner", "version", "state"] {
        assert!(!bind[field].is_null(), "{field}");
    }
    assert_eq!(bind["state"], "bound");
    let table = String::from_utf8(server.run(&["locks"]).stdout).unwrap();
    assert!(table.lines().next().unwrap().starts_with("GROUP") && table.contains("alice"), "{table}");
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    for args in [&["locks"][..], &["binds", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = server.command(args).stdout(Stdio::from(writer)).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn the_benchmark_prints_both_sides() {
    let output = run(&["bench", "--callers", "1,4", "--seconds", "1", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let runs: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(runs.iter().map(|run| run["callers"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 4]);
    assert!(
        runs.iter().all(|run| run["lock"]["p50_us"].as_f64() > Some(0.0) && run["echo"]["p50_us"].as_f64() > Some(0.0))
    );
}

#[test]
fn a_list_that_was_cut_says_so_on_stderr_and_its_lines_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "[server]\nlist_lines_max = 2\n").unwrap();
    let server = Server::start_with(&["--config", file.to_str().unwrap()]);
    let (_holder, _) = server.hold(&["t", "a", "b", "c"]);
    let json = server.run(&["locks", "--json"]);
    let lines = String::from_utf8(json.stdout.clone()).unwrap();
    let keys: Vec<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((code(&json), keys), (0, vec!["a".to_owned(), "b".to_owned()]));
    let warning: serde_json::Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(warning["kind"], "list_cut");
    let people = server.run(&["locks"]);
    assert!(stderr(&people).starts_with("warning: 1 more locks are not shown"), "{}", stderr(&people));
    assert_eq!(stderr(&server.run(&["binds"])), "", "this list is whole");

    let output = {
        std::fs::write(&file, "[server]\nlist_lines_max = 0\n").unwrap();
        run(&["serve", "--listen", "127.0.0.1:0", "--store", "memory:", "--config", file.to_str().unwrap()])
    };
    assert!(code(&output) == 64 && stderr(&output).contains("server.list_lines_max"), "{}", stderr(&output));
}
