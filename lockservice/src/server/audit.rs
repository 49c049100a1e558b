//! [`Audit`]: the log of what operators do to others' work.

use std::net::SocketAddr;

use tonic::Request;

use super::caller::Caller;
use crate::server::Principal;

/// The target of the events. They are at level INFO, and a server writes them whatever its log
/// level is.
pub(crate) use lockservice_core::service::AUDIT_TARGET as TARGET;

/// An act of an operator. Each event about it says who, what, to whom and why, and what came of it.
#[derive(Debug)]
pub(super) struct Audit {
    caller: Principal,
    address: Option<SocketAddr>,
    /// What was done.
    act: &'static str,
    /// To what.
    subject: String,
    reason: String,
    /// True if the operator did not want to wait.
    now: bool,
}

impl Audit {
    /// An act that `request` is about.
    pub(super) fn of<T>(
        request: &Request<T>,
        act: &'static str,
        subject: &str,
        reason: &str,
        now: bool,
    ) -> Self {
        let extensions = request.extensions();
        Self {
            caller: Principal::of(extensions),
            address: Caller::address(extensions),
            act,
            subject: subject.to_owned(),
            reason: reason.to_owned(),
            now,
        }
    }

    /// Writes what came of it.
    pub(super) fn record(&self, outcome: &str) {
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(
            target: TARGET,
            act = self.act,
            subject = self.subject,
            reason = self.reason,
            now = self.now,
            identity = self.caller.name(),
            address,
            outcome,
            "an operator acted"
        );
    }
}
