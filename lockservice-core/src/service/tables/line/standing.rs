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
    /// The node of the table's last owner; `None` if it is not known that there is one.
    pub(in crate::service) node: Option<NodeName>,
}

/// A slice of a list of those who wait for tables.
#[derive(Debug, Default)]
pub(in crate::service) struct StandingSlice {
    pub(in crate::service) calls: Vec<Standing>,
    /// The last call that was looked at; `None` at the end.
    pub(in crate::service) last: Option<(TableRef, LinePosition)>,
}

/// The calls that a list shows.
#[derive(Clone, Debug, Default)]
pub(in crate::service) struct StandingFilter {
    /// Those for this table; for all if it is `None`.
    pub(in crate::service) table: Option<TableRef>,
    /// Those that request something which overlaps this item.
    pub(in crate::service) item: Option<LockItem>,
}

impl Lines {
    /// Those who wait for a table, in the order of the lines, of at most `most` calls after the
    /// position `after`. Each is shown with the first item that it requests, and that the filter
    /// wants.
    pub(in crate::service) fn standing(
        &self,
        filter: &StandingFilter,
        after: Option<&(TableRef, LinePosition)>,
        most: usize,
    ) -> StandingSlice {
        let lines = match (&filter.table, after) {
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
        let mut slice = StandingSlice::default();
        for (table, line, position, waiter) in places.take(most) {
            slice.last = Some((table.clone(), position));
            let wanted =
                |item: &&LockItem| filter.item.as_ref().is_none_or(|wanted| wanted.overlaps(item));
            let Some(item) = waiter.requested.items.iter().find(wanted) else { continue };
            let owner = line.owner.as_ref();
            let info = WaitInfo {
                table: table.clone(),
                item: item.clone(),
                mode: waiter.requested.mode,
                waiter: waiter.requested.in_flight.txn().id,
                holder: TxnId {
                    origin: owner.map_or_else(ServiceId::default, |owner| owner.service),
                    counter: TxnCounter::default(),
                },
                held_item: LockItem::Range(KeyRange::whole_table()),
                granted: owner.is_some(),
                since: waiter.requested.came,
            };
            slice.calls.push(Standing { info, node: owner.map(|owner| owner.node.clone()) });
        }
        slice
    }
}
