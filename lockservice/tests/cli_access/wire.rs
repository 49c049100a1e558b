//! The statuses of calls, and commits that present tables.

use std::time::Duration;

use lockservice::proto::admin_client::AdminClient;
use lockservice::proto::allocator_client::AllocatorClient;
use lockservice::proto::locks_client::LocksClient;
use lockservice::{
    BeginCommit, Client, CommitAttempt, CommitWindow, Credentials, ErrorKind, Key, LockItem,
    LockSpec, PresentedBind, TableRef, TxnOptions, proto,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::kit::{Guarded, Token, identity};

pub(crate) async fn channel(guarded: &Guarded) -> Channel {
    let address = format!("http://{}", guarded.server.address);
    Endpoint::from_shared(address).expect("an address").connect().await.expect("it listens")
}

/// A call with `authorization`, as a client in any language makes it.
pub(crate) fn with<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().expect("ascii"));
    }
    request
}

/// What the metadata `authorization` says with a token.
pub(crate) fn bearer(token: &Token) -> String {
    format!("Bearer {}", token.text)
}

#[tokio::test]
async fn a_call_of_any_language_has_a_status_that_says_whether_the_caller_is_known() {
    let (client, operator, other) = (Token::new(), Token::new(), Token::new());
    let guarded = Guarded::start(&format!(
        "{}{}",
        identity("client", "'client'", &client, "tables = ['t']"),
        identity("operator", "'operator'", &operator, ""),
    ));
    let channel = channel(&guarded).await;
    let (client, operator, other) = (bearer(&client), bearer(&operator), bearer(&other));
    let mut locks = LocksClient::new(channel.clone());
    let mut admin = AdminClient::new(channel.clone());
    let mut allocator = AllocatorClient::new(channel.clone());
    for (authorization, code) in [
        (None, Code::Unauthenticated),
        (Some("Bearer"), Code::Unauthenticated),
        (Some("Basic YTpi"), Code::Unauthenticated),
        (Some(&*other), Code::Unauthenticated),
        (Some(&*operator), Code::PermissionDenied),
        (Some(&*client), Code::Ok),
    ] {
        let opened = locks.open_session(with(proto::Hello::default(), authorization)).await;
        let status = opened.err().map_or(Code::Ok, |status| {
            assert!(status.message().len() > 40, "it says what to do: {status:?}");
            status.code()
        });
        assert_eq!(status, code, "{authorization:?}");
    }
    // A session that does not exist is not known to those who are not, either.
    let nowhere = proto::SessionRef { session: 1, service: 1 };
    let refused = locks.keep_session(with(nowhere, Some(&other))).await.expect_err("unknown");
    assert_eq!(refused.code(), Code::Unauthenticated);
    for authorization in [&client, &operator] {
        let node = admin.get_node(with(proto::GetNodeRequest {}, Some(authorization))).await;
        node.expect("it is known");
    }
    let status = with(proto::StatusRequest::default(), Some(&*client));
    let refused = allocator.status(status).await.expect_err("not for clients");
    assert_eq!(refused.code(), Code::PermissionDenied);
    allocator
        .status(with(proto::StatusRequest::default(), Some(&operator)))
        .await
        .expect("an operator");
    let latest = |table: &str| proto::LatestRequest { group: "g".into(), table: table.into() };
    let refused = allocator.latest(with(latest("u"), Some(&client))).await.expect_err("not its");
    assert_eq!(refused.code(), Code::PermissionDenied);
    allocator.latest(with(latest("t"), Some(&client))).await.expect("its own");
    // A probe needs no credentials.
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    health.check(request).await.expect("open to all");
}

#[tokio::test]
async fn a_commit_is_admitted_for_the_tables_of_its_caller_alone() {
    let (limited, all) = (Token::new(), Token::new());
    let guarded = Guarded::start(&format!(
        "{}{}",
        identity("limited", "'client'", &limited, "tables = ['mine']"),
        identity("all", "'client'", &all, ""),
    ));
    let connect = async |token: &Token| {
        let credentials = Credentials::default().token(token.text.clone());
        let client = Client::builder().credentials(credentials);
        client.connect(&guarded.server.address).await.expect("it listens")
    };
    let (limited, all) = (connect(&limited).await, connect(&all).await);
    let lock = async |client: &Client, table: &str| {
        let session = client.session(None).await.expect("it serves");
        let txn = session.txn(TxnOptions { validates: true, ..TxnOptions::default() });
        let row = LockItem::Row(Key::new("k").expect("a key"));
        let table = TableRef::new("default", table).expect("names");
        let grant = txn.lock(LockSpec::new(table, vec![row])).await.expect("free");
        (session, PresentedBind::from(&grant.bind), txn)
    };
    let (_other_session, foreign, _other) = lock(&all, "foreign").await;
    let (_session, own, txn) = lock(&limited, "mine").await;
    let begin = async |binds: Vec<PresentedBind>| {
        let window = CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) };
        let txn = txn.id().expect("it has locked");
        let attempt = CommitAttempt::new(1);
        limited.allocator().begin_commit(&BeginCommit { txn, attempt, binds, window }).await
    };
    let missing = PresentedBind { table: lockservice_core::TableId::new(999), ..own };
    let mut said = Vec::new();
    for binds in [vec![foreign], vec![own, foreign], vec![missing]] {
        let refused = begin(binds).await.expect_err("not its own");
        assert_eq!(refused.kind(), ErrorKind::NotPermitted, "{refused:?}");
        said.push(refused.message().to_owned());
    }
    assert!(said.windows(2).all(|two| two[0] == two[1]), "no hint what exists: {said:?}");
    begin(vec![own]).await.expect("its own");
}
