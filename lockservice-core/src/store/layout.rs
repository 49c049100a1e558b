//! The layout of the records in a store of keys and values: the key of each, and the record of the
//! leadership.
//!
//! | key | value |
//! |---|---|
//! | `format` | [`STORE_FORMAT`] in decimal digits; the one entry that every version can read |
//! | `head` | the leadership, and the last write |
//! | `constants` | the cluster's constants |
//! | `table/GROUP\0NAME` | a table |
//! | `forgotten` | the highest numbers of the tables that were forgotten; absent if none was |
//! | `service/` + 8 bytes | an incarnation |
//! | `tombstone/` + 16 bytes | a transaction that can never commit, or the floor of an origin |

use super::{Batch, Head, Op, ServiceRecord, StoreState, TableRecord, decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ServiceId, TableRef, TxnCounter, TxnId};

/// Version of this layout. A store of a higher version is refused, never guessed at.
pub const STORE_FORMAT: u32 = 1;

pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const HEAD_KEY: &[u8] = b"head";
const CONSTANTS_KEY: &[u8] = b"constants";
const FORGOTTEN_KEY: &[u8] = b"forgotten";
const TABLE_PREFIX: &[u8] = b"table/";
const SERVICE_PREFIX: &[u8] = b"service/";
const TOMBSTONE_PREFIX: &[u8] = b"tombstone/";

/// One change to one entry of a key-value store. Exhaustive: an engine must apply each.
///
/// Exhaustive on purpose: a backend must store each.
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

/// The changes that one batch means, in order. For backends that keep keys and values.
pub fn changes(batch: &Batch) -> Vec<Change> {
    batch.iter().map(change).collect()
}

fn change(op: &Op) -> Change {
    match op {
        Op::PutConstants(constants) => {
            Change::Put { key: CONSTANTS_KEY.to_vec(), value: encode(constants) }
        }
        Op::PutTable(table) => Change::Put { key: table_key(&table.table), value: encode(table) },
        Op::RemoveTable(table) => Change::Delete { key: table_key(table) },
        Op::PutForgotten(forgotten) => {
            Change::Put { key: FORGOTTEN_KEY.to_vec(), value: encode(forgotten) }
        }
        Op::PutService(service) => {
            Change::Put { key: service_key(service.id), value: encode(service) }
        }
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
    [
        TOMBSTONE_PREFIX,
        txn.origin.get().to_be_bytes().as_slice(),
        txn.counter.get().to_be_bytes().as_slice(),
    ]
    .concat()
}

/// Adds one entry of a store of keys and values to `state`.
///
/// # Errors
/// `StoreCorrupt` for an entry that this format does not have, or one that does not stand under its
/// own key, and those of [`decode`]. Nothing is added then, and the error names the entry.
pub fn absorb(state: &mut StoreState, key: &[u8], value: &[u8]) -> Result<()> {
    let what = name(key);
    let check_key = |own: Vec<u8>| if own == key { Ok(()) } else { Err(damaged(&what)) };
    if key == FORMAT_KEY {
        check_format(value)?;
    } else if key == HEAD_KEY {
        let head = decode_head(Some(value))?;
        (state.epoch, state.applied) = (head.epoch, head.applied);
    } else if key == CONSTANTS_KEY {
        state.constants = Some(decode(&what, value)?);
    } else if key == FORGOTTEN_KEY {
        state.forgotten = decode(&what, value)?;
    } else if key.starts_with(TABLE_PREFIX) {
        let table: TableRecord = decode(&what, value)?;
        check_key(table_key(&table.table))?;
        state.tables.push(table);
    } else if key.starts_with(SERVICE_PREFIX) {
        let service: ServiceRecord = decode(&what, value)?;
        check_key(service_key(service.id))?;
        state.services.push(service);
    } else if key.starts_with(TOMBSTONE_PREFIX) {
        let txn: TxnId = decode(&what, value)?;
        check_key(tombstone_key(txn))?;
        state.tombstones.push(txn);
    } else {
        return Err(damaged(&what));
    }
    Ok(())
}

/// The text for people about the entry under `key`, which may be damaged itself: nothing in it may
/// reach a terminal as it is.
fn name(key: &[u8]) -> String {
    if let Some(names) = key.strip_prefix(TABLE_PREFIX) {
        let names = String::from_utf8_lossy(names).replacen('\0', "/", 1);
        return format!("table {}", names.replace(char::is_control, "\u{fffd}"));
    }
    if let Some(id) = key.strip_prefix(SERVICE_PREFIX).and_then(number) {
        return format!("incarnation {id}");
    }
    if let Some((origin, counter)) =
        key.strip_prefix(TOMBSTONE_PREFIX).and_then(|txn| txn.split_at_checked(8))
        && let (Some(origin), Some(counter)) = (number(origin), number(counter))
    {
        let (origin, counter) = (ServiceId::new(origin), TxnCounter::new(counter));
        return format!("tombstone {}", TxnId { origin, counter });
    }
    key.escape_ascii().to_string()
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// Fails with `StoreNewer` for a store of a later format, with `StoreCorrupt` for what is no format
/// at all.
pub(super) fn check_format(value: &[u8]) -> Result<()> {
    match std::str::from_utf8(value).ok().and_then(|text| text.parse::<u32>().ok()) {
        Some(STORE_FORMAT) => Ok(()),
        Some(format) if format > STORE_FORMAT => Err(Error::new(
            ErrorKind::StoreNewer,
            format!(
                "the store was written by a newer version of lockservice (store format {format}, \
                 this one reads \
                 {STORE_FORMAT}): use that version, or another store"
            ),
        )),
        _ => Err(damaged("format")),
    }
}

fn damaged(record: &str) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        "a record in the store is damaged: restore the store from a backup",
    )
    .with("record", record)
}

