//! A client that goes while its work may still be running.

use std::time::Duration;

use crate::support::{Served, spec, table};
use lockservice::client::Client;
use lockservice::convert::from_status;
use lockservice::proto;
use lockservice::proto::locks_client::LocksClient;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use lockservice_core::service::STILL_RUNNING_BYTES_MAX;

#[tokio::test]
async fn what_a_client_could_not_stop_is_seen_with_its_locks_which_stay_until_the_session_lapses() {
    let served = Served::start(ServerSettings::default()).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let next = client.session(None).await.expect("a session");
    let ttl = Duration::from_secs(1);
    for (said, seen) in
        [("7 (sl\neep)", "7 (sleep)"), ("", "not known"), (&"é".repeat(4_000), &"é".repeat(512))]
    {
        let session = client.session(Some(ttl)).await.expect("a session");
        let lock = session.lock(spec("alice")).await.expect("free");
        let renewed = tokio::time::Instant::now();
        session.leave(said).await.expect("the server is told");
        drop((lock, session));
        let locks = client.admin().locks(Some(&table())).await.expect("it responds");
        let shown: Vec<&str> = locks.iter().map(|lock| lock.party.still_running.as_str()).collect();
        assert_eq!(shown, [seen]);
        next.lock(spec("alice")).await.expect("it lapses").release().await.expect("acknowledged");
        assert!(renewed.elapsed() > ttl / 2, "lapsed, not released: {:?}", renewed.elapsed());
    }
    let session = client.session(None).await.expect("a session");
    let _held = session.lock(spec("alice")).await.expect("free");
    let locks = client.admin().locks(Some(&table())).await.expect("it responds");
    assert_eq!(locks[0].party.still_running, "", "of others nothing is said");
}

#[tokio::test]
async fn what_a_client_says_when_it_leaves_is_bounded_and_does_not_renew_its_session() {
    let served = Served::start(ServerSettings::default()).await;
    let mut wire =
        LocksClient::connect(format!("http://{}", served.address)).await.expect("it listens");
    let hello = proto::Hello { ttl_ms: 1_000, ..proto::Hello::default() };
    let welcome = wire.open_session(hello).await.expect("welcome").into_inner();
    let session = Some(proto::SessionRef { session: welcome.session, service: welcome.service });
    let leaving =
        |still_running: &str| proto::Leaving { session, still_running: still_running.to_owned() };
    for bad in ["", "a\nb", &"x".repeat(STILL_RUNNING_BYTES_MAX + 1)] {
        let refused = wire.leave_session(leaving(bad)).await.expect_err("out of bounds");
        assert_eq!(from_status(&refused).kind(), ErrorKind::InvalidArgument, "{bad}");
    }
    // Said again and again it holds nothing up: it lapses 1.11 s after it was opened.
    loop {
        match wire.leave_session(leaving("7 (sleep)")).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(status) => {
                assert_eq!(from_status(&status).kind(), ErrorKind::SessionLost);
                break;
            }
        }
    }
}
