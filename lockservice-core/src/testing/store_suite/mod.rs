//! The conformance suite of [`BindStore`].
//!
//! | file | clauses on |
//! |---|---|
//! | `leadership.rs` | the leadership |
//! | `writes.rs` | writes, and the moment when they are there |

mod leadership;
mod writes;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::id::{
    BindVersion, Epoch, FencingToken, NodeName, Nonce, ServiceId, TableId, TableRef, WriteNumber,
};
use crate::store::{
    Acquired, BindRecord, BindStore, Candidate, Leadership, Seen, ServiceRecord, ServiceState,
    StoreState, TableRecord,
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
///
/// # Cancel safety
/// Not to be dropped: a dropped suite shows nothing.
pub async fn store_suite<F, Made>(make: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Box<dyn StoreFixture>>,
{
    leadership::an_empty_store_is_empty_and_its_first_leader_waits_for_nothing(&*make().await)
        .await;
    leadership::a_shared_store_has_one_leader_until_it_resigns_or_stands_still(&*make().await)
        .await;
    leadership::of_concurrent_candidates_one_leads(&*make().await).await;
    writes::every_record_survives_a_reopening(&*make().await).await;
    writes::records_are_replaced_and_removed(&*make().await).await;
    writes::only_the_current_epoch_writes_renews_and_resigns(&*make().await).await;
    writes::only_the_next_number_is_written(&*make().await).await;
    leadership::epochs_grow_past_every_floor(&*make().await).await;
    leadership::only_a_resignation_makes_a_stop_clean(&*make().await).await;
    writes::a_big_batch_lands_whole(&*make().await).await;
    writes::of_concurrent_writes_with_one_number_one_lands(&*make().await).await;
    writes::a_write_whose_caller_went_away_has_its_outcome_known_by_its_number(&*make().await)
        .await;
}

fn acquired(response: Leadership) -> Epoch {
    match response {
        Leadership::Acquired(Acquired { epoch, .. }) => epoch,
        Leadership::Held { .. } => panic!("{response:?}"),
    }
}

async fn watch_again(store: &dyn BindStore, candidate: &Candidate) -> Option<Seen> {
    match store.acquire_leadership(candidate, TTL).await.expect("a response") {
        Leadership::Held { seen, .. } => Some(seen),
        Leadership::Acquired(_) => panic!("led by two"),
    }
}

/// Leads the store, after watching a shared one (whose TTL the store does not know).
async fn acquire(store: &dyn BindStore, floor: u64) -> (Epoch, WriteNumber, bool) {
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
        tokens_reserved_to: FencingToken::new((1 << 53) - 1 - number),
        binds: vec![BindRecord {
            owner: ServiceId::new(number + 1),
            version: BindVersion::new(number + 2),
        }],
        claimable_from: Default::default(),
    }
}

fn service(id: u64, state: ServiceState) -> ServiceRecord {
    ServiceRecord {
        id: ServiceId::new(id),
        node: NodeName::new(format!("node-{id}")).expect("a name"),
        nonce: Nonce::new(u64::MAX - id),
        address: format!("127.0.0.1:{id}"),
        state,
        succession: Default::default(),
    }
}

fn sorted(mut state: StoreState) -> StoreState {
    state.tables.sort_by(|a, b| a.table.cmp(&b.table));
    state.services.sort_by_key(|service| service.id);
    state.tombstones.sort();
    state
}
