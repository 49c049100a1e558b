//! Schedules that a reviewer found, each of which once let two own one table, or kept a cluster
//! from work (L1, L4). Time is tokio's paused clock.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    Incarnation, LockTableAllocator, Progress, Registration, Report, Role,
};
use lockservice_core::clock::{hi, lo};
use lockservice_core::store::{self, BindStore, Floor, Proof};
use lockservice_core::{Epoch, EpochNumber, ErrorKind, NodeName, Nonce, ServiceId, WriteNumber};
use tokio::time::{Instant, sleep};

use self::cluster::{Cluster, LEASE, Node, TTL, commit, granted_after_the_owner, table};

fn register(name: &str, nonce: u64) -> Registration {
    let node = NodeName::new(name).expect("a name");
    Registration { node, nonce: Nonce::new(nonce), address: name.to_owned(), replaces: None }
}

/// 1. A leads a store in doubt. Just before it would settle that, it loses the store: the raise is
///    tried again and again, and meanwhile nothing is renewed.
/// 2. D takes over; the owner of `t` renews at D. D resigns.
/// 3. A reaches the store again. It must not take the leadership back: what it knows of the owner's
///    lease is old.
#[tokio::test(start_paused = true)]
async fn a_raise_that_comes_back_after_another_led_and_resigned_takes_nothing_over() {
    let cluster = Cluster::with_lease(LEASE);
    let a = cluster.led().await;
    let b = cluster.node("b");
    b.allocator.elected().await.expect("follows");
    let owner = b.begin_in_time().await;
    b.allocator.bind(owner.service, &table("t")).await.expect("free");
    b.store.inner.set_cut(true);
    // The server restarts and has lost nothing.
    let Role::Leading(first) = a.allocator.role() else { panic!("it leads") };
    cluster.store.restore(&cluster.store.backup(), true);
    first.ended().await;
    a.allocator.roles().wait_for(|role| !matches!(role, Role::Leading(_))).await.expect("noticed");
    a.leading().await;
    let began = Instant::now();
    let Role::Leading(local) = a.allocator.role() else { panic!("it leads") };
    let d = cluster.node("d");
    d.allocator.elected().await.expect("follows");
    while began.elapsed() < hi(LEASE) - Duration::from_millis(200) {
        local.keepalive(owner.service, Nonce::new(7), Progress::default()).await.expect("live");
        sleep(Duration::from_millis(100)).await;
    }
    a.store.inner.set_cut(true);
    d.leading().await;
    let Role::Leading(second) = d.allocator.role() else { panic!("it leads") };
    let mut renewed = Instant::now();
    for _ in 0..20 {
        renewed = Instant::now();
        second.keepalive(owner.service, Nonce::new(7), Progress::default()).await.expect("live");
        sleep(Duration::from_millis(500)).await;
    }
    assert!(d.allocator.shutdown(true, Duration::from_secs(1)).await.expect("stops").resigned);
    a.store.inner.set_cut(false);
    local.ended().await;
    // It may well lead again, as any other: then it takes the owner as renewed at its takeover
    // (B4).
    let bound = loop {
        let asks = a.begin_in_time().await;
        match a.allocator.bind(asks.service, &table("t")).await {
            Ok(bound) if bound.bind.owner == asks.service => break bound,
            _ => sleep(Duration::from_millis(500)).await,
        }
    };
    let since = renewed.elapsed();
    assert!(since >= lo(LEASE), "{bound:?} after {since:?}");
}

/// `b` owns `t` by the word of a leader X whose leadership was then lost, unnoticeably. C, which
/// has observed nothing, leads with the same epoch, and has written more than X. `b` is still cut
/// off from the store.
async fn led_twice_in_one_epoch() -> (Cluster, Node, Incarnation, Node) {
    let cluster = Cluster::with_lease(LEASE);
    let a = cluster.led().await;
    let (b, x) = (cluster.node("b"), cluster.node("x"));
    b.allocator.elected().await.expect("follows");
    x.allocator.elected().await.expect("follows");
    let owner = b.begin_in_time().await;
    b.keep(&owner, Progress::default()).await.expect("live");
    let backup = cluster.store.backup();
    b.store.inner.set_cut(true);
    cluster.kill(a);
    x.leading().await;
    b.store.inner.set_cut(false);
    b.follows(&x).await;
    let lost = b.allocator.bind(owner.service, &table("t")).await.expect("free");
    b.keep(&owner, Progress::default()).await.expect("live");
    cluster.store.restore(&backup, false);
    cluster.kill(x);
    b.store.inner.set_cut(true);
    let c = cluster.node("c");
    c.leading().await;
    let other = c.begin_in_time().await;
    assert_eq!(other.at.epoch, lost.at.epoch);
    for name in ["u", "v", "w"] {
        c.allocator.bind(other.service, &table(name)).await.expect("nothing is in doubt");
    }
    (cluster, b, owner, c)
}

