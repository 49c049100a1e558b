//! Claims of what was not held, or too late.

use lockservice::proto;

use crate::cli_support::Server;
use crate::foreign::{Foreign, claim_of};
use crate::server;

/// Makes a claim of what was held into one of what was not.
type Change<'a> = dyn Fn(&mut proto::HeldLocks) + 'a;

/// Asserts that a claim was refused, with a reason.
fn is_refused(claimed: Result<(), proto::Error>, what: &str) {
    let error = claimed.expect_err(what);
    assert_eq!(error.kind, "claim_refused", "{what}: {error:?}");
    assert!(!error.message.is_empty(), "{what}: it says why");
}

#[tokio::test]
async fn claims_of_what_was_never_granted_are_refused_and_the_session_goes_on() {
    let server = server();
    let mut before = Foreign::open(&server.address).await;
    // Bound first, so that its version was over when the other table was bound.
    let elsewhere = before.lock((1, 1), "others", "k").await.expect("free");
    let locked = before.lock((2, 1), "jobs", "k").await.expect("free");
    let server = server.crash_and_restart();
    let mut back = before.back(&server.address).await.expect("within its guard");
    let wrong: [(&str, &Change); 6] = [
        ("an unknown table", &|held| held.table = "unknown".to_owned()),
        ("an unknown group", &|held| held.group = "unknown".to_owned()),
        ("a later version", &|held| held.version += 1 << 40),
        ("an earlier version", &|held| held.version -= 1),
        ("the version of another table", &|held| {
            held.version = elsewhere.bind.as_ref().expect("a bind").version;
        }),
        ("a token above the block", &|held| held.token += 1 << 40),
    ];
    for (number, (what, make)) in (10..).zip(wrong) {
        // Each in a transaction of its own: the first claim that fails ends it.
        // An even number is that of a transaction that does not validate.
        let id = locked.txn.rsplit_once('-').map(|(origin, _)| format!("{origin}-{number}0"));
        let mut claim = claim_of(number, &locked, "k");
        claim.id = id.unwrap_or_default();
        make(&mut claim.locks[0]);
        is_refused(back.claim(claim).await, what);
    }
    back.claim(claim_of(1, &elsewhere, "k")).await.expect("this one was held");
    back.claim(claim_of(2, &locked, "k")).await.expect("so was this one");
    assert!(back.claims_done(20).await > 0);
    back.lock((21, 1), "new", "k").await.expect("the session goes on");
    assert_eq!(back.end(1, 2).await, 1);
}

#[tokio::test]
async fn a_claim_is_all_or_nothing() {
    let server = server();
    let mut before = Foreign::open(&server.address).await;
    let locked = before.lock((1, 1), "jobs", "k").await.expect("free");
    let server = server.crash_and_restart();
    let mut back = before.back(&server.address).await.expect("within its guard");
    let mut claim = claim_of(1, &locked, "k");
    let mut never = claim.locks[0].clone();
    never.table = "unknown".to_owned();
    claim.locks.push(never);
    is_refused(back.claim(claim).await, "one half was never held");
    assert!(back.claims_done(1).await > 0);
    let locks = server.run(&["locks", "--json"]);
    assert_eq!(String::from_utf8_lossy(&locks.stdout), "", "nothing of it is held");
}

#[tokio::test]
async fn what_was_released_before_a_stop_cannot_be_claimed() {
    let server = server();
    let mut before = Foreign::open(&server.address).await;
    let locked = before.lock((1, 1), "jobs", "k").await.expect("free");
    assert_eq!(before.end(1, 2).await, 1);
    // Something is held elsewhere, so that the session has something to claim.
    let held = before.lock((2, 1), "others", "k").await.expect("free");
    let server = server.stop_and_restart();
    let mut back = before.back(&server.address).await.expect("within its guard");
    back.claim(claim_of(2, &held, "k")).await.expect("it was held");
    is_refused(back.claim(claim_of(1, &locked, "k")).await, "it was released");
    assert!(back.claims_done(2).await > 0);
}

#[tokio::test]
async fn a_client_that_comes_back_after_its_guard_has_nothing_left_to_claim() {
    let server = Server::start_with(&["--lease-ttl=2s"]);
    let mut before = Foreign::open_for(&server.address, 2_000).await;
    let locked = before.lock((1, 1), "jobs", "k").await.expect("free");
    let server = server.crash_and_restart();
    // Granted to the next one, which waits until no guard of the time before holds any more.
    let next = server.run(&["lock", "jobs", "k", "--", "sh", "-c", "echo $LOCKSERVICE_TOKEN"]);
    assert!(next.status.success(), "{next:?}");
    let token: u64 = String::from_utf8_lossy(&next.stdout).trim().parse().expect("its token");
    assert!(token > locked.token);
    match before.back(&server.address).await {
        // It never heard of that session.
        Err(error) => assert_eq!(error.kind, "session_lost", "{error:?}"),
        Ok(mut back) => is_refused(back.claim(claim_of(1, &locked, "k")).await, "too late"),
    }
}

#[tokio::test]
async fn the_transaction_of_another_session_cannot_be_claimed() {
    let server = server();
    let mut owner = Foreign::open(&server.address).await;
    let mut thief = Foreign::open(&server.address).await;
    let locked = owner.lock((1, 1), "jobs", "k").await.expect("free");
    let own = thief.lock((1, 1), "jobs", "l").await.expect("free");
    let server = server.crash_and_restart();
    let mut owner = owner.back(&server.address).await.expect("within its guard");
    let mut thief = thief.back(&server.address).await.expect("within its guard");
    owner.claim(claim_of(1, &locked, "k")).await.expect("it was held");
    let stolen = proto::ClaimOp { id: locked.txn.clone(), ..claim_of(5, &own, "l") };
    is_refused(thief.claim(stolen).await, "it is the transaction of another");
    thief.claim(claim_of(1, &own, "l")).await.expect("this is its own");
    assert!(owner.claims_done(1).await > 0 && thief.claims_done(5).await > 0);
    assert_eq!(owner.end(1, 2).await, 1, "it was left alone");
    assert_eq!(thief.end(1, 2).await, 1);
}
