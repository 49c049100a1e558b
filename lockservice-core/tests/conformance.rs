//! The stores in memory and the local allocator over them keep the contracts.
#![cfg(not(loom))]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::NodeName;
use lockservice_core::allocator::{AllocatorSettings, LocalAllocator, LockTableAllocator};
use lockservice_core::clock::Clock;
use lockservice_core::store::{BindStore, Candidate, MemoryStore};
use lockservice_core::testing::{
    AllocatorFixture, ManualClock, SharedStore, StoreFixture, allocator_suite, fault_suite,
    store_suite,
};

struct Memory(MemoryStore);

#[async_trait]
impl StoreFixture for Memory {
    async fn open(&self) -> Arc<dyn BindStore> {
        Arc::new(self.0.clone())
    }
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract_of_a_store() {
    store_suite(|| async { Box::new(Memory(MemoryStore::new(1))) as Box<dyn StoreFixture> }).await;
}

struct Shared(SharedStore);

#[async_trait]
impl StoreFixture for Shared {
    async fn open(&self) -> Arc<dyn BindStore> {
        Arc::new(self.0.clone())
    }
}

#[tokio::test]
async fn the_shared_store_of_the_tests_keeps_the_contract_of_a_store() {
    store_suite(|| async { Box::new(Shared(SharedStore::new())) as Box<dyn StoreFixture> }).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_befalls_a_store_an_allocator_makes_the_best_of_it() {
    fault_suite(|| async { Box::new(Shared(SharedStore::new())) as Box<dyn StoreFixture> }, 0..200)
        .await;
    fault_suite(
        || async { Box::new(Memory(MemoryStore::new(1))) as Box<dyn StoreFixture> },
        0..200,
    )
    .await;
}

struct Local(Arc<LocalAllocator>, ManualClock);

#[async_trait]
impl AllocatorFixture for Local {
    fn allocator(&self) -> Arc<dyn LockTableAllocator> {
        Arc::<LocalAllocator>::clone(&self.0)
    }

    async fn advance(&self, by: Duration) {
        self.1.advance(by);
    }
}

#[tokio::test]
async fn the_local_allocator_keeps_the_contract_of_an_allocator() {
    allocator_suite(|| async {
        let clock = ManualClock::new();
        let dyn_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let candidate = Candidate::new(NodeName::new("n").expect("a name"), "n:1");
        let store = Arc::new(MemoryStore::new(1_700_000_000));
        let allocator =
            LocalAllocator::open(store, dyn_clock, AllocatorSettings::default(), candidate)
                .await
                .expect("an empty store");
        Box::new(Local(allocator, clock)) as Box<dyn AllocatorFixture>
    })
    .await;
}
