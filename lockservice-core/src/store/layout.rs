//! How a store of keys and values keeps the records: the key of each, and the record of the leadership.
//!
//! | key | value |
//! |---|---|
//! | `format` | [`STORE_FORMAT`] in decimal digits; the one entry that every version can read |
//! | `head` | who leads and how far the store has come |
//! | `constants` | the cluster's constants |
//! | `table/GROUP\0NAME` | a table |
//! | `service/` + 8 bytes | an incarnation |
//! | `tombstone/` + 16 bytes | a transaction that can never commit |

use serde::{Deserialize, Serialize};

use super::{Batch, Candidate, Leadership, Lineage, Op, StoreState, decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, NodeName, Nonce, ServiceId, TableRef, TxnId};

/// Version of this layout. A store of a higher version is refused, never guessed at.
pub const STORE_FORMAT: u32 = 1;

pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const HEAD_KEY: &[u8] = b"head";
const CONSTANTS_KEY: &[u8] = b"constants";
const TABLE_PREFIX: &[u8] = b"table/";
const SERVICE_PREFIX: &[u8] = b"service/";
const TOMBSTONE_PREFIX: &[u8] = b"tombstone/";

/// One change to one entry of a key-value store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Creates or replaces the entry.
    Put {
        /// The entry's key.
        key: Vec<u8>,
        /// The entry's new value.
        value: Vec<u8>,
    },
    /// Removes the entry, if it is there.
    Delete {
        /// The entry's key.
        key: Vec<u8>,
    },
}

/// The changes that one batch means, in order.
pub(super) fn changes(batch: &Batch) -> Vec<Change> {
    batch.iter().map(change).collect()
}

fn change(op: &Op) -> Change {
    match op {
        Op::PutConstants(constants) => Change::Put { key: CONSTANTS_KEY.to_vec(), value: encode(constants) },
        Op::PutTable(table) => Change::Put { key: table_key(&table.table), value: encode(table) },
        Op::PutService(service) => Change::Put { key: service_key(service.id), value: encode(service) },
        Op::RemoveService(id) => Change::Delete { key: service_key(*id) },
        Op::PutTombstone(txn) => Change::Put { key: tombstone_key(*txn), value: encode(txn) },
        Op::RemoveTombstone(txn) => Change::Delete { key: tombstone_key(*txn) },
    }
}

/// Names hold no control characters, so a zero byte ends a group unambiguously.
fn table_key(table: &TableRef) -> Vec<u8> {
    [TABLE_PREFIX, table.group.as_str().as_bytes(), b"\0", table.name.as_str().as_bytes()].concat()
}

fn service_key(id: ServiceId) -> Vec<u8> {
    [SERVICE_PREFIX, id.get().to_be_bytes().as_slice()].concat()
}

fn tombstone_key(txn: TxnId) -> Vec<u8> {
    [TOMBSTONE_PREFIX, txn.origin.get().to_be_bytes().as_slice(), txn.counter.to_be_bytes().as_slice()].concat()
}

/// Adds one entry to `state`.
///
/// Fails with `StoreCorrupt` for an entry that this format does not have, or one that does not stand under its own key, and as
/// [`decode`] does.
pub(super) fn absorb(state: &mut StoreState, key: &[u8], value: &[u8]) -> Result<()> {
    let what = || String::from_utf8_lossy(key).into_owned();
    let own_key = if key == FORMAT_KEY {
        return check_format(value);
    } else if key == HEAD_KEY {
        let head = Head::decode(Some(value))?;
        (state.epoch, state.applied) = (head.epoch, head.applied);
        return Ok(());
    } else if key == CONSTANTS_KEY {
        state.constants = Some(decode("constants", value)?);
        return Ok(());
    } else if key.starts_with(TABLE_PREFIX) {
        state.tables.push(decode(&what(), value)?);
        state.tables.last().map(|table| table_key(&table.table))
    } else if key.starts_with(SERVICE_PREFIX) {
        state.services.push(decode("an incarnation", value)?);
        state.services.last().map(|service| service_key(service.id))
    } else if key.starts_with(TOMBSTONE_PREFIX) {
        state.tombstones.push(decode("a tombstone", value)?);
        state.tombstones.last().map(|txn| tombstone_key(*txn))
    } else {
        None
    };
    if own_key.as_deref() == Some(key) { Ok(()) } else { Err(damaged(&what())) }
}

