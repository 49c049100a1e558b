//! [`diagnose`] and [`problems`]: whether what a store holds can be read, and makes sense. Pure.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::allocator::{TTL_MS_MAX, TTL_MS_MIN};
use crate::error::{Error, ErrorKind};
use crate::id::{
    EPOCH_END, EPOCH_SHIFT, Epoch, EpochNumber, FencingToken, NodeName, ServiceId, TableRef, TxnId,
};
use crate::store::{Inspection, ServiceState, StoreState, TableRecord};

/// Something in a store that should not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The kind of the problem.
    pub kind: ProblemKind,
    /// The record it was found in.
    pub record: String,
    /// The problem, and what to do.
    pub sentence: String,
}

/// The kinds of problems of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The record cannot be read.
    Damaged,
    /// The record is of a later format than this version reads.
    Newer,
    /// Two records have one name or one number.
    Twice,
    /// A number begins with an epoch that the store has not reached: it lost its newest leadership
    /// (L4).
    EpochAhead,
    /// A number lies outside of what it may be (F2).
    OutOfRange,
    /// A table has not one bind for each partition.
    Layout,
    /// A bind names an owner that has no record.
    UnknownOwner,
    /// Two incarnations of one node are live (B1).
    TwoLive,
    /// A restore into this store was interrupted.
    UnfinishedRestore,
}

impl ProblemKind {
    /// A stable name for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Damaged => ErrorKind::StoreCorrupt.name(),
            Self::Newer => ErrorKind::StoreNewer.name(),
            Self::Twice => "twice",
            Self::EpochAhead => "epoch_ahead",
            Self::OutOfRange => "out_of_range",
            Self::Layout => "layout",
            Self::UnknownOwner => "unknown_owner",
            Self::TwoLive => "two_live",
            Self::UnfinishedRestore => "unfinished_restore",
        }
    }

    /// True if the next leader copes with it by itself, so that a dump which has it can be
    /// restored: it takes an epoch above all numbers, holds an unknown owner for fenced, and waits
    /// out every lease.
    pub const fn heals(self) -> bool {
        matches!(self, Self::EpochAhead | Self::UnknownOwner | Self::TwoLive)
    }
}

/// Everything that is wrong with a store: each record that cannot be read (of more than a hundred,
/// how many more), or else what [`problems`] finds.
///
/// Not both: records that make no sense together may do so with those that could not be read.
pub fn diagnose(inspection: &Inspection) -> Vec<Problem> {
    let damage = &inspection.damage;
    if damage.named().is_empty() {
        return problems(&inspection.state);
    }
    let mut found: Vec<_> = damage.named().iter().map(unreadable).collect();
    found.sort_by(|a, b| a.record.cmp(&b.record));
    if damage.unnamed() > 0 {
        found.push(Problem {
            kind: ProblemKind::Damaged,
            record: format!("{} more records", damage.unnamed()),
            sentence: "they cannot be read either: restore the store from a backup".to_owned(),
        });
    }
    found
}

fn unreadable(error: &Error) -> Problem {
    let kind = if error.kind() == ErrorKind::StoreNewer {
        ProblemKind::Newer
    } else {
        ProblemKind::Damaged
    };
    let record =
        error.context().find_map(|(name, value)| (name == "record").then(|| value.to_owned()));
    let mut sentence = error.message().to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        sentence = format!("{sentence}: {cause}");
        source = cause.source();
    }
    Problem { kind, record: record.unwrap_or_default(), sentence }
}

/// Everything that is wrong with `state`, in a stable order.
pub fn problems(state: &StoreState) -> Vec<Problem> {
    let mut found = Found { epoch: state.epoch, problems: Vec::new() };
    if let Some(dump) = state.unfinished_restore() {
        found.add(
            ProblemKind::UnfinishedRestore,
            "the store",
            format!(
                "a restore of {dump} was interrupted: run it again with the same dump, or \
                empty the store"
            ),
        );
    }
    if state.epoch.get() >= EPOCH_END {
        found.out_of_range("the leadership", "its epoch", state.epoch.get(), EPOCH_END - 1);
    }
    if let Some(constants) = state.constants {
        for (name, ms) in
            [("leadership", constants.leadership_ttl_ms), ("lease", constants.lease_ttl_ms)]
        {
            if !(TTL_MS_MIN..=TTL_MS_MAX).contains(&ms) {
                found.out_of_range(
                    "the constants",
                    &format!("the {name} TTL in milliseconds"),
                    ms,
                    TTL_MS_MAX,
                );
            }
        }
    }
    found.tables(state);
    found.forgotten(state);
    found.services(state);
    let twice = "the transaction is recorded twice: remove one of the two";
    found.twice(
        state.tombstones.iter().map(|txn: &TxnId| (*txn, format!("tombstone {txn}"))),
        twice,
    );
    found.problems
}

