//! The holders of one row or range.

use std::collections::BTreeMap;
use std::ops::Bound;

use smallvec::SmallVec;

use super::steps::step;
use crate::id::{FencingToken, TxnId};
use crate::key::LockMode;

/// One transaction's hold on an item.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) txn: TxnId,
    /// Meaningless while `pending`.
    pub(super) token: FencingToken,
    /// The slot of this item in the list of its transaction.
    pub(super) slot: u32,
    pub(super) mode: LockMode,
    /// Added or upgraded by a call that is still in flight: its token is not taken yet.
    pub(super) pending: bool,
    /// After an upgrade, the token of the shared hold that it lies on. [`NONE`] if there was none,
    /// or it was rolled back since. With two modes there is at most one layer beneath.
    pub(super) beneath: FencingToken,
}

/// No token.
pub(super) const NONE: FencingToken = FencingToken::new(0);

impl Holder {
    /// Forgets the shared hold beneath an upgrade. The hold then ends with the upgrade.
    pub(super) fn drop_beneath(&mut self) {
        if self.pending {
            // An upgrade shows the token of the former hold until it has its own.
            self.token = NONE;
        }
        self.beneath = NONE;
    }

    /// Ends an upgrade and leaves the shared hold beneath it.
    pub(super) fn uncover(&mut self) {
        self.token = std::mem::replace(&mut self.beneath, NONE);
        self.mode = LockMode::Shared;
        self.pending = false;
    }
}

/// The longest list of holders. More holders are kept in a map, for an insertion into a list moves
/// all that follow.
const LISTED_MAX: usize = 32;

/// The holders of an item, ordered by transaction: any number of sharers, or one exclusive holder.
#[derive(Debug)]
pub(super) enum Holders {
    Few(SmallVec<[Holder; 1]>),
    Many(BTreeMap<TxnId, Holder>),
}

impl Default for Holders {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl Holders {
    pub(super) fn one(holder: Holder) -> Self {
        Self::Few(smallvec::smallvec![holder])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(list) => list.len(),
            Self::Many(map) => map.len(),
        }
    }

    pub(super) fn first(&self) -> Option<&Holder> {
        match self {
            Self::Few(list) => list.first(),
            Self::Many(map) => map.values().next(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Holder> {
        self.after(None)
    }

    /// The holders of later transactions than `txn`; all of them for `None`.
    pub(super) fn after(&self, txn: Option<TxnId>) -> impl Iterator<Item = &Holder> {
        let (list, map) = match self {
            Self::Few(list) => {
                let from = txn.map_or(0, |txn| list.partition_point(|holder| holder.txn <= txn));
                (&list[from..], None)
            }
            Self::Many(map) => {
                let from = txn.map_or(Bound::Unbounded, Bound::Excluded);
                (&[][..], Some(map.range((from, Bound::Unbounded))))
            }
        };
        let map = map.into_iter().flatten().map(|(_, holder)| holder);
        list.iter().chain(map).inspect(|_| step())
    }

    pub(super) fn get(&self, txn: TxnId) -> Option<&Holder> {
        match self {
            Self::Few(list) => position(list, txn).ok().map(|at| &list[at]),
            Self::Many(map) => map.get(&txn),
        }
    }

    pub(super) fn get_mut(&mut self, txn: TxnId) -> Option<&mut Holder> {
        match self {
            Self::Few(list) => position(list, txn).ok().map(|at| &mut list[at]),
            Self::Many(map) => map.get_mut(&txn),
        }
    }

    /// Adds a holder. Its transaction holds nothing here yet.
    pub(super) fn add(&mut self, holder: Holder) {
        match self {
            Self::Few(list) if list.len() < LISTED_MAX => match position(list, holder.txn) {
                Ok(_) => debug_assert!(false, "a transaction holds an item once"),
                Err(at) => list.insert(at, holder),
            },
            Self::Few(list) => {
                let mut map: BTreeMap<_, _> =
                    list.drain(..).map(|holder| (holder.txn, holder)).collect();
                map.insert(holder.txn, holder);
                *self = Self::Many(map);
            }
            Self::Many(map) => {
                map.insert(holder.txn, holder);
            }
        }
    }

    pub(super) fn take(&mut self, txn: TxnId) -> Option<Holder> {
        match self {
            Self::Few(list) => position(list, txn).ok().map(|at| list.remove(at)),
            Self::Many(map) => {
                let taken = map.remove(&txn);
                if map.len() <= 1 {
                    *self = Self::Few(map.values().copied().collect());
                }
                taken
            }
        }
    }
}

fn position(list: &[Holder], txn: TxnId) -> Result<usize, usize> {
    list.binary_search_by(|holder| holder.txn.cmp(&txn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ServiceId, TxnNumber};

    fn holder(number: u64) -> Holder {
        let txn = TxnId::new(ServiceId::new(1), TxnNumber::new(number), false);
        Holder {
            txn,
            token: FencingToken::new(number),
            slot: 0,
            mode: LockMode::Shared,
            pending: false,
            beneath: NONE,
        }
    }

    #[test]
    fn few_and_many_holders_are_kept_alike() {
        let mut holders = Holders::default();
        let mut expected = BTreeMap::new();
        // 7 and 200 have no common divisor: every number once, out of order.
        for number in (0..200).map(|at| at * 7 % 200) {
            holders.add(holder(number));
            expected.insert(holder(number).txn, number);
            assert!(
                holders.iter().map(|holder| holder.txn).eq(expected.keys().copied()),
                "in order"
            );
        }
        for number in (0..200).map(|at| at * 11 % 200) {
            let txn = holder(number).txn;
            assert_eq!(holders.get(txn).map(|holder| holder.token.get()), Some(number));
            assert!(
                holders
                    .after(Some(txn))
                    .map(|holder| holder.txn)
                    .eq(expected.range(txn..).skip(1).map(|at| *at.0))
            );
            assert!(holders.take(txn).is_some() && holders.take(txn).is_none());
            expected.remove(&txn);
            assert_eq!(holders.len(), expected.len());
            assert_eq!(holders.first().map(|holder| holder.txn), expected.keys().next().copied());
        }
        assert!(holders.is_empty());
    }
}
