//! Help, wrong usage, and wrong settings.

use serde_json::Value;

use crate::cli_support::{code, lockservice, run, stderr};

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
    let object: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!((code(&json), object["kind"].as_str()), (64, Some("usage")));
}

#[test]
fn without_a_server_the_status_is_69() {
    // Bound and closed again: no listener is there.
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
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

    std::fs::write(&file, "[server]\nconnections_max = 0\n").unwrap();
    let output = run(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("server.connections_max"), "{}", stderr(&output));

    let output = run(&["serve", "--listen", "127.0.0.1:0", "--store", "cassandra://x"]);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    assert!(stderr(&output).contains("file:"), "it says what there is: {}", stderr(&output));

    let output = run(&["serve", "--listen", "0.0.0.0:0", "--store", "memory:"]);
    assert_eq!(code(&output), 64);
    assert!(stderr(&output).contains("--insecure"));
}

#[test]
fn help_lists_every_setting_with_its_default() {
    let help = String::from_utf8(run(&["serve", "--help"]).stdout).unwrap();
    for setting in [
        "listen = \"127.0.0.1:7654\"",
        "server.connections_max = 10000",
        "service.engine.victim = ",
    ] {
        assert!(help.contains(setting), "{setting}: {help}");
    }
    let short = String::from_utf8(run(&["serve", "-h"]).stdout).unwrap();
    assert!(!short.contains("connections_max") && short.contains("--help"), "{short}");
}
