//! Limits of what one peer may use of a node, so that no peer can use all of it.
//!
//! A [`Quota`] counts the sessions of the peer it stands for (a connection, an address), their
//! operations under way (so also their waits), their open calls, and the bytes that are kept for
//! them. Quotas nest: what is charged to a connection is charged to its address too. Every session
//! is charged to the node.
//!
//! # Invariant
//! A charge is returned exactly once: with the session or the call that it was charged
//! for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::error::{Error, ErrorKind, Result};

/// The bounds of a [`Quota`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuotaSettings {
    /// The largest number of sessions at once.
    pub sessions_max: usize,
    /// The largest number of operations under way at once, waits included.
    pub ops_max: usize,
    /// The most memory of messages that arrive, of queued operations and of responses that are kept
    /// for a replay, in bytes, as estimated.
    pub kept_bytes_max: usize,
    /// The largest number of calls that are open at once, and again as many of those that release
    /// something.
    pub calls_max: usize,
}

impl Default for QuotaSettings {
    /// No bounds.
    fn default() -> Self {
        let (sessions_max, ops_max, kept_bytes_max, calls_max) =
            (usize::MAX, usize::MAX, usize::MAX, usize::MAX);
        Self { sessions_max, ops_max, kept_bytes_max, calls_max }
    }
}

/// The use that a client, an address or all clients make of a node, and its limits.
#[derive(Debug)]
pub struct Quota {
    /// The peer that it stands for, as errors say it: "of one address".
    of: &'static str,
    settings: QuotaSettings,
    parent: Option<Arc<Self>>,
    // Counters. Each is changed by single steps that need nothing of the others: `Relaxed`, no
    // partner.
    sessions: AtomicUsize,
    ops: AtomicUsize,
    kept_bytes: AtomicUsize,
    calls: AtomicUsize,
}

impl Quota {
    /// A quota of which nothing is used yet. `of` names its owner, for example "of one address".
    /// Each charge is charged to `parent` too.
    pub fn new(of: &'static str, settings: QuotaSettings, parent: Option<Arc<Self>>) -> Arc<Self> {
        let (sessions, ops, kept_bytes, calls) = Default::default();
        Arc::new(Self { of, settings, parent, sessions, ops, kept_bytes, calls })
    }

    /// It and those above it.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |quota| quota.parent.as_deref())
    }

    /// Takes one more session in. Fails with `ResourceExhausted` at a bound; then nothing is
    /// charged.
    fn add_session(&self) -> Result<()> {
        self.add(1, |quota| (&quota.sessions, quota.settings.sessions_max))
            .map_err(|full| full.exhausted("sessions", "close some", full.settings.sessions_max))
    }

    /// Counts one more call, until the returned value is dropped. A call that `releases` something
    /// makes room for others: as many again of those are admitted.
    ///
    /// # Errors
    /// `ResourceExhausted` at a bound. Nothing is charged then.
    pub fn open_call(self: &Arc<Self>, releases: bool) -> Result<OpenCall> {
        let times = if releases { 2 } else { 1 };
        self.add(1, |quota| (&quota.calls, quota.settings.calls_max.saturating_mul(times)))
            .map_err(|full| {
                full.exhausted("open calls", "wait for responses", full.settings.calls_max)
            })?;
        Ok(OpenCall { quota: Arc::clone(self) })
    }

    /// Adds `amount` to a counter of it and of those above it, each of which has a bound. Fails
    /// with the one that has no room; then nothing is added.
    fn add<'a>(
        &'a self,
        amount: usize,
        counter: impl Fn(&'a Self) -> (&'a AtomicUsize, usize),
    ) -> Result<(), &'a Self> {
        for (charged, quota) in self.chain().enumerate() {
            let (used, most) = counter(quota);
            let room = |used: usize| used.checked_add(amount).filter(|sum| *sum <= most);
            if used.fetch_update(Relaxed, Relaxed, room).is_err() {
                self.chain().take(charged).for_each(|quota| change(counter(quota).0, amount, 0));
                return Err(quota);
            }
        }
        Ok(())
    }

    /// The bytes that are kept.
    pub(in crate::service) fn kept_bytes(&self) -> usize {
        self.kept_bytes.load(Relaxed)
    }

    fn remove_session(&self) {
        self.sessions.fetch_sub(1, Relaxed);
    }

    fn exhausted(&self, what: &str, remedy: &str, most: usize) -> Error {
        let sentence =
            format!("too many {what} {} at once: {remedy}, or raise the server's limit", self.of);
        Error::new(ErrorKind::ResourceExhausted, sentence).with("limit", most)
    }
}

/// A call that is counted, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct OpenCall {
    quota: Arc<Quota>,
}

