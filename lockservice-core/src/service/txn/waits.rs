//! [`Waits`]: the lock calls of a session that wait, and when each is checked for what it waits
//! for.
//!
//! # Implementation details
//! A call that is decided at once never gets here. A call that waits stands in the schedule until
//! it is over, so the schedule has at most as many calls as the session has transactions. The
//! connection that has the session's stream takes out the calls that are due ([`Waits::due`]),
//! finds out what each waits for without a mutex, and notes it ([`Waits::is_news`]). Only what
//! distinguishes one holder from another is kept.
//!
//! The engine reports no change of a waiter's conflicting holders: it would have to visit each
//! waiter of a row at each release. So each call is checked again, at growing intervals
//! ([`CHECK_PAUSE_FIRST`], [`CHECK_PAUSE_MAX`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Time;
use crate::error::Blocker;
use crate::id::{NodeName, Sequence, ServiceId, TableRef, TxnId, TxnNumber};
use crate::service::ServiceInner;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::table::CallObstacle;

/// The first pause between two checks of a call, which doubles, and the longest.
const CHECK_PAUSE_FIRST: Duration = Duration::from_millis(50);
const CHECK_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The largest number of notices that are returned together: each may name a key of 4 KiB, or two.
pub(in crate::service) const NOTICES_MAX: usize = 64;

/// The obstacle that a lock call waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WaitsFor {
    /// Another transaction: the first one found in its way.
    Txn(Blocker),
    /// The table to be bound to this node. The last owner may still be at work, or no allocator
    /// responds.
    Table {
        /// The incarnation and the node that had the table last, if that is known.
        last_owner: Option<(ServiceId, NodeName)>,
    },
    /// A fencing token: the table has used its own up, and the store gives no more now.
    Token,
}

/// A lock call of a session that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The client's number of the transaction in the session.
    pub number: TxnNumber,
    /// The call's sequence in the transaction.
    pub sequence: Sequence,
    /// The obstacle that it waits for.
    pub waits_for: WaitsFor,
}

/// The identity of an obstacle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whom {
    Txn(TxnId, bool),
    Table(Option<ServiceId>),
    Token,
}

impl From<&WaitsFor> for Whom {
    fn from(waits_for: &WaitsFor) -> Self {
        match waits_for {
            WaitsFor::Txn(blocker) => Self::Txn(blocker.txn, blocker.granted),
            WaitsFor::Table { last_owner } => {
                Self::Table(last_owner.as_ref().map(|(service, _)| *service))
            }
            WaitsFor::Token => Self::Token,
        }
    }
}

/// See the module. Its mutex is a leaf.
#[derive(Debug, Default)]
pub(in crate::service) struct Waits {
    schedule: Mutex<Schedule>,
    /// Notified when a call begins to wait, when all calls are due again, and when a transaction of
    /// the session was killed.
    wake: Notify,
    /// How many of its transactions were killed, so that a look at it says whether there is news.
    ///
    /// ORDERING: `Release` after the loss is in the state of the session, with the `Acquire` of the
    /// listener as its partner, which looks there then.
    losses: AtomicUsize,
}

/// A call that waits: what a check of it needs.
#[derive(Clone, Debug)]
pub(in crate::service) struct WaitingCall {
    pub(in crate::service) number: TxnNumber,
    pub(in crate::service) sequence: Sequence,
    pub(in crate::service) txn: TxnId,
    pub(in crate::service) table: TableRef,
}

#[derive(Debug)]
struct Entry {
    call: WaitingCall,
    at: Time,
    pause: Duration,
    /// The obstacle that the listener learned last.
    reported: Option<Whom>,
}

/// When each call is checked next. Pure: time is an argument.
#[derive(Debug, Default)]
struct Schedule {
    /// By the number of its transaction, of which one call is decided at a time.
    calls: BTreeMap<TxnNumber, Entry>,
    due: BTreeSet<(Time, TxnNumber)>,
}

impl Schedule {
    fn begin(&mut self, call: WaitingCall, now: Time) {
        let number = call.number;
        self.end(number);
        self.due.insert((now, number));
        self.calls
            .insert(number, Entry { call, at: now, pause: CHECK_PAUSE_FIRST, reported: None });
    }

    fn end(&mut self, number: TxnNumber) {
        if let Some(entry) = self.calls.remove(&number) {
            self.due.remove(&(entry.at, number));
        }
    }

    /// All calls are new to the present listener.
    fn renew(&mut self, now: Time) {
        self.due = self.calls.keys().map(|number| (now, *number)).collect();
        for entry in self.calls.values_mut() {
            (entry.at, entry.pause, entry.reported) = (now, CHECK_PAUSE_FIRST, None);
        }
    }

    /// The calls that are due, at most [`NOTICES_MAX`]; they are due again after their pause.
    fn due(&mut self, now: Time) -> Vec<WaitingCall> {
        let mut calls = Vec::new();
        while calls.len() < NOTICES_MAX
            && let Some((_, number)) = self.due.first().copied().filter(|(at, _)| *at <= now)
        {
            self.due.pop_first();
            let Some(entry) = self.calls.get_mut(&number) else { continue };
            entry.at = now + entry.pause;
            entry.pause = (entry.pause * 2).min(CHECK_PAUSE_MAX);
            self.due.insert((entry.at, number));
            calls.push(entry.call.clone());
        }
        calls
    }

    /// True if the call still waits, and the last notice to the listener was another, or there was
    /// none.
    fn is_news(&mut self, call: &WaitingCall, whom: Whom) -> bool {
        let entry =
            self.calls.get_mut(&call.number).filter(|entry| entry.call.sequence == call.sequence);
        entry.is_some_and(|entry| entry.reported.replace(whom) != Some(whom))
    }
}