/// The head that stands under [`HEAD_KEY`]; the first one if nothing does.
pub(super) fn decode_head(found: Option<&[u8]>) -> Result<Head> {
    found.map_or_else(|| Ok(Head::default()), |bytes| decode("head", bytes))
}

/// The change that makes this the head.
pub(super) fn put_head(head: &Head) -> Change {
    Change::Put { key: HEAD_KEY.to_vec(), value: encode(head) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TxnNumber;

    #[test]
    fn a_record_that_stands_under_the_key_of_another_is_damage() {
        let txn = TxnId::new(ServiceId::new(7), TxnNumber::new(3), true);
        let mut state = StoreState::default();
        absorb(&mut state, &tombstone_key(txn), &encode(&txn)).expect("its own key");
        assert_eq!(state.tombstones, [txn]);
        let other = tombstone_key(TxnId::new(ServiceId::new(7), TxnNumber::new(4), true));
        assert_eq!(
            absorb(&mut state, &other, &encode(&txn)).expect_err("moved").kind(),
            ErrorKind::StoreCorrupt
        );
        assert_eq!(
            absorb(&mut state, b"what", b"1").expect_err("unknown").kind(),
            ErrorKind::StoreCorrupt
        );
        assert_eq!(state.tombstones, [txn], "damage adds nothing");
    }

    #[test]
    fn every_entry_has_a_name_for_people() {
        let table = TableRef::new("g", "t").expect("names");
        let txn = TxnId::new(ServiceId::new(7), TxnNumber::new(3), true);
        for (key, called) in [
            (table_key(&table), format!("table {table}")),
            (service_key(ServiceId::new(7)), "incarnation 7".to_owned()),
            (tombstone_key(txn), format!("tombstone {txn}")),
            (HEAD_KEY.to_vec(), "head".to_owned()),
            (b"table/\x1b[2J\0\xff".to_vec(), "table \u{fffd}[2J/\u{fffd}".to_owned()),
            (b"service/short".to_vec(), "service/short".to_owned()),
            (b"tombstone/short".to_vec(), "tombstone/short".to_owned()),
            (b"\x1b".to_vec(), "\\x1b".to_owned()),
        ] {
            assert_eq!(name(&key), called);
        }
    }

    #[test]
    fn a_later_format_is_refused_as_newer_and_anything_else_as_damage() {
        check_format(b"1").expect("this format");
        assert_eq!(check_format(b"2").expect_err("newer").kind(), ErrorKind::StoreNewer);
        assert_eq!(check_format(b"0").expect_err("never was").kind(), ErrorKind::StoreCorrupt);
        assert_eq!(check_format(b"\xff").expect_err("garbage").kind(), ErrorKind::StoreCorrupt);
    }
}
