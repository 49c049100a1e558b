//! `lockservice.v1.Locks`.

use lockservice_core::SessionId;
use lockservice_core::service::{OpResponse, Session, TxnOp, TxnOptions};
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::convert::{self, KnownTables, to_status as status};
use crate::proto;
use crate::server::caller::{Caller, Client};
use crate::server::hello::{self, Opener};
use crate::server::operation;
use crate::server::{Access, Principal, ServerSettings, ServiceHost, Slot, connection};
use crate::trace;

/// The number of frames that may wait to be read by a client. Each may be large, and there are many
/// sessions.
const FRAMES_WAITING_MAX: usize = 2;

#[derive(Clone, Debug)]
pub(crate) struct LocksApi {
    slot: Slot,
    settings: ServerSettings,
    access: Access,
}

impl LocksApi {
    pub(crate) fn new(slot: Slot, settings: ServerSettings, access: Access) -> Self {
        Self { slot, settings, access }
    }

    fn host(&self) -> Result<&ServiceHost, Status> {
        self.slot.get().map_err(|e| status(&e))
    }

    /// Serves a session stream.
    pub(super) fn stream(
        &self,
        request: Request<Streaming<Bytes>>,
    ) -> Result<Response<ReceiverStream<Result<Bytes, Status>>>, Status> {
        let (out, frames) = mpsc::channel(FRAMES_WAITING_MAX);
        let client = Client::of(request.extensions());
        let peer = connection::Peer {
            connection: Caller::of(request.extensions()),
            opener: Opener::of(request.extensions()),
            caller: Principal::of(request.extensions()),
            changes: self.access.changes(),
        };
        let host = self.host()?.clone();
        let env = host.env().clone();
        let served = connection::run(host, self.settings, peer, request.into_inner(), out);
        match client {
            Some(client) => drop(env.spawn(client.turns.run(Box::pin(served)))),
            None => drop(env.spawn(served)),
        }
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    /// The session that a call is on, if its caller opened it.
    fn session(
        &self,
        session: Option<proto::SessionRef>,
        caller: &Principal,
    ) -> Result<Session, Status> {
        let session = session.unwrap_or_default();
        let session = self.host()?.session(session.session, session.service, caller.name());
        let session = session.map_err(|e| status(&e))?;
        // Any call shows that the client lives. An error is the error of the call too.
        let _ = session.renew();
        Ok(session)
    }
}

#[tonic::async_trait]
impl proto::locks_server::Locks for LocksApi {
    type SessionStream = tokio_stream::Empty<Result<proto::ServerFrame, Status>>;

    /// Not called: `session_stream` serves these calls, frame by frame as bytes.
    async fn session(
        &self,
        _: Request<Streaming<proto::ClientFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("a session stream is served frame by frame"))
    }

    async fn open_session(
        &self,
        request: Request<proto::Hello>,
    ) -> Result<Response<proto::Welcome>, Status> {
        let opener = Opener::of(request.extensions());
        let opened = hello::open(self.host()?, &self.settings, opener, request.into_inner());
        let (_, welcome) = opened.map_err(|e| status(&e))?;
        Ok(Response::new(welcome))
    }

    async fn keep_session(
        &self,
        request: Request<proto::SessionRef>,
    ) -> Result<Response<proto::SessionKept>, Status> {
        let caller = Principal::of(request.extensions());
        let session = self.session(Some(request.into_inner()), &caller)?;
        let promise = session.renew().map_err(|e| status(&e))?;
        let lost = session.lost_txns();
        Ok(Response::new(proto::SessionKept {
            valid_for_ms: convert::millis_down(promise.valid_for),
            lost: lost.iter().map(|(txn, why)| convert::txn_lost_to_proto(*txn, why)).collect(),
        }))
    }

    async fn close_session(
        &self,
        request: Request<proto::SessionRef>,
    ) -> Result<Response<proto::Done>, Status> {
        let caller = Principal::of(request.extensions());
        let reference = request.into_inner();
        match self.session(Some(reference), &caller) {
            Ok(session) => session.close().await,
            Err(status) => {
                // It may be one of an earlier incarnation: its tables wait for it no more (P6).
                self.host()?.current().gave_up(SessionId::new(reference.session));
                return Err(status);
            }
        }
        Ok(Response::new(proto::Done::default()))
    }

    async fn leave_session(
        &self,
        request: Request<proto::Leaving>,
    ) -> Result<Response<proto::Done>, Status> {
        let caller = Principal::of(request.extensions());
        let proto::Leaving { session, still_running } = request.into_inner();
        let session = session.unwrap_or_default();
        // Not renewed: the client has gone.
        let left = self
            .host()?
            .session(session.session, session.service, caller.name())
            .and_then(|it| it.leave(&still_running));
        left.map_err(|e| status(&e))?;
        Ok(Response::new(proto::Done::default()))
    }

