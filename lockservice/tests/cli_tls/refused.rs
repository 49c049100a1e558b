//! A client and a server that do not accept each other: the status, and a sentence that helps.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Output;
use std::time::Duration;

use crate::cli_support::{DEADLINE, Running, Server, code, json_lines, lockservice, run, stderr};
use crate::kit::{Certs, call, call_until, error_line_with, wall_clock};

fn server(flags: &[String]) -> Server {
    Server::start_with(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The call was refused at once, with this in its sentence.
#[track_caller]
fn is_refused(output: &Output, said: &str) {
    let text = stderr(output);
    assert_eq!(code(output), 64, "{text}");
    assert!(text.contains(said), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// Nothing is locked, and the server still serves those that it knows.
#[track_caller]
fn nothing_changed(server: &Server, flags: &[String]) {
    let output = call(&server.address, &["locks", "--json"], flags);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(json_lines(&output).is_empty(), "{output:?}");
}

const LOCK: [&str; 6] = ["lock", "t", "k", "--", "echo", "locked"];

#[test]
fn a_client_in_plain_text_is_told_that_the_server_speaks_tls() {
    let certs = Certs::make();
    for flags in [certs.server_flags(), certs.mutual_flags()] {
        let server = server(&flags);
        for args in [&LOCK[..], &["locks"], &["binds"], &["table", "drop", "t"]] {
            let output = call(&server.address, args, &[]);
            is_refused(&output, "this server speaks TLS: connect to https://");
        }
        nothing_changed(&server, &certs.client_flags());
    }
}

#[test]
fn a_client_with_tls_is_told_that_the_server_does_not_speak_it() {
    let certs = Certs::make();
    let server = Server::start();
    let said = format!("the server at {} does not speak TLS: use http://", server.address);
    is_refused(&call(&server.address, &LOCK, &certs.ca_flags()), &said);
    let address = format!("http://{}", server.address);
    assert_eq!(code(&call(&address, &LOCK, &certs.ca_flags())), 0, "as it says");
    nothing_changed(&server, &[]);
}

#[test]
fn a_ca_that_did_not_sign_the_servers_certificate_is_named() {
    let (certs, other) = (Certs::make(), Certs::make());
    let server = server(&certs.server_flags());
    let output = call(&server.address, &LOCK, &other.ca_flags());
    is_refused(&output, &format!("is signed by no CA of {}", other.file("ca.pem")));
    nothing_changed(&server, &certs.ca_flags());
}

#[test]
fn a_certificate_for_another_name_is_refused_and_both_names_are_said() {
    let certs = Certs::make();
    certs.replace_server("other.example", Duration::from_secs(3_600));
    let server = server(&certs.server_flags());
    let output = call(&server.address, &LOCK, &certs.ca_flags());
    is_refused(&output, "other.example");
    is_refused(&output, "and not for 127.0.0.1: connect by a name that it has");
}

#[test]
fn an_expired_certificate_of_the_server_is_refused_by_its_clients() {
    let certs = Certs::make();
    certs.replace_server("127.0.0.1", Duration::from_secs(4));
    let server = server(&certs.server_flags());
    let expired = |output: &Output| code(output) != 0;
    let output = call_until(&server.address, &certs.ca_flags(), expired);
    is_refused(&output, &format!("the certificate of the server at {} expired on", server.address));
}

#[test]
fn a_server_does_not_start_with_files_that_it_cannot_use_and_names_them() {
    let long_ago = wall_clock() - Duration::from_secs(3_600);
    let (expired, mixed, empty, missing) =
        (Certs::make(), Certs::make(), Certs::make(), Certs::make());
    expired.replace("server", "127.0.0.1", long_ago);
    std::fs::copy(expired.file("ca-key.pem"), mixed.file("server-key.pem")).expect("copied");
    std::fs::write(empty.file("server.pem"), "").expect("written");
    std::fs::remove_file(missing.file("ca.pem")).expect("removed");
    for (certs, file, said) in [
        (&expired, "server.pem", "expired on 20"),
        (&mixed, "server-key.pem", "is not that of the certificate in"),
        (&empty, "server.pem", "holds no certificate"),
        (&missing, "ca.pem", "cannot be read"),
    ] {
        let flags = certs.mutual_flags();
        let mut args = vec!["serve", "--listen", "127.0.0.1:0", "--store", "memory:"];
        args.extend(flags.iter().map(String::as_str));
        let output = run(&args);
        let text = stderr(&output);
        assert_eq!(code(&output), 78, "{text}");
        assert!(text.contains(&certs.file(file)) && text.contains(said), "{said}: {text}");
        assert!(!text.contains("PRIVATE"), "{text}");
    }
    let certs = Certs::make();
    let output = run(&["serve", "--tls-cert", &certs.file("server.pem")]);
    assert!(stderr(&output).contains("tls.key"), "{}", stderr(&output));
}

#[test]
fn a_client_without_a_certificate_of_the_right_ca_is_told_what_is_missing() {
    let (certs, other) = (Certs::make(), Certs::make());
    let server = server(&certs.mutual_flags());
    let output = call(&server.address, &LOCK, &certs.ca_flags());
    is_refused(
        &output,
        "requires a certificate of its clients: present one (--cert and --cert-key)",
    );
    let (cert, key) = (other.file("billing.pem"), other.file("billing-key.pem"));
    let mut foreign = certs.ca_flags();
    foreign.extend(["--cert".to_owned(), cert.clone(), "--cert-key".to_owned(), key]);
    let output = call(&server.address, &LOCK, &foreign);
    is_refused(&output, "does not know the CA of this end's certificate");
    is_refused(&output, &cert);
    nothing_changed(&server, &certs.client_flags());
}

#[test]
fn a_client_names_its_own_certificate_that_has_expired() {
    let certs = Certs::make();
    let server = server(&certs.mutual_flags());
    certs.replace("billing", "billing", wall_clock() - Duration::from_secs(3_600));
    let output = call(&server.address, &LOCK, &certs.client_flags());
    is_refused(&output, &format!("the certificate in {} expired on", certs.file("billing.pem")));
}

#[test]
fn addresses_of_other_machines_are_served_with_mutual_tls_alone() {
    let certs = Certs::make();
    let serve = |flags: &[String]| {
        let mut args = vec!["serve", "--listen", "0.0.0.0:0", "--store", "nothing:"];
        args.extend(flags.iter().map(String::as_str));
        stderr(&run(&args))
    };
    // The unknown store is what ends a server that would serve.
    let text = serve(&certs.mutual_flags());
    assert!(text.contains("store") && !text.contains("--insecure"), "{text}");
    for flags in [&certs.server_flags()[..], &[]] {
        let text = serve(flags);
        assert!(text.contains("--tls-client-ca") && text.contains("--insecure"), "{text}");
    }
}

#[test]
fn a_handshake_that_is_never_finished_is_ended_in_time_and_holds_up_no_other() {
    let certs = Certs::make();
    let flags = certs.server_flags();
    let mut args = vec!["serve", "--json", "--listen", "127.0.0.1:0", "--store", "memory:"];
    args.extend(flags.iter().map(String::as_str));
    let mut command = lockservice(&args);
    command.env("LOCKSERVICE_SERVER__HELLO_MS_MAX", "1000");
    let mut server = Running::start(&mut command);
    let ready: serde_json::Value = serde_json::from_str(&server.line()).expect("one object");
    let address = ready["address"].as_str().expect("the address");
    // The begin of a handshake record, and of none.
    let mut begun: Vec<_> = [&[22, 3][..], &[], b"P"]
        .iter()
        .map(|begin| {
            let mut stream = TcpStream::connect(address).expect("it listens");
            stream.write_all(begin).expect("it is open");
            stream
        })
        .collect();
    let output = call(address, &["locks"], &certs.ca_flags());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for stream in &mut begun {
        stream.set_read_timeout(Some(DEADLINE)).expect("a time");
        // What it may say before it closes the connection is of no interest.
        let _ = stream.read_to_end(&mut Vec::new()).expect("it is closed in time");
    }
    error_line_with(&server, "the handshake was not over in time");
}

#[test]
fn many_failed_handshakes_are_few_lines_in_the_log_with_the_reason_and_their_number() {
    let certs = Certs::make();
    let server = server(&certs.server_flags());
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&server.address).expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it is open");
        // It may be reset, for not everything was read.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    error_line_with(&server.running, "it speaks neither TLS nor HTTP/2");
    let more = server.running.errors().len();
    assert!(more < 10, "{more} more lines");
}