#[tokio::test(start_paused = true)]
async fn progress_under_an_epoch_that_two_leaders_had_is_found_by_a_report() {
    let (_cluster, b, owner, c) = led_twice_in_one_epoch().await;
    // Its count of renewals is another than the lost leader's: that it is followed is not what this
    // is about.
    sleep(TTL / 3 * 2).await;
    b.store.inner.set_cut(false);
    b.follows(&c).await;
    b.keep(&owner, Progress::default())
        .await
        .expect_err("it reports what the leader does not know of");
    granted_after_the_owner("t", &b, &owner, &c).await;
}

/// It watched the lost leader before it was cut off.
#[tokio::test(start_paused = true)]
async fn a_leader_is_not_taken_for_one_that_had_its_epoch_and_stood_still() {
    let (_cluster, b, owner, c) = led_twice_in_one_epoch().await;
    b.store.inner.set_cut(false);
    b.follows(&c).await;
    assert!(c.leads());
    b.keep(&owner, Progress::default())
        .await
        .expect_err("it reports what the leader does not know of");
    granted_after_the_owner("t", &b, &owner, &c).await;
}

#[tokio::test(start_paused = true)]
async fn the_leader_after_a_raised_epoch_is_above_every_report_at_once() {
    let cluster = Cluster::with_lease(LEASE);
    let a = cluster.led().await;
    let c = cluster.node("c");
    c.allocator.elected().await.expect("follows");
    let Role::Leading(local) = a.allocator.role() else { panic!("it leads") };
    let epoch = cluster.store.head().await.expect("responds").expect("led").epoch.get() + 3_000;
    let observed = Progress {
        epoch: Epoch::new(epoch),
        write: WriteNumber::FIRST,
        high_water: EpochNumber::new(epoch << 32 | 5),
        leader: Nonce::new(9),
    };
    local.report(&cluster.report(observed).await).await.expect_err("steps over");
    local.ended().await;
    cluster.kill(a);
    c.leading().await;
    let before = cluster.store.head().await.expect("responds").expect("led").epoch;
    let started = c.begin_in_time().await;
    let after = cluster.store.head().await.expect("responds").expect("led").epoch;
    assert!(
        before > observed.epoch && EpochNumber::from(started.service) >= observed.high_water,
        "{before} {started:?}"
    );
    assert!(after.get() - before.get() <= 1, "raised from {before} to {after}");
}

/// A node may report nonsense: a server's clock says how far anybody can have come.
#[tokio::test(start_paused = true)]
async fn reports_from_nowhere_do_not_use_up_the_epochs() {
    let cluster = Cluster::with_lease(LEASE);
    cluster.store.set_floor(Floor::of_clock(1_767_225_600 + 1_000 * 1024).expect("in range"));
    let node = cluster.led().await;
    for _ in 0..8 {
        node.leading().await;
        let Role::Leading(local) = node.allocator.role() else { continue };
        let epoch = cluster.store.head().await.expect("responds").expect("led").epoch;
        let observed = Progress {
            epoch: Epoch::new(epoch.get() + 60_000),
            write: WriteNumber::FIRST,
            high_water: EpochNumber::new(u64::MAX),
            leader: Nonce::new(9),
        };
        drop(local.report(&cluster.report(observed).await).await);
        sleep(TTL * 3).await;
    }
    let epoch = cluster.store.head().await.expect("responds").expect("led").epoch;
    assert!(epoch.get() < 80_000, "{epoch}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_can_renew_but_not_read_does_not_keep_the_leadership() {
    let cluster = Cluster::with_lease(LEASE);
    let a = cluster.led().await;
    let b = cluster.node("b");
    b.allocator.elected().await.expect("follows");
    b.store.fail_loads();
    cluster.kill(a);
    sleep(TTL * 3).await;
    assert!(
        !matches!(b.allocator.role(), Role::Following { .. }),
        "nobody leads whom it could follow"
    );
    let c = cluster.node("c");
    tokio::time::timeout(TTL * 100, c.leading()).await.expect("c can read it");
}

/// Its record stays, for no later incarnation has a higher number; its place does not.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_gone_does_not_keep_its_place() {
    let cluster = Cluster::with_lease(LEASE);
    let a = cluster.node_with("a", |settings| settings.nodes_max = 2);
    a.leading().await;
    sleep(hi(LEASE) + TTL).await;
    let Role::Leading(local) = a.allocator.role() else { panic!("it leads") };
    let one = local.register(&register("n1", 1)).await.expect("room");
    let two = local.register(&register("n2", 2)).await.expect("room");
    local.resign(two.service, Nonce::new(2)).await.expect("live");
    for _ in 0..200 {
        local.keepalive(one.service, Nonce::new(1), Progress::default()).await.expect("live");
        sleep(Duration::from_secs(1)).await;
    }
    let stored = cluster.store.load().await.expect("responds").services;
    assert!(stored.iter().any(|service| service.id == two.service));
    local.register(&register("n3", 3)).await.expect("n2 has left long ago");
}

