//! What must hold in every run, checked while it runs: one file for each invariant.
//!
//! | file | invariant |
//! |---|---|
//! | `owners` | one owner for each version of a table's bind |
//! | `exclusion` | never two holders that exclude each other, by what each may believe |
//! | `tokens` | of two conflicting grants the later has the larger token |
//! | `commits` | what commits is serial: a stale bind never commits |
//! | `victims` | no victim of a deadlock without a cycle |
//! | `progress` | no lost wake-up, and every cycle is broken: each call ends |
//! | `leftovers` | nothing is left locked when everybody has gone |
//!
//! The checks see what clients see, at the moment at which a client learns it.

mod commits;
mod exclusion;
mod leftovers;
mod owners;
mod progress;
mod tokens;
mod victims;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use lockservice::ClientTxn;
use lockservice_core::clock::Time;
use lockservice_core::env::Env;
use lockservice_core::table::Grant;
use lockservice_core::{Error, FencingToken, LockItem, LockMode, TableRef};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::commits::{Account, Accounts, Read};
pub use self::exclusion::{Hold, HoldId};
pub use self::leftovers::leftovers;
pub use self::progress::CallId;
use super::log::Log;

/// All checks of one run. Clones are the same.
#[derive(Clone, Debug)]
pub struct Checks {
    state: Arc<Mutex<State>>,
    violation: watch::Sender<Option<String>>,
    log: Log,
}

#[derive(Debug, Default)]
struct State {
    owners: owners::Owners,
    exclusion: exclusion::Holds,
    tokens: tokens::Tokens,
    accounts: Accounts,
    victims: victims::Txns,
    progress: progress::Calls,
    counts: BTreeMap<&'static str, u64>,
}

/// Until when a client may believe that it holds something: by its own clock, and as long as its
/// process lives.
#[derive(Clone, Debug)]
pub struct Belief {
    /// The process of the client.
    pub env: Env,
    /// What the product tells it (P2).
    pub deadline: watch::Receiver<Time>,
    /// The transaction, if it validates: it is over as soon as its client learns so, and what it
    /// has read counts for nothing (P6, T4).
    pub validating: Option<Weak<ClientTxn>>,
}

impl Belief {
    /// True while the client may act on it.
    pub fn holds(&self) -> bool {
        let lives = self.env.process().is_none_or(|process| !process.is_killed());
        let is_lost = self.validating.as_ref().and_then(Weak::upgrade).and_then(|it| it.lost_now());
        lives && is_lost.is_none() && self.env.now() < *self.deadline.borrow()
    }
}

impl Checks {
    /// Nothing has happened yet.
    pub fn new(log: Log) -> Self {
        Self { state: Arc::default(), violation: watch::Sender::new(None), log }
    }

    /// The first violation.
    pub fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }

    /// Resolves at the first violation.
    pub async fn violated(&self) {
        let mut violation = self.violation.subscribe();
        // The sender lives in `self`.
        drop(violation.wait_for(Option::is_some).await);
    }

    /// Reports a violation; only the first counts.
    pub fn violate(&self, what: String) {
        self.log.note(|| format!("VIOLATION: {what}"));
        self.violation.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(what);
            }
            is_first
        });
    }

    fn check(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violate(what);
        }
    }

    /// Counts something that happened.
    pub fn count(&self, what: &'static str) {
        *self.state.lock().counts.entry(what).or_default() += 1;
    }

    /// How often each thing happened.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().counts.clone()
    }

    /// A client learns of a grant. It holds it until [`released`](Self::released).
    pub fn granted(
        &self,
        who: &str,
        table: &TableRef,
        item: &LockItem,
        mode: LockMode,
        grant: &Grant,
        belief: Belief,
    ) -> HoldId {
        self.log.note(|| {
            format!(
                "{who} holds {}:{item} {mode:?} under {} at {}.{}",
                table.name, grant.token, grant.bind.owner, grant.bind.version
            )
        });
        let mut state = self.state.lock();
        *state.counts.entry("grants").or_default() += 1;
        let owner = state.owners.seen(&grant.bind);
        let token = if grant.newly_locked {
            state.tokens.granted(who, table, item, mode, grant.token)
        } else {
            Ok(())
        };
        let hold = Hold {
            who: who.to_owned(),
            table: table.clone(),
            item: item.clone(),
            mode,
            token: grant.token,
            belief,
        };
        let (id, exclusion) = state.exclusion.granted(hold);
        drop(state);
        self.check(owner);
        self.check(exclusion);
        self.check(token);
        id
    }

    /// A client gives a hold up; it calls this before it tells anybody.
    pub fn released(&self, id: HoldId) {
        self.state.lock().exclusion.released(id);
    }

    /// The accounts of the bank.
    pub fn with_accounts<T>(
        &self,
        act: impl FnOnce(&mut Accounts) -> Result<T, String>,
    ) -> Option<T> {
        let result = act(&mut self.state.lock().accounts);
        match result {
            Ok(done) => Some(done),
            Err(what) => {
                self.violate(what);
                None
            }
        }
    }

    /// A client begins a lock call as the transaction with this label.
    pub fn calls(&self, who: &str, label: &str, what: &str) -> CallId {
        let mut state = self.state.lock();
        state.victims.waits(label);
        state.progress.begins(who, what)
    }

    /// The call has ended. `error` is its outcome if it failed.
    pub fn called(&self, id: CallId, label: &str, error: Option<&Error>) {
        let mut state = self.state.lock();
        state.progress.ends(id);
        let result = match error {
            Some(error) => state.victims.failed(label, error),
            None => Ok(()),
        };
        if let Some(error) = error {
            *state.counts.entry(error.kind().name()).or_default() += 1;
        }
        drop(state);
        if let Some(error) = error {
            self.log.note(|| format!("{label} failed: {error}"));
        }
        self.check(result);
    }

    /// A transaction has ended, as its client sees it.
    pub fn ended(&self, label: &str) {
        self.state.lock().victims.ended(label);
    }

    /// The faults are over: from now on each call is bounded.
    pub fn healed(&self) {
        self.state.lock().progress.healed();
    }

    /// Checks that no call lasts too long.
    pub fn no_call_hangs(&self) {
        let result = self.state.lock().progress.check();
        self.check(result);
    }

    /// A client has done a whole piece of work.
    pub fn worked(&self, who: &str, what: &'static str) {
        let mut state = self.state.lock();
        state.progress.worked(who);
        *state.counts.entry(what).or_default() += 1;
    }

    /// A client writes its journal under this token, while it may believe in its lock.
    pub fn wrote(&self, who: &str, place: &str, token: FencingToken) {
        let result = self.state.lock().tokens.wrote(who, place, token);
        self.check(result);
    }

    /// A client has dropped its only call.
    pub fn cancelled(&self, who: &str) {
        let mut state = self.state.lock();
        state.progress.gone(who);
        *state.counts.entry("cancelled calls").or_default() += 1;
    }

    /// Adds a line to the log of the run.
    pub fn note(&self, line: impl FnOnce() -> String) {
        self.log.note(line);
    }

    /// The process of a client is gone: its calls have no end.
    pub fn gone(&self, who: &str) {
        self.state.lock().progress.gone(who);
    }

    /// Checks that each of these clients has worked since the faults were over.
    pub fn all_work(&self, clients: &[String]) {
        let result = self.state.lock().progress.all_work(clients);
        self.check(result);
    }
}
