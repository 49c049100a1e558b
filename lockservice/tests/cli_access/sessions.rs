//! A session belongs to the identity that opened it.

use lockservice::proto::admin_client::AdminClient;
use lockservice::proto::locks_client::LocksClient;
use lockservice::proto::{self, client_op::Op, server_op::Response};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cli_support::{DEADLINE, now};
use crate::kit::{Guarded, Token, identity};
use crate::wire::{bearer, channel, with};

type Locks = LocksClient<Channel>;

fn txn(number: u64, sequence: u64) -> Option<proto::TxnRef> {
    Some(proto::TxnRef { number, sequence, ..proto::TxnRef::default() })
}

fn lock(session: proto::SessionRef, number: u64) -> proto::UnaryLock {
    let lock = proto::LockOp {
        txn: txn(number, 1),
        group: "default".to_owned(),
        table: "t".to_owned(),
        rows: vec![number.to_string().into()],
        ..proto::LockOp::default()
    };
    proto::UnaryLock { session: Some(session), lock: Some(lock) }
}

async fn open(locks: &mut Locks, token: &str) -> proto::SessionRef {
    let hello = proto::Hello { ttl_ms: 60_000, ..proto::Hello::default() };
    let welcome = locks.open_session(with(hello, Some(token))).await.expect("it serves");
    let welcome = welcome.into_inner();
    proto::SessionRef { session: welcome.session, service: welcome.service }
}

/// The response to a session stream that resumes `session`.
async fn resume(locks: &mut Locks, token: &str, session: proto::SessionRef) -> Response {
    let proto::SessionRef { session, service } = session;
    let hello = proto::Hello { session, service, ..proto::Hello::default() };
    let op = proto::ClientOp { id: 1, op: Some(Op::Hello(hello)) };
    // The stream stays open after its hello.
    let (out, frames) = tokio::sync::mpsc::channel(1);
    out.send(proto::ClientFrame { ops: vec![op] }).await.expect("there is room");
    let frames = tokio_stream::wrappers::ReceiverStream::new(frames);
    let responses = locks.session(with(frames, Some(token))).await.expect("it begins");
    let frame = responses.into_inner().message().await.expect("a frame").expect("not its end");
    frame.ops.into_iter().next().expect("one").response.expect("a response")
}

/// What a call says that was refused.
fn said<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String, Vec<u8>) {
    let status = result.expect_err("it is refused");
    (status.code(), status.message().to_owned(), status.details().to_vec())
}

/// What every call on a session says.
async fn every_call(
    locks: &mut Locks,
    token: &str,
    session: proto::SessionRef,
) -> Vec<(Code, String, Vec<u8>)> {
    let some = Some(session);
    fn call<T>(message: T, token: &str) -> Request<T> {
        with(message, Some(token))
    }
    let leaving = proto::Leaving { session: some, still_running: "nothing".to_owned() };
    let unlock = proto::UnlockOp {
        txn: txn(1, 2),
        table: "t".to_owned(),
        rows: vec!["1".into()],
        ..proto::UnlockOp::default()
    };
    let downgrade = proto::DowngradeOp { txn: txn(1, 2), ..proto::DowngradeOp::default() };
    let savepoint = proto::SavepointOp { txn: txn(1, 2) };
    let back = proto::RollBackToOp { txn: txn(1, 2), ..proto::RollBackToOp::default() };
    let end = proto::EndOp { txn: txn(1, 2), ..proto::EndOp::default() };
    let begin = proto::BeginTxn { session: some, ..proto::BeginTxn::default() };
    vec![
        said(locks.keep_session(call(session, token)).await),
        said(locks.leave_session(call(leaving, token)).await),
        said(locks.lock(call(lock(session, 2), token)).await),
        said(
            locks
                .unlock(call(proto::UnaryUnlock { session: some, unlock: Some(unlock) }, token))
                .await,
        ),
        said(
            locks
                .downgrade(call(
                    proto::UnaryDowngrade { session: some, downgrade: Some(downgrade) },
                    token,
                ))
                .await,
        ),
        said(
            locks
                .set_savepoint(call(
                    proto::UnarySavepoint { session: some, savepoint: Some(savepoint) },
                    token,
                ))
                .await,
        ),
        said(
            locks
                .roll_back_to(call(
                    proto::UnaryRollBackTo { session: some, roll_back_to: Some(back) },
                    token,
                ))
                .await,
        ),
        said(locks.end(call(proto::UnaryEnd { session: some, end: Some(end) }, token)).await),
        said(locks.begin(call(begin, token)).await),
        said(locks.close_session(call(session, token)).await),
    ]
}

#[tokio::test]
async fn a_session_of_another_identity_is_refused_exactly_as_one_that_does_not_exist() {
    let (owner, other, all) = (Token::new(), Token::new(), Token::new());
    let guarded = Guarded::start(&format!(
        "{}{}{}",
        identity("owner", "'client'", &owner, ""),
        identity("other", "'client'", &other, ""),
        // No role helps.
        identity("all", "'client', 'peer', 'operator'", &all, ""),
    ));
    let mut locks = LocksClient::new(channel(&guarded).await);
    let owner = bearer(&owner);
    let session = open(&mut locks, &owner).await;
    locks.lock(with(lock(session, 1), Some(&owner))).await.expect("free");
    let nowhere = proto::SessionRef { session: session.session ^ 1, ..session };
    for token in [&other, &all] {
        let token = bearer(token);
        let expected = every_call(&mut locks, &token, nowhere).await;
        assert_eq!(every_call(&mut locks, &token, session).await, expected);
        let unknown = resume(&mut locks, &token, nowhere).await;
        let Response::Error(error) = &unknown else { panic!("it does not exist: {unknown:?}") };
        assert_eq!(error.kind, "session_lost");
        assert_eq!(resume(&mut locks, &token, session).await, unknown);
    }
    // Its owner has lost nothing.
    locks.keep_session(with(session, Some(&owner))).await.expect("it is open");
    let resumed = resume(&mut locks, &owner, session).await;
    assert!(matches!(&resumed, Response::Welcome(welcome) if welcome.resumed), "{resumed:?}");
    let end = proto::EndOp { txn: txn(1, 2), ..proto::EndOp::default() };
    let end = proto::UnaryEnd { session: Some(session), end: Some(end) };
    let ended = locks.end(with(end, Some(&owner))).await.expect("it is open").into_inner();
    assert_eq!(ended.released, 1);
}