    async fn lock(
        &self,
        request: Request<proto::UnaryLock>,
    ) -> Result<Response<proto::Locked>, Status> {
        let caller = Principal::of(request.extensions());
        let trace = [trace::PARENT, trace::STATE]
            .map(|name| request.metadata().get(name).and_then(|it| it.to_str().ok()))
            .map(|header| header.unwrap_or_default().to_owned());
        let request = request.into_inner();
        let session = self.session(request.session, &caller)?;
        let mut lock = request
            .lock
            .ok_or_else(|| status(&operation::invalid("the call lacks what to lock")))?;
        if lock.trace_parent.is_empty() {
            [lock.trace_parent, lock.trace_state] = trace;
        }
        let items_max = self.settings.items_per_request_max;
        let tables = &mut KnownTables::default();
        let read = operation::lock_operation(&mut lock, items_max, tables, &caller);
        let (txn, operation) = read.map_err(|e| status(&e))?;
        // gRPC drops this call when the client cancels it.
        let mut cancel = CancelOnDrop { session: &session, txn: txn.clone(), armed: true };
        let mut response = session.submit(txn, operation);
        cancel.txn.sequence = response.sequence().unwrap_or_default();
        // An open call is a sign of life, even if the client sends nothing else.
        let response = loop {
            tokio::select! {
                biased;
                response = &mut response => break response,
                () = tokio::time::sleep(session.ttl() / 3) => {
                    // A session that cannot be renewed is over, and so is the call.
                    let _ = session.renew();
                }
            }
        };
        cancel.armed = false;
        match response.map_err(|e| status(&e))? {
            OpResponse::Locked(granted) => {
                Ok(Response::new(convert::granted_to_proto(&granted, proto::Locked::default())))
            }
            _ => Err(Status::internal("the response to a lock is another one")),
        }
    }

    async fn unlock(
        &self,
        request: Request<proto::UnaryUnlock>,
    ) -> Result<Response<proto::Done>, Status> {
        let caller = Principal::of(request.extensions());
        let request = request.into_inner();
        let session = self.session(request.session, &caller)?;
        let unlock = request
            .unlock
            .ok_or_else(|| status(&operation::invalid("the call lacks what to unlock")))?;
        let (txn, operation) =
            operation::unlock_operation(unlock, self.settings.items_per_request_max, &caller)
                .map_err(|e| status(&e))?;
        released(session.submit(txn, operation).await)
    }

    async fn downgrade(
        &self,
        request: Request<proto::UnaryDowngrade>,
    ) -> Result<Response<proto::Done>, Status> {
        let caller = Principal::of(request.extensions());
        let request = request.into_inner();
        let session = self.session(request.session, &caller)?;
        let downgrade = request
            .downgrade
            .ok_or_else(|| status(&operation::invalid("the call lacks its downgrade")))?;
        let (txn, operation) =
            operation::downgrade_operation(downgrade, self.settings.items_per_request_max, &caller)
                .map_err(|e| status(&e))?;
        released(session.submit(txn, operation).await)
    }

    async fn set_savepoint(
        &self,
        request: Request<proto::UnarySavepoint>,
    ) -> Result<Response<proto::Savepoint>, Status> {
        let caller = Principal::of(request.extensions());
        let request = request.into_inner();
        let session = self.session(request.session, &caller)?;
        let savepoint = request
            .savepoint
            .ok_or_else(|| status(&operation::invalid("the call lacks its savepoint")))?;
        let (txn, operation) = operation::savepoint_operation(savepoint).map_err(|e| status(&e))?;
        match session.submit(txn, operation).await.map_err(|e| status(&e))? {
            OpResponse::Savepoint(savepoint) => {
                Ok(Response::new(proto::Savepoint { number: savepoint.get() }))
            }
            _ => Err(Status::internal("a savepoint got another response")),
        }
    }

    async fn roll_back_to(
        &self,
        request: Request<proto::UnaryRollBackTo>,
    ) -> Result<Response<proto::Done>, Status> {
        let caller = Principal::of(request.extensions());
        let request = request.into_inner();
        let session = self.session(request.session, &caller)?;
        let back = request
            .roll_back_to
            .ok_or_else(|| status(&operation::invalid("the call lacks its savepoint")))?;
        let (txn, operation) = operation::roll_back_to_operation(back).map_err(|e| status(&e))?;
        released(session.submit(txn, operation).await)
    }

    async fn end(
        &self,
        request: Request<proto::UnaryEnd>,
    ) -> Result<Response<proto::Done>, Status> {
        let caller = Principal::of(request.extensions());
        let request = request.into_inner();
        let session = self.session(request.session, &caller)?;
        let end =
            request.end.ok_or_else(|| status(&operation::invalid("the call lacks what to end")))?;
        let (txn, operation) = operation::end_operation(end).map_err(|e| status(&e))?;
        released(session.submit(txn, operation).await)
    }

    async fn begin(
        &self,
        request: Request<proto::BeginTxn>,
    ) -> Result<Response<proto::BeginResponse>, Status> {
        let caller = Principal::of(request.extensions());
        let request = request.into_inner();
        let session = self.session(request.session, &caller)?;
        let options = TxnOptions { validates: request.validates, label: request.label };
        let (number, txn) = session.begin(&options).map_err(|e| status(&e))?;
        Ok(Response::new(proto::BeginResponse { number: number.get(), txn: txn.to_string() }))
    }
}

fn released(
    response: lockservice_core::Result<OpResponse>,
) -> Result<Response<proto::Done>, Status> {
    match response.map_err(|e| status(&e))? {
        OpResponse::Done { released } => Ok(Response::new(convert::done_to_proto(released))),
        OpResponse::Locked(_) | OpResponse::Savepoint(_) => {
            Err(Status::internal("a release got another response"))
        }
    }
}

struct CancelOnDrop<'a> {
    session: &'a Session,
    txn: TxnOp,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.session.cancel(self.txn.number, self.txn.sequence);
        }
    }
}