impl Waits {
    /// A call waits from now on, until the returned value is dropped.
    pub(in crate::service) fn begin(
        &self,
        (number, sequence): (TxnNumber, Sequence),
        txn: TxnId,
        table: TableRef,
        now: Time,
    ) -> NotedWait<'_> {
        self.schedule.lock().begin(WaitingCall { number, sequence, txn, table }, now);
        self.wake.notify_one();
        NotedWait { waits: self, number }
    }

    /// The number of calls that wait.
    pub(in crate::service) fn count(&self) -> usize {
        self.schedule.lock().calls.len()
    }

    /// There is another listener, which has no notice yet.
    pub(in crate::service) fn renew(&self, now: Time) {
        self.schedule.lock().renew(now);
        self.wake.notify_one();
    }

    /// A transaction of the session was killed.
    pub(in crate::service) fn note_loss(&self) {
        self.losses.fetch_add(1, Ordering::Release);
        self.wake.notify_one();
    }

    /// The number of transactions that were killed.
    pub(in crate::service) fn losses(&self) -> usize {
        self.losses.load(Ordering::Acquire)
    }

    /// The calls whose obstacle is to be found out `now`.
    pub(in crate::service) fn due(&self, now: Time) -> Vec<WaitingCall> {
        self.schedule.lock().due(now)
    }

    /// When the next call is due.
    pub(in crate::service) fn next_due(&self) -> Option<Time> {
        self.schedule.lock().due.first().map(|(at, _)| *at)
    }

    /// Resolves when there may be something to look at.
    pub(in crate::service) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// True if the call still waits, and the listener does not know what for.
    pub(in crate::service) fn is_news(&self, call: &WaitingCall, waits_for: &WaitsFor) -> bool {
        self.schedule.lock().is_news(call, Whom::from(waits_for))
    }
}

/// A call that waits; it is dropped when the wait is over.
#[must_use]
pub(in crate::service) struct NotedWait<'a> {
    waits: &'a Waits,
    number: TxnNumber,
}

impl Drop for NotedWait<'_> {
    fn drop(&mut self) {
        self.waits.schedule.lock().end(self.number);
    }
}

impl ServiceInner {
    /// The obstacle of the lock call of a transaction, in `table`; `None` if it is over, or if that
    /// is not known.
    pub(in crate::service) fn waits_for(&self, txn: TxnId, table: &TableRef) -> Option<WaitsFor> {
        match self.engine.obstacle(txn) {
            Some(CallObstacle::Lock(mut blocker)) => {
                (blocker.label, blocker.client) = self.names(blocker.txn);
                Some(WaitsFor::Txn(blocker))
            }
            Some(CallObstacle::Token) => Some(WaitsFor::Token),
            None => self.tables.waits_for(table),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn call(number: u64, sequence: u64) -> WaitingCall {
        let txn = TxnId::new(ServiceId::new(1), TxnNumber::new(number), false);
        let (number, sequence) = (TxnNumber::new(number), Sequence::new(sequence));
        WaitingCall { number, sequence, txn, table: TableRef::new("g", "t").expect("names") }
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn due(schedule: &mut Schedule, ms: u64) -> Vec<u64> {
        schedule.due(at(ms)).into_iter().map(|call| call.number.get()).collect()
    }

    #[test]
    fn a_call_is_checked_when_it_begins_and_then_at_growing_intervals_until_it_ends() {
        let mut schedule = Schedule::default();
        schedule.begin(call(1, 7), at(0));
        let mut checks = Vec::new();
        for second in 0..600_u64 {
            for ms in (second * 1_000..).step_by(50).take(20) {
                checks.extend(due(&mut schedule, ms).iter().map(|_| ms));
            }
        }
        assert_eq!(checks[..5], [0, 50, 150, 350, 750]);
        assert!(checks.len() < 32, "{} checks in ten minutes", checks.len());
        schedule.end(TxnNumber::new(1));
        assert_eq!(due(&mut schedule, 1_000_000), [0_u64; 0]);
        assert!(schedule.calls.is_empty() && schedule.due.is_empty());
    }

    #[test]
    fn each_listener_learns_of_a_holder_once_and_of_an_ended_call_never() {
        let mut schedule = Schedule::default();
        schedule.begin(call(1, 7), at(0));
        let holder = |counter| {
            Whom::Txn(TxnId::new(ServiceId::new(1), TxnNumber::new(counter), false), true)
        };
        assert!(schedule.is_news(&call(1, 7), holder(5)));
        assert!(!schedule.is_news(&call(1, 7), holder(5)));
        assert!(schedule.is_news(&call(1, 7), holder(6)));
        schedule.renew(at(9));
        assert_eq!(due(&mut schedule, 9), [1]);
        assert!(schedule.is_news(&call(1, 7), holder(6)), "another listener");
        schedule.begin(call(1, 8), at(10));
        assert!(!schedule.is_news(&call(1, 7), holder(6)), "it was checked for an earlier call");
        assert!(schedule.is_news(&call(1, 8), holder(6)));
    }

    #[test]
    fn many_calls_are_checked_a_bounded_number_at_a_time_and_none_is_forgotten() {
        let mut schedule = Schedule::default();
        (0..1_000).for_each(|number| schedule.begin(call(number, 1), at(0)));
        let mut seen = BTreeSet::new();
        while seen.len() < 1_000 {
            let calls = due(&mut schedule, 0);
            assert!((1..=NOTICES_MAX).contains(&calls.len()));
            seen.extend(calls);
        }
    }
}
