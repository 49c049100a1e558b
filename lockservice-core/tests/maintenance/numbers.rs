//! The numbers of a restored cluster.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, LocalAllocator, LockTableAllocator, Registration,
};
use lockservice_core::clock::hi;
use lockservice_core::maintenance::{Dump, EPOCHS_SKIPPED, RestoreOptions, restore};
use lockservice_core::store::{Acquired, BindStore, Candidate, Floor, Leadership, StoreState};
use lockservice_core::testing::{SharedStore, TokioClock};
use lockservice_core::{Epoch, ErrorKind, NodeName, Nonce, TableRef};

use super::{TTL, dump, open_once_free, options, read, sample, text};

/// Its server's clock is behind the epoch that the old cluster is known to have reached.
#[tokio::test(start_paused = true)]
async fn numbers_and_tokens_of_a_restored_cluster_are_above_the_epoch_that_was_given() {
    numbers_begin_above(Epoch::new(5_000), 100, Epoch::new(5_000)).await;
}

/// The old cluster handed out numbers after the dump that are above those of this clock.
#[tokio::test(start_paused = true)]
async fn a_restore_begins_above_the_numbers_of_a_cluster_whose_clock_was_ahead() {
    let highest = sample(2_500).highest_epoch();
    numbers_begin_above(
        Epoch::default(),
        highest.get() - 1,
        Epoch::new(highest.get() + EPOCHS_SKIPPED),
    )
    .await;
}

/// Restores the dump with `above`, on a server whose clock vouches for `clock_epoch`: all that is
/// handed out is above the epoch `least`.
async fn numbers_begin_above(above: Epoch, clock_epoch: u64, least: Epoch) {
    let store = SharedStore::new();
    store.set_floor(Floor::of_clock(1_767_225_600 + clock_epoch * 1024).expect("in range"));
    let clock = TokioClock::new();
    restore(&store, &clock, &dump(), &RestoreOptions { above, ..options() })
        .await
        .expect("restored");
    let node = NodeName::new("n").expect("a name");
    let allocator = LocalAllocator::open(
        Arc::new(store),
        Arc::new(clock),
        AllocatorSettings::default(),
        node.clone(),
    );
    let allocator = allocator.await.expect("restored stores are resigned");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let register =
        Registration { node, nonce: Nonce::new(1), address: String::new(), replaces: None };
    let owner = allocator.register(&register).await.expect("it leads");
    for table in ["new", "t00001"] {
        let table = TableRef::new("g", table).expect("names");
        let bound = allocator.bind(owner.service, &table).await.expect("everybody was waited for");
        let tokens = bound.tokens.expect("fresh");
        for number in [owner.service.get(), bound.bind.version.get(), tokens.next.get()] {
            assert!(number >= least.end_number().get(), "{table}: {number}");
        }
    }
}

/// The restored cluster's first leader finds nothing of the old one valid, and hands out only what
/// is above.
#[tokio::test(start_paused = true)]
async fn nothing_of_the_old_cluster_is_valid_in_the_restored_one_and_its_numbers_grow() {
    let shared = SharedStore::new();
    let dump = Dump::new("test:", sample(3)).expect("finished");
    restore(&shared, &TokioClock::new(), &dump, &options()).await.expect("restored");
    let allocator = open_once_free(&shared).await.expect("complete");
    let old = &dump.state.services[0];
    let refused = allocator
        .keepalive(old.id, old.nonce, Default::default())
        .await
        .expect_err("of the old cluster");
    assert_eq!(refused.kind(), ErrorKind::LeaseLost, "{refused}");
    let table = &dump.state.tables[0];
    let register = Registration {
        node: old.node.clone(),
        nonce: Nonce::new(1),
        address: String::new(),
        replaces: None,
    };
    let incarnation = allocator.register(&register).await.expect("its name is free");
    let waits = allocator
        .bind(incarnation.service, &table.table)
        .await
        .expect_err("promised by the old cluster (B3)");
    assert_eq!(waits.kind(), ErrorKind::Reassigning, "{waits}");
    tokio::time::sleep(hi(TTL)).await;
    allocator.keepalive(incarnation.service, register.nonce, Default::default()).await.ok();
    let incarnation = allocator
        .register(&Registration { nonce: Nonce::new(2), ..register })
        .await
        .expect("again");
    let bound =
        allocator.bind(incarnation.service, &table.table).await.expect("the promises are over");
    assert_eq!(bound.bind.id, table.id, "a table keeps its number");
    assert!(bound.bind.version > table.binds[0].version);
    assert!(bound.tokens.expect("a block").next >= table.tokens_reserved_to);
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_is_another_clusters_than_the_dumped_one() {
    let (store, clock) = (SharedStore::new(), TokioClock::new());
    let node = NodeName::new("a").expect("a name");
    let cluster = async || {
        store
            .head()
            .await
            .expect("responds")
            .expect("led")
            .cluster
            .expect("every leader names it")
            .id
    };
    // Led once, and empty: it may even be the dumped one.
    restore(
        &store,
        &clock,
        &Dump::new("test:", StoreState::default()).expect("finished"),
        &options(),
    )
    .await
    .expect("empty");
    let before = cluster().await;
    let dumped = dump().of(Some(before));
    assert_eq!(read(&text(&dumped)).expect("its own dump"), dumped);
    let restored = restore(&store, &clock, &dumped, &options()).await.expect("still empty");
    assert_eq!(cluster().await, restored.cluster);
    assert_ne!(restored.cluster, before);
    // A leader keeps it.
    let Leadership::Acquired(Acquired { cluster: kept, .. }) =
        store.acquire_leadership(&Candidate::from(node), TTL).await.expect("a response")
    else {
        panic!("it was resigned")
    };
    assert_eq!(kept.id, restored.cluster);
}
