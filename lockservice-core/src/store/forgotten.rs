//! [`Forgotten`]: what is kept of lock tables that were forgotten, so that no number of theirs
//! comes back. Pure.

use serde::{Deserialize, Serialize};

use super::TableRecord;
use crate::id::{EpochNumber, FencingToken};

/// The highest numbers of all tables that a store has forgotten: one record, however many they
/// were.
///
/// A table that is bound for the first time begins above it (L4, F1): no record shows whether a
/// table of the same name was there before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Forgotten {
    /// The highest table id or version of a bind.
    #[serde(rename = "numbers")]
    pub high_water: EpochNumber,
    /// The highest end of a table's blocks of tokens (F2).
    pub tokens_reserved_to: FencingToken,
}

impl Forgotten {
    /// True if no table was ever forgotten.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// With one more table.
    #[must_use]
    pub fn with(self, table: &TableRecord) -> Self {
        let versions = table.binds.iter().map(|bind| bind.version.into());
        let numbers = versions.chain([table.id.into()]);
        Self {
            high_water: numbers.fold(self.high_water, EpochNumber::max),
            tokens_reserved_to: self.tokens_reserved_to.max(table.tokens_reserved_to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BindVersion, ServiceId, TableId, TableRef};
    use crate::store::BindRecord;

    #[test]
    fn the_highest_of_each_number_is_kept_whichever_table_goes_first() {
        let table = |id, version, tokens_reserved_to| TableRecord {
            table: TableRef::new("g", "t").expect("names"),
            id: TableId::new(id),
            partitions: 1,
            tokens_reserved_to: FencingToken::new(tokens_reserved_to),
            binds: vec![BindRecord {
                owner: ServiceId::new(1),
                version: BindVersion::new(version),
            }],
            claimable_from: Default::default(),
        };
        let tables = [table(1, 9, 50), table(3, 4, 70), table(12, 2, 60)];
        let highest = Forgotten {
            high_water: EpochNumber::new(12),
            tokens_reserved_to: FencingToken::new(70),
        };
        assert_eq!(tables.iter().fold(Forgotten::default(), Forgotten::with), highest);
        assert_eq!(tables.iter().rev().fold(Forgotten::default(), Forgotten::with), highest);
        assert!(Forgotten::default().is_none() && !highest.is_none());
    }
}
