//! Records as they stand in the tables, and one batch as the arguments of `write_batch`.

use std::collections::BTreeMap;

use lockservice_core::store::{
    Batch, ClusterConstants, Head, Op, RECORD_FORMAT, ServiceRecord, StoreState, TableRecord,
    decode,
};
use lockservice_core::{Error, ErrorKind, Result, ServiceId, TableRef, TxnId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// One batch, each key once: the last change to it.
#[derive(Debug, Default)]
pub(crate) struct Arrays {
    pub(crate) constants: Option<String>,
    pub(crate) forgotten: Option<String>,
    pub(crate) put_groups: Vec<String>,
    pub(crate) put_names: Vec<String>,
    pub(crate) put_tables: Vec<String>,
    pub(crate) gone_groups: Vec<String>,
    pub(crate) gone_names: Vec<String>,
    pub(crate) put_service_ids: Vec<String>,
    pub(crate) put_services: Vec<String>,
    pub(crate) gone_services: Vec<String>,
    pub(crate) put_origins: Vec<String>,
    pub(crate) put_counters: Vec<String>,
    pub(crate) gone_origins: Vec<String>,
    pub(crate) gone_counters: Vec<String>,
}

impl From<&Batch> for Arrays {
    fn from(batch: &Batch) -> Self {
        let mut arrays = Self::default();
        let mut tables = BTreeMap::<&TableRef, Option<&TableRecord>>::new();
        let mut services = BTreeMap::<ServiceId, Option<&ServiceRecord>>::new();
        let mut tombstones = BTreeMap::<TxnId, bool>::new();
        for op in batch {
            match op {
                Op::PutConstants(constants) => arrays.constants = Some(json(constants)),
                Op::PutTable(table) => drop(tables.insert(&table.table, Some(table))),
                Op::RemoveTable(table) => drop(tables.insert(table, None)),
                Op::PutForgotten(forgotten) => arrays.forgotten = Some(json(forgotten)),
                Op::PutService(service) => drop(services.insert(service.id, Some(service))),
                Op::RemoveService(id) => drop(services.insert(*id, None)),
                Op::PutTombstone(txn) => drop(tombstones.insert(*txn, true)),
                Op::RemoveTombstone(txn) => drop(tombstones.insert(*txn, false)),
            }
        }
        for (name, table) in tables {
            let (groups, names) = match table {
                Some(_) => (&mut arrays.put_groups, &mut arrays.put_names),
                None => (&mut arrays.gone_groups, &mut arrays.gone_names),
            };
            groups.push(name.group.as_str().to_owned());
            names.push(name.name.as_str().to_owned());
            arrays.put_tables.extend(table.map(json));
        }
        for (id, service) in services {
            match service {
                Some(service) => {
                    arrays.put_service_ids.push(id.to_string());
                    arrays.put_services.push(json(service));
                }
                None => arrays.gone_services.push(id.to_string()),
            }
        }
        for (txn, there) in tombstones {
            let (origins, counters) = match there {
                true => (&mut arrays.put_origins, &mut arrays.put_counters),
                false => (&mut arrays.gone_origins, &mut arrays.gone_counters),
            };
            origins.push(txn.origin.to_string());
            counters.push(txn.counter.to_string());
        }
        arrays
    }
}

pub(crate) fn json<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record)
        .expect("records are plain data, and writing to memory cannot fail")
}

/// The head that a row carries in `format` and `record`; `None` for none, and for the one that
/// stands for "no leader ever".
pub(crate) fn head(row: &PgRow) -> Result<Option<Head>> {
    let Some(record) = column::<Option<String>>(row, "record", "head")? else {
        return Ok(None);
    };
    let head: Head = versioned("head", column(row, "format", "head")?, &record)?;
    Ok((head != Head::default()).then_some(head))
}

pub(crate) fn add_constants(state: &mut StoreState, row: &PgRow) -> Result<()> {
    let constants: ClusterConstants = record("constants", row)?;
    state.constants = Some(constants);
    Ok(())
}

pub(crate) fn add_forgotten(state: &mut StoreState, row: &PgRow) -> Result<()> {
    state.forgotten = record("forgotten", row)?;
    Ok(())
}

