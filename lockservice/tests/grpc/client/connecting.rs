//! The way to a server.

use std::sync::Arc;
use std::time::Duration;

use lockservice::client::Client;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use lockservice_core::clock::SystemClock;

use super::{client, server, within};
use crate::support::spec;

#[tokio::test]
async fn an_address_that_is_frozen_or_not_ready_does_not_keep_a_client_from_the_next() {
    let served = server().await;
    // The kernel accepts, and no process responds: as with a process that is stopped.
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let frozen = (frozen.local_addr().expect("bound").to_string(), frozen);
    // Bound and closed again: no listener is there.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound")
        .to_string();
    let (starting, _server) = starting().await;
    let addresses =
        [&frozen.0, &gone, &starting, &frozen.0, &served.address].map(String::as_str).join(",");
    // Only the head start of each address bounds how long a frozen one is waited for.
    let found = Client::builder().connect_timeout(Duration::from_secs(600)).connect(&addresses);
    let found = within(found).await.expect("one serves");
    found.admin().locks(None).await.expect("it serves");
    let held =
        found.session(None).await.expect("a session").lock(spec("alice")).await.expect("free");
    held.unlock();

    let second_best = client(&format!("{},{starting}", frozen.0)).await;
    let error = second_best.admin().locks(None).await.expect_err("it cannot serve yet");
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("starting"),
        "{error}"
    );
    let error = Client::builder()
        .connect_timeout(Duration::from_millis(500))
        .connect(&format!("{},{gone}", frozen.0))
        .await
        .expect_err("no one responds");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// A server whose service does not stand yet.
async fn starting() -> (String, lockservice::server::Server) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let name = lockservice_core::NodeName::new("starting").expect("a name");
    let allocator = lockservice::open_allocator("memory:", name).await.expect("in memory");
    let server =
        lockservice::server::Server::start(listener, allocator, ServerSettings::default()).await;
    (address, server.expect("it listens"))
}

#[tokio::test]
async fn a_session_waits_for_a_server_that_is_starting_unless_it_may_not() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let name = lockservice_core::NodeName::new("starting").expect("a name");
    let allocator = lockservice::open_allocator("memory:", name.clone()).await.expect("in memory");
    let allocator: Arc<dyn lockservice_core::allocator::LockTableAllocator> = allocator;
    let settings = ServerSettings::default();
    let mut server = lockservice::server::Server::start(listener, Arc::clone(&allocator), settings)
        .await
        .expect("ok");
    let impatient = Client::builder()
        .start_timeout(Duration::ZERO)
        .connect(&address)
        .await
        .expect("it responds");
    let error = impatient.session(None).await.expect_err("it may not wait");
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("starting"),
        "{error}"
    );
    let patient = client(&address).await;
    let opened = patient.session(None);
    let mut opened = std::pin::pin!(opened);
    tokio::select! {
        outcome = &mut opened => panic!("no node is there yet: {outcome:?}"),
        // Longer than one round.
        () = tokio::time::sleep(Duration::from_millis(250)) => {}
    }
    let parts =
        lockservice_core::service::ServiceParts::new(allocator, Arc::new(SystemClock), name);
    server
        .host(lockservice::server::ServiceHost::start(parts).await.expect("it has a lease"))
        .await;
    let session = opened.await.expect("it has started");
    session.lock(spec("alice")).await.expect("free").release().await.expect("acknowledged");
}

#[tokio::test]
async fn without_a_server_the_client_says_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    assert_eq!(Client::connect(&address).await.expect_err("no one").kind(), ErrorKind::Unavailable);
    for bad in [
        "",
        "::::",
        "ftp://x",
        "http://",
        "localhost",
        "localhost:0",
        "localhost:65536",
        "http://localhost:65536",
    ] {
        assert_eq!(
            Client::connect(bad).await.expect_err("no address").kind(),
            ErrorKind::InvalidArgument,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn a_ttl_too_short_to_be_renewed_is_refused() {
    let served = server().await;
    let error = client(&served.address)
        .await
        .session(Some(Duration::from_millis(5)))
        .await
        .expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
