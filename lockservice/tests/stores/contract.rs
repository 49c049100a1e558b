//! The contract of a store, and an allocator over it.

use lockservice_core::testing::{StoreFixture, fault_suite, store_suite};

use crate::store_kit::{Kind, Site};

on_every_store! {
    it_keeps_the_contract_of_a_store;
    an_allocator_on_it_survives_lost_late_and_doubled_responses;
}

async fn it_keeps_the_contract_of_a_store(kind: Kind) {
    store_suite(|| async move { Box::new(Site::new(kind)) as Box<dyn StoreFixture> }).await;
}

async fn an_allocator_on_it_survives_lost_late_and_doubled_responses(kind: Kind) {
    fault_suite(|| async move { Box::new(Site::new(kind)) as Box<dyn StoreFixture> }, 0..10).await;
}
