//! [`fault_suite`]: an allocator on a store whose responses are lost, late or doubled.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Fault, FaultyStore, StoreFixture};
use crate::allocator::{
    AllocatorSettings, Bind, LocalAllocator, LockTableAllocator, Registration, TokenBlock,
};
use crate::clock::SystemClock;
use crate::error::{ErrorKind, Result};
use crate::id::{
    EpochNumber, FencingToken, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId, TxnNumber,
};
use crate::store::{Acquired, BindStore, Candidate, ClusterConstants, Leadership, StoreState};

/// The node whose allocator is tested.
const NODE: &str = "suite";
/// A call is repeated as often as this before the test fails.
const TRIES_MAX: usize = 50;

/// Lets every [`Fault`] befall every call to the store, one at a time, while an allocator starts,
/// binds, reserves tokens and makes a transaction unable to commit. Every call must succeed when it
/// is repeated; what was acknowledged must be in the store, nothing may be there twice, and no
/// number or token may be given out twice (L2, B6, F2, C4). Then the same with random faults from
/// `seeds`.
///
/// # Panics
/// At the first clause that does not hold, naming fault and call.
///
/// # Cancel safety
/// Not to be dropped: a dropped suite shows nothing.
pub async fn fault_suite<F, Made>(make: F, seeds: std::ops::Range<u64>)
where
    F: Fn() -> Made,
    Made: Future<Output = Box<dyn StoreFixture>>,
{
    for &fault in Fault::ALL {
        for call in 0.. {
            let fixture = make().await;
            let inner = fixture.open().await;
            let store = Arc::new(FaultyStore::once(Arc::clone(&inner), call, fault));
            let what = format!("{fault:?} at call {call}");
            life(inner, Arc::clone(&store), &what).await;
            let struck = store.struck();
            drop(store);
            afterwards(&*fixture, &what).await;
            if struck == 0 {
                // The life is over before that call.
                assert!(call > 5, "hardly anything was called");
                break;
            }
        }
    }
    for seed in seeds {
        let fixture = make().await;
        let inner = fixture.open().await;
        let store = Arc::new(FaultyStore::random(Arc::clone(&inner), seed, 30, Fault::ALL));
        let what = format!("seed {seed}");
        life(inner, store, &what).await;
        afterwards(&*fixture, &what).await;
    }
}

/// One allocator's life over `store`.
async fn life(inner: Arc<dyn BindStore>, store: Arc<FaultyStore>, what: &str) {
    resolve(&*inner).await;
    let allocator = open(store, what).await;
    let request = Registration {
        node: NodeName::new(NODE).expect("a name"),
        nonce: Nonce::new(5),
        address: "127.0.0.1:2".to_owned(),
        replaces: None,
    };
    let incarnation = again(what, || allocator.register(&request)).await;
    let (mut binds, mut blocks) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c"] {
        let table = TableRef::new("g", name).expect("a name");
        let bound = again(what, || allocator.bind(incarnation.service, &table)).await;
        blocks.extend(bound.tokens.map(|block| (bound.bind.id, block)));
        let block = again(what, || {
            allocator.reserve_tokens(incarnation.service, bound.bind.id, bound.bind.version)
        })
        .await;
        blocks.push((bound.bind.id, block.tokens));
        binds.push(bound.bind);
    }
    let forgotten = forget_one(&allocator, incarnation.service, what).await;
    let kept = TxnId::new(incarnation.service, TxnNumber::new(1), true);
    let both = [kept, TxnId::new(incarnation.service, TxnNumber::new(2), true)];
    let response = again(what, || async {
        let mut response = allocator.cannot_commit(&both).await?;
        // Each has a response of its own: one that failed is tried again.
        match response.failed.pop() {
            Some((_, e)) => Err(e),
            None => Ok(response),
        }
    })
    .await;
    assert_eq!(response.tombstoned.len(), 2, "{what}");

    check_given_out(&binds, &blocks, what);
    let state = inner.load().await.expect("load");
    check_records(&state, &binds, &blocks, what);
    assert!(
        state.forgotten.high_water >= EpochNumber::from(forgotten.version).max(forgotten.id.into()),
        "{what}: {state:?}"
    );
    assert!(state.tables.iter().all(|table| table.table != forgotten.table));
    assert_eq!(
        state.tombstones.iter().copied().collect::<HashSet<_>>(),
        HashSet::from(both),
        "{what}"
    );
    assert_eq!(state.services.len(), 1, "{what}: {:?}", state.services);
    allocator.shutdown(false, Duration::ZERO).await.ok();
}