/// Fails with `StoreNewer` for a store of a later format, with `StoreCorrupt` for what is no format at all.
pub(super) fn check_format(value: &[u8]) -> Result<()> {
    match std::str::from_utf8(value).ok().and_then(|text| text.parse::<u32>().ok()) {
        Some(STORE_FORMAT) => Ok(()),
        Some(format) if format > STORE_FORMAT => Err(Error::new(
            ErrorKind::StoreNewer,
            format!(
                "the store was written by a newer version of lockservice (store format {format}, this one reads \
                 {STORE_FORMAT}): use that version, or another store"
            ),
        )),
        _ => Err(damaged("format")),
    }
}

fn damaged(record: &str) -> Error {
    Error::new(ErrorKind::StoreCorrupt, "a record in the store is damaged: restore the store from a backup")
        .with("record", record)
}

/// Who leads and how far the store has come: the one record that every write reads and replaces (L2).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Head {
    /// The epoch of the current or last leadership; 0 if there was none.
    pub(super) epoch: Epoch,
    /// The number of the last applied write; 0 if there was none.
    pub(super) applied: u64,
    /// The current leader; `None` if there never was one, or if the last one resigned.
    leader: Option<Leader>,
}

/// For people who look into the store: who had it open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Leader {
    node: NodeName,
    nonce: Nonce,
    address: String,
}

impl Head {
    /// The head of a store in which `found` stands, the first one if nothing does.
    pub(super) fn decode(found: Option<&[u8]>) -> Result<Self> {
        found.map_or_else(|| Ok(Self::default()), |bytes| decode("head", bytes))
    }

    /// The change that makes this the head.
    pub(super) fn change(&self) -> Change {
        Change::Put { key: HEAD_KEY.to_vec(), value: encode(self) }
    }

    /// The head once `candidate` leads, and the answer to it (L1: the exclusive open is the leadership; L4: epochs only grow).
    pub(super) fn acquire(&self, candidate: &Candidate) -> Result<(Self, Leadership)> {
        let leader =
            Leader { node: candidate.node.clone(), nonce: candidate.nonce, address: candidate.address.clone() };
        let epoch = self.epoch.max(candidate.floor).next()?;
        let head = Self { epoch, applied: self.applied, leader: Some(leader) };
        let acquired = Leadership::Acquired {
            epoch,
            applied: self.applied,
            exclusive: true,
            clean: self.leader.is_none(),
            lineage: Lineage::default(),
        };
        Ok((head, acquired))
    }

    /// Fails with `Fenced` unless `epoch` is the epoch of the current leadership (L2).
    pub(super) fn check(&self, epoch: Epoch) -> Result<()> {
        if epoch == self.epoch && self.leader.is_some() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Fenced,
            "another leader has taken over the store, or this one resigned: stop leading",
        )
        .with("epoch", epoch)
        .with("current", self.epoch))
    }

    /// The head after the write `number` of `epoch`, or `Fenced` if that is not the next one (L2).
    pub(super) fn advance(&self, epoch: Epoch, number: u64) -> Result<Self> {
        self.check(epoch)?;
        if self.applied.checked_add(1) != Some(number) {
            return Err(Error::new(
                ErrorKind::Fenced,
                "the write's number does not follow the last applied one: read that before the next write",
            )
            .with("number", number)
            .with("applied", self.applied));
        }
        Ok(Self { applied: number, ..self.clone() })
    }

    /// The head after the leader of `epoch` resigned.
    pub(super) fn resign(&self, epoch: Epoch) -> Result<Self> {
        self.check(epoch)?;
        Ok(Self { leader: None, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_stands_under_the_key_of_another_is_damage() {
        let txn = TxnId::new(ServiceId::new(7), 3, true);
        let mut state = StoreState::default();
        absorb(&mut state, &tombstone_key(txn), &encode(&txn)).expect("its own key");
        assert_eq!(state.tombstones, [txn]);
        let other = tombstone_key(TxnId::new(ServiceId::new(7), 4, true));
        assert_eq!(absorb(&mut state, &other, &encode(&txn)).expect_err("moved").kind(), ErrorKind::StoreCorrupt);
        assert_eq!(absorb(&mut state, b"what", b"1").expect_err("unknown").kind(), ErrorKind::StoreCorrupt);
    }

    #[test]
    fn a_later_format_is_refused_as_newer_and_anything_else_as_damage() {
        check_format(b"1").expect("this format");
        assert_eq!(check_format(b"2").expect_err("newer").kind(), ErrorKind::StoreNewer);
        assert_eq!(check_format(b"0").expect_err("never was").kind(), ErrorKind::StoreCorrupt);
        assert_eq!(check_format(b"\xff").expect_err("garbage").kind(), ErrorKind::StoreCorrupt);
    }
}
