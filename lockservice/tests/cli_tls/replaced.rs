//! Certificates are replaced while sessions hold locks.

use std::process::Output;

use rustix::process::Signal;

use crate::cli_support::{DEADLINE, Running, Server, code, json_lines, lockservice, now, stderr};
use crate::kit::{Certs, Proxy, call, call_until, error_line_with, hold};

fn server(flags: &[String]) -> Server {
    Server::start_with(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Copies of the CA and the client's files, which are not replaced with those of the server.
fn copy_of(certs: &Certs) -> Certs {
    let copy = Certs::make();
    copy.replace_by(certs);
    copy
}

fn serves(output: &Output) -> bool {
    code(output) == 0
}

/// The lock is held, also after its TTL of 2 s has passed once more.
fn is_held_on(address: &str, flags: &[String], holder: &mut Running) {
    let until = now() + std::time::Duration::from_secs(3);
    assert!(until < now() + DEADLINE);
    loop {
        let output = call(address, &["locks", "--json"], flags);
        let locks = json_lines(&output);
        assert_eq!(locks.len(), 1, "{}", stderr(&output));
        assert_eq!(locks[0]["state"], "holds");
        if now() > until {
            break;
        }
    }
    assert!(holder.child.try_wait().expect("a child").is_none(), "{:?}", holder.errors());
}

#[test]
fn certificates_of_a_new_ca_are_used_by_new_connections_and_no_session_is_lost() {
    let (certs, new) = (Certs::make(), Certs::make());
    let old = copy_of(&certs);
    let server = server(&certs.mutual_flags());
    let mut holder = hold(&server.address, "k", &old.client_flags());
    certs.replace_by(&new);
    // No signal: the change of the files is enough.
    call_until(&server.address, &new.client_flags(), serves);
    let output = call(&server.address, &["locks"], &old.client_flags());
    assert!(stderr(&output).contains("is signed by no CA of"), "{}", stderr(&output));
    is_held_on(&server.address, &new.client_flags(), &mut holder);
    holder.signal(Signal::TERM);
    let (status, text) = holder.wait();
    assert!(!text.contains("lost"), "{status:?}: {text}");
}

#[test]
fn a_client_whose_files_were_replaced_too_resumes_its_session_on_a_new_connection() {
    let (certs, new) = (Certs::make(), Certs::make());
    let server = server(&certs.mutual_flags());
    let proxy = Proxy::to(&server.address);
    let mut holder = hold(&proxy.address, "k", &certs.client_flags());
    certs.replace_by(&new);
    call_until(&server.address, &new.client_flags(), serves);
    assert!(proxy.cut() > 0, "the holder is connected through it");
    is_held_on(&server.address, &new.client_flags(), &mut holder);
    assert!(proxy.cut() > 0, "it has connected again");
}

#[test]
fn files_that_do_not_fit_together_change_nothing_and_are_reported_with_their_names() {
    let (certs, new) = (Certs::make(), Certs::make());
    let old = copy_of(&certs);
    let server = server(&certs.mutual_flags());
    std::fs::copy(new.file("server.pem"), certs.file("server.pem")).expect("copied");
    let said = error_line_with(&server.running, "cannot be replaced");
    assert!(said.contains(&certs.file("server-key.pem")), "{said}");
    let output = call(&server.address, &["locks"], &old.client_flags());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    // The other half follows.
    std::fs::copy(new.file("server-key.pem"), certs.file("server-key.pem")).expect("copied");
    std::fs::copy(new.file("ca.pem"), certs.file("ca.pem")).expect("copied");
    call_until(&server.address, &new.client_flags(), serves);
}

#[test]
fn sighup_has_certificates_read_at_once_and_ends_no_server() {
    let certs = Certs::make();
    let flags = certs.mutual_flags();
    let mut args = vec!["serve", "--json", "--listen", "127.0.0.1:0", "--store", "memory:"];
    args.extend(flags.iter().map(String::as_str));
    let mut command = lockservice(&args);
    // Without a terminal, as a daemon has none.
    let mut setsid = std::process::Command::new("setsid");
    setsid.arg(command.get_program()).args(command.get_args()).env("RUST_LOG", "info");
    command = setsid;
    let mut running = Running::start(&mut command);
    let ready: serde_json::Value = serde_json::from_str(&running.line()).expect("one object");
    let address = ready["address"].as_str().expect("the address");
    running.signal(Signal::HUP);
    // Nothing has changed: only the signal has them read.
    error_line_with(&running, "the certificates were read again");
    let output = call(address, &["locks"], &certs.client_flags());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}
