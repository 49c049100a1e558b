//! Between the messages of [`proto`](crate::proto) and the types of the core, both ways and without
//! loss.
//!
//! Every message from the wire is parsed here, once, into types that cannot be invalid; every
//! mistake in it is an [`InvalidArgument`](lockservice_core::ErrorKind::InvalidArgument), never a
//! panic.
//!
//! | file | noun |
//! |---|---|
//! | `item`, `lock`, `waiting` | rows and ranges; lock calls and grants; notices of a session |
//! | `known_tables` | names of tables that were checked already |
//! | `allocator`, `commit`, `forgetting` | calls between nodes and the allocator |
//! | `claim` | claims of what was held before a restart |
//! | `cluster_status`, `status`, `owners` | lists for operators; kills |
//! | `cluster_mark` | the cluster of a node, as metadata |
//! | `hot`, `stats` | the keys that calls wait for most; the numbers of a node |
//! | `error`, `grpc_status` | errors as messages, and as gRPC statuses |

mod allocator;
mod claim;
#[cfg(feature = "server")]
mod cluster_mark;
mod cluster_status;
mod commit;
mod error;
mod forgetting;
mod grpc_status;
mod hot;
mod item;
mod known_tables;
mod lock;
mod owners;
mod stats;
mod status;
mod waiting;

use std::time::Duration;

pub use self::allocator::{
    acknowledged_to_proto, bound_from_proto, bound_to_proto, incarnation_from_proto,
    incarnation_to_proto, latest_from_proto, latest_to_proto, lease_from_proto, lease_to_proto,
    progress_from_proto, progress_to_proto, registration_from_proto, registration_to_proto,
    report_from_proto, report_to_proto, reserved_from_proto, reserved_to_proto, started_from_proto,
    started_to_proto, tokens_from_proto, tokens_to_proto,
};
pub use self::claim::{
    claim_from_proto, claimed_from_proto, claimed_to_proto, left_from_proto, left_to_proto,
    resignation_from_proto, resignation_to_proto, table_claim_from_proto, table_claim_to_proto,
};
#[cfg(feature = "server")]
pub(crate) use self::cluster_mark::{CLUSTER, cluster_from_metadata, cluster_to_metadata};
pub use self::cluster_status::{
    add_status_from_proto, node_from_proto, node_to_proto, status_to_proto,
};
pub use self::commit::{
    admission_from_proto, admission_to_proto, begin_commit_from_proto, begin_commit_to_proto,
    cannot_commit_from_proto, cannot_commit_to_proto, txns_from_proto, txns_to_proto,
};
pub use self::error::{error_from_proto, error_to_proto};
pub use self::forgetting::{
    forgetting_from_proto, forgetting_to_proto, released_from_proto, released_to_proto,
};
pub use self::grpc_status::{code, from_status, to_status};
pub use self::hot::{
    hot_key_from_proto, hot_key_to_proto, hot_window_from_proto, hot_window_to_proto,
};
pub use self::item::{
    item_from_range, item_from_row, items_from_proto, items_to_proto, mode_from_proto,
    mode_to_proto, push_item_to_proto, range_from_proto, range_to_proto, table_from_proto,
};
pub use self::known_tables::KnownTables;
pub use self::lock::{
    bind_from_proto, bind_to_proto, commit_from_proto, commit_to_proto, done_to_proto,
    granted_from_proto, granted_to_proto, lock_spec_from_proto, lock_spec_to_proto,
    presented_from_proto, presented_to_proto, txn_from_proto,
};
pub use self::owners::{
    killed_from_proto, killed_to_proto, session_status_from_proto, session_status_to_proto,
    txn_killed_from_proto, txn_killed_to_proto, txn_lost_from_proto, txn_lost_to_proto,
    txn_status_from_proto, txn_status_to_proto,
};
pub use self::stats::{service_stats_from_proto, service_stats_to_proto};
pub use self::status::{
    bind_status_from_proto, bind_status_to_proto, lock_status_from_proto, lock_status_to_proto,
    wait_status_from_proto, wait_status_to_proto,
};
pub use self::waiting::{notice_to_proto, waiting_from_proto, waiting_to_proto};

/// Whole milliseconds, rounded up, so that a short time never becomes zero.
pub fn millis_up(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Whole milliseconds, rounded down: a promise must not grow on the wire.
pub fn millis_down(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
