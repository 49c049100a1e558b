//! Stores into which nothing is restored, and restores that were interrupted.

use std::sync::Arc;

use lockservice_core::allocator::{
    AllocatorPeers, AllocatorSettings, ElectedAllocator, LocalAllocator, LockTableAllocator,
};
use lockservice_core::clock::hi;
use lockservice_core::maintenance::{Dump, Restored, restore};
use lockservice_core::store::{
    Acquired, BindStore, Candidate, ClusterId, Leadership, MemoryStore, Op, StoreState,
};
use lockservice_core::testing::{Fault, FaultyStore, SharedStore, TokioClock};
use lockservice_core::{Epoch, Error, ErrorKind, NodeName, Result, WriteNumber, store};
use tokio::time::Instant;

use super::{TTL, dump, expect_restored, open_once_free, options, sample};

#[tokio::test(start_paused = true)]
async fn a_store_with_records_is_refused_and_left_as_it_is() {
    let store = SharedStore::new();
    let clock = TokioClock::new();
    restore(&store, &clock, &dump(), &options()).await.expect("restored");
    let before = store.load().await.expect("readable");
    let refused = restore(&store, &clock, &dump(), &options()).await.expect_err("not empty");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    assert_eq!(store.load().await.expect("readable"), before);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_somebody_leads_is_refused_and_one_whose_leader_died_is_watched_first() {
    let store = SharedStore::new();
    let clock = TokioClock::new();
    let mut candidate = Candidate::from(NodeName::new("other").expect("a name"));
    let Leadership::Held { seen, .. } =
        store.acquire_leadership(&candidate, TTL).await.expect("a response")
    else {
        panic!("an empty store is watched first")
    };
    candidate.seen = Some(seen);
    let Leadership::Acquired(Acquired { epoch, .. }) =
        store.acquire_leadership(&candidate, TTL).await.expect("a response")
    else {
        panic!("it was watched")
    };
    let other = store.connect();
    let renewing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(TTL / 3).await;
            other.renew(epoch).await.expect("it leads");
        }
    });
    let refused = restore(&store, &clock, &dump(), &options()).await.expect_err("led");
    assert_eq!(refused.kind(), ErrorKind::StoreInUse, "{refused}");
    renewing.abort();
    let began = Instant::now();
    restore(&store, &clock, &dump(), &options()).await.expect("no one leads any more");
    assert!(began.elapsed() >= hi(TTL), "{:?}", began.elapsed());
}

/// Every fault at every call of a restore: it succeeds, or the store is refused by every leader
/// until the same restore was run again.
#[tokio::test(start_paused = true)]
async fn an_interrupted_restore_is_never_served_from_and_can_be_finished() {
    let dump = dump();
    let clock = TokioClock::new();
    let mut unfinished = 0;
    for &fault in Fault::ALL {
        for call in 0.. {
            let shared = SharedStore::new();
            let faulty = FaultyStore::once(Arc::new(shared.connect()), call, fault);
            let outcome = restore(&faulty, &clock, &dump, &options()).await;
            if faulty.struck() == 0 {
                outcome.expect("nothing befell it");
                assert!(call > 8, "hardly anything was called");
                break;
            }
            let what = format!("{fault:?} at call {call}: {outcome:?}");
            let found = shared.load().await.expect("readable");
            let records = found.tables.len() + found.services.len();
            if found.unfinished_restore().is_some() {
                unfinished += 1;
                assert!(outcome.is_err(), "{what}");
                let refused = open_once_free(&shared).await.expect_err("unfinished");
                assert_eq!(refused.kind(), ErrorKind::StoreUnusable, "{what}: {refused}");
                assert!(Dump::new("test:", found.clone()).is_err(), "{what}: nor is it dumped");
                if found.tables.len() > 1 {
                    let other = Dump::new("other:", sample(1)).expect("finished");
                    let refused = restore(&shared, &clock, &other, &options())
                        .await
                        .expect_err("another dump");
                    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{what}: {refused}");
                }
            } else if records > 0 {
                expect_restored(
                    found,
                    &dump.state,
                    Restored {
                        epoch: shared.load().await.expect("readable").epoch,
                        cluster: store::Cluster::random().id,
                        records: 0,
                    },
                    Epoch::default(),
                );
                open_once_free(&shared).await.expect(&what);
                continue;
            }
            let restored = restore(&shared, &clock, &dump, &options()).await.expect(&what);
            expect_restored(
                shared.load().await.expect("readable"),
                &dump.state,
                restored,
                Epoch::default(),
            );
        }
    }
    assert!(unfinished > 5, "only {unfinished} faults left a restore unfinished");
}

#[derive(Debug)]
struct Alone;

impl AllocatorPeers for Alone {
    fn connect(&self, _address: &str, _cluster: ClusterId) -> Result<Arc<dyn LockTableAllocator>> {
        Err(Error::new(ErrorKind::Unavailable, "nobody else is there"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_joins_the_cluster_of_an_unfinished_restore_learns_why_there_is_no_leader() {
    let shared = SharedStore::new();
    let clock = TokioClock::new();
    let faulty = FaultyStore::once(Arc::new(shared.connect()), 13, Fault::Refused);
    restore(&faulty, &clock, &dump(), &options()).await.expect_err("interrupted");
    assert!(shared.load().await.expect("readable").unfinished_restore().is_some());
    let node = NodeName::new("a").expect("a name");
    let settings = AllocatorSettings::default();
    let joined = ElectedAllocator::start(
        Arc::new(shared),
        Arc::new(clock),
        settings,
        node,
        "here",
        Arc::new(Alone),
    );
    let loss = tokio::time::timeout(hi(TTL) * 4, joined.expect("valid settings").elected())
        .await
        .expect("told in time");
    assert_eq!(loss.expect_err("unfinished").kind(), ErrorKind::StoreUnusable);
}

#[tokio::test]
async fn the_record_of_an_unfinished_restore_alone_is_refused_by_an_exclusive_stores_leader_too() {
    let store = MemoryStore::new(0);
    let candidate = Candidate::from(NodeName::new("a").expect("a name"));
    let Leadership::Acquired(Acquired { epoch, .. }) =
        store.acquire_leadership(&candidate, TTL).await.expect("a response")
    else {
        panic!("exclusive")
    };
    store
        .write(epoch, WriteNumber::FIRST, &vec![Op::PutService(StoreState::unfinished("x"))])
        .await
        .expect("written");
    let clock = Arc::new(TokioClock::new());
    let opened =
        LocalAllocator::open(Arc::new(store), clock, AllocatorSettings::default(), candidate).await;
    assert_eq!(opened.expect_err("unfinished").kind(), ErrorKind::StoreUnusable);
}
