//! Between the wire and the core: parsed once, here, into types that cannot be invalid; and back without loss.

mod error;

use std::ops;
use std::time::Duration;

use lockservice_core::allocator::{self, BindStatus, PresentedBind};
use lockservice_core::service::{Granted, LockSpec, LockStatus, TxnOp, TxnOptions, WaitStatus};
use lockservice_core::table::{Grant, WaitPolicy};
use lockservice_core::{
    BindVersion, Error, ErrorKind, FencingToken, GroupName, Key, KeyRange, LockItem, LockMode, Result, ServiceId, TableId,
    TableName, TableRef, TxnId,
};

use crate::proto;

pub(crate) use self::error::{error_from_proto, error_from_status, error_to_proto, status};

pub(crate) fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

/// Milliseconds, rounded down: a promise must never grow on the wire.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds, rounded up: a wait must never become "no wait".
pub(crate) fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

pub(crate) fn table_ref(group: &str, table: &str) -> Result<TableRef> {
    let group = if group.is_empty() { GroupName::default() } else { GroupName::new(group)? };
    Ok(TableRef { group, name: TableName::new(table)? })
}

pub(crate) fn optional_table(group: &str, table: &str) -> Result<Option<TableRef>> {
    if table.is_empty() { Ok(None) } else { table_ref(group, table).map(Some) }
}

pub(crate) fn txn_id(text: &str) -> Result<TxnId> {
    text.parse()
}

fn bound_from(bound: Option<&proto::Bound>) -> Result<ops::Bound<Key>> {
    use proto::bound::Bound as Wire;
    match bound.and_then(|bound| bound.bound.as_ref()) {
        Some(Wire::Included(key)) => Ok(ops::Bound::Included(Key::new(key)?)),
        Some(Wire::Excluded(key)) => Ok(ops::Bound::Excluded(Key::new(key)?)),
        Some(Wire::Unbounded(_)) => Ok(ops::Bound::Unbounded),
        // A forgotten bound must not lock a whole table by accident.
        None => Err(invalid("a range lacks a bound: say included, excluded or unbounded at both ends")),
    }
}

fn bound_to(bound: ops::Bound<&Key>) -> Option<proto::Bound> {
    use proto::bound::Bound as Wire;
    let bytes = |key: &Key| key.as_bytes().to_vec().into();
    Some(proto::Bound {
        bound: Some(match bound {
            ops::Bound::Included(key) => Wire::Included(bytes(key)),
            ops::Bound::Excluded(key) => Wire::Excluded(bytes(key)),
            ops::Bound::Unbounded => Wire::Unbounded(proto::Unbounded {}),
        }),
    })
}

pub(crate) fn range_from(range: &proto::KeyRange) -> Result<KeyRange> {
    KeyRange::new(bound_from(range.start.as_ref())?, bound_from(range.end.as_ref())?)
}

pub(crate) fn range_to(range: &KeyRange) -> proto::KeyRange {
    proto::KeyRange { start: bound_to(range.start()), end: bound_to(range.end()) }
}

pub(crate) fn items_from<B: AsRef<[u8]>>(rows: &[B], ranges: &[proto::KeyRange]) -> Result<Vec<LockItem>> {
    let rows = rows.iter().map(|row| Key::new(row).map(LockItem::Row));
    let ranges = ranges.iter().map(|range| range_from(range).map(LockItem::Range));
    rows.chain(ranges).collect()
}

/// Rows and ranges, as a message has them.
pub(crate) fn items_to(items: &[LockItem]) -> (Vec<prost::bytes::Bytes>, Vec<proto::KeyRange>) {
    let mut rows = Vec::new();
    let mut ranges = Vec::new();
    for item in items {
        match item {
            LockItem::Row(key) => rows.push(key.as_bytes().to_vec().into()),
            LockItem::Range(range) => ranges.push(range_to(range)),
        }
    }
    (rows, ranges)
}

pub(crate) fn mode_from(mode: i32) -> Result<LockMode> {
    match proto::LockMode::try_from(mode) {
        Ok(proto::LockMode::Unspecified | proto::LockMode::Exclusive) => Ok(LockMode::Exclusive),
        Ok(proto::LockMode::Shared) => Ok(LockMode::Shared),
        Err(_) => Err(invalid("the lock mode is not known to this version: use EXCLUSIVE or SHARED")),
    }
}

pub(crate) fn mode_to(mode: LockMode) -> i32 {
    match mode {
        LockMode::Exclusive => proto::LockMode::Exclusive as i32,
        LockMode::Shared => proto::LockMode::Shared as i32,
    }
}

fn wait_from(wait: i32) -> Result<WaitPolicy> {
    match proto::WaitPolicy::try_from(wait) {
        Ok(proto::WaitPolicy::Unspecified | proto::WaitPolicy::Wait) => Ok(WaitPolicy::Wait),
        Ok(proto::WaitPolicy::NoWait) => Ok(WaitPolicy::NoWait),
        Err(_) => Err(invalid("the wait policy is not known to this version: use WAIT or NO_WAIT")),
    }
}

