//! Tables that are forgotten: by their owner, by an operator, by the leader in time; and that no
//! number of theirs comes back under the next leader (L4, F1, F2). Time is tokio's paused clock.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, BoundTable, ForgetOutcome, Incarnation, LocalAllocator, LockTableAllocator,
    Progress, Registration,
};
use lockservice_core::clock::hi;
use lockservice_core::maintenance::{Dump, RestoreOptions, problems, restore};
use lockservice_core::store::{BindStore, Floor, MemoryStore};
use lockservice_core::testing::{SharedStore, TokioClock};
use lockservice_core::{Epoch, EpochNumber, ErrorKind, FencingToken, NodeName, Nonce};

use self::cluster::{Cluster, LEASE, Node, TTL, commit, table};

const HOUR_MS: u64 = 3_600_000;
/// A moment of a server's clock, in seconds since 1970.
const NOON_S: u64 = 1_767_225_600 + 1_024 * 4_000;

/// The former numbers of a table: every number is below `numbers`, every token below `tokens`.
struct Had {
    numbers: u64,
    tokens: u64,
}

/// Binds `t`, uses several blocks of its tokens, and releases it.
async fn forget(node: &Node, owner: &Incarnation) -> Had {
    let allocator = &node.allocator;
    let bound = allocator.bind(owner.service, &table("t")).await.expect("free");
    let mut tokens = bound.tokens.expect("a fresh bind").end;
    for _ in 0..5 {
        let reserved =
            allocator.reserve_tokens(owner.service, bound.bind.id, bound.bind.version).await;
        tokens = reserved.expect("current").tokens.end;
    }
    let released = allocator
        .release_table(owner.service, Nonce::new(7), &bound.bind.table, bound.bind.version)
        .await;
    assert!(released.expect("live").kept.is_none());
    Had { numbers: bound.bind.id.get().max(bound.bind.version.get()) + 1, tokens: tokens.get() }
}

fn assert_above(had: &Had, bound: &BoundTable) {
    assert!(
        bound.bind.id.get() >= had.numbers && bound.bind.version.get() >= had.numbers,
        "{bound:?}"
    );
    assert!(bound.tokens.expect("a fresh bind").next.get() >= had.tokens, "{bound:?}");
}

#[tokio::test(start_paused = true)]
async fn no_number_of_a_forgotten_table_comes_back_in_this_leadership_or_the_next() {
    let cluster = Cluster::with_lease(LEASE);
    // Numbers begin with this clock, which stands still: nothing but what is kept keeps them
    // growing.
    cluster.store.set_floor(Floor::of_clock(NOON_S).expect("in range"));
    let first = cluster.led().await;
    let second = cluster.node("b");
    let owner = second.begin_in_time().await;
    let mut had = forget(&first, &owner).await;
    for name in ["t", "another"] {
        let bound = first.allocator.bind(owner.service, &table(name)).await.expect("free");
        assert_above(&had, &bound);
        let version = bound.bind.version;
        first
            .allocator
            .release_table(owner.service, Nonce::new(7), &table(name), version)
            .await
            .expect("live");
        had = Had { numbers: version.get() + 1, tokens: bound.tokens.expect("fresh").end.get() };
    }
    assert_eq!(cluster.store.load().await.expect("readable").tables, []);
    cluster.kill(first);
    second.leading().await;
    for name in ["t", "another", "third"] {
        let bound = second.allocator.bind(owner.service, &table(name)).await.expect("free");
        assert_above(&had, &bound);
    }
}

