//! What a stop for a restart leaves behind, and what the next process does with it (P6).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::allocator::{Progress, TableClaim};
use crate::env::JoinSet;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{HolderMark, TableRef, TxnId};
use crate::service::phase::restarting;
use crate::service::tables::{RETRY_FIRST, RETRY_MOST};
use crate::service::{LockService, Phase, ServiceInner, Stopped};
use crate::store::TableHolders;

/// Locks that are listed in one hold of the engine's mutex.
const SLICE: usize = 1_024;

/// The largest number of tables, and of holders over all of them, that a stop writes down. With
/// more, all tables wait as after a crash.
const TABLES_MAX: usize = 10_000;
const HOLDERS_MAX: usize = 100_000;

/// Tables that are bound for claims at the same time.
const BINDS_AT_ONCE: usize = 64;

/// The holders in one table, and whether others may hold something in it.
#[derive(Debug, Default)]
struct Holders {
    marks: BTreeSet<HolderMark>,
    waiters: BTreeSet<HolderMark>,
    others: bool,
}

impl LockService {
    /// Stops for a restart (P6): grants nothing more, ends every wait with `Restarting`, and
    /// resigns with the list of who holds what. Nobody's work ends: sessions are not told, and
    /// their clients claim what they hold at the node's next process.
    ///
    /// It takes no longer than `longest`, for commits in flight and for the allocator. If that is
    /// not enough, or if transactions of an embedder are alive, nothing is resigned, and the tables
    /// wait at the next start as after a crash. The result says so.
    ///
    /// # Cancel safety
    /// Dropped halfway it leaves the service stopping; call it again.
    pub async fn stop_for_restart(&self, longest: Duration) -> Stopped {
        let inner = &self.inner;
        let deadline = inner.parts.env.now() + longest;
        // Before their waits end.
        let waiters = self.waiting_txns();
        inner.phase.send_if_modified(|phase| {
            let first = matches!(phase, Phase::Serving);
            if first {
                *phase = Phase::Restarting;
            }
            first
        });
        inner.close();
        inner.engine.seal(restarting);
        let held = inner.held(&waiters);
        let tables = held.as_ref().map_or(0, Vec::len);
        let resigned = match held {
            _ if inner.is_sealed() => false,
            Some(held) => {
                let resign = inner.parts.allocator.resign_held(inner.id, inner.nonce, &held);
                match inner.until(deadline, resign).await {
                    Some(Ok(_)) => true,
                    Some(Err(e)) => {
                        tracing::warn!(error = ?e, "could not resign the lease: the next start \
                            waits for it");
                        false
                    }
                    None => {
                        tracing::warn!(
                            "a commit is in flight, or the allocator does not \
                            respond: the next start waits for the lease"
                        );
                        false
                    }
                }
            }
            None => {
                tracing::warn!("what is held is not listed: the next start waits for the lease");
                false
            }
        };
        inner.seal(restarting());
        Stopped { confirmed: resigned, resigned, held: tables }
    }

    /// The transactions whose calls wait, with the tables. At most [`HOLDERS_MAX`] of them: no
    /// table is kept closed for the others.
    fn waiting_txns(&self) -> Vec<(TxnId, TableRef)> {
        let (mut list, mut waiting) = (self.wait_list(None), Vec::new());
        while waiting.len() < HOLDERS_MAX
            && let Some(slice) = list.next_slice(SLICE)
        {
            waiting.extend(slice.into_iter().map(|wait| (wait.info.waiter, wait.info.table)));
        }
        waiting
    }
}

impl ServiceInner {
    /// Resigns with nothing in use. The tables that still take claims are left held: holders that
    /// have not come back count on them as before (P6).
    pub(in crate::service) async fn resign(&self) -> Result<Progress> {
        let (allocator, nonce) = (&self.parts.allocator, self.nonce);
        match self.held(&[]) {
            Some(held) if held.is_empty() => allocator.resign(self.id, nonce).await,
            Some(held) => allocator.resign_held(self.id, nonce, &held).await,
            None => Err(Error::new(
                ErrorKind::Unavailable,
                "it is not known which tables take claims: they wait for the lease",
            )),
        }
    }

