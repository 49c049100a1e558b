//! Finding the bind of a table, binding it if need be, and keeping it supplied with tokens.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the way of a call to its table: `hand_over`, `bind_for_line`, `hand_to_line` |
//! | `line/` | the calls that wait for a table, in their order; pure |
//! | `position.rs` | a call's position in a line, given up when it is dropped |
//! | `retry.rs` | the failures of a bind that pass, and the pauses until another try |
//! | `forget.rs` | tables that are not used any more, or that an operator drops |

pub(in crate::service) mod forget;
pub(in crate::service) mod line;
mod position;
mod retry;

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tracing::{Instrument as _, Span};

use crate::bind::Bind;
use crate::clock::Time;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::guarded_map::KeyHasher;
use crate::id::TableRef;
use crate::service::tables::line::{
    Desertion, Handed, LastOwner, LinePosition, Lines, Requested, StandingFilter, StandingSlice,
    Waiter,
};
use crate::service::tables::position::HeldPosition;
use crate::service::tables::retry::REQUEST_MAX;
pub(in crate::service) use crate::service::tables::retry::passes;
pub(crate) use crate::service::tables::retry::{RETRY_FIRST, RETRY_MOST};
use crate::service::{ServiceInner, WaitsFor, shutting_down};
use crate::sync::{Mutex, RwLock};
use crate::table::{LockRequest, TableHandle};

/// A refill is requested when this few tokens are left: half a block.
const TOKENS_LOW: u64 = 1 << 19;

/// Its hashes are seeded, for clients choose the names.
type OwnedTables = hashbrown::HashMap<TableRef, TableHandle, KeyHasher>;

/// The binds that this service owns.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Installed in the engine, and current as long as this incarnation lives: a bind leaves a live
    /// incarnation only by its acknowledged release (B5).
    pub(in crate::service) owned: RwLock<OwnedTables>,
    /// The calls that wait for a table to be bound here. `owned` is locked inside.
    pub(in crate::service) lines: Mutex<Lines>,
    /// Tables whose next block of tokens is on its way.
    refilling: Mutex<HashSet<TableRef>>,
}

impl Tables {
    /// The bind of `table`, if this service owns it.
    pub(crate) fn owned(&self, table: &TableRef) -> Option<TableHandle> {
        self.owned.read().get(table).cloned()
    }

    /// Calls `with` with the bind of `table`, if this service owns it. It may lock only those
    /// mutexes that are numbered from 7 on in the order of locks.
    pub(in crate::service) fn with_owned<T>(
        &self,
        table: &TableRef,
        with: impl FnOnce(&TableHandle) -> Option<T>,
    ) -> Option<T> {
        self.owned.read().get(table).and_then(with)
    }

    /// The bind under which something in a table may be locked: even while the calls of its line
    /// are being made, of which some may be decided already.
    pub(crate) fn served(&self, table: &TableRef) -> Option<TableHandle> {
        self.owned(table).or_else(|| {
            let lines = self.lines.lock();
            // Under the mutex a table is owned or has a line.
            lines.handed(table).or_else(|| self.owned(table))
        })
    }

    /// The obstacle of those in the line of a table; `None` if no call waits, or it is not known
    /// yet.
    pub(in crate::service) fn waits_for(&self, table: &TableRef) -> Option<WaitsFor> {
        let last_owner = self.lines.lock().what_keeps(table)?;
        Some(WaitsFor::Table { last_owner: last_owner.map(|owner| (owner.service, owner.node)) })
    }

    /// Those who wait for a table to be bound here: of the next ones after `after`, of which it
    /// looks at `most`.
    pub(in crate::service) fn standing(
        &self,
        filter: &StandingFilter,
        after: Option<&(TableRef, LinePosition)>,
        most: usize,
    ) -> StandingSlice {
        self.lines.lock().standing(filter, after, most)
    }
}

/// The outcome of one request for a table.
#[derive(Debug)]
enum Attempt {
    Returned(Result<TableHandle>),
    /// A call came to a line that was deserted, or may have been.
    RequestAgain,
    LineEnded,
}

impl ServiceInner {
    /// Makes a call at the engine, if its table is bound to this service. Returns the request if it
    /// is not.
    #[allow(clippy::result_large_err, reason = "moved once")]
    pub(in crate::service) fn hand_over_at_once(
        &self,
        table: &TableRef,
        requested: Requested,
    ) -> Result<Handed, Requested> {
        let Some(bound) = self.tables.owned(table) else { return Err(requested) };
        Ok(self.at_engine(bound, requested, false))
    }

