//! [`Epoch`], and [`EpochNumber`]: the numbers that begin with one.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BindVersion, FencingToken, Nonce, ServiceId, TableId};
use crate::error::{Error, ErrorKind};

/// Number of counter bits below the epoch in versions, incarnations, table ids and tokens.
pub const EPOCH_SHIFT: u32 = 32;

/// Epochs are below this bound (F2).
pub const EPOCH_END: u64 = 1 << 21;

/// [`Epoch::skip_ahead`] skips fewer epochs than this.
pub(super) const SKIP_END: u64 = 16;

number! {
    /// Number of an allocator leadership. Grows with every leadership; each write to the store
    /// names it (L2).
    Epoch
}
number! {
    /// A number that begins with its epoch, whichever of the four it is: a [`ServiceId`], a
    /// [`TableId`], a [`BindVersion`] or a [`FencingToken`]. High-water marks count all of them
    /// together (L4).
    EpochNumber
}

impl Epoch {
    /// The first number that belongs to this epoch: `epoch * 2^32`.
    pub const fn first_number(self) -> EpochNumber {
        EpochNumber(self.0 << EPOCH_SHIFT)
    }

    /// The first number that belongs to the next epoch.
    pub const fn end_number(self) -> EpochNumber {
        EpochNumber((self.0 + 1) << EPOCH_SHIFT)
    }

    /// The epoch after this one.
    ///
    /// # Errors
    /// `ResourceExhausted` at the end of the number space: start a new store.
    pub fn next(self) -> Result<Self, Error> {
        if self.0 + 1 >= EPOCH_END {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "all 2^21 epochs of this store are used up; start a new store",
            ));
        }
        Ok(Self(self.0 + 1))
    }

    /// This epoch, or one of the 15 after it, as `nonce` decides.
    ///
    /// Two leaderships may know nothing of each other, because their store forgot the first. With
    /// this, the second hardly ever gets the epoch of the first (L4).
    #[must_use]
    pub(crate) fn skip_ahead(self, nonce: Nonce) -> Self {
        Self((self.0 + nonce.get() % SKIP_END).min(EPOCH_END - 1).max(self.0))
    }
}

impl EpochNumber {
    /// The epoch in which the number lies.
    pub const fn epoch(self) -> Epoch {
        Epoch(self.0 >> EPOCH_SHIFT)
    }

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The last number below this one; 0 if there is none.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

macro_rules! begins_with_its_epoch {
    ($($name:ident),*) => { $(
        impl From<$name> for EpochNumber {
            fn from(number: $name) -> Self {
                Self::new(number.get())
            }
        }

        impl From<EpochNumber> for $name {
            fn from(number: EpochNumber) -> Self {
                Self::new(number.get())
            }
        }
    )* };
}

begins_with_its_epoch!(ServiceId, TableId, BindVersion, FencingToken);
