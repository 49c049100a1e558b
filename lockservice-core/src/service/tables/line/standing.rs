//! [`Standing`]: a call that waits for a table, as an operator sees it.

use std::ops::Bound;

use crate::id::{NodeName, ServiceId, TableRef, TxnCounter, TxnId};
use crate::key::{KeyRange, LockItem};
use crate::service::tables::line::{LinePosition, Lines};
use crate::table::WaitInfo;

/// A call that waits for a table, as an operator sees it.
#[derive(Debug)]
pub(in crate::service) struct Standing {
    pub(in crate::service) info: WaitInfo,
    pub(in crate::service) position: LinePosition,
    /// The node of the table's last owner; `None` if it is not known that there is one.
    pub(in crate::service) node: Option<NodeName>,
}

impl Lines {
    /// Those who wait for a table, or for one table, in the order of the lines: at most `most` of
    /// those after the position `after`.
    pub(in crate::service) fn standing(
        &self,
        only: Option<&TableRef>,
        after: Option<&(TableRef, LinePosition)>,
        most: usize,
    ) -> Vec<Standing> {
        let lines = match (only, after) {
            (Some(table), _) => self.lines.range(table..=table),
            (None, Some((table, _))) => self.lines.range(table..),
            (None, None) => self.lines.range::<TableRef, _>(..),
        };
        let places = lines.flat_map(|(table, line)| {
            let from = after
                .filter(|(last, _)| last == table)
                .map_or(Bound::Unbounded, |(_, at)| Bound::Excluded(*at));
            line.waiting
                .range((from, Bound::Unbounded))
                .map(move |(position, waiter)| (table, line, *position, waiter))
        });
        let standing = places.take(most).filter_map(|(table, line, position, waiter)| {
            let owner = line.owner.as_ref();
            let info = WaitInfo {
                table: table.clone(),
                item: waiter.requested.items.first()?.clone(),
                mode: waiter.requested.mode,
                waiter: waiter.requested.in_flight.txn().id,
                holder: TxnId {
                    origin: owner.map_or_else(ServiceId::default, |owner| owner.service),
                    counter: TxnCounter::default(),
                },
                held_item: LockItem::Range(KeyRange::whole_table()),
                granted: owner.is_some(),
                since: waiter.requested.since,
            };
            Some(Standing { info, position, node: owner.map(|owner| owner.node.clone()) })
        });
        standing.collect()
    }
}
