//! The local lock service keeps its promises to the sessions of its clients.
//!
//! Tokio's paused clock drives everything, the service's clock included: no clause waits for real
//! time.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CannotCommit, LocalAllocator, LockTableAllocator,
};
use lockservice_core::clock::Clock;
use lockservice_core::service::{
    LockService, LockSpec, LockStatus, OpResponse, Operation, ServiceParts, Session, Stopped,
    TxnOp, TxnOptions, WaitStatus,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::table::{Commit, Grant, Savepoint, WaitPolicy};
use lockservice_core::testing::{
    ServiceFixture, SessionFixture, TokioClock, TxnFixture, UnparsedItem, service_suite,
};
use lockservice_core::{
    CommitAttempt, Error, ErrorKind, Key, KeyRange, LockItem, LockMode, NodeName, Result, Sequence,
    TableRef, TxnId, TxnNumber,
};
use tokio::task::JoinHandle;

#[tokio::test(start_paused = true)]
async fn the_local_service_keeps_the_contract_of_a_lock_service() {
    service_suite(|| async { Box::new(Local::start().await) as Box<dyn ServiceFixture> }).await;
}

struct Local {
    service: LockService,
    allocator: Arc<LocalAllocator>,
}

impl Local {
    async fn start() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::new());
        let node = NodeName::new("n").expect("a name");
        let store = Arc::new(MemoryStore::new(1));
        let allocator = LocalAllocator::open(
            store,
            Arc::clone(&clock),
            AllocatorSettings::default(),
            node.clone(),
        )
        .await;
        let allocator = allocator.expect("an empty store");
        let parts =
            ServiceParts::new(Arc::clone(&allocator) as Arc<dyn LockTableAllocator>, clock, node);
        Self { service: LockService::start(parts).await.expect("a fresh allocator"), allocator }
    }
}

#[async_trait]
impl ServiceFixture for Local {
    async fn session(
        &self,
        client: &str,
        ttl: Option<Duration>,
    ) -> Result<Box<dyn SessionFixture>> {
        let session = self.service.open_session(ttl, client)?;
        let renewed = session.clone();
        let renewals = tokio::spawn(async move {
            while renewed.renew().is_ok() {
                tokio::time::sleep(renewed.ttl() / 3).await;
            }
        });
        Ok(Box::new(LocalSession { session, renewals, last_txn: AtomicU64::new(0) }))
    }

    async fn lock_unparsed(&self, table: &TableRef, items: Vec<UnparsedItem>) -> Result<()> {
        let key = |key: Vec<u8>| Key::new(key);
        let parse = |item| match item {
            UnparsedItem::Row(row) => key(row).map(LockItem::Row),
            UnparsedItem::Range(start, end) => {
                let bound = |bound: std::ops::Bound<Vec<u8>>| {
                    use std::ops::Bound::{Excluded, Included, Unbounded};
                    Ok(match bound {
                        Included(at) => Included(key(at)?),
                        Excluded(at) => Excluded(key(at)?),
                        Unbounded => Unbounded,
                    })
                };
                KeyRange::new(bound(start)?, bound(end)?).map(LockItem::Range)
            }
        };
        let items = items.into_iter().map(parse).collect::<Result<_>>()?;
        let txn = self.service.begin(TxnOptions::default())?;
        txn.lock(LockSpec { wait: WaitPolicy::NoWait, ..LockSpec::new(table.clone(), items) })
            .await
            .map(drop)
    }

    async fn locks(&self, table: Option<&TableRef>) -> Result<Vec<LockStatus>> {
        Ok(self.service.locks(table))
    }

