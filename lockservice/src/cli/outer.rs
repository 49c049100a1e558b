//! The locks of the outer commands of a nested `lockservice lock`: they wait for it to end.
//!
//! A command finds in `LOCKSERVICE_HELD` the transactions of every `lockservice lock` around it,
//! each on a line with the server as it was given there. A transaction of another server does not
//! concern this one.

use std::ffi::OsString;

use lockservice_core::TxnId;
use lockservice_core::service::ANCESTORS_MAX;

/// The variable that names them.
pub(crate) const VARIABLE: &str = "LOCKSERVICE_HELD";

/// The transactions at `server` of the commands around this one. Ids that cannot be read are left
/// out, for the list only helps to find deadlocks.
pub(crate) fn ancestors(held: Option<OsString>, server: &str) -> Vec<TxnId> {
    let held = held.unwrap_or_default();
    let held = held.to_string_lossy();
    let at_server =
        held.lines().filter_map(|line| line.split_once(' ').filter(|(_, at)| *at == server));
    let mut ancestors: Vec<TxnId> = at_server.filter_map(|(txn, _)| txn.parse().ok()).collect();
    // The innermost are the last.
    ancestors.split_off(ancestors.len().saturating_sub(ANCESTORS_MAX))
}

/// The variable for a command whose lock is held by `txn` at `server`.
pub(crate) fn with(held: Option<OsString>, txn: Option<TxnId>, server: &str) -> OsString {
    let mut held = held.unwrap_or_default();
    if let Some(txn) = txn {
        if !held.is_empty() {
            held.push("\n");
        }
        held.push(format!("{txn} {server}"));
    }
    held
}

#[cfg(test)]
mod tests {
    use lockservice_core::{ServiceId, TxnNumber};

    use super::*;

    #[test]
    fn each_command_learns_of_those_around_it_at_its_own_server() {
        let txn = |counter| TxnId::new(ServiceId::new(1 << 32 | 1), TxnNumber::new(counter), false);
        let one = with(None, Some(txn(1)), "a:1,b:1");
        let two = with(Some(one), Some(txn(2)), "other:1");
        let three = with(Some(two.clone()), Some(txn(3)), "a:1,b:1");
        assert_eq!(ancestors(Some(three.clone()), "a:1,b:1"), [txn(1), txn(3)]);
        assert_eq!(ancestors(Some(three), "other:1"), [txn(2)]);
        assert_eq!(with(Some(two.clone()), None, "a:1"), two);
        assert_eq!(ancestors(Some("nonsense\n7 a:1\n".into()), "a:1"), []);
        assert_eq!(ancestors(None, "a:1"), []);
        let many = (0..100).fold(None, |held, n| Some(with(held, Some(txn(n)), "a:1")));
        let innermost = ancestors(many, "a:1");
        assert_eq!(
            (innermost.len(), innermost[0]),
            (ANCESTORS_MAX, txn(100 - ANCESTORS_MAX as u64))
        );
    }
}
