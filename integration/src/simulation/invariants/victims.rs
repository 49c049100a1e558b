//! No victim of a deadlock without a cycle: each transaction of the cycle that the victim is told
//! exists, and is at work; and the edges form a cycle with the victim in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockservice_core::{Detail, Error, ErrorKind};
use tokio::time::Instant;

/// A transaction that ended so long ago can be named no more: longer than any message is late.
const MEMORY: Duration = Duration::from_secs(60);

/// The transactions of all clients, by their labels.
#[derive(Debug, Default)]
pub(super) struct Txns {
    live: BTreeSet<String>,
    ended: BTreeMap<String, Instant>,
    victims: BTreeMap<BTreeSet<String>, String>,
}

impl Txns {
    pub(super) fn waits(&mut self, label: &str) {
        self.live.insert(label.to_owned());
    }

    pub(super) fn ended(&mut self, label: &str) {
        self.live.remove(label);
        let now = Instant::now();
        self.ended.retain(|_, at| now - *at < MEMORY);
        self.ended.insert(label.to_owned(), now);
    }

    pub(super) fn failed(&mut self, label: &str, error: &Error) -> Result<(), String> {
        if error.kind() != ErrorKind::Deadlock {
            return Ok(());
        }
        let Some(Detail::Deadlock(edges)) = error.detail() else {
            return Err(format!("{label} is a victim and is told no cycle"));
        };
        let says = || format!("{label} is a victim of {edges:?}");
        if edges.len() < 2 || edges.iter().filter(|edge| edge.victim).count() != 1 {
            return Err(format!("not one victim of two or more: {}", says()));
        }
        for (edge, next) in edges.iter().zip(edges.iter().cycle().skip(1)) {
            if edge.holder != next.waiter {
                return Err(format!("no cycle: {}", says()));
            }
            if !self.live.contains(&edge.label) && !self.ended.contains_key(&edge.label) {
                return Err(format!("{} is in no cycle: {}", edge.label, says()));
            }
            if edge.victim && edge.label != label {
                return Err(format!("another is the victim: {}", says()));
            }
        }
        let cycle: BTreeSet<_> = edges.iter().map(|edge| edge.label.clone()).collect();
        match self.victims.insert(cycle, label.to_owned()) {
            Some(other) if other != label => {
                Err(format!("a second victim beside {other}: {}", says()))
            }
            _ => Ok(()),
        }
    }
}
