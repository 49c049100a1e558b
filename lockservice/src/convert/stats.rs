//! The numbers of a node.

use std::time::Duration;

use lockservice_core::metrics::ServiceGauges;
use lockservice_core::service::{LongWait, ServiceStats, Totals, WaitsFor};
use lockservice_core::{Error, ErrorKind, NodeName, Result, ServiceId};

use super::hot::micros;
use super::status::item_to_proto;
use super::waiting::{waits_for_from_proto, waits_for_to_proto};
use super::{
    hot_key_from_proto, hot_key_to_proto, item_from_range, item_from_row, millis_down,
    mode_from_proto, mode_to_proto, session_status_from_proto, session_status_to_proto,
    table_from_proto, txn_from_proto,
};
use crate::proto;
use crate::proto::long_wait::WaitsFor as OfLongWait;
use crate::proto::waiting::WaitsFor as OfWaiting;

/// The numbers of a node as a message.
pub fn service_stats_to_proto(stats: &ServiceStats) -> proto::NodeStats {
    let gauges = &stats.gauges;
    proto::NodeStats {
        node: stats.node.to_string(),
        service: stats.service.get(),
        serves: gauges.serves,
        lease_left_ms: millis_down(gauges.lease_left),
        tables: gauges.tables as u64,
        held: gauges.held as u64,
        waiting: gauges.waiting as u64,
        waiting_max: gauges.waiting_max as u64,
        lock_bytes: gauges.lock_bytes as u64,
        lock_bytes_max: gauges.lock_bytes_max as u64,
        sessions: gauges.sessions as u64,
        sessions_max: gauges.sessions_max as u64,
        txns: gauges.txns as u64,
        txns_max: gauges.txns_max as u64,
        kept_bytes: gauges.kept_bytes as u64,
        totals: Some(totals_to_proto(&stats.totals)),
        hot: stats.hot.iter().map(hot_key_to_proto).collect(),
        longest_waits: stats.longest_waits.iter().map(long_wait_to_proto).collect(),
        nearest_to_loss: stats.nearest_to_loss.iter().map(session_status_to_proto).collect(),
    }
}

/// The numbers of a node in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn service_stats_from_proto(stats: proto::NodeStats) -> Result<ServiceStats> {
    let mut gauges = ServiceGauges::default();
    gauges.serves = stats.serves;
    gauges.lease_left = Duration::from_millis(stats.lease_left_ms);
    gauges.tables = count(stats.tables);
    gauges.held = count(stats.held);
    gauges.waiting = count(stats.waiting);
    gauges.waiting_max = count(stats.waiting_max);
    gauges.lock_bytes = count(stats.lock_bytes);
    gauges.lock_bytes_max = count(stats.lock_bytes_max);
    gauges.sessions = count(stats.sessions);
    gauges.sessions_max = count(stats.sessions_max);
    gauges.txns = count(stats.txns);
    gauges.txns_max = count(stats.txns_max);
    gauges.kept_bytes = count(stats.kept_bytes);
    Ok(ServiceStats {
        node: NodeName::new(&stats.node)?,
        service: ServiceId::new(stats.service),
        gauges,
        totals: totals_from_proto(&stats.totals.unwrap_or_default()),
        hot: stats.hot.into_iter().map(hot_key_from_proto).collect::<Result<_>>()?,
        longest_waits: stats
            .longest_waits
            .into_iter()
            .map(long_wait_from_proto)
            .collect::<Result<_>>()?,
        nearest_to_loss: stats
            .nearest_to_loss
            .into_iter()
            .map(session_status_from_proto)
            .collect::<Result<_>>()?,
    })
}

fn totals_to_proto(totals: &Totals) -> proto::NodeTotals {
    proto::NodeTotals {
        granted: totals.granted,
        refused: totals.refused,
        waits: totals.waits,
        waited_us: micros(totals.waited),
        deadlocks: totals.deadlocks,
        sessions_opened: totals.sessions_opened,
        sessions_lost: totals.sessions_lost,
        leases_lost: totals.leases_lost,
    }
}

fn totals_from_proto(totals: &proto::NodeTotals) -> Totals {
    Totals {
        granted: totals.granted,
        refused: totals.refused,
        waits: totals.waits,
        waited: Duration::from_micros(totals.waited_us),
        deadlocks: totals.deadlocks,
        sessions_opened: totals.sessions_opened,
        sessions_lost: totals.sessions_lost,
        leases_lost: totals.leases_lost,
    }
}

fn long_wait_to_proto(wait: &LongWait) -> proto::LongWait {
    use proto::long_wait::Item;
    proto::LongWait {
        group: wait.table.group.to_string(),
        table: wait.table.name.to_string(),
        item: Some(item_to_proto(&wait.item, Item::Row, Item::Range)),
        mode: mode_to_proto(wait.mode),
        txn: wait.txn.to_string(),
        label: wait.label.clone(),
        client: wait.client.clone(),
        session: wait.session.map(|session| session.to_string()).unwrap_or_default(),
        waiting_ms: millis_down(wait.waiting),
        waits_for: wait.waits_for.as_ref().and_then(obstacle_to_proto),
    }
}

