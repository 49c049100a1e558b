//! The perils that every store on a disk must survive: a second process, a kill, a full disk,
//! missing rights, damage, and a newer version.
//!
//! Each test runs on `file:` and, with the feature, on `rocks:`. Processes that have to die are
//! this test binary itself, started again with a role (see `child_process`).
//!
//! | file | noun |
//! |---|---|
//! | `contract.rs` | the contract of a store |
//! | `processes.rs` | several processes, and kills |
//! | `place.rs` | the disk and the path |
//! | `damage.rs` | damage |
//! | `formats.rs` | older and newer formats |
#![cfg(feature = "file")]

macro_rules! on_every_store {
    ($($name:ident;)*) => {
        mod file {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Kind::File).await })*
        }
        #[cfg(feature = "rocks")]
        mod rocks {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Kind::Rocks).await })*
        }
    };
}

mod contract;
mod damage;
mod formats;
mod place;
mod processes;
#[path = "../store_kit/mod.rs"]
mod store_kit;

use std::sync::Arc;

use async_trait::async_trait;
use lockservice_core::store::{BindStore, ClusterConstants, Op, ServiceRecord, ServiceState};
use lockservice_core::testing::StoreFixture;
use lockservice_core::{ServiceId, TxnCounter, TxnId, WriteNumber};

use self::store_kit::{Site, acquire, candidate, child, open, write_tables};

#[async_trait]
impl StoreFixture for Site {
    async fn open(&self) -> Arc<dyn BindStore> {
        Site::open(self).await.expect("a store in a folder of its own")
    }
}

/// Not a test: what this binary does when a test starts it again. Without a role it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Some((role, url)) = child::role() else { return };
    child::say("opening");
    let store = match open(&url).await {
        Ok(store) => store,
        Err(error) => return child::say(&format!("{error:?}")),
    };
    child::say("open");
    match role.as_str() {
        "hold" => std::future::pending().await,
        "write" => {
            let applied = store.applied().await.expect("readable").number.get();
            let (epoch, _) = acquire(&*store).await;
            for number in applied + 1.. {
                write_tables(&*store, epoch, number).await.expect("a write");
                child::say(&number.to_string());
            }
        }
        "fixture" => write_fixture(&*store).await,
        other => panic!("there is no role {other}"),
    }
}

/// Writes what `a_store_of_format_one_as_it_was_committed_still_opens` expects. To make a fixture
/// for a later format:
/// `LOCKSERVICE_TEST_ROLE=fixture LOCKSERVICE_TEST_STORE=file:format-2.db \
/// cargo test -p lockservice --test stores child_process`.
async fn write_fixture(store: &dyn BindStore) {
    acquire(store).await;
    acquire(store).await;
    let (epoch, _) = acquire(store).await;
    for number in 1..=3 {
        write_tables(store, epoch, number).await.expect("a write");
    }
    let id = ServiceId::new(3 << 32 | 1);
    let who = candidate();
    let service = ServiceRecord {
        id,
        node: who.node,
        nonce: who.nonce,
        address: who.address.nodes,
        state: ServiceState::Live,
        succession: Default::default(),
    };
    let batch = vec![
        Op::PutService(service),
        Op::PutConstants(ClusterConstants { leadership_ttl_ms: 6_000, lease_ttl_ms: 7_000 }),
        Op::PutTombstone(TxnId { origin: id, counter: TxnCounter::new(9) }),
    ];
    store.write(epoch, WriteNumber::new(4), &batch).await.expect("the last write");
    store.resign(epoch).await.expect("resigned");
}
