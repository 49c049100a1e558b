//! Two claims that exclude each other, of which one is a lie: the larger token stands.

use lockservice::proto;

use crate::cli_support::{Server, json_lines};
use crate::foreign::{Foreign, claim_of};
use crate::server;

/// A session that held the row `k` of the table `jobs`, one with a larger token that will say so
/// too, and their server after a crash.
struct Rivals {
    server: Server,
    held: Foreign,
    locked: proto::Locked,
    liar: Foreign,
    lie: proto::ClaimOp,
}

async fn rivals() -> Rivals {
    let server = server();
    let mut held = Foreign::open(&server.address).await;
    let mut liar = Foreign::open(&server.address).await;
    let locked = held.lock((1, 1), "jobs", "k").await.expect("free");
    // Tokens of different rows are in no order: it goes on until it has a larger one.
    let mut sequence = 0;
    let other = loop {
        sequence += 1;
        let row = format!("other-{sequence}");
        let other = liar.lock((1, sequence), "jobs", &row).await.expect("free");
        if other.token > locked.token {
            break other;
        }
    };
    let lie = proto::ClaimOp { next_sequence: sequence + 1, ..claim_of(1, &other, "k") };
    let server = server.crash_and_restart();
    let held = held.back(&server.address).await.expect("within its guard");
    let liar = liar.back(&server.address).await.expect("within its guard");
    Rivals { server, held, locked, liar, lie }
}

/// The only lock is that of this token, and the log has the fault.
fn stands(server: &Server, token: u64) {
    let locks = json_lines(&server.run(&["locks", "--json"]));
    let tokens: Vec<_> = locks.iter().map(|lock| lock["token"].as_u64()).collect();
    assert_eq!(tokens, [Some(token)], "{locks:?}");
    // Fails if no such line comes.
    while !server.running.error_line().contains("claim") {}
}

#[tokio::test]
async fn a_later_claim_with_a_larger_token_ends_the_transaction_that_claimed_before() {
    let Rivals { server, mut held, locked, mut liar, lie } = rivals().await;
    held.claim(claim_of(1, &locked, "k")).await.expect("it was held");
    assert!(held.claims_done(1).await > 0);
    let token = lie.locks[0].token;
    liar.claim(lie).await.expect("the larger token stands");
    let lost = held.lost().await;
    assert_eq!(lost.txn, 1);
    assert!(!lost.error.expect("it says why").message.is_empty());
    assert!(liar.claims_done(1).await > 0);
    stands(&server, token);
    let refused = held.lock((1, 2), "others", "m").await.expect_err("its transaction is lost");
    assert!(["claim_refused", "txn_killed"].contains(&refused.kind.as_str()), "{refused:?}");
    held.lock((2, 1), "others", "m").await.expect("its session goes on");
}

#[tokio::test]
async fn a_later_claim_with_a_smaller_token_is_refused() {
    let Rivals { server, mut held, locked, mut liar, lie } = rivals().await;
    let token = lie.locks[0].token;
    liar.claim(lie).await.expect("nothing contradicts it yet");
    assert!(liar.claims_done(1).await > 0);
    let refused = held.claim(claim_of(1, &locked, "k")).await.expect_err("excluded");
    assert_eq!(refused.kind, "claim_refused", "{refused:?}");
    assert!(held.claims_done(1).await > 0);
    stands(&server, token);
    held.lock((2, 1), "others", "m").await.expect("its session goes on");
}
