//! The way of a lock call: to the table's owner, within its time.

use std::time::Duration;

use lockservice_core::clock::lo;
use lockservice_core::service::LockSpec;
use lockservice_core::table::Grant;
use lockservice_core::{Error, ErrorKind, FencingToken, Result};

use super::ClientTxn;
use super::call::{Call, Turn, permit};
use crate::client::follow;
use crate::client::outbox::{CallContext, WaitsSender};
use crate::trace::ClientCall;

/// The time past its deadline for which a call waits for the server's own response. A timeout from
/// the server names the conflicting holder, and a grant in time is as good as any.
const RESPONSE_GRACE: Duration = Duration::from_millis(100);

impl ClientTxn {
    /// Locks. Also reports the holder for which it waits, if the caller listens.
    pub(in crate::client) async fn lock_with(
        &self,
        mut spec: LockSpec,
        waits: Option<&WaitsSender>,
    ) -> Result<Grant> {
        let call = ClientCall::begin(&mut spec);
        let outcome = self.lock_anywhere(spec, waits).await;
        call.end(&outcome);
        outcome
    }

    async fn lock_anywhere(&self, spec: LockSpec, waits: Option<&WaitsSender>) -> Result<Grant> {
        let deadline = spec.timeout.map(|timeout| self.env().now() + timeout);
        let snapshot = spec.snapshot_age.map(|age| self.env().now() - age).or(self.began);
        let context = CallContext { deadline, snapshot, waits };
        // The future is rarely needed, and large.
        if let Some(address) = self.cluster_session.owner_of(&spec.table) {
            Box::pin(follow::go_to_last_owner(self, &spec, &address, deadline)).await;
        }
        match self.try_lock(&spec, context).await {
            Err(e) if follow::helps(self, &e) => {
                Box::pin(follow::lock(self, &spec, context, e)).await
            }
            outcome => outcome,
        }
    }

    /// Locks where the transaction is.
    pub(in crate::client) async fn try_lock(
        &self,
        spec: &LockSpec,
        context: CallContext<'_>,
    ) -> Result<Grant> {
        let CallContext { deadline, snapshot, .. } = context;
        let turn = Turn::begin(self);
        let shared = &turn.handle.shared;
        shared.check()?;
        // An item takes three bytes at least: if even that is too much, encoding is useless.
        if spec.items.len().saturating_mul(3) > shared.info.message_bytes_max {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "too many keys in one request: lock fewer at a time, or a range that covers them",
            )
            .with("keys", spec.items.len()));
        }
        let permit = permit(shared, spec.wait, deadline).await?;
        // The wait for the permit may have taken long.
        shared.check()?;
        let (call, response) = shared.outbox.lock(&turn.txn_number, spec, context, permit)?;
        let mut call = Call { shared, call: Some(call), response };
        let result = tokio::select! {
            biased;
            response = &mut call.response => response.unwrap_or_else(|_| Err(shared.why_lost())),
            // `call` is still armed: the request is cancelled, wherever it is.
            () = shared.past(deadline.map(|deadline| deadline + RESPONSE_GRACE)) => {
                return Err(timed_out("the server did not respond within the time-out of the lock: \
                    try again, or allow more time"));
            }
        };
        if result.is_ok() {
            // P2: the clock decides at this moment, for the response may have lain here for long.
            // On failure `call` is still armed, so that the grant is rolled back.
            shared.check()?;
        }
        call.acknowledge();
        let mut granted = result?;
        turn.granted(granted.txn, granted.grant.token != FencingToken::default());
        if let (Some(known), Some(snapshot)) = (granted.history_known, snapshot) {
            // C5: the server does not know the travel time of the request.
            granted.grant.history_unknown |= shared.env().now().since(snapshot) >= lo(known);
        }
        Ok(granted.grant)
    }
}

pub(in crate::client) fn timed_out(message: &str) -> Error {
    Error::new(ErrorKind::Timeout, message)
}