impl OpenCall {
    /// Memory for the messages of this call: nothing yet.
    pub fn memory(self: &Arc<Self>) -> CallMemory {
        CallMemory { call: Arc::clone(self), bytes: 0 }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.quota.chain().for_each(|quota| change(&quota.calls, 1, 0));
    }
}

/// Memory that a call's messages arrive in. Returned when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct CallMemory {
    call: Arc<OpenCall>,
    bytes: usize,
}

impl CallMemory {
    /// Grows it to `bytes`, if it is less: the buffer of a stream stays as large as its largest
    /// message.
    ///
    /// # Errors
    /// `ResourceExhausted` if there is no room. It stays as it was then.
    pub fn grow_to(&mut self, bytes: usize) -> Result<()> {
        let more = bytes.saturating_sub(self.bytes);
        let kept = |quota: &'_ Quota| quota.settings.kept_bytes_max;
        self.call.quota.add(more, |quota| (&quota.kept_bytes, kept(quota))).map_err(|full| {
            full.exhausted("bytes of messages and operations", "send less at a time", kept(full))
        })?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for CallMemory {
    fn drop(&mut self) {
        self.call.quota.chain().for_each(|quota| change(&quota.kept_bytes, self.bytes, 0));
    }
}

/// The charge of one session. Released when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    /// Its peer's, if that is bounded, and the node's.
    quotas: Vec<Arc<Quota>>,
    ops: usize,
    kept_bytes: usize,
    /// Of a frame that is being taken in.
    frame_bytes: usize,
}

impl Charge {
    /// Of a session that begins. Fails with `ResourceExhausted` at a bound on sessions.
    pub(crate) fn session(peer: Option<Arc<Quota>>, node: &Arc<Quota>) -> Result<Self> {
        let mut charge = Self::default();
        for quota in peer.into_iter().chain([Arc::clone(node)]) {
            quota.add_session()?;
            // Dropped with those before it if the next one has no room.
            charge.quotas.push(quota);
        }
        Ok(charge)
    }

    /// All that it counts in.
    fn quotas(&self) -> impl Iterator<Item = &Quota> {
        self.quotas.iter().flat_map(|quota| quota.chain())
    }

    /// Fails with `ResourceExhausted` if there is no room for one more operation.
    ///
    /// Sessions check at the same time, so several may find the last place. The bounds are exceeded
    /// by one operation for each session at most.
    pub(crate) fn check_room(&self) -> Result<()> {
        for quota in self.quotas() {
            let QuotaSettings { ops_max, kept_bytes_max, .. } = quota.settings;
            if quota.ops.load(Relaxed) >= ops_max {
                return Err(quota.exhausted("operations under way", "wait for responses", ops_max));
            }
            if quota.kept_bytes.load(Relaxed) >= kept_bytes_max {
                let what = "bytes of operations and unacknowledged responses";
                return Err(quota.exhausted(what, "acknowledge responses", kept_bytes_max));
            }
        }
        Ok(())
    }

    /// The session now has so many operations under way, and keeps so many bytes.
    pub(crate) fn set(&mut self, ops: usize, kept_bytes: usize) {
        for quota in self.quotas() {
            change(&quota.ops, self.ops, ops);
            change(&quota.kept_bytes, self.kept_bytes, kept_bytes);
        }
        (self.ops, self.kept_bytes) = (ops, kept_bytes);
    }

    /// Counts a frame of `bytes` in memory, until [`let_go_of`](Self::let_go_of) it. Fails with
    /// `ResourceExhausted` if there is no room for it; then nothing is charged.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<()> {
        for quota in self.quotas() {
            let most = quota.settings.kept_bytes_max;
            if quota.kept_bytes.load(Relaxed).saturating_add(bytes) > most {
                return Err(quota.exhausted(
                    "bytes of frames and operations",
                    "send less at a time",
                    most,
                ));
            }
        }
        self.quotas().for_each(|quota| change(&quota.kept_bytes, 0, bytes));
        self.frame_bytes += bytes;
        Ok(())
    }

    /// A frame of `bytes` that was held is no longer in memory. Does nothing for a session that
    /// ended meanwhile: its charge was returned whole.
    pub(crate) fn let_go_of(&mut self, bytes: usize) {
        let bytes = bytes.min(self.frame_bytes);
        self.quotas().for_each(|quota| change(&quota.kept_bytes, bytes, 0));
        self.frame_bytes -= bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0, 0);
        self.let_go_of(self.frame_bytes);
        self.quotas().for_each(Quota::remove_session);
    }
}

