//! No lost wake-up, and every cycle is broken: when the faults are over each call ends within a
//! bound, and each client gets on with its work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// The longest time of a call once the faults are over: far longer than all holders before it work,
/// and far shorter than its own time-out.
const CALL_MAX: Duration = Duration::from_secs(45);

/// The number of a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CallId(u64);

/// The calls that have no outcome yet.
#[derive(Debug, Default)]
pub(super) struct Calls {
    next: u64,
    calls: BTreeMap<CallId, Call>,
    healed: Option<Instant>,
    worked: BTreeSet<String>,
}

#[derive(Debug)]
struct Call {
    who: String,
    what: String,
    began: Instant,
}

impl Calls {
    pub(super) fn begins(&mut self, who: &str, what: &str) -> CallId {
        self.next += 1;
        let id = CallId(self.next);
        let (who, what, began) = (who.to_owned(), what.to_owned(), Instant::now());
        self.calls.insert(id, Call { who, what, began });
        id
    }

    pub(super) fn ends(&mut self, id: CallId) {
        self.calls.remove(&id);
    }

    pub(super) fn gone(&mut self, who: &str) {
        self.calls.retain(|_, call| call.who != who);
    }

    pub(super) fn healed(&mut self) {
        self.healed = Some(Instant::now());
        self.worked.clear();
    }

    pub(super) fn worked(&mut self, who: &str) {
        self.worked.insert(who.to_owned());
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let Some(healed) = self.healed else { return Ok(()) };
        let late = self.calls.values().find(|call| call.began.max(healed).elapsed() > CALL_MAX);
        match late {
            Some(call) => Err(format!(
                "a call hangs: {} waits for {} since {:?}, and the faults are over since {:?}",
                call.who,
                call.what,
                call.began.elapsed(),
                healed.elapsed()
            )),
            None => Ok(()),
        }
    }

    pub(super) fn all_work(&self, clients: &[String]) -> Result<(), String> {
        match clients.iter().find(|client| !self.worked.contains(*client)) {
            Some(idle) => Err(format!("{idle} has done nothing since the faults were over")),
            None => Ok(()),
        }
    }
}
