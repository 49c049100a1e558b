//! Numbers that are never handed out twice, and blocks of fencing tokens (L4, F2).

use crate::bind::TokenBlock;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, EpochNumber, FencingToken};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Tokens in one block (F2).
pub(crate) const TOKEN_BLOCK: u64 = 1 << 20;

/// Tokens are below this bound, so that they survive languages whose numbers are doubles (F2).
pub(crate) const TOKEN_END: EpochNumber = EpochNumber::new(1 << 53);

/// The step before a number or a block can be had: the leader raises its epoch to at least
/// this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RaiseEpoch(pub Epoch);

/// The result of [`TokenSource::block`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NextBlock {
    /// The block. It may be used once it is durable.
    Reserved(TokenBlock),
    /// There is no room for a block in this epoch.
    Raise(RaiseEpoch),
}

/// The source of tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TokenSource {
    /// They lie below the end of the epoch (F2).
    Epoch {
        /// The first that this leadership may give out of a new table: `epoch * 2^32`, or what the
        /// store's server vouches for (L4).
        from: FencingToken,
    },
    /// The store forgets everything with the process: they begin here (B7).
    Volatile {
        /// The first token of this life of the process.
        from: FencingToken,
    },
}

impl TokenSource {
    /// The next block of a table whose blocks so far end at `reserved_to` (F2): base =
    /// max(reserved_to, from), and no block crosses (epoch + 1) · 2^32.
    ///
    /// # Errors
    /// `ResourceExhausted` at the end of all tokens: a new store is needed.
    pub(crate) fn block(self, reserved_to: FencingToken, epoch: Epoch) -> Result<NextBlock> {
        let (next, end) = match self {
            Self::Epoch { from } => (reserved_to.max(from), epoch.end_number()),
            Self::Volatile { from } => (reserved_to.max(from), TOKEN_END),
        };
        // Saturates far above the end of all tokens.
        let block_end = EpochNumber::new(next.get().saturating_add(TOKEN_BLOCK));
        if block_end > TOKEN_END {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "all fencing tokens below 2^53 are used up: start a new store",
            ));
        }
        if block_end > end {
            // The epoch in which the whole block lies.
            return Ok(NextBlock::Raise(RaiseEpoch(block_end.previous().epoch())));
        }
        Ok(NextBlock::Reserved(TokenBlock { next, end: block_end.into() }))
    }
}

/// Hands out versions, incarnations and table ids: each lies below the end of the epoch and is
/// larger than every one before (L4).
#[derive(Debug)]
pub(crate) struct NumberSequence {
    /// The next number. The only shared state: numbers need an order, nothing else depends on them.
    /// `take` is its own partner.
    next: AtomicU64,
    /// The current epoch. Released by `raise`, acquired by `epoch`.
    epoch: AtomicU64,
}

impl NumberSequence {
    /// The numbers of `epoch` above `from`.
    pub(crate) fn new(from: EpochNumber, epoch: Epoch) -> Self {
        Self { next: AtomicU64::new(from.next().get()), epoch: AtomicU64::new(epoch.get()) }
    }

    /// Every number that was handed out is below this.
    pub(crate) fn end(&self) -> EpochNumber {
        EpochNumber::new(self.next.load(Ordering::Acquire))
    }

    /// The current epoch.
    pub(crate) fn epoch(&self) -> Epoch {
        // ORDERING: Acquire, the partner of the release in `raise`.
        Epoch::new(self.epoch.load(Ordering::Acquire))
    }

    /// Goes on to a later epoch, which the store has already recorded. An earlier one changes
    /// nothing.
    pub(crate) fn raise(&self, epoch: Epoch) {
        // ORDERING: Release, the partner of the acquire in `epoch`.
        self.epoch.fetch_max(epoch.get(), Ordering::AcqRel);
    }

