//! The waits that have lasted longest, and the sessions nearest to a loss, for operators. Each is a
//! bounded choice of a list that may be long.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::id::{SessionHandle, SessionNumber, TableId, TableRef, TxnId};
use crate::key::{LockItem, LockMode};
use crate::service::hot::{HotKey, HotWindow};
use crate::service::tables::line::{Standing, StandingFilter};
use crate::service::{LockService, ServiceInner, SessionStatus, WaitsFor};

/// Sessions and calls that are visited in one go.
const SLICE: usize = 256;

/// A lock call that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LongWait {
    /// The table.
    pub table: TableRef,
    /// The row or range that it waits for.
    pub item: LockItem,
    /// The requested mode.
    pub mode: LockMode,
    /// The transaction that waits.
    pub txn: TxnId,
    /// Its label.
    pub label: String,
    /// Its client.
    pub client: String,
    /// Its session; `None` for one of an embedder.
    pub session: Option<SessionHandle>,
    /// The time for which it has waited.
    pub waiting: Duration,
    /// Its first obstacle; `None` if that has just gone.
    pub waits_for: Option<WaitsFor>,
}

impl LockService {
    /// The rows and ranges for which calls of this incarnation waited longest in `window`, of one
    /// table if `table` is given: at most `most`, the hottest first.
    ///
    /// A wait counts when it is over: those that last are among the
    /// [`longest_waits`](Self::longest_waits). The memory for this is bounded by
    /// [`hot_keys_max`](crate::service::ServiceSettings::hot_keys_max), so a count may be too
    /// small: [`missed`](crate::service::HotCounts::missed) says by how much.
    pub fn hot(&self, table: Option<&TableRef>, window: HotWindow, most: usize) -> Vec<HotKey> {
        let inner = &self.inner;
        let mut lines = inner.hot.list(table, window, most, inner.parts.env.now());
        for line in &mut lines {
            // The last line of a table that is not served here any more has no waiters.
            if let Some(bound) = inner.tables.owned(&line.table) {
                line.waiting = inner.engine.waiting_for(bound.bind().id, &line.item);
            }
        }
        lines
    }

    /// The lock calls that have waited longest, of one table if `table` is given: at most `most`,
    /// the oldest first. Calls that wait for a fencing token are not among them.
    ///
    /// It visits all calls that wait, in slices: other calls go on meanwhile.
    pub fn longest_waits(&self, table: Option<&TableRef>, most: usize) -> Vec<LongWait> {
        let mut waits = self.for_tables(table, most);
        if let Some(only) = self.table_filter(table) {
            waits.extend(self.for_locks(only, most));
        }
        waits.sort_by_key(|wait| Reverse(wait.waiting));
        waits.truncate(most);
        waits
    }

    /// Those that wait at the engine.
    fn for_locks(&self, only: Option<TableId>, most: usize) -> impl Iterator<Item = LongWait> {
        let (inner, now) = (&self.inner, self.inner.parts.env.now());
        inner.engine.oldest_waits(only, most).into_iter().map(move |wait| {
            let waits_for = wait.blocker.map(|mut blocker| {
                (blocker.label, blocker.client) = inner.names(blocker.txn);
                WaitsFor::Txn(blocker)
            });
            let (label, client) = inner.names(wait.txn);
            LongWait {
                table: wait.table,
                item: wait.item,
                mode: wait.mode,
                txn: wait.txn,
                label,
                client,
                session: inner.session_handle_of(wait.txn),
                waiting: now.since(wait.since),
                waits_for,
            }
        })
    }

    /// Those that wait for a table to be bound here. They stand in lines by table, and not by age,
    /// so that all are visited.
    fn for_tables(&self, only: Option<&TableRef>, most: usize) -> Vec<LongWait> {
        let (inner, now) = (&self.inner, self.inner.parts.env.now());
        let filter = StandingFilter { table: only.cloned(), item: None };
        let (mut oldest, mut at) = (Vec::<Standing>::new(), None);
        loop {
            let slice = inner.tables.standing(&filter, at.as_ref(), SLICE);
            if slice.last.is_none() {
                break;
            }
            at = slice.last;
            oldest.extend(slice.calls);
            oldest.sort_by_key(|standing| standing.info.since);
            oldest.truncate(most);
        }
        let named = oldest.into_iter().map(|Standing { info, node }| {
            let (label, client) = inner.names(info.waiter);
            LongWait {
                table: info.table,
                item: info.item,
                mode: info.mode,
                txn: info.waiter,
                label,
                client,
                session: inner.session_handle_of(info.waiter),
                waiting: now.since(info.since),
                waits_for: Some(WaitsFor::Table {
                    last_owner: node.map(|node| (info.holder.origin, node)),
                }),
            }
        });
        named.collect()
    }

    /// The sessions of which the smallest part of the TTL is left: at most `most`, the nearest to a
    /// loss first. A client in order renews when a third of it has passed.
    ///
    /// It visits all sessions, in slices: other calls go on meanwhile.
    pub fn sessions_nearest_to_loss(&self, most: usize) -> Vec<SessionStatus> {
        let (inner, clock) = (&self.inner, &**self.inner.parts.env.clock());
        let (mut nearest, mut last) = (BinaryHeap::new(), SessionNumber::default());
        loop {
            let slice = inner.session_numbers.after(last, SLICE);
            let Some((number, _)) = slice.last() else { break };
            last = *number;
            for (number, id) in slice {
                let Some(record) = inner.sessions.get(&id) else { continue };
                let Some(part) = record.part_left(clock) else { continue };
                nearest.push((part, number, id));
                if nearest.len() > most {
                    nearest.pop();
                }
            }
        }
        let records = nearest.into_sorted_vec().into_iter();
        let records = records.filter_map(|(_, _, id)| inner.sessions.get(&id));
        // One that has ended meanwhile is left out.
        records.filter_map(|record| record.status(clock)).collect()
    }
}

impl ServiceInner {
    fn session_handle_of(&self, txn: TxnId) -> Option<SessionHandle> {
        let record = self.named_txns.read(&txn, |record| record.cloned())?;
        record.session.as_ref().map(|session| session.handle)
    }
}
