//! Lock requests, grants and binds.

use std::fmt::Write as _;
use std::time::Duration;

use lockservice_core::allocator::{Bind, BindSlot, PresentedBind};
use lockservice_core::service::{ANCESTORS_MAX, Granted, LockSpec, Promise, TraceContext};
use lockservice_core::table::{Commit, Grant, WaitPolicy};
use lockservice_core::{
    BindVersion, CommitTimestamp, Error, ErrorKind, FencingToken, Key, LockItem, Result, ServiceId,
    TableId, TableRef, TxnId,
};

use super::item::{bytes, set_items_to_proto};
use super::{
    KnownTables, item_from_range, item_from_row, items_from_proto, millis_down, millis_up,
    mode_from_proto, mode_to_proto, range_from_proto, range_to_proto, table_from_proto,
};
use crate::proto;

/// A lock request of a stream that has named `tables` before. Its `txn` is not looked at.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn lock_spec_from_proto(
    op: &proto::LockOp,
    items_max: usize,
    tables: &mut KnownTables,
) -> Result<LockSpec> {
    let wait = match proto::WaitPolicy::try_from(op.wait) {
        Ok(proto::WaitPolicy::Unspecified | proto::WaitPolicy::Wait) => WaitPolicy::Wait,
        Ok(proto::WaitPolicy::NoWait) => WaitPolicy::NoWait,
        Ok(proto::WaitPolicy::SkipLocked) => WaitPolicy::SkipLocked,
        Err(_) => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "this server does not know the wait policy",
            )
            .with("policy", op.wait));
        }
    };
    Ok(LockSpec {
        table: tables.table(&op.group, &op.table)?,
        items: items_from_proto(&op.rows, &op.ranges, items_max)?,
        mode: mode_from_proto(op.mode)?,
        wait,
        escalate: op.escalate,
        timeout: op.timeout_ms.map(Duration::from_millis),
        snapshot_age: op.snapshot_age_ms.map(Duration::from_millis),
        ancestors: ancestors_from_proto(&op.ancestors)?,
        waited: Duration::from_millis(op.waited_ms),
        trace: trace_from_proto(op),
    })
}

/// The trace of a request. One that is not sampled has no spans here, so it is none.
fn trace_from_proto(op: &proto::LockOp) -> Option<Box<TraceContext>> {
    if op.trace_parent.is_empty() {
        return None;
    }
    TraceContext::new(&op.trace_parent, &op.trace_state)
        .filter(TraceContext::is_sampled)
        .map(Box::new)
}

/// The transactions that wait for a call. Their number is checked first, for the client chooses it.
fn ancestors_from_proto(ancestors: &[String]) -> Result<Vec<TxnId>> {
    if ancestors.len() > ANCESTORS_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "too many ancestors of one call: nest calls less deeply",
        )
        .with("most", ANCESTORS_MAX));
    }
    ancestors.iter().map(|txn| txn_from_proto(txn)).collect()
}

/// The lock request as a message without its `txn`. Durations are rounded up to whole milliseconds.
/// The memory of `last` is used again.
pub fn lock_spec_to_proto(spec: &LockSpec, last: proto::LockOp) -> proto::LockOp {
    let again = |mut last: String, text: &str| {
        last.clear();
        last.push_str(text);
        last
    };
    let trace = |part: fn(&TraceContext) -> &str| spec.trace.as_deref().map_or("", part);
    let (mut rows, mut ranges) = (last.rows, last.ranges);
    set_items_to_proto(&spec.items, &mut rows, &mut ranges);
    let wait = match spec.wait {
        WaitPolicy::NoWait => proto::WaitPolicy::NoWait,
        WaitPolicy::SkipLocked => proto::WaitPolicy::SkipLocked,
        _ => proto::WaitPolicy::Wait,
    };
    proto::LockOp {
        txn: None,
        group: again(last.group, spec.table.group.as_str()),
        table: again(last.table, spec.table.name.as_str()),
        rows,
        ranges,
        mode: mode_to_proto(spec.mode),
        wait: wait.into(),
        escalate: spec.escalate,
        timeout_ms: spec.timeout.map(millis_up),
        snapshot_age_ms: spec.snapshot_age.map(millis_up),
        ancestors: spec.ancestors.iter().map(ToString::to_string).collect(),
        trace_parent: again(last.trace_parent, trace(TraceContext::parent)),
        trace_state: again(last.trace_state, trace(TraceContext::state)),
        waited_ms: millis_down(spec.waited),
    }
}

/// A commit as the fields of an unlock or an end: its timestamp, and its mark.
pub fn commit_to_proto(commit: Option<Commit>) -> (Option<u64>, bool) {
    let timestamp = commit.map(|commit| commit.timestamp.get());
    (timestamp, commit.is_some_and(|commit| commit.definition_changed))
}

