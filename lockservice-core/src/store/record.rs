//! The records that a store keeps, and their one encoding.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Forgotten;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{
    BindVersion, Epoch, FencingToken, HolderMark, NodeName, Nonce, ServiceId, TableId, TableRef,
    TxnId, WriteNumber,
};

/// Version of the encoding of every record. A record of a higher version is refused, never guessed
/// at.
pub const RECORD_FORMAT: u8 = 1;

/// Durations that every node of a cluster must agree on; kept in the store. Each is at least one
/// second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConstants {
    /// The time for which a leadership lasts without a renewal, in milliseconds. It is at most half
    /// of the lease's, or a fail-over of the leader would cost leases.
    pub leadership_ttl_ms: u64,
    /// The time for which a service's lease lasts without a renewal, in milliseconds.
    pub lease_ttl_ms: u64,
}

impl Default for ClusterConstants {
    /// Two seconds of leadership, five of a lease: a leader that died is replaced before the leases
    /// run out that it can no longer renew, so that a fail-over costs no client a lock.
    fn default() -> Self {
        Self { leadership_ttl_ms: 2_000, lease_ttl_ms: 5_000 }
    }
}

impl ClusterConstants {
    /// The defaults for a store that one process opens exclusively: fifteen seconds of a lease.
    /// With such a store no node waits for the lease of another, and holders outlast a longer
    /// absence of their server.
    pub const fn for_exclusive_store() -> Self {
        Self { leadership_ttl_ms: 2_000, lease_ttl_ms: 15_000 }
    }

    /// The time for which a service's lease lasts without a renewal.
    pub const fn lease_ttl(&self) -> Duration {
        Duration::from_millis(self.lease_ttl_ms)
    }

    /// The time for which a leadership lasts without a renewal.
    pub const fn leadership_ttl(&self) -> Duration {
        Duration::from_millis(self.leadership_ttl_ms)
    }
}

/// A lock table: its number, its layout, its bind, and the tokens that may have been handed out
/// (B6).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableRecord {
    /// Group and name.
    pub table: TableRef,
    /// The table's number, never reused.
    pub id: TableId,
    /// Number of partitions, at least 1.
    pub partitions: u32,
    /// First token that no block has covered yet (F2).
    pub tokens_reserved_to: FencingToken,
    /// One bind per partition, in order.
    pub binds: Vec<BindRecord>,
    /// If the table was bound for claims: the first version whose holders may not have claimed yet
    /// (P6). Else 0.
    #[serde(default, skip_serializing_if = "is_none")]
    pub claimable_from: BindVersion,
}

fn is_none(version: &BindVersion) -> bool {
    *version == BindVersion::default()
}

/// The owner of a partition, now or last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BindRecord {
    /// The owning incarnation. If that is fenced or resigned, the bind is invalid (B3).
    pub owner: ServiceId,
    /// The bind's version.
    pub version: BindVersion,
}

/// An incarnation of a service (B1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// The incarnation.
    pub id: ServiceId,
    /// The node it is an incarnation of.
    pub node: NodeName,
    /// The random number that distinguishes it from any other with the same id.
    pub nonce: Nonce,
    /// The address at which clients reach it.
    pub address: String,
    /// The state of the incarnation: it may renew its lease or not.
    pub state: ServiceState,
    /// What it follows, and what it left.
    #[serde(default, skip_serializing_if = "Succession::is_empty")]
    pub succession: Succession,
}

/// The place of an incarnation in the line of its node's processes (P6).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Succession {
    /// The first incarnation of its node that it surely follows, with all between them: it takes
    /// the claims of their holders. 0 if that is not known of any.
    #[serde(default)]
    pub follows: ServiceId,
    /// The tables in which its sessions held something when it resigned for a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<TableHolders>,
}

impl Succession {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A table in which sessions hold something.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableHolders {
    /// The table.
    pub table: TableId,
    /// Locks that were granted under binds of this version and of later ones may be held.
    pub from: BindVersion,
    /// The sessions.
    pub holders: Vec<HolderMark>,
    /// The sessions that wait for something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiters: Vec<HolderMark>,
    /// True if others may hold something too: those that have not claimed yet after an earlier
    /// restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub others: bool,
}

/// The state of an incarnation. It only ever moves down this list. Exhaustive: a leader must handle
/// each.
///
/// Exhaustive on purpose: a backend must store each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// It may renew its lease.
    Live,
    /// It lapsed or was replaced: it never renews again, and none of its transactions commits (C4).
    Fenced,
    /// It said that it was finished, and that nothing of it is in use.
    Resigned,
}