    /// Makes a call at the engine, once its table is bound to this service: in the order in which
    /// the calls for it came.
    ///
    /// While the last owner may still be at work (B3), and while no allocator leads or its store
    /// does not respond, it waits until `deadline`. A call that may not wait fails with the reason.
    /// It waits only for a response of the allocator, at most [`REQUEST_MAX`].
    ///
    /// `span` is that of the binder, if this call is the one that starts it.
    ///
    /// # Cancel safety
    /// A call that is dropped gives its position up, or rolls back what it was granted.
    pub(in crate::service) async fn hand_over(
        self: &Arc<Self>,
        table: &TableRef,
        requested: Requested,
        deadline: Time,
        span: &Span,
    ) -> Result<Handed> {
        let deadline = if requested.wait.is_patient() {
            deadline
        } else {
            deadline.min(requested.since + REQUEST_MAX)
        };
        let txn = Arc::clone(requested.in_flight.record());
        let (response, handed) = oneshot::channel();
        let joined = {
            let mut lines = self.tables.lines.lock();
            // Under the mutex a table is owned or has a line.
            if let Some(bound) = self.tables.owned(table) {
                drop(lines);
                return Ok(self.at_engine(bound, requested, false));
            }
            let most = self.parts.settings.engine.waiters_max;
            lines.join(table, Waiter { requested, response }, most)?
        };
        let position = HeldPosition::new(self, table, joined.position);
        if joined.takes_claims {
            self.waiter_back(table, &txn);
        }
        if let Some(deserted) = joined.new_line {
            let (inner, table) = (Arc::clone(self), table.clone());
            let binder = async move { inner.bind_for_line(&table, &deserted).await };
            self.spawn(binder.instrument(span.clone()));
        }
        match self.until(deadline, handed).await {
            // The binder ends without a result only together with the runtime.
            Some(handed) => handed.unwrap_or_else(|_| Err(shutting_down())),
            // Without a position its call is being made at this moment, and rolled back.
            None => Err(position.give_up().unwrap_or_else(|| {
                Error::new(ErrorKind::Timeout, "the lock was not to be had in time: try again")
                    .with("table", table)
            })),
        }
    }

    fn at_engine(&self, bound: TableHandle, requested: Requested, waited: bool) -> Handed {
        let Requested { in_flight, ancestors, items, mode, wait, escalate, since, came } =
            requested;
        let (table, version) = (bound.bind().id, bound.bind().version);
        let request = LockRequest { table, version, items, mode, wait, escalate };
        let txn = in_flight.txn().at_engine();
        let call = if self.claims.keeps_place(since, came) {
            self.engine.lock_again(txn, request, &ancestors, came)
        } else {
            self.engine.lock_for(txn, request, &ancestors, came)
        };
        Handed { call, bound, waited, in_flight }
    }

    /// Binds a table for those who stand in its line, and hands it over to them in their order.
    ///
    /// It ends with the line: when the table is bound, when it is refused for a reason that does
    /// not pass, when the service stops serving, or when no call waits any more and no response is
    /// on its way.
    pub(in crate::service) async fn bind_for_line(
        self: &Arc<Self>,
        table: &TableRef,
        deserted: &Notify,
    ) {
        let mut pause = RETRY_FIRST;
        loop {
            if self.tables.lines.lock().end_if_deserted(table) {
                return;
            }
            let error = match self.bind_once(table, deserted).await {
                Attempt::Returned(Ok(bound)) => return self.hand_to_line(table, &bound),
                Attempt::Returned(Err(error)) if passes(&error) => error,
                Attempt::Returned(Err(error)) => {
                    return self.tables.lines.lock().end(table, &error);
                }
                Attempt::RequestAgain => continue,
                Attempt::LineEnded => return,
            };
            if self.tables.lines.lock().end_if_deserted(table) {
                return;
            }
            let now = self.parts.env.now();
            self.tables.lines.lock().refused(table, &error, now);
            // The obstacle may end earlier than reported: the owner may resign, or another leader
            // may know better. So the binder tries again, ever more rarely.
            let suggested = error.retry_after().filter(|_| error.kind() == ErrorKind::Reassigning);
            let again = now + suggested.map_or(pause, |suggested| suggested.min(pause));
            pause = (pause * 2).min(RETRY_MOST);
            tokio::select! {
                biased;
                () = self.phase_changed() => {}
                // The next turn sees to it.
                () = deserted.notified() => {}
                never = self.find_owner(table, error.kind()) => match never {},
                _ = self.until(again, std::future::pending::<()>()) => {}
            }
        }
    }

    /// Requests a table once. It waits for the response even if no call stands in the line any
    /// more: a bind that was granted and never installed would never be forgotten.
    async fn bind_once(self: &Arc<Self>, table: &TableRef, deserted: &Notify) -> Attempt {
        let mut bind = pin!(self.bind(table));
        loop {
            tokio::select! {
                biased;
                () = self.phase_changed() => {
                    let why = self.check_serving().err().unwrap_or_else(shutting_down);
                    return Attempt::Returned(Err(why));
                }
                () = deserted.notified() => {
                    let desertion = self.tables.lines.lock().desert(table);
                    match desertion {
                        Desertion::Deserted => {}
                        Desertion::Occupied => return Attempt::RequestAgain,
                        Desertion::Ended => return Attempt::LineEnded,
                    }
                }
                outcome = &mut bind => return Attempt::Returned(outcome),
            }
        }
    }