fn change(counter: &AtomicUsize, from: usize, to: usize) {
    // Wraps around where `to` is less: the sum is right all the same.
    if from != to {
        counter.fetch_add(to.wrapping_sub(from), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(sessions_max: usize, ops_max: usize, kept_bytes_max: usize) -> QuotaSettings {
        QuotaSettings { sessions_max, ops_max, kept_bytes_max, ..QuotaSettings::default() }
    }

    fn used(quota: &Quota) -> (usize, usize, usize) {
        (quota.sessions.load(Relaxed), quota.ops.load(Relaxed), quota.kept_bytes.load(Relaxed))
    }

    fn session(peer: &Arc<Quota>, node: &Arc<Quota>) -> Result<Charge> {
        Charge::session(Some(Arc::clone(peer)), node)
    }

    #[test]
    fn a_charge_counts_at_every_level_above_and_is_released_with_the_session() {
        let node = Quota::new("of the node", QuotaSettings::default(), None);
        let address = Quota::new("of one address", QuotaSettings::default(), None);
        let one =
            Quota::new("of one connection", QuotaSettings::default(), Some(Arc::clone(&address)));
        let two =
            Quota::new("of one connection", QuotaSettings::default(), Some(Arc::clone(&address)));
        let mut first = session(&one, &node).expect("room");
        let mut second = session(&two, &node).expect("room");
        first.set(3, 100);
        second.set(1, 50);
        first.set(2, 40);
        assert_eq!((used(&one), used(&address), used(&node)), ((1, 2, 40), (2, 3, 90), (2, 3, 90)));
        drop(first);
        assert_eq!((used(&one), used(&address), used(&node)), ((0, 0, 0), (1, 1, 50), (1, 1, 50)));
        drop(second);
        assert_eq!((used(&address), used(&node)), ((0, 0, 0), (0, 0, 0)));
    }

    #[test]
    fn a_session_that_is_refused_somewhere_is_charged_nowhere() {
        let node = Quota::new("of the node", bounded(2, 9, 9), None);
        let address = Quota::new("of one address", bounded(1, 9, 9), None);
        let one = Quota::new("of one connection", bounded(5, 5, 5), Some(Arc::clone(&address)));
        let held = session(&one, &node).expect("room");
        let refused = session(&one, &node).expect_err("full");
        assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
        assert!(refused.to_string().contains("of one address"), "{refused}");
        assert_eq!((used(&one).0, used(&address).0, used(&node).0), (1, 1, 1));
        let other = Quota::new("of one address", bounded(9, 9, 9), None);
        let last = session(&other, &node).expect("room");
        assert!(session(&other, &node).expect_err("full").to_string().contains("of the node"));
        assert_eq!((used(&other).0, used(&node).0), (1, 2));
        drop((held, last));
        session(&one, &node).expect("room again");
    }

    #[test]
    fn operations_and_bytes_are_bounded_for_all_sessions_of_one_together() {
        let node = Quota::new("of the node", QuotaSettings::default(), None);
        let one = Quota::new("of one address", bounded(9, 2, 100), None);
        let mut first = session(&one, &node).expect("room");
        let mut second = session(&one, &node).expect("room");
        first.set(1, 10);
        second.check_room().expect("room");
        second.set(1, 10);
        for charge in [&first, &second] {
            assert!(
                charge.check_room().expect_err("full").to_string().contains("operations under way")
            );
        }
        second.set(0, 70);
        first.hold(10).expect("room");
        assert!(first.hold(11).is_err(), "100 is the most");
        first.let_go_of(10);
        second.set(0, 90);
        assert!(first.check_room().expect_err("full").to_string().contains("bytes"));
        second.set(0, 0);
        first.check_room().expect("room again");
    }

    #[test]
    fn calls_and_the_memory_of_their_messages_are_bounded_and_released_with_them() {
        let bounds = QuotaSettings { calls_max: 2, ..bounded(9, 9, 100) };
        let address = Quota::new("of one address", bounds, None);
        let one =
            Quota::new("of one connection", QuotaSettings::default(), Some(Arc::clone(&address)));
        let other =
            Quota::new("of one connection", QuotaSettings::default(), Some(Arc::clone(&address)));
        let calls = [&one, &other].map(|quota| Arc::new(quota.open_call(false).expect("room")));
        let refused = one.open_call(false).expect_err("full");
        assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
        assert!(refused.to_string().contains("open calls of one address"), "{refused}");
        let releases = [one.open_call(true), one.open_call(true)];
        assert!(
            releases.iter().all(Result::is_ok) && one.open_call(true).is_err(),
            "as many again"
        );
        drop(releases);

        let [mut first, mut second] = calls.each_ref().map(OpenCall::memory);
        first.grow_to(60).expect("room");
        first.grow_to(40).expect("it is that large already");
        assert!(second.grow_to(41).is_err());
        assert_eq!((used(&one).2, used(&other).2, used(&address).2), (60, 0, 60));
        second.grow_to(40).expect("room");
        drop(first);
        second.grow_to(100).expect("room again");
        drop((second, calls));
        let calls = |quota: &Quota| quota.calls.load(Relaxed);
        assert_eq!((used(&address).2, calls(&address), calls(&one), calls(&other)), (0, 0, 0, 0));
    }
}
