//! The holders of one row or range.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::holder::Holder;
use super::steps::step;
use crate::id::TxnId;
use crate::key::LockMode;

/// The longest list of holders. More holders are kept in a map, for an insertion into a list moves
/// all that follow.
const LISTED_MAX: usize = 32;

/// The holders of an item, ordered by transaction: any number of sharers with at most one holder
/// for update, or one exclusive holder.
#[derive(Debug, Default)]
pub(super) enum Holders {
    #[default]
    None,
    One(Holder),
    /// At least two.
    Few(Vec<Holder>),
    Many(Box<Many>),
}

/// See [`LISTED_MAX`].
#[derive(Debug)]
pub(super) struct Many {
    map: BTreeMap<TxnId, Holder>,
    /// The one that is no sharer.
    strongest: Option<TxnId>,
}

impl Holders {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Those that are listed.
    fn list(&self) -> &[Holder] {
        match self {
            Self::None | Self::Many(_) => &[],
            Self::One(holder) => std::slice::from_ref(holder),
            Self::Few(list) => list,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Many(many) => many.map.len(),
            few => few.list().len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Holder> {
        self.after(None)
    }

    /// The holders of later transactions than `txn`; all of them for `None`.
    pub(super) fn after(&self, txn: Option<TxnId>) -> impl Iterator<Item = &Holder> {
        let list = self.list();
        let at = txn.map_or(0, |txn| list.partition_point(|holder| holder.txn <= txn));
        let map = match self {
            Self::Many(many) => {
                let from = txn.map_or(Bound::Unbounded, Bound::Excluded);
                Some(many.map.range((from, Bound::Unbounded)))
            }
            _ => None,
        };
        let map = map.into_iter().flatten().map(|(_, holder)| holder);
        list[at..].iter().chain(map).inspect(|_| step())
    }

    pub(super) fn get(&self, txn: TxnId) -> Option<&Holder> {
        match self {
            Self::Many(many) => many.map.get(&txn),
            few => position(few.list(), txn).ok().map(|at| &few.list()[at]),
        }
    }

    /// The holder that is no sharer, if there is one.
    pub(super) fn strongest(&self) -> Option<&Holder> {
        match self {
            Self::Many(many) => many.map.get(many.strongest.as_ref()?),
            few => strongest_of(few.list()),
        }
    }

    /// Changes the hold of a transaction, if it has one.
    pub(super) fn change<R>(
        &mut self,
        txn: TxnId,
        change: impl FnOnce(&mut Holder) -> R,
    ) -> Option<R> {
        match self {
            Self::None => None,
            Self::One(holder) => (holder.txn == txn).then(|| change(holder)),
            Self::Few(list) => {
                let at = position(list, txn).ok()?;
                Some(change(&mut list[at]))
            }
            Self::Many(many) => {
                let holder = many.map.get_mut(&txn)?;
                let changed = change(holder);
                if holder.mode > LockMode::Shared {
                    many.strongest = Some(txn);
                } else if many.strongest == Some(txn) {
                    many.strongest = None;
                }
                Some(changed)
            }
        }
    }

    /// Adds a holder. Its transaction holds nothing here yet.
    pub(super) fn add(&mut self, holder: Holder) {
        debug_assert!(self.get(holder.txn).is_none(), "a transaction holds an item once");
        *self = match std::mem::take(self) {
            Self::None => Self::One(holder),
            Self::One(first) if first.txn < holder.txn => Self::Few(vec![first, holder]),
            Self::One(last) => Self::Few(vec![holder, last]),
            Self::Few(mut list) if list.len() < LISTED_MAX => {
                let at = list.partition_point(|other| other.txn < holder.txn);
                list.insert(at, holder);
                Self::Few(list)
            }
            Self::Few(list) => {
                let strongest = strongest_of(&list).map(|holder| holder.txn);
                let map = list.into_iter().map(|holder| (holder.txn, holder)).collect();
                let mut many = Box::new(Many { map, strongest });
                many.add(holder);
                Self::Many(many)
            }
            Self::Many(mut many) => {
                many.add(holder);
                Self::Many(many)
            }
        };
    }

    pub(super) fn take(&mut self, txn: TxnId) -> Option<Holder> {
        match self {
            Self::None => None,
            Self::One(holder) if holder.txn != txn => None,
            Self::One(_) => match std::mem::take(self) {
                Self::One(holder) => Some(holder),
                _ => None,
            },
            Self::Few(list) => {
                let taken = list.remove(position(list, txn).ok()?);
                if list.len() == 1 {
                    *self = list.pop().map_or(Self::None, Self::One);
                }
                Some(taken)
            }
            Self::Many(many) => {
                let taken = many.map.remove(&txn);
                many.strongest.take_if(|strongest| *strongest == txn);
                if many.map.len() <= 1 {
                    *self = many.map.pop_first().map_or(Self::None, |(_, last)| Self::One(last));
                }
                taken
            }
        }
    }
}

impl Many {
    fn add(&mut self, holder: Holder) {
        if holder.mode > LockMode::Shared {
            self.strongest = Some(holder.txn);
        }
        self.map.insert(holder.txn, holder);
    }
}

fn strongest_of(list: &[Holder]) -> Option<&Holder> {
    list.iter().find(|holder| holder.mode > LockMode::Shared)
}

fn position(list: &[Holder], txn: TxnId) -> Result<usize, usize> {
    list.binary_search_by(|holder| holder.txn.cmp(&txn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{FencingToken, ServiceId, TxnNumber};
    use crate::table::uncontended::HoldSeq;

    fn holder(number: u64) -> Holder {
        let txn = TxnId::new(ServiceId::new(1), TxnNumber::new(number), false);
        let mut holder = Holder::pending(txn, 0, LockMode::Shared, HoldSeq::FIRST);
        holder.grant(FencingToken::new(number));
        holder
    }

    #[test]
    fn a_holder_takes_six_words_alone_too() {
        assert_eq!((size_of::<Holder>(), size_of::<Holders>()), (48, 48));
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
            assert_eq!(holders.get(txn).map(|holder| holder.token().get()), Some(number));
            assert!(
                holders
                    .after(Some(txn))
                    .map(|holder| holder.txn)
                    .eq(expected.range(txn..).skip(1).map(|at| *at.0))
            );
            assert!(holders.take(txn).is_some() && holders.take(txn).is_none());
            expected.remove(&txn);
            assert_eq!(holders.len(), expected.len());
        }
        assert!(holders.is_empty());
    }

    #[test]
    fn the_holder_that_is_no_sharer_is_known_among_few_and_many() {
        let mut holders = Holders::default();
        for number in 0..200 {
            holders.add(holder(number));
        }
        let (a, b) = (holder(7).txn, holder(150).txn);
        let strongest = |holders: &Holders| holders.strongest().map(|holder| holder.txn);
        assert_eq!(strongest(&holders), None);
        holders.change(a, |holder| holder.upgrade(LockMode::Update, HoldSeq::FIRST));
        assert_eq!(strongest(&holders), Some(a));
        holders.change(a, |holder| assert!(holder.uncover()));
        assert_eq!(strongest(&holders), None);
        holders.change(b, |holder| holder.upgrade(LockMode::Update, HoldSeq::FIRST));
        for number in (0..200).filter(|number| *number != 150) {
            assert!(holders.take(holder(number).txn).is_some());
            assert_eq!(strongest(&holders), Some(b), "{number}");
        }
        for number in 0..100 {
            holders.add(holder(number));
            assert_eq!(strongest(&holders), Some(b), "{number}");
        }
        assert!(holders.take(b).is_some());
        assert_eq!(strongest(&holders), None);
    }
}
