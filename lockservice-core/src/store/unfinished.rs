//! The record of a restore that is under way: while it stands in a store, no leader serves from it.
//!
//! It is the record of an incarnation whose number no leader ever hands out (all begin with an
//! epoch, and there is no epoch 0), so that every backend can hold it, in every format.

use super::{ServiceRecord, ServiceState, StoreState};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, EpochNumber, FencingToken, NodeName, Nonce, ServiceId};

impl StoreState {
    /// The number of the record.
    pub const UNFINISHED: ServiceId = ServiceId::new(0);

    /// The record of a restore of `dump`, which says where that came from.
    pub fn unfinished(dump: &str) -> ServiceRecord {
        ServiceRecord {
            id: Self::UNFINISHED,
            node: NodeName::new("unfinished restore").expect("a valid name"),
            nonce: Nonce::default(),
            address: dump.to_owned(),
            state: ServiceState::Fenced,
            succession: Default::default(),
        }
    }

    /// The dump that is being restored into this store, if a restore was begun and not finished.
    pub fn unfinished_restore(&self) -> Option<&str> {
        let record = self.services.iter().find(|service| service.id == Self::UNFINISHED);
        record.map(|record| record.address.as_str())
    }

    /// Checks that no restore into this store was interrupted.
    ///
    /// # Errors
    /// `StoreUnusable` if one was not finished: the store holds a part of what it should.
    pub(crate) fn check_finished(&self) -> Result<()> {
        match self.unfinished_restore() {
            None => Ok(()),
            Some(dump) => Err(Error::new(
                ErrorKind::StoreUnusable,
                "a restore into this store was not finished: run `lockservice store restore` \
                    again with the same dump, or empty the store",
            )
            .with("dump of", dump)),
        }
    }

    /// The highest epoch that any number in the store lies in. The end of a block of tokens belongs
    /// to the block before (F2).
    pub fn highest_epoch(&self) -> Epoch {
        let last = |reserved_to: FencingToken| match self.volatile_tokens_from {
            Some(_) => EpochNumber::default(),
            None => EpochNumber::from(reserved_to).previous(),
        };
        let forgotten = last(self.forgotten.tokens_reserved_to);
        let tokens = self.tables.iter().map(|table| last(table.tokens_reserved_to));
        tokens.fold(forgotten, EpochNumber::max).max(self.highest_number()).epoch()
    }

    /// The highest version, incarnation or table id in the store; no leader ever handed out a
    /// higher one durably, for the incarnation with the highest number is never forgotten, and of a
    /// table that is forgotten its numbers are kept.
    pub fn highest_number(&self) -> EpochNumber {
        let tables = self.tables.iter().flat_map(|table| {
            table.binds.iter().map(|bind| bind.version.into()).chain([table.id.into()])
        });
        let services = self.services.iter().map(|service| service.id.into());
        tables.chain(services).fold(self.forgotten.high_water, EpochNumber::max)
    }
}
