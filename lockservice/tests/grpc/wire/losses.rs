//! Transactions that an operator ends while their session goes on, as a client of another kind
//! meets them (P5).

use std::time::Duration;

use futures::FutureExt as _;
use lockservice::convert::from_status;
use lockservice::proto::admin_client::AdminClient;
use lockservice::proto::kill_txn_progress::Progress;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use lockservice_core::clock::{Clock as _, SystemClock, lo};

use super::*;

/// A session of one second whose transaction 1 holds `k`. Returns the transaction's id.
async fn holder(served: &Served) -> (Raw, String) {
    let mut raw = Raw::open(served).await;
    let hello = proto::Hello { ttl_ms: 1_000, ..Default::default() };
    assert!(matches!(raw.ask(Op::Hello(hello)).await, Some(Response::Welcome(_))));
    match raw.ask(Op::Lock(lock(1, "accounts", b"k"))).await {
        Some(Response::Locked(locked)) => (raw, locked.txn),
        other => panic!("not locked: {other:?}"),
    }
}

async fn kill(served: &Served, txn: &str) -> Streaming<proto::KillTxnProgress> {
    let mut wire = AdminClient::new(channel(served).await);
    let request = proto::KillTxnRequest { txn: txn.to_owned(), reason: "x".into(), now: false };
    let mut stream = wire.kill_txn(request).await.expect("it is there").into_inner();
    let begun = stream.message().await.expect("it responds").and_then(|message| message.progress);
    assert!(matches!(&begun, Some(Progress::Begun(all)) if all.txns == 1), "{begun:?}");
    let begun = stream.message().await.expect("it responds").and_then(|message| message.progress);
    assert!(matches!(&begun, Some(Progress::Txn(kill)) if kill.txn == txn), "{begun:?}");
    stream
}

async fn end_of(mut kill: Streaming<proto::KillTxnProgress>) -> String {
    match kill.message().await.expect("it responds").and_then(|message| message.progress) {
        Some(Progress::Done(done)) => done.end,
        other => panic!("not done: {other:?}"),
    }
}

impl Raw {
    /// The next notice of a loss.
    async fn lost(&mut self) -> proto::TxnLost {
        loop {
            let frame = self.responses.message().await.expect("it lives").expect("it lives");
            for op in frame.ops {
                if let Some(Response::Notice(proto::Notice {
                    notice: Some(proto::notice::Notice::TxnLost(lost)),
                })) = op.response
                {
                    return lost;
                }
            }
        }
    }

    /// Renews. Returns the promise; `None` if there is none any more.
    async fn renew(&mut self, lost: Vec<u64>) -> Option<u64> {
        let heartbeat = proto::Heartbeat { lost, ..Default::default() };
        let op = proto::ClientOp { id: 99, op: Some(Op::Heartbeat(heartbeat)) };
        self.requests.send(proto::ClientFrame { ops: vec![op] }).await.ok()?;
        loop {
            let frame = self.responses.message().await.ok()??;
            if let Some(op) = frame.ops.into_iter().find(|op| op.id == 99) {
                let Some(Response::Promise(promise)) = op.response else { return None };
                return Some(promise.valid_for_ms);
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_ignores_the_notice_keeps_its_locks_for_its_promise_and_not_for_ever() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, txn) = holder(&served).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let session = client.session(None).await.expect("a session");
    let mut waiting = std::pin::pin!(session.lock(spec("k")));
    let admin = client.admin();
    while (&mut waiting).now_or_never().is_none()
        && admin.waits(None).await.expect("it responds").is_empty()
    {}
    let done = kill(&served, &txn).await;
    let renewing = async {
        // Until when its locks are safe, by its own clock: the last that it was promised.
        let mut safe_until = None;
        loop {
            let sent = SystemClock.now();
            let Some(promised) = raw.renew(Vec::new()).await else { return safe_until };
            let until = sent + lo(Duration::from_millis(promised));
            safe_until = safe_until.max(Some(until));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let granted = async {
        let granted = waiting.await;
        (granted, SystemClock.now())
    };
    let (safe_until, (granted, at)) = tokio::join!(renewing, granted);
    drop(granted.expect("given away in the end"));
    assert!(at >= safe_until.expect("it was promised something"), "it may have worked under it");
    assert_eq!(end_of(done).await, "lapsed");
}

#[tokio::test]
async fn a_client_that_says_that_it_knows_keeps_its_session() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, txn) = holder(&served).await;
    let done = kill(&served, &txn).await;
    let lost = raw.lost().await;
    assert_eq!((lost.txn, lost.error.expect("why").kind.as_str()), (1, "txn_killed"));
    assert!(raw.renew(Vec::new()).await.expect("not yet") < 1_000, "renewals are withheld");
    assert_eq!(raw.renew(vec![1, 7]).await, Some(1_000));
    assert_eq!(kind(raw.ask(Op::Lock(lock(2, "accounts", b"l"))).await), "txn_killed");
    assert!(matches!(raw.ask(Op::End(end(1, 3))).await, Some(Response::Done(_))));
    assert_eq!(end_of(done).await, "confirmed");
    assert_eq!(raw.renew(Vec::new()).await, Some(1_000));
    alive(&served).await;
}

#[tokio::test]
async fn a_session_without_a_stream_learns_of_a_loss_when_it_is_renewed_and_on_a_stream() {
    let served = Served::start(ServerSettings::default()).await;
    let mut wire = LocksClient::new(channel(&served).await);
    let hello = proto::Hello { ttl_ms: 2_000, ..Default::default() };
    let welcome = wire.open_session(hello).await.expect("a session").into_inner();
    let session = proto::SessionRef { session: welcome.session, service: welcome.service };
    let request = |sequence, row| proto::UnaryLock {
        session: Some(session),
        lock: Some(lock(sequence, "accounts", row)),
    };
    let txn = wire.lock(request(1, b"k")).await.expect("free").into_inner().txn;
    assert_eq!(wire.keep_session(session).await.expect("alive").into_inner().lost, []);
    let done = kill(&served, &txn).await;
    let kept = wire.keep_session(session).await.expect("alive").into_inner();
    assert!(kept.valid_for_ms < 2_000 && kept.lost[0].txn == 1, "{kept:?}");
    let refused = wire.lock(request(2, b"l")).await.expect_err("killed");
    assert_eq!(from_status(&refused).kind(), ErrorKind::TxnKilled);
    // It resumes on a stream, twice.
    for _ in 0..2 {
        let mut raw = Raw::open(&served).await;
        let hello = proto::Hello {
            session: welcome.session,
            service: welcome.service,
            ..Default::default()
        };
        raw.send(vec![Op::Hello(hello)]).await;
        assert_eq!(raw.lost().await.txn, 1);
    }
    let end = proto::UnaryEnd { session: Some(session), end: Some(end(1, 3)) };
    assert_eq!(wire.end(end).await.expect("it ends").into_inner().released, 1);
    assert_eq!(end_of(done).await, "confirmed");
    let kept = wire.keep_session(session).await.expect("alive").into_inner();
    assert_eq!((kept.valid_for_ms, kept.lost.len()), (2_000, 0));
}