/// One change to one record. Exhaustive: a backend must apply each.
///
/// Exhaustive on purpose: a backend must store each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Sets the cluster's constants.
    PutConstants(ClusterConstants),
    /// Creates or replaces a table, by its name.
    PutTable(TableRecord),
    /// Forgets a table, together with or after the [`Forgotten`] that covers its numbers.
    RemoveTable(TableRef),
    /// Sets what is kept of all tables that were forgotten.
    PutForgotten(Forgotten),
    /// Creates or replaces an incarnation, by its id.
    PutService(ServiceRecord),
    /// Forgets an incarnation to which no bind refers any more.
    RemoveService(ServiceId),
    /// Records that a transaction can never commit, or that all below a floor are over
    /// ([`TxnId::floor_tombstone`], C4).
    PutTombstone(TxnId),
    /// Forgets that, together with or after what says the same: the origin's floor or its fence.
    RemoveTombstone(TxnId),
}

/// Changes that are applied together or not at all.
pub type Batch = Vec<Op>;

/// Everything in a store.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreState {
    /// The epoch of the current or last leadership; 0 if there was none.
    pub epoch: Epoch,
    /// The number of the last applied write; 0 if there was none.
    pub applied: WriteNumber,
    /// The cluster's constants, if any leader has set them.
    pub constants: Option<ClusterConstants>,
    /// Every table, in no particular order.
    pub tables: Vec<TableRecord>,
    /// The facts that are kept of the tables that were forgotten.
    pub forgotten: Forgotten,
    /// Every incarnation, in no particular order.
    pub services: Vec<ServiceRecord>,
    /// Every transaction that can never commit, and the floors of the origins
    /// ([`TxnId::floor_tombstone`]), in no particular order.
    pub tombstones: Vec<TxnId>,
    /// `None` for every store that outlives the process. A store that forgets everything with it
    /// names the token from which this life of the process begins (B7): its epochs start again at 1
    /// and cannot keep tokens growing.
    pub volatile_tokens_from: Option<FencingToken>,
}

/// Encodes a record: one byte of [`RECORD_FORMAT`], then JSON.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = vec![RECORD_FORMAT];
    serde_json::to_writer(&mut bytes, record)
        .expect("records are plain data, and writing to memory cannot fail");
    bytes
}

/// Decodes what [`encode`] made.
///
/// `what` names the record in errors.
///
/// # Errors
/// - `StoreNewer` for a record of a later format: use that version.
/// - `StoreCorrupt` for anything else that is not a record: restore the store from a backup.
pub fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    match bytes.split_first() {
        Some((&RECORD_FORMAT, json)) => serde_json::from_slice(json).map_err(|e| {
            Error::new(
                ErrorKind::StoreCorrupt,
                "a record in the store is damaged: restore the store from a backup",
            )
            .with("record", what)
            .with_source(e)
        }),
        Some((&format, _)) if format > RECORD_FORMAT => Err(Error::new(
            ErrorKind::StoreNewer,
            format!(
                "the store was written by a newer version of lockservice (record format \
                {format}, this one reads {RECORD_FORMAT}): use that version"
            ),
        )
        .with("record", what)),
        _ => Err(Error::new(
            ErrorKind::StoreCorrupt,
            "a record in the store is damaged: restore the store from a backup",
        )
        .with("record", what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_encoding_and_a_newer_or_damaged_one_is_refused_by_name() {
        let record = TableRecord {
            table: TableRef::new("g", "t").expect("names"),
            id: TableId::new(1),
            partitions: 1,
            tokens_reserved_to: FencingToken::new(9),
            binds: vec![BindRecord { owner: ServiceId::new(2), version: BindVersion::new(3) }],
            claimable_from: Default::default(),
        };
        let mut bytes = encode(&record);
        assert_eq!(decode::<TableRecord>("t", &bytes).expect("own encoding"), record);
        bytes[0] = RECORD_FORMAT + 1;
        assert_eq!(
            decode::<TableRecord>("t", &bytes).expect_err("newer").kind(),
            ErrorKind::StoreNewer
        );
        bytes[0] = RECORD_FORMAT;
        bytes.truncate(10);
        assert_eq!(
            decode::<TableRecord>("t", &bytes).expect_err("cut").kind(),
            ErrorKind::StoreCorrupt
        );
        assert_eq!(
            decode::<TableRecord>("t", &[]).expect_err("empty").kind(),
            ErrorKind::StoreCorrupt
        );
    }
}
