//! The lists for operators: held locks, waits, binds.

use std::time::Duration;

use lockservice_core::allocator::{BindState, BindStatus};
use lockservice_core::clock::Time;
use lockservice_core::service::{LockStatus, OpenedBy, TxnParty, WaitStatus};
use lockservice_core::table::{LockInfo, WaitInfo};
use lockservice_core::{Error, ErrorKind, FencingToken, LockItem, NodeName, Result};
use prost::bytes::Bytes;

use super::item::bytes;
use super::{
    bind_from_proto, bind_to_proto, item_from_range, item_from_row, millis_down, millis_up,
    mode_from_proto, mode_to_proto, range_to_proto, table_from_proto, txn_from_proto,
};
use crate::proto;

/// A held lock as a message.
pub fn lock_status_to_proto(status: &LockStatus) -> proto::LockInfo {
    use proto::lock_info::Item;
    let info = &status.info;
    proto::LockInfo {
        group: info.table.group.to_string(),
        table: info.table.name.to_string(),
        item: Some(item_to_proto(&info.item, Item::Row, Item::Range)),
        mode: mode_to_proto(info.mode),
        txn: info.txn.to_string(),
        party: Some(party_to_proto(&status.party)),
        token: info.token.get(),
        waiters: u32::try_from(info.waiters).unwrap_or(u32::MAX),
        pending: info.pending,
        waiting_ms: status.waiting.map(millis_down),
        cut: false,
    }
}

/// The held lock in a message, received at `now` of the receiver's clock.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn lock_status_from_proto(info: proto::LockInfo, now: Time) -> Result<LockStatus> {
    use proto::lock_info::Item;
    let waiting = info.waiting_ms.map(Duration::from_millis);
    Ok(LockStatus {
        info: LockInfo {
            table: table_from_proto(&info.group, &info.table)?,
            item: match info.item {
                Some(Item::Row(row)) => item_from_row(&row)?,
                Some(Item::Range(range)) => item_from_range(&range)?,
                None => return Err(no_item()),
            },
            mode: mode_from_proto(info.mode)?,
            txn: txn_from_proto(&info.txn)?,
            token: FencingToken::new(info.token),
            pending: info.pending,
            waiters: usize::try_from(info.waiters).unwrap_or(usize::MAX),
            waiting_since: waiting.map(|waiting| before(now, waiting)),
        },
        party: party_from_proto(info.party)?,
        waiting,
    })
}

/// A wait as a message.
pub fn wait_status_to_proto(status: &WaitStatus) -> proto::WaitInfo {
    use proto::wait_info::{HeldItem, Item};
    let info = &status.info;
    proto::WaitInfo {
        group: info.table.group.to_string(),
        table: info.table.name.to_string(),
        item: Some(item_to_proto(&info.item, Item::Row, Item::Range)),
        mode: mode_to_proto(info.mode),
        waiter: info.waiter.to_string(),
        waiter_party: Some(party_to_proto(&status.waiter)),
        holder: info.holder.to_string(),
        holder_party: Some(party_to_proto(&status.holder)),
        granted: info.granted,
        waiting_ms: millis_down(status.waiting),
        held_item: Some(item_to_proto(&info.held_item, HeldItem::HeldRow, HeldItem::HeldRange)),
        cut: false,
    }
}

/// The wait in a message, received at `now` of the receiver's clock.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn wait_status_from_proto(info: proto::WaitInfo, now: Time) -> Result<WaitStatus> {
    use proto::wait_info::{HeldItem, Item};
    let waiting = Duration::from_millis(info.waiting_ms);
    Ok(WaitStatus {
        info: WaitInfo {
            table: table_from_proto(&info.group, &info.table)?,
            item: match info.item {
                Some(Item::Row(row)) => item_from_row(&row)?,
                Some(Item::Range(range)) => item_from_range(&range)?,
                None => return Err(no_item()),
            },
            mode: mode_from_proto(info.mode)?,
            waiter: txn_from_proto(&info.waiter)?,
            holder: txn_from_proto(&info.holder)?,
            held_item: match info.held_item {
                Some(HeldItem::HeldRow(row)) => item_from_row(&row)?,
                Some(HeldItem::HeldRange(range)) => item_from_range(&range)?,
                None => return Err(no_item()),
            },
            granted: info.granted,
            since: before(now, waiting),
        },
        waiting,
        waiter: party_from_proto(info.waiter_party)?,
        holder: party_from_proto(info.holder_party)?,
    })
}

fn before(now: Time, waiting: Duration) -> Time {
    Time::from_origin(now.since_origin().saturating_sub(waiting))
}

fn party_to_proto(party: &TxnParty) -> proto::TxnParty {
    proto::TxnParty {
        label: party.label.clone(),
        client: party.client.clone(),
        session: party.session.map(|session| session.to_string()).unwrap_or_default(),
        identity: party.opened_by.identity.clone(),
        address: party.opened_by.address.clone(),
        left_ms: party.left.map(millis_up),
        held_ms: party.held.map(millis_down),
        still_running: party.still_running.clone(),
    }
}

