//! Roll-backs, and the items on which later calls rely.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_locks_that_a_later_call_relies_on_are_not_rolled_back_with_an_earlier_one() {
    let (service, _allocator) = service().await;
    let session = open(&service);
    let both = LockSpec::new(table(), vec![row("a"), row("b")]);
    locked(session.submit(op(1, 1), Operation::Lock(both)).await);
    let again = locked(session.submit(op(1, 2), Operation::Lock(spec("a"))).await);
    assert!(!again.grant.newly_locked);
    // The first call's caller had gone before it could take the response.
    done(session.submit(op(1, 3), Operation::Cancel { sequence: Sequence::new(1) }).await);
    let other = service.begin(TxnOptions::default()).expect("begin");
    assert_eq!(
        other.lock(nowait("a")).await.expect_err("held by the second call").kind(),
        ErrorKind::Conflict
    );
    other.lock(nowait("b")).await.expect("taken back");
}

/// A session whose transaction 1 locked `a` and `b` by its call 1, and whose calls 2 and 3 got the
/// response that they hold `a`.
async fn called_again(service: &LockService) -> Session {
    let session = open(service);
    let both = LockSpec::new(table(), vec![row("a"), row("b")]);
    for (sequence, spec) in [(1, both), (2, spec("a")), (3, spec("a"))] {
        locked(session.submit(op(1, sequence), Operation::Lock(spec)).await);
    }
    session
}

#[tokio::test(start_paused = true)]
async fn the_locks_kept_for_later_calls_go_when_the_last_of_them_is_rolled_back() {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        // Each acknowledged before the next one, or none of them.
        for acks in [false, true] {
            let (service, _allocator) = service().await;
            let session = called_again(&service).await;
            let mut acked = 0;
            for (sequence, cancelled) in (4..).zip(order) {
                let cancelling = TxnOp { acked: Sequence::new(acked), ..op(1, sequence) };
                done(
                    session
                        .submit(
                            cancelling,
                            Operation::Cancel { sequence: Sequence::new(cancelled) },
                        )
                        .await,
                );
                let gone = |n| order[..sequence as usize - 3].contains(&n);
                let expected = match (gone(1), gone(2) && gone(3)) {
                    (false, _) => vec![row("a"), row("b")],
                    (true, false) => vec![row("a")],
                    (true, true) => vec![],
                };
                assert_eq!(held(&service), expected, "{cancelled} of {order:?}");
                acked = (1..).take_while(|n| acks && gone(*n)).last().unwrap_or(0);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_locks_that_an_acknowledged_call_relies_on_are_not_rolled_back_with_a_later_one() {
    let (service, _allocator) = service().await;
    let session = called_again(&service).await;
    done(session.submit(op(1, 4), Operation::Cancel { sequence: Sequence::new(1) }).await);
    let cancelling = TxnOp { acked: Sequence::new(2), ..op(1, 5) };
    done(session.submit(cancelling, Operation::Cancel { sequence: Sequence::new(3) }).await);
    assert_eq!(held(&service), [row("a")], "the second call has it");
    done(session.submit(op(1, 6), Operation::End { commit: None }).await);
    assert_eq!(held(&service), []);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_grant_and_its_upgrade_once_both_are_rolled_back() {
    for order in [[2, 3], [3, 2]] {
        let (service, _allocator) = service().await;
        let session = open(&service);
        let shared = LockSpec { mode: LockMode::Shared, ..spec("a") };
        let both = LockSpec { items: vec![row("a"), row("b")], ..spec("a") };
        for (sequence, spec) in [(1, spec("b")), (2, shared), (3, both)] {
            locked(session.submit(op(1, sequence), Operation::Lock(spec)).await);
        }
        for (sequence, cancelled) in [(4, order[0]), (5, order[1])] {
            done(
                session
                    .submit(
                        op(1, sequence),
                        Operation::Cancel { sequence: Sequence::new(cancelled) },
                    )
                    .await,
            );
        }
        assert_eq!(held(&service), [row("b")], "cancelled in the order {order:?}");
    }
}

fn held(service: &LockService) -> Vec<LockItem> {
    service.locks(None).into_iter().map(|lock| lock.info.item).collect()
}