#[tokio::test]
async fn a_session_goes_on_with_a_new_token_of_the_same_name_and_not_with_the_old_one_of_another() {
    let (old, new) = (Token::new(), Token::new());
    let guarded = Guarded::start(&identity("owner", "'client'", &old, ""));
    let mut locks = LocksClient::new(channel(&guarded).await);
    let session = open(&mut locks, &bearer(&old)).await;
    // The old token is that of another name now.
    guarded.set(&format!(
        "{}{}",
        identity("owner", "'client'", &new, ""),
        identity("heir", "'client'", &old, "")
    ));
    let give_up = now() + DEADLINE;
    while locks.keep_session(with(session, Some(&bearer(&new)))).await.is_err() {
        assert!(now() < give_up, "the new token is not known");
    }
    let refused = locks.keep_session(with(session, Some(&bearer(&old)))).await;
    let nowhere = proto::SessionRef { session: session.session ^ 1, ..session };
    let unknown = locks.keep_session(with(nowhere, Some(&bearer(&old)))).await;
    assert_eq!(said(refused), said(unknown));
}

#[tokio::test]
async fn each_identity_has_limits_of_its_own_which_are_read_again_and_other_identities_have_room() {
    let (small, other) = (Token::new(), Token::new());
    let with_limit = |limit: u32| {
        let limits = format!("limits = {{ sessions_max = {limit}, txns_max = 2 }}");
        format!(
            "{}{}",
            identity("small", "'client'", &small, &limits),
            identity("other", "'client'", &other, "")
        )
    };
    let guarded = Guarded::start(&with_limit(2));
    // Two connections of one identity are one client.
    let mut connections =
        [LocksClient::new(channel(&guarded).await), LocksClient::new(channel(&guarded).await)];
    let (small, other) = (bearer(&small), bearer(&other));
    let mut held = Vec::new();
    for locks in &mut connections {
        held.push(open(locks, &small).await);
    }
    let [locks, more] = &mut connections;
    let hello = || proto::Hello { ttl_ms: 60_000, ..proto::Hello::default() };
    let (code, message, _) = said(locks.open_session(with(hello(), Some(&small))).await);
    assert_eq!(code, Code::ResourceExhausted);
    for part in ["sessions of the identity \"small\"", "server.sessions_per_client_max", "close"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    open(locks, &other).await;
    for number in 1..=2 {
        locks.lock(with(lock(held[0], number), Some(&small))).await.expect("free");
    }
    let (code, message, _) = said(more.lock(with(lock(held[1], 3), Some(&small))).await);
    assert_eq!(code, Code::ResourceExhausted);
    assert!(message.contains("transactions of the identity \"small\""), "{message}");
    guarded.set(&with_limit(3));
    let give_up = now() + DEADLINE;
    while locks.open_session(with(hello(), Some(&small))).await.is_err() {
        assert!(now() < give_up, "the limit is not read again");
    }
    let (code, ..) = said(more.open_session(with(hello(), Some(&small))).await);
    assert_eq!(code, Code::ResourceExhausted, "three are allowed");
}

#[tokio::test]
async fn lists_of_one_identity_that_are_not_read_take_no_place_from_those_of_another() {
    let (one, other) = (Token::new(), Token::new());
    let identities = format!(
        "{}{}",
        identity("one", "'client'", &one, ""),
        identity("other", "'client'", &other, "")
    );
    // No place is given up because nobody reads.
    let guarded = Guarded::start_with(&identities, "[server]\nwrite_ms_max = 600_000\n");
    let mut locks = LocksClient::new(channel(&guarded).await);
    let (one, other) = (bearer(&one), bearer(&other));
    let session = open(&mut locks, &one).await;
    // More than an unread connection accepts.
    for number in 1..=2 {
        let mut rows = lock(session, number);
        let row = |n: u32| format!("{number} {n}").into();
        rows.lock.as_mut().expect("it has one").rows = (0..20_000).map(row).collect();
        locks.lock(with(rows, Some(&one))).await.expect("free");
    }
    // More than the server has places in all.
    let (begun, mut began) = tokio::sync::mpsc::channel(100);
    for _ in 0..80 {
        let (mut wire, begun) = (AdminClient::new(channel(&guarded).await), begun.clone());
        let request = with(proto::ListLocksRequest::default(), Some(&*one));
        tokio::spawn(async move {
            let list = wire.list_locks(request).await;
            // It is not read.
            let _ = begun.send((wire, list)).await;
        });
    }
    let mut unread = Vec::new();
    for _ in 0..16 {
        unread.push(began.recv().await.expect("it has a place"));
    }
    let mut admin = AdminClient::new(channel(&guarded).await);
    for _ in 0..20 {
        let request = with(proto::ListWaitsRequest::default(), Some(&*other));
        let list = tokio::time::timeout(DEADLINE, admin.list_waits(request)).await;
        let mut list = list.expect("it has a place").expect("it begins").into_inner();
        assert_eq!(list.message().await.expect("its end"), None);
    }
    drop(unread);
}
