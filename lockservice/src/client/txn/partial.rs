//! Savepoints and downgrades: a transaction gives up a part of its locks.

use std::sync::Arc;

use lockservice_core::{Error, ErrorKind, LockItem, LockMode, Result, TableRef};

use super::{ClientTxn, Ended};
use crate::client::outbox::SavepointAt;
use crate::convert::{items_to_proto, mode_to_proto};
use crate::proto;
use crate::proto::client_op::Op;

/// The identity of a transaction, wherever it is: compared by address.
#[derive(Debug)]
pub(super) struct TxnIdentity;

/// A savepoint of a [`ClientTxn`].
#[derive(Clone, Debug)]
pub struct TxnSavepoint {
    of: Arc<TxnIdentity>,
    at: SavepointAt,
}

impl ClientTxn {
    /// Makes chosen items weaker, exactly as they were locked: `mode` from then on. Those that are
    /// not held, or that are held no more strongly, are ignored. Waiters that are compatible with
    /// it go on.
    ///
    /// # Errors
    /// `InvalidArgument` if `mode` is exclusive, for no mode is stronger, or if the request is
    /// larger than the server accepts: the caller names fewer items. `ResourceExhausted` if too
    /// many calls of the transaction are under way: the caller waits for some of them.
    ///
    /// # Cancel safety
    /// The request is sent when this is called; waiting for the response is optional.
    pub fn downgrade(&self, table: &TableRef, items: &[LockItem], mode: LockMode) -> Ended {
        let (rows, ranges) = items_to_proto(items);
        self.send(Op::Downgrade(proto::DowngradeOp {
            txn: None,
            group: table.group.to_string(),
            table: table.name.to_string(),
            rows,
            ranges,
            mode: mode_to_proto(mode),
        }))
    }

    /// Sets a savepoint, to which [`roll_back_to`](Self::roll_back_to) can go back. It costs the
    /// server nothing, and needs no release.
    ///
    /// # Errors
    /// `TxnNotFound` if the transaction has ended, `SessionLost` and `LeaseLost` if the session is
    /// lost: the caller begins another one. `ResourceExhausted` if too many calls of the
    /// transaction are under way: the caller waits for some of them.
    ///
    /// # Cancel safety
    /// A savepoint that is not received is of no use, and does no harm.
    pub async fn savepoint(&self) -> Result<TxnSavepoint> {
        let at = loop {
            let (handle, txn_number) = self.place();
            if self.is_free() {
                // Nothing is locked. The transaction may move until then, so no node is called.
                break SavepointAt::FIRST;
            }
            let response = handle.shared.outbox.savepoint(&txn_number)?;
            let at = response.await.unwrap_or_else(|_| Err(handle.shared.why_lost()))?;
            // A call that was under way may have moved the transaction, which begins anew there.
            if Arc::ptr_eq(&self.place().1, &txn_number) {
                break at;
            }
        };
        Ok(TxnSavepoint { of: Arc::clone(&self.identity), at })
    }

    /// Ends what calls since a savepoint of this transaction were granted: items that were locked
    /// since are released, items that were upgraded since are held in the mode of the savepoint.
    /// Items that were released or made weaker since stay so. The savepoint can be used again.
    ///
    /// # Errors
    /// `InvalidArgument` if the savepoint is of another transaction. `ResourceExhausted` if too
    /// many calls of the transaction are under way: the caller waits for some of them.
    /// `SessionLost`, `LeaseLost` if the session is lost: the locks may have gone to others.
    ///
    /// # Cancel safety
    /// The request is sent when this is called; waiting for the response is optional.
    pub fn roll_back_to(&self, savepoint: &TxnSavepoint) -> Ended {
        if !Arc::ptr_eq(&self.identity, &savepoint.of) {
            return Ended::ready(Err(Error::new(
                ErrorKind::InvalidArgument,
                "the savepoint is of another transaction: use one of this transaction",
            )));
        }
        let (handle, txn_number) = self.place();
        match handle.shared.outbox.roll_back_to(&txn_number, savepoint.at) {
            Ok(response) => Ended::waiting(&handle, response),
            Err(e) => Ended::ready(Err(e)),
        }
    }
}
