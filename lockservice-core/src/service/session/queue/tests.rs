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
    arrive(queue, sequence, operation, false).expect("room")
}

fn arrive(queue: &mut TxnQueue, sequence: u64, op: Operation, quiet: bool) -> Result<Taken> {
    let room = Room { ops_max: 9, bytes_max: 1 << 20, bytes_of_others: 0, exhausted: None };
    queue.take_in(Sequence::new(sequence), op, Time::ZERO, room, quiet)
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

fn unlock() -> Operation {
    let table = TableRef::new("g", "t").expect("names");
    Operation::Unlock { table, items: Vec::new(), commit: None }
}

#[test]
fn the_response_of_a_quiet_operation_is_kept_only_if_it_failed_and_its_repetition_succeeds() {
    let mut queue = queue();
    assert!(matches!(arrive(&mut queue, 1, unlock(), true), Ok(Taken::Due(_))));
    file(&mut queue, 1);
    assert_eq!(queue.kept_bytes(), 0);
    let again = arrive(&mut queue, 1, unlock(), true);
    assert!(matches!(again, Ok(Taken::Decided(Ok(OpResponse::Done { .. })))));
    assert!(arrive(&mut queue, 1, unlock(), false).is_err(), "that repeats no quiet one");
    assert!(matches!(arrive(&mut queue, 2, unlock(), true), Ok(Taken::Due(_))));
    queue.file(Sequence::new(2), Err(rolled_back()), None);
    assert!(queue.kept_bytes() > 0);
    let again = arrive(&mut queue, 2, unlock(), true);
    assert!(matches!(again, Ok(Taken::Decided(Err(_)))));
}

#[test]
fn only_the_quiet_one_of_those_that_are_queued_is_not_kept() {
    let mut queue = queue();
    assert!(matches!(take_in(&mut queue, 1, lock()), Taken::Due(_)));
    for (sequence, quiet) in [(2, true), (3, false)] {
        let queued = arrive(&mut queue, sequence, unlock(), quiet);
        assert!(matches!(queued, Ok(Taken::Queued { behind: true, .. })));
    }
    file(&mut queue, 1);
    for sequence in [2, 3] {
        assert!(queue.step().is_some_and(|(at, _)| at == Sequence::new(sequence)));
        file(&mut queue, sequence);
    }
    let kept = |at| queue.decided.contains(Sequence::new(at));
    assert_eq!([1, 2, 3].map(kept), [true, false, true]);
}
