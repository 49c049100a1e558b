//! Keeps the lease alive, and seals the service when that fails for too long (B2).

use std::sync::Arc;

use crate::error::ErrorKind;
use crate::service::txn::timer;
use crate::service::{Inner, Phase, lease_lost};

/// Renews every third of the lease; after a failure, every tenth. Ends with the service.
pub(crate) async fn keep_lease(inner: Arc<Inner>) {
    let mut phase = inner.phase.subscribe();
    let mut retry_at = crate::clock::Time::ZERO;
    loop {
        let now = inner.parts.clock.now();
        let lease = *inner.lease.lock();
        if now >= lease.seal_at() {
            inner.seal(lease_lost());
            return;
        }
        let wake_at = lease.renew_at().max(retry_at).min(lease.seal_at());
        if now < wake_at {
            tokio::select! {
                () = tokio::time::sleep(timer(wake_at, now)) => {}
                _ = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => return,
            }
            continue;
        }
        let answer = tokio::select! {
            biased;
            answer = inner.parts.allocator.keepalive(inner.id, inner.nonce) => answer,
            _ = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => return,
            // The loop looks at the clock and seals.
            () = tokio::time::sleep(timer(lease.seal_at(), now)) => continue,
        };
        match answer {
            // An answer that comes after the lease's end renews nothing: sealed is for ever, and others may have been told so (B1).
            Ok(_) if inner.parts.clock.now() >= lease.seal_at() => {}
            Ok(ack) => inner.lease.lock().renewed(now, ack.lease_ttl),
            Err(e) if e.kind() == ErrorKind::LeaseLost => {
                tracing::error!(error = ?e, "the allocator no longer knows this incarnation");
                inner.seal(lease_lost());
                return;
            }
            Err(e) => {
                tracing::warn!(error = ?e, left = ?lease.remaining(now), "cannot renew the lease; trying again");
                retry_at = now + lease.ttl() / 10;
            }
        }
    }
}
