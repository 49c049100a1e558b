//! `lockservice.v1.Locks`.

use std::pin::Pin;

use futures::Stream;
use lockservice_core::service::{Answer, Session, TxnOp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::convert::{self, to_status as status};
use crate::proto;
use crate::server::{ServerSettings, ServiceHost, Slot, connection};

/// Frames that may wait to be read by a client.
const FRAMES_WAITING_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct LocksApi {
    slot: Slot,
    settings: ServerSettings,
}

impl LocksApi {
    pub(crate) fn new(slot: Slot, settings: ServerSettings) -> Self {
        Self { slot, settings }
    }

    fn host(&self) -> Result<&ServiceHost, Status> {
        self.slot.get().map_err(|e| status(&e))
    }

    fn session(&self, session: Option<proto::SessionRef>) -> Result<Session, Status> {
        let session = session.unwrap_or_default();
        self.host()?.session(session.session, session.service).map_err(|e| status(&e))
    }
}

#[tonic::async_trait]
impl proto::locks_server::Locks for LocksApi {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<proto::ServerFrame, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::ClientFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (out, frames) = mpsc::channel(FRAMES_WAITING_MAX);
        tokio::spawn(connection::run(self.host()?.clone(), self.settings, request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }

    async fn open_session(&self, request: Request<proto::Hello>) -> Result<Response<proto::Welcome>, Status> {
        let (_, welcome) =
            connection::open(self.host()?, &self.settings, request.into_inner()).map_err(|e| status(&e))?;
        Ok(Response::new(welcome))
    }

    async fn keep_session(&self, request: Request<proto::SessionRef>) -> Result<Response<proto::Promise>, Status> {
        let session = self.session(Some(request.into_inner()))?;
        let promise = session.renew().map_err(|e| status(&e))?;
        Ok(Response::new(proto::Promise { guard_ms: convert::millis_down(promise.guard) }))
    }

    async fn close_session(&self, request: Request<proto::SessionRef>) -> Result<Response<proto::Done>, Status> {
        self.session(Some(request.into_inner()))?.close().await;
        Ok(Response::new(proto::Done {}))
    }

    async fn lock(&self, request: Request<proto::UnaryLock>) -> Result<Response<proto::Locked>, Status> {
        let request = request.into_inner();
        let session = self.session(request.session)?;
        let lock = request.lock.ok_or_else(|| status(&connection::invalid("the call lacks what to lock")))?;
        let (txn, operation) =
            connection::lock_operation(lock, self.settings.items_per_request_max).map_err(|e| status(&e))?;
        // gRPC drops this call when the client cancels it.
        let mut cancel = CancelOnDrop { session: &session, txn: txn.clone(), armed: true };
        let answer = session.submit(txn, operation).await;
        cancel.armed = false;
        match answer.map_err(|e| status(&e))? {
            Answer::Locked(granted) => Ok(Response::new(convert::granted_to_proto(&granted))),
            _ => Err(Status::internal("a lock was answered with something else")),
        }
    }

    async fn unlock(&self, request: Request<proto::UnaryUnlock>) -> Result<Response<proto::Done>, Status> {
        let request = request.into_inner();
        let session = self.session(request.session)?;
        let unlock = request.unlock.ok_or_else(|| status(&connection::invalid("the call lacks what to unlock")))?;
        let (txn, operation) =
            connection::unlock_operation(unlock, self.settings.items_per_request_max).map_err(|e| status(&e))?;
        session.submit(txn, operation).await.map_err(|e| status(&e))?;
        Ok(Response::new(proto::Done {}))
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