pub(crate) fn add_table(state: &mut StoreState, row: &PgRow) -> Result<()> {
    let (group, name): (String, String) =
        (column(row, "group", "a table")?, column(row, "name", "a table")?);
    let what = format!("table {group}/{name}");
    let table: TableRecord = record(&what, row)?;
    if table.table.group.as_str() != group || table.table.name.as_str() != name {
        return Err(damaged(&what));
    }
    state.tables.push(table);
    Ok(())
}

pub(crate) fn add_service(state: &mut StoreState, row: &PgRow) -> Result<()> {
    let id: String = column(row, "id", "a service")?;
    let what = format!("service {id}");
    let service: ServiceRecord = record(&what, row)?;
    if service.id.to_string() != id {
        return Err(damaged(&what));
    }
    state.services.push(service);
    Ok(())
}

pub(crate) fn add_tombstone(state: &mut StoreState, row: &PgRow) -> Result<()> {
    let (origin, counter): (String, String) =
        (column(row, "origin", "a tombstone")?, column(row, "counter", "a tombstone")?);
    let what = format!("tombstone {origin} {counter}");
    let record = format!("{{\"origin\":{origin},\"counter\":{counter}}}");
    state.tombstones.push(versioned(&what, column(row, "format", &what)?, &record)?);
    Ok(())
}

fn record<T: DeserializeOwned>(what: &str, row: &PgRow) -> Result<T> {
    versioned(what, column(row, "format", what)?, &column::<String>(row, "record", what)?)
}

/// Reads a record as the core does: `StoreNewer` for a later format, `StoreCorrupt` for what is no
/// record.
fn versioned<T: DeserializeOwned>(what: &str, format: i16, record: &str) -> Result<T> {
    let format = match u8::try_from(format) {
        Ok(format) => format,
        // The format is not known in any case: later ones are above, damage is 0.
        Err(_) if format > 0 => u8::MAX,
        Err(_) => 0,
    };
    decode(what, &[&[format], record.as_bytes()].concat())
}

fn column<'r, T>(row: &'r PgRow, name: &str, what: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(name).map_err(|e| damaged(what).with_source(e))
}

fn damaged(what: &str) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        "a record in the store is damaged: restore the store from a backup",
    )
    .with("record", what)
}

/// The format of what is written, as the column's type.
pub(crate) const fn format_written() -> i16 {
    RECORD_FORMAT as i16
}

#[cfg(test)]
mod tests {
    use lockservice_core::{FencingToken, ServiceId, TableId, TxnNumber};

    use super::*;

    #[test]
    fn the_last_change_to_a_key_counts() {
        let txn = TxnId::new(ServiceId::new(u64::MAX), TxnNumber::new(3), true);
        let table = TableRef::new("g", "t").expect("names");
        let batch = vec![
            Op::PutTombstone(txn),
            Op::RemoveTombstone(txn),
            Op::RemoveService(ServiceId::new(7)),
            Op::PutTable(TableRecord {
                table: table.clone(),
                id: TableId::new(1),
                partitions: 1,
                tokens_reserved_to: FencingToken::new(1),
                binds: Vec::new(),
                claimable_from: Default::default(),
            }),
            Op::RemoveTable(table),
        ];
        let arrays = Arrays::from(&batch);
        assert!(arrays.put_origins.is_empty());
        assert_eq!(arrays.gone_origins, [u64::MAX.to_string()]);
        assert_eq!(arrays.gone_services, ["7"]);
        assert_eq!((arrays.put_names.len(), arrays.put_tables.len()), (0, 0));
        assert_eq!(
            (arrays.gone_groups, arrays.gone_names),
            (vec!["g".to_owned()], vec!["t".to_owned()])
        );
    }

    #[test]
    fn a_record_of_a_later_format_is_newer_and_one_of_none_is_damage() {
        let read = |format, text| versioned::<TxnId>("x", format, text).map_err(|e| e.kind());
        let text = r#"{"origin":1,"counter":2}"#;
        read(1, text).expect("this format");
        for newer in [2, 255, 256, i16::MAX] {
            assert_eq!(read(newer, text), Err(ErrorKind::StoreNewer));
        }
        for damage in [0, -1] {
            assert_eq!(read(damage, text), Err(ErrorKind::StoreCorrupt));
        }
        assert_eq!(read(1, "{}"), Err(ErrorKind::StoreCorrupt));
    }
}
