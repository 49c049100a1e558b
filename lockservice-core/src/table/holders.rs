//! The holders of one row or range.

use std::collections::BTreeMap;
use std::ops::Bound;

use smallvec::SmallVec;

use super::steps::step;
use super::uncontended::HoldSeq;
use crate::id::{FencingToken, TxnId};
use crate::key::LockMode;

/// One transaction's hold on an item.
///
/// An upgrade lies on the hold before it, as a *layer*. With three modes there are at most two
/// layers beneath the hold that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) txn: TxnId,
    /// The slot of this item in the list of its transaction.
    pub(super) slot: u32,
    pub(super) mode: LockMode,
    /// Added or upgraded by a call that is still in flight: its token is not taken yet.
    pub(super) pending: bool,
    /// The token of the grant. Meaningless while it is pending.
    grant: FencingToken,
    /// The largest token of the grants above that have ended while the item stayed locked.
    ended: FencingToken,
    /// The number of the call that added or upgraded it, in its transaction.
    pub(super) seq: HoldSeq,
    /// The layers beneath, by their mode. One with the token [`NONE`] does not exist.
    beneath: [Layer; LockMode::ALL.len() - 1],
}

/// A hold that an upgrade lies on.
#[derive(Clone, Copy, Debug)]
struct Layer {
    grant: FencingToken,
    seq: HoldSeq,
}

/// No token.
pub(super) const NONE: FencingToken = FencingToken::new(0);

const NO_LAYER: Layer = Layer { grant: NONE, seq: HoldSeq::FIRST };

impl Holder {
    /// The hold of a call in flight.
    pub(super) const fn pending(txn: TxnId, slot: u32, mode: LockMode, seq: HoldSeq) -> Self {
        let beneath = [NO_LAYER; LockMode::ALL.len() - 1];
        Self { txn, slot, mode, pending: true, grant: NONE, ended: NONE, seq, beneath }
    }

    /// Gives it the token of its call.
    pub(super) const fn grant(&mut self, token: FencingToken) {
        self.grant = token;
        self.pending = false;
    }

    /// The token under which the item is held: an upgrade in flight shows that of the hold on which
    /// it lies. It never falls as long as the transaction may have used it (F1).
    pub(super) fn token(&self) -> FencingToken {
        let layer = || self.layer().map_or(NONE, |mode| self.beneath[mode.index()].grant);
        self.ended.max(if self.pending { layer() } else { self.grant })
    }

    /// True if it is what the grant under `token` added last.
    pub(super) fn is_of(&self, token: FencingToken) -> bool {
        !self.pending && self.grant == token
    }

    /// Puts a stronger hold of a call in flight on it.
    pub(super) fn upgrade(&mut self, mode: LockMode, seq: HoldSeq) {
        debug_assert!(self.mode < mode && !self.pending, "one call of a transaction at a time");
        self.beneath[self.mode.index()] = Layer { grant: self.grant, seq: self.seq };
        (self.mode, self.seq, self.pending) = (mode, seq, true);
    }

    /// The mode of the layer on which it lies.
    pub(super) fn layer(&self) -> Option<LockMode> {
        LockMode::ALL.into_iter().take(self.beneath.len()).rev().find(|mode| self.has_layer(*mode))
    }

    fn has_layer(&self, mode: LockMode) -> bool {
        self.beneath[mode.index()].grant != NONE
    }

    /// Ends an upgrade that no caller relies on, and leaves the hold on which it lies. False if
    /// there is none.
    pub(super) fn uncover(&mut self) -> bool {
        let Some(mode) = self.layer() else { return false };
        let layer = std::mem::replace(&mut self.beneath[mode.index()], NO_LAYER);
        (self.mode, self.grant, self.seq, self.pending) = (mode, layer.grant, layer.seq, false);
        true
    }

    /// As [`uncover`](Self::uncover), of an upgrade that the caller has received. Data may know its
    /// token, and would refuse an earlier one.
    fn end_upgrade(&mut self) -> bool {
        let token = self.token();
        let is_left = self.uncover();
        if is_left {
            self.ended = token;
        }
        is_left
    }

    /// Forgets the layers beneath. The hold then ends with the upgrade.
    pub(super) fn drop_layers(&mut self) {
        self.beneath = [NO_LAYER; LockMode::ALL.len() - 1];
        self.ended = NONE;
    }

    /// Forgets the layer of the grant under `token`, if there is one.
    pub(super) fn drop_layer(&mut self, token: FencingToken) {
        if let Some(layer) = self.beneath.iter_mut().find(|layer| layer.grant == token) {
            *layer = NO_LAYER;
        }
    }