    async fn waits(&self, table: Option<&TableRef>) -> Result<Vec<WaitStatus>> {
        Ok(self.service.waits(table))
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<Duration> {
        Ok(self.allocator.begin_commit(request).await?.commit_before)
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        self.allocator.cannot_commit(txns).await
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<()> {
        self.allocator.finish_commit(txn, attempt).await?;
        Ok(())
    }

    async fn stop(&self) -> Stopped {
        self.service.shutdown(Duration::from_secs(3)).await
    }
}

struct LocalSession {
    session: Session,
    renewals: JoinHandle<()>,
    last_txn: AtomicU64,
}

impl Drop for LocalSession {
    fn drop(&mut self) {
        self.renewals.abort();
    }
}

#[async_trait]
impl SessionFixture for LocalSession {
    fn begin(&self, options: TxnOptions) -> Box<dyn TxnFixture> {
        let number = TxnNumber::new(self.last_txn.fetch_add(1, Relaxed) + 1);
        Box::new(LocalTxn(Arc::new(Operations {
            session: self.session.clone(),
            number,
            options,
            last: AtomicU64::new(0),
            id: std::sync::OnceLock::new(),
            savepoints: std::sync::Mutex::default(),
        })))
    }

    async fn lost(&self) -> Error {
        tokio::select! {
            biased;
            why = self.session.lost() => why,
            _ = self.session.stopping() => Error::new(ErrorKind::ShuttingDown, "the service is \
                about to stop"),
        }
    }

    async fn fall_silent(&self) {
        self.renewals.abort();
    }

    async fn close(&self) -> Result<()> {
        self.renewals.abort();
        self.session.close().await;
        Ok(())
    }
}

/// The operations of one transaction, numbered as a client must (T2).
struct Operations {
    session: Session,
    number: TxnNumber,
    options: TxnOptions,
    last: AtomicU64,
    id: std::sync::OnceLock<TxnId>,
    savepoints: std::sync::Mutex<Vec<Savepoint>>,
}

impl Operations {
    fn submit(
        &self,
        operation: Operation,
    ) -> (Sequence, impl Future<Output = Result<OpResponse>> + use<>) {
        let sequence = Sequence::new(self.last.fetch_add(1, Relaxed) + 1);
        let op = TxnOp {
            number: self.number,
            sequence,
            acked: Sequence::default(),
            options: self.options.clone(),
        };
        (sequence, self.session.submit(op, operation))
    }

    async fn done(&self, operation: Operation) -> Result<()> {
        match self.submit(operation).1.await? {
            OpResponse::Done { .. } => Ok(()),
            other => panic!("a release is answered with {other:?}"),
        }
    }
}

struct LocalTxn(Arc<Operations>);

/// Cancels a call whose caller has gone.
struct CancelOnDrop(Arc<Operations>, Option<Sequence>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(sequence) = self.1 {
            // It takes effect even if no caller waits for the response.
            drop(self.0.submit(Operation::Cancel { sequence }));
        }
    }
}

#[async_trait]
impl TxnFixture for LocalTxn {
    fn id(&self) -> Option<TxnId> {
        self.0.id.get().copied()
    }

    async fn lock(&self, spec: LockSpec) -> Result<Grant> {
        let (sequence, response) = self.0.submit(Operation::Lock(spec));
        let mut cancel = CancelOnDrop(Arc::clone(&self.0), Some(sequence));
        let response = response.await;
        cancel.1 = None;
        match response? {
            OpResponse::Locked(granted) => {
                assert_eq!(*self.0.id.get_or_init(|| granted.txn), granted.txn);
                Ok(Arc::unwrap_or_clone(granted).grant)
            }
            other => panic!("a lock gets the response {other:?}"),
        }
    }

    async fn unlock(
        &self,
        table: &TableRef,
        items: &[LockItem],
        commit: Option<Commit>,
    ) -> Result<()> {
        self.0.done(Operation::Unlock { table: table.clone(), items: items.to_vec(), commit }).await
    }

    async fn downgrade(&self, table: &TableRef, items: &[LockItem], mode: LockMode) -> Result<()> {
        let (table, items) = (table.clone(), items.to_vec());
        self.0.done(Operation::Downgrade { table, items, mode }).await
    }

    async fn savepoint(&self) -> Result<usize> {
        let OpResponse::Savepoint(savepoint) = self.0.submit(Operation::Savepoint).1.await? else {
            panic!("a savepoint gets another response");
        };
        let mut savepoints = self.0.savepoints.lock().expect("no panic");
        savepoints.push(savepoint);
        Ok(savepoints.len() - 1)
    }

    async fn roll_back_to(&self, savepoint: usize) -> Result<()> {
        let savepoint = self.0.savepoints.lock().expect("no panic")[savepoint];
        self.0.done(Operation::RollBackTo(savepoint)).await
    }

    async fn end(&self, commit: Option<Commit>) -> Result<()> {
        self.0.done(Operation::End { commit }).await
    }
}
