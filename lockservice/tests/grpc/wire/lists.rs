//! Lists, and readers that do not read them.

use std::time::Duration;

use lockservice::client::Client;
use lockservice::proto;
use lockservice::server::ServerSettings;
use lockservice_core::service::LockSpec;

use super::channel;
use crate::support::{Served, row, spec, table};

#[tokio::test]
async fn a_long_list_is_cut_and_says_so() {
    let served = Served::start(ServerSettings { list_lines_max: 2, ..Default::default() }).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let session = client.session(None).await.expect("a session");
    let mut held = Vec::new();
    for n in 1..=5_usize {
        held.push(session.lock(spec(&format!("row {n}"))).await.expect("free"));
        let locks = client.admin().locks(None).await.expect("it responds");
        assert_eq!((locks.len(), locks.is_cut()), (n.min(2), n > 2));
    }
    assert!(!client.admin().waits(None).await.expect("it responds").is_cut());
}

#[tokio::test]
async fn readers_that_do_not_read_their_lists_keep_no_other_from_a_list() {
    // Far less than the minute that a list may take in all.
    let served =
        Served::start(ServerSettings { write_ms_max: 300, ..ServerSettings::default() }).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let session = client.session(None).await.expect("a session");
    // More than an unread connection accepts.
    let rows = |from: u32| (from..from + 20_000).map(|n| row(&format!("row {n}"))).collect();
    let held = [
        session.lock(LockSpec::new(table(), rows(0))).await.expect("free"),
        session.lock(LockSpec::new(table(), rows(20_000))).await.expect("free"),
    ];
    let mut unread = Vec::new();
    // As many as there are places.
    for _ in 0..64 {
        let mut wire = proto::admin_client::AdminClient::new(channel(&served).await);
        let list = wire.list_locks(proto::ListLocksRequest::default()).await.expect("it begins");
        unread.push((wire, list));
    }
    let list = tokio::time::timeout(Duration::from_secs(30), client.admin().locks(None)).await;
    assert_eq!(list.expect("it has a place").expect("it responds").len(), 40_000);
    drop((held, unread));
}
