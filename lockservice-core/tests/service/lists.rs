//! What lists show of locks, waits and their transactions.

use lockservice_core::clock::hi;
use lockservice_core::service::{LockStatus, OpenedBy, TxnParty};

use super::*;

const TTL: Duration = Duration::from_secs(10);

/// A session of a client whose identity and address are known.
fn opened(service: &LockService, client: &str) -> Session {
    let opened_by = OpenedBy { identity: format!("id of {client}"), address: "[::1]:7".to_owned() };
    service.open_session_within(None, Some(TTL), client, opened_by).expect("a session")
}

fn row_lines(service: &LockService, name: &str) -> Vec<LockStatus> {
    let mut list = service.row_list(&table(), &Key::new(name).expect("a key"));
    std::iter::from_fn(|| list.next_slice(1)).flatten().collect()
}

async fn until_waits(service: &LockService, count: usize) {
    while service.waits(None).len() != count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_says_since_when_whose_from_where_and_how_much_of_the_guard_is_left() {
    let (service, _allocator) = service().await;
    let (a, b) = (opened(&service, "a@host:1"), opened(&service, "b@host:2"));
    locked(a.submit(op(1, 1), Operation::Lock(spec("k"))).await);
    let waits = b.submit(op(1, 1), Operation::Lock(spec("k")));
    until_waits(&service, 1).await;
    tokio::time::sleep(2 * SECOND).await;
    a.renew().expect("it is open");
    tokio::time::sleep(SECOND).await;

    let party = |session: &Session, client: &str, left, held| TxnParty {
        client: client.to_owned(),
        session: Some(session.handle()),
        opened_by: OpenedBy { identity: format!("id of {client}"), address: "[::1]:7".to_owned() },
        left: Some(left),
        held,
        ..TxnParty::default()
    };
    let holder = party(&a, "a@host:1", hi(TTL) - SECOND, Some(3 * SECOND));
    let waiter = party(&b, "b@host:2", hi(TTL) - 3 * SECOND, None);
    let lock = &service.locks(None)[0];
    assert_eq!((&lock.party, lock.waiting), (&holder, None));
    let wait = &service.waits(None)[0];
    assert_eq!((&wait.waiter, &wait.holder), (&waiter, &holder));
    assert_eq!(wait.waiting, 3 * SECOND);
    let lines = row_lines(&service, "k");
    let seen: Vec<_> = lines.iter().map(|line| (&line.party, line.waiting)).collect();
    assert_eq!(seen, [(&holder, None), (&waiter, Some(3 * SECOND))]);

    // A later lock of the transaction does not change since when it holds something.
    locked(a.submit(op(1, 2), Operation::Lock(spec("l"))).await);
    assert!(service.locks(None).iter().all(|lock| lock.party.held == Some(3 * SECOND)));
    a.close().await;
    locked(waits.await);
    assert_eq!(service.locks(None)[0].party.held, Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn of_an_embedder_a_line_says_the_label_and_since_when_and_without_a_label_nothing() {
    let (service, _allocator) = service().await;
    let labelled = TxnOptions { label: "nightly".to_owned(), ..TxnOptions::default() };
    let named = service.begin(labelled).expect("begin");
    named.lock(spec("a")).await.expect("free");
    let nameless = service.begin(TxnOptions::default()).expect("begin");
    nameless.lock(spec("b")).await.expect("free");
    tokio::time::sleep(SECOND).await;
    let parties: Vec<_> = service.locks(None).into_iter().map(|lock| lock.party).collect();
    let label = "nightly".to_owned();
    let expected = TxnParty { label, held: Some(SECOND), ..TxnParty::default() };
    assert_eq!(parties, [expected, TxnParty::default()]);
}

#[tokio::test(start_paused = true)]
async fn the_list_of_a_row_is_of_this_row_of_this_table() {
    let (service, _allocator) = service().await;
    let txn = service.begin(TxnOptions::default()).expect("begin");
    for name in ["a", "k", "z"] {
        txn.lock(spec(name)).await.expect("free");
    }
    let other = LockSpec::new(TableRef::new("g", "other").expect("names"), vec![row("k")]);
    txn.lock(other).await.expect("free");
    let lines = row_lines(&service, "k");
    assert_eq!((lines.len(), &lines[0].info.item), (1, &row("k")));
    assert_eq!(lines[0].info.table, table());
    assert!(row_lines(&service, "b").is_empty());
}