/// The commit of an unlock or an end. The mark counts only with a timestamp.
pub fn commit_from_proto(timestamp: Option<u64>, definition_changed: bool) -> Option<Commit> {
    let timestamp = CommitTimestamp::new(timestamp?);
    Some(Commit { timestamp, definition_changed })
}

/// The response to a release.
pub fn done_to_proto(released: usize) -> proto::Done {
    proto::Done { released: released as u64 }
}

/// A bind as a message.
pub fn bind_to_proto(bind: &Bind) -> proto::Bind {
    proto::Bind {
        group: bind.table.group.to_string(),
        table: bind.table.name.to_string(),
        table_id: bind.id.get(),
        partition: bind.partition,
        owner: bind.owner.get(),
        version: bind.version.get(),
    }
}

/// The bind in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn bind_from_proto(bind: proto::Bind) -> Result<Bind> {
    let table = table_from_proto(&bind.group, &bind.table)?;
    Ok(bind_of(&bind, table))
}

fn bind_of(bind: &proto::Bind, table: TableRef) -> Bind {
    Bind {
        table,
        id: TableId::new(bind.table_id),
        partition: bind.partition,
        owner: ServiceId::new(bind.owner),
        version: BindVersion::new(bind.version),
        slot: BindSlot::NONE,
    }
}

/// A bind that a transaction presents at its commit, as a message: its numbers without its names.
pub fn presented_to_proto(bind: &PresentedBind) -> proto::Bind {
    proto::Bind {
        group: String::new(),
        table: String::new(),
        table_id: bind.table.get(),
        partition: bind.partition,
        owner: bind.owner.get(),
        version: bind.version.get(),
    }
}

/// The bind that a transaction presents at its commit, from a message. Its names do not count.
pub fn presented_from_proto(bind: &proto::Bind) -> PresentedBind {
    PresentedBind {
        table: TableId::new(bind.table_id),
        partition: bind.partition,
        owner: ServiceId::new(bind.owner),
        version: BindVersion::new(bind.version),
        slot: BindSlot::NONE,
    }
}

/// A transaction id.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn txn_from_proto(txn: &str) -> Result<TxnId> {
    txn.parse()
}

/// A grant as a message. The memory of `last` is used again: the names of a bind stay if it is the
/// bind of `last`.
pub fn granted_to_proto(granted: &Granted, last: proto::Locked) -> proto::Locked {
    let grant = &granted.grant;
    let mut txn = last.txn;
    txn.clear();
    // Writing to a string cannot fail.
    let _ = write!(txn, "{}", granted.txn);
    let is_same =
        |bind: &proto::Bind| presented_from_proto(bind) == PresentedBind::from(&grant.bind);
    let bind = last.bind.filter(is_same).unwrap_or_else(|| bind_to_proto(&grant.bind));
    let mut locked = proto::Locked {
        txn,
        bind: Some(bind),
        token: grant.token.get(),
        newly_locked: grant.newly_locked,
        waited: grant.waited.is_some(),
        waited_ms: grant.waited.map_or(0, millis_down),
        prev_commit_timestamp: grant.prev_commit_ts.map(CommitTimestamp::get),
        prev_definition_changed: grant.prev_definition_changed,
        table_definition_timestamp: grant.table_definition_ts.map(CommitTimestamp::get),
        skipped: grant.skipped.iter().map(bytes).collect(),
        escalated: grant.escalated.as_deref().map(range_to_proto),
        table_commit_timestamp: grant.table_commit_ts.map(CommitTimestamp::get),
        history_unknown: grant.history_unknown,
        promise: Some(proto::Promise { valid_for_ms: millis_down(granted.promise.valid_for) }),
        history_known_ms: granted.history_known.map(millis_down),
        ..proto::Locked::default()
    };
    if let Some((txn, item)) = &grant.conflict {
        locked.conflict_txn = txn.to_string();
        match item {
            LockItem::Row(key) => locked.conflict_row = bytes(key),
            LockItem::Range(range) => locked.conflict_range = Some(range_to_proto(range)),
        }
    }
    locked
}

/// The grant of a message, on a stream that has named `tables` before. The part that only the owner
/// needs stays there.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn granted_from_proto(locked: &proto::Locked, tables: &mut KnownTables) -> Result<Granted> {
    let conflict = if locked.conflict_txn.is_empty() {
        None
    } else {
        let item = match &locked.conflict_range {
            Some(range) => item_from_range(range)?,
            None => item_from_row(&locked.conflict_row)?,
        };
        Some((txn_from_proto(&locked.conflict_txn)?, item))
    };
    let bind = locked
        .bind
        .as_ref()
        .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "a grant names no bind"))?;
    let bind = bind_of(bind, tables.table(&bind.group, &bind.table)?);
    let mut grant = Grant::new(bind, FencingToken::new(locked.token));
    grant.newly_locked = locked.newly_locked;
    grant.waited = locked.waited.then(|| Duration::from_millis(locked.waited_ms));
    grant.conflict = conflict;
    grant.prev_commit_ts = locked.prev_commit_timestamp.map(CommitTimestamp::new);
    grant.table_commit_ts = locked.table_commit_timestamp.map(CommitTimestamp::new);
    grant.history_unknown = locked.history_unknown;
    grant.prev_definition_changed = locked.prev_definition_changed;
    grant.table_definition_ts = locked.table_definition_timestamp.map(CommitTimestamp::new);
    grant.skipped = locked.skipped.iter().map(Key::new).collect::<Result<_>>()?;
    grant.escalated = locked.escalated.as_ref().map(range_from_proto).transpose()?.map(Box::new);
    Ok(Granted {
        txn: txn_from_proto(&locked.txn)?,
        grant,
        promise: Promise {
            valid_for: Duration::from_millis(locked.promise.unwrap_or_default().valid_for_ms),
        },
        history_known: locked.history_known_ms.map(Duration::from_millis),
    })
}

