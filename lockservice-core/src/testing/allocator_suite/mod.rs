//! The conformance suite of [`LockTableAllocator`].
//!
//! | file | clauses on |
//! |---|---|
//! | `binds.rs` | binds, and the incarnations that own them |
//! | `claims.rs` | tables that wait for the holders of a process that is over |
//! | `commits.rs` | admission of commits |
//! | `tables.rs` | tables that are released, forgotten or unknown |
//! | `tombstones.rs` | transactions that are made unable to commit |

mod binds;
mod claims;
mod commits;
mod tables;
mod tombstones;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::allocator::{
    BeginCommit, Bind, CommitWindow, Incarnation, LockTableAllocator, PresentedBind, Registration,
};
use crate::id::{CommitAttempt, NodeName, Nonce, TableRef, TxnId};

/// One allocator under test over a new store, and its time.
#[async_trait]
pub trait AllocatorFixture: Send + Sync {
    /// The allocator.
    fn allocator(&self) -> Arc<dyn LockTableAllocator>;
    /// Lets the allocator's time pass. Need not wait for real time.
    async fn advance(&self, by: Duration);
}

/// Shows the contract of [`LockTableAllocator`] on allocators from `make`, each over a new store.
///
/// # Panics
/// At the first clause that does not hold.
///
/// # Cancel safety
/// Not to be dropped: a dropped suite shows nothing.
pub async fn allocator_suite<F, Made>(make: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Box<dyn AllocatorFixture>>,
{
    binds::a_table_belongs_to_the_first_that_binds_it(&*make().await).await;
    binds::a_name_belongs_to_one_incarnation_at_a_time(&*make().await).await;
    binds::a_lapsed_owners_bind_is_invalid_at_once_and_the_table_is_reassigned_later(
        &*make().await,
    )
    .await;
    binds::a_resigned_owners_table_is_reassigned_at_once(&*make().await).await;
    binds::a_replaced_incarnation_waits_out_its_own_lease(&*make().await).await;
    claims::a_table_that_waits_takes_the_claims_of_its_holders_at_the_next_process_of_its_node(
        &*make().await,
    )
    .await;
    claims::a_process_that_proves_nothing_takes_no_claims(&*make().await).await;
    claims::a_stop_for_a_restart_says_who_holds_what(&*make().await).await;
    commits::a_commit_is_admitted_on_current_binds_only(&*make().await).await;
    commits::a_commit_is_never_promised_more_than_a_lease_has_left(&*make().await).await;
    commits::an_origin_that_is_no_longer_live_commits_nothing(&*make().await).await;
    commits::attempts_of_one_transaction_are_counted_each(&*make().await).await;
    tombstones::a_tombstone_keeps_a_transaction_from_committing(&*make().await).await;
    tombstones::a_commit_that_was_reported_is_not_extended_and_ends_in_a_tombstone(&*make().await)
        .await;
    tombstones::a_transaction_that_its_origin_calls_over_or_not_started_is_not_admitted(
        &*make().await,
    )
    .await;
    tombstones::the_end_of_a_transaction_removes_no_tombstone(&*make().await).await;
    binds::a_resignation_waits_for_commits_on_its_binds(&*make().await).await;
    binds::a_resignation_waits_for_the_pins_of_another_origin_alone(&*make().await).await;
    binds::tokens_grow_from_block_to_block_and_owner_to_owner(&*make().await).await;
    tables::a_released_table_is_forgotten_and_its_name_is_another_table(&*make().await).await;
    tables::a_bind_is_kept_while_a_commit_is_in_flight_on_it(&*make().await).await;
    tables::an_operator_may_forget_a_table_that_may_be_reassigned(&*make().await).await;
    tables::unknown_names_have_a_response_and_create_nothing(&*make().await).await;
}

fn register(node: &str, nonce: u64) -> Registration {
    Registration {
        node: NodeName::new(node).expect("a name"),
        nonce: Nonce::new(nonce),
        address: format!("{node}:1"),
        replaces: None,
    }
}

async fn start(allocator: &dyn LockTableAllocator, node: &str, nonce: u64) -> Incarnation {
    allocator.register(&register(node, nonce)).await.expect("a free name")
}

fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

fn commit(txn: TxnId, attempt: u64, binds: &[&Bind]) -> BeginCommit {
    BeginCommit {
        txn,
        binds: binds.iter().map(|bind| PresentedBind::from(*bind)).collect(),
        attempt: CommitAttempt::new(attempt),
        window: CommitWindow { least: Duration::from_millis(1), most: Duration::from_secs(3) },
    }
}
