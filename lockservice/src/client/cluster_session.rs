//! [`ClusterSession`]: a session at every node that its transactions were sent on to (T5).
//!
//! The first node is the *home*; the others are opened when a table turns out to be owned there,
//! and kept for the next transaction. The values of the whole session are the least of those
//! at home and at each other node **in use**: one where a transaction holds something. An
//! unused node may be lost without harm; it is opened again when it is needed.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::{Error, ErrorKind, Result, ServiceId, TableRef};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::driver;
use super::node_session::{Closing, Handle, SessionShared};

/// The largest number of nodes beside the home.
const NODES_MAX: usize = 64;
/// The largest number of tables whose owners are remembered.
const OWNERS_MAX: usize = 10_000;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct ClusterSession {
    pub(super) home: Arc<Handle>,
    ttl: Option<Duration>,
    /// The earliest deadline, and the first loss, of home and the nodes in use. Each is computed
    /// while the channel is locked, so that the last to compute has seen everything; `used` is
    /// locked inside.
    pub(super) deadline: watch::Sender<Time>,
    pub(super) lost: watch::Sender<Option<Error>>,
    /// A leaf.
    used: Mutex<Vec<Used>>,
    /// A leaf.
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Used {
    shared: Arc<SessionShared>,
    by: usize,
}

/// A node beside the home: one caller at a time opens it.
type Away = Arc<tokio::sync::Mutex<Option<Arc<Handle>>>>;

#[derive(Debug, Default)]
struct Known {
    closed: bool,
    away: HashMap<String, Away>,
    /// The address of a table's last owner, if that is not the home.
    owners: HashMap<TableRef, String>,
}

impl ClusterSession {
    pub(super) fn new(home: Arc<Handle>, ttl: Option<Duration>) -> Arc<Self> {
        let cluster_session = Arc::new(Self {
            home,
            ttl,
            deadline: watch::Sender::new(Time::ZERO),
            lost: watch::Sender::new(None),
            used: Mutex::default(),
            known: Mutex::default(),
        });
        cluster_session.adopt(&cluster_session.home);
        cluster_session.refresh();
        // It may have been lost before it was adopted.
        let lost = cluster_session.home.shared.lost.borrow().clone();
        if let Some(why) = lost {
            cluster_session.lost_at(&cluster_session.home.shared, &why);
        }
        cluster_session
    }

    fn adopt(self: &Arc<Self>, handle: &Handle) {
        // It is set once: a session belongs to one cluster session.
        drop(handle.shared.cluster_session.set(Arc::downgrade(self)));
    }

    /// Computes the earliest deadline again.
    pub(super) fn refresh(&self) {
        self.deadline.send_if_modified(|deadline| {
            let mut least = *self.home.shared.deadline.borrow();
            for used in &*self.used.lock() {
                least = least.min(*used.shared.deadline.borrow());
            }
            std::mem::replace(deadline, least) != least
        });
    }

    /// The session was lost at one node.
    pub(super) fn lost_at(&self, shared: &SessionShared, why: &Error) {
        let is = |other: &SessionShared| std::ptr::eq(other, shared);
        if is(&self.home.shared) || self.used.lock().iter().any(|used| is(&used.shared)) {
            self.lost.send_if_modified(|lost| {
                let first = lost.is_none();
                if first {
                    *lost = Some(why.clone());
                }
                first
            });
        }
    }

    /// Resolves when the session is lost at home or at a node in use; never for one that was
    /// closed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn lost(&self) -> Error {
        let mut lost = self.lost.subscribe();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        // The sender lives in `self`.
        why.unwrap_or_else(|| {
            Error::new(ErrorKind::SessionLost, "the session was closed: open a new one")
        })
    }

    /// Notes that a transaction holds something at a node, until the returned pin is dropped. The
    /// home needs no pin.
    pub(super) fn pin(self: &Arc<Self>, handle: &Arc<Handle>) -> Option<NodePin> {
        if Arc::ptr_eq(handle, &self.home) {
            return None;
        }
        let shared = &handle.shared;
        {
            let mut used = self.used.lock();
            match used.iter_mut().find(|used| Arc::ptr_eq(&used.shared, shared)) {
                Some(used) => used.by += 1,
                None => used.push(Used { shared: Arc::clone(shared), by: 1 }),
            }
        }
        self.refresh();
        // The session may have been lost just before it was counted.
        let lost = shared.lost.borrow().clone();
        if let Some(why) = lost {
            self.lost_at(shared, &why);
        }
        Some(NodePin { cluster_session: Arc::downgrade(self), shared: Arc::clone(shared) })
    }

    /// The address of the last owner of `table`, if that is known and not the home.
    pub(super) fn owner_of(&self, table: &TableRef) -> Option<String> {
        self.known.lock().owners.get(table).cloned()
    }

    /// Remembers the address of the owner of `table`; `None` if it is the home, or unknown.
    pub(super) fn set_owner(&self, table: &TableRef, address: Option<&str>) {
        let mut known = self.known.lock();
        match address {
            None => drop(known.owners.remove(table)),
            Some(address) => {
                if known.owners.len() >= OWNERS_MAX {
                    // Owners are hints, which are learned again when they are needed.
                    known.owners.clear();
                }
                known.owners.insert(table.clone(), address.to_owned());
            }
        }
    }

    /// The session at the node at `address`, opened if need be. `service` is the incarnation of the
    /// node, if it is known.
    ///
    /// Fails as [`driver::open`] does.
    ///
    /// # Cancel safety
    /// Cancel safe: a session that was opened for a dropped call
    /// lapses by its TTL.
    pub(super) async fn at(
        self: &Arc<Self>,
        address: &str,
        service: Option<ServiceId>,
    ) -> Result<Arc<Handle>> {
        let home = &self.home.shared;
        if service == Some(home.service()) || address == &*home.node.address {
            return Ok(Arc::clone(&self.home));
        }
        let slot = self.slot(address)?;
        let mut slot = slot.lock().await;
        if let Some(handle) = &*slot
            && handle.shared.check().is_ok()
        {
            return Ok(Arc::clone(handle));
        }
        let handle = driver::open(&home.node.client.node(address)?, self.ttl).await?;
        self.adopt(&handle);
        *slot = Some(Arc::clone(&handle));
        // The last handle is dropped here and in the slot, which ends the session.
        if self.known.lock().closed {
            *slot = None;
            return Err(home.why_lost());
        }
        Ok(handle)
    }

    fn slot(&self, address: &str) -> Result<Away> {
        let mut known = self.known.lock();
        if known.closed {
            return Err(self.home.shared.why_lost());
        }
        if !known.away.contains_key(address) && known.away.len() >= NODES_MAX {
            // A session that is not being opened, and at which no transaction is, is dropped.
            known.away.retain(|_, slot| match slot.try_lock() {
                Ok(slot) => slot.as_ref().is_some_and(|handle| Arc::strong_count(handle) > 1),
                Err(_) => true,
            });
            if known.away.len() >= NODES_MAX {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    "the session spans too many nodes: end some of its transactions, or open \
                        another session",
                )
                .with("limit", NODES_MAX));
            }
        }
        Ok(Arc::clone(known.away.entry(address.to_owned()).or_default()))
    }

    /// Adds no more nodes. Returns the sessions, which are ended on this side at the latest when
    /// that is dropped.
    fn closing(&self) -> ClosingSessions {
        let slots: Vec<Away> = {
            let mut known = self.known.lock();
            known.closed = true;
            known.away.drain().map(|(_, slot)| slot).collect()
        };
        let mut handles = vec![Arc::clone(&self.home)];
        for slot in slots {
            // A call that is just opening one finds the session closed and drops it.
            handles.extend(slot.try_lock().ok().and_then(|mut slot| slot.take()));
        }
        ClosingSessions(handles)
    }

    /// See [`Session::close`](super::Session::close).
    pub(super) async fn close(&self) -> Result<()> {
        let mut closing = self.closing();
        // Releases that were sent and not waited for may carry a commit.
        futures::future::join_all(closing.0.iter().map(|handle| handle.shared.flush())).await;
        let handles = closing.shut();
        let outcomes =
            futures::future::join_all(handles.iter().map(|handle| handle.shared.give_up())).await;
        outcomes.into_iter().collect()
    }

    /// See [`Session::leave`](super::Session::leave).
    pub(super) async fn leave(&self, still_running: &str) -> Result<()> {
        let handles = self.closing().shut();
        let outcomes = futures::future::join_all(
            handles.iter().map(|handle| handle.shared.leave(still_running)),
        )
        .await;
        outcomes.into_iter().collect()
    }

    /// See [`Session::abandon`](super::Session::abandon).
    pub(super) fn abandon(&self) {
        drop(self.closing());
    }
}

/// The sessions of a [`ClusterSession`] that ends.
struct ClosingSessions(Vec<Arc<Handle>>);

impl ClosingSessions {
    /// Ends every session on this side. Returns those whose servers do not know that yet.
    fn shut(&mut self) -> Vec<Arc<Handle>> {
        let mut handles = std::mem::take(&mut self.0);
        handles.retain(|handle| handle.shared.shut() != Closing::Closed);
        handles
    }
}

impl Drop for ClosingSessions {
    fn drop(&mut self) {
        drop(self.shut());
    }
}

/// A transaction that holds something at a node beside the home.
#[derive(Debug)]
pub(super) struct NodePin {
    cluster_session: Weak<ClusterSession>,
    shared: Arc<SessionShared>,
}

impl Drop for NodePin {
    fn drop(&mut self) {
        let Some(cluster_session) = self.cluster_session.upgrade() else { return };
        {
            let mut used = cluster_session.used.lock();
            if let Some(at) = used.iter().position(|used| Arc::ptr_eq(&used.shared, &self.shared)) {
                used[at].by -= 1;
                if used[at].by == 0 {
                    used.swap_remove(at);
                }
            }
        }
        cluster_session.refresh();
    }
}
