//! The begin of a session: the hello of a client, and the welcome to it.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::service::{OpenedBy, Quota, Session};
use lockservice_core::{Result, ServiceId, SessionId};
use tonic::Extensions;

use super::caller::{Caller, Client};
use super::operation::invalid;
use crate::proto::{self, client_op::Op};
use crate::server::{Principal, ServerSettings, ServiceHost};
use crate::{codec, convert, frame};

/// Who opens a session.
#[derive(Debug)]
pub(super) struct Opener {
    /// The quota that the session is charged to.
    pub(super) quota: Option<Arc<Quota>>,
    pub(super) opened_by: OpenedBy,
}

impl Opener {
    /// The caller of a call with these extensions.
    pub(super) fn of(extensions: &Extensions) -> Self {
        let address = Caller::address(extensions).map(|address| address.to_string());
        Self {
            quota: Client::of(extensions).map(|client| client.quota),
            opened_by: OpenedBy {
                identity: Principal::of(extensions).name().to_owned(),
                address: address.unwrap_or_default(),
            },
        }
    }
}

/// The hello that every stream begins with, and its id.
pub(super) fn hello(first: Option<Result<frame::Op<'_>>>) -> Result<(u64, proto::Hello)> {
    let op =
        first.transpose()?.map(|op| codec::decode::<proto::ClientOp>(op.whole())).transpose()?;
    match op {
        Some(proto::ClientOp { id, op: Some(Op::Hello(hello)) }) => Ok((id, hello)),
        _ => Err(invalid("the first operation of a session stream must be hello")),
    }
}

/// Opens or resumes the session that a hello of `opener` requests.
pub(super) fn open(
    host: &ServiceHost,
    settings: &ServerSettings,
    opener: Opener,
    hello: proto::Hello,
) -> Result<(Session, proto::Welcome)> {
    let service = host.current();
    let ttl = (hello.ttl_ms > 0).then(|| Duration::from_millis(hello.ttl_ms));
    // P6: its client claims what it held at an incarnation before this one.
    let reclaim = hello.claims && hello.session != 0 && hello.service != service.id().get();
    let resumed = hello.session != 0 && !reclaim;
    let Opener { quota, opened_by } = opener;
    let session = if reclaim {
        let earlier = (SessionId::new(hello.session), ServiceId::new(hello.service));
        service.reclaim_session(earlier, quota, ttl, &hello.name, opened_by)?
    } else if resumed {
        host.session(hello.session, hello.service, &opened_by.identity)?
    } else {
        service.open_session_within(quota, ttl, &hello.name, opened_by)?
    };
    let promise = session.renew()?;
    let welcome = proto::Welcome {
        session: session.id().get(),
        service: service.id().get(),
        node: service.node().as_str().to_owned(),
        ttl_ms: convert::millis_down(session.ttl()),
        promise: Some(proto::Promise { valid_for_ms: convert::millis_down(promise.valid_for) }),
        resumed,
        message_bytes_max: settings.message_bytes_max as u64,
        ops_max: u32::try_from(settings.ops_under_way_max).unwrap_or(u32::MAX),
        volatile: settings.volatile,
        lease_ms: convert::millis_down(service.lease_ttl()),
        txn_ops_max: u32::try_from(service.settings().ops_per_txn_max).unwrap_or(u32::MAX),
        reclaim,
        alone: settings.alone,
    };
    Ok((session, welcome))
}
