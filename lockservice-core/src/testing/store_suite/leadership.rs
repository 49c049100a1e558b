//! The leadership (L1, L4).

use std::sync::Arc;

use super::{StoreFixture, TTL, acquire, acquired, candidate, table, watch_again};
use crate::error::ErrorKind;
use crate::id::{Epoch, NodeName, WriteNumber};
use crate::store::{Acquired, Candidate, DataLoss, Leadership, Op, StoreState};

pub(super) async fn an_empty_store_is_empty_and_its_first_leader_waits_for_nothing(
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
            assert!(!clean, "nothing distinguishes it from a store that lost everything");
            (epoch, applied, true)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((applied.get(), clean), (0, true));
    assert!(epoch >= Epoch::new(1));
    let known = store.applied().await.expect("applied");
    assert_eq!((known.epoch, known.number.get()), (epoch, 0));
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

// Long: one leadership from its first candidate to the next leader, whose steps rest on each other.
pub(super) async fn a_shared_store_has_one_leader_until_it_resigns_or_stands_still(
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
    second.seen = watch(store.acquire_leadership(&second, TTL).await.expect("a response"));
    store.renew(epoch).await.expect("it leads");
    let after = watch(store.acquire_leadership(&second, TTL).await.expect("a response"));
    assert_ne!(after, second.seen, "a renewal is seen (L1)");
    second.seen = after;
    store
        .write(epoch, WriteNumber::FIRST, &vec![Op::PutTable(table("g", "t", 1))])
        .await
        .expect("a write is no renewal");
    let raised = acquired(store.acquire_leadership(&first, TTL).await.expect("its own"));
    assert!(raised > epoch, "the leader may raise its epoch (F2)");
    second.seen = watch(store.acquire_leadership(&second, TTL).await.expect("a response"));
    let taken = store.acquire_leadership(&second, TTL).await.expect("what it watched stands still");
    assert!(
        matches!(
            taken,
            Leadership::Acquired(Acquired {
                applied: WriteNumber::FIRST,
                clean: false,
                continuous: false,
                ..
            })
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
            store.write(fenced, WriteNumber::new(2), &vec![]).await.expect_err("taken over").kind(),
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
    let late = store.acquire_leadership(&old, TTL).await.expect("a response");
    assert!(matches!(late, Leadership::Held { .. }), "what it watched is long past: {late:?}");
}

pub(super) async fn of_concurrent_candidates_one_leads(fixture: &dyn StoreFixture) {
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
            async move { store.acquire_leadership(&candidate, TTL).await.expect("a response") },
        );
    }
    let responses = tasks.join_all().await;
    let leaders =
        responses.iter().filter(|response| matches!(response, Leadership::Acquired(_))).count();
    assert_eq!(leaders, 1, "{responses:?}");
}

pub(super) async fn epochs_grow_past_every_floor(fixture: &dyn StoreFixture) {
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

pub(super) async fn only_a_resignation_makes_a_stop_clean(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    acquire(&*store, 0).await;
    drop(store);
    let store = fixture.open().await;
    let (epoch, _, clean) = acquire(&*store, 0).await;
    assert!(!clean, "it was dropped");
    store.resign(epoch).await.expect("resign");
    assert_eq!(
        store.write(epoch, WriteNumber::FIRST, &vec![]).await.expect_err("it resigned").kind(),
        ErrorKind::Fenced
    );
    drop(store);
    let store = fixture.open().await;
    let (epoch, _, clean) = acquire(&*store, 0).await;
    assert!(clean, "it resigned");
    store.write(epoch, WriteNumber::FIRST, &vec![]).await.expect("write");
    drop(store);
    let store = fixture.open().await;
    let (.., clean) = acquire(&*store, 0).await;
    assert!(!clean, "a clean stop is good for one start");
}
