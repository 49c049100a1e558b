//! Claims of what was held.

use lockservice::proto;

use crate::cli_support::{Server, json_lines};
use crate::foreign::{Foreign, claim_of};
use crate::server;

#[tokio::test]
async fn what_was_held_is_held_on_under_its_token_after_a_crash() {
    let server = server();
    let mut before = Foreign::open(&server.address).await;
    let locked = before.lock((1, 1), "jobs", "k").await.expect("free");
    let server = server.crash_and_restart();
    let mut back = goes_on(&before, &locked, &server).await;
    let further = back.lock((1, 2), "others", "l").await.expect("it goes on where it was");
    assert_eq!(further.txn, locked.txn);
    assert_eq!(back.end(1, 3).await, 2);
    // The other holders are not known, so the table waits for as long as there can be some.
    let mut other = Foreign::open(&server.address).await;
    let refused = other.try_lock((1, 1), "jobs", "k").await.expect_err("it waits");
    assert_eq!(refused.kind, "reassigning", "{refused:?}");
}

#[tokio::test]
async fn what_was_held_is_held_on_under_its_token_after_a_stop() {
    let server = server();
    let mut before = Foreign::open(&server.address).await;
    let locked = before.lock((1, 1), "jobs", "k").await.expect("free");
    // The stop waits for nobody, and exits with 0.
    let server = server.stop_and_restart();
    let mut back = goes_on(&before, &locked, &server).await;
    // All holders have claimed, so the table serves others again, long before the lease is over.
    let further = back.lock((1, 2), "jobs", "l").await.expect("it goes on where it was");
    assert_eq!(further.txn, locked.txn);
    assert!(further.token > locked.token, "{further:?} after {locked:?}");
    assert_eq!(back.end(1, 3).await, 2);
    let mut other = Foreign::open(&server.address).await;
    other.lock((1, 1), "jobs", "k").await.expect("free again");
}

/// Claims, and is as before: nobody else has the row, and others are not kept from what is free.
async fn goes_on(before: &Foreign, locked: &proto::Locked, server: &Server) -> Foreign {
    let mut back = before.back(&server.address).await.expect("within its guard");
    assert!(back.welcome.reclaim, "{:?}", back.welcome);
    assert_eq!(back.welcome.session, before.welcome.session);
    assert!(back.welcome.service > before.welcome.service);
    let claim = claim_of(1, locked, "k");
    for _ in 0..2 {
        back.claim(claim.clone()).await.expect("it was held; a repetition succeeds");
    }
    assert!(back.claims_done(1).await > 0);
    let locks = json_lines(&server.run(&["locks", "--json"]));
    let tokens: Vec<_> = locks.iter().map(|lock| lock["token"].as_u64()).collect();
    assert_eq!(tokens, [Some(locked.token)], "{locks:?}");
    let mut other = Foreign::open(&server.address).await;
    let refused = other.try_lock((1, 1), "jobs", "k").await.expect_err("it is held");
    assert!(["conflict", "reassigning"].contains(&refused.kind.as_str()), "{refused:?}");
    other.lock((2, 1), "free", "k").await.expect("nothing was held in this table");
    back
}

#[tokio::test]
async fn a_crash_after_a_stop_and_before_any_claim_changes_nothing() {
    let server = server();
    let mut before = Foreign::open(&server.address).await;
    let locked = before.lock((1, 1), "jobs", "k").await.expect("free");
    let server = server.stop_and_restart().crash_and_restart();
    let mut back = goes_on(&before, &locked, &server).await;
    assert_eq!(back.end(1, 2).await, 1);
}

#[tokio::test]
async fn half_of_the_claims_before_a_second_crash_are_made_again_after_it() {
    let server = server();
    let mut first = Foreign::open(&server.address).await;
    let mut second = Foreign::open(&server.address).await;
    let one = first.lock((1, 1), "jobs", "k").await.expect("free");
    let two = second.lock((1, 1), "jobs", "l").await.expect("free");
    let server = server.crash_and_restart();
    let mut back = first.back(&server.address).await.expect("within its guard");
    back.claim(claim_of(1, &one, "k")).await.expect("it was held");
    assert!(back.claims_done(1).await > 0);
    let server = server.crash_and_restart();
    // The first has a claimed lock, under the version of its grant; the second never came.
    for (before, locked, row) in [(&back, &one, "k"), (&second, &two, "l")] {
        let mut again = before.back(&server.address).await.expect("within its guard");
        again.claim(claim_of(1, locked, row)).await.expect("it was held");
        assert!(again.claims_done(1).await > 0);
        assert_eq!(again.end(1, 2).await, 1);
    }
}
