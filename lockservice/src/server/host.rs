//! Keeps a node serving over the end of an incarnation.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::LockTableAllocator;
use lockservice_core::service::{LockService, ServiceParts, Stopped};
use lockservice_core::{ErrorKind, Result, ServiceId, SessionId};
use parking_lot::RwLock;
use tokio::task::JoinHandle;

/// A node: the incarnation that serves now, and the one that follows when its lease was lost (B1), for example because the process
/// was suspended for longer than the lease. A cheap handle.
#[derive(Debug, Clone)]
pub struct ServiceHost(Arc<Host>);

#[derive(Debug)]
struct Host {
    current: RwLock<LockService>,
    allocator: Arc<dyn LockTableAllocator>,
    successor: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.successor.abort();
    }
}

impl ServiceHost {
    /// Starts the node. Fails as [`LockService::start`] does.
    pub async fn start(parts: ServiceParts) -> Result<Self> {
        let first = LockService::start(parts.clone()).await?;
        let allocator = Arc::clone(&parts.allocator);
        let host = Arc::new_cyclic(|host: &std::sync::Weak<Host>| {
            let host = std::sync::Weak::clone(host);
            let mut service = first.clone();
            let successor = tokio::spawn(async move {
                while service.sealed().await.kind() == ErrorKind::LeaseLost {
                    service = next(&parts, &service).await;
                    let Some(host) = host.upgrade() else { return };
                    *host.current.write() = service.clone();
                }
            });
            Host { current: RwLock::new(first), allocator, successor }
        });
        Ok(Self(host))
    }

    /// The incarnation that serves now.
    pub fn current(&self) -> LockService {
        self.0.current.read().clone()
    }

    /// The node's allocator.
    pub fn allocator(&self) -> Arc<dyn LockTableAllocator> {
        Arc::clone(&self.0.allocator)
    }

    /// The session `id` of incarnation `service`. Fails with `SessionLost` if it is not, or no longer, here.
    pub(crate) fn session(&self, id: u64, service: u64) -> Result<lockservice_core::service::Session> {
        let current = self.current();
        if current.id() != ServiceId::new(service) {
            return Err(lockservice_core::Error::new(
                ErrorKind::SessionLost,
                "the server was restarted and the session's locks are given away: stop the protected work and open a new session",
            ));
        }
        current.session(SessionId::new(id))
    }

    /// Stops the node; see [`LockService::shutdown`].
    pub async fn stop(&self, grace: Duration) -> Result<Stopped> {
        self.0.successor.abort();
        self.current().shutdown(grace).await
    }
}

/// Tries until the next incarnation stands: the allocator may refuse it until the store can be written.
async fn next(parts: &ServiceParts, last: &LockService) -> LockService {
    let parts = ServiceParts { replaces: Some((last.id(), last.nonce())), ..parts.clone() };
    let mut pause = Duration::from_millis(50);
    loop {
        match LockService::start(parts.clone()).await {
            Ok(service) => return service,
            Err(e) => tracing::warn!(error = ?e, "cannot start again after the lease was lost; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}
