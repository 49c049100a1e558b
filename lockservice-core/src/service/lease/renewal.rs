//! Keeps the lease alive, and seals the service when that fails for too long (B2).
//!
//! # Implementation details
//! A renewal is due every third of the lease. An allocator that does not respond gets another
//! request after a sixth of it, and one that fails after a tenth: otherwise one lost request would
//! cost the lease. A try that takes too long is not given up, since the allocator may only be slow.
//! The first response renews, counted from the send of its own request (P2). Once a try was
//! acknowledged, those sent before it have nothing to add and are dropped. So all that are under
//! way were sent within one lease, and they are few.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use crate::allocator::LeaseAck;
use crate::clock::Time;
use crate::error::{ErrorKind, Result};
use crate::service::phase::lease_lost;
use crate::service::txn::timer;
use crate::service::{Phase, ServiceInner};

/// One request to renew the lease.
struct Attempt {
    sent: Time,
    call: Pin<Box<dyn Future<Output = Result<LeaseAck>> + Send>>,
}

impl Attempt {
    fn new(inner: &ServiceInner, sent: Time) -> Self {
        let (allocator, service, nonce) =
            (Arc::clone(&inner.parts.allocator), inner.id, inner.nonce);
        let observed = inner.observed();
        Self {
            sent,
            call: Box::pin(async move { allocator.keepalive(service, nonce, observed).await }),
        }
    }
}

/// Renews the lease until the service gives it up or is sealed. Ends with the service.
pub(crate) async fn keep_lease(inner: Arc<ServiceInner>) {
    let mut phase = inner.phase.subscribe();
    // In the order of their sends.
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut not_before = Time::ZERO;
    loop {
        let (now, over, lease) = inner.with_lease(|lease, now| (now, lease.is_over(now), *lease));
        if over {
            inner.seal(lease_lost());
            return;
        }
        let due = lease.renew_at().max(not_before);
        if now >= due {
            attempts.push(Attempt::new(&inner, now));
            not_before = now + lease.attempt_max();
            continue;
        }
        let (sent, response) = tokio::select! {
            biased;
            acked = next_ack(&mut attempts) => acked,
            _ = phase.wait_for(Phase::gave_lease_up) => return,
            // The loop looks at the clock.
            () = inner.parts.env.sleep(timer(due.min(lease.seal_at()), now)) => continue,
        };
        match response {
            Ok(ack) => {
                inner.observe(ack.at);
                // One that comes after the lease's end renews nothing, which the next turn sees.
                inner.with_lease(|lease, now| {
                    let left = lease.seal_at().remaining(now);
                    if lease.renewed(sent, ack.lease_ttl, now) {
                        inner.metrics().lease_renewals.add(1);
                        inner.metrics().lease_left.note_time(left);
                    }
                });
                attempts.retain(|attempt| attempt.sent > sent);
            }
            Err(e) if e.kind() == ErrorKind::LeaseLost => {
                inner.metrics().lease_renewals_failed.add(1);
                tracing::error!(error = ?e, "the allocator no longer knows this incarnation");
                inner.seal(lease_lost());
                return;
            }
            Err(e) => {
                inner.metrics().lease_renewals_failed.add(1);
                tracing::warn!(error = ?e, left = ?lease.seal_at().remaining(now), "cannot renew \
                    the lease; trying again");
                // While a later try is under way, that one decides when it is time for another.
                if attempts.iter().all(|attempt| attempt.sent < sent) {
                    not_before = sent + lease.retry_after();
                }
            }
        }
    }
}

/// Takes out the first attempt that gets a response; never ready while there is none.
///
/// # Cancel safety
/// Cancel safe.
async fn next_ack(attempts: &mut Vec<Attempt>) -> (Time, Result<LeaseAck>) {
    poll_fn(|cx| {
        for at in 0..attempts.len() {
            if let Poll::Ready(response) = attempts[at].call.as_mut().poll(cx) {
                return Poll::Ready((attempts.remove(at).sent, response));
            }
        }
        Poll::Pending
    })
    .await
}
