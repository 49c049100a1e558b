//! What is claimed, and what goes on.

use std::time::Duration;

use lockservice::proto::{self, client_op::Op};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::TxnOptions;
use lockservice_core::{LockMode, ServiceId};

use super::{LONG_MS, held, locked, open, process, rows, within};
use crate::support::{row, spec, table};

#[tokio::test]
async fn a_session_claims_exactly_what_its_transactions_hold_and_goes_on_at_the_next_process() {
    let mut opened = open(LONG_MS).await;
    let txn = opened.session.txn(TxnOptions { label: "nightly".to_owned(), ..Default::default() });
    let lock = |names, mode| txn.lock(rows(names, mode));
    let granted =
        tokio::join!(lock(&["a", "b", "c"], LockMode::Exclusive), opened.grant(1, 11, LONG_MS));
    granted.0.expect("granted");
    let granted = tokio::join!(lock(&["d"], LockMode::Shared), opened.grant(1, 12, LONG_MS));
    granted.0.expect("granted");
    let other = opened.lock(spec("e"), 2, LONG_MS).await;
    // One that has ended holds nothing; of one that holds nothing the server hears all the same.
    let ended = opened.lock(spec("f"), 3, LONG_MS).await;
    // What was given up is not claimed, though the server has not said that it knows.
    drop(txn.unlock(&table(), &[row("b")], None));
    drop(txn.downgrade(&table(), &[row("c")], LockMode::Update));
    drop(ended);
    let waiting = tokio::spawn({
        let session = opened.session.clone();
        async move { session.lock(spec("g")).await }
    });
    while !matches!(opened.stream.next_op().await.1, Op::Lock(_)) {}

    let hello = opened.restart(process(2), LONG_MS).await;
    assert_eq!((hello.session, hello.service, hello.claims), (7, 1, true));
    let (claims, done, message) = opened.claims().await;
    assert_eq!(message.last_txn, 4);
    let claim = |txn: u64, label: &str, next_sequence, locks| proto::ClaimOp {
        txn,
        id: if txn == 4 { String::new() } else { format!("1-{}", 2 * txn) },
        label: label.to_owned(),
        next_sequence,
        locks,
    };
    let of_first = vec![
        held(&["c"], 11, LockMode::Update),
        held(&["a"], 11, LockMode::Exclusive),
        held(&["d"], 12, LockMode::Shared),
    ];
    let claimed: Vec<_> = claims.iter().map(|(_, claim)| claim.clone()).collect();
    assert_eq!(
        claimed,
        [
            claim(1, "nightly", 3, of_first),
            claim(2, "", 2, vec![held(&["e"], 12, LockMode::Exclusive)]),
            claim(4, "", 1, Vec::new()),
        ]
    );
    claims.iter().for_each(|(id, _)| opened.stream.done(*id));
    opened.stream.promise(done, LONG_MS);

    // What was not decided is sent again, as it was.
    let mut again = Vec::new();
    for _ in 0..3 {
        let (id, op) = within(opened.stream.next_op()).await;
        let txn = match op {
            Op::Unlock(op) => op.txn,
            Op::Downgrade(op) => op.txn,
            Op::Lock(op) => {
                opened.stream.respond(id, locked(4, 14, LONG_MS));
                op.txn
            }
            other => panic!("{other:?} was decided"),
        };
        again.extend(txn.map(|txn| (txn.number, txn.sequence)));
    }
    assert_eq!(again, [(1, 3), (1, 4), (4, 1)]);
    let _held = waiting.await.expect("no panic").expect("granted by the next process");
    assert_eq!(opened.session.service(), ServiceId::new(2));
    assert!(txn.lost_now().is_none() && other.lost_now().is_none());
}

#[tokio::test]
async fn no_promise_counts_before_everything_is_claimed() {
    let mut opened = open(LONG_MS).await;
    let guard = opened.lock(spec("a"), 1, LONG_MS).await;
    let before = guard.deadline();
    let mut connected = opened.session.watch_connected();
    opened.restart(process(2), 10 * LONG_MS).await;
    let (claims, done, _) = opened.claims().await;
    assert!(!*connected.borrow_and_update());
    assert_eq!(guard.deadline(), before, "the welcome promises nothing for it");
    claims.iter().for_each(|(id, _)| opened.stream.done(*id));
    opened.stream.promise(done, 2 * LONG_MS);
    let mut deadlines = guard.watch_deadline();
    let after = *within(deadlines.wait_for(|deadline| *deadline > before)).await.expect("it lives");
    let promised = Duration::from_millis(2 * LONG_MS);
    assert!(after < SystemClock.now() + promised, "not that of the welcome");
    within(connected.wait_for(|connected| *connected)).await.expect("it goes on");
}

#[tokio::test]
async fn a_session_that_holds_nothing_goes_on_at_the_next_process() {
    let mut opened = open(LONG_MS).await;
    opened.restart(process(2), LONG_MS).await;
    assert_eq!(opened.take_claims(LONG_MS).await, []);
    let mut connected = opened.session.watch_connected();
    within(connected.wait_for(|connected| *connected)).await.expect("it goes on");
    let _held = opened.lock(spec("a"), 1, LONG_MS).await;
    // Over the next restart it is one of the second process.
    let hello = opened.restart(process(3), LONG_MS).await;
    assert_eq!(hello.service, 2);
    assert_eq!(opened.take_claims(LONG_MS).await.len(), 1);
}

#[tokio::test]
async fn a_roll_back_to_a_savepoint_from_before_a_restart_ends_what_was_locked_since() {
    let mut opened = open(LONG_MS).await;
    let txn = opened.session.txn(TxnOptions::default());
    let lock = |names, mode| txn.lock(rows(names, mode));
    let granted = tokio::join!(lock(&["a", "b"], LockMode::Shared), opened.grant(1, 11, LONG_MS));
    granted.0.expect("granted");
    let setting = async {
        let (id, op) = opened.stream.next_op().await;
        assert!(matches!(op, Op::Savepoint(_)), "{op:?}");
        let number = proto::Savepoint { number: 1 };
        opened.stream.respond(id, proto::server_op::Response::Savepoint(number));
    };
    let savepoint = tokio::join!(txn.savepoint(), setting).0.expect("set");
    let granted =
        tokio::join!(lock(&["a", "c"], LockMode::Exclusive), opened.grant(1, 12, LONG_MS));
    granted.0.expect("granted");
    opened.restart(process(2), LONG_MS).await;
    opened.take_claims(LONG_MS).await;
    let rolled_back = txn.roll_back_to(&savepoint);
    let (mut unlocked, mut weaker) = (None, None);
    for _ in 0..2 {
        let (id, op) = within(opened.stream.next_op()).await;
        match op {
            Op::Unlock(op) => unlocked = Some(op.rows),
            Op::Downgrade(op) => weaker = Some((op.rows, op.mode)),
            other => panic!("the next process knows no savepoint: {other:?}"),
        }
        opened.stream.done(id);
    }
    assert_eq!(unlocked, Some(vec!["c".into()]));
    assert_eq!(weaker, Some((vec!["a".into()], proto::LockMode::Shared.into())));
    within(rolled_back).await.expect("done");
    opened.restart(process(3), LONG_MS).await;
    let claims = opened.take_claims(LONG_MS).await;
    let mut locks = [held(&["a"], 12, LockMode::Shared), held(&["b"], 11, LockMode::Shared)];
    locks.sort_by_key(|locks| locks.token);
    assert_eq!(claims[0].locks, locks);
}
