//! Older and newer formats.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, BindSlot, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Registration,
};
use lockservice_core::clock::SystemClock;
use lockservice_core::{
    BindVersion, CommitAttempt, Epoch, ErrorKind, NodeName, Nonce, ServiceId, TableId, TxnCounter,
    TxnId, TxnNumber,
};
use tokio::task::JoinSet;

use crate::store_kit::{Kind, Site, acquire, state_of, table, write_tables};

on_every_store! {
    a_store_of_a_newer_format_is_refused_as_newer_and_left_alone;
    a_store_of_format_one_as_it_was_committed_still_opens;
    a_store_of_format_one_is_opened_while_commits_are_validated_and_tables_bound;
}

async fn a_store_of_a_newer_format_is_refused_as_newer_and_left_alone(kind: Kind) {
    let site = Site::new(kind);
    drop(site.open().await.expect("a store"));
    site.raw_put(b"format", b"2");
    site.raw_put(b"invention", b"of version 2");
    let error = site.open().await.expect_err("newer");
    assert_eq!(error.kind(), ErrorKind::StoreNewer, "{error:?}");
    assert!(error.to_string().contains("newer version"), "{error}");
    let entry = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    assert_eq!(site.raw_entries(), [entry("format", "2"), entry("invention", "of version 2")]);
    site.raw_put(b"format", b"1");
    let error = site.open().await.expect_err("not a record of format 1");
    assert_eq!(error.kind(), ErrorKind::StoreCorrupt, "{error:?}");
}

async fn a_store_of_format_one_as_it_was_committed_still_opens(kind: Kind) {
    let site = Site::from_fixture(kind);
    let store = site.open().await.expect("format 1");
    let state = state_of(&*store).await;
    assert_eq!((state.epoch, state.applied.get()), (Epoch::new(3), 4));
    assert_eq!(state.tables, (2..8).map(table).collect::<Vec<_>>());
    assert_eq!(state.constants.expect("constants").lease_ttl_ms, 7_000);
    assert_eq!(
        state.tombstones,
        [TxnId { origin: ServiceId::new(3 << 32 | 1), counter: TxnCounter::new(9) }]
    );
    assert_eq!(
        state.services.iter().map(|service| service.address.as_str()).collect::<Vec<_>>(),
        ["127.0.0.1:1"]
    );
    let (epoch, clean) = acquire(&*store).await;
    assert_eq!((epoch, clean), (Epoch::new(4), true));
    write_tables(&*store, epoch, 5).await.expect("and is written");
}

/// The outage that this project began with: the first start after an upgrade, under load.
async fn a_store_of_format_one_is_opened_while_commits_are_validated_and_tables_bound(kind: Kind) {
    let site = Site::from_fixture(kind);
    let store = site.open().await.expect("format 1");
    let node = NodeName::new("n").expect("a name");
    // It responds at once; each call waits until the store is open.
    let allocator = LocalAllocator::start(
        store,
        Arc::new(SystemClock),
        AllocatorSettings::default(),
        node.clone(),
    );
    let allocator = allocator.expect("valid settings");
    let mut commits = JoinSet::new();
    for n in 0..300 {
        let allocator = Arc::clone(&allocator);
        commits.spawn(async move {
            let origin = ServiceId::new(3 << 32 | 1);
            let request = BeginCommit {
                txn: TxnId::new(origin, TxnNumber::new(n), true),
                binds: vec![PresentedBind {
                    table: TableId::new(n),
                    partition: 0,
                    owner: origin,
                    version: BindVersion::new(1),
                    slot: BindSlot::NONE,
                }],
                attempt: CommitAttempt::new(1),
                window: CommitWindow {
                    least: Duration::from_millis(1),
                    most: Duration::from_secs(1),
                },
            };
            allocator.begin_commit(&request).await.expect_err("of the past").kind()
        });
    }
    let register = Registration {
        node,
        nonce: Nonce::new(1),
        address: "127.0.0.1:1".to_owned(),
        replaces: None,
    };
    let me = allocator.register(&register).await.expect("it starts").service;
    let mut binds = JoinSet::new();
    for n in 2..100 {
        let allocator = Arc::clone(&allocator);
        binds.spawn(async move {
            allocator.bind(me, &table(n).table).await.expect("after a clean stop nothing waits")
        });
    }
    for bound in binds.join_all().await {
        let old = (2..8).map(table).find(|known| known.table == bound.bind.table);
        assert_eq!(bound.bind.owner, me);
        if let Some(old) = old {
            assert!(
                bound.bind.id == old.id && bound.bind.version > old.binds[0].version,
                "{bound:?}"
            );
            assert!(bound.tokens.expect("fresh").next >= old.tokens_reserved_to);
        }
    }
    for kind in commits.join_all().await {
        assert!(matches!(kind, ErrorKind::CannotCommit | ErrorKind::BindChanged), "{kind:?}");
    }
    assert_eq!(allocator.entries().0, 98, "no lookup has created anything");
}