/// No number and no token was given out twice.
fn check_given_out(binds: &[Bind], blocks: &[(TableId, TokenBlock)], what: &str) {
    let versions: HashSet<u64> =
        binds.iter().flat_map(|bind| [bind.version.get(), bind.id.get()]).collect();
    assert_eq!(versions.len(), 6, "{what}: a number was given out twice");
    for (at, (table, block)) in blocks.iter().enumerate() {
        for (_, other) in blocks[at + 1..].iter().filter(|(other, _)| other == table) {
            assert!(
                !overlap(block, other),
                "{what}: tokens were given out twice: {block:?} {other:?}"
            );
        }
    }
}

/// Acknowledged writes are in the store.
fn check_records(state: &StoreState, binds: &[Bind], blocks: &[(TableId, TokenBlock)], what: &str) {
    assert_eq!(state.tables.len(), 3, "{what}: {state:?}");
    assert!(state.tables.iter().all(|table| table.tokens_reserved_to > FencingToken::default()));
    for bind in binds {
        let record =
            state.tables.iter().find(|table| table.table == bind.table).expect("acknowledged");
        assert_eq!(
            (record.id, record.binds[0].version, record.binds[0].owner),
            (bind.id, bind.version, bind.owner),
            "{what}"
        );
        for (_, block) in blocks.iter().filter(|(table, _)| *table == bind.id) {
            assert!(block.end <= record.tokens_reserved_to, "{what}: tokens are not reserved");
        }
    }
}

/// Binds one more table and has it forgotten, once, however often the calls are repeated.
async fn forget_one(allocator: &LocalAllocator, owner: ServiceId, what: &str) -> Bind {
    let table = TableRef::new("g", "forgotten").expect("a name");
    let bind = again(what, || allocator.bind(owner, &table)).await.bind;
    again(what, || async {
        match allocator.release_table(owner, Nonce::new(5), &table, bind.version).await?.kept {
            Some(kept) => Err(kept),
            None => Ok(()),
        }
    })
    .await;
    assert!(allocator.latest(&table).await.is_ok_and(|latest| latest.bind.is_none()), "{what}");
    bind
}

/// The next leader finds all of it.
async fn afterwards(fixture: &dyn StoreFixture, what: &str) {
    let next = fixture.open().await;
    let after = next.load().await.expect("load");
    assert_eq!((after.tables.len(), after.tombstones.len()), (3, 2), "{what}");
}

/// A shared store that is new has an unknown data loss until a leader resolves that; here no node
/// can have observed anything.
async fn resolve(store: &dyn BindStore) {
    let mut candidate = candidate();
    for _ in 0..3 {
        match store.acquire_leadership(&candidate, Duration::from_secs(5)).await.expect("acquire") {
            Leadership::Acquired(Acquired { exclusive: true, .. }) => return,
            Leadership::Acquired(Acquired { epoch, continuous: true, .. }) => {
                return store.resign(epoch).await.expect("resign");
            }
            Leadership::Acquired(_) => candidate.data_loss = crate::store::DataLoss::Resolved,
            Leadership::Held { seen, .. } => candidate.seen = Some(seen),
        }
    }
    panic!("the store lets no candidate lead");
}

fn candidate() -> Candidate {
    Candidate::new(NodeName::new(NODE).expect("a name"), "127.0.0.1:1")
}

/// Opens the allocator, again and again until nothing befalls that. A leadership whose
/// acknowledgement was lost is requested again with the same nonce.
async fn open(store: Arc<FaultyStore>, what: &str) -> Arc<LocalAllocator> {
    let settings = AllocatorSettings {
        constants: ClusterConstants { leadership_ttl_ms: 60_000, lease_ttl_ms: 60_000 },
        ..AllocatorSettings::default()
    };
    let candidate = candidate();
    let mut last = None;
    for _ in 0..TRIES_MAX {
        let store: Arc<dyn BindStore> = Arc::<FaultyStore>::clone(&store);
        match LocalAllocator::open(
            store,
            Arc::new(SystemClock),
            settings.clone(),
            candidate.clone(),
        )
        .await
        {
            Ok(allocator) => return allocator,
            Err(e) => last = Some(e),
        }
    }
    panic!("{what}: the allocator does not open: {last:?}");
}

/// Makes a call until it succeeds, as callers do.
async fn again<T, C: Future<Output = Result<T>>>(what: &str, call: impl Fn() -> C) -> T {
    let mut last = None;
    for _ in 0..TRIES_MAX {
        match call().await {
            Ok(response) => return response,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Unavailable, "{what}: {e:?}");
                last = Some(e);
            }
        }
    }
    panic!("{what}: a call never succeeds: {last:?}");
}

fn overlap(a: &TokenBlock, b: &TokenBlock) -> bool {
    a.next < b.end && b.next < a.end
}
