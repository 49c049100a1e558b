//! [`Inspection`]: a store as an operator sees it, damaged or not. A leader reads it with
//! [`Damage::refused`] instead.

use super::{Head, StoreState};
use crate::error::{Error, ErrorKind, Result};

/// So many records that cannot be read are named; what is beyond is only counted.
const NAMED_MAX: usize = 100;

/// The content of a store that may be damaged. Never to be led with.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The store's URL without secrets.
    pub store: String,
    /// Every record that could be read.
    pub state: StoreState,
    /// The leadership as it is recorded; `None` if there was never one, or if its record cannot be
    /// read.
    pub head: Option<Head>,
    /// The records that could not be read.
    pub damage: Damage,
}

/// The fate of a record that cannot be read: it ends the reading, or is noted, and the reading
/// goes on.
#[derive(Clone, Debug)]
pub struct Damage {
    named_max: usize,
    named: Vec<Error>,
    unnamed: usize,
}

impl Damage {
    /// The first record that cannot be read ends the reading.
    pub const fn refused() -> Self {
        Self { named_max: 0, named: Vec::new(), unnamed: 0 }
    }

    /// Records that cannot be read are noted: the first hundred by name.
    pub const fn noted() -> Self {
        Self { named_max: NAMED_MAX, named: Vec::new(), unnamed: 0 }
    }

    /// The result of a reading; `None` for a record that cannot be read, which was noted.
    ///
    /// # Errors
    /// That of the first such record if it ends the reading, and what is wrong with the store as a
    /// whole: every error but a `StoreCorrupt` or `StoreNewer` that names its `record`.
    pub fn tolerate<T>(&mut self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if self.named_max > 0 && is_of_a_record(&error) => {
                if self.named.len() < self.named_max {
                    self.named.push(error);
                } else {
                    self.unnamed += 1;
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The reasons why records could not be read. Each error names one as its `record`.
    pub fn named(&self) -> &[Error] {
        &self.named
    }

    /// The number of further records that could not be read.
    pub const fn unnamed(&self) -> usize {
        self.unnamed
    }
}

fn is_of_a_record(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StoreCorrupt | ErrorKind::StoreNewer)
        && error.context().any(|(name, _)| name == "record")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_record(number: usize) -> Result<()> {
        Err(Error::new(ErrorKind::StoreCorrupt, "damaged").with("record", number))
    }

    #[test]
    fn a_hundred_records_are_named_and_the_others_counted() {
        let mut damage = Damage::noted();
        assert_eq!(damage.tolerate(Ok(7)).expect("nothing is wrong"), Some(7));
        for number in 0..103 {
            assert_eq!(damage.tolerate(of_record(number)).expect("noted"), None);
        }
        assert_eq!((damage.named().len(), damage.unnamed()), (100, 3));
    }

    #[test]
    fn damage_ends_the_reading_of_a_leader_and_bytes_of_no_record_end_every_reading() {
        Damage::refused().tolerate(of_record(1)).expect_err("the first");
        let mut damage = Damage::noted();
        for kind in [ErrorKind::StoreCorrupt, ErrorKind::Unavailable] {
            assert_eq!(
                damage
                    .tolerate::<()>(Err(Error::new(kind, "all of it")))
                    .expect_err("all of it")
                    .kind(),
                kind
            );
        }
        assert_eq!((damage.named().len(), damage.unnamed()), (0, 0));
    }
}
