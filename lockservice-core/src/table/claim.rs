//! What goes on after a restart of the owner (P6): claims of what was held, and waits.

use super::call::Arrival;
use super::engine::LockEngine;
use super::lock_call::LockCall;
use super::types::LockRequest;
use super::uncontended::TxnHandle;
use crate::clock::Time;
use crate::id::{FencingToken, TableId, TxnId};
use crate::key::LockItem;

impl LockEngine {
    /// Like [`lock_for`](Self::lock_for), for a call that came to an earlier incarnation of the
    /// node at `came`, and waited there (P6). If it has to wait, its place is behind the upgrades,
    /// ahead of all calls that came here first, and among those like it in the order of `came`.
    ///
    /// # Errors
    /// As [`lock_for`](Self::lock_for).
    pub fn lock_again(
        &self,
        txn: &TxnHandle,
        request: LockRequest,
        ancestors: &[TxnId],
        came: Time,
    ) -> LockCall {
        self.call(txn, request, ancestors, Arrival::Earlier, came)
    }

    /// Takes items for a transaction that held them before a restart, under the token that it had
    /// (P6). The table is one in which nothing but claims was granted so far, and `token` is below
    /// its blocks.
    ///
    /// # Errors
    /// Those of [`lock`](Self::lock) for a call that may not wait. [`Conflict`] if another claim
    /// excludes this one; [`token_of`](Self::token_of) says under which token.
    ///
    /// [`Conflict`]: crate::ErrorKind::Conflict
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn claim(
        &self,
        txn: &TxnHandle,
        request: LockRequest,
        token: FencingToken,
        now: Time,
    ) -> LockCall {
        self.call(txn, request, &[], Arrival::Claim(token), now)
    }

    /// The token under which a transaction holds an item that was claimed; `None` if it does not.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn token_of(
        &self,
        txn: TxnId,
        table: TableId,
        item: &LockItem,
    ) -> Option<FencingToken> {
        self.with(|state| {
            let entry = state.tables.get_mut(&table)?.entry_mut(item)?;
            entry.change(txn, |own| own.token())
        })
    }
}
