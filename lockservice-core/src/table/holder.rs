//! One transaction's hold on a row or range, and the upgrades on it.

use super::uncontended::HoldSeq;
use crate::id::{FencingToken, TxnId};
use crate::key::LockMode;

/// One transaction's hold on an item.
///
/// An upgrade lies on the hold before it, as a *layer*. With three modes there are at most two
/// layers beneath the hold that counts.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) txn: TxnId,
    /// The token of the grant. Meaningless while it is pending.
    grant: FencingToken,
    /// What upgrades have left; `None` if they left nothing, as nearly always.
    upgrades: Option<Box<Upgrades>>,
    /// The slot of this item in the list of its transaction.
    pub(super) slot: u32,
    /// The number of the call that added or upgraded it, in its transaction.
    pub(super) seq: HoldSeq,
    pub(super) mode: LockMode,
    /// Added or upgraded by a call that is still in flight: its token is not taken yet.
    pub(super) pending: bool,
}

/// The holds beneath an upgrade, and the upgrades that have ended.
#[derive(Debug)]
struct Upgrades {
    /// The largest token of the grants above that have ended while the item stayed locked.
    ended: FencingToken,
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

impl Default for Upgrades {
    fn default() -> Self {
        Self { ended: NONE, beneath: [NO_LAYER; LockMode::ALL.len() - 1] }
    }
}

impl Holder {
    /// The hold of a call in flight.
    pub(super) const fn pending(txn: TxnId, slot: u32, mode: LockMode, seq: HoldSeq) -> Self {
        Self { txn, grant: NONE, upgrades: None, slot, seq, mode, pending: true }
    }

    /// Gives it the token of its call.
    pub(super) const fn grant(&mut self, token: FencingToken) {
        self.grant = token;
        self.pending = false;
    }

    /// The token under which the item is held: an upgrade in flight shows that of the hold on which
    /// it lies. It never falls as long as the transaction may have used it (F1).
    pub(super) fn token(&self) -> FencingToken {
        let Some(upgrades) = &self.upgrades else {
            return if self.pending { NONE } else { self.grant };
        };
        let layer = || upgrades.layer().map_or(NONE, |mode| upgrades.beneath[mode.index()].grant);
        upgrades.ended.max(if self.pending { layer() } else { self.grant })
    }

    /// True if it is what the grant under `token` added last.
    pub(super) fn is_of(&self, token: FencingToken) -> bool {
        !self.pending && self.grant == token
    }

    /// Puts a stronger hold of a call in flight on it.
    pub(super) fn upgrade(&mut self, mode: LockMode, seq: HoldSeq) {
        debug_assert!(self.mode < mode && !self.pending, "one call of a transaction at a time");
        let layer = Layer { grant: self.grant, seq: self.seq };
        self.upgrades.get_or_insert_default().beneath[self.mode.index()] = layer;
        (self.mode, self.seq, self.pending) = (mode, seq, true);
    }

    /// The mode of the layer on which it lies.
    pub(super) fn layer(&self) -> Option<LockMode> {
        self.upgrades.as_ref()?.layer()
    }

    /// Ends an upgrade that no caller relies on, and leaves the hold on which it lies. False if
    /// there is none.
    pub(super) fn uncover(&mut self) -> bool {
        let Some(upgrades) = &mut self.upgrades else { return false };
        let Some(mode) = upgrades.layer() else { return false };
        let layer = std::mem::replace(&mut upgrades.beneath[mode.index()], NO_LAYER);
        (self.mode, self.grant, self.seq, self.pending) = (mode, layer.grant, layer.seq, false);
        self.forget_no_upgrades();
        true
    }

    /// Frees the memory of what upgrades have left, if that is nothing.
    fn forget_no_upgrades(&mut self) {
        self.upgrades.take_if(|left| left.ended == NONE && left.layer().is_none());
    }

    /// As [`uncover`](Self::uncover), of an upgrade that the caller has received. Data may know its
    /// token, and would refuse an earlier one.
    fn end_upgrade(&mut self) -> bool {
        let token = self.token();
        let is_left = self.uncover();
        if is_left {
            self.upgrades.get_or_insert_default().ended = token;
        }
        is_left
    }

    /// Forgets the layers beneath. The hold then ends with the upgrade.
    pub(super) fn drop_layers(&mut self) {
        self.upgrades = None;
    }

    /// Forgets the layer of the grant under `token`, if there is one.
    pub(super) fn drop_layer(&mut self, token: FencingToken) {
        let Some(upgrades) = &mut self.upgrades else { return };
        if let Some(layer) = upgrades.beneath.iter_mut().find(|layer| layer.grant == token) {
            *layer = NO_LAYER;
        }
        self.forget_no_upgrades();
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
        let mut layers = self.upgrades.iter().flat_map(|upgrades| &upgrades.beneath);
        layers.find(|layer| layer.grant != NONE).map_or(self.seq, |layer| layer.seq)
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

impl Upgrades {
    /// The mode of the strongest layer.
    fn layer(&self) -> Option<LockMode> {
        let mut layers = LockMode::ALL.into_iter().take(self.beneath.len()).rev();
        layers.find(|mode| self.beneath[mode.index()].grant != NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ServiceId, TxnNumber};

    #[test]
    fn a_downgrade_ends_the_stronger_layers_and_keeps_the_token() {
        let txn = TxnId::new(ServiceId::new(1), TxnNumber::new(1), false);
        let layered = |modes: &[LockMode]| {
            let mut modes = modes.iter().zip(1..);
            let (first, _) = modes.next().expect("a mode");
            let mut hold = Holder::pending(txn, 0, *first, HoldSeq::FIRST);
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
