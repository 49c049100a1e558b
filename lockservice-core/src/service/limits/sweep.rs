//! The notes about transactions that hold locks in tables with a limit; the look at all of them,
//! and the kill of those at a limit.
//!
//! A transaction is noted at its grants, and the notes are corrected at its releases. So a hold
//! begins at its grant, and one that was given up for a moment begins anew. When limits change, the
//! locks that are held by then are noted as held since that moment: an operator may set a limit
//! because of them.

use std::sync::Arc;
use std::time::Duration;

use crate::bind::Bind;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::metrics::TxnKillCause;
use crate::service::kill::AUDIT_TARGET;
use crate::service::limits::held::HeldTable;
use crate::service::limits::{Rules, TableLimit};
use crate::service::txn::{TxnKillUnderWay, TxnRecord};
use crate::service::{Phase, SLICE, ServiceInner};
use crate::sync::atomic::Ordering;

/// A look comes as often in the shortest limit.
const LOOKS: u32 = 8;

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Ends transactions that reach a limit of holds, until the service is sealed.
pub(in crate::service) async fn keep_limits(inner: Arc<ServiceInner>) {
    let mut phase = inner.phase.subscribe();
    let mut limits = inner.parts.limits.rules.subscribe();
    loop {
        let rules = Arc::clone(&limits.borrow_and_update());
        let every = rules.shortest_hold().map(|shortest| (shortest / LOOKS).min(PAUSE_MAX));
        inner.limits_holds.store(every.is_some(), Ordering::Relaxed);
        if every.is_some() {
            inner.note_all(&rules).await;
        }
        loop {
            let pause = async {
                match every {
                    Some(every) => inner.parts.env.sleep(every).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => return,
                // An error means that the sender has gone, and `inner` holds it.
                _ = limits.changed() => break,
                () = pause => {}
            }
            inner.look_at_all(&rules, every.unwrap_or_default()).await;
        }
    }
}

impl ServiceInner {
    /// Notes a grant, if limits of holds count. `now` is called only then.
    pub(in crate::service) fn note_limited(
        &self,
        txn: &TxnRecord,
        bind: &Bind,
        now: impl FnOnce() -> Time,
    ) {
        if self.limits_holds.load(Ordering::Relaxed) && txn.has_name() {
            self.note_hold(txn, bind, now());
        }
    }

    #[cold]
    fn note_hold(&self, txn: &TxnRecord, bind: &Bind, now: Time) {
        let is_limited = || self.parts.limits.rules.borrow().of_holds(&bind.table).is_some();
        let limited = match txn.limited() {
            Some(limited) => limited,
            // Most transactions are in no such table.
            None if !is_limited() => return,
            None => txn.limited_or_new(),
        };
        limited.note(bind.id, &bind.table, now, is_limited);
        limited.note_call(now);
    }

    /// Notes a call of a transaction, if limits of holds count. `now` is called only then.
    pub(in crate::service) fn note_call(&self, txn: &TxnRecord, now: impl FnOnce() -> Time) {
        if self.limits_holds.load(Ordering::Relaxed)
            && let Some(limited) = txn.limited()
        {
            limited.note_call(now());
        }
    }

    /// Corrects the notes about a transaction that has released something, if limits of holds
    /// count.
    pub(in crate::service) fn note_released(&self, txn: &TxnRecord) {
        if self.limits_holds.load(Ordering::Relaxed)
            && let Some(limited) = txn.limited()
        {
            limited.retain(|held| self.is_held(txn, held));
        }
    }

    fn is_held(&self, txn: &TxnRecord, held: &HeldTable) -> bool {
        let bound = self.tables.served(&held.table).filter(|bound| bound.bind().id == held.id);
        bound.is_some_and(|bound| self.engine.holds_in(txn.at_engine(), &bound))
    }

    /// Notes every lock that is held in a table with a limit.
    async fn note_all(&self, rules: &Rules) {
        let mut locks = self.engine.lock_list(None);
        while let Some(slice) = locks.next_slice(SLICE) {
            for lock in slice.iter().filter(|lock| rules.of_holds(&lock.table).is_some()) {
                let txn = self.named_txns.read(&lock.txn, |record| record.cloned());
                if let (Some(txn), Some(bound)) = (txn, self.tables.served(&lock.table)) {
                    let (id, now) = (bound.bind().id, self.parts.env.now());
                    txn.limited_or_new().note(id, &lock.table, now, || true);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Looks at all transactions, in slices. The next look comes after `every`.
    async fn look_at_all(self: &Arc<Self>, rules: &Rules, every: Duration) {
        for shard in 0..self.named_txns.shards() {
            let mut limited = Vec::new();
            self.named_txns.for_each_in(shard, |_, txn| {
                if txn.limited().is_some() {
                    limited.push(Arc::clone(txn));
                }
            });
            limited.iter().for_each(|txn| self.look_at(txn, rules, every));
            tokio::task::yield_now().await;
        }
    }

    fn look_at(self: &Arc<Self>, txn: &Arc<TxnRecord>, rules: &Rules, every: Duration) {
        let (Some(limited), None) = (txn.limited(), txn.why_killed()) else { return };
        let now = self.parts.env.now();
        if txn.at_engine().has_call_in_flight() {
            // It is a call as long as it waits, which may end just before the next look.
            limited.note_call(now + every);
        }
        let last_call = limited.last_call();
        let reached = limited.tables().into_iter().find_map(|held| {
            let limit = rules.of_holds(&held.table)?;
            let (cause, longest) = reached(limit, held.since, last_call, now)?;
            self.is_held(txn, &held).then(|| (cause, why(txn, cause, longest, limit, &held)))
        });
        if let Some((cause, why)) = reached
            && let Some(kill) = self.kill(txn, why.clone(), cause, false)
        {
            self.audit_limit(cause, &why, kill);
        }
    }

    /// Writes the kill of a transaction at a limit to the audit log, and then what came of it.
    fn audit_limit(self: &Arc<Self>, cause: TxnKillCause, why: &Error, kill: TxnKillUnderWay) {
        let (txn, client) = (kill.txn, kill.client.clone());
        let (act, reason) = (cause.name(), why.message().to_owned());
        let kept = kill.kept.map_or_else(
            || "until their owner ends it".to_owned(),
            |kept| format!("for at most {kept:?}"),
        );
        let record = move |outcome: &str| {
            tracing::info!(
                target: AUDIT_TARGET, act, subject = %txn, reason, now = false, client, outcome,
                "a limit acted"
            );
        };
        record(&format!("begun: its locks are kept {kept}"));
        self.spawn(async move {
            match kill.done().await {
                Ok(killed) if killed.committing.is_empty() => {
                    record(&format!("done: {}", killed.end.name()));
                }
                Ok(killed) => {
                    record(&format!("done: {}; it commits and was left alone", killed.end.name()));
                }
                Err(e) => record(&format!("not known: {e}")),
            }
        });
    }
}

/// The limit that a transaction has reached which has held something in the table since `since`.
fn reached(
    limit: &TableLimit,
    since: Time,
    last_call: Time,
    now: Time,
) -> Option<(TxnKillCause, Duration)> {
    let hold = limit.longest_hold.map(|longest| (TxnKillCause::LongestHold, since, longest));
    let idle = limit
        .longest_idle_hold
        .map(|longest| (TxnKillCause::LongestIdleHold, since.max(last_call), longest));
    let reached = hold.into_iter().chain(idle).find(|(_, from, longest)| now >= *from + *longest);
    reached.map(|(cause, _, longest)| (cause, longest))
}

/// What the client of a transaction at a limit is told.
fn why(
    txn: &TxnRecord,
    cause: TxnKillCause,
    longest: Duration,
    limit: &TableLimit,
    held: &HeldTable,
) -> Error {
    let (what, setting) = match cause {
        TxnKillCause::LongestIdleHold => ("held locks, and made no call,", "longest-idle-hold"),
        TxnKillCause::LongestHold | TxnKillCause::Operator | TxnKillCause::Claim => {
            ("held locks", "longest-hold")
        }
    };
    Error::new(
        ErrorKind::TxnKilled,
        format!(
            "the transaction {what} for longer than the server allows in the table {}, {longest:?} \
                (its limit {setting} for the prefix {:?}): stop the protected work, then end the \
                transaction",
            held.table, limit.prefix
        ),
    )
    .with("txn", txn.id)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_hold_and_a_pause_count_up_to_their_limits_and_not_before() {
        let second = Duration::from_secs(1);
        let at = |seconds: u32| Time::ZERO + second * seconds;
        let limit = |hold: Option<u32>, idle: Option<u32>| TableLimit {
            longest_hold: hold.map(|hold| second * hold),
            longest_idle_hold: idle.map(|idle| second * idle),
            ..TableLimit::default()
        };
        let (hold, idle) = (TxnKillCause::LongestHold, TxnKillCause::LongestIdleHold);
        for (limit, since, last_call, now, expected) in [
            (limit(Some(10), None), 5, 14, 14, None),
            (limit(Some(10), None), 5, 15, 15, Some((hold, second * 10))),
            (limit(None, Some(3)), 5, 0, 7, None),
            (limit(None, Some(3)), 5, 0, 8, Some((idle, second * 3))),
            (limit(None, Some(3)), 5, 7, 9, None),
            (limit(None, Some(3)), 5, 7, 10, Some((idle, second * 3))),
            (limit(Some(10), Some(3)), 5, 14, 15, Some((hold, second * 10))),
            (limit(None, None), 5, 0, 1_000, None),
        ] {
            let found = reached(&limit, at(since), at(last_call), at(now));
            assert_eq!(found, expected, "{limit:?} since {since}, call {last_call}, now {now}");
        }
    }
}