    /// Makes it weaker: `mode` from now on. The layers that are not weaker than that end, except
    /// one in `mode`. The token stays. False if it is not stronger than `mode`, or a call in flight
    /// has upgraded it.
    pub(super) fn downgrade(&mut self, mode: LockMode) -> bool {
        if self.pending || self.mode <= mode {
            return false;
        }
        while self.layer().is_some_and(|layer| layer >= mode) && self.mode > mode {
            self.end_upgrade();
        }
        self.mode = mode;
        true
    }

    /// The number of the first call whose hold is left.
    pub(super) fn first_call(&self) -> HoldSeq {
        self.layers().next().map_or(self.seq, |layer| layer.seq)
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.beneath.iter().filter(|layer| layer.grant != NONE)
    }

    /// Ends what was granted by the calls from `seq` on. False if nothing of the hold is left.
    pub(super) fn end_since(&mut self, seq: HoldSeq) -> bool {
        while self.seq >= seq {
            if !self.end_upgrade() {
                return false;
            }
        }
        true
    }
}

/// The longest list of holders. More holders are kept in a map, for an insertion into a list moves
/// all that follow.
const LISTED_MAX: usize = 32;

/// The holders of an item, ordered by transaction: any number of sharers with at most one holder
/// for update, or one exclusive holder.
#[derive(Debug)]
pub(super) enum Holders {
    Few(SmallVec<[Holder; 1]>),
    Many {
        map: BTreeMap<TxnId, Holder>,
        /// The one that is no sharer.
        strongest: Option<TxnId>,
    },
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
            Self::Many { map, .. } => map.len(),
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
            Self::Many { map, .. } => {
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
            Self::Many { map, .. } => map.get(&txn),
        }
    }

    /// The holder that is no sharer, if there is one.
    pub(super) fn strongest(&self) -> Option<&Holder> {
        match self {
            Self::Few(list) => list.iter().find(|holder| holder.mode > LockMode::Shared),
            Self::Many { map, strongest } => map.get(strongest.as_ref()?),
        }
    }

    /// Changes the hold of a transaction, if it has one.
    pub(super) fn change<R>(
        &mut self,
        txn: TxnId,
        change: impl FnOnce(&mut Holder) -> R,
    ) -> Option<R> {
        match self {
            Self::Few(list) => {
                let at = position(list, txn).ok()?;
                Some(change(&mut list[at]))
            }
            Self::Many { map, strongest } => {
                let holder = map.get_mut(&txn)?;
                let changed = change(holder);
                if holder.mode > LockMode::Shared {
                    *strongest = Some(txn);
                } else if *strongest == Some(txn) {
                    *strongest = None;
                }
                Some(changed)
            }
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
                let strongest = list.iter().find(|holder| holder.mode > LockMode::Shared);
                let strongest = strongest.map(|holder| holder.txn);
                let map = list.drain(..).map(|holder| (holder.txn, holder)).collect();
                *self = Self::Many { map, strongest };
                self.add(holder);
            }
            Self::Many { map, strongest } => {
                if holder.mode > LockMode::Shared {
                    *strongest = Some(holder.txn);
                }
                map.insert(holder.txn, holder);
            }
        }
    }

    pub(super) fn take(&mut self, txn: TxnId) -> Option<Holder> {
        match self {
            Self::Few(list) => position(list, txn).ok().map(|at| list.remove(at)),
            Self::Many { map, strongest } => {
                let taken = map.remove(&txn);
                strongest.take_if(|strongest| *strongest == txn);
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
        let mut holder = Holder::pending(txn, 0, LockMode::Shared, HoldSeq::FIRST);
        holder.grant(FencingToken::new(number));
        holder
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

    #[test]
    fn a_downgrade_ends_the_stronger_layers_and_keeps_the_token() {
        let layered = |modes: &[LockMode]| {
            let mut modes = modes.iter().zip(1..);
            let (first, _) = modes.next().expect("a mode");
            let mut hold = Holder::pending(holder(1).txn, 0, *first, HoldSeq::FIRST);
            hold.grant(FencingToken::new(1));
            for (mode, number) in modes {
                hold.upgrade(*mode, HoldSeq::FIRST);
                hold.grant(FencingToken::new(number));
            }
            hold
        };
        use LockMode::{Exclusive, Shared, Update};
        for (modes, to, token, layer) in [
            (&[Exclusive][..], Shared, 1, None),
            (&[Shared, Exclusive], Shared, 2, None),
            (&[Shared, Exclusive], Update, 2, Some(Shared)),
            (&[Shared, Update, Exclusive], Update, 3, Some(Shared)),
            (&[Shared, Update, Exclusive], Shared, 3, None),
            (&[Update, Exclusive], Shared, 2, None),
        ] {
            let mut hold = layered(modes);
            assert!(hold.downgrade(to), "{modes:?}");
            assert_eq!((hold.mode, hold.token().get(), hold.layer()), (to, token, layer));
            assert!(!hold.downgrade(to) && !hold.downgrade(Exclusive), "it is no stronger");
        }
    }
}
