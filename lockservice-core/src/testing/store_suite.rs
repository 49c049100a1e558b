//! The conformance suite of [`BindStore`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::ErrorKind;
use crate::id::{BindVersion, Epoch, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::{
    Acquired, BindRecord, BindStore, Candidate, ClusterConstants, DataLoss, Forgotten, Leadership,
    Op, Seen, ServiceRecord, ServiceState, StoreState, TableRecord,
};

const TTL: Duration = Duration::from_secs(5);

/// One store under test, empty at first.
#[async_trait]
pub trait StoreFixture: Send + Sync {
    /// Opens the store, or opens it again after the handle of the last call was dropped. The suite
    /// drops every handle it has before it calls this: without a [`resign`](BindStore::resign)
    /// before, that is an unclean stop; after one, a clean stop.
    async fn open(&self) -> Arc<dyn BindStore>;
}

/// Shows every clause of the contract of [`BindStore`] on stores from `make`, each new and empty.
///
/// # Panics
/// At the first clause that does not hold.
pub async fn store_suite<F, Made>(make: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Box<dyn StoreFixture>>,
{
    an_empty_store_is_empty_and_its_first_leader_waits_for_nothing(&*make().await).await;
    a_shared_store_has_one_leader_until_it_resigns_or_stands_still(&*make().await).await;
    of_concurrent_candidates_one_leads(&*make().await).await;
    every_record_survives_a_reopening(&*make().await).await;
    records_are_replaced_and_removed(&*make().await).await;
    only_the_current_epoch_writes_renews_and_resigns(&*make().await).await;
    only_the_next_number_is_written(&*make().await).await;
    epochs_grow_past_every_floor(&*make().await).await;
    only_a_resignation_makes_a_stop_clean(&*make().await).await;
    a_big_batch_lands_whole(&*make().await).await;
    of_concurrent_writes_with_one_number_one_lands(&*make().await).await;
    a_write_whose_caller_went_away_has_its_outcome_known_by_its_number(&*make().await).await;
}

async fn an_empty_store_is_empty_and_its_first_leader_waits_for_nothing(
    fixture: &dyn StoreFixture,
) {
    let store = fixture.open().await;
    assert!(!store.describe().is_empty());
    let first = store.acquire_leadership(&candidate(0), TTL).await.expect("acquire");
    let (epoch, applied, clean) = match first {
        Leadership::Acquired(Acquired {
            epoch,
            applied,
            exclusive: true,
            clean,
            continuous: true,
            ..
        }) => (epoch, applied, clean),
        // L4: an empty shared store may be one that lost everything.
        Leadership::Held { seen, address: None, cluster: None } => {
            assert_eq!(seen.leader, None, "it was never led");
            let (epoch, applied, clean) = acquire(&*store, 0).await;
            assert!(!clean, "nothing tells it from a store that lost everything");
            (epoch, applied, true)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((applied, clean), (0, true));
    assert!(epoch >= Epoch::new(1));
    let known = store.applied().await.expect("applied");
    assert_eq!((known.epoch, known.number), (epoch, 0));
    let state = store.load().await.expect("load");
    assert_eq!(
        state,
        StoreState {
            epoch,
            volatile_tokens_from: state.volatile_tokens_from,
            ..StoreState::default()
        }
    );
}

async fn a_shared_store_has_one_leader_until_it_resigns_or_stands_still(
    fixture: &dyn StoreFixture,
) {
    let store = fixture.open().await;
    let first = candidate(0);
    let Leadership::Held { seen, .. } =
        store.acquire_leadership(&first, TTL).await.expect("acquire")
    else {
        // An exclusive store: who opens it leads.
        return;
    };
    let first = Candidate { seen: Some(seen), ..first };
    let epoch = acquired(store.acquire_leadership(&first, TTL).await.expect("acquire"));
    let mut second = Candidate { node: NodeName::new("second").expect("a name"), ..candidate(0) };
    let watch = |response| match response {
        Leadership::Held { seen, address, cluster } => {
            assert_eq!(address, Some("127.0.0.1:1".into()), "the leader's");
            assert_eq!(cluster, Some(first.cluster), "that of the first leader");
            Some(seen)
        }
        Leadership::Acquired(_) => panic!("led by two: {response:?}"),
    };
    second.seen = watch(store.acquire_leadership(&second, TTL).await.expect("ask"));
    store.renew(epoch).await.expect("it leads");
    let after = watch(store.acquire_leadership(&second, TTL).await.expect("ask"));
    assert_ne!(after, second.seen, "a renewal is seen (L1)");
    second.seen = after;
    store
        .write(epoch, 1, &vec![Op::PutTable(table("g", "t", 1))])
        .await
        .expect("a write is no renewal");
    let raised = acquired(store.acquire_leadership(&first, TTL).await.expect("its own"));
    assert!(raised > epoch, "the leader may raise its epoch (F2)");
    second.seen = watch(store.acquire_leadership(&second, TTL).await.expect("ask"));
    let taken = store.acquire_leadership(&second, TTL).await.expect("what it watched stands still");
    assert!(
        matches!(
            taken,
            Leadership::Acquired(Acquired { applied: 1, clean: false, continuous: false, .. })
        ),
        "{taken:?}"
    );
    assert!(acquired(taken) > raised);
    let resolved = Candidate { data_loss: DataLoss::Resolved, ..second };
    let taken = store.acquire_leadership(&resolved, TTL).await.expect("its own");
    assert!(
        matches!(taken, Leadership::Acquired(Acquired { continuous: true, .. })),
        "it resolved the data loss (L4): {taken:?}"
    );
    let taken = acquired(taken);
    assert!(taken > raised);
    for fenced in [epoch, raised] {
        assert_eq!(store.renew(fenced).await.expect_err("taken over").kind(), ErrorKind::Fenced);
        assert_eq!(
            store.write(fenced, 2, &vec![]).await.expect_err("taken over").kind(),
            ErrorKind::Fenced
        );
        assert_eq!(store.resign(fenced).await.expect_err("taken over").kind(), ErrorKind::Fenced);
    }
    let mut old = first;
    old.seen = watch_again(&*store, &old).await;
    store.resign(taken).await.expect("resign");
    let response = store.acquire_leadership(&candidate(0), TTL).await.expect("at once");
    assert!(
        matches!(response, Leadership::Acquired(Acquired { clean: true, continuous: true, .. })),
        "{response:?}"
    );
    let late = store.acquire_leadership(&old, TTL).await.expect("ask");
    assert!(matches!(late, Leadership::Held { .. }), "what it watched is long past: {late:?}");
}

async fn of_concurrent_candidates_one_leads(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let Leadership::Held { seen, .. } =
        store.acquire_leadership(&candidate(0), TTL).await.expect("acquire")
    else {
        return;
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (store, candidate) =
            (Arc::clone(&store), Candidate { seen: Some(seen.clone()), ..candidate(0) });
        tasks.spawn(
            async move { store.acquire_leadership(&candidate, TTL).await.expect("an answer") },
        );
    }
    let responses = tasks.join_all().await;
    let leaders =
        responses.iter().filter(|response| matches!(response, Leadership::Acquired(_))).count();
    assert_eq!(leaders, 1, "{responses:?}");
}

fn acquired(response: Leadership) -> Epoch {
    match response {
        Leadership::Acquired(Acquired { epoch, .. }) => epoch,
        Leadership::Held { .. } => panic!("{response:?}"),
    }
}

async fn watch_again(store: &dyn BindStore, candidate: &Candidate) -> Option<Seen> {
    match store.acquire_leadership(candidate, TTL).await.expect("ask") {
        Leadership::Held { seen, .. } => Some(seen),
        Leadership::Acquired(_) => panic!("led by two"),
    }
}

async fn every_record_survives_a_reopening(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let batch = vec![
        Op::PutConstants(ClusterConstants { leadership_ttl_ms: 2_000, lease_ttl_ms: 3_000 }),
        Op::PutTable(table("g", "ä table/with: odd\"name", 7)),
        Op::PutTable(table("h", "t", 8)),
        Op::PutForgotten(Forgotten { high_water: 6, tokens_reserved_to: 1 << 53 }),
        Op::PutService(service(11, ServiceState::Live)),
        Op::PutService(service(12, ServiceState::Fenced)),
        Op::PutService(service(13, ServiceState::Resigned)),
        Op::PutTombstone(TxnId::new(ServiceId::new(11), 5, true)),
    ];
    store.write(epoch, 1, &batch).await.expect("write");
    let before = sorted(store.load().await.expect("load"));
    assert_eq!(before.tables.len(), 2);
    assert_eq!(before.services.len(), 3);
    assert_eq!(before.tombstones.len(), 1);
    assert_eq!((before.epoch, before.applied), (epoch, 1));
    let constants = before.constants.map(Op::PutConstants);
    let records = constants.into_iter().chain(before.tables.iter().cloned().map(Op::PutTable));
    let records = records.chain([Op::PutForgotten(before.forgotten)]);
    let records = records.chain(before.services.iter().cloned().map(Op::PutService));
    let records = records.chain(before.tombstones.iter().copied().map(Op::PutTombstone));
    assert_eq!(records.collect::<Vec<_>>(), batch, "nothing is lost of any record");
    drop(store);
    let store = fixture.open().await;
    let (next, applied, _) = acquire(&*store, 0).await;
    assert!(next > epoch);
    assert_eq!(applied, 1);
    let after = sorted(store.load().await.expect("load"));
    assert_eq!(after, StoreState { epoch: next, ..before });
}

async fn records_are_replaced_and_removed(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let txn = TxnId::new(ServiceId::new(1), 1, true);
    let first = vec![
        Op::PutTable(table("g", "t", 1)),
        Op::PutTable(table("g", "gone", 2)),
        Op::PutTable(table("g", "back", 3)),
        Op::PutForgotten(Forgotten { high_water: 1, tokens_reserved_to: 5 }),
        Op::PutService(service(1, ServiceState::Live)),
        Op::PutService(service(2, ServiceState::Live)),
        Op::PutTombstone(txn),
    ];
    store.write(epoch, 1, &first).await.expect("write");
    let second = vec![
        Op::PutTable(table("g", "t", 9)),
        Op::PutService(service(1, ServiceState::Fenced)),
        Op::RemoveService(ServiceId::new(2)),
        Op::RemoveTombstone(txn),
        // Removing what is not there is no error, and within a batch the later change wins.
        Op::RemoveTombstone(txn),
        Op::RemoveService(ServiceId::new(77)),
        Op::PutService(service(3, ServiceState::Live)),
        Op::RemoveService(ServiceId::new(3)),
        Op::PutForgotten(Forgotten { high_water: 2, tokens_reserved_to: 7 }),
        Op::RemoveTable(table("g", "gone", 2).table),
        Op::RemoveTable(table("g", "never", 2).table),
        Op::RemoveTable(table("g", "back", 3).table),
        Op::PutForgotten(Forgotten { high_water: 3, tokens_reserved_to: 7 }),
        Op::PutTable(table("g", "back", 10)),
        Op::PutTable(table("g", "short", 11)),
        Op::RemoveTable(table("g", "short", 11).table),
    ];
    store.write(epoch, 2, &second).await.expect("write");
    drop(store);
    let store = fixture.open().await;
    acquire(&*store, 0).await;
    let state = sorted(store.load().await.expect("load"));
    assert_eq!(state.tables, vec![table("g", "back", 10), table("g", "t", 9)]);
    assert_eq!(state.forgotten, Forgotten { high_water: 3, tokens_reserved_to: 7 });
    assert_eq!(state.services, vec![service(1, ServiceState::Fenced)]);
    assert_eq!(state.tombstones, vec![]);
    assert_eq!(state.applied, 2);
}

async fn only_the_current_epoch_writes_renews_and_resigns(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (old, ..) = acquire(&*store, 0).await;
    store.renew(old).await.expect("the leader renews");
    let (new, ..) = acquire(&*store, 0).await;
    assert!(new > old, "asking again raises the epoch");
    let batch = vec![Op::PutTable(table("g", "t", 1))];
    for epoch in [old, Epoch::new(new.get() + 1)] {
        let refused = store.write(epoch, 1, &batch).await.expect_err("not the current epoch");
        assert_eq!(refused.kind(), ErrorKind::Fenced);
        assert_eq!(
            store.renew(epoch).await.expect_err("not the current epoch").kind(),
            ErrorKind::Fenced
        );
        assert_eq!(
            store.resign(epoch).await.expect_err("not the current epoch").kind(),
            ErrorKind::Fenced
        );
    }
    assert_eq!(store.applied().await.expect("applied").number, 0);
    store.write(new, 1, &batch).await.expect("the current epoch writes");
}

async fn only_the_next_number_is_written(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    store.write(epoch, 1, &vec![Op::PutTable(table("g", "a", 1))]).await.expect("the first");
    for number in [0, 1, 3, u64::MAX] {
        let late = vec![Op::PutTable(table("g", "a", 99))];
        let refused = store.write(epoch, number, &late).await.expect_err("not the next number");
        assert_eq!(refused.kind(), ErrorKind::Fenced, "number {number}");
    }
    assert_eq!(store.applied().await.expect("applied").number, 1);
    assert_eq!(store.load().await.expect("load").tables, vec![table("g", "a", 1)]);
    store.write(epoch, 2, &vec![]).await.expect("an empty batch counts too");
    drop(store);
    let store = fixture.open().await;
    let (epoch, applied, _) = acquire(&*store, 0).await;
    assert_eq!(applied, 2, "numbers go on over leaderships");
    assert_eq!(store.write(epoch, 1, &vec![]).await.expect_err("used").kind(), ErrorKind::Fenced);
    store.write(epoch, 3, &vec![]).await.expect("the next");
}

async fn epochs_grow_past_every_floor(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (first, ..) = acquire(&*store, 41).await;
    assert!(first > Epoch::new(41), "above the floor (L4)");
    let (second, ..) = acquire(&*store, 5).await;
    assert!(second > first, "and above the stored one");
    drop(store);
    let store = fixture.open().await;
    let (third, ..) = acquire(&*store, 0).await;
    assert!(third > second);
}

async fn only_a_resignation_makes_a_stop_clean(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    acquire(&*store, 0).await;
    drop(store);
    let store = fixture.open().await;
    let (epoch, _, clean) = acquire(&*store, 0).await;
    assert!(!clean, "it was dropped");
    store.resign(epoch).await.expect("resign");
    assert_eq!(
        store.write(epoch, 1, &vec![]).await.expect_err("it resigned").kind(),
        ErrorKind::Fenced
    );
    drop(store);
    let store = fixture.open().await;
    let (epoch, _, clean) = acquire(&*store, 0).await;
    assert!(clean, "it resigned");
    store.write(epoch, 1, &vec![]).await.expect("write");
    drop(store);
    let store = fixture.open().await;
    let (.., clean) = acquire(&*store, 0).await;
    assert!(!clean, "a clean stop is good for one start");
}

async fn a_big_batch_lands_whole(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let batch: Vec<Op> =
        (0..5_000).map(|n| Op::PutTable(table("g", &format!("t{n}"), n))).collect();
    store.write(epoch, 1, &batch).await.expect("write");
    drop(store);
    let store = fixture.open().await;
    acquire(&*store, 0).await;
    assert_eq!(store.load().await.expect("load").tables.len(), 5_000);
}

async fn of_concurrent_writes_with_one_number_one_lands(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            (n, store.write(epoch, 1, &vec![Op::PutTable(table("g", "t", n))]).await)
        });
    }
    let mut landed = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done.expect("no panic") {
            (n, Ok(_)) => landed.push(n),
            (_, Err(e)) => assert_eq!(e.kind(), ErrorKind::Fenced),
        }
    }
    assert_eq!(landed.len(), 1);
    assert_eq!(store.load().await.expect("load").tables, vec![table("g", "t", landed[0])]);
}

