//! Several nodes with one shared store: one leads, the others stand by, and nothing is promised
//! twice over any failure of leader or store (L1 to L4). Time is tokio's paused clock: every wait
//! here is counted, none is waited for.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod cluster;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, LocalAllocator, LockTableAllocator, Progress, Registration, Role, TxnRange,
};
use lockservice_core::clock::{Clock, SystemClock, hi, lo};
use lockservice_core::store::{
    Acquired, BindRecord, BindStore, Candidate, Floor, Leadership, MemoryStore, Op, TableRecord,
};
use lockservice_core::testing::SharedStore;
use lockservice_core::{
    BindVersion, EpochNumber, ErrorKind, FencingToken, NodeName, Nonce, ServiceId, TableId, TxnId,
    TxnNumber, WriteNumber,
};
use tokio::time::Instant;

use self::cluster::{Cluster, LEASE, TTL, commit, table};

/// A lease here lasts as long as a leadership.
fn cluster() -> Cluster {
    Cluster::with_lease(TTL)
}

#[tokio::test(start_paused = true)]
async fn an_empty_store_is_watched_once_then_held_for_a_lease_and_then_led_by_one() {
    let cluster = cluster();
    let begin = Instant::now();
    let nodes = [cluster.node("a"), cluster.node("b"), cluster.node("c")];
    for node in &nodes {
        node.allocator.elected().await.expect("the store answers");
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

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_replaced_within_its_ttl_and_every_bind_is_kept() {
    let cluster = cluster();
    let first = cluster.led().await;
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let incarnation = second.begin().await;
    let bound = second.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let before = second.keep(&incarnation, bound.at).await.expect("live");
    let dead = Instant::now();
    cluster.kill(first);
    second.leading().await;
    let gone = dead.elapsed();
    assert!(gone <= hi(TTL) + TTL / 4, "replaced after {gone:?}");
    // It was last renewed under the old leader and is taken as renewed at the takeover (B4).
    let after = second.keep(&incarnation, before).await.expect("still live");
    assert!(after.epoch > before.epoch);
    assert_eq!(
        second.allocator.latest(&table("t")).await.expect("answers").bind.expect("kept").bind,
        bound.bind
    );
    second.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect("still valid");
    let other = second
        .allocator
        .bind(incarnation.service, &table("new"))
        .await
        .expect("no wait for new tables");
    assert!(other.bind.version > bound.bind.version);
    assert!(
        other.tokens.expect("fresh").next.get() >= after.epoch.first_number().get(),
        "tokens begin with the epoch"
    );
}

#[tokio::test(start_paused = true)]
async fn a_resignation_is_noticed_at_once() {
    let cluster = cluster();
    let first = cluster.led().await;
    let second = cluster.node("b");
    let incarnation = second.begin().await;
    let bound = second.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let stopped = Instant::now();
    assert!(first.allocator.shutdown(false, Duration::from_secs(1)).await.expect("stops").resigned);
    second.leading().await;
    assert!(stopped.elapsed() < Duration::from_millis(100), "after {:?}", stopped.elapsed());
    second.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect("still valid");
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_its_store_validates_while_the_leadership_lasts_and_goes_on_afterwards() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let bound = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let writes = cluster.store.writes();
    node.store.inner.set_cut(true);
    let cut = Instant::now();
    let refused = loop {
        match node.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await {
            Ok(admission) => {
                assert!(
                    cut.elapsed() + lo(admission.commit_before) < TTL,
                    "no commit outlives the leadership"
                )
            }
            Err(e) => break e,
        }
        node.keep(&incarnation, Progress::default()).await.ok();
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert!(
        cut.elapsed() > lo(TTL) - TTL / 3 - Duration::from_millis(200),
        "validated for {:?} only",
        cut.elapsed()
    );
    assert!(
        cut.elapsed() <= lo(TTL) + Duration::from_millis(200),
        "validated for {:?}",
        cut.elapsed()
    );
    node.store.inner.set_cut(false);
    tokio::time::sleep(TTL / 3).await;
    assert!(node.leads(), "nobody took over meanwhile");
    let again = node.begin().await;
    node.allocator.bind(again.service, &table("u")).await.expect("the same leadership goes on");
    assert_eq!(again.at.epoch, bound.at.epoch);
    assert_eq!(
        node.allocator.latest(&table("t")).await.expect("answers").bind.expect("kept").bind,
        bound.bind
    );
    assert!(cluster.store.writes() > writes);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_cut_off_returns_nothing_once_another_leads_and_writes_nothing() {
    let cluster = cluster();
    let first = cluster.led().await;
    let old = first.begin().await;
    let bound = first.allocator.bind(old.service, &table("t")).await.expect("free");
    let Role::Leading(local) = first.allocator.role() else { panic!("it leads") };
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    first.store.inner.set_cut(true);
    let cut = Instant::now();
    // All admissions of the old leader end before the new one can lead.
    let mut promised = cut;
    while !second.leads() {
        if let Ok(admission) = local.begin_commit_now(&commit(&old, &bound, 1)) {
            promised = promised.max(Instant::now() + lo(admission.commit_before));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(Instant::now() >= promised, "a commit admitted by the old leader outlived it");
    first.store.inner.set_cut(false);
    let why = local.ended().await;
    assert_eq!(why.kind(), ErrorKind::Fenced, "{why:?}");
    let refused = local.bind(old.service, &table("other")).await.expect_err("it does not lead");
    assert_eq!(refused.kind(), ErrorKind::NotLeader);
    assert_eq!(
        local.begin_commit_now(&commit(&old, &bound, 2)).expect_err("it does not lead").kind(),
        ErrorKind::NotLeader
    );
    // Its node follows by itself.
    assert_eq!(
        first.allocator.latest(&table("t")).await.expect("followed").bind.expect("kept").bind,
        bound.bind
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_on_another_copy_is_held_for_a_lease_and_reuses_nothing() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let backup = cluster.store.backup();
    let lost = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let observed = node.keep(&incarnation, lost.at).await.expect("live");
    cluster.store.restore(&backup, true);
    let refused = node
        .allocator
        .bind(incarnation.service, &table("u"))
        .await
        .expect_err("the store is not the one it was");
    assert!(matches!(refused.kind(), ErrorKind::LeaseLost | ErrorKind::NotLeader), "{refused:?}");
    node.leading().await;
    // The owner that observed the lost bind reports it, or has reported it to its own node.
    let gone = node.keep(&incarnation, observed).await.expect_err("nothing of before is relied on");
    assert!(matches!(gone.kind(), ErrorKind::LeaseLost | ErrorKind::NotLeader), "{gone:?}");
    node.leading().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let again = node.begin().await;
    let held = node
        .allocator
        .bind(again.service, &table("t"))
        .await
        .expect_err("its owner may still be at work");
    assert_eq!(held.kind(), ErrorKind::Reassigning, "{held:?}");
    while let Err(e) = node.allocator.bind(again.service, &table("t")).await {
        assert_eq!(e.kind(), ErrorKind::Reassigning, "{e:?}");
        node.keep(&again, Progress::default()).await.expect("live");
        tokio::time::sleep(e.retry_after().expect("it says so").min(TTL / 3)).await;
    }
    let bound = node.allocator.latest(&table("t")).await.expect("answers").bind.expect("bound");
    assert!(
        bound.bind.version > lost.bind.version && bound.bind.id > lost.bind.id,
        "no number is given out twice"
    );
    let refused =
        node.allocator.begin_commit(&commit(&incarnation, &lost, 1)).await.expect_err("void");
    assert!(
        matches!(refused.kind(), ErrorKind::CannotCommit | ErrorKind::BindChanged),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_disk_image_put_back_unnoticed_is_found_by_the_progress_that_a_node_observed() {
    let cluster = cluster();
    let first = cluster.led().await;
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let backup = cluster.store.backup();
    let incarnation = second.begin().await;
    let lost = second.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    cluster.kill(first);
    cluster.store.restore(&backup, false);
    second.leading().await;
    let Role::Leading(local) = second.allocator.role() else { panic!("it leads") };
    let status = local.status().await.expect("it leads");
    assert!(
        status.services.iter().all(|service| service.id != incarnation.service),
        "the incarnation is lost too"
    );
    let again = second.begin().await;
    let held = second
        .allocator
        .bind(again.service, &table("t"))
        .await
        .expect_err("the node was told of a later write");
    assert_eq!(held.kind(), ErrorKind::Reassigning);
    assert!(again.at.epoch > lost.at.epoch);
}

#[tokio::test(start_paused = true)]
async fn a_report_from_a_node_makes_a_leader_that_knows_less_raise_its_epoch() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let before = node.keep(&incarnation, Progress::default()).await.expect("live");
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    // A report of a leadership that this store knows nothing of.
    let observed = Progress {
        epoch: lockservice_core::Epoch::new(before.epoch.get() + 40),
        write: WriteNumber::FIRST,
        high_water: EpochNumber::new(0),
        leader: Nonce::default(),
    };
    let refused = local
        .keepalive(incarnation.service, Nonce::new(7), observed)
        .await
        .expect_err("it must step over");
    assert_eq!(refused.kind(), ErrorKind::NotLeader);
    local.ended().await;
    node.allocator
        .roles()
        .wait_for(|role| !matches!(role, Role::Leading(_)))
        .await
        .expect("noticed");
    node.leading().await;
    let again = node.begin().await;
    assert!(again.at.epoch > observed.epoch, "one above the reported (L4)");
}

#[tokio::test(start_paused = true)]
async fn a_response_of_an_earlier_leader_is_rejected() {
    let cluster = cluster();
    // Far above any number that a new store reaches by chance.
    cluster.store.set_floor(Floor::of_clock(1_767_225_600 + 50_000 * 1024).expect("in range"));
    let first = cluster.led().await;
    let incarnation = first.begin().await;
    let Role::Leading(stale) = first.allocator.role() else { panic!("it leads") };
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    first.allocator.shutdown(false, Duration::ZERO).await.expect("stops");
    second.leading().await;
    let third = cluster.node("c");
    third.allocator.elected().await.expect("follows");
    third.keep(&incarnation, Progress::default()).await.expect("told the new epoch");
    // A network that still leads to a leader of an earlier epoch: one that has not noticed, so the
    // epoch is all there is to go by.
    let old_store = SharedStore::new();
    // It leaps over no epoch (L4).
    let candidate = Candidate {
        nonce: Nonce::new(0),
        ..Candidate::new(NodeName::new("x").expect("a name"), "x")
    };
    drop(stale);
    let seen = match old_store.acquire_leadership(&candidate, TTL).await.expect("asks") {
        Leadership::Held { seen, .. } => Some(seen),
        other => panic!("{other:?}"),
    };
    let clock: Arc<dyn Clock> = Arc::new(cluster.clock);
    let earlier = LocalAllocator::open(
        Arc::new(old_store),
        clock,
        cluster.settings(),
        Candidate { seen, ..candidate },
    )
    .await
    .expect("leads a store of its own");
    cluster.net.join("b", earlier);
    let rejected = third.allocator.status().await.expect_err("its epoch is of the past (L3)");
    assert_eq!(rejected.kind(), ErrorKind::Unavailable, "{rejected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_lost_nothing_ends_the_leadership_and_keeps_every_bind() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let bound = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    let everything = cluster.store.backup();
    cluster.store.restore(&everything, true);
    let refused =
        local.bind(incarnation.service, &table("u")).await.expect_err("another copy (L4)");
    assert_eq!(refused.kind(), ErrorKind::NotLeader, "{refused:?}");
    let observed = node
        .keep(&incarnation, Progress::default())
        .await
        .expect("taken as renewed at the takeover");
    assert!(observed.epoch > bound.at.epoch);
    let held =
        node.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect_err("held");
    assert_eq!(held.kind(), ErrorKind::Unavailable, "{held:?}");
    let mut left = held.retry_after().expect("it says so");
    while !left.is_zero() {
        node.keep(&incarnation, observed).await.expect("it was told of nothing that is not there");
        let pause = left.min(TTL / 3);
        tokio::time::sleep(pause).await;
        left -= pause;
    }
    node.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect("nothing was lost");
    assert_eq!(
        node.allocator.latest(&table("t")).await.expect("answers").bind.expect("kept").bind,
        bound.bind
    );
}
