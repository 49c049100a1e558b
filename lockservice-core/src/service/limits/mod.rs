//! Limits of tables: how long a call may wait in them, how long a transaction may hold locks in
//! them, and how long it may do so without a call. All are off unless they are set.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`TableLimit`], and [`TableLimits`]: those that count now |
//! | `held.rs` | since when a transaction holds locks in tables with a limit |
//! | `sweep.rs` | the look at all transactions, and the kill of those at a limit |
//!
//! # The limit that counts
//! A table has one limit: that with the longest prefix of its name, and of two with the same prefix
//! the one that names its group. What that one does not set is not limited. A transaction that
//! holds locks in several tables is ended by the first of their limits.
//!
//! # What a transaction at a limit of holds learns
//! It is ended as if an operator had killed it (see [`kill`](crate::service::txn::kill)), with the
//! reason: its client stops the work first (P5).
//!
//! # Costs
//! While no limit is set a grant and an operation each look at one word. While one is, a grant also
//! takes a mutex of its transaction. There is no timer for a lock or a transaction: one task looks
//! at all transactions, in slices, and finds one that is due within an eighth of the shortest
//! limit, and a second at most.

mod held;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{GroupName, TableName, TableRef};
use crate::sync::atomic::{AtomicBool, Ordering};

pub(in crate::service) use self::held::LimitedHolds;
pub(in crate::service) use self::sweep::keep_limits;

/// The most limits at once: each new hold is compared with their prefixes.
pub const TABLE_LIMITS_MAX: usize = 1_000;

/// The shortest limit.
const SHORTEST: Duration = Duration::from_millis(100);

/// Limits of the tables whose names begin with a prefix. See [`TableLimits`] for the one that
/// counts for a table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableLimit {
    /// The group of the tables; `None`: all groups.
    pub group: Option<GroupName>,
    /// The prefix of the names of the tables. Empty: all tables.
    pub prefix: String,
    /// The longest time that a call may wait in such a table, even if it requests more; at least
    /// 100 ms. `None`: as long as everywhere.
    pub longest_wait: Option<Duration>,
    /// The longest time that a transaction may hold locks in such a table: from its first grant
    /// there until it holds nothing there any more; at least 100 ms. `None`: without an end.
    pub longest_hold: Option<Duration>,
    /// The longest time that a transaction which holds locks in such a table may make no call. A
    /// call that waits is no pause; a renewal of the session is no call. At least 100 ms. `None`:
    /// without an end.
    pub longest_idle_hold: Option<Duration>,
}

impl TableLimit {
    fn matches(&self, table: &TableRef) -> bool {
        table.name.as_str().starts_with(&*self.prefix)
            && self.group.as_ref().is_none_or(|group| *group == table.group)
    }

    fn limits_holds(&self) -> bool {
        self.longest_hold.is_some() || self.longest_idle_hold.is_some()
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| {
            let prefix = &self.prefix;
            Err(Error::new(ErrorKind::InvalidArgument, format!("the limit of {prefix:?} {what}")))
        };
        if !self.prefix.is_empty() && TableName::new(&self.prefix).is_err() {
            return wrong("has a prefix that no table can have");
        }
        let all = [self.longest_wait, self.longest_hold, self.longest_idle_hold];
        if all.iter().all(Option::is_none) {
            return wrong("limits nothing: set longest-wait, longest-hold or longest-idle-hold");
        }
        if all.iter().flatten().any(|limit| *limit < SHORTEST) {
            return wrong("is too short: allow at least 100ms");
        }
        Ok(())
    }
}

/// The limits that count now. They may be replaced while the service runs; its incarnations share
/// them: see [`ServiceParts::limits`](crate::service::ServiceParts::limits).
///
/// A table has one limit: that with the longest prefix of its name, and of two with the same prefix
/// the one that names its group. What that one does not set is not limited. A transaction that
/// holds locks in several tables is ended by the first of their limits.
///
/// They count for transactions that operators know by a name: those of sessions, and those of an
/// embedder that have a label. [`longest_wait`](TableLimit::longest_wait) counts for all.
#[derive(Debug, Default)]
pub struct TableLimits {
    rules: watch::Sender<Arc<Rules>>,
    /// Some wait is limited.
    ///
    /// ORDERING: `Relaxed`, without a partner: a call that comes beside a change goes by the limits
    /// before it or after it.
    limits_waits: AtomicBool,
}

/// Limits, in the order in which they are looked at.
#[derive(Debug, Default)]
pub(in crate::service) struct Rules(Vec<TableLimit>);

