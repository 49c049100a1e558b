//! The operations of a session that are of no transaction: renewals, and claims after a restart.

use lockservice_core::service::{Promise, TxnClaim};
use lockservice_core::{ErrorKind, Result, Sequence, TxnNumber};

use super::{Stream, Wire};
use crate::{convert, proto};

impl Stream {
    pub(super) fn heartbeat(&mut self, id: u64, heartbeat: proto::Heartbeat) {
        for acked in heartbeat.acked {
            self.session.ack(TxnNumber::new(acked.txn), Sequence::new(acked.sequence));
        }
        for lost in heartbeat.lost {
            self.session.acknowledge_loss(TxnNumber::new(lost));
        }
        let promise = self.session.renew();
        self.promise(id, promise);
    }

    fn promise(&mut self, id: u64, promise: Result<Promise>) {
        match promise {
            Ok(promise) => {
                let valid_for_ms = convert::millis_down(promise.valid_for);
                self.responses.push(id, Wire::Promise(proto::Promise { valid_for_ms }));
            }
            Err(e) => self.responses.push_error(id, &e),
        }
    }

    /// A claim of what a transaction held before the restart (P6).
    pub(super) async fn claim(&mut self, id: u64, claim: TxnClaim) {
        match self.session.claim(claim).await {
            Ok(versions) => {
                let versions = versions.iter().map(|version| version.get()).collect();
                self.responses.push(id, Wire::Claimed(proto::Claimed { versions }));
            }
            Err(e) => {
                self.responses.push_error(id, &e);
                // It is not decided: what follows, the end of all claims at last, would open the
                // table to others. The client claims again on another stream.
                self.over |= e.kind() == ErrorKind::Unavailable;
            }
        }
    }

    /// The client has claimed everything.
    pub(super) fn claims_done(&mut self, id: u64, last: TxnNumber) {
        let promise = self.session.claims_done(last);
        self.promise(id, promise);
    }
}
