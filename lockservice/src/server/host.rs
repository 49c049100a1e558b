//! A node that continues to serve over the end of an incarnation.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::LockTableAllocator;
use lockservice_core::env::Env;
use lockservice_core::service::{LockService, ServiceParts, Stopped};
use lockservice_core::{Error, ErrorKind, Result, ServiceId, SessionId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The first and the longest pause between two tries to start.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The number of times that a start waits out a lease of another process under the node's name. It
/// may be the lease of this node's last process, and a new leader counts it from its own start
/// (B4). A process that still has it then is alive.
const NAME_WAITS_MAX: usize = 2;

/// A node: the incarnation that serves now, and the one that follows when its lease was lost (B1),
/// for example because the process was suspended for longer than the lease. A cheap handle.
#[derive(Debug, Clone)]
pub struct ServiceHost(Arc<Host>);

#[derive(Debug)]
struct Host {
    current: watch::Sender<LockService>,
    allocator: Arc<dyn LockTableAllocator>,
    env: Env,
    successor: JoinHandle<()>,
    /// The reason why there will be no further incarnation, once that is so.
    ended: watch::Sender<Option<Error>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.successor.abort();
    }
}

impl ServiceHost {
    /// Starts the node.
    ///
    /// # Errors
    /// Those of [`LockService::start`].
    ///
    /// # Cancel safety
    /// As [`LockService::start`].
    pub async fn start(parts: ServiceParts) -> Result<Self> {
        let first = LockService::start(parts.clone()).await?;
        Ok(Self::keep(parts, first))
    }

    /// Keeps a node serving. `first`, its first incarnation, was started from `parts`.
    pub(crate) fn keep(parts: ServiceParts, first: LockService) -> Self {
        let (allocator, env) = (Arc::clone(&parts.allocator), parts.env.clone());
        let host = Arc::new_cyclic(|host: &std::sync::Weak<Host>| {
            let host = std::sync::Weak::clone(host);
            let mut service = first.clone();
            let successor = env.spawn(async move {
                while service.sealed().await.kind() == ErrorKind::LeaseLost {
                    let next = next(&parts, &service).await;
                    let Some(host) = host.upgrade() else { return };
                    match next {
                        Ok(next) => service = next,
                        Err(e) => {
                            host.ended.send_replace(Some(e));
                            return;
                        }
                    }
                    host.current.send_replace(service.clone());
                }
            });
            Host {
                current: watch::Sender::new(first),
                allocator,
                env: env.clone(),
                successor,
                ended: watch::Sender::new(None),
            }
        });
        Self(host)
    }

    /// The incarnation that serves now.
    pub fn current(&self) -> LockService {
        self.0.current.borrow().clone()
    }

    /// The incarnation that serves now, as it is replaced.
    pub(crate) fn incarnations(&self) -> watch::Receiver<LockService> {
        self.0.current.subscribe()
    }

    /// The effects of the node.
    pub(crate) fn env(&self) -> &Env {
        &self.0.env
    }

    /// The node's allocator.
    pub fn allocator(&self) -> Arc<dyn LockTableAllocator> {
        Arc::clone(&self.0.allocator)
    }

    /// Resolves when the node will never serve again, with the reason: its lease was lost, and
    /// another process has its name now (B1). The caller then stops it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) -> Error {
        let mut ended = self.0.ended.subscribe();
        let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            // The sender lives in `self`.
            None => std::future::pending().await,
        }
    }

    /// The session `id` of incarnation `service`, for a caller with this identity. Fails with
    /// `SessionLost` if it is not, or no longer, here, or another identity opened it: which of
    /// these is not told.
    pub(crate) fn session(
        &self,
        id: u64,
        service: u64,
        identity: &str,
    ) -> Result<lockservice_core::service::Session> {
        let current = self.current();
        if current.id() != ServiceId::new(service) {
            return Err(Error::new(
                ErrorKind::SessionLost,
                "the server was restarted and the session's locks are given away: stop the \
                    protected work and open a new session",
            ));
        }
        current.session_of(SessionId::new(id), identity)
    }

    /// Stops the node; see [`LockService::shutdown`]. No further incarnation starts.
    ///
    /// # Cancel safety
    /// Dropped halfway it leaves the node stopping; call it again.
    pub async fn stop(&self, grace: Duration) -> Stopped {
        self.0.successor.abort();
        self.current().shutdown(grace).await
    }

    /// Stops the node for a restart; see [`LockService::stop_for_restart`]. No further incarnation
    /// starts in this process.
    ///
    /// # Cancel safety
    /// Dropped halfway it leaves the node stopping; call it again.
    pub async fn stop_for_restart(&self, longest: Duration) -> Stopped {
        self.0.successor.abort();
        self.current().stop_for_restart(longest).await
    }
}

