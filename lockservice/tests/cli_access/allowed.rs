//! Callers that are known, and what each may do.

use crate::cli_support::{code, json_lines, lockservice, run, stderr};
use crate::kit::{Guarded, Token, identity, is_done, is_refused, replace, serve_with};
use crate::tls_kit::{Certs, call};

#[test]
fn a_token_is_made_and_its_line_is_what_the_server_takes() {
    let made = run(&["token", "new"]);
    is_done(&made);
    let token = Token::new();
    token.write(&String::from_utf8(made.stdout.clone()).expect("text"));
    let text = stderr(&made);
    let line = text.split(" is: ").nth(1).expect("the line").trim();
    let guarded =
        Guarded::start(&format!("[[identity]]\nname = 'a'\nroles = ['client']\n{line}\n"));
    is_done(&guarded.call(&["lock", "t", "k", "--", "true"], &token));
    let other = json_lines(&run(&["token", "new", "--json"]));
    assert_ne!(other[0]["token_sha256"].as_str(), Some(line), "{other:?}");
}

#[test]
fn a_client_locks_and_lists_in_its_tables_and_an_operator_lists_and_drops_all() {
    let (client, operator) = (Token::new(), Token::new());
    let guarded = Guarded::start(&format!(
        "{}{}",
        identity("billing", "'client'", &client, "groups = ['bank']\ntables = ['acc', 'tmp']"),
        identity("admin", "'operator'", &operator, ""),
    ));
    let lock = ["lock", "accounts", "k", "--group", "bank", "--", "true"];
    is_done(&guarded.call(&lock, &client));
    let table = ["locks", "accounts", "--group", "bank"];
    is_done(&guarded.call(&table, &client));
    is_refused(&guarded.call(&["locks"], &client), "a list of everything is for operators");
    is_refused(&guarded.call(&["binds"], &client), "a list of everything is for operators");
    is_done(&guarded.call(&["hot", "accounts", "--group", "bank"], &client));
    is_refused(&guarded.call(&["hot"], &client), "a list of everything is for operators");
    is_done(&guarded.call(&["hot"], &operator));
    let kill = ["session", "kill", "s1-1", "--reason", "x"];
    for args in [&["sessions"][..], &["txns"], &kill] {
        is_refused(&guarded.call(args, &client), "needs the role operator");
    }
    is_refused(&guarded.call(&kill, &operator), "no session with this handle");
    is_done(&guarded.call(&["sessions"], &operator));
    is_done(&guarded.call(&["txns"], &operator));
    let drop = ["table", "drop", "accounts", "--group", "bank"];
    is_refused(&guarded.call(&drop, &client), "needs the role operator");
    let binds = guarded.call(&["binds", "--json"], &operator);
    assert_eq!(json_lines(&binds).len(), 1, "it is still there: {binds:?}");
    for args in [&table[..], &["locks"], &["waits"]] {
        is_done(&guarded.call(args, &operator));
    }
    is_refused(&guarded.call(&lock, &operator), "needs the role client");
    is_done(&guarded.call(&drop, &operator));
}

#[test]
fn a_certificate_is_known_by_its_common_name_and_a_token_needs_none_where_it_is_optional() {
    let (certs, token) = (Certs::make(), Token::new());
    let config = tempfile::NamedTempFile::new().expect("a file");
    let certificate = "certificates = 'billing'\nname = 'billing'\nroles = 'client'\n";
    let certificate = certificate.replace("'client'", "['client']");
    let text = format!(
        "[tls]\nclient_cert_optional = true\n[[identity]]\n{certificate}{}",
        identity("token", "'client'", &token, "tables = ['t']")
    );
    replace(config.path(), &text);
    let flags = certs.mutual_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (_running, address) = serve_with(config.path(), &flags);
    let lock = |table| ["lock", table, "k", "--", "true"];
    is_done(&call(&address, &lock("other"), &certs.client_flags()));
    let with_token = [certs.ca_flags(), token.flags()].concat();
    is_done(&call(&address, &lock("t"), &with_token));
    // The token counts if there are both.
    let both = [certs.client_flags(), token.flags()].concat();
    is_refused(&call(&address, &lock("other"), &both), "outside the groups and table prefixes");
    is_refused(&call(&address, &lock("t"), &certs.ca_flags()), "requires a token or a certificate");
    // A certificate of the CA that no identity has.
    certs.replace("billing", "stranger", crate::tls_kit::wall_clock() + HOUR);
    let output = call(&address, &lock("t"), &certs.client_flags());
    is_refused(&output, "knows no identity with the caller's certificate");
    is_refused(&output, "stranger");
}

const HOUR: std::time::Duration = std::time::Duration::from_secs(3_600);

#[test]
fn a_token_in_the_environment_is_used_too_and_a_nested_command_uses_it() {
    let token = Token::new();
    let guarded = Guarded::start(&identity("a", "'client'", &token, ""));
    let script = "\"$0\" locks --json";
    let program = env!("CARGO_BIN_EXE_lockservice");
    let output = lockservice(&["lock", "t", "k", "--", "sh", "-c", script, program])
        .env("LOCKSERVICE_SERVER", &guarded.server.address)
        .env("LOCKSERVICE_AUTH_TOKEN", &token.text)
        .output()
        .expect("it starts");
    assert_eq!((code(&output), json_lines(&output).len()), (0, 1), "{}", stderr(&output));
}