impl Rules {
    fn parse(mut limits: Vec<TableLimit>) -> Result<Self> {
        let refused = |why: &str| Err(Error::new(ErrorKind::InvalidArgument, why));
        if limits.len() > TABLE_LIMITS_MAX {
            return refused("too many limits of tables: at most 1000 are allowed");
        }
        limits.iter().try_for_each(TableLimit::check)?;
        // The longest prefix comes first, and of equal ones that with a group.
        limits.sort_by(|a, b| {
            let key = |limit: &TableLimit| (limit.prefix.len(), limit.group.is_some());
            key(b).cmp(&key(a)).then_with(|| (&a.prefix, &a.group).cmp(&(&b.prefix, &b.group)))
        });
        let same = |pair: &[TableLimit]| {
            pair[0].prefix == pair[1].prefix && pair[0].group == pair[1].group
        };
        if let Some(pair) = limits.windows(2).find(|pair| same(pair)) {
            let prefix = &pair[0].prefix;
            return refused(&format!("two limits have the prefix {prefix:?}: keep one of them"));
        }
        Ok(Self(limits))
    }

    /// The limit of a table.
    fn of(&self, table: &TableRef) -> Option<&TableLimit> {
        self.0.iter().find(|limit| limit.matches(table))
    }

    /// The limit of a table, if it limits holds.
    fn of_holds(&self, table: &TableRef) -> Option<&TableLimit> {
        self.of(table).filter(|limit| limit.limits_holds())
    }

    /// The shortest limit of holds; `None` if there is none.
    fn shortest_hold(&self) -> Option<Duration> {
        let all = self.0.iter().flat_map(|limit| [limit.longest_hold, limit.longest_idle_hold]);
        all.flatten().min()
    }
}

impl TableLimits {
    /// These limits.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the limit, if one makes no sense, or if two are of the same
    /// tables: correct it.
    pub fn new(limits: Vec<TableLimit>) -> Result<Self> {
        let these = Self::default();
        these.replace(limits)?;
        Ok(these)
    }

    /// Has these limits count from now on. A transaction that holds locks already is taken as
    /// having begun to hold them now, unless they were limited before.
    ///
    /// # Errors
    /// As [`new`](Self::new). Nothing is changed then.
    pub fn replace(&self, limits: Vec<TableLimit>) -> Result<()> {
        let rules = Rules::parse(limits)?;
        let limits_waits = rules.0.iter().any(|limit| limit.longest_wait.is_some());
        self.rules.send_replace(Arc::new(rules));
        self.limits_waits.store(limits_waits, Ordering::Relaxed);
        Ok(())
    }

    /// The longest wait in a table, if it is limited, and the prefix of the limit.
    pub(in crate::service) fn longest_wait(&self, table: &TableRef) -> Option<(Duration, String)> {
        if !self.limits_waits.load(Ordering::Relaxed) {
            return None;
        }
        let rules = self.rules.borrow();
        let limit = rules.of(table)?;
        limit.longest_wait.map(|longest| (longest, limit.prefix.clone()))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn limit(group: Option<&str>, prefix: &str, seconds: u64) -> TableLimit {
        TableLimit {
            group: group.map(|group| GroupName::new(group).expect("a name")),
            prefix: prefix.to_owned(),
            longest_wait: Some(Duration::from_secs(seconds)),
            ..TableLimit::default()
        }
    }

    #[test]
    fn the_longest_prefix_counts_and_of_equal_ones_that_of_the_group() {
        let limits = TableLimits::new(vec![
            limit(None, "", 1),
            limit(None, "jobs/", 2),
            limit(Some("g"), "jobs/", 3),
            limit(None, "jobs/nightly", 4),
        ]);
        let limits = limits.expect("valid");
        for (group, table, seconds) in [
            ("g", "other", 1),
            ("h", "jobs/a", 2),
            ("g", "jobs/a", 3),
            ("g", "jobs/nightly/b", 4),
            ("h", "jobs", 1),
        ] {
            let table = TableRef::new(group, table).expect("names");
            let (longest, _) = limits.longest_wait(&table).expect("limited");
            assert_eq!(longest, Duration::from_secs(seconds), "{table}");
        }
        limits.replace(vec![limit(None, "a", 1)]).expect("valid");
        assert_eq!(limits.longest_wait(&TableRef::new("g", "b").expect("names")), None);
    }

    #[test]
    fn limits_that_make_no_sense_are_refused_by_name_and_change_nothing() {
        let limits = TableLimits::new(vec![limit(None, "a", 7)]).expect("valid");
        let short = TableLimit { longest_hold: Some(Duration::ZERO), ..limit(None, "b", 1) };
        for (bad, said) in [
            (vec![TableLimit { longest_wait: None, ..limit(None, "b", 1) }], "limits nothing"),
            (vec![short], "too short"),
            (vec![limit(None, "a\n", 1)], "no table can have"),
            (vec![limit(None, "b", 1), limit(None, "c", 1), limit(None, "b", 2)], "\"b\""),
            (vec![limit(None, "b", 1); TABLE_LIMITS_MAX + 1], "too many"),
        ] {
            let refused = limits.replace(bad).expect_err(said);
            assert!(refused.to_string().contains(said), "{refused}");
        }
        let table = TableRef::new("g", "a").expect("names");
        assert_eq!(limits.longest_wait(&table), Some((Duration::from_secs(7), "a".to_owned())));
    }
}
