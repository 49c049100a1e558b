//! Reserving token blocks (F2), in two halves as a bind: [`LocalShared::plan_tokens`] on the
//! caller's task, [`Block::done`] on the writer's.

use std::sync::Arc;

use smallvec::smallvec;
use tokio::sync::{mpsc, oneshot, watch};

use crate::allocator::leader::LocalShared;
use crate::allocator::leader::bind::NotQueued;
use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::state::tokens::NextBlock;
use crate::allocator::state::{AllocatorState, TableEntry, stopping};
use crate::bind::TokenBlock;
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, FencingToken, ServiceId, TableId, TableRef};
use crate::store::Op;

impl LocalShared {
    /// Reserves a further block for a bind that is current (F2).
    pub(in crate::allocator) async fn reserve_tokens(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        service: ServiceId,
        id: TableId,
        version: BindVersion,
    ) -> Result<TokenBlock> {
        let changed = || {
            Error::new(
                ErrorKind::BindChanged,
                "the bind is not current any more: no tokens are reserved for it",
            )
            .with("table", id)
            .with("version", version)
        };
        let table = state
            .ids
            .read(&id, |table| table.map(|table| table.name.clone()))
            .ok_or_else(changed)?;
        loop {
            let room = self.room().await?;
            let now = self.env.now();
            let plan = state.tables.update_existing(&table, |entry| {
                let current = entry.id == id
                    && entry.binds.iter().any(|bind| {
                        bind.version == version
                            && bind.owner.id == service
                            && bind.owner.check_holds(now)
                    });
                if !current {
                    return Err(changed().into());
                }
                self.plan_tokens(state, &table, entry, now, room)
            });
            match plan.ok_or_else(changed)? {
                Ok(landed) => return landed.await.unwrap_or_else(|_| Err(stopping())),
                Err(NotQueued::Pending(mut landed)) => drop(landed.changed().await),
                Err(NotQueued::Raise(wanted)) => self.raise(wanted).await?,
                Err(NotQueued::Failed(e)) => return Err(e),
                // Only of a table that is being bound.
                Err(NotQueued::Bound(_) | NotQueued::Resigning(..)) => return Err(changed()),
            }
        }
    }

    /// The first half of a token block, as [`plan_bind`](Self::plan_bind) is that of a bind.
    fn plan_tokens(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        table: &TableRef,
        entry: &mut TableEntry,
        now: Time,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<oneshot::Receiver<Result<TokenBlock>>, NotQueued> {
        if let Some(pending) = &entry.pending {
            return Err(NotQueued::Pending(pending.clone()));
        }
        let block = next_block(state, entry.tokens_reserved_to)?;
        let record = entry.record(table, &entry.binds, block.end, entry.open_claims(now));
        let (closes, pending) = watch::channel(());
        entry.pending = Some(pending);
        let (caller, landed) = oneshot::channel();
        let (state, table) = (Arc::clone(state), table.clone());
        let reserved = Block { state, table, block, caller, closes };
        let done: Done = Box::new(|outcome| reserved.done(outcome));
        room.send(Command::Write { ops: smallvec![Op::PutTable(record)], done });
        Ok(landed)
    }
}

/// A token block that is being written.
struct Block {
    state: Arc<AllocatorState>,
    table: TableRef,
    block: TokenBlock,
    caller: oneshot::Sender<Result<TokenBlock>>,
    /// Its drop wakes those who wait for the table.
    closes: watch::Sender<()>,
}

impl Block {
    /// The second half of a token block. Runs on the writer's task, when the write has landed or
    /// failed.
    fn done(self, outcome: Result<()>) {
        self.state.tables.update_existing(&self.table, |entry| {
            entry.pending = None;
            if outcome.is_ok() {
                entry.tokens_reserved_to = self.block.end;
            }
        });
        // A block whose caller has gone is lost, which tokens can bear: they only grow.
        drop(self.caller.send(outcome.map(|()| self.block)));
        drop(self.closes);
    }
}

/// The next token block of a table whose blocks so far end at `reserved_to`.
pub(in crate::allocator) fn next_block(
    state: &AllocatorState,
    reserved_to: FencingToken,
) -> Result<TokenBlock, NotQueued> {
    match state.token_block(reserved_to)? {
        NextBlock::Reserved(block) => Ok(block),
        NextBlock::Raise(wanted) => Err(wanted.into()),
    }
}
