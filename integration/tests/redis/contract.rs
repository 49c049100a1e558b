//! The contract of a store on each kind of Redis.

use integration::containers::{
    Cluster, ClusterOptions, Redis, RedisOptions, Sentinel, SentinelOptions,
};
use lockservice_core::testing::{StoreFixture, fault_suite, store_suite};

use crate::support::Named;

async fn suite(url: &str) {
    store_suite(|| async { Box::new(Named::new(url)) as Box<dyn StoreFixture> }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standalone_keeps_the_contract() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    suite(redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinel_it_keeps_the_contract_and_every_change_reaches_the_replica() {
    let Some(group) = Sentinel::start(SentinelOptions::default()).await else { return };
    suite(&format!("{}?wait=1", super::groups::sentinel_url(&group))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_the_contract() {
    let Some(cluster) = Cluster::start(ClusterOptions::default()).await else { return };
    suite(&super::groups::cluster_url(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allocator_on_it_survives_lost_late_and_doubled_responses() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let site = || async { Box::new(Named::new(redis.url())) as Box<dyn StoreFixture> };
    Box::pin(fault_suite(site, 0..10)).await;
}
