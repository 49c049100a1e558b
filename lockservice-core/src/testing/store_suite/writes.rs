//! Writes, their writers, and the moment when they are there (L2).

use std::sync::Arc;

use super::{StoreFixture, acquire, service, sorted, table};
use crate::error::ErrorKind;
use crate::id::{Epoch, EpochNumber, FencingToken, ServiceId, TxnId, TxnNumber, WriteNumber};
use crate::store::{ClusterConstants, Forgotten, Op, ServiceState, StoreState};

pub(super) async fn every_record_survives_a_reopening(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let batch = vec![
        Op::PutConstants(ClusterConstants { leadership_ttl_ms: 2_000, lease_ttl_ms: 3_000 }),
        Op::PutTable(table("g", "ä table/with: odd\"name", 7)),
        Op::PutTable(table("h", "t", 8)),
        Op::PutForgotten(Forgotten {
            high_water: EpochNumber::new(6),
            tokens_reserved_to: FencingToken::new(1 << 53),
        }),
        Op::PutService(service(11, ServiceState::Live)),
        Op::PutService(service(12, ServiceState::Fenced)),
        Op::PutService(service(13, ServiceState::Resigned)),
        Op::PutTombstone(TxnId::new(ServiceId::new(11), TxnNumber::new(5), true)),
    ];
    store.write(epoch, WriteNumber::FIRST, &batch).await.expect("write");
    let before = sorted(store.load().await.expect("load"));
    assert_eq!(before.tables.len(), 2);
    assert_eq!(before.services.len(), 3);
    assert_eq!(before.tombstones.len(), 1);
    assert_eq!((before.epoch, before.applied.get()), (epoch, 1));
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
    assert_eq!(applied, WriteNumber::FIRST);
    let after = sorted(store.load().await.expect("load"));
    assert_eq!(after, StoreState { epoch: next, ..before });
}

pub(super) async fn records_are_replaced_and_removed(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let txn = TxnId::new(ServiceId::new(1), TxnNumber::new(1), true);
    let first = vec![
        Op::PutTable(table("g", "t", 1)),
        Op::PutTable(table("g", "gone", 2)),
        Op::PutTable(table("g", "back", 3)),
        Op::PutForgotten(Forgotten {
            high_water: EpochNumber::new(1),
            tokens_reserved_to: FencingToken::new(5),
        }),
        Op::PutService(service(1, ServiceState::Live)),
        Op::PutService(service(2, ServiceState::Live)),
        Op::PutTombstone(txn),
    ];
    store.write(epoch, WriteNumber::FIRST, &first).await.expect("write");
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
        Op::PutForgotten(Forgotten {
            high_water: EpochNumber::new(2),
            tokens_reserved_to: FencingToken::new(7),
        }),
        Op::RemoveTable(table("g", "gone", 2).table),
        Op::RemoveTable(table("g", "never", 2).table),
        Op::RemoveTable(table("g", "back", 3).table),
        Op::PutForgotten(Forgotten {
            high_water: EpochNumber::new(3),
            tokens_reserved_to: FencingToken::new(7),
        }),
        Op::PutTable(table("g", "back", 10)),
        Op::PutTable(table("g", "short", 11)),
        Op::RemoveTable(table("g", "short", 11).table),
    ];
    store.write(epoch, WriteNumber::new(2), &second).await.expect("write");
    drop(store);
    let store = fixture.open().await;
    acquire(&*store, 0).await;
    let state = sorted(store.load().await.expect("load"));
    assert_eq!(state.tables, vec![table("g", "back", 10), table("g", "t", 9)]);
    assert_eq!(
        state.forgotten,
        Forgotten { high_water: EpochNumber::new(3), tokens_reserved_to: FencingToken::new(7) }
    );
    assert_eq!(state.services, vec![service(1, ServiceState::Fenced)]);
    assert_eq!(state.tombstones, vec![]);
    assert_eq!(state.applied.get(), 2);
}

pub(super) async fn only_the_current_epoch_writes_renews_and_resigns(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (old, ..) = acquire(&*store, 0).await;
    store.renew(old).await.expect("the leader renews");
    let (new, ..) = acquire(&*store, 0).await;
    assert!(new > old, "another request raises the epoch");
    let batch = vec![Op::PutTable(table("g", "t", 1))];
    for epoch in [old, Epoch::new(new.get() + 1)] {
        let refused = store
            .write(epoch, WriteNumber::FIRST, &batch)
            .await
            .expect_err("not the current epoch");
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
    assert_eq!(store.applied().await.expect("applied").number.get(), 0);
    store.write(new, WriteNumber::FIRST, &batch).await.expect("the current epoch writes");
}

pub(super) async fn only_the_next_number_is_written(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    store
        .write(epoch, WriteNumber::FIRST, &vec![Op::PutTable(table("g", "a", 1))])
        .await
        .expect("the first");
    for number in [0, 1, 3, u64::MAX] {
        let late = vec![Op::PutTable(table("g", "a", 99))];
        let refused = store
            .write(epoch, WriteNumber::new(number), &late)
            .await
            .expect_err("not the next number");
        assert_eq!(refused.kind(), ErrorKind::Fenced, "number {number}");
    }
    assert_eq!(store.applied().await.expect("applied").number.get(), 1);
    assert_eq!(store.load().await.expect("load").tables, vec![table("g", "a", 1)]);
    store.write(epoch, WriteNumber::new(2), &vec![]).await.expect("an empty batch counts too");
    drop(store);
    let store = fixture.open().await;
    let (epoch, applied, _) = acquire(&*store, 0).await;
    assert_eq!(applied.get(), 2, "numbers go on over leaderships");
    assert_eq!(
        store.write(epoch, WriteNumber::FIRST, &vec![]).await.expect_err("used").kind(),
        ErrorKind::Fenced
    );
    store.write(epoch, WriteNumber::new(3), &vec![]).await.expect("the next");
}

pub(super) async fn a_big_batch_lands_whole(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let batch: Vec<Op> =
        (0..5_000).map(|n| Op::PutTable(table("g", &format!("t{n}"), n))).collect();
    store.write(epoch, WriteNumber::FIRST, &batch).await.expect("write");
    drop(store);
    let store = fixture.open().await;
    acquire(&*store, 0).await;
    assert_eq!(store.load().await.expect("load").tables.len(), 5_000);
}

pub(super) async fn of_concurrent_writes_with_one_number_one_lands(fixture: &dyn StoreFixture) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            (
                n,
                store
                    .write(epoch, WriteNumber::FIRST, &vec![Op::PutTable(table("g", "t", n))])
                    .await,
            )
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

pub(super) async fn a_write_whose_caller_went_away_has_its_outcome_known_by_its_number(
    fixture: &dyn StoreFixture,
) {
    let store = fixture.open().await;
    let (epoch, ..) = acquire(&*store, 0).await;
    {
        // Polled at most once, then dropped: its outcome is unknown.
        let batch = vec![Op::PutTable(table("g", "t", 1))];
        let write = store.write(epoch, WriteNumber::FIRST, &batch);
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
    match store.write(epoch, WriteNumber::FIRST, &vec![]).await {
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
    assert_eq!(store.applied().await.expect("applied").number.get(), 1);
}
