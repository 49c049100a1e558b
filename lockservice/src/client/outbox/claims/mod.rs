//! The claims after a restart of the server (P6).
//!
//! # Implementation details
//! 1. [`Outbox::claim`]: what of each transaction is over, is over here. The rest is put into
//!    claims, which the current stream sends before anything else.
//! 2. `client/resume.rs` reads the responses. A claim that fails loses its transaction
//!    ([`Outbox::refuse`]).
//! 3. [`Outbox::open`]: the operations that are not decided are sent again.
//!
//! If the stream breaks on the way, all of it is done again. Releases that have no response count
//! as done for the claims, for what was given up is not claimed, and are sent again at 3.

mod frames;
mod rebound;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use lockservice_core::clock::Time;
use lockservice_core::{Error, ErrorKind, Result, Sequence, TxnNumber};

pub(super) use self::frames::item_bytes;
use self::frames::{into_frames, split};
use self::rebound::Named;
pub(super) use self::rebound::Rebound;
use super::held::{Change, Holds};
use super::loss::{LossPlace, TxnLoss};
use super::pending::{Pending, What};
use super::state::{OpId, OutboxState};
use super::{FRAME_BYTES_MAX, Outbox, TxnKey, wake};
use crate::proto;
use crate::proto::client_op::Op;

/// The operation of the claims to which a response belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum ClaimId {
    /// A claim of this transaction.
    Claim(TxnNumber),
    /// The end of all claims.
    Done,
}

/// The claims that a stream sends.
#[derive(Debug)]
pub(in crate::client) struct Claims {
    /// The transaction of each claim.
    txns: Vec<TxnNumber>,
    /// The tables and versions that each claim names.
    named: Vec<Vec<Named>>,
    /// The transactions that are lost without a claim, and why.
    pub(in crate::client) lost: Vec<(TxnNumber, Error)>,
}

impl Claims {
    /// The operation with this id.
    pub(in crate::client) fn find(&self, id: u64) -> Option<ClaimId> {
        // Ids count down from that of the greeting.
        let place = usize::try_from(OpId::HELLO.get().checked_sub(id)?).ok()?.checked_sub(1)?;
        match self.txns.get(place) {
            Some(number) => Some(ClaimId::Claim(*number)),
            None => (place == self.txns.len()).then_some(ClaimId::Done),
        }
    }

    /// The tables and versions that the claim with this id names.
    fn named(&self, id: u64) -> Option<&[Named]> {
        let place = OpId::HELLO.get().checked_sub(id)?.checked_sub(1)?;
        self.named.get(usize::try_from(place).ok()?).map(Vec::as_slice)
    }
}

/// Callers whose operations are over, to be told when the mutex is free.
type Over = Vec<(What, Result<()>)>;

impl Outbox {
    /// Puts in what the current stream sends before it is [opened](Self::open): the claims of all
    /// transactions, each in messages of at most `bytes_max`. `deadline` is that of their locks.
    pub(in crate::client) fn claim(&self, deadline: Time, bytes_max: usize) -> Claims {
        let bytes_max = bytes_max.min(FRAME_BYTES_MAX);
        let mut state = self.state.lock();
        state.restarts += 1;
        let (mut over, mut lost, mut ops) = (Vec::new(), Vec::new(), Vec::new());
        let under_way = state.under_way();
        let mut rebound = std::mem::take(&mut state.rebound);
        let txns: Vec<TxnKey> = state.txns.iter().map(|(key, _)| TxnKey(key)).collect();
        for key in txns {
            let pending = under_way.get(&key.0).map_or(&[][..], |pending| pending);
            state.claim_txn(key, pending, deadline, &mut over, &mut lost, |claim, holds| {
                split(claim, holds, (bytes_max, &mut rebound), &mut ops);
            });
        }
        rebound.forget_unused();
        state.rebound = rebound;
        // Numbers arrive in rising order.
        ops.sort_by_key(|(claim, _)| claim.txn);
        let txns = ops.iter().map(|(claim, _)| TxnNumber::new(claim.txn)).collect();
        let (ops, named): (Vec<_>, Vec<_>) = ops.into_iter().unzip();
        let done = Op::ClaimsDone(proto::ClaimsDone { last_txn: state.last_txn.get() });
        let ops = ops.into_iter().map(Op::Claim).chain([done]);
        state.claims = into_frames(ops, bytes_max).into();
        state.claims_sent = None;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        tell(over);
        Claims { txns, named, lost }
    }

    /// A claim succeeded, with this id.
    pub(in crate::client) fn claimed(&self, claims: &Claims, id: u64, response: &proto::Claimed) {
        if let Some(named) = claims.named(id) {
            self.state.lock().rebound.claimed(named, response);
        }
    }

