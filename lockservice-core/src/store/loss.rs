//! [`DataLoss`] and [`Loss`]: writes that a store may have lost (L4).

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, EpochNumber};

/// The knowledge of a candidate about lost writes of a store (L4).
///
/// The store keeps the state with the leadership, so that it survives a leader that fails because
/// of it:
///
/// ```text
///            another copy of the store,
///            or no record of a leader            Known
///   none ───────────────────────────▶ unknown ─────────▶ known
///   ▲  ▲ └──────────────────── Known ──────────────────▶ │  │
///   │  └───────── Resolved ──────────────┘               │  │
///   └──────────── Resolved ──────────────────────────────┘  │
///                                     Known, another copy ◀─┘
/// ```
///
/// - *none*: the new leader goes on with every bind, at once.
/// - *unknown*: writes may be lost. The new leader refuses commits and grants nothing new until
///   every node that may have observed a lost write has renewed or run out of lease.
/// - *known*: writes are lost. The same holds, and in addition every bind is invalid.
///
/// A leadership skips some epochs if it begins with `Known` or on another copy: the store may have
/// forgotten epochs too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum DataLoss {
    /// The candidate knows no more than the store: the state changes only if the store is another
    /// copy than that of the last leader, or holds no record of one.
    #[default]
    Unknown,
    /// The candidate knows that writes were lost.
    Known {
        /// Every version, incarnation, table id and token that may have been handed out is below
        /// this, as far as a node could report.
        high_water: EpochNumber,
    },
    /// The leader has waited for every node that may have observed a lost write. Only the
    /// leader itself can say so; from any other candidate it counts as
    /// [`Unknown`](Self::Unknown).
    Resolved,
}

/// The losses of a store, as far as they are known (L4). Kept with the leadership, for the next
/// leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Loss {
    /// True while a loss of writes is known, not only possible, and not resolved: nothing in the
    /// store is relied on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub known: bool,
    /// The progress of leaderships before this one is accounted for: it is invalid, or every node
    /// that observed it has renewed or run out of lease since. 0 if no data loss was ever known or
    /// resolved.
    #[serde(rename = "heard_before")]
    pub observed_before: Epoch,
    /// Versions, incarnations, table ids and tokens below this may have been handed out, as far as
    /// a node could report.
    #[serde(rename = "numbers")]
    pub high_water: EpochNumber,
}

impl Loss {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Takes into account what a candidate that leads in `epoch` from now on knows; `own` if it led
    /// before.
    pub(super) fn update(&mut self, data_loss: DataLoss, own: bool, epoch: Epoch) {
        match data_loss {
            DataLoss::Known { high_water } => {
                let high_water = self.high_water.max(high_water);
                *self = Self { known: true, observed_before: epoch, high_water };
            }
            DataLoss::Resolved if own => (self.known, self.observed_before) = (false, epoch),
            DataLoss::Resolved | DataLoss::Unknown => {}
        }
    }
}
