mod claims;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake};

use std::time::Duration;

use lockservice_core::clock::Clock;
use lockservice_core::{Error, ErrorKind, Key, LockItem, TableRef};
use prost::bytes::Bytes;

use super::*;
use crate::convert::{KnownTables, granted_from_proto};
use crate::proto::client_op::Op;
use tokio::sync::Semaphore;

/// A waker that checks whether the outbox is locked.
struct Looker {
    outbox: Arc<Outbox>,
    woken: AtomicUsize,
    under_mutex: AtomicUsize,
}

impl Looker {
    fn new(outbox: &Arc<Outbox>) -> Arc<Self> {
        Arc::new(Self {
            outbox: Arc::clone(outbox),
            woken: AtomicUsize::new(0),
            under_mutex: AtomicUsize::new(0),
        })
    }

    fn seen(&self) -> (usize, usize) {
        (self.woken.load(SeqCst), self.under_mutex.load(SeqCst))
    }
}

impl Wake for Looker {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, SeqCst);
        if self.outbox.state.try_lock().is_none() {
            self.under_mutex.fetch_add(1, SeqCst);
        }
    }
}

#[derive(Debug, Default)]
struct Settable(AtomicU64);

impl Clock for Settable {
    fn now(&self) -> Time {
        Time::from_origin(Duration::from_millis(self.0.load(SeqCst)))
    }
}

fn opened() -> (Arc<Outbox>, StreamNumber) {
    let outbox = Arc::new(Outbox::default());
    let stream = outbox.new_stream();
    outbox.open(1 << 20);
    (outbox, stream)
}

fn permit(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(permits).try_acquire_owned().expect("there is one")
}

fn read(frame: Poll<Option<Bytes>>) -> proto::ClientFrame {
    let Poll::Ready(Some(frame)) = frame else { panic!("nothing to send") };
    proto::ClientFrame::decode(frame).expect("well formed")
}

fn spec(rows: u8, row_bytes: usize) -> LockSpec {
    let row = |n| LockItem::Row(Key::new(vec![n; row_bytes]).expect("a key"));
    LockSpec::new(TableRef::new("g", "t").expect("names"), (1..=rows).map(row).collect())
}

fn only_lock(frame: Poll<Option<Bytes>>) -> proto::LockOp {
    match read(frame).ops.into_iter().next().and_then(|op| op.op) {
        Some(Op::Lock(lock)) => lock,
        other => panic!("no lock: {other:?}"),
    }
}

