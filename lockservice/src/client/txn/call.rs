//! One lock call: its permit, its transaction, its request.

use std::sync::Arc;

use lockservice_core::clock::Time;
use lockservice_core::service::Granted;
use lockservice_core::table::WaitPolicy;
use lockservice_core::{Error, ErrorKind, Result, TxnId};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ClientTxn;
use super::lock::timed_out;
use crate::client::node_session::{Handle, SessionShared};
use crate::client::outbox::{CallId, NumberedTxn};

/// A place among the calls that the server allows under way.
pub(super) async fn permit(
    shared: &SessionShared,
    wait: WaitPolicy,
    deadline: Option<Time>,
) -> Result<OwnedSemaphorePermit> {
    const FULL: &str = "as many calls are under way in this session as the server allows";
    if let Ok(permit) = Arc::clone(&shared.locks).try_acquire_owned() {
        return Ok(permit);
    }
    if !wait.is_patient() {
        return Err(Error::new(
            ErrorKind::ResourceExhausted,
            format!("{FULL}: wait for responses, or open another session"),
        ));
    }
    let mut lost = shared.lost.subscribe();
    tokio::select! {
        biased;
        permit = Arc::clone(&shared.locks).acquire_owned() => permit.map_err(|_| shared.why_lost()),
        // Perhaps no other call returns its permit.
        _ = lost.wait_for(Option::is_some) => Err(shared.why_lost()),
        () = shared.past(deadline) => {
            Err(timed_out(&format!("{FULL}, and none ended within the time-out: try again, or \
                allow more time")))
        }
    }
}

/// A lock call of a transaction: while it is under way the transaction stays where it is.
pub(super) struct Turn<'a> {
    txn: &'a ClientTxn,
    pub(super) handle: Arc<Handle>,
    pub(super) txn_number: Arc<NumberedTxn>,
}

impl<'a> Turn<'a> {
    pub(super) fn begin(txn: &'a ClientTxn) -> Self {
        let mut placement = txn.placement.lock();
        placement.under_way += 1;
        Self {
            txn,
            handle: Arc::clone(&placement.handle),
            txn_number: Arc::clone(&placement.txn_number),
        }
    }

    /// Notes a grant. One that skipped all of its rows holds nothing: the transaction may move.
    pub(super) fn granted(&self, id: TxnId, holds: bool) {
        let first = {
            let mut placement = self.txn.placement.lock();
            placement.id = Some(id);
            holds && !std::mem::replace(&mut placement.holds, true)
        };
        // This comes before the caller gets the grant: from then on the session's deadline is at
        // most that of this node.
        if first && let Some(pin) = self.txn.cluster_session.pin(&self.handle) {
            self.txn.placement.lock().pin = Some(pin);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.txn.placement.lock().under_way -= 1;
    }
}

/// A lock request in the outbox. It is cancelled if it is dropped before its response was taken.
pub(super) struct Call<'a> {
    pub(super) shared: &'a SessionShared,
    pub(super) call: Option<CallId>,
    pub(super) response: oneshot::Receiver<Result<Granted>>,
}

impl Call<'_> {
    pub(super) fn acknowledge(&mut self) {
        if let Some(call) = self.call.take() {
            self.shared.outbox.acknowledge(call);
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            self.shared.outbox.cancel(call);
        }
    }
}
