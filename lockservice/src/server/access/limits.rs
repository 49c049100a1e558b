//! [`ClientLimits`]: how much of a node one client may use.

use lockservice_core::service::QuotaSettings;
use lockservice_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The least memory that a limit leaves: less would hold up a client that does nothing unusual.
pub(in crate::server) const BYTES_MIN: usize = 1 << 16;

/// The limits of one identity, on one node. `None`: the one that
/// [the server has for each client](crate::server::ServerSettings).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientLimits {
    /// Most sessions.
    pub sessions_max: Option<usize>,
    /// Most transactions of its sessions.
    pub txns_max: Option<usize>,
    /// Most operations under way in its sessions, waits included.
    pub ops_max: Option<usize>,
    /// Most open calls, session streams included; as many again of those that release something.
    pub calls_max: Option<usize>,
    /// Most memory of its messages, queued operations and unacknowledged responses, in bytes.
    pub kept_bytes_max: Option<usize>,
    /// Most memory of its locks, in bytes.
    pub lock_bytes_max: Option<usize>,
}

impl ClientLimits {
    /// Fails with `InvalidArgument`, naming the limit, if one makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        let least = [
            ("sessions_max", self.sessions_max, 1),
            ("txns_max", self.txns_max, 1),
            ("ops_max", self.ops_max, 1),
            ("calls_max", self.calls_max, 1),
            ("kept_bytes_max", self.kept_bytes_max, BYTES_MIN),
            ("lock_bytes_max", self.lock_bytes_max, BYTES_MIN),
        ];
        let is_wrong = |value: Option<usize>, least| value.is_some_and(|value| value < least);
        match least.into_iter().find(|(_, value, least)| is_wrong(*value, *least)) {
            None => Ok(()),
            Some((name, _, least)) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("has a limit that is too low: limits.{name} must be at least {least}"),
            )),
        }
    }

    /// These limits, and those of `others` where there is none.
    pub(in crate::server) fn or(self, others: QuotaSettings) -> QuotaSettings {
        QuotaSettings {
            sessions_max: self.sessions_max.unwrap_or(others.sessions_max),
            txns_max: self.txns_max.unwrap_or(others.txns_max),
            ops_max: self.ops_max.unwrap_or(others.ops_max),
            calls_max: self.calls_max.unwrap_or(others.calls_max),
            kept_bytes_max: self.kept_bytes_max.unwrap_or(others.kept_bytes_max),
            lock_bytes_max: self.lock_bytes_max.unwrap_or(others.lock_bytes_max),
        }
    }
}
