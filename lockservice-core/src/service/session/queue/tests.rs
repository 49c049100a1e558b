use crate::clock::Time;
use crate::id::{ServiceId, TableRef, TxnId, TxnNumber};
use crate::key::{Key, LockItem};
use crate::service::{LockSpec, Operation};

use super::*;

fn queue() -> TxnQueue {
    let id = TxnId::new(ServiceId::new(1), TxnNumber::new(1), false);
    TxnQueue::new(Arc::new(TxnRecord::new(id, "".into(), None)))
}

fn lock() -> Operation {
    let row = LockItem::Row(Key::new("k").expect("a key"));
    Operation::Lock(LockSpec::new(TableRef::new("g", "t").expect("names"), vec![row]))
}

const END: Operation = Operation::End { commit: None };

fn take_in(queue: &mut TxnQueue, sequence: u64, operation: Operation) -> Taken {
    let room = Room { ops_max: 9, bytes_max: 1 << 20, bytes_of_others: 0, exhausted: None };
    let taken = queue.take_in(Sequence::new(sequence), operation, Time::ZERO, room);
    taken.expect("room")
}

fn file(queue: &mut TxnQueue, sequence: u64) -> Filed {
    queue.file(Sequence::new(sequence), Ok(OpResponse::DONE), None)
}

#[test]
fn an_operation_whose_turn_it_is_is_due_at_once_and_queued_nowhere() {
    let mut queue = queue();
    assert!(matches!(take_in(&mut queue, 1, lock()), Taken::Due(Step::Lock { .. })));
    assert_eq!((queue.ops_under_way(), queue.kept_bytes()), (0, 0));
    assert!(!file(&mut queue, 1).more);
    assert!(matches!(take_in(&mut queue, 2, END), Taken::Due(Step::End(None))));
}

#[test]
fn one_that_arrives_again_while_it_is_decided_joins_it() {
    let mut queue = queue();
    assert!(matches!(take_in(&mut queue, 1, lock()), Taken::Due(_)));
    let joined = take_in(&mut queue, 1, lock());
    let Taken::Queued { mut response, run: false, behind: false } = joined else {
        panic!("it runs once")
    };
    let filed = file(&mut queue, 1);
    assert_eq!((filed.waiting.len(), filed.more, queue.ops_under_way()), (1, false, 0));
    filed
        .waiting
        .into_iter()
        .for_each(|waiting| waiting.send(filed.result.clone()).expect("it waits"));
    assert_eq!(response.try_recv().expect("sent").expect("done"), OpResponse::DONE);
}

#[test]
fn what_follows_an_operation_that_is_decided_at_once_waits_for_its_turn() {
    let mut queue = queue();
    queue.number(Sequence::default()).expect("the service numbers");
    assert!(matches!(take_in(&mut queue, 1, lock()), Taken::Due(_)));
    let next = queue.number(Sequence::default()).expect("the service numbers");
    assert_eq!(next, Sequence::new(2), "the first is not in the queue, and has its number");
    assert!(matches!(
        take_in(&mut queue, 2, lock()),
        Taken::Queued { run: false, behind: true, .. }
    ));
    assert!(file(&mut queue, 1).more, "the call that decided the first one goes on");
    assert!(matches!(queue.step(), Some((at, Step::Lock { .. })) if at == next));
}

#[test]
fn a_lock_that_was_cancelled_before_it_waits_does_not_wait() {
    for then in [END, Operation::Cancel { sequence: Sequence::new(1) }] {
        let mut queue = queue();
        assert!(matches!(take_in(&mut queue, 1, lock()), Taken::Due(_)));
        let mut response = queue.begin_wait(Time::ZERO, 700);
        assert_eq!((queue.ops_under_way(), queue.kept_bytes()), (1, 700));
        take_in(&mut queue, 2, then);
        assert!(
            queue.canceller().try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Closed)
        );
        let filed = queue.file(Sequence::new(1), Err(rolled_back()), None);
        assert!(filed.more && response.try_recv().is_err(), "its sender is to be notified");
        assert_eq!(filed.waiting.len(), 1);
    }
}