    /// The time before the last claim was sent, from which the promise of the response counts (P2).
    pub(in crate::client) fn claims_sent(&self) -> Option<Time> {
        self.state.lock().claims_sent
    }

    /// The server refuses the claim of a transaction: nothing of it is at the server any more, and
    /// its deadline stays where it is. False if that is known.
    pub(in crate::client) fn refuse(&self, number: TxnNumber, why: Error, deadline: Time) -> bool {
        let mut over = Vec::new();
        let mut state = self.state.lock();
        let found = state.txns.iter().find(|(_, txn)| txn.number == number);
        let Some(key) = found.map(|(key, _)| TxnKey(key)) else { return false };
        if state.lost.contains_key(&number) {
            return false;
        }
        let pending = state.under_way().remove(&key.0).unwrap_or_default();
        state.lose_here(key, &pending, (why, true), deadline, &mut over);
        drop(state);
        tell(over);
        true
    }
}

impl OutboxState {
    /// The operations under way, by transaction, in the order of their sequences.
    pub(super) fn under_way(&self) -> HashMap<u64, Vec<u64>> {
        let mut under_way: HashMap<u64, Vec<_>> = HashMap::new();
        for (id, pending) in self.pending.iter() {
            if let Some((txn, sequence)) = pending.of_txn() {
                under_way.entry(txn.0).or_default().push((sequence, id));
            }
        }
        let in_order = |(txn, mut ops): (u64, Vec<_>)| {
            ops.sort_unstable();
            (txn, ops.into_iter().map(|(_, id)| id).collect())
        };
        under_way.into_iter().map(in_order).collect()
    }

    /// Claims what one transaction holds, or ends what is over. `pending` are its operations under
    /// way.
    fn claim_txn(
        &mut self,
        key: TxnKey,
        pending: &[u64],
        deadline: Time,
        over: &mut Over,
        lost: &mut Vec<(TxnNumber, Error)>,
        claim: impl FnOnce(proto::ClaimOp, Holds),
    ) {
        let ending = pending.iter().find(|id| self.ends(**id)).copied();
        if let Some(end) = ending {
            self.claim_ended(key, pending, end, over, claim);
            return;
        }
        let Some(slot) = self.txns.get_mut(key.0) else { return };
        let number = slot.number;
        if let Some(loss) = self.lost.get_mut(&number) {
            let why = loss.why.clone();
            loss.leave_server(deadline);
            self.finish(pending, &why, over);
            return;
        }
        if slot.validates {
            let why = validates();
            lost.push((number, why.clone()));
            self.lose_here(key, pending, (why, false), deadline, over);
            return;
        }
        self.finish_decided(key, pending, over);
        match self.held_by(key, pending) {
            Ok((next, holds)) => claim(next, holds),
            Err(why) => {
                lost.push((number, why.clone()));
                self.lose_here(key, pending, (why, true), deadline, over);
            }
        }
    }

    /// Claims nothing for a transaction whose end is under way: it is over. If the server may have
    /// taken its claim before the last stream broke, its end is sent there.
    fn claim_ended(
        &mut self,
        key: TxnKey,
        pending: &[u64],
        end: u64,
        over: &mut Over,
        claim: impl FnOnce(proto::ClaimOp, Holds),
    ) {
        let others: Vec<u64> = pending.iter().copied().filter(|id| *id != end).collect();
        let why = "the transaction ended while its call for a lock was in flight";
        let why = Error::new(ErrorKind::Cancelled, why);
        self.finish(&others, &why, over);
        match self.txns.get_mut(key.0) {
            Some(slot) if slot.is_claimed => {
                slot.held = Default::default();
                if let Ok((next, nothing)) = self.held_by(key, &[]) {
                    claim(next, nothing);
                }
            }
            _ => {
                self.finish(&[end], &why, over);
                self.forget(key);
            }
        }
    }

    /// True for the end of a transaction.
    fn ends(&self, id: u64) -> bool {
        let what = self.pending.get(id).map(|pending| &pending.what);
        matches!(what, Some(What::Release { ends: true, .. }))
    }

    /// Ends the operations of a transaction that are decided, and prepares the others to be sent
    /// again.
    fn finish_decided(&mut self, key: TxnKey, pending: &[u64], over: &mut Over) {
        let Some(slot) = self.txns.get_mut(key.0) else { return };
        let decided = slot.decided;
        (slot.claimed, slot.is_claimed) = (self.restarts, true);
        for (n, id) in pending.iter().enumerate() {
            let Some(op) = self.pending.get_mut(*id) else { continue };
            let Some((_, sequence)) = op.of_txn() else { continue };
            if sequence <= decided {
                let Some(op) = self.pending.dropped(*id) else { continue };
                if matches!(op.what, What::Release { .. }) {
                    self.released(op.op, &op.what, true);
                    over.push((op.what, Ok(())));
                } else {
                    // The response to a later one has come: this does not happen in order.
                    over.push((op.what, Err(no_response())));
                }
                continue;
            }
            let What::Release { back_to: Some(to), .. } = op.what else { continue };
            if op.make_roll_back_a_savepoint() {
                if let Some(slot) = self.txns.get_mut(key.0) {
                    slot.held.note(sequence, Change::RollBackTo(to));
                }
                self.cancel_since(&pending[..n], to, over);
            }
        }
    }

