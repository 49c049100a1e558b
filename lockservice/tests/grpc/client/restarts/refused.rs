//! Claims that fail, and transactions that cannot be claimed.

use lockservice::proto::client_op::Op;
use lockservice_core::service::TxnOptions;
use lockservice_core::{Error, ErrorKind};

use super::{LONG_MS, Opened, locked, open, process, within};
use crate::support::{row, spec, table};

const REASON: &str = "another transaction has the larger token";

/// The next process refuses the claim of the first transaction, and takes the others.
async fn refuse_first(opened: &mut Opened, promised_ms: u64) {
    opened.restart(process(2), promised_ms).await;
    let (claims, done, _) = opened.claims().await;
    for (id, claim) in claims {
        match claim.txn {
            1 => opened.stream.fail(id, &Error::new(ErrorKind::ClaimRefused, REASON)),
            _ => opened.stream.done(id),
        }
    }
    opened.stream.promise(done, promised_ms);
}

#[tokio::test]
async fn a_refused_claim_loses_its_transaction_at_its_old_deadline_and_the_session_goes_on() {
    let mut opened = open(LONG_MS).await;
    let refused = opened.lock(spec("a"), 1, LONG_MS).await;
    let other = opened.lock(spec("b"), 2, LONG_MS).await;
    let before = opened.session.deadline();
    refuse_first(&mut opened, 10 * LONG_MS).await;
    // A grant promises more, too; until the program was told, nothing counts (P5).
    let _third = opened.lock(spec("c"), 3, 10 * LONG_MS).await;
    assert_eq!(opened.session.deadline(), before);
    let why = within(refused.lost()).await;
    assert!(why.kind() == ErrorKind::ClaimRefused && why.to_string().contains(REASON), "{why}");
    // It is renewed at once.
    let renewal = within(opened.stream.next()).await;
    match renewal.op {
        Some(Op::Heartbeat(heartbeat)) => {
            assert!(heartbeat.lost.is_empty(), "the server does not have it");
        }
        other => panic!("no renewal: {other:?}"),
    }
    opened.stream.promise(renewal.id, 10 * LONG_MS);
    let mut deadlines = opened.session.watch_deadline();
    within(deadlines.wait_for(|moved| *moved > before)).await.expect("it lives");
    assert_eq!(refused.deadline(), before);
    assert!(other.lost_now().is_none() && opened.session.lost_now().is_none());
    // Nothing of it reaches the server.
    let txn = refused.txn();
    txn.unlock(&table(), &[row("a")], None).await.expect("it is not held");
    let e = txn.lock(spec("d")).await.expect_err("nothing more is granted to it");
    assert_eq!(e.kind(), ErrorKind::ClaimRefused);
    let e = refused.release().await.expect_err("others may have had the lock");
    assert_eq!(e.kind(), ErrorKind::ClaimRefused);
    let _fourth = opened.lock(spec("e"), 4, LONG_MS).await;
}

#[tokio::test]
async fn a_program_that_watches_only_its_session_loses_that_at_the_old_deadline() {
    let mut opened = open(1_000).await;
    let refused = opened.lock(spec("a"), 1, 1_000).await;
    let before = opened.session.deadline();
    refuse_first(&mut opened, LONG_MS).await;
    let session = opened.session.clone();
    let renewing = async {
        loop {
            let op = opened.stream.next().await;
            opened.stream.promise(op.id, LONG_MS);
        }
    };
    let why = tokio::select! {
        why = within(session.lost()) => why,
        () = renewing => panic!("it serves"),
    };
    assert_eq!(why.kind(), ErrorKind::SessionLost, "{why}");
    assert_eq!(refused.deadline(), before);
}

#[tokio::test]
async fn a_transaction_that_validates_is_lost_and_does_not_hold_the_session_back() {
    let mut opened = open(LONG_MS).await;
    let txn = opened.session.txn(TxnOptions { validates: true, ..Default::default() });
    let granted = tokio::join!(txn.lock(spec("a")), opened.grant(1, 11, LONG_MS));
    granted.0.expect("granted");
    let waiting = async {
        let e = txn.lock(spec("b")).await.expect_err("its locks are invalid");
        assert_eq!(e.kind(), ErrorKind::BindChanged, "{e}");
    };
    let before = opened.session.deadline();
    let restarting = async {
        assert!(matches!(opened.stream.next_op().await.1, Op::Lock(_)));
        opened.restart(process(2), 10 * LONG_MS).await;
        assert_eq!(opened.take_claims(10 * LONG_MS).await, []);
    };
    tokio::join!(waiting, restarting);
    let mut deadlines = opened.session.watch_deadline();
    within(deadlines.wait_for(|moved| *moved > before)).await.expect("it lives");
    assert_eq!(within(txn.lost()).await.kind(), ErrorKind::BindChanged);
    assert_eq!(txn.end(None).await.expect_err("it was lost").kind(), ErrorKind::BindChanged);
    let next = opened.session.txn(TxnOptions { validates: true, ..Default::default() });
    let granting = async {
        let (id, _) = opened.stream.next_op().await;
        opened.stream.respond(id, locked(2, 12, LONG_MS));
    };
    tokio::join!(next.lock(spec("a")), granting).0.expect("it begins again");
}
