//! [`Waits`]: the lock calls of a session that wait, and when it is to be looked whom they wait
//! for.
//!
//! # Implementation details
//! A call that is decided at once never gets here. One that is not stands in the schedule until it
//! is over, so that there are at most as many as the session has transactions. The connection
//! that has the session's stream takes out those that are due ([`Waits::due`]), looks without a
//! mutex whom each waits for, and files that ([`Waits::news`]). Nothing is kept of it but what
//! tells it from another holder.
//!
//! The engine says nothing when the conflicting holders of a waiter change: it would have to look
//! at each waiter of a row at each release. So each call is looked at again, ever more rarely
//! ([`LOOK_FIRST`], [`LOOK_MOST`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Time;
use crate::error::Blocker;
use crate::id::{NodeName, ServiceId, TableRef, TxnId};
use crate::service::ServiceInner;
use crate::service::session::SessionRecord;
use crate::sync::Mutex;
use crate::table::CallObstacle;

/// The first pause between two looks at a call, which doubles, and the longest.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MOST: Duration = Duration::from_secs(30);

/// Most notices that are told together: each may name a key of 4 KiB, or two.
const TOLD_MAX: usize = 64;

/// What a lock call waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WaitsFor {
    /// Another transaction: the first one found in its way.
    Txn(Blocker),
    /// The table to be bound to this node. The last owner may still be at work, or no allocator
    /// answers.
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
    pub number: u64,
    /// The call's sequence in the transaction.
    pub sequence: u64,
    /// What it waits for.
    pub waits_for: WaitsFor,
}

/// What tells one thing that is waited for from another.
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
    /// Told when a call begins to wait, and when all are to be looked at again.
    begun: Notify,
}

/// A call that waits, as it is looked at.
#[derive(Clone, Debug)]
struct Look {
    number: u64,
    sequence: u64,
    txn: TxnId,
    table: TableRef,
}

#[derive(Debug)]
struct Entry {
    look: Look,
    at: Time,
    pause: Duration,
    told: Option<Whom>,
}

/// Which call is to be looked at when. Pure: it is told the time.
#[derive(Debug, Default)]
struct Schedule {
    /// By the number of its transaction, of which one call is decided at a time.
    calls: BTreeMap<u64, Entry>,
    due: BTreeSet<(Time, u64)>,
}

impl Schedule {
    fn begin(&mut self, look: Look, now: Time) {
        let number = look.number;
        self.end(number);
        self.due.insert((now, number));
        self.calls.insert(number, Entry { look, at: now, pause: LOOK_FIRST, told: None });
    }

    fn end(&mut self, number: u64) {
        if let Some(entry) = self.calls.remove(&number) {
            self.due.remove(&(entry.at, number));
        }
    }

    /// All calls are new to the one who listens now.
    fn renew(&mut self, now: Time) {
        self.due = self.calls.keys().map(|number| (now, *number)).collect();
        for entry in self.calls.values_mut() {
            (entry.at, entry.pause, entry.told) = (now, LOOK_FIRST, None);
        }
    }

    /// The calls that are due, at most so many; they are due again after their pause.
    fn due(&mut self, now: Time) -> Vec<Look> {
        let mut looks = Vec::new();
        while looks.len() < TOLD_MAX
            && let Some((_, number)) = self.due.first().copied().filter(|(at, _)| *at <= now)
        {
            self.due.pop_first();
            let Some(entry) = self.calls.get_mut(&number) else { continue };
            entry.at = now + entry.pause;
            entry.pause = (entry.pause * 2).min(LOOK_MOST);
            self.due.insert((entry.at, number));
            looks.push(entry.look.clone());
        }
        looks
    }

    /// True if the call still waits, and the listener was told of another one, or of none.
    fn is_news(&mut self, look: &Look, whom: Whom) -> bool {
        let entry =
            self.calls.get_mut(&look.number).filter(|entry| entry.look.sequence == look.sequence);
        entry.is_some_and(|entry| entry.told.replace(whom) != Some(whom))
    }
}

impl Waits {
    /// A call waits from now on, until the answer is dropped.
    pub(in crate::service) fn begin(
        &self,
        (number, sequence): (u64, u64),
        txn: TxnId,
        table: TableRef,
        now: Time,
    ) -> Begun<'_> {
        self.schedule.lock().begin(Look { number, sequence, txn, table }, now);
        self.begun.notify_one();
        Begun { waits: self, number }
    }

    /// Somebody else listens, and was told nothing.
    pub(in crate::service) fn renew(&self, now: Time) {
        self.schedule.lock().renew(now);
        self.begun.notify_one();
    }
}

