//! The first leader, and the work of an opening.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, LocalAllocator, LockTableAllocator, Progress, Registration, Role, TxnRange,
};
use lockservice_core::clock::{Clock, SystemClock, hi};
use lockservice_core::store::{
    Acquired, BindRecord, BindStore, Candidate, Leadership, MemoryStore, Op, TableRecord,
};
use lockservice_core::{
    BindVersion, ErrorKind, FencingToken, NodeName, Nonce, ServiceId, TableId, TxnId, TxnNumber,
    WriteNumber,
};
use tokio::time::Instant;

use super::cluster;
use crate::cluster::{Cluster, LEASE, TTL, commit, table};

#[tokio::test(start_paused = true)]
async fn an_empty_store_is_watched_once_then_held_for_a_lease_and_then_led_by_one() {
    let cluster = cluster();
    let begin = Instant::now();
    let nodes = [cluster.node("a"), cluster.node("b"), cluster.node("c")];
    for node in &nodes {
        node.allocator.elected().await.expect("the store responds");
    }
    assert_eq!(nodes.iter().filter(|node| node.leads()).count(), 1);
    assert!(begin.elapsed() >= hi(TTL), "watched for {:?}", begin.elapsed());
    assert!(begin.elapsed() <= hi(TTL) + TTL / 4 * 2, "watched for {:?}", begin.elapsed());
    let incarnation = nodes[1].begin().await;
    let held =
        nodes[1].allocator.bind(incarnation.service, &table("t")).await.expect_err("held (L4)");
    assert_eq!(held.kind(), ErrorKind::Reassigning);
    tokio::time::sleep(held.retry_after().expect("it says so") / 2).await;
    nodes[1].keep(&incarnation, Progress::default()).await.expect("in time");
    tokio::time::sleep(held.retry_after().expect("it says so") / 2).await;
    let bound = nodes[1].allocator.bind(incarnation.service, &table("t")).await.expect("free");
    assert_eq!(bound.bind.owner, incarnation.service);
    for node in &nodes {
        let latest = node
            .allocator
            .latest(&table("t"))
            .await
            .expect("through any node")
            .bind
            .expect("bound");
        assert_eq!(latest.bind, bound.bind);
    }
}

/// Real threads: one that reads what it found, in one go, until the leadership has been renewed
/// beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_renews_while_its_opening_holds_a_thread() {
    let cluster = cluster();
    let node = cluster.node_with("a", |settings| settings.constants.leadership_ttl_ms = 1_000);
    let (renewed, saw) = std::sync::mpsc::channel();
    // Each fails only if the other side has given up.
    node.store.before_renewal(move || {
        let _ = renewed.send(());
    });
    let (done, outcome) = tokio::sync::oneshot::channel();
    // The bound of the wait only ends a test that has failed.
    node.store.before_load(move || {
        let _ = done.send(saw.recv_timeout(Duration::from_secs(60)));
    });
    outcome.await.expect("it is elected").expect("renewed while the store was being read");
}

/// The number of polls until a future is ready: others have their turn in between.
async fn polls<F: Future>(future: F) -> (F::Output, usize) {
    let mut future = pin!(future);
    let mut polls = 0;
    let output = poll_fn(|context| {
        polls += 1;
        future.as_mut().poll(context)
    });
    (output.await, polls)
}