async fn a_write_whose_caller_went_away_has_its_outcome_known_by_its_number(
    fixture: &dyn StoreFixture,
) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    {
        // Polled at most once, then dropped: its outcome is unknown.
        let batch = vec![Op::PutTable(table("g", "t", 1))];
        let write = store.write(epoch, 1, &batch);
        tokio::pin!(write);
        tokio::select! {
            biased;
            _ = &mut write => {}
            () = std::future::ready(()) => {}
        }
    }
    let tables = |state: StoreState| state.tables.len() as u64;
    // It may land late, but then at its number: the next write either takes that number, or meets
    // it.
    match store.write(epoch, 1, &vec![]).await {
        Ok(_) => assert_eq!(
            tables(store.load().await.expect("load")),
            0,
            "number 1 was free, so it never lands"
        ),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Fenced);
            assert_eq!(tables(store.load().await.expect("load")), 1, "number 1 was its own");
        }
    }
    assert_eq!(store.applied().await.expect("applied").number, 1);
}

/// Leads the store, after watching a shared one (whose TTL the store does not know).
async fn acquire(store: &dyn BindStore, floor: u64) -> (Epoch, u64, bool) {
    let mut candidate = candidate(floor);
    for _ in 0..2 {
        match store.acquire_leadership(&candidate, TTL).await.expect("acquire") {
            Leadership::Acquired(Acquired { epoch, applied, clean, .. }) => {
                return (epoch, applied, clean);
            }
            Leadership::Held { seen, .. } => candidate.seen = Some(seen),
        }
    }
    panic!("what it watched stands still, and yet it may not lead");
}

fn candidate(floor: u64) -> Candidate {
    Candidate {
        floor: Epoch::new(floor),
        ..Candidate::new(NodeName::new("suite").expect("a name"), "127.0.0.1:1")
    }
}

fn table(group: &str, name: &str, number: u64) -> TableRecord {
    TableRecord {
        table: TableRef::new(group, name).expect("names"),
        id: TableId::new(number),
        partitions: 1,
        tokens_reserved_to: (1 << 53) - 1 - number,
        binds: vec![BindRecord {
            owner: ServiceId::new(number + 1),
            version: BindVersion::new(number + 2),
        }],
    }
}

fn service(id: u64, state: ServiceState) -> ServiceRecord {
    ServiceRecord {
        id: ServiceId::new(id),
        node: NodeName::new(format!("node-{id}")).expect("a name"),
        nonce: Nonce::new(u64::MAX - id),
        address: format!("127.0.0.1:{id}"),
        state,
    }
}

fn sorted(mut state: StoreState) -> StoreState {
    state.tables.sort_by(|a, b| a.table.cmp(&b.table));
    state.services.sort_by_key(|service| service.id);
    state.tombstones.sort();
    state
}