#[test]
fn no_waiter_is_woken_under_the_mutex_when_a_session_is_lost() {
    let (outbox, stream) = opened();
    let permits = Arc::new(Semaphore::new(1));
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let (_, mut response) = outbox
        .lock(&txn_number, &spec(1, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let sender = Looker::new(&outbox);
    let waker = Waker::from(Arc::clone(&sender));
    let mut cx = Context::from_waker(&waker);
    let clock = Settable::default();
    only_lock(outbox.poll_frame(stream, &clock, &mut cx));
    assert!(outbox.poll_frame(stream, &clock, &mut cx).is_pending());
    // One task waits for the permit, one for the response.
    let (next, caller) = (Looker::new(&outbox), Looker::new(&outbox));
    let (next_waker, caller_waker) =
        (Waker::from(Arc::clone(&next)), Waker::from(Arc::clone(&caller)));
    let mut next_call = Box::pin(Arc::clone(&permits).acquire_owned());
    assert!(next_call.as_mut().poll(&mut Context::from_waker(&next_waker)).is_pending());
    let mut response = std::pin::pin!(&mut response);
    assert!(response.as_mut().poll(&mut Context::from_waker(&caller_waker)).is_pending());

    outbox.fail_locks(&Error::new(ErrorKind::SessionLost, "for the test"));
    assert_eq!((sender.seen(), next.seen(), caller.seen()), ((1, 0), (1, 0), (1, 0)));
    let frame = read(outbox.poll_frame(stream, &clock, &mut cx));
    assert!(matches!(frame.ops[0].op, Some(Op::Cancel(_))), "a grant on its way is given back");
}

#[test]
fn the_time_before_each_send_is_taken_off_the_time_out_and_makes_the_snapshot_older() {
    let (outbox, stream) = opened();
    let permits = Arc::new(Semaphore::new(1));
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let spec = LockSpec { timeout: Some(Duration::from_secs(1)), ..spec(1, 1) };
    let deadline = Some(Time::from_origin(Duration::from_secs(1)));
    let context = CallContext { deadline, snapshot: Some(Time::ZERO), waits: None };
    let _waiting = outbox.lock(&txn_number, &spec, context, permit(&permits)).expect("it is small");
    let mut cx = Context::from_waker(Waker::noop());
    let clock = Settable::default();
    let mut stream = stream;
    for (now, left) in [(400, 600), (900, 100), (5_000, 0)] {
        clock.0.store(now, SeqCst);
        let sent = only_lock(outbox.poll_frame(stream, &clock, &mut cx));
        assert_eq!((sent.timeout_ms, sent.snapshot_age_ms), (Some(left), Some(now)));
        stream = outbox.new_stream();
        outbox.open(1 << 20);
    }
}

#[test]
fn a_renewal_goes_ahead_of_the_data_and_no_frame_of_several_operations_is_large() {
    let (outbox, stream) = opened();
    let permits = Arc::new(Semaphore::new(9));
    let large = spec(30, 4_096);
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let txn_number = NumberedTxn::new(TxnOptions::default());
        waiting.push(
            outbox
                .lock(&txn_number, &large, CallContext::default(), permit(&permits))
                .expect("it may be sent"),
        );
    }
    outbox.heartbeat();
    let mut cx = Context::from_waker(Waker::noop());
    let mut frames = Vec::new();
    while let Poll::Ready(Some(frame)) = outbox.poll_frame(stream, &Settable::default(), &mut cx) {
        let frame = read(Poll::Ready(Some(frame)));
        frames.push(
            frame.ops.iter().map(|op| matches!(op.op, Some(Op::Heartbeat(_)))).collect::<Vec<_>>(),
        );
    }
    // 120 KiB each: more than goes into a frame with anything else.
    assert_eq!(frames, [vec![true], vec![false], vec![false], vec![false]]);
}

#[test]
fn a_grant_renews_from_when_its_request_was_last_sent() {
    let (outbox, stream) = opened();
    let permits = Arc::new(Semaphore::new(1));
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let (_, _response) = outbox
        .lock(&txn_number, &spec(1, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let clock = Settable::default();
    let mut cx = Context::from_waker(Waker::noop());
    clock.0.store(100, SeqCst);
    only_lock(outbox.poll_frame(stream, &clock, &mut cx));
    let stream = outbox.new_stream();
    outbox.open(1 << 20);
    clock.0.store(700, SeqCst);
    let frame = read(outbox.poll_frame(stream, &clock, &mut cx));
    let locked = proto::Locked {
        txn: "1-2".to_owned(),
        bind: Some(proto::Bind { table: "t".to_owned(), ..proto::Bind::default() }),
        promise: Some(proto::Promise { valid_for_ms: 5_000 }),
        ..proto::Locked::default()
    };
    let granted = granted_from_proto(&locked, &mut KnownTables::default());
    let effect =
        outbox.take_response(OpId::new(frame.ops[0].id), Ok(Response::Granted(granted)), &Ok(()));
    let ResponseEffect::Promised(sent, promised) = effect else { panic!("no promise: {effect:?}") };
    assert_eq!(
        (sent, promised),
        (Time::from_origin(Duration::from_millis(700)), Duration::from_secs(5))
    );
}

#[test]
fn every_response_says_when_its_operation_was_last_sent() {
    let (outbox, stream) = opened();
    let permits = Arc::new(Semaphore::new(1));
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let (_, _lock) = outbox
        .lock(&txn_number, &spec(1, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let _savepoint = outbox.savepoint(&txn_number).expect("it has begun");
    let _end = outbox.end(&txn_number, None).expect("it has begun");
    let clock = Settable::default();
    clock.0.store(300, SeqCst);
    let frame = read(outbox.poll_frame(stream, &clock, &mut Context::from_waker(Waker::noop())));
    let refused = || Err(Error::new(ErrorKind::Timeout, "for the test"));
    let responses =
        [refused(), Ok(Response::Savepoint(Savepoint::new(1))), Ok(Response::Done), refused()];
    for (op, response) in frame.ops.iter().zip(responses) {
        let effect = outbox.take_response(OpId::new(op.id), response, &Ok(()));
        let ResponseEffect::Answered(sent) = effect else { panic!("{effect:?}") };
        assert_eq!(sent, Time::from_origin(Duration::from_millis(300)));
    }
    // One that is not known proves nothing.
    let effect = outbox.take_response(OpId::new(frame.ops[0].id), refused(), &Ok(()));
    assert!(matches!(effect, ResponseEffect::None), "{effect:?}");
}

#[test]
fn a_caller_learns_what_its_own_call_waits_for_and_nothing_is_kept_when_that_is_over() {
    let (outbox, stream) = opened();
    let permits = Arc::new(Semaphore::new(2));
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let (waits, mut seen) = watch::channel(None);
    let context = CallContext { waits: Some(&waits), ..CallContext::default() };
    let (call, _response) =
        outbox.lock(&txn_number, &spec(1, 1), context, permit(&permits)).expect("it is small");
    let (other, _response) = outbox
        .lock(&txn_number, &spec(1, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let report = |call: CallId, number| {
        outbox.waiting(Waiting {
            number: TxnNumber::new(number),
            sequence: call.sequence,
            waits_for: WaitsFor::Token,
        });
    };
    report(other, 1);
    assert!(!seen.has_changed().expect("there is a sender"), "that is another call");
    report(call, 1);
    assert_eq!(*seen.borrow_and_update(), Some(WaitsFor::Token));
    let mut cx = Context::from_waker(Waker::noop());
    let frame = read(outbox.poll_frame(stream, &Settable::default(), &mut cx));
    outbox.take_response(
        OpId::new(frame.ops[0].id),
        Err(Error::new(ErrorKind::Timeout, "for the test")),
        &Ok(()),
    );
    report(call, 1);
    assert!(
        !seen.has_changed().expect("there is a sender") && outbox.state.lock().listening.is_empty()
    );
}

#[test]
fn the_operations_that_several_callers_put_in_together_wake_the_sender_once_and_share_a_frame() {
    let (outbox, stream) = opened();
    let permits = Arc::new(Semaphore::new(9));
    let sender = Looker::new(&outbox);
    let waker = Waker::from(Arc::clone(&sender));
    let (clock, mut cx) = (Settable::default(), Context::from_waker(&waker));
    assert!(outbox.poll_frame(stream, &clock, &mut cx).is_pending());
    let gathering = outbox.gather();
    let calls = [1, 2, 3].map(|row_bytes| {
        let txn_number = NumberedTxn::new(TxnOptions::default());
        let spec = spec(1, row_bytes);
        outbox
            .lock(&txn_number, &spec, CallContext::default(), permit(&permits))
            .expect("it is small")
    });
    assert_eq!(sender.seen(), (0, 0), "not before the last of them");
    drop(gathering);
    assert_eq!(sender.seen(), (1, 0));
    assert_eq!(read(outbox.poll_frame(stream, &clock, &mut cx)).ops.len(), calls.len());
    assert!(outbox.poll_frame(stream, &clock, &mut cx).is_pending());
    drop(outbox.gather());
    assert_eq!(sender.seen(), (1, 0), "there was nothing to send");
}

/// A transaction with a lock that was granted, and its stream.
fn locked(outbox: &Outbox, stream: StreamNumber) -> NumberedTxn {
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let permits = Arc::new(Semaphore::new(1));
    let _call = outbox
        .lock(&txn_number, &spec(1, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let id = sent(outbox, stream).ops[0].id;
    outbox.take_response(OpId::new(id), Err(Error::new(ErrorKind::Timeout, "for it")), &Ok(()));
    txn_number
}

fn sent(outbox: &Outbox, stream: StreamNumber) -> proto::ClientFrame {
    let mut cx = Context::from_waker(Waker::noop());
    read(outbox.poll_frame(stream, &Settable::default(), &mut cx))
}

fn is_quiet(op: &proto::ClientOp) -> bool {
    match &op.op {
        Some(Op::End(end)) => end.quiet,
        Some(Op::Unlock(unlock)) => unlock.quiet,
        other => panic!("no release: {other:?}"),
    }
}

fn pending(outbox: &Outbox) -> usize {
    outbox.state.lock().pending.iter().count()
}

#[test]
fn a_release_is_quiet_if_its_caller_dropped_it_and_is_kept_until_it_is_acknowledged() {
    let (outbox, stream) = opened();
    let [asked, dropped] = [(); 2].map(|()| locked(&outbox, stream));
    let response = outbox.end(&asked, None).expect("it began");
    drop(outbox.end(&dropped, None));
    let frame = sent(&outbox, stream);
    assert_eq!(frame.ops.iter().map(is_quiet).collect::<Vec<_>>(), [false, true]);
    drop(response);
    // A broken stream: both are sent again.
    let stream = outbox.new_stream();
    outbox.open(1 << 20);
    assert_eq!(sent(&outbox, stream).ops.iter().map(is_quiet).collect::<Vec<_>>(), [true, true]);
    outbox.quiet_done(1);
    assert_eq!(pending(&outbox), 1);
    outbox.quiet_done(2);
    assert_eq!(pending(&outbox), 0);
    assert!(outbox.end(&dropped, None).is_none(), "it has ended");
}

#[test]
fn the_number_of_a_quiet_one_that_had_a_response_ends_no_later_operation() {
    let (outbox, stream) = opened();
    let [first, second] = [(); 2].map(|()| locked(&outbox, stream));
    drop(outbox.end(&first, None));
    let id = sent(&outbox, stream).ops[0].id;
    outbox.take_response(OpId::new(id), Ok(Response::Done), &Ok(()));
    let mut response = outbox.end(&second, None).expect("it began");
    sent(&outbox, stream);
    outbox.quiet_done(1);
    assert!(response.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty));
    assert_eq!(pending(&outbox), 1);
}

#[test]
fn many_releases_without_an_acknowledgement_ask_for_one() {
    let (outbox, stream) = opened();
    let txn_number = locked(&outbox, stream);
    let unlock = || Op::Unlock(proto::UnlockOp::default());
    for _ in 0..TXN_OPS_MAX {
        drop(outbox.release(&txn_number, unlock()).expect("it has room"));
        let frame = sent(&outbox, stream);
        if !is_quiet(&frame.ops[0]) {
            outbox.take_response(OpId::new(frame.ops[0].id), Ok(Response::Done), &Ok(()));
        }
    }
    let is_half = |quiet| (TXN_OPS_MAX as usize / 2..TXN_OPS_MAX as usize).contains(&quiet);
    assert!(is_half(outbox.state.lock().quiet.len()));
    let txns: Vec<_> = (0..QUIET_MAX).map(|_| locked(&outbox, stream)).collect();
    let quiet = txns.iter().filter(|txn| {
        drop(outbox.end(txn, None));
        is_quiet(&sent(&outbox, stream).ops[0])
    });
    assert!((1..QUIET_MAX).contains(&quiet.count()));
    assert_eq!(outbox.state.lock().quiet.len(), QUIET_MAX);
}

#[test]
fn a_renewal_acknowledges_the_responses_of_transactions_that_only_hold_once_on_each_stream() {
    let (outbox, stream) = opened();
    let txn_number = NumberedTxn::new(TxnOptions::default());
    let permits = Arc::new(Semaphore::new(1));
    let (call, _response) = outbox
        .lock(&txn_number, &spec(1, 1), CallContext::default(), permit(&permits))
        .expect("it is small");
    let id = sent(&outbox, stream).ops[0].id;
    outbox.take_response(OpId::new(id), Err(Error::new(ErrorKind::Timeout, "for it")), &Ok(()));
    let renewed = |stream| {
        outbox.heartbeat();
        match sent(&outbox, stream).ops.remove(0).op {
            Some(Op::Heartbeat(heartbeat)) => heartbeat.acked,
            other => panic!("no renewal: {other:?}"),
        }
    };
    assert_eq!(renewed(stream), [], "its caller has not taken it");
    outbox.acknowledge(call);
    let acked = [proto::Acked { txn: 1, sequence: 1 }];
    assert_eq!(renewed(stream), acked);
    assert_eq!(renewed(stream), []);
    let stream = outbox.new_stream();
    outbox.open(1 << 20);
    assert_eq!(renewed(stream), acked);
}