fn wait_to(wait: WaitPolicy) -> i32 {
    match wait {
        WaitPolicy::NoWait => proto::WaitPolicy::NoWait as i32,
        _ => proto::WaitPolicy::Wait as i32,
    }
}

pub(crate) fn txn_op_from(txn: Option<proto::TxnRef>) -> Result<TxnOp> {
    let txn = txn.ok_or_else(|| invalid("the operation lacks its transaction"))?;
    Ok(TxnOp {
        number: txn.number,
        sequence: txn.sequence,
        acked: txn.acked,
        options: TxnOptions { validates: txn.validates, label: txn.label },
    })
}

pub(crate) fn txn_op_to(op: &TxnOp) -> Option<proto::TxnRef> {
    Some(proto::TxnRef {
        number: op.number,
        sequence: op.sequence,
        acked: op.acked,
        validates: op.options.validates,
        label: op.options.label.clone(),
    })
}

pub(crate) fn lock_from(lock: &proto::LockOp) -> Result<LockSpec> {
    Ok(LockSpec {
        table: table_ref(&lock.group, &lock.table)?,
        items: items_from(&lock.rows, &lock.ranges)?,
        mode: mode_from(lock.mode)?,
        wait: wait_from(lock.wait)?,
        timeout: (lock.timeout_ms > 0).then(|| Duration::from_millis(lock.timeout_ms)),
    })
}

pub(crate) fn lock_to(op: &TxnOp, spec: &LockSpec) -> proto::LockOp {
    let (rows, ranges) = items_to(&spec.items);
    proto::LockOp {
        txn: txn_op_to(op),
        group: spec.table.group.as_str().to_owned(),
        table: spec.table.name.as_str().to_owned(),
        rows,
        ranges,
        mode: mode_to(spec.mode),
        wait: wait_to(spec.wait),
        timeout_ms: spec.timeout.map_or(0, |timeout| millis_up(timeout).max(1)),
    }
}

pub(crate) fn bind_to(bind: &allocator::Bind) -> proto::Bind {
    proto::Bind {
        group: bind.table.group.as_str().to_owned(),
        table: bind.table.name.as_str().to_owned(),
        table_id: bind.id.get(),
        partition: bind.partition,
        owner: bind.owner.get(),
        version: bind.version.get(),
    }
}

pub(crate) fn bind_from(bind: &proto::Bind) -> Result<allocator::Bind> {
    Ok(allocator::Bind {
        table: table_ref(&bind.group, &bind.table)?,
        id: TableId::new(bind.table_id),
        partition: bind.partition,
        owner: ServiceId::new(bind.owner),
        version: BindVersion::new(bind.version),
    })
}

pub(crate) fn presented_from(bind: &proto::Bind) -> Result<PresentedBind> {
    bind_from(bind).map(|bind| PresentedBind::from(&bind))
}

pub(crate) fn presented_to(bind: &PresentedBind) -> proto::Bind {
    proto::Bind {
        group: bind.table.group.as_str().to_owned(),
        table: bind.table.name.as_str().to_owned(),
        table_id: 0,
        partition: bind.partition,
        owner: bind.owner.get(),
        version: bind.version.get(),
    }
}

pub(crate) fn locked_to(granted: &Granted) -> proto::Locked {
    let grant = &granted.grant;
    let mut locked = proto::Locked {
        txn: granted.txn.to_string(),
        bind: Some(bind_to(&grant.bind)),
        token: grant.token.get(),
        newly_locked: grant.newly_locked,
        waited: grant.waited.is_some(),
        waited_ms: grant.waited.map_or(0, millis),
        prev_commit_timestamp: grant.prev_commit_ts,
        table_commit_timestamp: grant.table_commit_ts,
        history_unknown: grant.history_unknown,
        promise: Some(proto::Promise { guard_ms: millis(granted.promise.guard) }),
        ..Default::default()
    };
    if let Some((txn, item)) = &grant.conflict {
        locked.conflict_txn = txn.to_string();
        match item {
            LockItem::Row(key) => locked.conflict_row = key.as_bytes().to_vec().into(),
            LockItem::Range(range) => locked.conflict_range = Some(range_to(range)),
        }
    }
    locked
}

/// The caller's side of a grant. What exactly was changed stays with the server: an undo names the operation.
pub(crate) fn locked_from(locked: &proto::Locked) -> Result<(TxnId, Grant, Duration)> {
    let bind = locked.bind.as_ref().ok_or_else(|| malformed("the answer lacks the bind"))?;
    let conflict = if locked.conflict_txn.is_empty() {
        None
    } else {
        let item = match &locked.conflict_range {
            Some(range) => LockItem::Range(range_from(range)?),
            None => LockItem::Row(Key::new(&locked.conflict_row)?),
        };
        Some((txn_id(&locked.conflict_txn)?, item))
    };
    let grant = Grant {
        bind: bind_from(bind)?,
        token: FencingToken::new(locked.token),
        newly_locked: locked.newly_locked,
        waited: locked.waited.then(|| Duration::from_millis(locked.waited_ms)),
        conflict,
        prev_commit_ts: locked.prev_commit_timestamp,
        table_commit_ts: locked.table_commit_timestamp,
        history_unknown: locked.history_unknown,
        changes: Vec::new(),
        tokens_left: 0,
    };
    let guard = locked.promise.as_ref().map_or(0, |promise| promise.guard_ms);
    Ok((txn_id(&locked.txn)?, grant, Duration::from_millis(guard)))
}

