//! Health: the status that a probe gets follows the state of the node.
//!
//! | service | serves |
//! |---|---|
//! | `lockservice.v1.Locks`, the empty name | while the incarnation has its lease, and is not stopped |
//! | `lockservice.v1.Allocator` | while the node leads and may serve, or knows the leader |

use std::time::Duration;

use lockservice_core::allocator::Role;
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::ServiceHost;
use super::allocator::AllocatorApi;
use super::locks::LocksApi;
use crate::proto::allocator_server::AllocatorServer;
use crate::proto::locks_server::LocksServer;

/// The interval of the check whether a leader may still serve: its leadership runs out without an
/// event if its store is away (L1).
const CHECK_PAUSE: Duration = Duration::from_millis(100);

/// Sets whether locks are granted.
pub(super) async fn set_locks(health: &HealthReporter, serves: bool) {
    set(health, LocksServer::<LocksApi>::NAME, serves).await;
    set(health, "", serves).await;
}

/// Sets whether the leader can be reached.
pub(super) async fn set_allocator(health: &HealthReporter, serves: bool) {
    set(health, AllocatorServer::<AllocatorApi>::NAME, serves).await;
}

async fn set(health: &HealthReporter, name: &str, serves: bool) {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status(name, status).await;
}

/// Follows the incarnations, which lose their leases and are replaced, and sets whether locks are
/// granted. Ends with the host.
pub(super) async fn follow_host(health: HealthReporter, host: ServiceHost) {
    let mut incarnations = host.incarnations();
    loop {
        let service = incarnations.borrow_and_update().clone();
        set_locks(&health, true).await;
        let why = service.sealed().await;
        tracing::info!(service = %service.id(), error = ?why, "health: locks are not served");
        drop(service);
        set_locks(&health, false).await;
        if incarnations.changed().await.is_err() {
            return;
        }
    }
}

/// Follows the roles, and sets whether the leader can be reached.
pub(super) async fn follow_roles(health: HealthReporter, mut roles: watch::Receiver<Role>) {
    loop {
        let role = roles.borrow_and_update().clone();
        let (serves, leads) = match &role {
            Role::Leading(leader) => (leader.leads(), true),
            Role::Following { .. } => (true, false),
            Role::Searching(_) | Role::Stopped(_) => (false, false),
        };
        drop(role);
        set_allocator(&health, serves).await;
        tokio::select! {
            changed = roles.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(CHECK_PAUSE), if leads => {}
        }
    }
}