#[tokio::test]
async fn work_over_many_tables_lets_other_tasks_run() {
    const TABLES: usize = 20_000;
    let store: Arc<dyn BindStore> = Arc::new(MemoryStore::new(1));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let name = NodeName::new("n").expect("a name");
    let epoch =
        match store.acquire_leadership(&Candidate::from(name.clone()), TTL).await.expect("free") {
            Leadership::Acquired(Acquired { epoch, .. }) => epoch,
            held => panic!("{held:?}"),
        };
    let tables = (0..TABLES).map(|n| {
        Op::PutTable(TableRecord {
            table: table(&format!("t{n}")),
            id: TableId::new(epoch.first_number().get() + 1 + n as u64),
            partitions: 1,
            tokens_reserved_to: FencingToken::new(0),
            binds: vec![BindRecord { owner: ServiceId::new(1), version: BindVersion::new(1) }],
            claimable_from: Default::default(),
        })
    });
    store.write(epoch, WriteNumber::FIRST, &tables.collect()).await.expect("it leads");
    let least = TABLES / 1_000;
    // It opens in a task of its own, so what counts is how often another one has its turn.
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    });
    let allocator =
        LocalAllocator::open(store, clock, AllocatorSettings::default(), name.clone()).await;
    let times = turns.load(Ordering::SeqCst);
    other.abort();
    let allocator = allocator.expect("opens");
    assert_eq!(allocator.entries().0, TABLES);
    assert!(times >= least, "others had {times} turns in all");
    let (status, times) = polls(allocator.status()).await;
    let binds = status.expect("it leads").binds;
    assert!(binds.len() == TABLES && binds.is_sorted_by(|a, b| a.bind.table < b.bind.table));
    assert!(times >= least, "the status took {times} polls");
    let register =
        Registration { node: name, nonce: Nonce::new(7), address: String::new(), replaces: None };
    let service = allocator.register(&register).await.expect("a free name").service;
    let (resigned, times) = polls(allocator.resign(service, Nonce::new(7))).await;
    resigned.expect("nothing is pinned");
    assert!(times >= least, "the resignation took {times} polls");
}

#[tokio::test(start_paused = true)]
async fn tombstones_below_the_floor_of_their_origin_go_and_the_next_leader_refuses_the_same() {
    let cluster = Cluster::with_lease(LEASE);
    let first = cluster.led().await;
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let origin = second.begin_in_time().await;
    let bound = second.allocator.bind(origin.service, &table("t")).await.expect("free");
    let txns = [1, 2, 7].map(|number| TxnId::new(origin.service, TxnNumber::new(number), true));
    let response = second.allocator.cannot_commit(&txns).await.expect("written");
    assert_eq!(response.tombstoned, txns);
    let store = cluster.store.connect();
    let kept = async |floor, expected: &[TxnId]| {
        let range = TxnRange { floor: TxnNumber::new(floor), end: TxnNumber::new(1_000) };
        second.allocator.report_txns(origin.service, Nonce::new(7), range).await.expect("live");
        let check = async {
            loop {
                let mut tombstones = store.load().await.expect("readable").tombstones;
                tombstones.sort_unstable();
                if tombstones == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(LEASE / 4, check).await.expect("no more is kept");
    };
    let floor = |number| TxnId::floor_tombstone(origin.service, TxnNumber::new(number));
    // The floor stands for all below it, and there is one at a time.
    kept(2, &[floor(2), txns[1], txns[2]]).await;
    kept(3, &[floor(3), txns[2]]).await;
    cluster.kill(first);
    second.leading().await;
    second.keep(&origin, bound.at).await.expect("live");
    for number in [1, 2, 7] {
        let refused = second
            .allocator
            .begin_commit(&commit(&origin, &bound, number))
            .await
            .expect_err("for ever (C4)");
        assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    }
    second
        .allocator
        .begin_commit(&commit(&origin, &bound, 3))
        .await
        .expect("alive, as far as it is known");
    let response = second.allocator.cannot_commit(&txns).await.expect("nothing is to be written");
    assert_eq!(response.tombstoned, txns);
    kept(8, &[floor(8)]).await;
    second.allocator.resign(origin.service, Nonce::new(7)).await.expect("live");
    let check = async {
        while !store.load().await.expect("readable").tombstones.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LEASE, check).await.expect("its end stands for its floor");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_advertises_the_leaders_address_says_so_instead_of_waiting_for_ever() {
    let cluster = cluster();
    let first = cluster.led().await;
    let second = cluster.node_at("b", first.name, |_| {});
    let mut roles = second.allocator.roles();
    let observed = |role: &Role| matches!(role, Role::Searching(Some(_)));
    let Role::Searching(Some(why)) = roles.wait_for(observed).await.expect("it lives").clone()
    else {
        unreachable!()
    };
    assert!(why.kind() == ErrorKind::NameInUse && why.to_string().contains("--advertise"), "{why}");
    // The next process of a node finds its own address there too, and takes over.
    cluster.kill(second);
    cluster.kill(first);
    let third = cluster.node_at("a", "a", |_| {});
    let mut roles = third.allocator.roles();
    let decided = roles
        .wait_for(|role| !matches!(role, Role::Searching(None)))
        .await
        .expect("it lives")
        .clone();
    assert!(matches!(decided, Role::Leading(_)), "{decided:?}");
}