/// An answer that this version cannot read.
pub(crate) fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("the server's answer cannot be read ({what}): is it a newer version?"))
}

pub(crate) fn lock_info_to(lock: &LockStatus) -> proto::LockInfo {
    use proto::lock_info::Item;
    proto::LockInfo {
        group: lock.info.table.group.as_str().to_owned(),
        table: lock.info.table.name.as_str().to_owned(),
        item: Some(match &lock.info.item {
            LockItem::Row(key) => Item::Row(key.as_bytes().to_vec().into()),
            LockItem::Range(range) => Item::Range(range_to(range)),
        }),
        mode: mode_to(lock.info.mode),
        txn: lock.info.txn.to_string(),
        label: lock.label.clone(),
        client: lock.client.clone(),
        token: lock.info.token.get(),
        waiters: u32::try_from(lock.info.waiters).unwrap_or(u32::MAX),
    }
}

pub(crate) fn wait_info_to(wait: &WaitStatus) -> proto::WaitInfo {
    use proto::wait_info::Item;
    proto::WaitInfo {
        group: wait.info.table.group.as_str().to_owned(),
        table: wait.info.table.name.as_str().to_owned(),
        item: Some(match &wait.info.item {
            LockItem::Row(key) => Item::Row(key.as_bytes().to_vec().into()),
            LockItem::Range(range) => Item::Range(range_to(range)),
        }),
        mode: mode_to(wait.info.mode),
        waiter: wait.info.waiter.to_string(),
        waiter_label: wait.waiter_label.clone(),
        waiter_client: wait.waiter_client.clone(),
        holder: wait.info.holder.to_string(),
        holder_label: wait.holder_label.clone(),
        holder_client: wait.holder_client.clone(),
        granted: wait.info.granted,
        waiting_ms: millis(wait.waiting),
    }
}

pub(crate) fn bind_info_to(status: &BindStatus) -> proto::BindInfo {
    let granted_anew_in = match status.state {
        allocator::BindState::Void { granted_anew_in } => granted_anew_in,
        allocator::BindState::Bound => Duration::ZERO,
    };
    proto::BindInfo {
        bind: Some(bind_to(&status.bind)),
        node: status.node.as_str().to_owned(),
        address: status.address.clone(),
        state: status.state.name().to_owned(),
        granted_anew_in_ms: millis_up(granted_anew_in),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).expect("a key")
    }

    #[test]
    fn a_request_survives_the_wire() {
        let spec = LockSpec {
            table: TableRef::new("g", "t").expect("names"),
            items: vec![
                LockItem::Row(key("r")),
                LockItem::Range(KeyRange::new(ops::Bound::Excluded(key("a")), ops::Bound::Unbounded).expect("a range")),
            ],
            mode: LockMode::Shared,
            wait: WaitPolicy::NoWait,
            timeout: Some(Duration::from_micros(1)),
        };
        let back = lock_from(&lock_to(&TxnOp::default(), &spec)).expect("own encoding");
        assert_eq!(back.items, spec.items);
        assert_eq!((back.mode, back.wait), (spec.mode, spec.wait));
        assert_eq!(back.timeout, Some(Duration::from_millis(1)), "a wait is rounded up, never to none");
    }

    #[test]
    fn bad_input_is_an_error_that_says_what_to_do() {
        let good = proto::LockOp { table: "t".into(), rows: vec!["k".into()], ..Default::default() };
        lock_from(&good).expect("good");
        let upside_down = proto::KeyRange {
            start: bound_to(ops::Bound::Included(&key("b"))),
            end: bound_to(ops::Bound::Included(&key("a"))),
        };
        let bad = [
            proto::LockOp { table: String::new(), ..good.clone() },
            proto::LockOp { table: "a\nb".into(), ..good.clone() },
            proto::LockOp { rows: vec![vec![].into()], ..good.clone() },
            proto::LockOp { rows: vec![vec![0; 4097].into()], ..good.clone() },
            proto::LockOp { ranges: vec![upside_down], ..good.clone() },
            proto::LockOp { ranges: vec![proto::KeyRange::default()], ..good.clone() },
            proto::LockOp { mode: 77, ..good.clone() },
            proto::LockOp { wait: -1, ..good },
        ];
        for op in bad {
            assert_eq!(lock_from(&op).expect_err("bad").kind(), ErrorKind::InvalidArgument, "{op:?}");
        }
    }
}
