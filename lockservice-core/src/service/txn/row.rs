//! Rows that are locked at once: no future, no list, nothing looked up.

use std::sync::Arc;

use crate::clock::{Time, hi};
use crate::error::Result;
use crate::id::{CommitTimestamp, FencingToken, TableRef};
use crate::key::{Key, LockItem, LockMode};
use crate::service::txn::TxnRecord;
use crate::service::{Granted, LockService, LockSpec, Promise, ServiceInner, Txn};
use crate::table::TableHandle;

/// A table that this node owns, for [`Txn::lock_row`].
///
/// A cheap handle. While one of it exists, the table is not forgotten, however long it is not used.
/// Once the node does not own the table any more, nothing is locked by it: get another one.
#[derive(Clone, Debug)]
pub struct Table {
    bound: TableHandle,
}

impl Table {
    /// Group and name.
    pub fn name(&self) -> &TableRef {
        &self.bound.bind().table
    }

    /// The bind on which rows are locked by this handle, to be presented at a commit.
    pub fn bind(&self) -> &Arc<crate::allocator::Bind> {
        self.bound.bind()
    }
}

/// A row that was locked at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowLocked {
    /// The fencing token (F1). If nothing was newly locked, the one under which the row was already
    /// held.
    pub token: FencingToken,
    /// False if the row was already held at least as strongly.
    pub newly_locked: bool,
    /// The same as [`Grant::table_commit_ts`](crate::table::Grant::table_commit_ts).
    pub table_commit_ts: Option<CommitTimestamp>,
    /// The same as [`Grant::table_definition_ts`](crate::table::Grant::table_definition_ts).
    pub table_definition_ts: Option<CommitTimestamp>,
    /// The same as [`Grant::history_unknown`](crate::table::Grant::history_unknown), for a snapshot
    /// that was not begun before the transaction.
    pub history_unknown: bool,
    /// The time for which the lock is safe without a renewal.
    pub promise: Promise,
}

impl LockService {
    /// The handle of a table that this node owns now. `None` if it does not: a
    /// [`lock`](Txn::lock) in the table binds it first.
    pub fn table(&self, table: &TableRef) -> Option<Table> {
        self.inner.tables.served(table).map(|bound| Table { bound })
    }
}

impl Txn {
    /// Locks a row that is free, at once. Returns `None` if that cannot be decided at once; then
    /// [`lock`](Self::lock) decides, and says why.
    ///
    /// `None` means one of these:
    ///
    /// - The row, or a range around it, is held or waited for.
    /// - The transaction holds the row more weakly.
    /// - The node does not own the table any more, or does not serve; or the first calls for the
    ///   table, which came before, are still being made.
    /// - The handle is of another service.
    /// - A limit of the settings is reached, or the table has no token.
    /// - Another lock call of this transaction is in flight.
    ///
    /// The grant is the same as by `lock`: in the same order, under the same promise.
    ///
    /// # Examples
    /// ```
    /// # use lockservice_core::service::{LockSpec, TxnOptions};
    /// # use lockservice_core::{Key, LockItem, LockMode, TableRef};
    /// # use std::sync::Arc;
    /// # use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
    /// # use lockservice_core::clock::{Clock, SystemClock};
    /// # use lockservice_core::service::{LockService, ServiceParts};
    /// # use lockservice_core::store::MemoryStore;
    /// # use lockservice_core::NodeName;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lockservice_core::Error> {
    /// # let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    /// # let (node, store) = (NodeName::new("node-1")?, Arc::new(MemoryStore::new(0)));
    /// # let settings = AllocatorSettings::default();
    /// # let allocator = LocalAllocator::open(store, clock.clone(), settings, node.clone()).await?;
    /// # let service = LockService::start(ServiceParts::new(allocator, clock, node)).await?;
    /// let accounts = TableRef::new("bank", "accounts")?;
    /// let (alice, bob) = (Key::new("alice")?, Key::new("bob")?);
    /// let txn = service.begin(TxnOptions::default())?;
    /// // The first lock binds the table to this node.
    /// txn.lock(LockSpec::new(accounts.clone(), vec![LockItem::Row(alice)])).await?;
    ///
    /// let table = service.table(&accounts).expect("it is bound here");
    /// let token = match txn.lock_row(&table, &bob, LockMode::Exclusive) {
    ///     Some(locked) => locked.token,
    ///     None => {
    ///         let spec = LockSpec::new(accounts, vec![LockItem::Row(bob)]);
    ///         txn.lock(spec).await?.grant.token
    ///     }
    /// };
    /// println!("locked under token {token}");
    /// txn.end(None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_row(&self, table: &Table, key: &Key, mode: LockMode) -> Option<RowLocked> {
        let inner = &self.inner;
        let bound = &table.bound;
        let row = inner.engine.lock_row(self.record.at_engine(), bound, key, mode)?;
        // This check comes after the grant (B2). The promise covers a later lapse.
        let Some(valid_for) = inner.serving.remaining(&**inner.parts.env.clock()) else {
            if row.newly_locked {
                let item = [LockItem::Row(key.clone())];
                inner.engine.unlock(self.record.at_engine(), bound, &item, None);
            }
            return None;
        };
        row.tokens_left.into_iter().for_each(|left| inner.tokens_left(bound.bind(), left));
        inner.count_hold(&self.record, || inner.parts.env.now());
        Some(RowLocked {
            token: row.token,
            newly_locked: row.newly_locked,
            table_commit_ts: row.table_commit_ts,
            table_definition_ts: row.table_definition_ts,
            // C5. At the very moment counts as before.
            history_unknown: row.history_since.is_some_and(|since| self.began <= since),
            promise: Promise { valid_for },
        })
    }
}

impl ServiceInner {
    /// Decides a call that arrived at `began`, if it is for one row, which is free, of a table that
    /// is bound here.
    pub(in crate::service) fn lock_at_once(
        self: &Arc<Self>,
        txn: &TxnRecord,
        spec: &LockSpec,
        began: Time,
    ) -> Option<Result<Granted>> {
        let [LockItem::Row(key)] = spec.items.as_slice() else { return None };
        if !spec.ancestors.is_empty() || spec.trace.is_some() {
            return None;
        }
        let lock = || {
            self.tables.with_owned(&spec.table, |bound| {
                let row = self.engine.lock_row(txn.at_engine(), bound, key, spec.mode)?;
                let drew = row.tokens_left.map(|left| (Arc::clone(bound.bind()), left));
                Some((row, row.to_grant(bound, key), drew))
            })
        };
        let locked = match lock() {
            // What it lacked was room, perhaps.
            None => match self.make_room(txn, &spec.items) {
                Ok(true) => lock(),
                Ok(false) => None,
                Err(e) => return Some(self.count_refusal(Err(e))),
            },
            locked => locked,
        };
        let (row, mut grant, drew) = locked?;
        drew.into_iter().for_each(|(bind, left)| self.tokens_left(&bind, left));
        grant.history_unknown = is_history_unknown(row.history_since, snapshot(spec, began));
        Some(self.count_refusal(self.still_good(txn, grant, began)))
    }
}

/// When the snapshot of a call's transaction was begun, if the call that arrived at `began` says
/// so: not later than this.
pub(super) fn snapshot(spec: &LockSpec, began: Time) -> Option<Time> {
    spec.snapshot_age.map(|age| began - hi(age))
}

/// C5: whether a snapshot may be older than the last commit that is not known. At the very moment
/// counts as before.
pub(super) fn is_history_unknown(known_since: Option<Time>, snapshot: Option<Time>) -> bool {
    known_since.is_some_and(|since| snapshot.is_none_or(|snapshot| snapshot <= since))
}