#[cfg(test)]
mod tests {
    use lockservice_core::{KeyRange, LockMode, TxnNumber};

    use super::*;

    fn row(text: &str) -> LockItem {
        LockItem::Row(Key::new(text).expect("a key"))
    }

    fn bind() -> Bind {
        Bind {
            table: TableRef::new("g", "t").expect("a name"),
            id: TableId::new(1 << 32 | 3),
            partition: 2,
            owner: ServiceId::new(1 << 32 | 1),
            version: BindVersion::new(1 << 32 | 9),
            slot: BindSlot::NONE,
        }
    }

    #[test]
    fn a_grant_crosses_the_wire() {
        let other = TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(5), true);
        let conflicts = [
            None,
            Some((other, row("k"))),
            Some((other, LockItem::Range(KeyRange::whole_table()))),
        ];
        let mut locked = proto::Locked::default();
        let mut tables = KnownTables::default();
        for (version, conflict) in [1, 1, 2, 2, 2, 2].into_iter().zip(conflicts.into_iter().cycle())
        {
            let bind = Bind { version: BindVersion::new(version), ..bind() };
            let mut grant = Grant::new(bind, FencingToken::new(99));
            grant.newly_locked = true;
            grant.waited = conflict.as_ref().map(|_| Duration::from_millis(12));
            grant.conflict = conflict;
            grant.prev_commit_ts = Some(CommitTimestamp::new(0));
            grant.history_unknown = true;
            grant.prev_definition_changed = true;
            grant.table_definition_ts = Some(CommitTimestamp::new(5));
            grant.skipped = vec![Key::new("s").expect("a key")];
            grant.escalated = Some(Box::new(KeyRange::whole_table()));
            let granted = Granted {
                txn: TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(7), true),
                grant,
                promise: Promise { valid_for: Duration::from_millis(4_321) },
                history_known: Some(Duration::from_millis(77)),
            };
            // Nothing of the last message is left.
            locked = granted_to_proto(&granted, locked);
            assert_eq!(granted_from_proto(&locked, &mut tables).expect("own message"), granted);
        }
    }

    fn read(op: &proto::LockOp) -> Result<LockSpec> {
        lock_spec_from_proto(op, 9, &mut KnownTables::default())
    }

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_lock_request_crosses_the_wire() {
        let millis = |ms| Some(Duration::from_millis(ms));
        for (wait, timeout) in [
            (WaitPolicy::Wait, None),
            (WaitPolicy::Wait, millis(0)),
            (WaitPolicy::NoWait, millis(7)),
            (WaitPolicy::SkipLocked, None),
        ] {
            let spec = LockSpec {
                mode: LockMode::Shared,
                wait,
                escalate: timeout.is_none(),
                timeout,
                snapshot_age: timeout,
                ancestors: vec![TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(7), true)],
                trace: timeout.and_then(|_| TraceContext::new(SAMPLED, "a=b")).map(Box::new),
                ..LockSpec::new(bind().table, vec![row("a")])
            };
            assert_eq!(
                read(&lock_spec_to_proto(&spec, proto::LockOp::default())).expect("own message"),
                spec
            );
        }
        let unsampled = SAMPLED.replace("-01", "-00");
        let not_traced = proto::LockOp {
            trace_parent: unsampled,
            ..lock_spec_to_proto(&LockSpec::new(bind().table, vec![row("a")]), Default::default())
        };
        assert_eq!(read(&not_traced).expect("well formed").trace, None);
        let bad = proto::LockOp { table: "a\nb".to_owned(), ..Default::default() };
        assert_eq!(read(&bad).expect_err("bad name").kind(), ErrorKind::InvalidArgument);
        let bad = proto::LockOp { table: "t".to_owned(), wait: 55, ..Default::default() };
        assert_eq!(read(&bad).expect_err("bad policy").kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_bind_crosses_the_wire() {
        assert_eq!(bind_from_proto(bind_to_proto(&bind())).expect("own message"), bind());
        assert_eq!(presented_from_proto(&bind_to_proto(&bind())), PresentedBind::from(&bind()));
        assert!(txn_from_proto("nonsense").is_err());
    }
}
