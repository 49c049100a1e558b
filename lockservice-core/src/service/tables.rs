//! Finding the bind of a table, binding it if need be, and keeping it supplied with tokens.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::allocator::Bind;
use crate::clock::Time;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::TableRef;
use crate::service::Inner;
use crate::sync::{Mutex, RwLock};
use crate::table::WaitPolicy;

/// A refill is asked for when this few tokens are left: half a block.
const TOKENS_LOW: u64 = 1 << 19;

/// The binds that this service owns.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Installed in the engine, and current as long as this incarnation lives: a bind leaves a live incarnation only by its
    /// acknowledged release (B5).
    owned: RwLock<HashMap<TableRef, Arc<Bind>>>,
    /// One bind call per table at a time; the others wait for it (J26).
    gates: Mutex<HashMap<TableRef, Arc<tokio::sync::Mutex<()>>>>,
    /// Tables whose next block of tokens is on its way.
    refilling: Mutex<HashSet<TableRef>>,
}

impl Tables {
    /// The bind of `table`, if this service owns it.
    pub(crate) fn owned(&self, table: &TableRef) -> Option<Arc<Bind>> {
        self.owned.read().get(table).cloned()
    }

    fn gate<'a>(&'a self, table: &'a TableRef) -> Gate<'a> {
        let lock = Arc::clone(self.gates.lock().entry(table.clone()).or_default());
        Gate { gates: &self.gates, table, lock }
    }
}

/// A caller's hold on a table's gate.
struct Gate<'a> {
    gates: &'a Mutex<HashMap<TableRef, Arc<tokio::sync::Mutex<()>>>>,
    table: &'a TableRef,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Gate<'_> {
    /// The gate goes with its last caller, also one that gave up: the map stays as small as the number of bind calls under way.
    fn drop(&mut self) {
        let mut gates = self.gates.lock();
        // This caller and the map; others come and go only under the mutex.
        if Arc::strong_count(&self.lock) == 2 {
            gates.remove(self.table);
        }
    }
}

impl Inner {
    /// The bind of `table`, bound to this service if nobody owns it.
    ///
    /// While the last owner may still be at work (B3), and while no allocator leads or its store does not answer, it waits until `deadline`,
    /// unless the request is not to wait.
    pub(crate) async fn table(
        self: &Arc<Self>,
        table: &TableRef,
        wait: WaitPolicy,
        deadline: Time,
    ) -> Result<Arc<Bind>> {
        let mut pause = RETRY_FIRST;
        loop {
            if let Some(bind) = self.tables.owned(table) {
                return Ok(bind);
            }
            match self.until(deadline, self.bind(table)).await {
                None => return Err(timeout(table, "binding the table took too long: try again")),
                Some(Err(e)) if e.kind() == ErrorKind::Rebinding && wait == WaitPolicy::Wait => {
                    let again = self.parts.clock.now() + e.retry_after().unwrap_or_default();
                    if again > deadline {
                        return Err(timeout(
                            table,
                            "the table's last owner may still be at work, and the wait ended before its lease: try again",
                        ));
                    }
                    // The timer only wakes; whether the table may be granted is decided by the allocator's clock.
                    if self.until(again, self.phase_changed()).await.is_some() {
                        self.check_serving()?;
                    }
                }
                // A new leader is being elected: to the caller that is a slow bind, for whatever was begun may be asked for again.
                Some(Err(e)) if may_pass(&e) && wait == WaitPolicy::Wait => {
                    let again = self.parts.clock.now() + pause;
                    if again > deadline {
                        return Err(
                            timeout(table, "no allocator could bind the table in time: try again").with_source(e)
                        );
                    }
                    if self.until(again, self.phase_changed()).await.is_some() {
                        self.check_serving()?;
                    }
                    pause = (pause * 2).min(RETRY_MOST);
                }
                Some(Err(e)) => return Err(e),
                Some(Ok(bind)) => return Ok(bind),
            }
        }
    }

    /// One bind call per table at a time. Cancel safe: a dropped call lets the next caller in, and the allocator answers that one with
    /// the bind that the first obtained.
    async fn bind(self: &Arc<Self>, table: &TableRef) -> Result<Arc<Bind>> {
        let gate = self.tables.gate(table);
        async {
            let _turn = gate.lock.lock().await;
            if let Some(bind) = self.tables.owned(table) {
                return Ok(bind);
            }
            let bound = self.parts.allocator.bind(self.id, table).await?;
            self.heard(bound.at);
            if bound.bind.owner != self.id {
                return Err(Error::new(ErrorKind::NotOwner, "another node owns the table: ask that one")
                    .with("table", table)
                    .with("owner", &bound.node)
                    .with_detail(Detail::Owner {
                        service: bound.bind.owner,
                        node: bound.node,
                        address: bound.address,
                    }));
            }
            // C5: a snapshot that was begun before now may be older than the last owner's last commit.
            self.engine.install(bound.bind.clone(), bound.tokens, Some(self.parts.clock.now()))?;
            let bind = Arc::new(bound.bind);
            self.tables.owned.write().insert(table.clone(), Arc::clone(&bind));
            tracing::info!(%table, id = %bind.id, version = %bind.version, "table bound");
            if bound.tokens.is_none() {
                self.refill(&bind);
            }
            Ok(bind)
        }
        .await
    }

    /// Asks for more tokens when a grant left few (F2: blocks are renewed ahead).
    pub(crate) fn tokens_left(self: &Arc<Self>, bind: &Arc<Bind>, left: u64) {
        if left < TOKENS_LOW {
            self.refill(bind);
        }
    }

    fn refill(self: &Arc<Self>, bind: &Arc<Bind>) {
        if !self.tables.refilling.lock().insert(bind.table.clone()) {
            return;
        }
        let (inner, bind) = (Arc::clone(self), Arc::clone(bind));
        self.spawn(async move {
            // A store that cannot be written holds up only the calls that need a token from it; they end by their deadlines.
            let mut pause = RETRY_FIRST;
            loop {
                match inner.parts.allocator.reserve_tokens(inner.id, bind.id, bind.version).await {
                    Ok(reserved) => {
                        inner.heard(reserved.at);
                        inner.engine.add_tokens(bind.id, bind.version, reserved.tokens);
                        break;
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::BindChanged | ErrorKind::LeaseLost) => break,
                    // Nothing is granted any more.
                    Err(_) if inner.is_sealed() => break,
                    Err(e) => {
                        tracing::warn!(table = %bind.table, error = ?e, "no new fencing tokens; trying again");
                        inner.pause(pause).await;
                        pause = (pause * 2).min(RETRY_MOST);
                    }
                }
            }
            inner.tables.refilling.lock().remove(&bind.table);
        });
    }
}

pub(crate) const RETRY_FIRST: std::time::Duration = std::time::Duration::from_millis(50);
pub(crate) const RETRY_MOST: std::time::Duration = std::time::Duration::from_secs(1);

/// True for a failure of a bind that ends with the election of a leader, or when the store answers again.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable | ErrorKind::UnknownOutcome | ErrorKind::NotLeader | ErrorKind::Fenced
    )
}

fn timeout(table: &TableRef, why: &str) -> Error {
    Error::new(ErrorKind::Timeout, why).with("table", table)
}
