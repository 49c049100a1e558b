//! The calls of etcd that its locks need, and their messages.
//!
//! The messages are those of etcd 3.2 and later, without the fields that are not read here.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use lockservice_core::{Error, ErrorKind, Result};
use prost::Message;
use prost::bytes::Bytes;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const LOCK: &str = "/v3lockpb.Lock/Lock";
const UNLOCK: &str = "/v3lockpb.Lock/Unlock";

/// The longest time to connect, and to get a response to a call that waits for no lock.
pub(super) const CALL_MAX: Duration = Duration::from_secs(5);

/// One HTTP/2 connection. Cheap to clone: the clones share it.
///
/// # Errors
/// Every call fails with the kinds of [`failed`], and with `Unavailable` if there is no response
/// within [`CALL_MAX`]. [`lock`](Self::lock), [`unlock`](Self::unlock) and
/// [`keep_alive`](Self::keep_alive) have no such limit.
///
/// # Cancel safety
/// A call that is dropped may have been done, or may still be done. The exception is a
/// [`lock`](Self::lock) that waits: etcd cancels it.
#[derive(Clone, Debug)]
pub(super) struct Api {
    channel: Channel,
}

impl Api {
    /// Connects.
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let channel = bounded(async {
            let connected = endpoint.connect().await;
            connected.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "etcd cannot be reached").with_source(error)
            })
        });
        Ok(Self { channel: channel.await? })
    }

    /// Grants the lease `id`, which the caller chose, for `ttl`. etcd counts in whole seconds.
    pub(super) async fn grant(&self, id: i64, ttl: Duration) -> Result<()> {
        let request = LeaseGrantRequest { ttl_s: ttl.as_secs().cast_signed(), id };
        bounded(async {
            let granted: Result<Ignored, Status> = self.call(LEASE_GRANT, request).await;
            granted.map(drop).map_err(|status| failed(&status))
        })
        .await
    }

    /// Revokes a lease, which releases its locks and ends its waits. A lease that is not there is
    /// no error.
    pub(super) async fn revoke(&self, id: i64) -> Result<()> {
        bounded(async {
            let revoked: Result<Ignored, Status> = self.call(LEASE_REVOKE, LeaseId { id }).await;
            match revoked {
                Err(status) if status.code() != Code::NotFound => Err(failed(&status)),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Renews each lease of `ids` when it comes. Returns when etcd ends the stream.
    pub(super) async fn keep_alive(
        &self,
        ids: impl Stream<Item = i64> + Send + 'static,
    ) -> Result<()> {
        let renewals = async {
            let mut client = self.ready().await?;
            let path = PathAndQuery::from_static(LEASE_KEEP_ALIVE);
            let request = Request::new(ids.map(|id| LeaseId { id }));
            let codec: ProstCodec<LeaseId, Ignored> = ProstCodec::default();
            let mut responses = client.streaming(request, path, codec).await?.into_inner();
            while responses.message().await?.is_some() {}
            Ok(())
        };
        renewals.await.map_err(|status: Status| failed(&status))
    }

    /// Locks `name` for the holder of `lease`; waits for it. Returns the key to unlock.
    pub(super) async fn lock(&self, name: Bytes, lease: i64) -> Result<Bytes> {
        let locked: Result<LockResponse, Status> =
            self.call(LOCK, LockRequest { name, lease }).await;
        locked.map(|response| response.key).map_err(|status| failed(&status))
    }

    /// Unlocks a key that [`lock`](Self::lock) returned.
    pub(super) async fn unlock(&self, key: Bytes) -> Result<()> {
        let unlocked: Result<Ignored, Status> = self.call(UNLOCK, UnlockRequest { key }).await;
        unlocked.map(drop).map_err(|status| failed(&status))
    }

    async fn call<Q, R>(&self, path: &'static str, request: Q) -> Result<R, Status>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let codec: ProstCodec<Q, R> = ProstCodec::default();
        let path = PathAndQuery::from_static(path);
        let response = self.ready().await?.unary(Request::new(request), path, codec).await?;
        Ok(response.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(client)
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(CALL_MAX, call).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Unavailable,
            "etcd does not respond: is it running, and has it a leader?",
        ))
    })
}

/// The error for a status. It goes by the text where that is etcd's own: the lock service sends
/// the errors of the rest of etcd without their codes.
fn failed(status: &Status) -> Error {
    let says = |text| status.message().contains(text);
    let (kind, message) = if status.code() == Code::Unimplemented {
        (
            ErrorKind::InvalidArgument,
            "the server is no etcd with a lock service: correct the address",
        )
    } else if says("user name is empty") {
        (
            ErrorKind::NotPermitted,
            "etcd requires a login, which this does not have: measure one without authentication",
        )
    } else if says("requested lease not found") {
        (
            ErrorKind::Timeout,
            "the lease of a caller ran out: is etcd overloaded, or was it stopped meanwhile?",
        )
    } else if says("database space exceeded") || says("too many requests") {
        (
            ErrorKind::ResourceExhausted,
            "etcd is full or overloaded: compact and defragment it, or measure fewer --callers",
        )
    } else if says("etcdserver: ") {
        (ErrorKind::Unavailable, "etcd refuses a call")
    } else {
        (
            ErrorKind::Unavailable,
            "etcd cannot be reached, the connection was lost, or the server is no etcd",
        )
    };
    let error = Error::new(kind, message);
    if status.message().is_empty() { error } else { error.with("status", status.message()) }
}

/// `etcdserverpb.LeaseGrantRequest`.
#[derive(Clone, PartialEq, Message)]
struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    ttl_s: i64,
    #[prost(int64, tag = "2")]
    id: i64,
}

/// `etcdserverpb.LeaseRevokeRequest` and `etcdserverpb.LeaseKeepAliveRequest`.
#[derive(Clone, PartialEq, Message)]
struct LeaseId {
    #[prost(int64, tag = "1")]
    id: i64,
}

/// `v3lockpb.LockRequest`.
#[derive(Clone, PartialEq, Message)]
struct LockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
    #[prost(int64, tag = "2")]
    lease: i64,
}

/// `v3lockpb.LockResponse`.
#[derive(Clone, PartialEq, Message)]
struct LockResponse {
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
}

/// `v3lockpb.UnlockRequest`.
#[derive(Clone, PartialEq, Message)]
struct UnlockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// A response of which nothing is read.
#[derive(Clone, PartialEq, Message)]
struct Ignored {}
