//! Losses of stores and leaders, and the nodes that must notice them in time (L1, L2, L4). Time is
//! tokio's paused clock.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod cluster;

use std::time::Duration;

use lockservice_core::allocator::{Incarnation, LockTableAllocator, Progress, Role};
use lockservice_core::clock::lo;
use lockservice_core::store::{BindStore, Floor};
use lockservice_core::{Epoch, EpochNumber, Nonce, TxnId, TxnNumber, WriteNumber};

use self::cluster::{Cluster, LEASE, Node, TTL, commit, granted_after_the_owner, table};

/// A leader and two nodes that follow it; `owner` is an incarnation of the second and owns nothing
/// yet.
struct Followed {
    cluster: Cluster,
    leader: Node,
    second: Node,
    third: Node,
    owner: Incarnation,
}

/// The cluster after the leader has died and the store has gone back.
struct RolledBack {
    cluster: Cluster,
    second: Node,
    third: Node,
    owner: Incarnation,
}

impl Followed {
    async fn new() -> Self {
        let cluster = Cluster::with_lease(LEASE);
        let leader = cluster.led().await;
        let (second, third) = (cluster.node("b"), cluster.node("c"));
        let owner = second.begin_in_time().await;
        Self { cluster, leader, second, third, owner }
    }

    /// The owner gets the bind of `t`. Then the store goes back to before that, as another copy
    /// (`new_life`) or unnoticeably, and the leader dies. The third node leads next, while the
    /// second is cut off from the store, and stays so.
    async fn roll_back(self, new_life: bool) -> RolledBack {
        let Self { cluster, leader, second, third, owner } = self;
        let backup = cluster.store.backup();
        second.allocator.bind(owner.service, &table("t")).await.expect("free");
        second.keep(&owner, Progress::default()).await.expect("live");
        cluster.store.restore(&backup, new_life);
        cluster.kill(leader);
        // The owner's own node would know better.
        second.store.inner.set_cut(true);
        third.leading().await;
        RolledBack { cluster, second, third, owner }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_although_the_outcome_of_a_write_stays_unknown() {
    let cluster = Cluster::with_lease(LEASE);
    let node = cluster.led().await;
    let incarnation = node.begin_in_time().await;
    let store = node.store.inner.clone();
    node.store.after_write(move || store.set_cut(true));
    let allocator = std::sync::Arc::clone(&node.allocator);
    let bind = tokio::spawn(async move { allocator.bind(incarnation.service, &table("t")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped =
        tokio::time::timeout(TTL * 3, node.allocator.shutdown(true, Duration::from_secs(1))).await;
    let stopped = stopped.expect("the stop does not wait for the store");
    assert!(!stopped.is_ok_and(|stopped| stopped.resigned), "nothing was given up");
    bind.await.expect("no panic").expect_err("never acknowledged");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_from_another_copy_than_the_one_that_was_acquired_is_not_led_with() {
    let cluster = Cluster::with_lease(LEASE);
    let first = cluster.led().await;
    let second = cluster.node("b");
    let incarnation = first.begin_in_time().await;
    let bound = first.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    second.allocator.elected().await.expect("follows");
    let backup = cluster.store.backup();
    let txn = TxnId::new(incarnation.service, TxnNumber::new(1), true);
    let response = first.allocator.cannot_commit(&[txn]).await.expect("written");
    assert_eq!(response.tombstoned, [txn]);
    let store = cluster.store.clone();
    // The copy that is promoted has not seen the tombstone, nor the acquisition.
    second.store.before_load(move || store.restore(&backup, true));
    cluster.kill(first);
    second.leading().await;
    let admitted = second.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await;
    admitted.expect_err("it was made unable to commit");
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_epoch_was_raised_without_a_response_goes_on() {
    let cluster = Cluster::with_lease(LEASE);
    let node = cluster.node("a");
    node.leading().await;
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    // The first is to settle the doubt about a new store.
    node.store.lose_acquisitions(4);
    let over =
        tokio::time::timeout(lockservice_core::clock::hi(LEASE) + TTL * 3, local.ended()).await;
    assert_eq!(node.store.acquisitions_to_lose(), 0, "it was raised");
    assert!(over.is_err(), "{over:?}");
    assert!(node.leads());
}

#[tokio::test(start_paused = true)]
async fn the_progress_of_an_earlier_leader_is_reported_although_a_later_one_has_responded() {
    let nodes = Followed::new().await;
    let other = nodes.third.begin_in_time().await;
    nodes.third.allocator.bind(other.service, &table("u")).await.expect("free");
    let RolledBack { second, third, owner, .. } = nodes.roll_back(true).await;
    second.store.inner.set_cut(false);
    second.follows(&third).await;
    let bound = second.allocator.bind(owner.service, &table("u")).await.expect("bound to another");
    assert_eq!(bound.bind.owner, other.service);
    granted_after_the_owner("t", &second, &owner, &third).await;
}

#[tokio::test(start_paused = true)]
async fn the_writes_of_a_leader_with_unknown_data_loss_do_not_stand_for_those_that_were_lost() {
    let RolledBack { cluster, second, third, owner } = Followed::new().await.roll_back(true).await;
    let fourth = cluster.node("d");
    for node in [&third, &fourth] {
        node.begin_in_time().await;
    }
    // Before the owner could report anything to it.
    assert!(third.allocator.shutdown(true, Duration::from_secs(1)).await.expect("stops").resigned);
    fourth.leading().await;
    second.store.inner.set_cut(false);
    granted_after_the_owner("t", &second, &owner, &fourth).await;
}

#[tokio::test(start_paused = true)]
async fn the_writes_of_a_leader_that_noticed_nothing_do_not_stand_for_those_that_were_lost() {
    let RolledBack { second, third, owner, .. } = Followed::new().await.roll_back(false).await;
    let other = third.begin_in_time().await;
    for name in ["u", "v", "w"] {
        third.allocator.bind(other.service, &table(name)).await.expect("nothing is in doubt");
    }
    second.store.inner.set_cut(false);
    second.follows(&third).await;
    second
        .keep(&owner, Progress::default())
        .await
        .expect_err("it reports what the leader does not know of");
    granted_after_the_owner("t", &second, &owner, &third).await;
}

#[tokio::test(start_paused = true)]
async fn a_leadership_counts_from_before_its_renewal_was_sent() {
    let cluster = Cluster::with_lease(LEASE);
    let node = cluster.led().await;
    let incarnation = node.begin_in_time().await;
    let bound = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    node.store.slow_renewals(Duration::from_secs(1));
    while node.store.renewed().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.store.inner.set_cut(true);
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    let mut last_response = tokio::time::Instant::now();
    while local.begin_commit_now(&commit(&incarnation, &bound, 1)).is_ok() {
        last_response = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let sent = node.store.renewed().expect("renewed");
    let lasted = last_response - sent;
    assert!(
        lasted < lo(TTL) && lasted > lo(TTL) - Duration::from_millis(50),
        "answered for {lasted:?}"
    );
}

/// A moment of a server's clock, in seconds since 1970: an epoch's floor has just begun.
const NOON_S: u64 = 1_767_225_600 + 50_000 * 1024;

/// The first numbers of a new leader for a new owner: incarnation, table id, version, token.
async fn first_numbers(cluster: &Cluster) -> ([u64; 4], Epoch) {
    let node = cluster.led().await;
    let owner = node.begin_in_time().await;
    let bound = node.allocator.bind(owner.service, &table("t")).await.expect("free");
    let tokens = bound.tokens.expect("fresh");
    let high_water =
        [owner.service.get(), bound.bind.id.get(), bound.bind.version.get(), tokens.next.get()];
    cluster.kill(node);
    (high_water, bound.at.epoch)
}

/// L4, F1: every node that remembers anything dies each time, and all of it happens within one
/// epoch of the server's clock.
#[tokio::test(start_paused = true)]
async fn a_store_that_forgets_everything_time_and_again_hands_nothing_out_twice() {
    let cluster = Cluster::with_lease(LEASE);
    let mut last = [0; 4];
    for life in 0..8 {
        cluster.store.set_floor(Floor::of_clock(NOON_S + life * 30).expect("in range"));
        let (high_water, epoch) = first_numbers(&cluster).await;
        assert!(
            high_water.iter().zip(last).all(|(number, last)| *number > last),
            "{high_water:?} after {last:?}"
        );
        assert!(
            high_water.iter().all(|number| number >> 32 <= epoch.get()),
            "{high_water:?} in {epoch:?}"
        );
        last = high_water;
        cluster.store.forget();
    }
}

/// A copy on another machine, whose clock is behind: the high-water marks of nodes count.
#[tokio::test(start_paused = true)]
async fn numbers_go_on_above_what_a_node_reports_although_the_clock_of_the_promoted_copy_is_behind()
{
    let cluster = Cluster::with_lease(LEASE);
    cluster.store.set_floor(Floor::of_clock(NOON_S + 600).expect("in range"));
    let first = cluster.led().await;
    let backup = cluster.store.backup();
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let owner = second.begin_in_time().await;
    let lost = second.allocator.bind(owner.service, &table("t")).await.expect("free");
    cluster.store.set_floor(Floor::of_clock(NOON_S).expect("in range"));
    cluster.store.restore(&backup, true);
    cluster.kill(first);
    // Another leads, which has observed nothing.
    second.store.inner.set_cut(true);
    let third = cluster.node("c");
    third.leading().await;
    second.store.inner.set_cut(false);
    granted_after_the_owner("t", &second, &owner, &third).await;
    let bound =
        third.allocator.latest(&table("t")).await.expect("responds").bind.expect("bound").bind;
    assert!(
        bound.version > lost.bind.version && bound.id > lost.bind.id,
        "{bound:?} after {lost:?}"
    );
    let more = third
        .allocator
        .reserve_tokens(bound.owner, bound.id, bound.version)
        .await
        .expect("current");
    assert!(more.tokens.next >= lost.tokens.expect("fresh").end, "{more:?} after {lost:?}");
}

/// The node's own incarnation is gone, so no renewal of it reports anything.
#[tokio::test(start_paused = true)]
async fn a_node_that_restarts_tells_a_leader_with_a_lower_epoch_what_it_knows() {
    let cluster = Cluster::with_lease(LEASE);
    let first = cluster.led().await;
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let owner = second.begin_in_time().await;
    let observed = Progress { epoch: Epoch::new(owner.at.epoch.get() + 2_000), ..owner.at };
    // The leader raises its epoch above it, and the report is forgotten with the store.
    second.allocator.keepalive(owner.service, Nonce::new(7), observed).await.expect_err("void");
    cluster.kill(first);
    cluster.store.forget();
    second.store.inner.set_cut(true);
    let third = cluster.node("c");
    third.leading().await;
    second.store.inner.set_cut(false);
    let again =
        tokio::time::timeout(10 * LEASE, second.begin_in_time()).await.expect("it gets through");
    assert!(again.at.epoch > observed.epoch);
}

/// The store shows the same copy, and the number of its last write is above that of what was lost,
/// as if nothing had happened.
#[tokio::test(start_paused = true)]
async fn a_leader_that_noticed_nothing_and_has_left_does_not_hide_what_was_lost() {
    let RolledBack { cluster, second, third, owner } = Followed::new().await.roll_back(false).await;
    let other = third.begin_in_time().await;
    for name in ["u", "v", "w"] {
        third.allocator.bind(other.service, &table(name)).await.expect("nothing is in doubt");
    }
    let fourth = cluster.node("d");
    fourth.allocator.elected().await.expect("follows");
    assert!(third.allocator.shutdown(true, Duration::from_secs(1)).await.expect("stops").resigned);
    fourth.leading().await;
    second.store.inner.set_cut(false);
    second.follows(&fourth).await;
    second
        .keep(&owner, Progress::default())
        .await
        .expect_err("it reports what the leader does not know of");
    granted_after_the_owner("t", &second, &owner, &fourth).await;
}

/// Every node had its time to report: a straggler costs the others nothing.
#[tokio::test(start_paused = true)]
async fn a_report_of_a_data_loss_that_was_resolved_changes_nothing() {
    let cluster = Cluster::with_lease(LEASE);
    let first = cluster.led().await;
    let second = cluster.node("b");
    let owner = second.begin_in_time().await;
    let backup = cluster.store.backup();
    second.allocator.bind(owner.service, &table("t")).await.expect("free");
    let observed = second.keep(&owner, Progress::default()).await.expect("live");
    cluster.store.restore(&backup, true);
    cluster.kill(first);
    second.allocator.shutdown(false, Duration::ZERO).await.expect("stops");
    let third = cluster.node("c");
    third.leading().await;
    tokio::time::sleep(lockservice_core::clock::hi(LEASE) + TTL).await;
    let Role::Leading(local) = third.allocator.role() else { panic!("it leads") };
    let straggler =
        local.keepalive(owner.service, Nonce::new(7), observed).await.expect_err("it has lapsed");
    assert_eq!(straggler.kind(), lockservice_core::ErrorKind::LeaseLost);
    assert!(third.leads());
}

#[tokio::test(start_paused = true)]
async fn that_writes_were_lost_is_recorded_although_the_queue_of_changes_is_full() {
    let cluster = Cluster::with_lease(LEASE);
    let node = cluster.node_with("a", |settings| settings.queue_max = 1);
    node.leading().await;
    tokio::time::sleep(lockservice_core::clock::hi(LEASE) + TTL).await;
    let owner = node.begin_in_time().await;
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    node.store.inner.set_cut(true);
    for name in ["s", "t", "u", "v"] {
        let local = std::sync::Arc::clone(&local);
        tokio::spawn(async move { local.bind(owner.service, &table(name)).await });
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let observed = Progress {
        epoch: Epoch::new(owner.at.epoch.get() + 40),
        write: WriteNumber::FIRST,
        high_water: EpochNumber::new(0),
        leader: Nonce::default(),
    };
    local.keepalive(owner.service, Nonce::new(7), observed).await.expect_err("it must step over");
    node.store.inner.set_cut(false);
    tokio::time::timeout(TTL * 3, local.ended()).await.expect("it is over");
    let head = cluster.store.head().await.expect("responds").expect("led");
    assert!(head.loss.known && head.loss_unresolved, "{head:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_while_a_new_leader_reads_it_costs_no_second_election() {
    let cluster = Cluster::with_lease(LEASE);
    let first = cluster.led().await;
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let before = cluster.store.head().await.expect("responds").expect("led").epoch;
    let store = second.store.inner.clone();
    second.store.before_load(move || {
        store.set_cut(true);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            store.set_cut(false);
        });
    });
    cluster.kill(first);
    second.leading().await;
    assert_eq!(Ok(second.begin_in_time().await.at.epoch), before.next().map_err(|e| e.to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_returns_what_the_first_gave_up() {
    let cluster = Cluster::with_lease(LEASE);
    let leads = cluster.led().await;
    let follows = cluster.node("b");
    follows.allocator.elected().await.expect("follows");
    let opens = cluster.node("c");
    let store = opens.store.inner.clone();
    let (reading, reads) = tokio::sync::oneshot::channel();
    opens.store.before_load(move || {
        store.set_cut(true);
        reading.send(()).expect("it is waited for");
    });
    let grace = Duration::from_secs(1);
    for _ in 0..2 {
        assert!(
            follows.allocator.shutdown(true, grace).await.expect("stops").resigned,
            "nothing to give up"
        );
        assert!(leads.allocator.shutdown(true, grace).await.expect("stops").resigned);
    }
    reads.await.expect("it is elected");
    for _ in 0..2 {
        assert!(
            !opens.allocator.shutdown(true, grace).await.expect("stops").resigned,
            "the others wait it out"
        );
    }
}
