//! Claims after a restart (P6).

use super::*;
use crate::convert::error_from_proto;

/// The claims and what else the frames of a stream that is not open say.
fn claims_sent(outbox: &Outbox, stream: StreamNumber) -> (Vec<proto::ClaimOp>, u64, Vec<usize>) {
    let (mut claims, mut last_txn, mut sizes) = (Vec::new(), None, Vec::new());
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(frame)) = outbox.poll_frame(stream, &Settable::default(), &mut cx) {
        sizes.push(frame.len());
        for op in read(Poll::Ready(Some(frame))).ops {
            match op.op {
                Some(Op::Claim(claim)) => claims.push(claim),
                Some(Op::ClaimsDone(done)) => last_txn = Some(done.last_txn),
                other => panic!("nothing else is sent yet: {other:?}"),
            }
        }
    }
    (claims, last_txn.expect("all claims are made"), sizes)
}

/// The server restarts: its claims.
fn restarted(outbox: &Outbox) -> (Vec<proto::ClaimOp>, StreamNumber) {
    let stream = outbox.new_stream();
    outbox.claim(Time::ZERO, 1 << 20);
    (claims_sent(outbox, stream).0, stream)
}

fn granted(token: u64) -> Result<Response> {
    let locked = proto::Locked {
        txn: "1-2".to_owned(),
        bind: Some(proto::Bind { table: "t".to_owned(), version: 5, ..Default::default() }),
        token,
        newly_locked: true,
        ..proto::Locked::default()
    };
    Ok(Response::Granted(granted_from_proto(&locked, &mut KnownTables::default())))
}

/// A transaction to which the rows of `spec` were granted under token 9.
fn holder(outbox: &Outbox, stream: StreamNumber, spec: &LockSpec) -> NumberedTxn {
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let permits = Arc::new(Semaphore::new(1));
    let (call, _response) = outbox
        .lock(&txn_number, spec, CallContext::default(), permit(&permits))
        .expect("it is small");
    let id = sent(outbox, stream).ops[0].id;
    outbox.take_response(OpId::new(id), granted(9), &Ok(()));
    outbox.acknowledge(call);
    txn_number
}

fn rows_of(claims: &[proto::ClaimOp]) -> usize {
    claims.iter().flat_map(|claim| &claim.locks).map(|locks| locks.rows.len()).sum()
}

#[test]
fn claims_of_one_transaction_are_divided_so_that_no_frame_is_large() {
    let (outbox, stream) = opened();
    let _holder = holder(&outbox, stream, &spec(200, 1_000));
    let stream = outbox.new_stream();
    let claims = outbox.claim(Time::ZERO, 1 << 20);
    let (sent, last_txn, sizes) = claims_sent(&outbox, stream);
    assert!(sizes.iter().all(|size| *size <= FRAME_BYTES_MAX), "{sizes:?}");
    assert!(sizes.len() > 10, "{sizes:?}");
    assert_eq!((rows_of(&sent), last_txn), (200, 1));
    assert!(sent.iter().all(|claim| (claim.txn, claim.next_sequence) == (1, 2)));
    let ids: Vec<_> =
        (1..).map(|n| claims.find(OpId::HELLO.get() - n)).take(sent.len() + 2).collect();
    let of_claim = ClaimId::Claim(TxnNumber::new(1));
    assert!(ids[..sent.len()].iter().all(|id| *id == Some(of_claim)));
    assert_eq!(ids[sent.len()..], [Some(ClaimId::Done), None]);
    assert_eq!(claims.find(OpId::HELLO.get()), None);
}

