//! Tokens are revoked or replaced while sessions hold locks.

use rustix::process::Signal;

use crate::cli_support::{DEADLINE, Running, json_lines, now};
use crate::kit::{Guarded, Token, identity, is_done, is_refused};
use crate::tls_kit::{call_until, command, error_line_with, hold};

/// Waits until the server knows `token` no more, or knows it.
fn until_known(guarded: &Guarded, token: &Token, known: bool) {
    call_until(&guarded.server.address, &token.flags(), |output| output.status.success() == known);
}

#[test]
fn a_revoked_token_ends_its_sessions_with_a_reason_and_no_other_session() {
    let (revoked, other) = (Token::new(), Token::new());
    let others = identity("other", "'client'", &other, "");
    let guarded =
        Guarded::start(&format!("{}{others}", identity("revoked", "'client'", &revoked, "")));
    let address = &guarded.server.address;
    let ended = hold(address, "k", &revoked.flags());
    let mut stays = hold(address, "other", &other.flags());
    // It waits for the lock of the one that is revoked.
    let args = ["lock", "t", "k", "--", "echo", "mine"];
    let mut waits = Running::start(&mut command(address, &args, &other.flags()));
    waits.error_line();
    let before = now();
    guarded.set(&others);
    let (status, text) = ended.wait();
    assert_eq!(status.code(), Some(70), "{text}");
    assert!(text.contains("does not know the caller's token"), "{text}");
    // The lock goes to others when the session has lapsed: its client cannot confirm its end.
    assert_eq!(waits.line(), "mine");
    assert!(now().since(before) < DEADLINE);
    is_refused(&guarded.call(&["locks"], &revoked), "does not know the caller's token");
    let locks = json_lines(&guarded.call(&["locks", "--json"], &other));
    assert_eq!((locks.len(), locks[0]["key"].as_str()), (1, Some("other")));
    assert!(stays.child.try_wait().expect("a child").is_none());
    stays.signal(Signal::TERM);
}

#[test]
fn a_token_that_is_replaced_at_both_ends_costs_no_session() {
    let (token, new) = (Token::new(), Token::new());
    let with = |hashes: &str| {
        format!("[[identity]]\nname = 'a'\nroles = ['client']\ntoken_sha256 = [{hashes}]\n")
    };
    let (old_hash, new_hash) = (format!("'{}'", token.hash()), format!("'{}'", new.hash()));
    let guarded = Guarded::start(&with(&old_hash));
    let address = guarded.server.address.clone();
    let mut holder = hold(&address, "k", &token.flags());
    let old = Token::new();
    old.write(&token.text);
    guarded.set(&with(&format!("{old_hash}, {new_hash}")));
    until_known(&guarded, &new, true);
    // The client's file is replaced, and then the old token is revoked.
    token.write(&new.text);
    guarded.set(&with(&new_hash));
    until_known(&guarded, &old, false);
    // Longer than the session's TTL of 2 s: it is renewed with the new token.
    let until = now() + std::time::Duration::from_secs(4);
    while now() < until {
        let locks = json_lines(&guarded.call(&["locks", "--json"], &new));
        assert_eq!(locks.len(), 1, "{:?}", holder.errors());
    }
    assert!(holder.child.try_wait().expect("a child").is_none());
}

#[test]
fn an_identity_that_loses_its_role_or_its_table_may_use_it_no_more() {
    let token = Token::new();
    let guarded = Guarded::start(&identity("a", "'client'", &token, ""));
    let holder = hold(&guarded.server.address, "k", &token.flags());
    guarded.set(&identity("a", "'operator'", &token, ""));
    let (status, text) = holder.wait();
    assert_eq!(status.code(), Some(70), "{text}");
    assert!(text.contains("needs the role client"), "{text}");
    guarded.set(&identity("a", "'client'", &token, "tables = ['u']"));
    let refused = |output: &std::process::Output| {
        String::from_utf8_lossy(&output.stderr).contains("a list of everything")
    };
    call_until(&guarded.server.address, &token.flags(), refused);
    is_refused(&guarded.call(&["lock", "t", "k", "--", "true"], &token), "outside the groups");
    is_done(&guarded.call(&["lock", "u", "k", "--", "true"], &token));
}

#[test]
fn identities_that_are_emptied_by_mistake_open_nothing_and_broken_ones_change_nothing() {
    let token = Token::new();
    let guarded = Guarded::start(&identity("a", "'client'", &token, ""));
    guarded.set("[[identity]]\nname = 'b'\n");
    error_line_with(&guarded.server.running, "the identities cannot be replaced");
    is_done(&guarded.call(&["locks"], &token));
    guarded.set("");
    until_known(&guarded, &token, false);
    let output = crate::tls_kit::call(&guarded.server.address, &["locks"], &[]);
    is_refused(&output, "requires a token or a certificate");
}
