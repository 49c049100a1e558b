//! [`AllocatorSettings`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::store::ClusterConstants;

/// Shortest TTL that is accepted, in milliseconds: below it the margins for the clocks leave
/// nothing of a promise.
pub const TTL_MS_MIN: u64 = 1_000;

/// Longest TTL that is accepted, in milliseconds: one hour.
pub const TTL_MS_MAX: u64 = 3_600_000;

/// Limits and constants of a [`LocalAllocator`](crate::allocator::LocalAllocator).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AllocatorSettings {
    /// The cluster's TTLs, in milliseconds, each 1,000 to 3,600,000. Default: 2,000 of leadership,
    /// 5,000 of a lease; 15,000 of a lease in
    /// [`for_exclusive_store`](Self::for_exclusive_store). Changing one waits out the old (B4).
    pub constants: ClusterConstants,
    /// Largest number of lock tables. Default: 1,000,000.
    pub tables_max: usize,
    /// The time for which a lock table may be without an owner before it is forgotten, in
    /// milliseconds; 0 for ever. Counts from the last renewal of its last owner, or from the start
    /// of this leader. Default: 86,400,000 (a day).
    pub table_idle_ms: u64,
    /// Largest number of nodes that are known at one time. Default: 10,000.
    pub nodes_max: usize,
    /// Largest number of changes that wait for the store; callers with more wait for room. Default:
    /// 8,192.
    pub queue_max: usize,
    /// Largest number of changes in one write to the store. Default: 1,024.
    pub batch_max: usize,
    /// Largest number of binds that one commit presents. Default: 10,000.
    pub commit_binds_max: usize,
    /// Largest number of transactions of one origin that are committing or tombstoned at one time.
    /// Default: 1,000,000.
    pub commits_max: usize,
}

impl Default for AllocatorSettings {
    fn default() -> Self {
        Self {
            constants: ClusterConstants::default(),
            tables_max: 1_000_000,
            table_idle_ms: 86_400_000,
            nodes_max: 10_000,
            queue_max: 8_192,
            batch_max: 1_024,
            commit_binds_max: 10_000,
            commits_max: 1_000_000,
        }
    }
}

impl AllocatorSettings {
    /// The defaults for a store that one process opens exclusively. They differ from those of a
    /// cluster in the [constants](ClusterConstants::for_exclusive_store).
    pub fn for_exclusive_store() -> Self {
        Self { constants: ClusterConstants::for_exclusive_store(), ..Self::default() }
    }

    /// The time for which a table may be without an owner before it is forgotten; `None` for ever.
    pub fn table_idle(&self) -> Option<Duration> {
        (self.table_idle_ms > 0).then(|| Duration::from_millis(self.table_idle_ms))
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// `InvalidArgument`, with the name of the setting that is out of its range: change it.
    pub fn check(&self) -> Result<()> {
        let ttls = [
            ("leadership_ttl_ms", self.constants.leadership_ttl_ms),
            ("lease_ttl_ms", self.constants.lease_ttl_ms),
        ];
        for (setting, value) in ttls {
            if !(TTL_MS_MIN..=TTL_MS_MAX).contains(&value) {
                return Err(invalid(setting, value, "a TTL is 1,000 to 3,600,000 milliseconds"));
            }
        }
        let counts = [
            ("tables_max", self.tables_max),
            ("nodes_max", self.nodes_max),
            ("queue_max", self.queue_max),
            ("batch_max", self.batch_max),
            ("commit_binds_max", self.commit_binds_max),
            ("commits_max", self.commits_max),
        ];
        for (setting, value) in counts {
            // The queue is a tokio channel, which has a largest size of its own.
            if value == 0 || value > 1 << 30 {
                return Err(invalid(setting, value as u64, "a limit is 1 to 2^30"));
            }
        }
        Ok(())
    }
}

fn invalid(setting: &str, value: u64, range: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("{range}: change the setting"))
        .with("setting", setting)
        .with("value", value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_below_a_second_and_a_limit_of_zero_are_refused_by_name() {
        let mut settings = AllocatorSettings::default();
        settings.check().expect("defaults are valid");
        settings.constants.lease_ttl_ms = 999;
        let error = settings.check().expect_err("too short");
        assert!(error.to_string().contains("lease_ttl_ms"), "{error}");
        settings = AllocatorSettings { queue_max: 0, ..AllocatorSettings::default() };
        assert!(settings.check().expect_err("no queue").to_string().contains("queue_max"));
        assert!(serde_json::from_str::<AllocatorSettings>(r#"{"tables": 1}"#).is_err());
    }
}