#[test]
fn quiet_releases_before_a_response_are_decided_and_are_not_sent_again() {
    let (outbox, stream) = opened();
    let txn = holder(&outbox, stream, &spec(3, 1));
    let unlock = |row: &'static [u8]| {
        let (group, table) = ("g".to_owned(), "t".to_owned());
        let rows = vec![Bytes::from_static(row)];
        Op::Unlock(proto::UnlockOp { group, table, rows, ..Default::default() })
    };
    drop(outbox.release(&txn, unlock(&[1])).expect("it has room"));
    sent(&outbox, stream);
    let permits = Arc::new(Semaphore::new(1));
    let (_, _response) = outbox
        .lock(&txn, &spec(4, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let id = sent(&outbox, stream).ops[0].id;
    outbox.take_response(OpId::new(id), Err(Error::new(ErrorKind::Timeout, "for it")), &Ok(()));
    drop(outbox.release(&txn, unlock(&[2])).expect("it has room"));
    let (claims, stream) = restarted(&outbox);
    assert_eq!((claims[0].next_sequence, rows_of(&claims)), (4, 1));
    outbox.open(1 << 20);
    let again = sent(&outbox, stream);
    assert_eq!(again.ops.len(), 1);
    assert!(matches!(&again.ops[0].op, Some(Op::Unlock(op)) if op.rows[..] == [vec![2u8]]));
}

#[test]
fn a_transaction_whose_end_is_under_way_is_over_with_the_restart() {
    let (outbox, stream) = opened();
    let txn = holder(&outbox, stream, &spec(1, 1));
    let mut ended = outbox.end(&txn, None).expect("it began");
    let (claims, _) = restarted(&outbox);
    assert_eq!(claims, []);
    assert!(matches!(ended.try_recv(), Ok(Ok(()))));
    assert_eq!(pending(&outbox), 0);
}

#[test]
fn a_roll_back_that_is_under_way_is_done_here_and_its_sequence_is_used_up() {
    let (outbox, stream) = opened();
    let txn = holder(&outbox, stream, &spec(2, 1));
    let savepoint = SavepointAt { sequence: Sequence::new(1), ..SavepointAt::FIRST };
    let permits = Arc::new(Semaphore::new(1));
    let (_, _response) = outbox
        .lock(&txn, &spec(5, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let id = sent(&outbox, stream).ops[0].id;
    outbox.take_response(OpId::new(id), granted(10), &Ok(()));
    let mut back = outbox.roll_back_to(&txn, savepoint).expect("it has room");
    sent(&outbox, stream);
    for _ in 0..2 {
        let (claims, stream) = restarted(&outbox);
        assert_eq!((rows_of(&claims), claims[0].next_sequence), (2, 3));
        outbox.open(1 << 20);
        let again = sent(&outbox, stream);
        let Some(Op::Savepoint(op)) = &again.ops[0].op else { panic!("{again:?}") };
        assert_eq!(op.txn.as_ref().map(|txn| txn.sequence), Some(3));
        if let Ok(result) = back.try_recv() {
            panic!("the server has not responded: {result:?}");
        }
    }
    let id = {
        let stream = outbox.new_stream();
        outbox.open(1 << 20);
        sent(&outbox, stream).ops[0].id
    };
    outbox.take_response(OpId::new(id), Ok(Response::Savepoint(Savepoint::new(0))), &Ok(()));
    assert!(matches!(back.try_recv(), Ok(Ok(()))));
}

#[test]
fn a_lock_that_is_being_cancelled_is_not_claimed() {
    let (outbox, stream) = opened();
    let txn = holder(&outbox, stream, &spec(1, 1));
    let permits = Arc::new(Semaphore::new(1));
    let (call, _response) = outbox
        .lock(&txn, &spec(3, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let id = sent(&outbox, stream).ops[0].id;
    outbox.take_response(OpId::new(id), granted(10), &Ok(()));
    assert_eq!(rows_of(&restarted(&outbox).0), 3);
    outbox.cancel(call);
    assert_eq!(rows_of(&restarted(&outbox).0), 1);
}

#[test]
fn an_operation_that_met_a_restart_has_no_response_yet() {
    let (outbox, stream) = opened();
    let txn = holder(&outbox, stream, &spec(1, 1));
    drop(outbox.end(&txn, None));
    let id = sent(&outbox, stream).ops[0].id;
    let restarting = proto::Error { kind: "restarting".to_owned(), ..Default::default() };
    outbox.take_response(OpId::new(id), Err(error_from_proto(restarting)), &Ok(()));
    // It was quiet, and is not taken for done.
    outbox.quiet_done(1);
    assert_eq!(pending(&outbox), 1);
}

#[test]
fn what_ended_after_a_claim_of_it_may_have_arrived_is_ended_there() {
    let (outbox, stream) = opened();
    let txn = holder(&outbox, stream, &spec(1, 1));
    assert_eq!(rows_of(&restarted(&outbox).0), 1);
    // The stream breaks, and the server may have taken the claim.
    let mut ended = outbox.end(&txn, None).expect("it began");
    let (claims, stream) = restarted(&outbox);
    assert_eq!((claims.len(), rows_of(&claims)), (1, 0));
    assert!(ended.try_recv().is_err());
    outbox.open(1 << 20);
    assert!(matches!(sent(&outbox, stream).ops[0].op, Some(Op::End(_))));
}

#[test]
fn a_transaction_that_ended_while_it_was_claimed_holds_nothing_back_if_it_is_refused() {
    let (outbox, stream) = opened();
    let [kept, ended] = [(); 2].map(|()| holder(&outbox, stream, &spec(1, 1)));
    restarted(&outbox);
    let _ended = outbox.end(&ended, None).expect("it began");
    let why = Error::new(ErrorKind::ClaimRefused, "for the test");
    assert!(outbox.refuse(TxnNumber::new(2), why.clone(), Time::ZERO));
    assert!(!outbox.is_held_back());
    assert!(outbox.refuse(TxnNumber::new(1), why, Time::ZERO) && outbox.is_held_back());
    // Its end is enough: there is nobody to be told any more.
    outbox.open(1 << 20);
    let _ended = outbox.end(&kept, None).expect("it began");
    assert!(!outbox.is_held_back());
    let stream = outbox.state.lock().stream;
    let renewal = sent(&outbox, stream);
    assert!(matches!(renewal.ops[0].op, Some(Op::Heartbeat(_))), "it is renewed at once");
}

#[test]
fn what_an_operator_ended_before_a_restart_is_not_claimed_and_holds_back_until_it_is_told() {
    let (outbox, stream) = opened();
    let txn = holder(&outbox, stream, &spec(1, 1));
    let killed = Error::new(ErrorKind::TxnKilled, "for the test");
    assert!(outbox.lose_txn(TxnNumber::new(1), killed));
    assert!(!outbox.is_held_back(), "the server withholds its promises");
    assert_eq!(restarted(&outbox).0, []);
    assert!(outbox.is_held_back(), "the next process knows nothing of it");
    let told = outbox.tell_loss(&txn, Time::from_origin(Duration::from_secs(1)));
    assert!(told.is_some_and(|(why, first)| why.kind() == ErrorKind::TxnKilled && first));
    assert!(!outbox.is_held_back());
    assert_eq!(outbox.lost_deadline(&txn), Some(Time::ZERO), "that of before the restart");
}

/// Rolls a transaction back that locked a row in each of so many tables before a restart. Returns
/// the operations that are sent, and whether the last response ends the roll-back.
fn rolled_back_after_a_restart(tables: usize) -> Result<(Vec<Op>, bool)> {
    let (outbox, stream) = opened();
    let txn = NumberedTxn::new(TxnOptions::default());
    for number in 0..tables {
        let table = TableRef::new("g", format!("t{number}")).expect("names");
        let spec = LockSpec { table, ..spec(1, 1) };
        let permits = Arc::new(Semaphore::new(1));
        let (call, _response) =
            outbox.lock(&txn, &spec, CallContext::default(), permit(&permits)).expect("small");
        let id = sent(&outbox, stream).ops[0].id;
        outbox.take_response(OpId::new(id), granted(9), &Ok(()));
        outbox.acknowledge(call);
    }
    let (_, stream) = restarted(&outbox);
    outbox.open(1 << 20);
    let mut back = outbox.roll_back_to(&txn, SavepointAt::FIRST)?;
    let (mut ops, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
    while let Poll::Ready(Some(frame)) = outbox.poll_frame(stream, &Settable::default(), &mut cx) {
        ops.extend(read(Poll::Ready(Some(frame))).ops);
    }
    assert!(back.try_recv().is_err(), "the server has not responded");
    let last = ops.last().expect("a release").id;
    outbox.take_response(OpId::new(last), Ok(Response::Done), &Ok(()));
    let is_over = matches!(back.try_recv(), Ok(Ok(())));
    Ok((ops.into_iter().filter_map(|op| op.op).collect(), is_over))
}

#[test]
fn a_roll_back_after_a_restart_may_take_more_operations_than_a_caller_may_have_under_way() {
    let (ops, is_over) = rolled_back_after_a_restart(200).expect("it has room");
    assert!(ops.iter().all(|op| matches!(op, Op::Unlock(_))), "{ops:?}");
    assert_eq!((ops.len(), is_over), (200, true));
}

#[test]
fn a_roll_back_that_takes_too_many_operations_says_what_remains() {
    let why = rolled_back_after_a_restart(300).expect_err("too many");
    assert_eq!(why.kind(), ErrorKind::ResourceExhausted);
    assert!(why.to_string().contains("end the transaction"), "{why}");
}
