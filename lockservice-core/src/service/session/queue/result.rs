//! The result of an operation: filed when it was decided, kept until it is acknowledged.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::id::Sequence;
use crate::service::session::queue::{NumberedBy, Relied, TxnQueue, Waiting, rolled_back};
use crate::service::session::weight;
use crate::service::{Granted, OpResponse};
use crate::table::Savepoint;

#[derive(Debug)]
pub(super) struct Decided {
    pub(super) response: Result<OpResponse>,
    /// Its weight, with that of the locks that it relies on.
    pub(super) bytes: usize,
}

/// A response that was filed.
pub(in crate::service) struct Filed {
    /// The response as it stands.
    pub(in crate::service) result: Result<OpResponse>,
    /// The callers that wait for it.
    pub(in crate::service) waiting: SmallVec<[Waiting; 1]>,
    /// A grant that came too late: roll it back.
    pub(in crate::service) rolled_back_grant: Option<Arc<Granted>>,
    /// The turn of another operation has come: the queue is to be run on.
    pub(in crate::service) more: bool,
}

impl TxnQueue {
    /// Files the response of the operation that ran.
    pub(in crate::service) fn file(
        &mut self,
        sequence: Sequence,
        mut result: Result<OpResponse>,
        relied: Option<Relied>,
    ) -> Filed {
        let mut rolled_back_grant = None;
        let mut bytes = 0;
        if std::mem::take(&mut self.cancelled)
            && let Ok(OpResponse::Locked(granted)) = &result
        {
            // It was cancelled when the grant had been made but was not filed yet.
            rolled_back_grant = Some(Arc::clone(granted));
            result = Err(rolled_back());
        } else if let Some(relied) = relied {
            bytes += weight::of_items(&relied.items);
            self.relied_on.insert(sequence, relied);
        }
        // The call is decided: its canceller has nothing to cancel. (A canceller that was used
        // before the call was polled to its end left it to the task that ran the call; the response
        // then shows that.)
        self.cancel = None;
        let mut waiting = SmallVec::new();
        if let Some(queued) = self.queue.remove(sequence) {
            self.kept_bytes -= queued.bytes;
            waiting = queued.waiting;
        }
        self.next = sequence.next();
        let is_needed = !std::mem::take(&mut self.quiet) || result.is_err();
        if self.numbered_by == Some(NumberedBy::Service) || !is_needed {
            self.relied_on.remove(&sequence);
        } else {
            bytes += weight::of_response(&result);
            self.kept_bytes += bytes;
            self.decided.insert(sequence, Decided { response: result.clone(), bytes });
        }
        let more = self.is_due();
        self.running = more;
        Filed { result, waiting, rolled_back_grant, more }
    }

    /// The first response of an operation that was decided. A `quiet` one whose response is not
    /// kept has succeeded.
    pub(super) fn decided_before(
        &self,
        sequence: Sequence,
        quiet: bool,
    ) -> Result<Result<OpResponse>> {
        match self.decided.get(sequence).map(|decided| &decided.response) {
            Some(response) if self.closed.contains(&sequence) => {
                Ok(response.clone().and(Err(rolled_back())))
            }
            Some(response) => Ok(response.clone()),
            None if quiet => Ok(Ok(OpResponse::DONE)),
            None if self.ending => Err(rolled_back()),
            None => Err(Error::new(
                ErrorKind::InvalidArgument,
                "this operation was decided, and its response acknowledged",
            )
            .with("sequence", sequence)),
        }
    }

    /// What calls since a savepoint were granted has ended: they rely on nothing any more.
    pub(in crate::service) fn rolled_back_to(&mut self, savepoint: Savepoint) {
        self.relied_on.retain(|_, relied| relied.end <= savepoint);
    }

    /// Notes that the client has the responses up to `acked`: none of them will be requested again.
    pub(in crate::service) fn acknowledge(&mut self, acked: Sequence) {
        let none = self.decided.first().is_none_or(|first| first > acked);
        if none && self.relied_on.is_empty() && self.closed.is_empty() {
            return;
        }
        let (relied_on, closed) = (&self.relied_on, &self.closed);
        self.decided.retain(|sequence, decided| {
            // The part of a rolled-back grant that was kept for later calls goes with the last of
            // them.
            let mut later =
                relied_on.range(sequence.next()..).filter(|(at, _)| !closed.contains(at));
            let kept = sequence > acked
                || closed.contains(&sequence) && later.next().is_some_and(|(at, _)| *at > acked);
            if !kept {
                self.kept_bytes -= decided.bytes;
            }
            kept
        });
        self.relied_on.retain(|decided, _| *decided > acked);
        let (next, decided) = (self.next, &self.decided);
        self.closed
            .retain(|closed| *closed > acked || *closed >= next || decided.contains(*closed));
    }
}