fn long_wait_from_proto(wait: proto::LongWait) -> Result<LongWait> {
    use proto::long_wait::Item;
    Ok(LongWait {
        table: table_from_proto(&wait.group, &wait.table)?,
        item: match wait.item {
            Some(Item::Row(row)) => item_from_row(&row)?,
            Some(Item::Range(range)) => item_from_range(&range)?,
            None => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "a wait names neither a row nor a range",
                ));
            }
        },
        mode: mode_from_proto(wait.mode)?,
        txn: txn_from_proto(&wait.txn)?,
        label: wait.label,
        client: wait.client,
        session: (!wait.session.is_empty()).then(|| wait.session.parse()).transpose()?,
        waiting: Duration::from_millis(wait.waiting_ms),
        waits_for: wait.waits_for.map(obstacle_from_proto).transpose()?,
    })
}

fn obstacle_to_proto(waits_for: &WaitsFor) -> Option<OfLongWait> {
    Some(match waits_for_to_proto(waits_for)? {
        OfWaiting::Blocker(blocker) => OfLongWait::Blocker(blocker),
        OfWaiting::Table(table) => OfLongWait::Unbound(table),
        OfWaiting::Token(token) => OfLongWait::Token(token),
    })
}

fn obstacle_from_proto(waits_for: OfLongWait) -> Result<WaitsFor> {
    waits_for_from_proto(match waits_for {
        OfLongWait::Blocker(blocker) => OfWaiting::Blocker(blocker),
        OfLongWait::Unbound(table) => OfWaiting::Table(table),
        OfLongWait::Token(token) => OfWaiting::Token(token),
    })
}

fn count(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use lockservice_core::service::{OpenedBy, SessionStatus};
    use lockservice_core::{
        Blocker, Key, KeyRange, LockItem, LockMode, SessionHandle, SessionNumber, TableRef, TxnId,
        TxnNumber,
    };

    use super::super::hot::tests::example;
    use super::*;

    fn gauges() -> ServiceGauges {
        let mut gauges = ServiceGauges::default();
        (gauges.serves, gauges.lease_left) = (true, Duration::from_millis(1));
        (gauges.tables, gauges.held) = (2, 3);
        (gauges.waiting, gauges.waiting_max) = (4, 5);
        (gauges.lock_bytes, gauges.lock_bytes_max) = (6, 7);
        (gauges.sessions, gauges.sessions_max) = (8, 9);
        (gauges.txns, gauges.txns_max, gauges.kept_bytes) = (10, 11, 12);
        gauges
    }

    fn totals() -> Totals {
        Totals {
            granted: 21,
            refused: 22,
            waits: 23,
            waited: Duration::from_micros(24),
            deadlocks: 25,
            sessions_opened: 26,
            sessions_lost: 27,
            leases_lost: 28,
        }
    }

    #[test]
    fn the_numbers_of_a_node_cross_the_wire_with_everything_that_a_call_can_wait_for() {
        let service = ServiceId::new(1 << 32 | 1);
        let handle = SessionHandle { service, number: SessionNumber::new(7) };
        let row = LockItem::Row(Key::new("k").expect("a key"));
        let txn = |number| TxnId::new(service, TxnNumber::new(number), false);
        let blocker = Blocker {
            txn: txn(2),
            item: LockItem::Range(KeyRange::whole_table()),
            mode: LockMode::Shared,
            granted: true,
            label: "hl".to_owned(),
            client: "hc".to_owned(),
        };
        let node = NodeName::new("n").expect("a name");
        let wait = |session, waits_for| LongWait {
            table: TableRef::new("g", "t").expect("a name"),
            item: row.clone(),
            mode: LockMode::Update,
            txn: txn(1),
            label: "l".to_owned(),
            client: "c".to_owned(),
            session,
            waiting: Duration::from_millis(31),
            waits_for,
        };
        let session = SessionStatus {
            handle,
            client: "c".to_owned(),
            opened_by: OpenedBy { identity: "i".to_owned(), address: "[::1]:5".to_owned() },
            ttl: Duration::from_secs(10),
            left: Duration::from_millis(9_001),
            txns: 2,
            waiting: 1,
            ending: String::new(),
            still_running: String::new(),
        };
        let stats = ServiceStats {
            node: node.clone(),
            service,
            gauges: gauges(),
            totals: totals(),
            hot: vec![example(row.clone())],
            longest_waits: vec![
                wait(Some(handle), Some(WaitsFor::Txn(blocker))),
                wait(None, Some(WaitsFor::Table { last_owner: Some((service, node)) })),
                wait(None, Some(WaitsFor::Table { last_owner: None })),
                wait(None, Some(WaitsFor::Token)),
                wait(None, None),
            ],
            nearest_to_loss: vec![session],
        };
        let read = service_stats_from_proto(service_stats_to_proto(&stats));
        assert_eq!(read.expect("own message"), stats);
    }
}