struct Found {
    epoch: Epoch,
    problems: Vec<Problem>,
}

impl Found {
    fn tables(&mut self, state: &StoreState) {
        let mut tables: Vec<&TableRecord> = state.tables.iter().collect();
        tables.sort_by_key(|table| &table.table);
        let record = |table: &TableRef| format!("table {table}");
        let twice = "two records of tables have this name: restore the store from a backup";
        self.twice(tables.iter().map(|table| (&table.table, record(&table.table))), twice);
        let twice = "another table has the same number: restore the store from a backup";
        self.twice(tables.iter().map(|table| (table.id, record(&table.table))), twice);
        let services: HashSet<ServiceId> =
            state.services.iter().map(|service| service.id).collect();
        for table in tables {
            let what = record(&table.table);
            self.number(&what, "its number", table.id.into());
            if table.partitions == 0 || table.binds.len() as u64 != u64::from(table.partitions) {
                let counted =
                    format!("{} binds for {} partitions", table.binds.len(), table.partitions);
                self.add(
                    ProblemKind::Layout,
                    &what,
                    format!("it has {counted}: restore the store from a backup"),
                );
            }
            for bind in &table.binds {
                self.number(&what, "the version of its bind", bind.version.into());
                if !services.contains(&bind.owner) {
                    let sentence = format!(
                        "it is bound to {}, of which there is no record: its bind is taken as \
                            invalid",
                        bind.owner
                    );
                    self.add(ProblemKind::UnknownOwner, &what, sentence);
                }
            }
            self.tokens(&what, table.tokens_reserved_to, state);
        }
    }

    fn forgotten(&mut self, state: &StoreState) {
        let what = "the forgotten tables";
        self.number(what, "their highest number", state.forgotten.high_water);
        self.tokens(what, state.forgotten.tokens_reserved_to, state);
    }

    fn tokens(&mut self, what: &str, reserved_to: FencingToken, state: &StoreState) {
        if reserved_to.get() > 1 << 53 {
            self.out_of_range(what, "the end of the tokens", reserved_to.get(), 1 << 53);
        } else if state.volatile_tokens_from.is_none() {
            // A block's end belongs to the epoch before.
            self.number(what, "the last token", EpochNumber::from(reserved_to).previous());
        }
    }

    fn services(&mut self, state: &StoreState) {
        let services =
            || state.services.iter().filter(|service| service.id != StoreState::UNFINISHED);
        let twice = "two incarnations have this number: restore the store from a backup";
        self.twice(
            services().map(|service| (service.id, format!("incarnation {}", service.id))),
            twice,
        );
        let mut live: HashMap<&NodeName, ServiceId> = HashMap::new();
        for service in services() {
            let what = format!("incarnation {} of {}", service.id, service.node);
            self.number(&what, "its number", service.id.into());
            if service.state == ServiceState::Live
                && let Some(other) = live.insert(&service.node, service.id)
            {
                let sentence = format!(
                    "incarnation {other} of the same node is live too: one of them ends with its \
                        lease"
                );
                self.add(ProblemKind::TwoLive, &what, sentence);
            }
        }
    }

    /// A problem for each but the first record with one key.
    fn twice<K: Hash + Eq>(&mut self, records: impl Iterator<Item = (K, String)>, sentence: &str) {
        let mut seen = HashSet::new();
        for (key, record) in records {
            if !seen.insert(key) {
                self.add(ProblemKind::Twice, &record, sentence.to_owned());
            }
        }
    }

    /// A number that begins with its epoch (L4).
    fn number(&mut self, record: &str, name: &str, number: EpochNumber) {
        let epoch = number.epoch();
        if epoch.get() >= EPOCH_END {
            self.out_of_range(record, name, number.get(), (EPOCH_END << EPOCH_SHIFT) - 1);
        } else if epoch > self.epoch {
            let sentence = format!(
                "{name}, {number}, is of epoch {epoch}, and the store has reached only {}: it \
                    lost its newest leadership; the next leader begins above it",
                self.epoch
            );
            self.add(ProblemKind::EpochAhead, record, sentence);
        }
    }

    fn out_of_range(&mut self, record: &str, name: &str, number: u64, most: u64) {
        let sentence = format!(
            "{name} is {number}, which nothing may be (at most {most}): restore the store from a \
                backup"
        );
        self.add(ProblemKind::OutOfRange, record, sentence);
    }

    fn add(&mut self, kind: ProblemKind, record: &str, sentence: String) {
        self.problems.push(Problem { kind, record: record.to_owned(), sentence });
    }
}

#[cfg(test)]
mod tests;