    /// Makes the calls of a line at the engine, in their order; then the table is owned.
    pub(in crate::service) fn hand_to_line(&self, table: &TableRef, bound: &TableHandle) {
        self.tables.lines.lock().hand(table, bound);
        loop {
            let mut lines = self.tables.lines.lock();
            let Some((waiter, waited)) = lines.next(table) else {
                self.tables.owned.write().insert(table.clone(), bound.clone());
                // Not before: a row that is locked at once would pass the calls of the line.
                self.engine.open_rows(bound);
                lines.end_if_deserted(table);
                return;
            };
            drop(lines);
            let handed = self.at_engine(bound.clone(), waiter.requested, waited);
            // The receiver of a caller that has gone takes nothing: dropped, the call hands on its
            // grant. That is over before the table is owned, so that no later call of the same
            // transaction relies on that grant.
            drop(waiter.response.send(Ok(handed)));
        }
    }

    /// Finds out whom a table is waited for, for those who look. Never resolves.
    async fn find_owner(&self, table: &TableRef, why: ErrorKind) -> Infallible {
        let known = self.tables.lines.lock().knows_owner(table);
        if why == ErrorKind::Reassigning
            && !known
            && let Ok(latest) = self.parts.allocator.latest(table).await
            && let Some(bind) = latest.bind
        {
            let owner = LastOwner { service: bind.bind.owner, node: bind.node };
            self.tables.lines.lock().set_owner(table, owner);
        }
        std::future::pending().await
    }

    /// Requests a table from the allocator, and installs it.
    ///
    /// # Cancel safety
    /// A dropped call can be made again: the allocator returns the bind that the first obtained.
    async fn bind(self: &Arc<Self>, table: &TableRef) -> Result<TableHandle> {
        if let Some(claims) = self.claims_of(table) {
            return claims;
        }
        let bound = self.parts.allocator.bind(self.id, table).await?;
        self.observe(bound.at);
        // Claims may have come meanwhile.
        if let Some(claims) = self.claims_of(table) {
            return claims;
        }
        if bound.bind.owner != self.id {
            return Err(Error::new(
                ErrorKind::NotOwner,
                "another node owns the table: call that one",
            )
            .with("table", table)
            .with("owner", &bound.node)
            .with_detail(Detail::Owner {
                service: bound.bind.owner,
                node: bound.node,
                address: bound.address,
            }));
        }
        // C5: a snapshot that was begun before now may be older than the last owner's last commit.
        let now = self.parts.env.now();
        let handle = match self.engine.install(bound.bind.clone(), bound.tokens, Some(now)) {
            Ok(handle) => handle,
            Err(e) if e.kind() == ErrorKind::BindChanged => {
                // B5: this version may have been served. It is given up, and the next one is
                // requested.
                self.await_release(&bound.bind).await?;
                let message = "an earlier bind of the table was given up first: try again";
                return Err(Error::new(ErrorKind::Unavailable, message)
                    .with("table", table)
                    .with_source(e));
            }
            Err(e) => return Err(e),
        };
        self.engine.close_rows(&handle);
        let bind = handle.bind();
        tracing::info!(%table, id = %bind.id, version = %bind.version, "table bound");
        if bound.tokens.is_none() {
            self.refill(bind);
        }
        Ok(handle)
    }

    /// Requests more tokens when a grant left few (F2: blocks are renewed ahead).
    pub(crate) fn tokens_left(self: &Arc<Self>, bind: &Arc<Bind>, left: u64) {
        if left < TOKENS_LOW {
            self.refill(bind);
        }
    }

    /// Requests more tokens, unless that is under way.
    pub(in crate::service) fn refill(self: &Arc<Self>, bind: &Arc<Bind>) {
        if !self.tables.refilling.lock().insert(bind.table.clone()) {
            return;
        }
        let (inner, bind) = (Arc::clone(self), Arc::clone(bind));
        self.spawn(async move {
            // A store that cannot be written holds up only the calls that need a token from it;
            // they end by their deadlines.
            let mut pause = RETRY_FIRST;
            loop {
                match inner.parts.allocator.reserve_tokens(inner.id, bind.id, bind.version).await {
                    Ok(reserved) => {
                        inner.observe(reserved.at);
                        inner.engine.add_tokens(bind.id, bind.version, reserved.tokens);
                        break;
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::BindChanged | ErrorKind::LeaseLost) => {
                        break;
                    }
                    // Nothing is granted any more.
                    Err(_) if inner.is_sealed() => break,
                    Err(e) => {
                        tracing::warn!(table = %bind.table, error = ?e, "no new fencing tokens; \
                            trying again");
                        inner.pause(pause).await;
                        pause = (pause * 2).min(RETRY_MOST);
                    }
                }
            }
            inner.tables.refilling.lock().remove(&bind.table);
        });
    }
}