    /// The next number, or which epoch is needed because those of this one are used up.
    pub(crate) fn take(&self) -> Result<EpochNumber, RaiseEpoch> {
        let mut next = self.end();
        loop {
            let end = self.epoch().end_number();
            if next >= end {
                return Err(RaiseEpoch(next.epoch()));
            }
            let (taken, after) = (next.get(), next.next().get());
            match self.next.compare_exchange(taken, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(next),
                Err(now) => next = EpochNumber::new(now),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_that_would_cross_the_end_of_its_epoch_needs_the_next_one() {
        let epoch = Epoch::new(3);
        let source = TokenSource::Epoch { from: epoch.first_number().into() };
        let end = epoch.end_number().get();
        let block = |from, epoch| source.block(FencingToken::new(from), epoch).expect("in range");
        let last = block(end - TOKEN_BLOCK, epoch);
        let NextBlock::Reserved(last) = last else { panic!("fits exactly: {last:?}") };
        assert_eq!(last.end.get(), end);
        for reserved_to in [end - TOKEN_BLOCK + 1, end - 1, end] {
            let response = block(reserved_to, epoch);
            assert_eq!(response, NextBlock::Raise(RaiseEpoch(Epoch::new(4))), "from {reserved_to}");
        }
        let next = block(end, Epoch::new(4));
        let NextBlock::Reserved(next) = next else { panic!("fits: {next:?}") };
        assert_eq!(next.next.get(), end);
    }

    #[test]
    fn tokens_end_below_two_to_the_53rd() {
        let volatile =
            TokenSource::Volatile { from: FencingToken::new(TOKEN_END.get() - TOKEN_BLOCK) };
        let none = FencingToken::default();
        let last = volatile.block(none, Epoch::new(1)).expect("the last block");
        assert!(matches!(last, NextBlock::Reserved(_)), "no epoch involved: {last:?}");
        assert!(volatile.block(TOKEN_END.into(), Epoch::new(1)).is_err());
        let largest = FencingToken::new(u64::MAX - 1);
        assert!(
            TokenSource::Epoch { from: none }.block(largest, Epoch::new(1)).is_err(),
            "no wrap-around"
        );
    }

    #[test]
    fn numbers_of_an_exhausted_epoch_come_from_the_next() {
        let numbers = NumberSequence::new(Epoch::new(1).first_number(), Epoch::new(1));
        let last = Epoch::new(1).end_number().previous();
        numbers.next.store(last.get(), Ordering::SeqCst);
        assert_eq!(numbers.take(), Ok(last));
        assert_eq!(numbers.take(), Err(RaiseEpoch(Epoch::new(2))));
        assert_eq!(numbers.take(), Err(RaiseEpoch(Epoch::new(2))), "another call takes nothing");
        numbers.raise(Epoch::new(2));
        assert_eq!(
            numbers.take(),
            Ok(Epoch::new(2).first_number()),
            "without a gap: they go on below what a clock vouches for"
        );
        numbers.raise(Epoch::new(1));
        assert_eq!(numbers.epoch(), Epoch::new(2), "an earlier epoch changes nothing");
    }

    proptest! {
        #[test]
        fn blocks_of_one_table_only_grow_and_end_within_their_epoch(
            from in 0u64..1 << 33,
            raises in prop::collection::vec(0u64..3, 1..200),
        ) {
            let (from, mut reserved_to) = (FencingToken::new(from), FencingToken::default());
            let mut epoch = Epoch::new(1);
            for raise in raises {
                epoch = Epoch::new(epoch.get() + raise);
                let block = loop {
                    let block = TokenSource::Epoch { from }.block(reserved_to, epoch);
                    match block.expect("far from the end") {
                        NextBlock::Reserved(block) => break block,
                        NextBlock::Raise(RaiseEpoch(wanted)) => {
                            prop_assert!(wanted > epoch);
                            epoch = wanted;
                        }
                    }
                };
                prop_assert!(block.next >= reserved_to.max(from));
                prop_assert!(EpochNumber::from(block.end).previous().epoch() <= epoch);
                reserved_to = block.end;
            }
        }
    }
}