/// Starts the incarnation after `last`, without a time limit: the allocator may refuse it until the
/// store can be written. Fails if there can be none.
async fn next(parts: &ServiceParts, last: &LockService) -> Result<LockService> {
    let parts = ServiceParts { replaces: Some((last.id(), last.nonce())), ..parts.clone() };
    let passes =
        |e: &Error| !matches!(e.kind(), ErrorKind::InvalidArgument | ErrorKind::ShuttingDown);
    let say = |e: &Error| {
        tracing::warn!(error = ?e, "cannot start again after the lease was \
        lost; trying again")
    };
    start_patiently(&parts, passes, say).await
}

/// True for an error that time may cure, by itself: no leader is known, or the store does not
/// respond.
#[cfg(any(feature = "cli", test))]
pub(crate) fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable
            | ErrorKind::UnknownOutcome
            | ErrorKind::NotLeader
            | ErrorKind::Fenced
            | ErrorKind::Timeout
            | ErrorKind::Cancelled
    )
}

/// Starts a service. Tries again while it fails with an error that `passes`, and reports each such
/// error with `say`. Waits for a name in use as long as the lease of a process that was killed can
/// last.
pub(crate) async fn start_patiently(
    parts: &ServiceParts,
    passes: impl Fn(&Error) -> bool,
    say: impl Fn(&Error),
) -> Result<LockService> {
    let mut pause = PAUSE.0;
    let mut waits = 0;
    loop {
        let error = match LockService::start(parts.clone()).await {
            Ok(service) => return Ok(service),
            Err(e) => e,
        };
        let time = match error.kind() {
            ErrorKind::NameInUse if waits < NAME_WAITS_MAX => {
                waits += 1;
                error.retry_after().unwrap_or(PAUSE.1)
            }
            ErrorKind::NameInUse => return Err(error),
            _ if !passes(&error) => return Err(error),
            _ => {
                pause = (pause * 2).min(PAUSE.1);
                pause
            }
        };
        say(&error);
        // The timer only wakes: the allocator's clock decides whether the name is free.
        parts.env.sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use lockservice_core::NodeName;
    use lockservice_core::allocator::{AllocatorSettings, ElectedAllocator};
    use lockservice_core::clock::SystemClock;
    use lockservice_core::testing::SharedStore;

    use super::*;
    use crate::peers::Patience;

    #[tokio::test]
    async fn the_name_of_a_process_that_died_is_waited_for_and_that_of_one_that_lives_is_not_to_be_had()
     {
        let name = NodeName::new("n").expect("a name");
        let mut settings = AllocatorSettings::default();
        settings.constants.lease_ttl_ms = 1_000;
        let store = Arc::new(SharedStore::new());
        let (clock, none) = (
            Arc::new(SystemClock),
            Arc::new(crate::peers::GrpcPeers::new(Patience::for_lease(Duration::ZERO))),
        );
        let allocator = ElectedAllocator::start(store, clock, settings, name.clone(), "n:1", none)
            .expect("valid settings");
        let parts = ServiceParts::new(allocator, Arc::new(SystemClock), name);
        // A dropped service renews no more.
        drop(LockService::start(parts.clone()).await.expect("a free name"));
        let said = std::cell::Cell::new(0);
        let say = |e: &Error| {
            assert!(e.kind() == ErrorKind::NameInUse && e.retry_after().is_some(), "{e:?}");
            said.set(said.get() + 1);
        };
        let lives = start_patiently(&parts, may_pass, say).await.expect("its lease has run out");
        assert!((1..=NAME_WAITS_MAX).contains(&said.replace(0)));
        let error = start_patiently(&parts, may_pass, say).await.expect_err("it lives");
        assert_eq!((error.kind(), said.get()), (ErrorKind::NameInUse, NAME_WAITS_MAX));
        assert!(lives.sealed().now_or_never().is_none(), "the other was left alone");
    }
}