    /// Cancels the lock calls among the operations that were to be rolled back to `to`.
    fn cancel_since(&mut self, pending: &[u64], to: Sequence, over: &mut Over) {
        for id in pending {
            let Some(op) = self.pending.get_mut(*id) else { continue };
            if op.of_txn().is_some_and(|(_, sequence)| sequence > to)
                && let Some((_, what)) = op.take_lock()
            {
                let why = "the transaction was rolled back to a savepoint before the call";
                over.push((what, Err(Error::new(ErrorKind::Cancelled, why))));
            }
        }
    }

    /// The claim of a transaction, and what it holds.
    pub(super) fn held_by(&self, key: TxnKey, pending: &[u64]) -> Result<(proto::ClaimOp, Holds)> {
        let pending = pending.iter().filter_map(|id| self.pending.get(*id));
        let others = pending.filter_map(|op| Some((op.of_txn()?.1, op.change()?)));
        let Some(slot) = self.txns.get(key.0) else { return Err(no_response()) };
        let claim = proto::ClaimOp {
            txn: slot.number.get(),
            id: slot.id.map(|id| id.to_string()).unwrap_or_default(),
            label: slot.label.clone(),
            next_sequence: slot.decided.next().get(),
            locks: Vec::new(),
        };
        Ok((claim, slot.held.replay(others)?))
    }

    /// Loses a transaction, which the server does not get again. With the reason: whether the
    /// session waits until the application was told.
    fn lose_here(
        &mut self,
        key: TxnKey,
        pending: &[u64],
        (why, holds_back): (Error, bool),
        deadline: Time,
        over: &mut Over,
    ) {
        let is_over = pending.iter().any(|id| self.ends(*id));
        self.finish(pending, &why, over);
        if is_over {
            // There is nobody to be told.
            self.forget(key);
            return;
        }
        let Some(slot) = self.txns.get_mut(key.0) else { return };
        slot.held = Default::default();
        if let Entry::Vacant(entry) = self.lost.entry(slot.number) {
            let mut loss = TxnLoss::new(why, LossPlace::Client { holds_back });
            loss.leave_server(deadline);
            entry.insert(loss);
        }
    }

    /// Ends operations that are not sent again: what was to be released is released.
    fn finish(&mut self, pending: &[u64], why: &Error, over: &mut Over) {
        for id in pending {
            let Some(op) = self.pending.dropped(*id) else { continue };
            let result = match op.what {
                What::Release { .. } => Ok(()),
                _ => Err(why.clone()),
            };
            if let Some((txn, sequence)) = op.of_txn()
                && let Some(slot) = self.txns.get_mut(txn.0)
            {
                slot.responded(sequence);
            }
            over.push((op.what, result));
        }
    }

    fn forget(&mut self, key: TxnKey) {
        if let Some(ended) = self.txns.dropped(key.0) {
            self.lost.remove(&ended.number);
        }
    }

    /// Ends a transaction that the server does not have. The session is renewed at once if it
    /// waited for that.
    pub(super) fn end_not_claimed(&mut self, key: TxnKey) -> Option<std::task::Waker> {
        let number = self.txns.get_mut(key.0)?.number;
        let held_back = self.lost.get(&number).is_some_and(TxnLoss::holds_back);
        self.forget(key);
        if !held_back {
            return None;
        }
        let (acked, lost) = (self.take_acked(), self.told_losses());
        self.push_first(Pending::heartbeat(proto::Heartbeat { acked, lost }, None))
    }
}

/// Tells callers that their operations are over.
fn tell(over: Over) {
    for (what, result) in over {
        // A caller that has gone needs no response.
        match what {
            What::Lock { reply, .. } => {
                let _ = reply.send(Err(result.err().unwrap_or_else(no_response)));
            }
            What::Savepoint { reply, .. } => {
                let _ = reply.send(Err(result.err().unwrap_or_else(no_response)));
            }
            What::Release { reply: Some(reply), .. } => {
                let _ = reply.send(result);
            }
            What::Release { reply: None, .. } | What::Heartbeat { .. } => {}
        }
    }
}

fn validates() -> Error {
    Error::new(
        ErrorKind::BindChanged,
        "the server was restarted, and a transaction that validates cannot go on: end it and start \
            it again",
    )
}

fn no_response() -> Error {
    Error::new(
        ErrorKind::Restarting,
        "the server was restarted and the response of the call was lost: try it again",
    )
}
