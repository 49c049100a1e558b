//! The metrics: their names, and what each of them means.

use std::fmt;
use std::sync::Arc;

use lockservice_core::allocator::Role;
use lockservice_core::metrics::{ServiceGauges, StoreCall};
use lockservice_core::{ErrorKind, LockMode};
use prometheus_client::registry::Unit;

use super::encode::Writer;
use super::rpc::{MethodCounts, OTHER};
use super::{NodeMetrics, RpcMetrics};

/// Writes all metrics of a node.
pub(super) fn write(node: &NodeMetrics, to: &mut Writer<'_>) -> fmt::Result {
    // The gauges come first: they add what the engine has counted.
    let gauges = node.host.get().map(|host| host.current().gauges()).unwrap_or_default();
    locks(node, &gauges, to)?;
    sessions(node, &gauges, to)?;
    lease(node, &gauges, to)?;
    leadership(node, to)?;
    store(node, to)?;
    rpc(node, to)
}

fn locks(node: &NodeMetrics, gauges: &ServiceGauges, to: &mut Writer<'_>) -> fmt::Result {
    let counts = node.service.counts();
    to.gauge("locks_held", "Holds of rows and ranges, by any transaction.", gauges.held)?;
    to.gauge("lock_waiters", "Lock calls that wait for a lock or a token.", gauges.waiting)?;
    to.gauge(
        "table_waiters",
        "Lock calls that wait for their table to be bound to this node.",
        gauges.waiting_for_tables,
    )?;
    to.gauge("lock_waiters_limit", "The most lock calls that may wait.", gauges.waiting_max)?;
    to.bytes("lock_memory", "Estimated memory of locks and waits.", gauges.lock_bytes)?;
    to.bytes("lock_memory_limit", "The most memory of locks and waits.", gauges.lock_bytes_max)?;
    to.gauge("tables", "Lock tables that are bound to this node.", gauges.tables)?;
    to.counters(
        "locks_granted",
        "Rows and ranges that were newly locked or upgraded, by the requested mode.",
        "mode",
        counts.granted.map(|(mode, count)| (mode_name(mode), count)),
    )?;
    to.counters(
        "lock_refused",
        "Lock calls that failed, by the kind of the error.",
        "reason",
        by_kind(&counts.refused),
    )?;
    to.times(
        "lock_wait",
        "How long lock calls waited, of those that waited, by their outcome.",
        "outcome",
        [("granted", counts.waited_for_grant), ("refused", counts.waited_in_vain)],
    )?;
    to.histogram(
        "lock_hand_over",
        "From the grant to a waiting call to the response of that call.",
        Some(&Unit::Seconds),
        &counts.hand_over,
    )?;
    to.histogram(
        "lock_hold",
        "From the first grant of a transaction to its end, for one of 16 transactions.",
        Some(&Unit::Seconds),
        &counts.held,
    )?;
    to.histogram(
        "deadlock_transactions",
        "Cycles of waits that were resolved by a failure, by the number of their transactions.",
        None,
        &counts.deadlocks,
    )
}

fn sessions(node: &NodeMetrics, gauges: &ServiceGauges, to: &mut Writer<'_>) -> fmt::Result {
    let counts = node.service.counts();
    to.gauge("sessions", "Sessions that are open.", gauges.sessions)?;
    to.gauge("sessions_limit", "The most sessions that may be open.", gauges.sessions_max)?;
    to.gauge("transactions", "Transactions that have not ended.", gauges.txns)?;
    to.gauge("transactions_limit", "The most transactions at once.", gauges.txns_max)?;
    to.bytes("operations_kept", "Memory of queued operations and responses.", gauges.kept_bytes)?;
    to.counter("sessions_opened", "Sessions that were opened.", counts.sessions_opened)?;
    to.counters(
        "sessions_ended",
        "Sessions that ended. All but those that were closed were lost.",
        "reason",
        counts.sessions_ended.map(|(end, count)| (end.name(), count)),
    )?;
    to.counters(
        "transactions_killed",
        "Transactions that were ended while their session went on, by an operator or at a limit.",
        "reason",
        counts.txns_killed.map(|(cause, count)| (cause.name(), count)),
    )?;
    to.histogram(
        "session_left_at_renewal",
        "The part of a session's TTL that was left when it was renewed. Near 0 is near a loss.",
        Some(&Unit::Other("ratio".to_owned())),
        &counts.session_left,
    )
}

fn lease(node: &NodeMetrics, gauges: &ServiceGauges, to: &mut Writer<'_>) -> fmt::Result {
    let counts = node.service.counts();
    let ready = usize::from(node.not_ready().is_none());
    to.gauge("ready", "1 while locks are granted, else 0.", ready)?;
    to.seconds(
        "lease_left",
        "What is left until the node stops to serve unless its lease is renewed.",
        gauges.lease_left.as_secs_f64(),
    )?;
    to.counters(
        "lease_renewals",
        "Attempts to renew the node's lease.",
        "outcome",
        [("ok", counts.lease_renewals), ("failed", counts.lease_renewals_failed)],
    )?;
    to.counter(
        "leases_lost",
        "Leases that were lost: all locks became invalid.",
        counts.leases_lost,
    )?;
    to.histogram(
        "lease_left_at_renewal",
        "What was left of the lease when it was renewed. Near 0 is near a loss.",
        Some(&Unit::Seconds),
        &counts.lease_left,
    )
}

