//! [`Room`]: what bounds the operations and results that a queue keeps.

use crate::error::{Error, ErrorKind, Result};
use crate::id::Sequence;
use crate::service::Operation;
use crate::service::session::queue::TxnQueue;

/// The limits of what is kept.
#[derive(Debug)]
pub(in crate::service) struct Room {
    /// Operations and responses of this transaction.
    pub(in crate::service) ops_max: usize,
    /// Weight of all that its session keeps.
    pub(in crate::service) bytes_max: usize,
    /// The weight of the session's other transactions.
    pub(in crate::service) bytes_of_others: usize,
    /// The reason why no lock is accepted now, even if there is room here.
    pub(in crate::service) exhausted: Option<Error>,
}

impl Room {
    /// The reason why a transaction that keeps `ops` operations, in a session that keeps `bytes`,
    /// has no more room, if `times` as much as usual may be kept.
    fn full(&self, ops: usize, bytes: usize, times: usize) -> Option<Error> {
        let (what, limit, most) = if ops >= self.ops_max.saturating_mul(times) {
            ("too many operations of one transaction are", "limit", self.ops_max)
        } else if bytes >= self.bytes_max.saturating_mul(times) {
            ("too much of one session is", "limit_bytes", self.bytes_max)
        } else {
            return None;
        };
        let advice = "queued or unacknowledged: wait for responses and acknowledge them";
        Some(Error::new(ErrorKind::ResourceExhausted, format!("{what} {advice}")).with(limit, most))
    }
}

impl TxnQueue {
    /// Bounds what is kept. An operation that finds no room takes its place all the same and is
    /// refused in its turn, else what follows would wait for it for ever. Releases have as much
    /// room again, and an `End` is always taken in: they make room.
    pub(super) fn admit(
        &mut self,
        sequence: Sequence,
        operation: Operation,
        room: Room,
    ) -> Result<Operation> {
        if matches!(operation, Operation::End { .. }) && !self.ending {
            return Ok(operation);
        }
        let at_once = self.running && !self.queue.contains(self.next);
        let ops = self.queue.len() + self.decided.len() + usize::from(at_once);
        let bytes = self.kept_bytes + room.bytes_of_others;
        // Once broken it stays so: a number is missing.
        if let Some(exhausted) = room.full(ops, bytes, if self.broken { 0 } else { 2 }) {
            self.broken = true;
            return Err(exhausted);
        }
        let refusal = match &operation {
            Operation::Cancel { sequence: closed } if *closed >= sequence => Some(Error::new(
                ErrorKind::InvalidArgument,
                "only an earlier operation of the transaction can be cancelled",
            )),
            Operation::Cancel { .. }
            | Operation::Unlock { .. }
            | Operation::Downgrade { .. }
            | Operation::RollBackTo(_) => None,
            Operation::Lock(_) => room.full(ops, bytes, 1).or(room.exhausted),
            _ => room.full(ops, bytes, 1),
        };
        Ok(refusal.map_or(operation, Operation::Refuse))
    }
}
