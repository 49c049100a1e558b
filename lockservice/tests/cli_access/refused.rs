//! Callers that are not known, or may not: the status, and a sentence that helps.

use crate::cli_support::{code, json_lines, lockservice, run, stderr};
use crate::kit::{Guarded, Token, identity, is_done, is_refused, replace, serve_with};
use crate::tls_kit::{call, hold};

const LOCK: [&str; 6] = ["lock", "t", "k", "--", "echo", "locked"];

#[test]
fn a_caller_without_a_token_or_with_a_wrong_one_gets_nothing() {
    let (token, other) = (Token::new(), Token::new());
    let guarded = Guarded::start(&identity("a", "'client', 'operator'", &token, ""));
    let address = &guarded.server.address;
    for args in [&LOCK[..], &["locks"], &["waits"], &["binds"], &["table", "drop", "t"]] {
        is_refused(&call(address, args, &[]), "requires a token or a certificate");
        let output = guarded.call(args, &other);
        is_refused(&output, "does not know the caller's token: it is wrong, or was revoked");
        assert!(!stderr(&output).contains(&other.text), "{}", stderr(&output));
    }
    let output = guarded.call(&["locks", "--json"], &other);
    let error: serde_json::Value = serde_json::from_str(&stderr(&output)).expect("one object");
    assert_eq!(error["kind"], "unauthenticated");
    let locks = guarded.call(&["binds", "--json"], &token);
    assert!(json_lines(&locks).is_empty(), "nothing has changed: {locks:?}");
}

#[test]
fn a_table_outside_the_prefix_is_refused_in_the_same_way_whether_it_exists_or_not() {
    let (limited, other) = (Token::new(), Token::new());
    let guarded = Guarded::start(&format!(
        "{}{}",
        identity("limited", "'client'", &limited, "tables = ['mine']"),
        identity("other", "'client'", &other, ""),
    ));
    let _holder = hold(&guarded.server.address, "k", &other.flags());
    let mut said = Vec::new();
    for table in ["t", "u"] {
        for args in [
            vec!["lock", table, "k", "--no-wait", "--", "echo", "locked"],
            vec!["locks", table],
            vec!["waits", table],
            vec!["hot", table],
        ] {
            let output = guarded.call(&args, &limited);
            is_refused(&output, "outside the groups and table prefixes of the caller's identity");
            said.push(stderr(&output).replace("default/t", "X").replace("default/u", "X"));
        }
    }
    assert!(said.windows(2).all(|two| two[0] == two[1]), "{said:?}");
    is_done(&guarded.call(&["lock", "mine", "k", "--", "true"], &limited));
    let locks = guarded.call(&["locks", "--json"], &other);
    assert_eq!(json_lines(&locks).len(), 1, "nothing else has changed: {locks:?}");
}

#[test]
fn no_token_is_in_a_log_an_error_or_an_argument() {
    let token = Token::new();
    let config = tempfile::NamedTempFile::new().expect("a file");
    replace(config.path(), &identity("a", "'client'", &token, ""));
    let (running, address) = serve_with(config.path(), &[]);
    let holder = hold(&address, "k", &token.flags());
    for pid in [holder.pid().as_raw_nonzero(), holder.supervisor().as_raw_nonzero()] {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs");
        assert!(!line.contains(&token.text), "{line}");
    }
    let other = Token::new();
    let output = lockservice(&["locks", "--server", &address])
        .env("LOCKSERVICE_AUTH_TOKEN", &other.text)
        .env("RUST_LOG", "trace")
        .output()
        .expect("it starts");
    is_refused(&output, "does not know the caller's token");
    drop(holder);
    let log = running.errors().join("\n") + &stderr(&output);
    assert!(log.contains("started_from"), "{log}");
    assert!(!log.contains(&token.text) && !log.contains(&other.text), "{log}");
}

#[test]
fn a_token_is_not_sent_to_another_machine_in_plain_text() {
    let token = Token::new();
    let output = call("db.invalid:7654", &LOCK, &token.flags());
    is_refused(&output, "a token is not sent to another machine in plain text");
    // It is not even looked up: no such name exists.
    let output = call("http://db.invalid:7654", &LOCK, &token.flags());
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    let missing = vec!["--token-file".to_owned(), "/nothing/here".to_owned()];
    is_refused(&call("127.0.0.1:1", &LOCK, &missing), "/nothing/here");
}

#[test]
fn identities_that_cannot_be_used_keep_a_server_from_its_start_and_are_named() {
    let token = Token::new();
    let config = tempfile::NamedTempFile::new().expect("a file");
    let path = config.path().to_str().expect("text");
    let one = identity("a", "'client'", &token, "");
    for (text, said) in [
        (format!("{one}{one}"), "\"a\" has a name, a token"),
        (one.replace("'client'", "'root'"), "root"),
        (one.replace("token_sha256", "token"), "token"),
        (one.replace(&token.hash(), &token.text), "64 hexadecimal digits"),
        (one.replace(&format!("'{}'", token.hash()), "7"), "one text, or a list"),
        ("[tls]\nclient_cert_optional = true\n".to_owned(), "add an [[identity]]"),
    ] {
        replace(config.path(), &text);
        for flags in [["--config", path], ["--identity-file", path]] {
            let args = ["serve", "--listen", "127.0.0.1:0", "--store", "nothing:"];
            let output = run(&[&args[..], &flags].concat());
            if text.starts_with("[tls]") && flags[0] == "--identity-file" {
                continue;
            }
            let sentence = stderr(&output);
            assert_eq!(code(&output), 78, "{said}: {sentence}");
            assert!(sentence.contains(said), "{said}: {sentence}");
            assert!(!sentence.contains(&token.text), "{sentence}");
        }
    }
}
