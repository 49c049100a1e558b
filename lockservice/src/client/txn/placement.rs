//! [`Placement`]: the node on which a transaction is.

use std::sync::Arc;

use lockservice_core::TxnId;
use lockservice_core::service::TxnOptions;

use super::ClientTxn;
use crate::client::cluster_session::NodePin;
use crate::client::node_session::Handle;
use crate::client::outbox::NumberedTxn;

/// The node on which a transaction is.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) handle: Arc<Handle>,
    pub(super) txn_number: Arc<NumberedTxn>,
    pub(super) id: Option<TxnId>,
    /// The number of lock calls without a response.
    pub(super) under_way: usize,
    /// True once a lock was granted, or may have been. Then the transaction stays.
    pub(super) holds: bool,
    /// Set while the transaction holds something at another node than the home.
    pub(super) pin: Option<NodePin>,
}

impl Placement {
    /// That of a transaction that holds nothing.
    pub(super) fn new(handle: Arc<Handle>, options: TxnOptions) -> Self {
        let txn_number = Arc::new(NumberedTxn::new(options));
        Self { handle, txn_number, id: None, under_way: 0, holds: false, pin: None }
    }
}

impl ClientTxn {
    /// Moves to the node of `handle`, unless something is held at the present node, or may be. True
    /// if it is at the new node afterwards.
    pub(in crate::client) fn move_to(&self, handle: &Arc<Handle>) -> bool {
        let next = Placement::new(Arc::clone(handle), self.options.clone());
        let left = {
            let mut placement = self.placement.lock();
            if Arc::ptr_eq(&placement.handle, handle) {
                return true;
            }
            if placement.holds || placement.under_way > 0 {
                return false;
            }
            std::mem::replace(&mut *placement, next)
        };
        // The response is not awaited: the transaction holds nothing.
        drop(left.handle.shared.outbox.end(&left.txn_number, None));
        true
    }

    /// The node of the transaction, and its number there.
    pub(super) fn place(&self) -> (Arc<Handle>, Arc<NumberedTxn>) {
        let placement = self.placement.lock();
        (Arc::clone(&placement.handle), Arc::clone(&placement.txn_number))
    }

    /// True if it may move.
    pub(in crate::client) fn is_free(&self) -> bool {
        let placement = self.placement.lock();
        !placement.holds && placement.under_way == 0
    }
}
