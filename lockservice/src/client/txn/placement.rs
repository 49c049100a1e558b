//! [`Placement`]: the node on which a transaction is.

use std::sync::Arc;

use lockservice_core::TxnId;

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
