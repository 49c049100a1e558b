//! etcd, locked as its users do.
//!
//! # Implementation details
//! One row is `Lock` and `Unlock` of etcd's own lock service (`v3lockpb`). `Lock` queues behind the
//! callers that came before, and returns when it is granted; the caller waits for the response to
//! `Unlock` too. etcd knows neither shared locks, ranges, nor several locks at once. So a range or
//! a batch is all of its rows, exclusively, locked one after the other in their order, so that
//! there is no deadlock, and unlocked all at once.
//!
//! | shared by | |
//! |---|---|
//! | all callers | one HTTP/2 connection, as those of our side share one session |
//! | all callers | the stream that renews their leases |
//! | none | a lease: to etcd, two callers with one lease are the same holder |
//!
//! A lease is granted before the first lock of its caller, and lives as long as the caller. Names
//! have a prefix of their own for each benchmark. Locks run out with their lease if the benchmark
//! is killed.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the side and its callers |
//! | `api` | the calls and messages of etcd |

mod api;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use lockservice_core::Result;
use parking_lot::Mutex;
use prost::bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::codegen::http::uri::Authority;
use tonic::transport::Endpoint;

use self::api::{Api, CALL_MAX};
use super::cpu::ServerProcess;
use super::side::{Caller, Side};
use super::workload::{Want, Workload};
use crate::cli::exit::Failure;

/// The port of a URL that names none.
const PORT: u16 = 2379;
/// The TTL of a lease: that of a session in etcd's own client.
const TTL: Duration = Duration::from_secs(60);
/// The time between two renewals, as in etcd's own client.
const RENEW_EVERY: Duration = TTL.checked_div(3).expect("not by zero");
/// The name of its program.
const PROGRAM: &str = "etcd";
/// The largest number of leases that are revoked at the same time.
const REVOKED_AT_ONCE: usize = 100;

/// The address of one etcd, parsed once.
pub(crate) struct EtcdUrl(Endpoint);

impl EtcdUrl {
    /// Parses `etcd://HOST[:PORT]`. The error does not repeat the text, which may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, Failure> {
        let endpoint = || {
            let authority = url.strip_prefix("etcd://")?;
            if authority.contains(['@', ',']) {
                return None;
            }
            let authority: Authority = authority.parse().ok()?;
            if authority.host().is_empty() {
                return None;
            }
            // A port that is no number in range would be taken for none.
            let address = if authority.as_str() == authority.host() {
                format!("http://{authority}:{PORT}")
            } else {
                authority.port_u16().filter(|port| *port > 0)?;
                format!("http://{authority}")
            };
            // Without pings while nothing is under way: etcd closes a connection for them.
            Some(Endpoint::from_shared(address).ok()?.tcp_nodelay(true).connect_timeout(CALL_MAX))
        };
        let syntax = "--beside takes one etcd, without TLS and without a login: etcd://HOST[:PORT]";
        endpoint().map(Self).ok_or_else(|| Failure::usage(syntax))
    }
}

/// See the module.
pub(super) struct Etcd {
    api: Api,
    server: ServerProcess,
    /// The beginning of all names.
    prefix: Arc<str>,
    leases: Leases,
    /// Renews the leases.
    renewal: JoinHandle<()>,
}

impl Etcd {
    /// Connects.
    pub(super) async fn open(url: &EtcdUrl) -> Result<Self> {
        let api = Api::connect(&url.0).await?;
        let server = ServerProcess::at(url.0.uri(), PROGRAM).await;
        let leases = Leases::default();
        let (due, renewing) = (leases.due(), api.clone());
        let renewal = tokio::spawn(async move {
            // Without renewals the leases run out, and the next lock fails with that.
            let _ = renewing.keep_alive(due).await;
        });
        let prefix = format!("lockservice-bench/{:08x}/", rand::random::<u32>()).into();
        Ok(Self { api, server, prefix, leases, renewal })
    }
}

#[async_trait]
impl Side for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn server(&self) -> &ServerProcess {
        &self.server
    }

    async fn callers(&self, _: Workload, count: u32) -> Result<Vec<Box<dyn Caller>>> {
        let mut callers: Vec<Box<dyn Caller>> = Vec::new();
        for _ in 0..count {
            let lease = self.leases.choose();
            self.api.grant(lease, TTL).await?;
            callers.push(Box::new(EtcdCaller {
                api: self.api.clone(),
                prefix: Arc::clone(&self.prefix),
                leases: self.leases.clone(),
                lease,
            }));
        }
        Ok(callers)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.renewal.abort();
        // Those of callers that were dropped, perhaps in the middle of a cycle.
        let left = stream::iter(self.leases.all()).map(Ok);
        left.try_for_each_concurrent(REVOKED_AT_ONCE, |lease| self.api.revoke(lease)).await
    }
}

/// The leases that may be there. Cheap to clone: the clones share them.
#[derive(Clone, Debug, Default)]
struct Leases(Arc<Mutex<BTreeSet<i64>>>);

impl Leases {
    /// A new number. It is kept before the lease is granted, so that the side revokes the lease
    /// however the call ended.
    fn choose(&self) -> i64 {
        // 0 would let etcd choose.
        let lease = rand::random_range(1..=i64::MAX);
        self.0.lock().insert(lease);
        lease
    }

    fn remove(&self, lease: i64) {
        self.0.lock().remove(&lease);
    }

    fn all(&self) -> Vec<i64> {
        self.0.lock().iter().copied().collect()
    }

    /// All of them, whenever it is time to renew them.
    fn due(&self) -> impl Stream<Item = i64> + Send + 'static {
        let mut ticks = tokio::time::interval_at(Instant::now() + RENEW_EVERY, RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let leases = self.clone();
        let ticks = stream::unfold(ticks, |mut ticks| async {
            ticks.tick().await;
            Some(((), ticks))
        });
        ticks.flat_map(move |()| stream::iter(leases.all()))
    }
}

struct EtcdCaller {
    api: Api,
    prefix: Arc<str>,
    leases: Leases,
    lease: i64,
}

#[async_trait]
impl Caller for EtcdCaller {
    async fn cycle(&mut self, want: &Want) -> Result<()> {
        let mut keys = Vec::new();
        for row in want.rows() {
            let name = Bytes::from(format!("{}{row}", self.prefix));
            keys.push(self.api.lock(name, self.lease).await?);
        }
        future::try_join_all(keys.into_iter().map(|key| self.api.unlock(key))).await?;
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.api.revoke(self.lease).await?;
        self.leases.remove(self.lease);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_plain_etcd_is_taken_and_a_password_is_not_repeated() {
        for url in [
            "etcd://",
            "etcd://:2379",
            "etcd://h:",
            "etcd://h:0",
            "etcd://h:65536",
            "etcd://h:hidden",
            "etcd://h/hidden",
            "etcd://a:1,b:2",
            "etcd://me:hidden@h:2379",
        ] {
            let refused = EtcdUrl::parse(url).err().expect(url);
            assert!(!refused.sentence.contains("hidden"), "{}", refused.sentence);
        }
        for (url, address) in [
            ("etcd://h", "http://h:2379/"),
            ("etcd://127.0.0.1:23", "http://127.0.0.1:23/"),
            ("etcd://[::1]", "http://[::1]:2379/"),
        ] {
            assert_eq!(EtcdUrl::parse(url).expect(url).0.uri(), address);
        }
    }
}