fn leadership(node: &NodeMetrics, to: &mut Writer<'_>) -> fmt::Result {
    let allocator = node.allocator.get();
    let role = allocator.map(|allocator| allocator.role());
    let is = |name| match &role {
        None | Some(Role::Searching(_)) => name == "searching",
        Some(Role::Leading(_)) => name == "leading",
        Some(Role::Following { .. }) => name == "following",
        Some(Role::Stopped(_)) => name == "stopped",
    };
    to.gauges(
        "role",
        "1 for the part that the node has in its cluster, else 0.",
        "role",
        ["searching", "leading", "following", "stopped"].map(|name| (name, usize::from(is(name)))),
    )?;
    let leads = matches!(&role, Some(Role::Leading(leader)) if leader.leads());
    to.gauge("leads", "1 while the node leads and may respond as the leader.", usize::from(leads))?;
    let none = Arc::default();
    let counts = allocator.map_or(&none, |allocator| allocator.metrics()).counts();
    to.counter("leaderships_acquired", "Leaderships that this node was given.", counts.acquired)?;
    to.counters(
        "leadership_renewals",
        "Attempts to renew the leadership. A store for one process needs none.",
        "outcome",
        [("ok", counts.renewals), ("failed", counts.renewals_failed)],
    )?;
    to.histogram(
        "leadership_left_at_renewal",
        "What was left of the leadership when it was renewed.",
        Some(&Unit::Seconds),
        &counts.left,
    )
}

fn store(node: &NodeMetrics, to: &mut Writer<'_>) -> fmt::Result {
    let calls = StoreCall::ALL.map(|call| (call.name(), node.store.counts(call)));
    to.times(
        "store_call",
        "How long calls of the store took, also those that failed.",
        "call",
        calls.iter().map(|(name, counts)| (*name, counts.times.clone())),
    )?;
    let failed = calls.iter().flat_map(|(name, counts)| {
        let failed: u64 = counts.failed.iter().map(|(_, count)| count).sum();
        // Every call has a series, so that a rate is known from the first failure on.
        let any = (failed == 0).then_some(([*name, ErrorKind::Unavailable.name()], 0));
        let kinds = by_kind(&counts.failed).filter(|(_, count)| *count > 0);
        kinds.map(|(kind, count)| ([*name, kind], count)).chain(any)
    });
    to.counters_by_two(
        "store_errors",
        "Calls of the store that failed, by the kind of the error.",
        ["call", "reason"],
        failed,
    )?;
    to.counter(
        "store_changes",
        "Changes that were written to the store.",
        node.store.ops_written(),
    )?;
    let allocator = node.allocator.get();
    let (queued, queued_max) = allocator.map_or((0, 0), |allocator| allocator.queued_changes());
    to.gauge(
        "store_changes_queued",
        "Changes that wait for the store at the leader; 0 at any other node.",
        queued,
    )?;
    to.gauge("store_changes_queued_limit", "The most changes that may wait.", queued_max)
}

fn rpc(node: &NodeMetrics, to: &mut Writer<'_>) -> fmt::Result {
    let none = RpcMetrics::default();
    let methods: Vec<_> = node.rpc.get().map_or(&none, |rpc| rpc).counts().collect();
    to.counters_by_two(
        "rpc_calls",
        "gRPC calls that were responded to. A session stream is one call.",
        ["method", "code"],
        codes(&methods),
    )?;
    to.times(
        "rpc",
        "How long gRPC calls took until their response began.",
        "method",
        methods.iter().map(|method| (method.method, method.times.clone())),
    )?;
    let calls = node.peer_rpc.get().map_or(&none, |rpc| rpc).counts();
    let methods: Vec<_> = calls.filter(|counts| is_of_peers(counts.method)).collect();
    to.counters_by_two(
        "peer_rpc_calls",
        "gRPC calls of other nodes that were responded to.",
        ["method", "code"],
        codes(&methods),
    )?;
    to.times(
        "peer_rpc",
        "How long gRPC calls of other nodes took until their response began.",
        "method",
        methods.iter().map(|method| (method.method, method.times.clone())),
    )
}

/// True for the methods that the port for other nodes serves.
fn is_of_peers(method: &str) -> bool {
    ["Peer/", "Allocator/"].iter().any(|service| {
        method.strip_prefix("lockservice.v1.").is_some_and(|call| call.starts_with(service))
    }) || method == OTHER
}

fn codes(methods: &[MethodCounts]) -> impl Iterator<Item = ([&'static str; 2], u64)> {
    methods.iter().flat_map(|method| {
        method.codes.iter().map(|(code, count)| ([method.method, *code], *count))
    })
}

fn by_kind(counts: &[(ErrorKind, u64)]) -> impl Iterator<Item = (&'static str, u64)> {
    counts.iter().map(|(kind, count)| (kind.name(), *count))
}

const fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Shared => "shared",
        LockMode::Update => "update",
        LockMode::Exclusive => "exclusive",
    }
}