    /// The tables in which sessions hold something, and those that still take claims. `None` if
    /// something is held by others, or in too many tables, or if it is not known which tables take
    /// claims. To be called when nothing is granted any more.
    fn held(&self, waiting: &[(TxnId, TableRef)]) -> Option<Vec<TableHolders>> {
        if self.claims.asked.any_unknown(self.parts.env.now()) {
            return None;
        }
        let marks = self.holders()?;
        let mut tables: BTreeMap<TableRef, Holders> = BTreeMap::new();
        let (mut list, mut count) = (self.engine.lock_list(None), 0);
        while let Some(slice) = list.next_slice(SLICE) {
            for lock in slice {
                // A pending one belongs to a call that has failed by now.
                let Some(mark) = marks.get(&lock.txn) else { continue };
                let holders = tables.entry(lock.table).or_default();
                count += usize::from(holders.marks.insert(*mark));
            }
            if tables.len() > TABLES_MAX || count > HOLDERS_MAX {
                return None;
            }
        }
        let mut held = Vec::new();
        let mut from = HashMap::new();
        for (table, claimed) in self.claims.bound() {
            let holders = tables.entry(table.clone()).or_default();
            let expected = claimed.expected.lock();
            match &expected.holders {
                Some(left) => holders.marks.extend(left),
                None => holders.others = true,
            }
            holders.waiters.extend(&expected.waiters);
            drop(expected);
            from.insert(table, claimed.from);
        }
        for (txn, table) in waiting {
            // Where nothing is held, nothing is waited for.
            if let (Some(mark), Some(holders)) = (marks.get(txn), tables.get_mut(table)) {
                holders.waiters.insert(*mark);
            }
        }
        for (table, holders) in tables {
            // What is not served any more was given up.
            let Some(bound) = self.tables.served(&table) else { continue };
            held.push(TableHolders {
                table: bound.bind().id,
                from: from.get(&table).copied().unwrap_or(bound.bind().version),
                holders: holders.marks.into_iter().collect(),
                waiters: holders.waiters.into_iter().collect(),
                others: holders.others,
            });
        }
        Some(held)
    }

    /// The session of each transaction. `None` if there is a transaction without one.
    fn holders(&self) -> Option<HashMap<TxnId, HolderMark>> {
        let mut marks = HashMap::new();
        let mut last = crate::id::SessionNumber::default();
        loop {
            let slice = self.session_numbers.after(last, SLICE);
            let Some((number, _)) = slice.last() else { break };
            last = *number;
            for (_, id) in slice {
                let Some(record) = self.sessions.get(&id) else { continue };
                let mark = HolderMark::of(id);
                marks.extend(record.txns().into_iter().map(|txn| (txn, mark)));
            }
        }
        // A transaction that is ending belongs to no session, and still holds something: as one of
        // an embedder.
        (marks.len() >= self.txns.alive()).then_some(marks)
    }

    /// Takes the claims of the tables that the node's last process left held. Ends when all are
    /// bound for them, or need not be.
    pub(in crate::service) async fn claim_left(self: Arc<Self>, left: Vec<TableClaim>) {
        let mut binds = JoinSet::new();
        for claim in left {
            if binds.len() >= BINDS_AT_ONCE {
                drop(binds.join_next().await);
            }
            let inner = Arc::clone(&self);
            self.parts.env.spawn_in(&mut binds, async move { inner.claim_left_table(claim).await });
        }
        while binds.join_next().await.is_some() {}
    }

    async fn claim_left_table(self: Arc<Self>, claim: TableClaim) {
        let mut pause = RETRY_FIRST;
        while self.check_serving().is_ok() {
            match self.claim_table(&claim.table, claim.version).await {
                Ok(_) => return,
                Err(e) if e.kind() == ErrorKind::ClaimRefused => return,
                Err(e) => {
                    tracing::debug!(table = %claim.table, error = ?e, "cannot bind a table for \
                        claims yet; trying again");
                    self.pause(pause).await;
                    pause = (pause * 2).min(RETRY_MOST);
                }
            }
        }
    }
}
