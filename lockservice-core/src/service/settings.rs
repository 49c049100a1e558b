//! The settings of a service.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::service::QuotaSettings;
use crate::table::EngineSettings;

/// Less would hold up a client that does nothing unusual.
const KEPT_BYTES_MIN: usize = 1 << 16;

/// More would make a list of the keys take long.
const HOT_KEYS_MAX: usize = 1 << 16;

/// Limits and defaults of a [`LockService`](crate::service::LockService).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// The time for which the locks of a silent client are kept if it does not request another
    /// time, in milliseconds. Default 10,000.
    pub session_ttl_ms: u64,
    /// The shortest such time that a client may request, in milliseconds; at least 1,000. Default
    /// 1,000.
    pub session_ttl_ms_min: u64,
    /// The longest such time that a client may request, in milliseconds. Default 3,600,000 (one
    /// hour).
    pub session_ttl_ms_max: u64,
    /// The longest time that a call may wait, even if it requests more, in milliseconds. Default
    /// 3,600,000 (one hour).
    pub wait_ms_max: u64,
    /// Most sessions at once. Default 10,000.
    pub sessions_max: usize,
    /// Most transactions of one session at once. Default 10,000.
    pub txns_per_session_max: usize,
    /// Most transactions at once. Default 1,000,000.
    pub txns_max: usize,
    /// The largest number of operations of one transaction that are queued, or whose responses are
    /// kept for a replay. Default 256.
    pub ops_per_txn_max: usize,
    /// The most memory that one session's queued operations and unacknowledged responses may use,
    /// in bytes, as estimated; at least 65,536. For responses that is what the process uses within
    /// a fifth; an operation is counted with the most that its response can take. Further
    /// operations are refused until responses are acknowledged. The operation that reaches the
    /// limit is still accepted, and so are releases: up to as much again, and the transaction's end
    /// always. Default 16 MiB.
    pub kept_bytes_per_session_max: usize,
    /// The most memory that the queued operations and unacknowledged responses of all sessions
    /// together may use, in bytes, as estimated; at least 65,536. Beyond it locks are refused.
    /// Default 1 GiB.
    pub kept_bytes_max: usize,
    /// For how long nothing may be locked in a table before it is forgotten, in milliseconds; 0 for
    /// ever. Default 86,400,000 (a day).
    pub table_idle_ms: u64,
    /// A lock call that has waited for so long is written to the log, in milliseconds; 0 for none.
    /// Default 0.
    pub slow_wait_ms: u64,
    /// The number of rows and ranges whose waits are counted, for the list of those that calls
    /// wait for most: at most 65,536; 0 counts none. Each takes about 0.6 KiB, and the bytes of a
    /// long key. If calls wait for more keys than that, the counts of keys with little wait time
    /// are inexact, and say by how much. Default 1,024.
    pub hot_keys_max: usize,
    /// Limits of the lock engine.
    pub engine: EngineSettings,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            session_ttl_ms: 10_000,
            session_ttl_ms_min: 1_000,
            session_ttl_ms_max: 3_600_000,
            wait_ms_max: 3_600_000,
            sessions_max: 10_000,
            txns_per_session_max: 10_000,
            txns_max: 1_000_000,
            ops_per_txn_max: 256,
            kept_bytes_per_session_max: 16 << 20,
            kept_bytes_max: 1 << 30,
            table_idle_ms: 86_400_000,
            slow_wait_ms: 0,
            hot_keys_max: 1_024,
            engine: EngineSettings::default(),
        }
    }
}

impl ServiceSettings {
    /// Checks every setting.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the setting, if one makes no sense: correct it.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, why: &str| {
            Err(Error::new(ErrorKind::InvalidArgument, format!("the setting {name} {why}"))
                .with("setting", name))
        };
        // A limit of 0 would serve no client.
        let limits = [
            ("service.wait_ms_max", self.wait_ms_max),
            ("service.sessions_max", self.sessions_max as u64),
            ("service.txns_per_session_max", self.txns_per_session_max as u64),
            ("service.txns_max", self.txns_max as u64),
            ("service.ops_per_txn_max", self.ops_per_txn_max as u64),
            ("service.engine.items_per_request_max", self.engine.items_per_request_max as u64),
            ("service.engine.lock_bytes_max", self.engine.lock_bytes_max as u64),
            ("service.engine.txn_lock_bytes_max", self.engine.txn_lock_bytes_max as u64),
            ("service.engine.waiters_max", self.engine.waiters_max as u64),
        ];
        if let Some((name, _)) = limits.into_iter().find(|(_, value)| *value == 0) {
            return wrong(name, "must be at least 1");
        }
        if self.session_ttl_ms_min < 1_000 {
            return wrong(
                "service.session_ttl_ms_min",
                "must be at least 1000: a shorter promise leaves no time to renew it",
            );
        }
        if !(self.session_ttl_ms_min..=self.session_ttl_ms_max).contains(&self.session_ttl_ms) {
            return wrong(
                "service.session_ttl_ms",
                "must lie between session_ttl_ms_min and session_ttl_ms_max",
            );
        }
        if self.kept_bytes_per_session_max < KEPT_BYTES_MIN {
            return wrong(
                "service.kept_bytes_per_session_max",
                "must be at least 65536: less leaves no room to work",
            );
        }
        if self.kept_bytes_max < KEPT_BYTES_MIN {
            return wrong(
                "service.kept_bytes_max",
                "must be at least 65536: less leaves no room to work",
            );
        }
        if self.hot_keys_max > HOT_KEYS_MAX {
            return wrong("service.hot_keys_max", "must be at most 65536");
        }
        Ok(())
    }

    /// For how long nothing may be locked in a table before it is forgotten; `None` for ever.
    pub(crate) fn table_idle(&self) -> Option<Duration> {
        (self.table_idle_ms > 0).then(|| Duration::from_millis(self.table_idle_ms))
    }

    /// The limits of all sessions together.
    pub(crate) fn quota(&self) -> QuotaSettings {
        QuotaSettings { kept_bytes_max: self.kept_bytes_max, ..QuotaSettings::default() }
    }

    /// The session TTL if `requested` was requested (P1). Fails with `InvalidArgument` if that is
    /// out of bounds.
    pub(crate) fn session_ttl(&self, requested: Option<Duration>) -> Result<Duration> {
        let ttl = requested.unwrap_or(Duration::from_millis(self.session_ttl_ms));
        let (min, max) = (
            Duration::from_millis(self.session_ttl_ms_min),
            Duration::from_millis(self.session_ttl_ms_max),
        );
        if ttl < min {
            // P1: a TTL that leaves less than two renewals is refused.
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the session TTL is too short to be renewed in time: request more",
            )
            .with("ttl", format!("{ttl:?}"))
            .with("least", format!("{min:?}")));
        }
        if ttl > max {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the session TTL is too long: request less",
            )
            .with("ttl", format!("{ttl:?}"))
            .with("most", format!("{max:?}")));
        }
        Ok(ttl)
    }

    /// The longest wait of a call with the time-out `requested`.
    pub(crate) fn wait(&self, requested: Option<Duration>) -> Duration {
        let most = Duration::from_millis(self.wait_ms_max);
        requested.map_or(most, |requested| requested.min(most))
    }
}