#[tokio::test(start_paused = true)]
async fn a_data_loss_is_recorded_although_the_outcome_of_a_write_is_unknown() {
    let cluster = Cluster::with_lease(LEASE);
    let node = cluster.led().await;
    let owner = node.begin_in_time().await;
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    let store = node.store.inner.clone();
    node.store.after_write(move || store.set_cut(true));
    let binds = Arc::clone(&local);
    tokio::spawn(async move { binds.bind(owner.service, &table("s")).await });
    sleep(Duration::from_millis(10)).await;
    let observed = Progress {
        epoch: Epoch::new(owner.at.epoch.get() + 40),
        write: WriteNumber::FIRST,
        ..Progress::default()
    };
    local.keepalive(owner.service, Nonce::new(7), observed).await.expect_err("it must step over");
    sleep(Duration::from_millis(1_500)).await;
    node.store.inner.set_cut(false);
    tokio::time::timeout(TTL * 3, local.ended()).await.expect("it is over");
    let head = cluster.store.head().await.expect("responds").expect("led");
    assert!(head.loss.known && head.loss_unresolved, "{head:?}");
}

/// 1. B owns a table and a transaction of it is in flight.
/// 2. A stranger renews an invented incarnation, and reports an epoch that is not there; or B's,
///    whose nonce it does not know; or it reports, with the proof of another cluster.
/// 3. Nothing has happened: the leader leads, B's lease holds, and its transaction commits.
#[tokio::test(start_paused = true)]
async fn the_report_of_a_stranger_ends_no_leadership() {
    let cluster = Cluster::with_lease(LEASE);
    let a = cluster.led().await;
    let b = cluster.node("b");
    let owner = b.begin_in_time().await;
    let bound = b.allocator.bind(owner.service, &table("t")).await.expect("free");
    let Role::Leading(local) = a.allocator.role() else { panic!("it leads") };
    let epoch = bound.at.epoch.next().expect("epochs are left");
    let leader = a.allocator.as_leader();
    for at in [bound.at, Progress::default()] {
        let observed = Progress { epoch, ..at };
        let invented = ServiceId::new(owner.service.get() + 1);
        for (service, nonce) in [(ServiceId::default(), 0), (invented, 7), (owner.service, 8)] {
            let refused = leader
                .keepalive(service, Nonce::new(nonce), observed)
                .await
                .expect_err("a stranger");
            assert_eq!(refused.kind(), ErrorKind::LeaseLost, "{refused:?}");
        }
        let other = Report::new(observed, &store::Cluster::random());
        for report in [other, Report { observed, proof: Proof::default() }] {
            let refused = leader.report(&report).await.expect_err("another cluster");
            assert_eq!(refused.kind(), ErrorKind::NotPermitted, "{refused:?}");
        }
    }
    tokio::time::timeout(Duration::ZERO, local.ended()).await.expect_err("it goes on");
    b.keep(&owner, Progress::default()).await.expect("live");
    b.allocator.begin_commit(&commit(&owner, &bound, 1)).await.expect("its bind is valid");
    assert_eq!(cluster.store.head().await.expect("responds").expect("led").epoch, bound.at.epoch);
}

/// 1. B starts, and is granted a table by A. The store goes back to before that, unnoticeably, and
///    C leads it.
/// 2. B renews at C, which knows neither B's incarnation nor its table, and believes nothing of
///    strangers.
/// 3. B's node proves its observation: C's leadership ends, and the table is granted only when B's
///    lease must have run out.
#[tokio::test(start_paused = true)]
async fn a_node_whose_incarnation_the_store_has_lost_is_believed_with_the_proof_of_its_cluster() {
    let cluster = Cluster::with_lease(LEASE);
    let a = cluster.led().await;
    let (b, c) = (cluster.node("b"), cluster.node("c"));
    b.allocator.elected().await.expect("follows");
    c.allocator.elected().await.expect("follows");
    let backup = cluster.store.backup();
    let owner = b.begin_in_time().await;
    b.allocator.bind(owner.service, &table("t")).await.expect("free");
    let renewed = Instant::now();
    b.keep(&owner, Progress::default()).await.expect("live");
    cluster.store.restore(&backup, false);
    b.store.inner.set_cut(true);
    cluster.kill(a);
    c.leading().await;
    let Role::Leading(local) = c.allocator.role() else { panic!("it leads") };
    b.store.inner.set_cut(false);
    b.follows(&c).await;
    let lost = b.keep(&owner, Progress::default()).await.expect_err("its incarnation is lost");
    assert_eq!(lost.kind(), ErrorKind::LeaseLost, "{lost:?}");
    local.ended().await;
    let bound = loop {
        let asks = c.begin_in_time().await;
        match c.allocator.bind(asks.service, &table("t")).await {
            Ok(bound) => break bound,
            Err(_) => sleep(Duration::from_millis(500)).await,
        }
    };
    assert!(renewed.elapsed() >= lo(LEASE), "{bound:?} after {:?}", renewed.elapsed());
}
