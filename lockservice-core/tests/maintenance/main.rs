//! Dumps and restores: what goes in comes out, and nothing but a whole, consistent dump in an empty
//! store is ever served from.
//!
//! | file | noun |
//! |---|---|
//! | `dumps.rs` | the form of a dump; random states |
//! | `numbers.rs` | the numbers of a restored cluster |
//! | `refusals.rs` | refusals, and interrupted restores |
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod dumps;
mod numbers;
mod refusals;

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
use lockservice_core::clock::hi;
use lockservice_core::maintenance::{Dump, EPOCHS_SKIPPED, RestoreOptions, Restored};
use lockservice_core::store::{
    BindRecord, BindStore, Candidate, ClusterConstants, Forgotten, Leadership, ServiceRecord,
    ServiceState, StoreState, TableRecord,
};
use lockservice_core::testing::{SharedStore, TokioClock};
use lockservice_core::{
    BindVersion, Epoch, EpochNumber, FencingToken, NodeName, Nonce, Result, ServiceId, TableId,
    TableRef, TxnId, TxnNumber, WriteNumber,
};

const TTL: Duration = Duration::from_secs(5);

/// The records in the order of a dump.
fn sorted(mut state: StoreState) -> StoreState {
    state.tables.sort_by(|a, b| a.table.cmp(&b.table));
    state.services.sort_by_key(|service| service.id);
    state.tombstones.sort();
    state
}

fn text(dump: &Dump) -> Vec<u8> {
    let mut text = Vec::new();
    dump.write_to(&mut text).expect("memory");
    text
}

fn read(text: &[u8]) -> Result<Dump> {
    Dump::read_from(text)
}

fn options() -> RestoreOptions {
    RestoreOptions {
        node: NodeName::new("restorer").expect("a name"),
        leadership_ttl: TTL,
        above: Epoch::default(),
    }
}

/// Some state, the same each time.
fn sample(tables: usize) -> StoreState {
    let owner = ServiceId::new(7 << 32 | 1);
    StoreState {
        epoch: Epoch::new(7),
        applied: WriteNumber::new(12),
        constants: Some(ClusterConstants::default()),
        services: vec![ServiceRecord {
            id: owner,
            node: NodeName::new("a").expect("a name"),
            nonce: Nonce::new(u64::MAX),
            address: "127.0.0.1:1".to_owned(),
            state: ServiceState::Live,
            succession: Default::default(),
        }],
        tables: (0..tables as u64)
            .map(|at| TableRecord {
                table: TableRef::new("g", format!("t{at:05}")).expect("names"),
                id: TableId::new(7 << 32 | at),
                partitions: 1,
                tokens_reserved_to: FencingToken::new(8 << 32),
                binds: vec![BindRecord { owner, version: BindVersion::new(7 << 32 | at) }],
                claimable_from: Default::default(),
            })
            .collect(),
        forgotten: Forgotten {
            high_water: EpochNumber::new(7 << 32 | 1 << 20),
            tokens_reserved_to: FencingToken::new(8 << 32),
        },
        tombstones: vec![TxnId::new(owner, TxnNumber::new(3), true)],
        volatile_tokens_from: None,
    }
}

fn dump() -> Dump {
    Dump::new("test:", sample(2_500)).expect("finished")
}

/// Checks the content of the restored store.
fn expect_restored(found: StoreState, dumped: &StoreState, restored: Restored, above: Epoch) {
    let mut goal = dumped.clone();
    for service in &mut goal.services {
        service.state = ServiceState::Fenced;
    }
    assert!(
        restored.epoch.get()
            > dumped.epoch.max(dumped.highest_epoch()).max(above).get() + EPOCHS_SKIPPED
    );
    assert_eq!(found.epoch, restored.epoch);
    let same = StoreState {
        epoch: goal.epoch,
        applied: goal.applied,
        volatile_tokens_from: None,
        ..found
    };
    assert_eq!(sorted(same), sorted(goal));
}

/// An allocator on the store, as soon as the last leader's time is over.
async fn open_once_free(store: &SharedStore) -> Result<Arc<LocalAllocator>> {
    let mut candidate = Candidate::from(NodeName::new("server").expect("a name"));
    if let Leadership::Held { seen, .. } = store.acquire_leadership(&candidate, TTL).await? {
        tokio::time::sleep(hi(TTL)).await;
        candidate.seen = Some(seen);
    }
    let store = Arc::new(store.connect());
    LocalAllocator::open(
        store,
        Arc::new(TokioClock::new()),
        AllocatorSettings::default(),
        candidate,
    )
    .await
}
