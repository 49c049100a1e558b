//! A client and a server that know each other.

use crate::cli_support::{Server, code, json_lines, run, stderr};
use crate::kit::{Certs, call, hold, is_public};

fn server(flags: &[String]) -> Server {
    Server::start_with(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_lock_is_taken_over_mutual_tls_and_a_nested_command_uses_the_same_credentials() {
    let certs = Certs::make();
    let server = server(&certs.mutual_flags());
    let script = "cd / && \"$0\" locks --json";
    let program = env!("CARGO_BIN_EXE_lockservice");
    let args = ["lock", "t", "k", "--", "sh", "-c", script, program];
    let output = call(&server.address, &args, &certs.client_flags());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let locks = json_lines(&output);
    assert_eq!((locks.len(), locks[0]["key"].as_str()), (1, Some("k")));
}

#[test]
fn an_address_with_https_and_one_by_name_are_reached_with_the_ca_alone() {
    let certs = Certs::make();
    let server = server(&certs.server_flags());
    let port = server.address.rsplit(':').next().expect("a port");
    for address in [
        format!("https://{}", server.address),
        format!("localhost:{port}"),
        // The first does not respond.
        format!("https://127.0.0.1:1,{}", server.address),
    ] {
        let output = call(&address, &["locks"], &certs.ca_flags());
        assert_eq!(code(&output), 0, "{address}: {}", stderr(&output));
    }
}

#[test]
fn the_credentials_of_a_lock_are_in_no_argument_but_their_paths() {
    let certs = Certs::make();
    let server = server(&certs.mutual_flags());
    let holder = hold(&server.address, "k", &certs.client_flags());
    let key = std::fs::read_to_string(certs.file("billing-key.pem")).expect("a key");
    let supervisor = holder.supervisor().as_raw_nonzero();
    for pid in [holder.pid().as_raw_nonzero(), supervisor] {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs");
        let secret = key.lines().nth(1).expect("a line of the key");
        assert!(!line.contains(secret), "{line}");
    }
    let line = std::fs::read_to_string(format!("/proc/{supervisor}/cmdline")).expect("it runs");
    assert!(!line.contains("key"), "the supervisor does not need it: {line}");
}

#[test]
fn certs_keeps_its_ca_and_its_keys_to_itself() {
    let certs = Certs::make();
    let ca = std::fs::read(certs.file("ca.pem")).expect("a CA");
    let before = std::fs::read(certs.file("server.pem")).expect("a certificate");
    certs.renew();
    assert_eq!(std::fs::read(certs.file("ca.pem")).expect("a CA"), ca);
    assert_ne!(std::fs::read(certs.file("server.pem")).expect("a certificate"), before);
    for key in ["ca-key.pem", "server-key.pem", "billing-key.pem"] {
        assert!(!is_public(certs.file(key).as_ref()), "{key}");
    }
    let folder = certs.file("");
    for (args, said) in [
        (vec!["certs", &folder, "--client", "a/b"], "no name for a client's files"),
        (vec!["certs", &folder, "--client", "ca"], "no name for a client's files"),
    ] {
        let output = run(&args);
        assert!(code(&output) == 64 && stderr(&output).contains(said), "{}", stderr(&output));
    }
}