fn party_from_proto(party: Option<proto::TxnParty>) -> Result<TxnParty> {
    let party = party.unwrap_or_default();
    let session = (!party.session.is_empty()).then(|| party.session.parse()).transpose()?;
    Ok(TxnParty {
        label: party.label,
        client: party.client,
        session,
        opened_by: OpenedBy { identity: party.identity, address: party.address },
        left: party.left_ms.map(Duration::from_millis),
        held: party.held_ms.map(Duration::from_millis),
        still_running: party.still_running,
    })
}

/// A bind and its state as a message.
pub fn bind_status_to_proto(status: &BindStatus) -> proto::BindInfo {
    proto::BindInfo {
        bind: Some(bind_to_proto(&status.bind)),
        node: status.node.to_string(),
        address: status.address.clone(),
        state: status.state.name().to_owned(),
        reassigned_in_ms: match status.state {
            BindState::Invalid { reassigned_in } => millis_up(reassigned_in),
            BindState::Bound => 0,
        },
        cut: false,
    }
}

/// The bind and state in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn bind_status_from_proto(info: proto::BindInfo) -> Result<BindStatus> {
    let state = match info.state.as_str() {
        "bound" => BindState::Bound,
        "invalid" | "waiting" => {
            BindState::Invalid { reassigned_in: Duration::from_millis(info.reassigned_in_ms) }
        }
        other => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a bind is in a state that this version does not know",
            )
            .with("state", other));
        }
    };
    let bind = info.bind.ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, "a bind's state comes without the bind")
    })?;
    Ok(BindStatus {
        bind: bind_from_proto(bind)?,
        node: NodeName::new(&info.node)?,
        address: info.address,
        state,
    })
}

/// The item as the field of a message that is either a row or a range.
pub(super) fn item_to_proto<T>(
    item: &LockItem,
    row: fn(Bytes) -> T,
    range: fn(proto::KeyRange) -> T,
) -> T {
    match item {
        LockItem::Row(key) => row(bytes(key)),
        LockItem::Range(keys) => range(range_to_proto(keys)),
    }
}

fn no_item() -> Error {
    Error::new(ErrorKind::InvalidArgument, "a lock or wait names neither a row nor a range")
}

#[cfg(test)]
mod tests {
    use lockservice_core::allocator::{Bind, BindSlot};
    use lockservice_core::{
        BindVersion, Key, KeyRange, LockMode, ServiceId, TableId, TableRef, TxnId, TxnNumber,
    };

    use super::*;

    fn txn(number: u64) -> TxnId {
        TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(number), false)
    }

    fn party(name: &str) -> TxnParty {
        TxnParty {
            label: format!("label of {name}"),
            client: format!("{name}@host:7"),
            session: Some("s100000001-7".parse().expect("a handle")),
            opened_by: OpenedBy { identity: name.to_owned(), address: "[::1]:5".to_owned() },
            left: Some(Duration::from_secs(3)),
            held: Some(Duration::from_secs(4)),
            still_running: "7 (sleep)".to_owned(),
        }
    }

    #[test]
    fn locks_and_waits_cross_the_wire() {
        let table = TableRef::new("g", "t").expect("a name");
        let now = Time::from_origin(Duration::from_secs(6));
        let items = [
            LockItem::Row(Key::new("k").expect("a key")),
            LockItem::Range(KeyRange::whole_table()),
        ];
        for item in items {
            for waiting in [None, Some(Duration::from_secs(2))] {
                let lock = LockStatus {
                    info: LockInfo {
                        table: table.clone(),
                        item: item.clone(),
                        mode: LockMode::Shared,
                        txn: txn(1),
                        token: FencingToken::new(4),
                        pending: matches!(item, LockItem::Row(_)),
                        waiters: 2,
                        waiting_since: waiting.map(|_| Time::from_origin(Duration::from_secs(4))),
                    },
                    party: if waiting.is_some() { party("a") } else { TxnParty::default() },
                    waiting,
                };
                let read = lock_status_from_proto(lock_status_to_proto(&lock), now);
                assert_eq!(read.expect("own message"), lock);
            }
            let wait = WaitStatus {
                info: WaitInfo {
                    table: table.clone(),
                    item: item.clone(),
                    mode: LockMode::Exclusive,
                    waiter: txn(2),
                    holder: txn(1),
                    held_item: item,
                    granted: true,
                    since: Time::from_origin(Duration::from_secs(5)),
                },
                waiting: Duration::from_secs(1),
                waiter: party("a"),
                holder: party("b"),
            };
            assert_eq!(
                wait_status_from_proto(wait_status_to_proto(&wait), now).expect("own message"),
                wait
            );
        }
    }

    #[test]
    fn binds_cross_the_wire() {
        let table = TableRef::new("g", "t").expect("a name");
        let waits = Duration::from_millis(9);
        for state in [
            BindState::Bound,
            BindState::Invalid { reassigned_in: waits },
            BindState::Invalid { reassigned_in: Duration::ZERO },
        ] {
            let bind = BindStatus {
                bind: Bind {
                    table: table.clone(),
                    id: TableId::new(3),
                    partition: 0,
                    owner: ServiceId::new(4),
                    version: BindVersion::new(5),
                    slot: BindSlot::NONE,
                },
                node: NodeName::new("n").expect("a name"),
                address: "a:1".to_owned(),
                state,
            };
            assert_eq!(
                bind_status_from_proto(bind_status_to_proto(&bind)).expect("own message"),
                bind
            );
        }
    }
}
