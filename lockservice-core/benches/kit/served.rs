//! A service with one table.

use std::sync::Arc;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
use lockservice_core::clock::Clock;
use lockservice_core::service::{
    LockService, LockSpec, ServiceParts, ServiceSettings, Table, Txn, TxnOptions,
};
use lockservice_core::store::{ClusterConstants, MemoryStore};
use lockservice_core::{LockItem, LockMode, NodeName, TableRef};

use super::key;

pub(crate) struct Served {
    pub(crate) service: LockService,
    pub(crate) table: Table,
}

pub(crate) fn name() -> TableRef {
    TableRef::new("bench", "rows").unwrap()
}

pub(crate) async fn serve(clock: Arc<dyn Clock>) -> Served {
    let settings = AllocatorSettings {
        constants: ClusterConstants { lease_ttl_ms: 3_600_000, ..ClusterConstants::default() },
        ..AllocatorSettings::default()
    };
    let node = NodeName::new("node").unwrap();
    let store = Arc::new(MemoryStore::new(1));
    let allocator =
        LocalAllocator::open(store, Arc::clone(&clock), settings, node.clone()).await.unwrap();
    let settings = ServiceSettings { txns_max: 1 << 20, ..ServiceSettings::default() };
    let parts = ServiceParts { settings, ..ServiceParts::new(allocator, clock, node) };
    let service = LockService::start(parts).await.unwrap();
    let first = service.begin(TxnOptions::default()).unwrap();
    first.lock(LockSpec::new(name(), vec![LockItem::Row(key(0))])).await.unwrap();
    first.end(None);
    let table = service.table(&name()).unwrap();
    Served { service, table }
}

impl Served {
    pub(crate) fn begin(&self) -> Txn {
        self.service.begin(TxnOptions::default()).unwrap()
    }

    /// A transaction that holds the rows `0..rows`.
    pub(crate) fn holding(&self, rows: u64) -> Txn {
        let txn = self.begin();
        (0..rows).for_each(|number| self.hold(&txn, number));
        txn
    }

    /// Locks a row, which is free, for a transaction.
    pub(crate) fn hold(&self, txn: &Txn, number: u64) {
        // A task supplies the tokens, and may come late.
        while txn.lock_row(&self.table, &key(number), LockMode::Exclusive).is_none() {
            std::thread::yield_now();
        }
    }
}