/// A call that waits; it is dropped when the wait is over.
#[must_use]
pub(in crate::service) struct Begun<'a> {
    waits: &'a Waits,
    number: u64,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.waits.schedule.lock().end(self.number);
    }
}

/// Tells of the lock calls of a session that wait: hints, for people. See
/// [`Session::waits`](crate::service::Session::waits).
#[derive(Debug)]
pub struct WaitNotices {
    pub(in crate::service) record: Arc<SessionRecord>,
    pub(in crate::service) inner: Arc<ServiceInner>,
}

impl WaitNotices {
    /// The calls that have begun to wait, and those that wait for another holder than was told
    /// before: some at least, a bounded number. Those whose holder is not known yet come later.
    ///
    /// Whether the holder is another is looked after 50 ms, and then after twice as long as the
    /// last time, up to 30 s.
    ///
    /// # Cancel safety
    /// Cancel safe: what is taken out is returned at once.
    pub async fn next(&mut self) -> Vec<Waiting> {
        let (waits, env) = (self.record.waits(), &self.inner.parts.env);
        loop {
            let looks = waits.schedule.lock().due(env.now());
            let told: Vec<Waiting> = looks.into_iter().filter_map(|look| self.news(look)).collect();
            if !told.is_empty() {
                return told;
            }
            let next = waits.schedule.lock().due.first().map(|(at, _)| *at);
            match next {
                Some(at) => drop(self.inner.until(at, waits.begun.notified()).await),
                None => waits.begun.notified().await,
            }
            tokio::task::consume_budget().await;
        }
    }

    fn news(&self, look: Look) -> Option<Waiting> {
        let waits_for = self.inner.waits_for(look.txn, &look.table)?;
        let is_news = self.record.waits().schedule.lock().is_news(&look, Whom::from(&waits_for));
        is_news.then_some(Waiting { number: look.number, sequence: look.sequence, waits_for })
    }
}

impl ServiceInner {
    /// What the lock call of a transaction, in `table`, waits for; `None` if it is over, or if that
    /// is not known.
    fn waits_for(&self, txn: TxnId, table: &TableRef) -> Option<WaitsFor> {
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

    fn look(number: u64, sequence: u64) -> Look {
        let txn = TxnId::new(ServiceId::new(1), number, false);
        Look { number, sequence, txn, table: TableRef::new("g", "t").expect("names") }
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn due(schedule: &mut Schedule, ms: u64) -> Vec<u64> {
        schedule.due(at(ms)).into_iter().map(|look| look.number).collect()
    }

    #[test]
    fn a_call_is_looked_at_when_it_begins_and_then_ever_more_rarely_until_it_ends() {
        let mut schedule = Schedule::default();
        schedule.begin(look(1, 7), at(0));
        let mut looked = Vec::new();
        for second in 0..600_u64 {
            for ms in (second * 1_000..).step_by(50).take(20) {
                looked.extend(due(&mut schedule, ms).iter().map(|_| ms));
            }
        }
        assert_eq!(looked[..5], [0, 50, 150, 350, 750]);
        assert!(looked.len() < 32, "{} looks in ten minutes", looked.len());
        schedule.end(1);
        assert_eq!(due(&mut schedule, 1_000_000), [0_u64; 0]);
        assert!(schedule.calls.is_empty() && schedule.due.is_empty());
    }

    #[test]
    fn the_same_holder_is_told_once_to_each_listener_and_an_ended_call_is_not_told_of() {
        let mut schedule = Schedule::default();
        schedule.begin(look(1, 7), at(0));
        let holder = |counter| Whom::Txn(TxnId::new(ServiceId::new(1), counter, false), true);
        assert!(schedule.is_news(&look(1, 7), holder(5)));
        assert!(!schedule.is_news(&look(1, 7), holder(5)));
        assert!(schedule.is_news(&look(1, 7), holder(6)));
        schedule.renew(at(9));
        assert_eq!(due(&mut schedule, 9), [1]);
        assert!(schedule.is_news(&look(1, 7), holder(6)), "another listener");
        schedule.begin(look(1, 8), at(10));
        assert!(!schedule.is_news(&look(1, 7), holder(6)), "it was looked at for an earlier call");
        assert!(schedule.is_news(&look(1, 8), holder(6)));
    }

    #[test]
    fn many_calls_are_looked_at_a_bounded_number_at_a_time_and_none_is_forgotten() {
        let mut schedule = Schedule::default();
        (0..1_000).for_each(|number| schedule.begin(look(number, 1), at(0)));
        let mut seen = BTreeSet::new();
        while seen.len() < 1_000 {
            let looked = due(&mut schedule, 0);
            assert!((1..=TOLD_MAX).contains(&looked.len()));
            seen.extend(looked);
        }
    }
}
