//! The conformance suite of the lock service.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the list of clauses, and how each is run |
//! | `fixture.rs` | the traits that a tested lock service implements |
//! | `kit.rs` | actors that lock, calls that wait, and pictures of holders and waiters |
//! | `exclusion.rs, ranges.rs` | the locks that exclude each other |
//! | `tokens.rs` | the content of a grant |
//! | `fairness.rs, waiting.rs, deadlock.rs` | the order of waiters, and the ends of a wait |
//! | `calls.rs` | a call is all or nothing |
//! | `partial.rs` | locks that are shared with some, skipped, made weaker, or given up in part |
//! | `release.rs` | a release, and the waiters that it wakes |
//! | `sessions.rs, commit.rs, stop.rs` | the end of sessions, the admission of commits, the end of a service |
//! | `errors.rs` | errors and lists |
//!
//! # Implementation details
//! A clause is one function whose name is the sentence that it shows. Each gets a service of its
//! own, and has [`CLAUSE_MAX`] to show it. Clauses read holders and waiters from the lists that
//! operators see. These are exact: they are made in one step with the grants. So a clause sees that
//! a call goes on waiting, and no clause waits for nothing to happen.

mod calls;
mod commit;
mod deadlock;
mod errors;
mod exclusion;
mod fairness;
mod fixture;
mod kit;
mod partial;
mod ranges;
mod release;
mod sessions;
mod stop;
mod tokens;
mod waiting;

use std::future::Future;
use std::time::Duration;

pub use self::fixture::{ServiceFixture, SessionFixture, TxnFixture, UnparsedItem};

/// Far more than any clause needs: a clause that takes longer hangs.
const CLAUSE_MAX: Duration = Duration::from_secs(60);

/// Shows what a lock service promises its clients, on services from `make`, each new.
///
/// Needs a tokio runtime with time enabled; it may be paused if the fixture's clock is that of
/// tokio.
///
/// # Panics
/// At the first clause that does not hold.
///
/// # Cancel safety
/// Not to be dropped: a dropped suite shows nothing.
// Long: the table of all clauses.
pub async fn service_suite<F, Made>(make: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Box<dyn ServiceFixture>>,
{
    macro_rules! show {
        ($($file:ident: $($clause:ident),+;)+) => {
            $($({
                let fixture = make().await;
                let _clause = Clause(stringify!($clause));
                let clause = Box::pin($file::$clause(&*fixture));
                let shown = tokio::time::timeout(CLAUSE_MAX, clause).await;
                assert!(shown.is_ok(), "it hangs");
            })+)+
        };
    }
    show! {
        exclusion:
            an_exclusive_lock_keeps_all_others_out,
            sharers_hold_together_and_keep_writers_out,
            the_same_key_in_another_table_is_another_lock,
            many_at_once_are_never_two_inside;
        ranges:
            a_range_and_a_row_exclude_each_other_exactly_where_the_bounds_say,
            ranges_exclude_each_other_where_they_share_a_key,
            ranges_can_be_shared;
        tokens:
            the_next_holder_has_a_larger_token_over_rows_and_ranges,
            re_entry_returns_the_old_token_and_an_upgrade_a_new_one,
            a_grant_says_whether_it_waited_for_whom_and_what_was_committed;
        fairness:
            a_writer_gets_its_turn_behind_sharers,
            a_range_gets_its_turn_behind_rows_and_a_row_behind_ranges,
            all_sharers_at_the_head_come_in_together,
            a_transaction_that_others_wait_for_goes_ahead_of_them,
            an_upgrade_goes_ahead_of_those_who_wait;
        waiting:
            no_wait_takes_an_earlier_waiter_for_a_lock,
            a_wait_ends_at_its_deadline_and_leaves_no_claim,
            a_cancelled_wait_leaves_no_claim_and_no_other_stalls,
            a_cancellation_that_meets_the_grant_loses_neither;
        calls:
            a_call_that_meets_a_conflict_leaves_everything_as_it_was,
            a_call_whose_time_is_up_leaves_everything_as_it_was,
            a_call_that_is_cancelled_leaves_everything_as_it_was,
            a_call_that_is_the_victim_of_a_deadlock_leaves_everything_as_it_was,
            a_call_takes_all_of_its_items_or_waits_for_all;
        deadlock:
            a_deadlock_names_its_whole_cycle_and_only_a_member_fails,
            two_sharers_that_upgrade_are_a_deadlock_and_exactly_one_fails,
            a_cycle_that_another_order_of_the_queue_resolves_aborts_no_transaction,
            waits_that_meet_again_are_no_deadlock;
        release:
            an_unlock_of_chosen_keys_wakes_exactly_those_who_became_compatible,
            an_unlock_of_chosen_keys_gives_its_commit_to_the_table_and_those_behind_them,
            a_release_is_idempotent,
            the_end_of_a_transaction_releases_everything;
        partial:
            an_update_lock_lets_sharers_in_and_keeps_others_that_may_write_out,
            a_downgrade_lets_in_who_is_compatible_then,
            a_roll_back_to_a_savepoint_leaves_what_was_held_at_it,
            rows_that_are_not_free_are_skipped_and_named,
            a_changed_definition_is_known_to_waiters_and_to_later_holders;
        sessions:
            a_session_that_is_closed_gives_everything_up,
            a_silent_session_gives_everything_up_after_its_ttl,
            a_lost_transaction_that_validates_cannot_commit_once_its_locks_are_given_away,
            a_commit_in_flight_keeps_the_locks_of_a_lost_session,
            a_snapshot_older_than_a_lost_holder_learns_that_history_is_unknown,
            a_ttl_that_cannot_be_renewed_in_time_is_refused;
        commit:
            a_commit_is_admitted_on_current_binds_only,
            a_transaction_that_said_it_would_not_validate_is_refused_at_its_commit,
            a_transaction_that_has_ended_or_never_was_is_not_admitted,
            a_transaction_reported_as_never_committing_does_not_commit_after_a_goodbye,
            once_a_transaction_was_reported_as_committing_nothing_more_of_it_is_admitted,
            a_client_that_fell_silent_cannot_keep_its_locks_by_extending_its_commit;
        errors:
            locks_and_waits_show_who_waits_for_whom,
            an_error_says_what_happened_to_what_and_what_to_do,
            bad_input_is_refused_and_the_transaction_goes_on;
        stop:
            a_stop_notifies_holders_and_waiters_and_admits_nothing,
            after_a_stop_nothing_is_served;
    }
}

/// Says which clause it was that did not hold: the panic itself is often raised in what the clauses
/// share.
struct Clause(&'static str);

impl Drop for Clause {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("This does not hold: {}", self.0.replace('_', " "));
        }
    }
}