#[tokio::test(start_paused = true)]
async fn no_number_of_a_forgotten_table_comes_back_after_a_dump_and_a_restore() {
    let cluster = Cluster::with_lease(LEASE);
    cluster.store.set_floor(Floor::of_clock(NOON_S).expect("in range"));
    let first = cluster.led().await;
    let owner = first.begin_in_time().await;
    let had = forget(&first, &owner).await;
    let dump = Dump::new("a", cluster.store.load().await.expect("readable")).expect("finished");
    assert_eq!(problems(&dump.state), []);
    let mut text = Vec::new();
    dump.write_to(&mut text).expect("memory");
    let dump = Dump::read_from(&*text).expect("whole");
    let restored = Cluster::with_lease(LEASE);
    // An hour earlier: this clock vouches for nothing.
    restored.store.set_floor(Floor::of_clock(NOON_S - 3_600).expect("in range"));
    let options = RestoreOptions {
        node: NodeName::new("restorer").expect("a name"),
        leadership_ttl: TTL,
        above: Epoch::default(),
    };
    restore(&restored.store, &TokioClock::new(), &dump, &options).await.expect("an empty store");
    let node = restored.led().await;
    let owner = node.begin_in_time().await;
    assert_above(&had, &node.allocator.bind(owner.service, &table("t")).await.expect("free"));
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_response_is_lost_with_its_leader_is_found_done_or_is_done_at_the_next() {
    for landed in [true, false] {
        let cluster = Cluster::with_lease(LEASE);
        let first = cluster.led().await;
        let second = cluster.node("b");
        let owner = second.begin_in_time().await;
        let bound = second.allocator.bind(owner.service, &table("t")).await.expect("free");
        let (t, version) = (table("t"), bound.bind.version);
        let store = first.store.inner.clone();
        if landed {
            first.store.after_write(move || store.set_cut(true));
        } else {
            store.set_cut(true);
        }
        let allocator = Arc::clone(&first.allocator);
        let (service, of) = (owner.service, t.clone());
        let lost = tokio::spawn(async move {
            allocator.release_table(service, Nonce::new(7), &of, version).await
        });
        // The owner renews with any leader that responds, and its node leads next.
        second.leading().await;
        drop(lost);
        cluster.kill(first);
        let released =
            second.allocator.release_table(owner.service, Nonce::new(7), &t, version).await;
        assert!(released.expect("live").kept.is_none(), "landed: {landed}");
        let refused = second
            .allocator
            .begin_commit(&commit(&owner, &bound, 1))
            .await
            .expect_err("not current");
        assert_eq!(refused.kind(), ErrorKind::BindChanged);
        let again = second.allocator.bind(owner.service, &t).await.expect("free");
        assert!(again.bind.id > bound.bind.id && again.bind.version > version);
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_is_what_it_was_after_the_store_refused_to_forget_it() {
    let cluster = Cluster::with_lease(LEASE);
    let node = cluster.led().await;
    let owner = node.begin_in_time().await;
    let (allocator, t) = (&node.allocator, table("t"));
    let bound = allocator.bind(owner.service, &t).await.expect("free");
    let release = || allocator.release_table(owner.service, Nonce::new(7), &t, bound.bind.version);
    node.store.refuse_writes(1);
    let kept = release().await.expect("live").kept.expect("the store has refused it");
    assert_eq!(kept.kind(), ErrorKind::Unavailable);
    let request = commit(&owner, &bound, 1);
    allocator.begin_commit(&request).await.expect("its bind admits commits again");
    let kept = release().await.expect("live").kept.expect("a commit is in flight (C2)");
    assert_eq!(kept.kind(), ErrorKind::TableInUse);
    allocator.finish_commit(request.txn, request.attempt).await.expect("admitted");
    assert!(release().await.expect("live").kept.is_none());
}

struct Alone {
    store: MemoryStore,
    settings: AllocatorSettings,
}

impl Alone {
    fn new(alter: impl FnOnce(&mut AllocatorSettings)) -> Self {
        let mut settings = AllocatorSettings::default();
        alter(&mut settings);
        Self { store: MemoryStore::new(1), settings }
    }

    async fn open(&self) -> Arc<LocalAllocator> {
        let (store, clock) = (Arc::new(self.store.clone()), Arc::new(TokioClock::new()));
        let node = NodeName::new("n").expect("a name");
        LocalAllocator::open(store, clock, self.settings.clone(), node).await.expect("opens")
    }
}

async fn begin(allocator: &LocalAllocator, node: &str, nonce: u64) -> Incarnation {
    let node = NodeName::new(node).expect("a name");
    let request =
        Registration { node, nonce: Nonce::new(nonce), address: String::new(), replaces: None };
    allocator.register(&request).await.expect("a free name")
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_forgotten_makes_room_for_another() {
    let alone = Alone::new(|settings| settings.tables_max = 2);
    let allocator = alone.open().await;
    let a = begin(&allocator, "a", 1).await;
    let first = allocator.bind(a.service, &table("t")).await.expect("free");
    allocator.bind(a.service, &table("u")).await.expect("free");
    let full = allocator.bind(a.service, &table("v")).await.expect_err("two are the most");
    assert_eq!(full.kind(), ErrorKind::ResourceExhausted);
    for _ in 0..2 {
        let released = allocator
            .release_table(a.service, Nonce::new(1), &table("t"), first.bind.version)
            .await;
        assert!(released.expect("live").kept.is_none());
    }
    allocator.bind(a.service, &table("v")).await.expect("there is room");
    let full = allocator
        .bind(a.service, &table("t"))
        .await
        .expect_err("for one, however often it was asked");
    assert_eq!(full.kind(), ErrorKind::ResourceExhausted);
    assert_eq!(allocator.entries().0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_bind_that_is_requested_while_its_table_is_forgotten_is_a_new_table() {
    let alone = Alone::new(|_| ());
    let allocator = alone.open().await;
    let (a, b) = (begin(&allocator, "a", 1).await, begin(&allocator, "b", 2).await);
    let t = table("t");
    let old = allocator.bind(a.service, &t).await.expect("free").bind;
    let (released, bound) = tokio::join!(
        allocator.release_table(a.service, Nonce::new(1), &t, old.version),
        allocator.bind(b.service, &t),
    );
    assert!(released.expect("live").kept.is_none());
    let bound = bound.expect("free").bind;
    assert_eq!(bound.owner, b.service, "the owner has gone");
    assert!(bound.id > old.id && bound.version > old.version);
}

#[tokio::test(start_paused = true)]
async fn tables_whose_owner_ended_are_forgotten_after_the_time_that_is_set_without_use() {
    let alone = Alone::new(|settings| (settings.table_idle_ms, settings.batch_max) = (HOUR_MS, 64));
    let allocator = alone.open().await;
    let (a, b) = (begin(&allocator, "a", 1).await, begin(&allocator, "b", 2).await);
    for n in 0..500 {
        allocator.bind(a.service, &table(&format!("t{n}"))).await.expect("free");
    }
    let kept = allocator.bind(b.service, &table("kept")).await.expect("free").bind;
    let renew = async {
        loop {
            allocator
                .keepalive(b.service, Nonce::new(2), Progress::default())
                .await
                .expect("in time");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let check = async {
        // The last word of the first owner was its start.
        tokio::time::sleep(Duration::from_millis(HOUR_MS) - Duration::from_secs(1)).await;
        assert_eq!(allocator.entries().0, 501, "not before");
        tokio::time::sleep(Duration::from_secs(30)).await;
    };
    tokio::select! {
        () = renew => {}
        () = check => {}
    }
    assert_eq!(allocator.entries().0, 1, "all but the one that has an owner");
    let state = alone.store.load().await.expect("readable");
    assert_eq!((state.tables.len(), state.tables[0].id), (1, kept.id));
    assert!(
        state.forgotten.high_water.get()
            < allocator.bind(b.service, &table("t7")).await.expect("free").bind.id.get()
    );
    assert!(
        state.services.iter().all(|service| service.id != a.service),
        "nothing refers to it any more"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_idle_time_of_unowned_tables_starts_again_and_0_is_for_ever() {
    for (idle_ms, left) in [(HOUR_MS, 0), (0, 1)] {
        let alone = Alone::new(|settings| settings.table_idle_ms = idle_ms);
        let allocator = alone.open().await;
        let a = begin(&allocator, "a", 1).await;
        allocator.bind(a.service, &table("t")).await.expect("free");
        tokio::time::sleep(Duration::from_millis(HOUR_MS / 2)).await;
        allocator.shutdown(false, Duration::ZERO).await.expect("stops");
        let allocator = alone.open().await;
        tokio::time::sleep(Duration::from_millis(HOUR_MS) - Duration::from_secs(1)).await;
        assert_eq!(allocator.entries().0, 1, "not before");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(allocator.entries().0, left);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_waits_for_the_owner_before_an_operator_may_have_a_table_forgotten() {
    let cluster = Cluster::with_lease(LEASE);
    let first = cluster.led().await;
    let second = cluster.node("b");
    let owner = second.begin_in_time().await;
    second.allocator.bind(owner.service, &table("t")).await.expect("free");
    cluster.kill(first);
    second.leading().await;
    let since = tokio::time::Instant::now();
    // The new leader takes it as renewed just now (B4).
    let ForgetOutcome::Owned(bind) =
        second.allocator.forget_table(&table("t")).await.expect("responds").outcome
    else {
        panic!("its owner is alive");
    };
    assert_eq!((bind.bind.owner, bind.node.as_str()), (owner.service, "b"));
    loop {
        match second.allocator.forget_table(&table("t")).await {
            Ok(response) if response.outcome == ForgetOutcome::Forgotten => break,
            Ok(response) => {
                assert!(matches!(response.outcome, ForgetOutcome::Owned(_)), "{response:?}")
            }
            Err(e) => assert_eq!(e.kind(), ErrorKind::Reassigning),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        since.elapsed() + TTL >= hi(LEASE),
        "it was silent for its lease only after {:?}",
        since.elapsed()
    );
    let again = second.allocator.forget_table(&table("t")).await.expect("responds");
    assert_eq!(again.outcome, ForgetOutcome::Unknown);
}

#[tokio::test]
async fn a_store_that_has_forgotten_says_so_in_its_highest_numbers() {
    let store = SharedStore::new();
    let mut state = store.load().await.expect("readable");
    state.forgotten.high_water = EpochNumber::new(7 << 32 | 3);
    assert_eq!(
        (state.highest_number(), state.highest_epoch()),
        (EpochNumber::new(7 << 32 | 3), Epoch::new(7))
    );
    state.forgotten.tokens_reserved_to = FencingToken::new(9 << 32);
    assert_eq!(
        state.highest_epoch(),
        Epoch::new(8),
        "the end of a block belongs to the block before (F2)"
    );
    state.volatile_tokens_from = Some(FencingToken::new(1));
    assert_eq!(state.highest_epoch(), Epoch::new(7));
}
